// SPDX-License-Identifier: Apache-2.0
// The device by way of the CUDA runtime.
#include "machine.h"

#include <cuda_runtime.h>

#include <attest/backend.hpp>
#include <cstring>
#include <string>
#include <string_view>

#include "cuda_check.h"

namespace attest::cuda {

namespace {

std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

}  // namespace

std::string machine_description() {
  return std::string("split-KV attention, mma.sync and wgmma in f16 and bf16, FMA in f32; CUDA ") +
         version_text(CUDART_VERSION) + ", cuBLASLt, for " ATTEST_CUDA_ARCHITECTURES;
}

Machine find_machine() {
  int count = 0, driver = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess || count == 0) {
    (void)cudaGetLastError();
    (void)cudaDriverGetVersion(&driver);
    throw abi::Unsupported(
        "no CUDA device: " +
        (driver == 0 ? std::string("no driver is installed")
                     : std::string(status != cudaSuccess ? cudaGetErrorString(status) : "the driver has found none")));
  }
  cudaDeviceProp properties{};
  ATTEST_CUDA(cudaGetDeviceProperties(&properties, 0));
  // Only the GPUs of 9.0 have these products, and only code for 9.0a.
  const bool built = std::string_view(ATTEST_CUDA_ARCHITECTURES).find("90a") != std::string_view::npos;
  const bool warpgroups = built && properties.major == 9 && properties.minor == 0;
  const int compiled_for = kernels_compiled_for();
  if (compiled_for == 0) {
    throw abi::Unsupported(std::string("no code for the CUDA device ") + properties.name + ", compute capability " +
                           std::to_string(properties.major) + "." + std::to_string(properties.minor) +
                           ": this was built for " ATTEST_CUDA_ARCHITECTURES);
  }
  constexpr int least_that_waits = 90;  // launch.cuh
  return {properties.name,
          properties.multiProcessorCount,
          properties.sharedMemPerBlockOptin,
          warpgroups ? least_warpgroup_rows : 0,
          properties.l2CacheSize,
          compiled_for >= least_that_waits};
}

void* allocate(std::size_t bytes) {
  void* memory = nullptr;
  ATTEST_CUDA(cudaMalloc(&memory, bytes));
  return memory;
}
void deallocate(void* memory) noexcept {
  (void)cudaFree(memory);
}
void clear(void* device, std::size_t bytes) {
  ATTEST_CUDA(cudaMemset(device, 0, bytes));
  ATTEST_CUDA(cudaStreamSynchronize(nullptr));
}
void upload(void* device, const void* host, std::size_t bytes) {
  ATTEST_CUDA(cudaMemcpy(device, host, bytes, cudaMemcpyHostToDevice));
  // From pageable memory it comes back when the bytes have been taken, not when they have arrived.
  ATTEST_CUDA(cudaStreamSynchronize(nullptr));
}
void download(void* host, const void* device, std::size_t bytes) {
  ATTEST_CUDA(cudaMemcpy(host, device, bytes, cudaMemcpyDeviceToHost));
}
void synchronize() {
  ATTEST_CUDA(cudaDeviceSynchronize());
}

void copy(void* to, const void* from, std::size_t bytes) {
  ATTEST_CUDA(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, nullptr));
}

void* allocate_visible(std::size_t bytes) {
  void* memory = nullptr;
  ATTEST_CUDA(cudaHostAlloc(&memory, bytes, cudaHostAllocMapped | cudaHostAllocPortable));
  std::memset(memory, 0, bytes);
  return memory;
}
void deallocate_visible(void* memory) noexcept {
  (void)cudaFreeHost(memory);
}

}  // namespace attest::cuda
