// SPDX-License-Identifier: Apache-2.0
// How many OpenMP threads a piece of work gets.
#pragma once

#include <omp.h>

#include <cstdint>

namespace attest::onednn {

/// Threads for this many multiply-adds: one below about 0.1 ms of work, where waking a second costs more than it does,
/// and far more when the machine is busy.
inline int threads_for(std::int64_t multiply_adds, int threads) {
  return multiply_adds < 2'000'000 ? 1 : threads;
}

/// oneDNN takes its number of threads from the calling thread's OpenMP setting, both when a primitive is made and when
/// it is run. The setting is the caller's, so it is put back.
class ThreadScope {
 public:
  explicit ThreadScope(int threads) : before_(omp_get_max_threads()) { omp_set_num_threads(threads); }
  ~ThreadScope() { omp_set_num_threads(before_); }
  ThreadScope(const ThreadScope&) = delete;
  ThreadScope& operator=(const ThreadScope&) = delete;

 private:
  int before_;
};

}  // namespace attest::onednn
