// SPDX-License-Identifier: Apache-2.0
// A folder that does not outlive its process, however that ends: Ctrl-C, a crash, SIGKILL. A child of its own, in a
// session of its own, waits for the end of a pipe that nobody else reads, and then removes it.
#pragma once

#include <sys/types.h>

#include <filesystem>

#include "runner/unique_fd.h"

namespace attest {

class TemporaryFolder {
 public:
  /// Only this process's user can look into it. Throws Error.
  TemporaryFolder();
  /// Removed with all that is in it; links are not followed. Processes that were forked without an exec since then must
  /// have ended: they hold the pipe.
  ~TemporaryFolder();
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  [[nodiscard]] const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
  UniqueFd end_;  // the pipe's, never written to
  pid_t janitor_ = -1;
};

}  // namespace attest
