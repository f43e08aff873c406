// SPDX-License-Identifier: Apache-2.0
// The device as the host side sees it: memory, waiting, and launches of each kernel. machine.cpp and kernels/*.cu
// answer with the CUDA runtime; host/machine_host.cpp with the CPU and the emulation.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "kernels/arguments.h"

namespace attest::cuda {

/// Where launches are queued.
struct Stream {
  void* handle = nullptr;  ///< As attest_step has it; null: the default one.
  bool overlap = false;    ///< A launch's blocks may be there before the launch before it has ended, and wait for it.
};

struct Grid {
  int x, y, z;
};

struct Machine {
  std::string name;
  int multiprocessors;
  std::size_t shared_bytes;     ///< Most shared memory of a block.
  int warpgroup_rows = 0;       ///< Rows from which products of warpgroups are used; 0: it has none.
  std::int64_t last_cache = 0;  ///< Bytes of the cache before the device's memory; 0: there is none.
  bool overlap = false;         ///< Whether launches may: its kernels were compiled to wait for each other.
};

/// What the backend was built for and with, in a line; needs no device.
std::string machine_description();

/// The device that is used, made ready. Throws abi::Unsupported if there is none.
Machine find_machine();

// All of these throw std::runtime_error with what the device said.

void* allocate(std::size_t bytes);
void deallocate(void* memory) noexcept;
/// Zeros; done when it answers, and so is upload.
void clear(void* device, std::size_t bytes);
void upload(void* device, const void* host, std::size_t bytes);
void download(void* host, const void* device, std::size_t bytes);
void synchronize();
/// Within the device's memory, on the default stream; does not wait.
void copy(void* to, const void* from, std::size_t bytes);
/// Memory that both sides see, zeroed.
void* allocate_visible(std::size_t bytes);
void deallocate_visible(void* memory) noexcept;

/// From as many rows on products of warpgroups pay: below, most of a block's two times 64 would be empty.
inline constexpr int least_warpgroup_rows = 65;

/// Threads get their turns in another order, where that can be chosen: in the emulation.
void set_backward_order(bool backward);

/// The compute capability, times 10, that the code was compiled for which this device runs: older than the device's
/// where the driver has translated it. 0: there is none that it can run.
int kernels_compiled_for();

// Each kernel, with the grid that its header asks for.
void launch_survey(const SurveyArguments& arguments, Stream stream);
void launch_intake(Grid grid, const IntakeArguments& arguments, Stream stream);
void launch_store(Grid grid, const StoreArguments& arguments, Stream stream);
void launch_combine(Grid grid, const CombineArguments& arguments, Stream stream);
void launch_attend_f32(Grid grid, const AttendArguments& arguments, Stream stream);
void launch_attend_f16(int tile_rows, Grid grid, const AttendArguments& arguments, Stream stream);
void launch_attend_bf16(int tile_rows, Grid grid, const AttendArguments& arguments, Stream stream);

}  // namespace attest::cuda
