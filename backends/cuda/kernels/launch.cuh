// SPDX-License-Identifier: Apache-2.0
// launch<Kernel>(grid, shared bytes, stream, arguments): on a GPU, or in the emulation.
#pragma once

#include "../machine.h"
#include "device.cuh"

#if defined(__CUDACC__)
#include "../cuda_check.h"
#endif

namespace attest::cuda {

#if defined(__CUDACC__)

template <class Kernel>
__global__ void __launch_bounds__(Kernel::threads, Kernel::blocks)
    entry(const __grid_constant__ typename Kernel::Arguments arguments) {
  extern __shared__ __align__(1024) std::byte shared[];  // As products of warpgroups want it.
  Kernel::run(arguments, shared);
}

template <class Kernel>
void launch(Grid grid, std::size_t shared_bytes, Stream stream, const typename Kernel::Arguments& arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  constexpr std::size_t without_asking = 48 << 10;
  if (shared_bytes > without_asking) {
    ATTEST_CUDA(cudaFuncSetAttribute(entry<Kernel>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                     static_cast<int>(shared_bytes)));
  }
  const auto extent = [](int n) { return static_cast<unsigned>(n); };
  entry<Kernel><<<dim3(extent(grid.x), extent(grid.y), extent(grid.z)), Kernel::threads, shared_bytes,
                  static_cast<cudaStream_t>(stream)>>>(arguments);
  ATTEST_CUDA(cudaGetLastError());
}

#else

/// Of the emulation; see set_backward_order.
extern emulator::Order thread_order;

template <class Kernel>
void launch(Grid grid, std::size_t shared_bytes, Stream, const typename Kernel::Arguments& arguments) {
  emulator::launch({grid.x, grid.y, grid.z}, Kernel::threads, shared_bytes, thread_order,
                   [&](std::byte* shared) { Kernel::run(arguments, shared); });
}

#endif

}  // namespace attest::cuda
