// SPDX-License-Identifier: Apache-2.0
// Calls of the CUDA runtime whose failure is an exception that says which call, where and why.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace attest::cuda {

inline void check(cudaError_t status, const char* call, const char* file, int line) {
  if (status == cudaSuccess) return;
  (void)cudaGetLastError();  // So that the next call does not report this one's.
  throw std::runtime_error(std::string(call) + ": " + cudaGetErrorString(status) + " (" + file + ":" +
                           std::to_string(line) + ")");
}

}  // namespace attest::cuda

#define ATTEST_CUDA(call) ::attest::cuda::check(call, #call, __FILE__, __LINE__)
