// SPDX-License-Identifier: Apache-2.0
#include "projection.h"

#include <algorithm>
#include <cstddef>

#include "convert.h"
#include "dnnl_compat.h"
#include "threads.h"

namespace attest::onednn {

namespace {

using dnnl::memory;
constexpr auto fp32 = memory::data_type::f32;

// A plan meets few row counts: decoding has one, and a prefill is run in a few chunk sizes. Beyond this, start over.
constexpr std::size_t most_primitives = 64;

// Tokens up to which reading the weights takes longer than multiplying by them.
constexpr std::int64_t most_few = 4;
// Bytes of weights that a thread takes at a time; while it works on them, the next ones are fetched.
constexpr std::int64_t block_bytes = 64 * 1024;

memory::desc matrix(std::int64_t rows, std::int64_t columns, std::int64_t row_stride, std::int64_t column_stride) {
  return {{rows, columns}, fp32, {row_stride, column_stride}};
}

/// Whether the rows lie one after the other, `row` elements each.
bool without_gaps(const Heads& heads, const std::vector<char*>& rows) {
  bool so = heads.row_dense();
  for (std::size_t i = 1; so && i < rows.size(); ++i) so = rows[i] - rows[i - 1] == heads.row() * heads.element();
  return so;
}

}  // namespace

Projection::Projection(const dnnl::engine& engine, const DLTensor& weight, const DLTensor* bias, int threads,
                       const RowKernels& kernels)
    : engine_(engine),
      stream_(engine),
      threads_(threads),
      kernels_(&kernels),
      in_(weight.shape[1]),
      out_(weight.shape[0]),
      stored_{} {
  // matmul wants [in, out]: the transposed view, which has one of its strides 1 for any ordinary weight.
  const abi::NumberView<2> w(weight);
  std::int64_t in_stride = w.stride(1), out_stride = w.stride(0);
  auto* data = static_cast<float*>(w.address(0, 0));
  if (in_stride == 1 && in_ > 0) {
    const std::int64_t row = out_stride * static_cast<std::int64_t>(abi::bytes_of(w.storage()));
    const auto* const first = static_cast<const char*>(w.address(0, 0));
    stored_ = {w.storage(), first, row, out_, in_, first, row};
  }
  const bool even = (in_stride == 1 && out_stride >= in_) || (out_stride == 1 && in_stride >= out_);
  if (!even || w.storage() != Storage::f32) {
    weight_copy_.resize(static_cast<std::size_t>(in_ * out_));
    data = weight_copy_.data();
    for (std::int64_t o = 0; o < out_; ++o) decode(w.storage(), w.address(o, 0), in_stride, in_, 1, data + o * in_);
    in_stride = 1;
    out_stride = in_;
  }
  weight_ = memory(matrix(in_, out_, in_stride, out_stride), engine_, data);

  if (bias != nullptr) {
    const abi::NumberView<1> b(*bias);
    auto* bias_data = static_cast<float*>(b.address(0));
    if ((b.stride(0) != 1 && out_ > 1) || b.storage() != Storage::f32) {
      bias_copy_.resize(static_cast<std::size_t>(out_));
      bias_data = bias_copy_.data();
      decode(b.storage(), b.address(0), b.stride(0), out_, 1, bias_data);
    }
    bias_ = memory(matrix(1, out_, out_, 1), engine_, bias_data);
    bias_data_ = bias_data;
  }
}

void Projection::apply(const Heads& x, const Counts& counts, const Heads& y, const Counts& first) {
  const std::int64_t rows = sum(counts);
  if (rows == 0) return;
  const Counts from_zero(counts.batch(), 0);
  std::vector<char*> x_rows = rows_of(x, from_zero, counts);
  const std::vector<char*> y_rows = rows_of(y, first, counts);
  if (!without_gaps(x, x_rows)) {
    const Heads gathered = packed_heads(x_scratch_.get(rows * in_), counts, x.heads, x.width);
    std::vector<char*> gathered_rows = rows_of(gathered, from_zero, counts);
    copy_rows(x, x_rows, gathered, gathered_rows);
    x_rows.swap(gathered_rows);
  }
  auto* const x_data = reinterpret_cast<float*>(x_rows[0]);
  if (without_gaps(y, y_rows)) {
    multiply(x_data, reinterpret_cast<float*>(y_rows[0]), rows);
    return;
  }
  const Heads made = packed_heads(y_scratch_.get(rows * out_), counts, y.heads, y.width);
  multiply(x_data, y_scratch_.get(0), rows);
  copy_rows(made, rows_of(made, from_zero, counts), y, y_rows);
}

void Projection::multiply_few(const float* x, float* y, std::int64_t rows) {
  const std::int64_t wide = padded(in_);
  if (wide != in_) {
    float* const to = padded_.get(rows * wide);
    for (std::int64_t r = 0; r < rows; ++r) {
      std::copy_n(x + r * in_, in_, to + r * wide);
      std::fill(to + r * wide + in_, to + (r + 1) * wide, 0.0f);
    }
    x = to;
  }
  // A multiple of 16: what the kernels take at a time.
  const std::int64_t block =
      std::max<std::int64_t>(1, block_bytes / std::max<std::int64_t>(stored_.stride, 1) / 16) * 16;
  const std::int64_t blocks = (out_ + block - 1) / block;
  const int threads = threads_for(rows * in_ * out_, threads_);
  const std::int64_t in_a_row = std::clamp<std::int64_t>(blocks / (8 * threads), 1, 16);
#pragma omp parallel for schedule(dynamic, in_a_row) num_threads(threads) if (threads > 1)
  for (std::int64_t n = 0; n < blocks; ++n) {
    const std::int64_t begin = n * block, end = std::min(begin + block, out_);
    RowBlock weights = stored_;
    weights.first += begin * weights.stride;
    weights.count = end - begin;
    weights.ahead = weights.first + weights.count * weights.stride;
    kernels_->multiply(weights, x, rows, y + begin, out_);
    if (bias_data_ == nullptr) continue;
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t o = begin; o < end; ++o) y[r * out_ + o] += bias_data_[o];
    }
  }
}

void Projection::multiply(float* x, float* y, std::int64_t rows) {
  if (rows <= most_few && stored_.first != nullptr) {
    multiply_few(x, y, rows);
    return;
  }
  const ThreadScope scope(threads_for(rows * in_ * out_, threads_));
  const memory::desc x_desc = matrix(rows, in_, in_, 1), y_desc = matrix(rows, out_, out_, 1);
  auto found = made_.find(rows);
  if (found == made_.end()) {
    if (made_.size() >= most_primitives) made_.clear();
    const memory::desc weight_desc = weight_.get_desc();
    const memory::desc bias_desc = bias_ ? bias_.get_desc() : memory::desc();
    found = made_.emplace(rows, make_matmul(engine_, x_desc, weight_desc, bias_ ? &bias_desc : nullptr, y_desc)).first;
  }
  std::unordered_map<int, memory> arguments{{DNNL_ARG_SRC, memory(x_desc, engine_, x)},
                                            {DNNL_ARG_WEIGHTS, weight_},
                                            {DNNL_ARG_DST, memory(y_desc, engine_, y)}};
  if (bias_) arguments.emplace(DNNL_ARG_BIAS, bias_);
  found->second.execute(stream_, arguments);
  stream_.wait();
}

}  // namespace attest::onednn
