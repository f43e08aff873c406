// SPDX-License-Identifier: Apache-2.0
// The device of cuda_on_host: this CPU, with memory of its own, as a GPU has it.
#include <cstdlib>
#include <cstring>
#include <new>
#include <string>

#include "../kernels/launch.cuh"
#include "../machine.h"

namespace attest::cuda {

emulator::Order thread_order = emulator::Order::forward;

std::string machine_description() {
  return "the CUDA backend's kernels, emulated thread by thread on the CPU: proves indices, masks and layouts, and "
         "says "
         "nothing of a GPU";
}

Machine find_machine() {
  // As few multiprocessors as a small grid needs to be split; else compute capability 9.0.
  return {"emulation", 8, 227 << 10, least_warpgroup_rows};
}

void set_backward_order(bool backward) {
  thread_order = backward ? emulator::Order::backward : emulator::Order::forward;
}

void* allocate(std::size_t bytes) {
  constexpr std::size_t most = std::size_t{1} << 40;  // More than any device has; the address sanitizer ends a process.
  if (bytes > most) throw std::bad_alloc();
  void* const memory = ::operator new (bytes, std::align_val_t{256});
  std::memset(memory, 0xFF, bytes);  // NaNs in every format but int8.
  return memory;
}
void deallocate(void* memory) noexcept {
  ::operator delete (memory, std::align_val_t{256});
}
void clear(void* device, std::size_t bytes) {
  std::memset(device, 0, bytes);
}
void upload(void* device, const void* host, std::size_t bytes) {
  std::memcpy(device, host, bytes);
}
void download(void* host, const void* device, std::size_t bytes) {
  std::memcpy(host, device, bytes);
}
void synchronize() {}
void copy(void* to, const void* from, std::size_t bytes) {
  std::memcpy(to, from, bytes);
}

void* allocate_visible(std::size_t bytes) {
  void* const memory = std::calloc(1, bytes);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
void deallocate_visible(void* memory) noexcept {
  std::free(memory);
}

}  // namespace attest::cuda
