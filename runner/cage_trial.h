// SPDX-License-Identifier: Apache-2.0
// The trial of a sandbox: a worker of our own (`attest-cage --inside`) is put behind all layers and tries to get past
// each. What it could do, not what files say, decides whether a layer is there.
//
//   Worker worker(...{cage, "--inside"}...);
//   const Trial trial = try_out(worker, thaw, wanted);
//   trial.got_past("cgroup");              // "a confined process had 40 threads", or nothing
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>

#include "runner/worker_client.h"

namespace attest {

/// What the sandbox of a trial is held to. Small, so that going beyond it costs little.
struct TrialLimits {
  int64_t memory_bytes = int64_t{64} << 20;
  int64_t processes = 16;  ///< Of the limit by user.
  bool by_user = false;    ///< There is that limit: the user is no other process's.
  int64_t grouped = 10;    ///< Of the control group: fewer, so that it is the group that refuses.
};

/// What a trial came to, by layer. Those of them that the worker was put behind count.
struct Trial {
  /// Why the worker did not begin; nothing else is known then.
  std::string failed;
  /// How it got past a layer; empty if it did not. `bubblewrap`, `seccomp`, `cgroup`, `freezer`, `rlimits`, `uid`;
  /// `capabilities`, which bubblewrap takes away.
  [[nodiscard]] std::string got_past(const std::string& layer) const {
    const auto found = past.find(layer);
    return found == past.end() ? "" : found->second;
  }
  std::map<std::string, std::string> past;
};

/// Has a worker that is `attest-cage --inside` try everything; it is dead afterwards if memory is limited. `thaw` lets
/// it go on between two requests. Throws Error where its sandbox could not be set up.
Trial try_out(Worker& worker, const std::function<void()>& thaw, const TrialLimits& limits);

/// The worker's side: answers requests until there are no more. The exit code.
int answer_from_inside();

}  // namespace attest
