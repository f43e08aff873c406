// SPDX-License-Identifier: Apache-2.0
// Threads on cores of their own. The suite's team touches the memory first and measures the machine; a backend's own
// threads are found and put on cores too.
#pragma once

#include <sched.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <thread>
#include <vector>

namespace attest::bench {

/// The cores that this process may use, as it was started.
class Cores {
 public:
  Cores();
  [[nodiscard]] int count() const { return static_cast<int>(numbers_.size()); }
  /// Puts a thread (0: the caller) on one of them, counted round.
  void pin(pid_t thread, int place) const;
  /// Lets a thread run on all of them.
  void release(pid_t thread) const;

 private:
  std::vector<int> numbers_;
  cpu_set_t all_{};
};

/// The threads of this process, and for how long each has run, in nanoseconds.
std::map<pid_t, int64_t> threads_now();

/// Waits until the caller is the only one of them that runs, because a library's threads may go on looking for work for
/// many milliseconds (OpenBLAS: 26) and would take turns with whoever is next. It gives up after 40 ms, as on a busy
/// machine.
void let_threads_rest();

/// Sets what OpenMP reads when it is loaded, unless the user has set it: threads stay where they are. Before any
/// backend is loaded.
void bind_openmp();

/// One thread a core; the caller is the first of them.
class Team {
 public:
  explicit Team(const Cores& cores);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  [[nodiscard]] int size() const { return static_cast<int>(threads_.size()) + 1; }
  /// Between these two the team waits for work without sleeping, and so disturbs everybody else.
  void wake();
  void rest();
  /// Calls work(number) on every thread and waits for all. Only while awake.
  void run(const std::function<void(int)>& work);

 private:
  void serve(int number);

  const Cores& cores_;
  std::vector<std::thread> threads_;
  const std::function<void(int)>* work_ = nullptr;
  std::atomic<uint64_t> turn_{0};
  std::atomic<int> awake_{0}, left_{0};
  std::atomic<bool> ends_{false};
};

}  // namespace attest::bench
