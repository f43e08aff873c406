// SPDX-License-Identifier: Apache-2.0
// Where the heads of a batch's tokens lie: one description for tensors of the step, a contiguous cache, and scratch.
#pragma once

#include <attest/backend.hpp>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <vector>

namespace attest::onednn {

using abi::Counts;
using abi::Storage;

/// Element (sequence b, token t, head h, channel c) lies t * token + h * head + c * channel elements behind first[b].
/// Borrowed memory. It describes inputs too, and nothing writes to those.
struct Heads {
  Storage storage = Storage::f32;
  std::vector<char*> first;  ///< Null for a sequence without tokens.
  std::int64_t token = 0, head = 0, channel = 0;
  std::int64_t heads = 0, width = 0;  ///< Heads of a token, and channels of a head.

  [[nodiscard]] void* at(std::int64_t b, std::int64_t t, std::int64_t h) const {
    return first[static_cast<std::size_t>(b)] + (t * token + h * head) * element();
  }
  /// The same of f32 heads.
  [[nodiscard]] float* floats(std::int64_t b, std::int64_t t, std::int64_t h) const {
    return static_cast<float*>(at(b, t, h));
  }
  [[nodiscard]] std::int64_t element() const { return static_cast<std::int64_t>(abi::bytes_of(storage)); }
  /// Elements of one token.
  [[nodiscard]] std::int64_t row() const { return heads * width; }
  [[nodiscard]] bool channels_adjacent() const { return channel == 1 || width == 1; }
  /// Whether a token's heads lie one after the other without gaps.
  [[nodiscard]] bool row_dense() const { return channels_adjacent() && (heads == 1 || head == width); }
};

/// Of a step's tensor; counts[b] of its tokens belong to sequence b. A layer's tensor is one head of d_model channels.
Heads heads_of(const abi::Tokens& tokens, const Counts& counts, std::int64_t heads, std::int64_t width);

/// Of a checked tensor [B, C, H, D]; tokens are those in the cache's slots.
Heads heads_of_cache(const DLTensor& tensor);

/// Of compact f32 memory that holds counts[b] tokens of each sequence, one after the other.
Heads packed_heads(float* data, const Counts& counts, std::int64_t heads, std::int64_t width);

std::int64_t sum(const Counts& counts);

/// The first element of every token [first[b], first[b] + counts[b]) of every sequence.
std::vector<char*> rows_of(const Heads& heads, const Counts& first, const Counts& counts);

/// Copies tokens from_rows[i] to to_rows[i]; both have as many heads and channels. If they are stored differently, one
/// of the two must be f32 with adjacent channels. It runs in the calling thread's OpenMP team size.
void copy_rows(const Heads& from, const std::vector<char*>& from_rows, const Heads& to,
               const std::vector<char*>& to_rows);

/// Memory that grows and is not cleared. It begins where a cache line does: vectors that lie across two cost twice.
class Scratch {
 public:
  /// At least `count` floats; what an earlier call gave is void.
  float* get(std::int64_t count) {
    if (count > size_) {
      memory_.reset();
      size_ = 0;
      memory_.reset(static_cast<float*>(::operator new(static_cast<std::size_t>(count) * sizeof(float), line)));
      size_ = count;
    }
    return memory_.get();
  }

 private:
  static constexpr std::align_val_t line{64};
  struct Free {
    void operator()(float* memory) const { ::operator delete(memory, line); }
  };

  std::unique_ptr<float[], Free> memory_;
  std::int64_t size_ = 0;
};

}  // namespace attest::onednn
