// SPDX-License-Identifier: Apache-2.0
// A linear layer over rows of tokens. linear.cpp has it from cuBLASLt, host/linear_host.cpp from plain loops.
#pragma once

#include <dlpack/dlpack.h>

#include <cstddef>
#include <cstdint>
#include <memory>

#include "machine.h"

namespace attest::cuda {

/// y = x W^T + bias in the weight's dtype, summed in f32 (no TF32: spec/tolerance.md has no room for it in f32).
class Linear {
 public:
  /// `weight` [out, in] and `bias` [out] (or null) in device memory; both outlive the layer: a copy is made
  /// only where strides, or a bias's address, ask for one.
  Linear(const DLTensor& weight, const DLTensor* bias);
  Linear(Linear&&) noexcept;
  ~Linear();

  /// x [rows, in] and y [rows, out], compact. Rows do not touch each other.
  void apply(const std::byte* x, std::byte* y, std::int64_t rows, Stream stream);

  [[nodiscard]] std::int64_t in() const { return in_; }
  [[nodiscard]] std::int64_t out() const { return out_; }

 private:
  struct Parts;
  std::int64_t in_, out_;
  std::unique_ptr<Parts> parts_;
};

}  // namespace attest::cuda
