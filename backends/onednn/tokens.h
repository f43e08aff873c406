// SPDX-License-Identifier: Apache-2.0
// Where the heads of a batch's tokens lie: one description for tensors of the step, the cache, and packed scratch.
#pragma once

#include <algorithm>
#include <attest/backend.hpp>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

namespace attest::onednn {

using abi::Counts;

/// Element (sequence b, token t, head h, channel c) lies at data[start[b] + t * token + h * head + c * channel].
/// Borrowed memory; all strides in elements.
template <class T>
struct Tokens {
  T* data = nullptr;
  std::vector<std::int64_t> start;
  std::int64_t token = 0, head = 0, channel = 0;
  std::int64_t heads = 0, width = 0;  ///< Heads of a token, and channels of a head.

  [[nodiscard]] T* at(std::int64_t b, std::int64_t t, std::int64_t h) const {
    return data + start[static_cast<std::size_t>(b)] + t * token + h * head;
  }
  /// Elements of one token.
  [[nodiscard]] std::int64_t row() const { return heads * width; }
  [[nodiscard]] bool channels_adjacent() const { return channel == 1 || width == 1; }
  /// Whether a token's heads lie one after the other without gaps.
  [[nodiscard]] bool row_dense() const { return channels_adjacent() && (heads == 1 || head == width); }

  // NOLINTNEXTLINE(google-explicit-constructor): as a pointer turns into one to const
  operator Tokens<const T>() const { return {data, start, token, head, channel, heads, width}; }
};

/// Of a checked tensor [B, S, H, D], or [B, S, d_model] as one head.
template <class T>
Tokens<T> tokens_of(const DLTensor& tensor) {
  Tokens<T> tokens;
  std::int64_t sequence = 0;
  const auto fill = [&](const auto& view, int channel_axis) {
    tokens.data = view.data();
    sequence = view.stride(0);
    tokens.token = view.stride(1);
    tokens.channel = view.stride(channel_axis);
    tokens.width = view.shape(channel_axis);
  };
  if (tensor.ndim == 3) {
    fill(abi::View<T, 3>(tensor), 2);
    tokens.heads = 1;
  } else {
    const abi::View<T, 4> view(tensor);
    fill(view, 3);
    tokens.head = view.stride(2);
    tokens.heads = view.shape(2);
  }
  for (std::int64_t b = 0; b < tensor.shape[0]; ++b) tokens.start.push_back(b * sequence);
  return tokens;
}

/// Of compact memory that holds counts[b] tokens of each sequence, one after the other.
template <class T>
Tokens<T> packed_tokens(T* data, const Counts& counts, std::int64_t heads, std::int64_t width) {
  Tokens<T> tokens{data, {}, heads * width, width, 1, heads, width};
  std::int64_t before = 0;
  for (std::int64_t b = 0; b < counts.batch(); ++b) {
    tokens.start.push_back(before * tokens.token);
    before += counts[b];
  }
  return tokens;
}

inline std::int64_t sum(const Counts& counts) {
  std::int64_t total = 0;
  for (std::int64_t b = 0; b < counts.batch(); ++b) total += counts[b];
  return total;
}

/// The first element of every token [first[b], first[b] + counts[b]) of every sequence.
template <class T>
std::vector<T*> rows_of(const Tokens<T>& tokens, const Counts& first, const Counts& counts) {
  std::vector<T*> rows;
  rows.reserve(static_cast<std::size_t>(sum(counts)));
  for (std::int64_t b = 0; b < counts.batch(); ++b) {
    for (std::int64_t t = 0; t < counts[b]; ++t) rows.push_back(tokens.at(b, first[b] + t, 0));
  }
  return rows;
}

/// Copies tokens rows[i] of one description to rows[i] of another with as many heads and channels, or as long a row.
/// It runs in the calling thread's OpenMP team size.
template <class From, class To>
void copy_rows(const Tokens<From>& from, const std::vector<From*>& from_rows, const Tokens<To>& to,
               const std::vector<To*>& to_rows) {
  const auto count = static_cast<std::int64_t>(from_rows.size());
  const std::int64_t row = from.row();
  const bool dense = from.row_dense() && to.row_dense();
#pragma omp parallel for schedule(static) if (count * row > 65536)
  for (std::int64_t i = 0; i < count; ++i) {
    const From* const source = from_rows[static_cast<std::size_t>(i)];
    To* const target = to_rows[static_cast<std::size_t>(i)];
    if (dense) {
      std::copy_n(source, row, target);
      continue;
    }
    // The two may cut the row into heads differently, so each element is looked up by its place in the row.
    for (std::int64_t e = 0; e < row; ++e) {
      target[e / to.width * to.head + e % to.width * to.channel] =
          source[e / from.width * from.head + e % from.width * from.channel];
    }
  }
}

/// Memory that grows and is not cleared.
class Scratch {
 public:
  /// At least `count` floats; what an earlier call gave is void.
  float* get(std::int64_t count) {
    if (count > size_) {
      memory_.reset();
      size_ = 0;
      memory_ = std::make_unique_for_overwrite<float[]>(static_cast<std::size_t>(count));
      size_ = count;
    }
    return memory_.get();
  }

 private:
  std::unique_ptr<float[]> memory_;
  std::int64_t size_ = 0;
};

}  // namespace attest::onednn
