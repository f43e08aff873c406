// SPDX-License-Identifier: Apache-2.0
// Attention over the keys of one KV head, for decode, chunks and prefill alike: a block has a tile of rows (queries,
// and for each the heads of its group, so that keys and values are read once a group) and one split of the keys. It
// streams tiles of keys and values through shared memory, a few in flight, and keeps a running softmax.
//
// Nothing here depends on what the host knows of lengths: the grid has room for the longest, and blocks without work
// end. So a launch may be captured in a graph and replayed as the sequences grow.
//
// With one split a block writes output and LSE; with more, unfinished sums that combine.cuh puts together.
#pragma once

#include "arguments.h"
#include "device.cuh"
#include "engines.cuh"
#include "finish.cuh"

namespace attest::cuda {

/// Grid: (row tiles * splits) x KV heads x sequences.
template <class Engine>
struct Attend {
  static constexpr int threads = attend_threads, blocks = 2;  // As many as shared memory has room for.
  using Arguments = AttendArguments;
  using Number = typename Engine::Number;
  static constexpr int rows = Engine::rows, stages = Engine::stages;
  static constexpr int threads_per_row = threads / rows;

  ATTEST_DEVICE static void run(const Arguments& a, std::byte* shared) {
    if (*a.go == 0) return;
    Attend self(a, shared);
    if (self.used_rows_ <= 0) return;
    // A split that has no keys writes nothing, and nobody will ask.
    if (a.splits > 1 && self.keys_.begin >= self.keys_.end) return;
    self.play();
  }

 private:
  ATTEST_DEVICE Attend(const Arguments& a, std::byte* shared)
      : a_(a),
        shared_(shared),
        b_(block_index().z),
        head_(block_index().y),
        split_(block_index().x % a.splits),
        first_row_(block_index().x / a.splits * rows),
        s_(a.sequences[b_]),
        used_rows_(smaller(rows, s_.queries * a.group - first_row_)) {
    if (used_rows_ <= 0) return;
    // Keys that no row sees are not read: beyond the length may be NaN, and a ring has lost the earliest.
    const std::int32_t first_query = first_row_ / a.group, last_query = (first_row_ + used_rows_ - 1) / a.group;
    keys_ = {a.visibility.of(s_, first_query).begin, a.visibility.of(s_, last_query).end};
    if (a.splits > 1) {
      const std::int64_t begin = static_cast<std::int64_t>(keys_.begin / a.split_keys + split_) * a.split_keys;
      keys_ = {static_cast<std::int32_t>(larger<std::int64_t>(keys_.begin, smaller<std::int64_t>(begin, keys_.end))),
               static_cast<std::int32_t>(smaller<std::int64_t>(keys_.end, begin + a.split_keys))};
    }
    const std::int32_t row = own_row();
    if (row < used_rows_) {
      const std::int32_t query = (first_row_ + row) / a.group,
                         query_head = head_ * a.group + (first_row_ + row) % a.group;
      seen_ = a.visibility.of(s_, query);
      seen_ = {larger(seen_.begin, keys_.begin), smaller(seen_.end, keys_.end)};
      position_ = static_cast<std::int32_t>(s_.total()) - s_.queries + query;
      if (a.slopes != nullptr) slope_ = a.slopes[query_head * a.slopes_stride];
      if (a.mask != nullptr) {
        mask_ = a.mask + (b_ * a.mask_sequence + query_head * a.mask_head + query * a.mask_query) * mask_bytes();
      }
    }
  }

  ATTEST_DEVICE void play() {
    take_queries();
    clear_padding();
    const std::int32_t first = keys_.begin / layout().keys;
    const std::int32_t tiles = keys_.begin < keys_.end ? (keys_.end - 1) / layout().keys + 1 - first : 0;
    for (std::int32_t tile = 0; tile < stages - 1; ++tile) locate(tile, first + tile);
    barrier();
    for (std::int32_t tile = 0; tile < stages - 1; ++tile) {
      if (tile < tiles) fetch(tile, first + tile);
      copy_commit();
    }
    typename Engine::Sum sum;
    for (std::int32_t tile = 0; tile < tiles; ++tile) {
      const std::int32_t stage = tile % stages, next = tile + stages - 1;
      copy_wait<stages - 2>();
      barrier();  // The tile is there, and nobody uses the one before any more.
      if (next < tiles) locate(next % stages, first + next);
      if (layout().decoded != 0) {
        decode(stage);
        barrier();
      }
      Engine::logits(number(layout().query), pitch(layout().query_pitch), key_tile(stage), key_pitch(),
                     padded_channels(), layout().keys, used_rows_, logits(), pitch_of_logits());
      barrier();  // The logits are there, and so are the sources of the next tile.
      if (next < tiles) fetch(next % stages, first + next);
      copy_commit();
      soften((first + tile) * layout().keys);
      barrier();  // The weights are there.
      sum.add(weights(), pitch(layout().weight_pitch), row_state(), value_tile(stage), value_pitch(), a_.value.width,
              layout().keys, used_rows_);
    }
    copy_wait<0>();
    finish(sum);
  }

  // --- What lies where

  [[nodiscard]] ATTEST_DEVICE const AttendLayout& layout() const { return a_.layout; }
  [[nodiscard]] ATTEST_DEVICE Number* number(std::int32_t offset) const {
    return reinterpret_cast<Number*>(shared_ + offset);
  }
  [[nodiscard]] ATTEST_DEVICE static int pitch(std::int32_t bytes) { return bytes / static_cast<int>(sizeof(Number)); }
  [[nodiscard]] ATTEST_DEVICE std::byte* stage(std::int32_t s) const {
    return shared_ + layout().stage + s * layout().stage_bytes;
  }
  [[nodiscard]] ATTEST_DEVICE TileSource& source(std::int32_t s) const {
    return reinterpret_cast<TileSource*>(shared_ + layout().source)[s];
  }
  [[nodiscard]] ATTEST_DEVICE const Number* key_tile(std::int32_t s) const {
    return layout().decoded != 0 ? number(layout().decoded) : reinterpret_cast<const Number*>(stage(s));
  }
  [[nodiscard]] ATTEST_DEVICE const Number* value_tile(std::int32_t s) const {
    return layout().decoded != 0 ? number(layout().decoded_value)
                                 : reinterpret_cast<const Number*>(stage(s) + layout().value);
  }
  [[nodiscard]] ATTEST_DEVICE int key_pitch() const {
    return pitch(layout().decoded != 0 ? layout().decoded_key_pitch : layout().key_pitch);
  }
  [[nodiscard]] ATTEST_DEVICE int value_pitch() const {
    return pitch(layout().decoded != 0 ? layout().decoded_value_pitch : layout().value_pitch);
  }
  [[nodiscard]] ATTEST_DEVICE float* logits() const { return reinterpret_cast<float*>(shared_ + layout().logit); }
  [[nodiscard]] ATTEST_DEVICE int pitch_of_logits() const { return layout().logit_pitch / 4; }
  [[nodiscard]] ATTEST_DEVICE Number* weights() const { return number(layout().weight); }
  [[nodiscard]] ATTEST_DEVICE float* row_state() const {
    return reinterpret_cast<float*>(shared_ + layout().row_state);
  }
  [[nodiscard]] ATTEST_DEVICE std::int32_t padded_channels() const {
    return rounded_up(a_.key.width, Engine::channel_unit);
  }
  [[nodiscard]] ATTEST_DEVICE int mask_bytes() const {
    return a_.mask_boolean != 0 ? 1 : element_bytes(a_.mask_storage);
  }
  /// The row whose softmax this thread shares in.
  [[nodiscard]] ATTEST_DEVICE static std::int32_t own_row() { return thread_index() / threads_per_row; }
  [[nodiscard]] ATTEST_DEVICE static std::int32_t own_part() { return thread_index() % threads_per_row; }

  // --- Tiles

  /// The rows of queries; zeros where there is none.
  ATTEST_DEVICE void take_queries() const {
    const std::int32_t channels = padded_channels();
    for (std::int32_t r = thread_index() / 32; r < rows; r += threads / 32) {
      Number* const to = number(layout().query) + r * pitch(layout().query_pitch);
      const bool used = r < used_rows_;
      const std::int32_t query = (first_row_ + r) / a_.group,
                         query_head = head_ * a_.group + (first_row_ + r) % a_.group;
      for (std::int32_t c = thread_index() % 32; c < channels; c += 32) {
        const bool there = used && c < a_.key.width;
        to[c] = narrow<Number>(
            there ? load_number(a_.query.storage, a_.query.at(b_, s_.query_start + query, query_head, c)) : 0.0f);
      }
    }
  }

  /// Channels beyond the last are zeros in every tile; copies leave them alone.
  ATTEST_DEVICE void clear_padding() const {
    if (layout().decoded != 0) {
      clear(number(layout().decoded), pitch(layout().decoded_key_pitch), a_.key.width);
      clear(number(layout().decoded_value), pitch(layout().decoded_value_pitch), a_.value.width);
      return;
    }
    for (std::int32_t s = 0; s < stages; ++s) {
      clear(reinterpret_cast<Number*>(stage(s)), pitch(layout().key_pitch), a_.key.width);
      clear(reinterpret_cast<Number*>(stage(s) + layout().value), pitch(layout().value_pitch), a_.value.width);
    }
  }
  ATTEST_DEVICE void clear(Number* tile, int tile_pitch, std::int32_t width) const {
    const std::int32_t padding = rounded_up(width, Engine::channel_unit) - width;
    for (std::int32_t i = thread_index(); i < layout().keys * padding; i += threads) {
      const std::int32_t n = i / padding;
      tile[n * tile_pitch + width + i - n * padding] = narrow<Number>(0.0f);
    }
  }

  /// Finds where the rows of a tile lie; null: not there.
  ATTEST_DEVICE void locate(std::int32_t to_stage, std::int32_t tile) const {
    TileSource& to = source(to_stage);
    for (std::int32_t n = thread_index(); n < layout().keys; n += threads) {
      const std::int32_t j = tile * layout().keys + n;
      if (j < keys_.begin || j >= keys_.end) {
        to.key[n] = nullptr;
        to.value[n] = nullptr;
      } else if (j < s_.cached) {
        const Slots::Slot slot = a_.slots(b_, j);
        to.key[n] = slot.there ? a_.key.cache.at(slot, head_) : nullptr;
        to.value[n] = slot.there ? a_.value.cache.at(slot, head_) : nullptr;
        if (layout().decoded != 0 && slot.there) {
          to.key_scale[n] = *a_.key.cache.scale(slot, head_);
          to.value_scale[n] = *a_.value.cache.scale(slot, head_);
        }
      } else {
        const std::int32_t t = s_.key_start + j - s_.past;
        to.key[n] = a_.key.fresh.at(b_, t, head_);
        to.value[n] = a_.value.fresh.at(b_, t, head_);
        if (layout().decoded != 0) {
          to.key_scale[n] = a_.key.fresh_scale(b_, t, head_);
          to.value_scale[n] = a_.value.fresh_scale(b_, t, head_);
        }
      }
    }
  }

  ATTEST_DEVICE void fetch(std::int32_t to_stage, std::int32_t tile) const {
    const TileSource& from = source(to_stage);
    std::byte* const to = stage(to_stage);
    fetch(a_.key, tile, from.key, to, layout().key_pitch);
    fetch(a_.value, tile, from.value, to + layout().value, layout().value_pitch);
  }
  ATTEST_DEVICE void fetch(const KvSide& side, std::int32_t tile, const std::byte* const* from, std::byte* to,
                           std::int32_t to_pitch) const {
    const std::int32_t size = element_bytes(side.cache.storage);
    if (side.vectors != 0) {
      // As many threads a row as it has pieces, up to a warp, so that neighbours read neighbouring addresses.
      const std::int32_t pieces = side.width * size / 16;
      std::int32_t per_row = 1;
      while (2 * per_row <= smaller(pieces, 32)) per_row *= 2;
      const std::byte* const anywhere = side.cache.data != nullptr ? side.cache.data : side.fresh.data;
      for (std::int32_t n = thread_index() / per_row; n < layout().keys; n += threads / per_row) {
        const bool there = from[n] != nullptr;
        for (std::int32_t piece = thread_index() % per_row; piece < pieces; piece += per_row) {
          copy_16(to + n * to_pitch + 16 * piece, there ? from[n] + 16 * piece : anywhere, there);
        }
      }
      return;
    }
    for (std::int32_t n = thread_index() / 32; n < layout().keys; n += threads / 32) {
      const bool there = from[n] != nullptr;
      const std::int64_t step = tile * layout().keys + n < s_.cached ? side.cache.channel : side.fresh.channel;
      for (std::int32_t c = thread_index() % 32; c < side.width; c += 32) {
        for (std::int32_t k = 0; k < size; ++k) {
          to[n * to_pitch + c * size + k] = there ? from[n][c * step * size + k] : std::byte{0};
        }
      }
    }
  }

  /// Codes times scales, as numbers.
  ATTEST_DEVICE void decode(std::int32_t s) const {
    const TileSource& from = source(s);
    decode(a_.key, stage(s), layout().key_pitch, from.key, from.key_scale, number(layout().decoded),
           pitch(layout().decoded_key_pitch));
    decode(a_.value, stage(s) + layout().value, layout().value_pitch, from.value, from.value_scale,
           number(layout().decoded_value), pitch(layout().decoded_value_pitch));
  }
  ATTEST_DEVICE void decode(const KvSide& side, const std::byte* raw, std::int32_t raw_pitch,
                            const std::byte* const* rows_from, const float* scales, Number* to, int to_pitch) const {
    for (std::int32_t n = thread_index() / 32; n < layout().keys; n += threads / 32) {
      const bool there = rows_from[n] != nullptr;
      for (std::int32_t c = thread_index() % 32; c < side.width; c += 32) {
        to[n * to_pitch + c] =
            narrow<Number>(there ? load_number(side.cache.storage, raw + n * raw_pitch + c) * scales[n] : 0.0f);
      }
    }
  }

  // --- Softmax

  /// What becomes of a dot product: scale, cap, position bias, mask, in this order (clauses A2, A5, B1, M6).
  [[nodiscard]] ATTEST_DEVICE float logit(float dot, std::int32_t j) const {
    float x = dot * a_.scale;
    if (a_.softcap > 0) x = a_.softcap * tanhf(x / a_.softcap);
    if (a_.slopes != nullptr) x -= slope_ * fabsf(static_cast<float>(position_ - j));
    if (a_.mask != nullptr) {
      const std::byte* const at = mask_ + j * a_.mask_key * mask_bytes();
      if (a_.mask_boolean != 0) {
        if (*at == std::byte{0}) x = -INFINITY;
      } else {
        const float added = load_number(a_.mask_storage, at);
        x = added == -INFINITY ? added : x + added;  // Of a masked key not even the logit counts: it may be NaN.
      }
    }
    return x;
  }

  /// Turns the logits of a tile, whose first key is `first`, into weights by the largest logit so far.
  ATTEST_DEVICE void soften(std::int32_t first) {
    float* const own = logits() + own_row() * pitch_of_logits();
    Number* const to = weights() + own_row() * pitch(layout().weight_pitch);
    const float before = largest_;
    for (std::int32_t n = own_part(); n < layout().keys; n += threads_per_row) {
      const std::int32_t j = first + n;
      const float x = j >= seen_.begin && j < seen_.end ? logit(own[n], j) : -INFINITY;
      own[n] = x;
      largest_ = fmaxf(largest_, x);
    }
    for (int mask = threads_per_row / 2; mask > 0; mask /= 2) largest_ = fmaxf(largest_, shuffle_xor(largest_, mask));
    const float factor = before == -INFINITY ? 0.0f : power(before - largest_);
    float sum = 0;
    for (std::int32_t n = own_part(); n < layout().keys; n += threads_per_row) {
      const float weight = own[n] == -INFINITY ? 0.0f : power(own[n] - largest_);
      to[n] = narrow<Number>(weight);
      sum += weight;
    }
    for (int mask = threads_per_row / 2; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
    sum_ = sum_ * factor + sum;
    if (own_part() == 0) row_state()[own_row()] = factor;
  }

  ATTEST_DEVICE void finish(const typename Engine::Sum& sum) const {
    const Results& to = a_.results;
    barrier();  // The last factors have been read.
    if (own_part() == 0) {
      const Row row = row_of(b_, head_, a_.group, first_row_ + own_row());
      float factor = 1;
      if (own_row() < used_rows_ && a_.splits > 1) {
        keep(to, row, split_, largest_, sum_);
      } else if (own_row() < used_rows_) {
        const Closed closed = close(to, row, largest_, sum_);
        write_lse(to, s_, row, closed.lse);
        factor = closed.factor;
      }
      row_state()[own_row()] = factor;
    }
    barrier();
    const float* const factors = row_state();
    sum.give(used_rows_, a_.value.width, [&](std::int32_t r, std::int32_t channel, float value) {
      const Row row = row_of(b_, head_, a_.group, first_row_ + r);
      if (a_.splits > 1) {
        keep(to, row, split_, channel, value);
      } else {
        write(to, s_, row, channel, value * factors[r]);
      }
    });
  }

  const Arguments& a_;
  std::byte* shared_;
  std::int32_t b_, head_, split_, first_row_;
  Sequence s_;
  std::int32_t used_rows_;
  Visibility::Keys keys_{0, 0};  ///< That this block reads.
  // Of this thread's row of the softmax.
  Visibility::Keys seen_{0, 0};
  std::int32_t position_ = 0;
  float slope_ = 0;
  const std::byte* mask_ = nullptr;
  float largest_ = -INFINITY, sum_ = 0;
};

}  // namespace attest::cuda
