// SPDX-License-Identifier: Apache-2.0
// The keys of a step, and its values: from the new tokens and the cache of any kind to the rows that attention reads,
// and into the cache.
//
// An evenly strided f32 cache that holds what it is given, slot after slot, is appended to first and then read in
// place, if a sequence has few queries. If it has many, attention reads each new token anyway, and copies it then: that
// costs less than to do either alone. For any other the new tokens wait in scratch, as the numbers that the cache will
// hold, until attention is done with the old ones (a ring overwrites those), and cached tokens are gathered a tile at a
// time.
#pragma once

#include <attest/backend.hpp>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "heads.h"
#include "intake.h"

namespace attest::onednn {

/// One tensor of a step's cache by position, and the scales of its codes. It borrows the tensors.
class CachedHeads {
 public:
  /// `scale`: null unless the cache is quantised.
  CachedHeads(const attest_problem& problem, const attest_cache& cache, const DLTensor& tensor, const DLTensor* scale);

  [[nodiscard]] abi::Slot slot(std::int64_t b, std::int64_t position) const { return slots_(b, position); }
  [[nodiscard]] void* at(abi::Slot slot, std::int64_t head) const {
    return codes_.address(slot.outer, slot.inner, head, 0);
  }
  /// 1 where nothing is quantised.
  [[nodiscard]] float scale(abi::Slot slot, std::int64_t head) const {
    return scaled_ ? scales_(slot.outer, slot.inner, head) : 1;
  }
  /// Those of `count` positions from this slot's on, which lie evenly (run). Something is quantised.
  void scales(abi::Slot slot, std::int64_t head, std::int64_t count, float* to) const {
    const float* const from = &scales_(slot.outer, slot.inner, head);
    for (std::int64_t i = 0; i < count; ++i) to[i] = from[i * scales_.stride(1)];
  }
  void set_scale(abi::Slot slot, std::int64_t head, float scale) const {
    scales_(slot.outer, slot.inner, head) = scale;
  }
  [[nodiscard]] bool scaled() const { return scaled_; }
  [[nodiscard]] bool scale_per_token() const { return scale_per_token_; }
  /// How many positions from this one on, itself included, lie evenly at `slot_bytes`.
  [[nodiscard]] std::int64_t run(std::int64_t position) const { return even_ - position % even_; }
  [[nodiscard]] bool heads_adjacent() const { return codes_.stride(2) < codes_.stride(1); }
  [[nodiscard]] std::int64_t slot_bytes() const { return bytes(codes_.stride(1)); }
  [[nodiscard]] std::int64_t head_bytes() const { return bytes(codes_.stride(2)); }
  [[nodiscard]] Storage storage() const { return codes_.storage(); }
  [[nodiscard]] std::int64_t channel_stride() const { return codes_.stride(3); }

 private:
  [[nodiscard]] std::int64_t bytes(std::int64_t elements) const {
    return elements * static_cast<std::int64_t>(abi::bytes_of(codes_.storage()));
  }

  abi::Slots slots_;
  abi::NumberView<4> codes_;
  abi::View<float, 3> scales_;
  bool scaled_, scale_per_token_;
  std::int64_t even_;  ///< Slots of a page or of a sequence.
};

/// Rows that lie evenly: head h of row i begins at data + i * row_bytes + h * head_bytes.
struct RowRun {
  Storage storage;
  const char* data;
  std::int64_t row_bytes, head_bytes, count;
};

/// What attention reads: rows by sequence, head and position.
class KvRows {
 public:
  /// Positions from past[b] on are `fresh` tokens, those before lie in the cache. `slots`: the cache as f32 heads,
  /// where attention is to copy the fresh ones itself.
  KvRows(Heads fresh, Counts past, std::optional<CachedHeads> cache, std::optional<Heads> slots = std::nullopt);

  /// Copies rows [first, end) to `to` as f32, one after the other.
  void copy(std::int64_t b, std::int64_t head, std::int64_t first, std::int64_t end, float* to) const;

  /// The fresh tokens' heads; token 0 of sequence b is at position past(b).
  [[nodiscard]] const Heads& fresh() const { return fresh_; }
  /// Where they are to be copied to, by position; null: nowhere.
  [[nodiscard]] const Heads* slots() const { return slots_ ? &*slots_ : nullptr; }

  // Row by row, as they are stored: cached positions as the cache has them, new ones as f32.

  /// Whether every row's channels are adjacent.
  [[nodiscard]] bool rows_adjacent() const {
    return fresh_.channels_adjacent() && (!cache_ || cache_->channel_stride() == 1 || fresh_.width == 1);
  }
  /// Whether a token's heads lie closer together than a head's tokens.
  [[nodiscard]] bool heads_adjacent() const { return cache_ ? cache_->heads_adjacent() : fresh_.head < fresh_.token; }
  [[nodiscard]] std::int64_t past(std::int64_t b) const { return past_[b]; }
  /// Positions from `first` on, as many as lie evenly, at most up to `end`.
  [[nodiscard]] RowRun run(std::int64_t b, std::int64_t first, std::int64_t end) const;
  /// Whether cached rows are codes, to be multiplied by `scales`.
  [[nodiscard]] bool scaled() const { return cache_ && cache_->scaled(); }
  /// Writes each row's scale to `to`; 1 for rows that are no codes.
  void scales(std::int64_t b, std::int64_t head, std::int64_t first, std::int64_t end, float* to) const;

 private:
  Heads fresh_;
  Counts past_;
  std::optional<CachedHeads> cache_;
  std::optional<Heads> slots_;
};

/// The keys of one problem's steps, or the values.
class KvSide {
 public:
  KvSide(const attest_problem& problem, Intake intake);

  /// Takes the step's new tokens. `given`, `tensor` and `scale` are this side's of the step and its cache; null: none.
  /// What it answers is valid until the next call.
  KvRows take(const attest_step& step, const abi::Extents& extents, const DLTensor* given, const DLTensor* tensor,
              const DLTensor* scale, const std::vector<std::int64_t>& positions);

  /// Writes the tokens last taken to their slots, if that is still to be done. It cannot fail.
  void append(const abi::Extents& extents) const;

 private:
  Heads stage(const Heads& fresh, const Counts& counts);

  attest_problem problem_;
  Intake intake_;
  std::optional<CachedHeads> cache_;  ///< Of the step, while it is still to be written to.
  std::vector<std::byte> codes_;      ///< Of the new tokens, compact.
  std::vector<float> scales_;         ///< One a new head.
  Scratch numbers_;                   ///< What the codes stand for.
};

}  // namespace attest::onednn
