// SPDX-License-Identifier: Apache-2.0
#include "projection.h"

#include <cstddef>

#include "dnnl_compat.h"
#include "threads.h"

namespace attest::onednn {

namespace {

using dnnl::memory;
constexpr auto fp32 = memory::data_type::f32;

// A plan meets few row counts: decoding has one, and a prefill is run in a few chunk sizes. Beyond this, start over.
constexpr std::size_t most_primitives = 64;

memory::desc matrix(std::int64_t rows, std::int64_t columns, std::int64_t row_stride, std::int64_t column_stride) {
  return {{rows, columns}, fp32, {row_stride, column_stride}};
}

/// oneDNN takes memory as void*, inputs too.
float* unconst(const float* pointer) {
  return const_cast<float*>(pointer);
}

/// How far apart the rows lie, if evenly and without overlap.
template <class T>
std::optional<std::int64_t> spacing(const std::vector<T*>& rows, std::int64_t row) {
  if (rows.size() < 2) return row;
  const std::ptrdiff_t step = rows[1] - rows[0];
  if (step < row) return std::nullopt;
  for (std::size_t i = 2; i < rows.size(); ++i) {
    if (rows[i] - rows[i - 1] != step) return std::nullopt;
  }
  return step;
}

}  // namespace

Projection::Projection(const dnnl::engine& engine, const DLTensor& weight, const DLTensor* bias, int threads)
    : engine_(engine), stream_(engine), threads_(threads), in_(weight.shape[1]), out_(weight.shape[0]) {
  // matmul wants [in, out]: the transposed view, which has one of its strides 1 for any ordinary weight.
  const abi::View<const float, 2> w(weight);
  std::int64_t in_stride = w.stride(1), out_stride = w.stride(0);
  const float* data = w.data();
  const bool usable = (in_stride == 1 && out_stride >= in_) || (out_stride == 1 && in_stride >= out_);
  if (!usable) {
    weight_copy_.reserve(static_cast<std::size_t>(in_ * out_));
    for (std::int64_t o = 0; o < out_; ++o) {
      for (std::int64_t i = 0; i < in_; ++i) weight_copy_.push_back(w(o, i));
    }
    data = weight_copy_.data();
    in_stride = 1;
    out_stride = in_;
  }
  weight_ = memory(matrix(in_, out_, in_stride, out_stride), engine_, unconst(data));

  if (bias != nullptr) {
    const abi::View<const float, 1> b(*bias);
    const float* bias_data = b.data();
    if (b.stride(0) != 1 && out_ > 1) {
      for (std::int64_t o = 0; o < out_; ++o) bias_copy_.push_back(b(o));
      bias_data = bias_copy_.data();
    }
    bias_ = memory(matrix(1, out_, out_, 1), engine_, unconst(bias_data));
  }
}

void Projection::apply(const Tokens<const float>& x, const Counts& counts, const Tokens<float>& y,
                       const Counts& first) {
  const std::int64_t rows = sum(counts);
  if (rows == 0) return;
  const auto x_rows = rows_of(x, Counts(counts.batch(), 0), counts);
  const auto y_rows = rows_of(y, first, counts);
  const auto x_spacing = x.row_dense() ? spacing(x_rows, in_) : std::nullopt;
  const auto y_spacing = y.row_dense() ? spacing(y_rows, out_) : std::nullopt;

  const Counts all(1, rows), from_zero(1, 0);
  Matrix x_matrix{unconst(x_rows[0]), x_spacing.value_or(in_)};
  if (!x_spacing) {
    x_matrix.data = x_scratch_.get(rows * in_);
    const auto gathered = packed_tokens(x_matrix.data, all, 1, in_);
    copy_rows(x, x_rows, gathered, rows_of(gathered, from_zero, all));
  }
  if (y_spacing) {
    multiply(x_matrix, {y_rows[0], *y_spacing}, rows);
    return;
  }
  const auto projected = packed_tokens(y_scratch_.get(rows * out_), all, 1, out_);
  multiply(x_matrix, {projected.data, out_}, rows);
  copy_rows(projected, rows_of(projected, from_zero, all), y, y_rows);
}

void Projection::multiply(const Matrix& x, const Matrix& y, std::int64_t rows) {
  const ThreadScope scope(threads_for(rows * in_ * out_, threads_));
  const auto key = std::tuple(rows, x.leading, y.leading);
  const memory::desc x_desc = matrix(rows, in_, x.leading, 1), y_desc = matrix(rows, out_, y.leading, 1);
  auto found = made_.find(key);
  if (found == made_.end()) {
    if (made_.size() >= most_primitives) made_.clear();
    const memory::desc weight_desc = weight_.get_desc();
    const memory::desc bias_desc = bias_ ? bias_.get_desc() : memory::desc();
    found = made_.emplace(key, make_matmul(engine_, x_desc, weight_desc, bias_ ? &bias_desc : nullptr, y_desc)).first;
  }
  std::unordered_map<int, memory> arguments{{DNNL_ARG_SRC, memory(x_desc, engine_, x.data)},
                                            {DNNL_ARG_WEIGHTS, weight_},
                                            {DNNL_ARG_DST, memory(y_desc, engine_, y.data)}};
  if (bias_) arguments.emplace(DNNL_ARG_BIAS, bias_);
  found->second.execute(stream_, arguments);
  stream_.wait();
}

}  // namespace attest::onednn
