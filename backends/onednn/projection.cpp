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
constexpr std::int64_t most_few = 24;
// With more tokens than these, rows of weights are read in parts, so that as much of all tokens stays in the
// first-level cache. Fewer leave room for whole rows, which memory likes better.
constexpr std::int64_t most_whole = 4, part_width = 512;
// Bytes of weights that a thread takes at a time.
constexpr std::int64_t block_bytes = 64 * 1024;
// What the kernels take at a time.
constexpr std::int64_t kernel_rows = 8;

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
    stored_ = {w.storage(), first, row, out_, in_};
    stored_.ahead_stride = row;
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

/// Part by part of the channels: of all tokens, one after the other, with zeros up to whole vectors.
const float* Projection::in_parts(const float* x, std::int64_t rows, std::int64_t part) {
  if (part == in_ && padded(in_) == in_) return x;
  float* const parts = parts_.get(rows * padded(in_));
  float* to = parts;
  for (std::int64_t c = 0; c < in_; c += part) {
    const std::int64_t width = std::min(part, in_ - c), wide = padded(width);
    for (std::int64_t r = 0; r < rows; ++r, to += wide) {
      std::copy_n(x + r * in_ + c, width, to);
      std::fill(to + width, to + wide, 0.0f);
    }
  }
  return parts;
}

void Projection::multiply_few(const float* x, float* y, std::int64_t rows) {
  const std::int64_t part = rows <= most_whole ? in_ : std::min(part_width, in_);
  x = in_parts(x, rows, part);
  const std::int64_t element = static_cast<std::int64_t>(abi::bytes_of(stored_.storage)), stride = stored_.stride;
  // A multiple of what the kernels take; read in parts, no more than that.
  const std::int64_t most = part < in_ ? kernel_rows : block_bytes / std::max<std::int64_t>(stride, 1);
  const std::int64_t block = std::max<std::int64_t>(1, most / kernel_rows) * kernel_rows;
  const std::int64_t blocks = (out_ + block - 1) / block;
  const int threads = threads_for(rows * in_ * out_, threads_);
  // NOLINTNEXTLINE(clang-analyzer-deadcode.DeadStores): the schedule reads it
  const std::int64_t in_a_row = std::clamp<std::int64_t>(blocks / (8 * threads), 1, 16);
#pragma omp parallel for schedule(dynamic, in_a_row) num_threads(threads) if (threads > 1)
  for (std::int64_t n = 0; n < blocks; ++n) {
    const std::int64_t begin = n * block, end = std::min(begin + block, out_);
    RowBlock weights = stored_;
    weights.first += begin * stride;
    weights.count = end - begin;
    float sums[most_few * kernel_rows];
    for (std::int64_t c = 0; c < in_; c += part, weights.first += part * element) {
      weights.width = std::min(part, in_ - c);
      // Of rows in parts, the next part, or the first one of the next rows.
      weights.ahead = weights.first + (part == in_      ? bytes_ahead
                                       : c + part < in_ ? part * element
                                                        : weights.count * stride - c * element);
      if (c == 0) {
        kernels_->multiply(weights, x, rows, y + begin, out_);
        continue;
      }
      kernels_->multiply(weights, x + rows * c, rows, sums, kernel_rows);
      for (std::int64_t r = 0; r < rows; ++r) {
        for (std::int64_t o = begin; o < end; ++o) y[r * out_ + o] += sums[r * kernel_rows + o - begin];
      }
    }
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
