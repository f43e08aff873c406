// SPDX-License-Identifier: Apache-2.0
// Fibers: functions with stacks of their own that hand the CPU to each other where they say so.
#pragma once

#include <cstddef>
#include <memory>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace attest::cuda::emulator {

/// One flow of control. The default one is that of the thread which makes it.
class Fiber {
 public:
  Fiber() = default;
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  /// Will call `entry()` at the first switch to it; `entry` must end in a switch to another fiber and never return.
  void start(void (*entry)());
  /// Goes on in `to`, and returns when some fiber comes back to this one. `last`: this one is never come back to.
  void switch_to(Fiber& to, bool last = false);
  /// First thing that an entry calls.
  static void arrived();

 private:
  std::unique_ptr<std::byte[]> stack_;
#if defined(__x86_64__)
  void* top_ = nullptr;  ///< Stack pointer while it waits.
#else
  ucontext_t context_{};
#endif
};

}  // namespace attest::cuda::emulator
