// SPDX-License-Identifier: Apache-2.0
#include "fiber.h"

#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__SANITIZE_ADDRESS__)
#include <pthread.h>
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace attest::cuda::emulator {

namespace {

constexpr std::size_t stack_bytes = 64 << 10;

#if defined(__SANITIZE_ADDRESS__)

/// The thread's own stack. Asked for once: for the main thread the answer is read from /proc.
std::pair<void*, std::size_t> thread_stack() {
  thread_local const auto found = [] {
    std::pair<void*, std::size_t> stack{};
    pthread_attr_t attributes;
    pthread_getattr_np(pthread_self(), &attributes);
    pthread_attr_getstack(&attributes, &stack.first, &stack.second);
    pthread_attr_destroy(&attributes);
    return stack;
  }();
  return found;
}
#endif

/// The frames of a fiber that was left for good are still marked in its stack.
void forget_frames([[maybe_unused]] const std::byte* stack) {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(stack, stack_bytes);
#endif
}

}  // namespace

#if defined(__x86_64__)

// Saves what a function must preserve, leaves the stack pointer at *rdi, and takes up the one in rsi.
extern "C" void attest_cuda_fiber_switch(void** save, void* load) __attribute__((visibility("hidden")));
__asm__(R"(
  .text
  .hidden attest_cuda_fiber_switch
  .type attest_cuda_fiber_switch, @function
attest_cuda_fiber_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size attest_cuda_fiber_switch, .-attest_cuda_fiber_switch
)");

void Fiber::start(void (*entry)()) {
  if (stack_ == nullptr) stack_.reset(new std::byte[stack_bytes]);
  forget_frames(stack_.get());
  // As if the switch had been called from the entry: six registers, the address to return to, and a null above it.
  auto end = reinterpret_cast<std::uintptr_t>(stack_.get() + stack_bytes) & ~std::uintptr_t{15};
  auto* top = reinterpret_cast<std::uintptr_t*>(end) - 8;
  for (int i = 0; i < 8; ++i) top[i] = 0;
  top[6] = reinterpret_cast<std::uintptr_t>(entry);
  top_ = top;
}

#else

void Fiber::start(void (*entry)()) {
  if (stack_ == nullptr) stack_.reset(new std::byte[stack_bytes]);
  forget_frames(stack_.get());
  getcontext(&context_);
  context_.uc_stack.ss_sp = stack_.get();
  context_.uc_stack.ss_size = stack_bytes;
  context_.uc_link = nullptr;
  makecontext(&context_, entry, 0);
}

#endif

void Fiber::switch_to(Fiber& to, [[maybe_unused]] bool last) {
#if defined(__SANITIZE_ADDRESS__)
  void* fake = nullptr;
  const auto [bottom, size] =
      to.stack_ == nullptr ? thread_stack() : std::pair<void*, std::size_t>(to.stack_.get(), stack_bytes);
  __sanitizer_start_switch_fiber(last ? nullptr : &fake, bottom, size);
#endif
#if defined(__x86_64__)
  attest_cuda_fiber_switch(&top_, to.top_);
#else
  swapcontext(&context_, &to.context_);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
}

void Fiber::arrived() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
}

}  // namespace attest::cuda::emulator
