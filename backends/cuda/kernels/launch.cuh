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

/// Begins by waiting until the launch before it has ended and all it wrote can be seen; then blocks of the launch after
/// it may come, and wait in turn. Where launches do not overlap, neither does anything.
template <class Kernel>
__global__ void __launch_bounds__(Kernel::threads, Kernel::blocks)
    entry(const __grid_constant__ typename Kernel::Arguments arguments) {
  extern __shared__ __align__(1024) std::byte shared[];  // As products of warpgroups want it.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;\n" ::: "memory");
  asm volatile("griddepcontrol.launch_dependents;\n" ::: "memory");
#endif
  Kernel::run(arguments, shared);
}

template <class Entry>
void allow_all_shared_memory(Entry* kernel) {
  int device = 0, most = 0;
  ATTEST_CUDA(cudaGetDevice(&device));
  ATTEST_CUDA(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  if (cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most) == cudaSuccess) return;
  (void)cudaGetLastError();
  // What a kernel has for itself counts, too.
  cudaFuncAttributes attributes{};
  ATTEST_CUDA(cudaFuncGetAttributes(&attributes, kernel));
  ATTEST_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   most - static_cast<int>(attributes.sharedSizeBytes)));
}

template <class Kernel>
void launch(Grid grid, std::size_t shared_bytes, Stream stream, const typename Kernel::Arguments& arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  // More than 48 KiB must be asked for. Once and as much as there is, not by the launch: the limit is the kernel's, and
  // another thread's launch of it may need more than this one.
  [[maybe_unused]] static const bool asked = (allow_all_shared_memory(entry<Kernel>), true);
  const auto extent = [](int n) { return static_cast<unsigned>(n); };
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(extent(grid.x), extent(grid.y), extent(grid.z));
  config.blockDim = dim3(Kernel::threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream.handle);
  config.attrs = &overlap;
  config.numAttrs = stream.overlap ? 1 : 0;
  ATTEST_CUDA(cudaLaunchKernelEx(&config, entry<Kernel>, arguments));
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
