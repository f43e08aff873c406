// SPDX-License-Identifier: Apache-2.0
// What stands by while backends run in this process: one that crashes, leaves or hangs must not take the run with it
// without a word.
#pragma once

#include <condition_variable>
#include <csignal>
#include <filesystem>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

namespace attest::bench {

/// One at a time. While it lives:
/// - a fatal signal says what was running, and then does what it would have done;
/// - exit(), quick_exit() and _exit() say so and end with 1;
/// - what takes longer than `limit` seconds from now() to the next or to idle() ends the process, with a message and 1;
/// - SIGINT and SIGTERM set stopped(); the second of them ends at once.
class Watch {
 public:
  explicit Watch(double limit);
  ~Watch();
  Watch(const Watch&) = delete;
  Watch& operator=(const Watch&) = delete;

  /// A backend runs from here on; the limit starts anew.
  void now(const std::string& what);
  /// None does.
  void idle();
  /// Where the results are kept, which the messages say.
  static void kept(const std::filesystem::path& path);
  [[nodiscard]] static bool stopped();

 private:
  void look();

  const double limit_;
  std::mutex mutex_;
  std::condition_variable ended_;
  bool end_ = false;
  stack_t stack_before_{};
  std::unique_ptr<char[]> stack_;
  std::thread thread_;
};

}  // namespace attest::bench
