// SPDX-License-Identifier: Apache-2.0
// A linear layer over the tokens of a batch, by oneDNN's matmul primitive.
#pragma once

#include <attest/backend.hpp>
#include <map>
#include <oneapi/dnnl/dnnl.hpp>
#include <tuple>
#include <vector>

#include "tokens.h"

namespace attest::onednn {

/// y = x W^T + bias. It borrows the weights, which are used in place where their strides allow.
class Projection {
 public:
  /// `weight` [out, in]; `bias` [out] or null. Both must outlive the projection. `threads`: most to use.
  Projection(const dnnl::engine& engine, const DLTensor& weight, const DLTensor* bias, int threads);

  /// Writes y's tokens [first[b], first[b] + counts[b]) from x's tokens [0, counts[b]); other tokens are neither read
  /// nor written. Evenly spaced rows are used in place, others go through scratch.
  void apply(const Tokens<const float>& x, const Counts& counts, const Tokens<float>& y, const Counts& first);

 private:
  struct Matrix {
    float* data;
    std::int64_t leading;  ///< Elements from one row to the next.
  };
  void multiply(const Matrix& x, const Matrix& y, std::int64_t rows);

  dnnl::engine engine_;
  dnnl::stream stream_;
  int threads_;
  std::int64_t in_, out_;
  std::vector<float> weight_copy_, bias_copy_;  ///< Filled where the strides do not allow use in place.
  dnnl::memory weight_, bias_;
  /// Primitives by (rows, x.leading, y.leading): making one takes far longer than a decode step.
  std::map<std::tuple<std::int64_t, std::int64_t, std::int64_t>, dnnl::matmul> made_;
  Scratch x_scratch_, y_scratch_;
};

}  // namespace attest::onednn
