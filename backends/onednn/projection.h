// SPDX-License-Identifier: Apache-2.0
// A linear layer over the tokens of a batch. Few of them: reading the weights is the work, and the kernels of rows.h
// read them once, as they are stored. Many: oneDNN's matmul primitive.
#pragma once

#include <attest/backend.hpp>
#include <map>
#include <oneapi/dnnl/dnnl.hpp>
#include <vector>

#include "heads.h"
#include "rows.h"

namespace attest::onednn {

/// y = x W^T + bias in f32. It borrows the weights, and for oneDNN has a copy of those that are no f32, or whose
/// strides oneDNN cannot use.
class Projection {
 public:
  /// `weight` [out, in]; `bias` [out] or null. Both must outlive the projection. `threads`: most to use.
  Projection(const dnnl::engine& engine, const DLTensor& weight, const DLTensor* bias, int threads,
             const RowKernels& kernels);

  /// Writes y's tokens [first[b], first[b] + counts[b]) from x's tokens [0, counts[b]); other tokens are neither read
  /// nor written. Both are f32. Rows without gaps are used in place, others go through scratch: so the products never
  /// depend on how the tokens are stored.
  void apply(const Heads& x, const Counts& counts, const Heads& y, const Counts& first);

  /// Channels of an x.
  [[nodiscard]] std::int64_t in() const { return in_; }

 private:
  void multiply(float* x, float* y, std::int64_t rows);
  const float* in_parts(const float* x, std::int64_t rows, std::int64_t part);
  void multiply_few(const float* x, float* y, std::int64_t rows);

  dnnl::engine engine_;
  dnnl::stream stream_;
  int threads_;
  const RowKernels* kernels_;
  std::int64_t in_, out_;
  RowBlock stored_;                             ///< All of W; its inputs lie side by side, or `first` is null.
  const float* bias_data_ = nullptr;            ///< Null: none.
  std::vector<float> weight_copy_, bias_copy_;  ///< Filled where dtype or strides do not allow use in place.
  dnnl::memory weight_, bias_;
  /// Primitives by their rows: making one takes far longer than a decode step.
  std::map<std::int64_t, dnnl::matmul> made_;
  Scratch x_scratch_, y_scratch_, parts_;
};

}  // namespace attest::onednn
