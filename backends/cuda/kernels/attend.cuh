// SPDX-License-Identifier: Apache-2.0
// Attention over the keys of one KV head, for decode, chunks and prefill alike: a block (attend_block.cuh) streams
// tiles of keys and values through shared memory, a few in flight, and keeps a running softmax.
//
// With one split a block writes output and LSE; with more, unfinished sums that combine.cuh puts together.
#pragma once

#include "attend_block.cuh"
#include "engines.cuh"

namespace attest::cuda {

/// Grid: (row tiles * splits) x KV heads x sequences.
template <class Engine>
struct Attend {
  static constexpr int threads = attend_threads, blocks = attend_blocks(Engine::rows);
  using Arguments = AttendArguments;
  using Number = typename Engine::Number;
  static constexpr int rows = Engine::rows, stages = Engine::stages;
  static constexpr int threads_per_row = threads / rows;

  ATTEST_DEVICE static void run(const Arguments& a, std::byte* shared) {
    if (*a.go == 0) return;
    Attend self(a, shared);
    if (!self.block_.idle()) self.play();
  }

 private:
  ATTEST_DEVICE Attend(const Arguments& a, std::byte* shared)
      : a_(a), shared_(shared), block_(a, block_index().x / a.splits, rows), row_(block_.row(own_row())) {}

  ATTEST_DEVICE void play() {
    const std::int32_t first = block_.first_tile(), tiles = block_.tiles();
    ATTEST_UNROLL_BY(1)  // It is much code, and runs once.
    for (std::int32_t tile = 0; tile < stages - 1; ++tile) put(tile, find(first + tile, block_.look_up(first + tile)));
    barrier();
    ATTEST_UNROLL_BY(1)
    for (std::int32_t tile = 0; tile < stages - 1; ++tile) {
      if (tile < tiles) fetch(tile, first + tile);
      copy_commit();
    }
    // While the first keys are on their way.
    take_queries();
    clear_padding();
    typename Engine::Sum sum;
    // What the block table says is asked a turn before it is needed.
    Slots::Entry entry = block_.look_up(first + stages - 1);
    for (std::int32_t tile = 0; tile < tiles; ++tile) {
      const std::int32_t stage = tile % stages, next = tile + stages - 1;
      copy_wait<stages - 2>();
      barrier();  // The tile is there, and nobody uses the one before any more.
      const RowSource found = next < tiles ? find(first + next, entry) : RowSource{};
      entry = block_.look_up(first + next + 1);
      if (layout().decoded != 0) {
        decode(stage);
        barrier();
      }
      Engine::logits(number(layout().query), pitch(layout().query_pitch), key_tile(stage), key_pitch(),
                     padded_channels(), layout().keys, block_.used_rows, logits(), pitch_of_logits());
      if (next < tiles) put(next % stages, found);
      barrier();  // The logits are there, and so are the sources of the next tile.
      if (next < tiles) fetch(next % stages, first + next);
      copy_commit();
      soften((first + tile) * layout().keys);
      barrier();  // The weights are there.
      sum.add(weights(), pitch(layout().weight_pitch), row_state(), value_tile(stage), value_pitch(), a_.value.width,
              layout().keys, block_.used_rows);
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
  /// The row whose softmax this thread shares in.
  [[nodiscard]] ATTEST_DEVICE static std::int32_t own_row() { return thread_index() / threads_per_row; }
  [[nodiscard]] ATTEST_DEVICE static std::int32_t own_part() { return thread_index() % threads_per_row; }

  // --- Tiles

  /// The rows of queries; zeros where there is none.
  ATTEST_DEVICE void take_queries() const {
    const std::int32_t channels = padded_channels();
    for (std::int32_t r = thread_index() / 32; r < rows; r += threads / 32) {
      Number* const to = number(layout().query) + r * pitch(layout().query_pitch);
      for (std::int32_t c = thread_index() % 32; c < channels; c += 32) to[c] = block_.query<Number>(r, c);
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

  [[nodiscard]] ATTEST_DEVICE RowSource find(std::int32_t tile, const Slots::Entry& entry) const {
    return block_.find(tile, entry, layout().decoded != 0);
  }
  ATTEST_DEVICE void put(std::int32_t to_stage, const RowSource& found) const {
    block_.put(source(to_stage), found, layout().decoded != 0);
  }
  ATTEST_DEVICE void fetch(std::int32_t to_stage, std::int32_t tile) const {
    const TileSource& from = source(to_stage);
    std::byte *const key = stage(to_stage), *const value = key + layout().value;
    const std::int32_t key_pitch = layout().key_pitch, value_pitch = layout().value_pitch;
    block_.fetch<threads, Engine::most_keys>(a_.key, tile, from.key,
                                             [=](int n, int byte) { return key + n * key_pitch + byte; });
    block_.fetch<threads, Engine::most_keys>(a_.value, tile, from.value,
                                             [=](int n, int byte) { return value + n * value_pitch + byte; });
  }

  struct alignas(4 * sizeof(Number)) Four {
    Number element[4];
  };

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
      const auto number_of = [&](std::uint32_t code) {
        return narrow<Number>(there ? number_of_code(side.cache.storage, static_cast<std::uint8_t>(code)) * scales[n]
                                    : 0.0f);
      };
      const std::byte* const codes = raw + n * raw_pitch;
      Number* const numbers = to + n * to_pitch;
      // Four at a time: shared memory is asked as often for a byte as for more.
      const std::int32_t fours = side.width / 4 * 4;
      for (std::int32_t c = 4 * (thread_index() % 32); c < fours; c += 4 * 32) {
        const std::uint32_t four = *reinterpret_cast<const std::uint32_t*>(codes + c);
        *reinterpret_cast<Four*>(numbers + c) = {number_of(four & 0xFF), number_of(four >> 8 & 0xFF),
                                                 number_of(four >> 16 & 0xFF), number_of(four >> 24)};
      }
      for (std::int32_t c = fours + thread_index() % 32; c < side.width; c += 32) {
        numbers[c] = number_of(static_cast<std::uint32_t>(codes[c]));
      }
    }
  }

  // --- Softmax

  /// Turns the logits of a tile, whose first key is `first`, into weights by the largest logit so far.
  ATTEST_DEVICE void soften(std::int32_t first) {
    float* const own = logits() + own_row() * pitch_of_logits();
    Number* const to = weights() + own_row() * pitch(layout().weight_pitch);
    const auto seen = [&](std::int32_t n) { return first + n >= row_.seen.begin && first + n < row_.seen.end; };
    float scale = a_.scale;
    if (a_.softcap != 0 || a_.slopes != nullptr || a_.mask != nullptr) {
      for (std::int32_t n = own_part(); n < layout().keys; n += threads_per_row) {
        if (seen(n)) own[n] = row_.logit(a_, own[n], first + n);
      }
      scale = 1;
    }
    // In registers from here on: what is read one after the other is waited for one after the other.
    constexpr int most = Engine::most_keys / threads_per_row;
    float x[most];
    float largest = largest_;
    ATTEST_UNROLL
    for (int i = 0; i < most; ++i) {
      const std::int32_t n = own_part() + i * threads_per_row;
      x[i] = n < layout().keys && seen(n) ? own[n] * scale : -INFINITY;
      largest = fmaxf(largest, x[i]);
    }
    ATTEST_UNROLL
    for (int mask = threads_per_row / 2; mask > 0; mask /= 2) largest = fmaxf(largest, shuffle_xor(largest, mask));
    // As long as all is masked, the difference of two infinities would be NaN.
    const float base = largest == -INFINITY ? 0.0f : largest;
    const float factor = power_of_two((largest_ - base) * log2_e);
    largest_ = largest;
    float sum = 0;
    ATTEST_UNROLL
    for (int i = 0; i < most; ++i) {
      const std::int32_t n = own_part() + i * threads_per_row;
      const float weight = power_of_two((x[i] - base) * log2_e);
      if (n < layout().keys) to[n] = narrow<Number>(weight);
      sum += weight;
    }
    ATTEST_UNROLL
    for (int mask = threads_per_row / 2; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
    sum_ = sum_ * factor + sum;
    if (own_part() == 0) row_state()[own_row()] = factor;
  }

  ATTEST_DEVICE void finish(const typename Engine::Sum& sum) const {
    barrier();  // The last factors have been read.
    if (own_part() == 0) {
      row_state()[own_row()] = own_row() < block_.used_rows ? block_.end_row(own_row(), largest_, sum_) : 0;
    }
    barrier();
    const float* const factors = row_state();
    sum.give(block_.used_rows, a_.value.width, [&](std::int32_t r, std::int32_t channel, float value) {
      block_.end_sum(r, channel, value * factors[r]);
    });
  }

  const Arguments& a_;
  std::byte* shared_;
  AttendBlock block_;
  // Of this thread's row of the softmax.
  AttendRow row_;
  float largest_ = -INFINITY, sum_ = 0;
};

}  // namespace attest::cuda
