// SPDX-License-Identifier: Apache-2.0
// Attention of many rows in f16 and bf16 by the products of warpgroups (wgmma), on GPUs of compute capability 9.0: as
// attend.cuh in all but the products. Each warpgroup has 64 rows; logits, weights and sums stay in its registers, and
// keys and values lie in shared memory as wgmma reads them, in lines of 128 bytes (64 channels) with their 16-byte
// pieces swapped. While one warpgroup works on its softmax, the other's products keep the tensor cores busy.
#pragma once

#include "attend_block.cuh"

namespace attest::cuda {

/// Where byte `byte` of row `row` lies in a tile of `rows` rows: for each 64 channels all rows, 128 bytes each, with
/// the 128-byte swizzle.
ATTEST_BOTH int swizzled(int row, int byte, int rows) {
  const int piece = byte % 128 / 16;
  return (byte / 128 * rows + row) * 128 + (piece ^ row % 8) * 16 + byte % 16;
}

/// `Lines`: of 64 channels that a value has. Grid: (row tiles * splits) x KV heads x sequences.
template <class T, int Lines>
struct Prefill {
  static constexpr int warpgroups = prefill_rows / 64, threads = 128 * warpgroups, blocks = 1;
  static constexpr int rows = prefill_rows, keys = prefill_keys, stages = prefill_stages(Lines);
  using Arguments = AttendArguments;

  ATTEST_DEVICE static void run(const Arguments& a, std::byte* shared) {
    if (*a.go == 0) return;
    if (!swizzle_aligned(shared)) fail();  // Products would read other places than were written.
    // Causal: the last rows see the most keys, and what begins first should not end last.
    const std::int32_t tiles = grid_width() / a.splits;
    Prefill self(a, shared, tiles - 1 - block_index().x / a.splits);
    if (!self.block_.idle()) self.play();
  }

 private:
  ATTEST_DEVICE Prefill(const Arguments& a, std::byte* shared, std::int32_t tile)
      : a_(a), shared_(shared), block_(a, tile, rows) {
    const std::int32_t first = thread_index() / 128 * 64;
    row_[0] = block_.row(own_row(0));
    row_[1] = block_.row(own_row(1));
    const std::int32_t last = smaller(first + 64, block_.used_rows) - 1;
    if (last >= first) group_ = {block_.row(first).seen.begin, block_.row(last).seen.end};
  }

  ATTEST_DEVICE void play() {
    for (std::int32_t r = thread_index() / 32; r < rows; r += threads / 32) {
      for (std::int32_t c = thread_index() % 32; c < padded_channels(); c += 32) {
        *number(a_.layout.query, r, c, rows) = block_.template query<T>(r, c);
      }
    }
    clear_padding();
    const std::int32_t first = block_.first_tile(), tiles = block_.tiles();
    // A tile's sources are found one turn before they are used.
    for (std::int32_t tile = 0; tile < stages; ++tile) locate(first + tile, tile);
    barrier();
    for (std::int32_t tile = 0; tile < stages - 1; ++tile) {
      if (tile < tiles) fetch(first + tile, tile);
      copy_commit();
    }
    for (std::int32_t tile = 0; tile < tiles; ++tile) {
      const std::int32_t next = tile + stages - 1;
      copy_wait<stages - 2>();
      publish_to_products();
      barrier();  // The tile is there, nobody uses the one before any more, and the sources of the next are known.
      if (next < tiles) fetch(first + next, next % stages);
      copy_commit();
      if (next + 1 < tiles) locate(first + next + 1, (next + 1) % stages);
      attend(first + tile, tile % stages);
    }
    copy_wait<0>();
    finish();
  }

  // --- What lies where

  /// The first row of this thread's fragments in its warpgroup's products, or the second one.
  [[nodiscard]] ATTEST_DEVICE static std::int32_t own_row(int second) {
    return thread_index() / 32 * 16 + thread_index() % 32 / 4 + 8 * second;
  }
  /// The column of its first number in group j of 8.
  [[nodiscard]] ATTEST_DEVICE static std::int32_t own_column(int j) { return 8 * j + thread_index() % 4 * 2; }
  [[nodiscard]] ATTEST_DEVICE std::byte* key_tile(std::int32_t stage) const {
    return shared_ + a_.layout.stage + stage * a_.layout.stage_bytes;
  }
  [[nodiscard]] ATTEST_DEVICE std::byte* value_tile(std::int32_t stage) const {
    return key_tile(stage) + a_.layout.value;
  }
  [[nodiscard]] ATTEST_DEVICE TileSource& source(std::int32_t stage) const {
    return reinterpret_cast<TileSource*>(shared_ + a_.layout.source)[stage];
  }
  [[nodiscard]] ATTEST_DEVICE T* number(std::int32_t tile, int row, int channel, int tile_rows) const {
    return reinterpret_cast<T*>(shared_ + tile + swizzled(row, 2 * channel, tile_rows));
  }
  [[nodiscard]] ATTEST_DEVICE std::int32_t padded_channels() const { return rounded_up(a_.key.width, 16); }

  // --- Tiles

  /// Channels of keys beyond the last are zeros in every tile; copies leave them alone. Those of values come to sums
  /// that nobody asks for.
  ATTEST_DEVICE void clear_padding() const {
    const std::int32_t padding = padded_channels() - a_.key.width;
    for (std::int32_t i = thread_index(); i < stages * keys * padding; i += threads) {
      const std::int32_t stage = i / (keys * padding), n = i / padding % keys;
      const std::int32_t tile = a_.layout.stage + stage * a_.layout.stage_bytes;
      *number(tile, n, a_.key.width + i % padding, keys) = narrow<T>(0.0f);
    }
  }
  ATTEST_DEVICE void locate(std::int32_t tile, std::int32_t stage) const {
    block_.template locate<threads>(source(stage), tile, false);
  }
  ATTEST_DEVICE void fetch(std::int32_t tile, std::int32_t stage) const {
    const TileSource& from = source(stage);
    std::byte *const key = key_tile(stage), *const value = value_tile(stage);
    block_.template fetch<threads>(a_.key, tile, from.key,
                                   [=](int n, int byte) { return key + swizzled(n, byte, keys); });
    block_.template fetch<threads>(a_.value, tile, from.value,
                                   [=](int n, int byte) { return value + swizzled(n, byte, keys); });
  }

  // --- A warpgroup's part of a tile

  ATTEST_DEVICE void attend(std::int32_t tile, std::int32_t stage) {
    const std::int32_t first = tile * keys;
    if (group_.end <= first || group_.begin >= first + keys) return;  // None of its rows sees any of it.
    float logits[32] = {};
    const std::byte* const query = shared_ + a_.layout.query + thread_index() / 128 * 64 * 128;
    hold(logits);
    warpgroup_fence();
    std::int32_t k = 0;
    do {
      multiply_add_64<T>(logits, matrix_descriptor(query + (k / 4 * rows * 128 + k % 4 * 32)),
                         matrix_descriptor(key_tile(stage) + (k / 4 * keys * 128 + k % 4 * 32)));
    } while (++k < padded_channels() / 16);
    warpgroup_commit();
    warpgroup_wait();
    hold(logits);
    std::uint32_t weights[keys / 16][4];
    float factor[2];
    soften(first, logits, weights, factor);
    ATTEST_UNROLL
    for (int line = 0; line < Lines; ++line) {
      ATTEST_UNROLL
      for (int i = 0; i < 32; ++i) sum_[line][i] *= factor[i / 2 % 2];
      hold(sum_[line]);
    }
    ATTEST_UNROLL
    for (int n = 0; n < keys / 16; ++n) hold(weights[n]);
    warpgroup_fence();
    ATTEST_UNROLL
    for (int n = 0; n < keys / 16; ++n) {
      ATTEST_UNROLL
      for (int line = 0; line < Lines; ++line) {
        multiply_add_64<T>(sum_[line], weights[n], matrix_descriptor(value_tile(stage) + (line * keys + n * 16) * 128));
      }
    }
    warpgroup_commit();
    warpgroup_wait();
    ATTEST_UNROLL
    for (int line = 0; line < Lines; ++line) hold(sum_[line]);
  }

  /// Turns the logits of a tile into weights by the largest logit so far, as the left factor of the next product, and
  /// answers by what the sums of before are to be multiplied.
  ATTEST_DEVICE void soften(std::int32_t first, float (&logits)[32], std::uint32_t (&weights)[keys / 16][4],
                            float (&factor)[2]) {
    ATTEST_UNROLL
    for (int second = 0; second < 2; ++second) {
      const AttendRow& row = row_[second];
      const bool all = row.seen.begin <= first && row.seen.end >= first + keys;
      if (all && a_.softcap == 0 && a_.slopes == nullptr && a_.mask == nullptr) {
        each(second, logits, [&](float& x, std::int32_t) { x *= a_.scale; });
      } else {
        each(second, logits, [&](float& x, std::int32_t column) {
          const std::int32_t j = first + column;
          x = j >= row.seen.begin && j < row.seen.end ? row.logit(a_, x, j) : -INFINITY;
        });
      }
      float largest = largest_[second];
      each(second, logits, [&](const float& x, std::int32_t) { largest = fmaxf(largest, x); });
      // A row's numbers are with four neighbours.
      largest = fmaxf(largest, shuffle_xor(largest, 1));
      largest = fmaxf(largest, shuffle_xor(largest, 2));
      // As long as all is masked, the difference of two infinities would be NaN. The difference comes first: in units
      // of log 2 the lowest number would be an infinity (clause M6), and a factor would not be 1 where nothing has
      // changed.
      const float base = largest == -INFINITY ? 0.0f : largest;
      factor[second] = power_of_two((largest_[second] - base) * log2_e);
      largest_[second] = largest;
      float sum = 0;
      each(second, logits, [&](float& x, std::int32_t) {
        x = power_of_two((x - base) * log2_e);
        sum += x;
      });
      all_[second] = all_[second] * factor[second] + sum;
    }
    // In groups of 8 columns the sums of one product are the fragments of the next one.
    ATTEST_UNROLL
    for (int n = 0; n < keys / 16; ++n) {
      ATTEST_UNROLL
      for (int i = 0; i < 4; ++i) weights[n][i] = pair_of<T>(logits[8 * n + 2 * i], logits[8 * n + 2 * i + 1]);
    }
  }
  /// Calls `take(number, column)` for this thread's numbers in one of its rows.
  template <class Numbers, class Take>
  ATTEST_DEVICE static void each(int second, Numbers& numbers, Take take) {
    ATTEST_UNROLL
    for (int j = 0; j < 8; ++j) {
      take(numbers[4 * j + 2 * second], own_column(j));
      take(numbers[4 * j + 2 * second + 1], own_column(j) + 1);
    }
  }

  ATTEST_DEVICE void finish() {
    ATTEST_UNROLL
    for (int second = 0; second < 2; ++second) {
      all_[second] += shuffle_xor(all_[second], 1);
      all_[second] += shuffle_xor(all_[second], 2);
      const std::int32_t row = own_row(second);
      float factor = 0;
      if (thread_index() % 4 == 0 && row < block_.used_rows) {
        factor = block_.end_row(row, largest_[second], all_[second]);
      }
      factor = fmaxf(factor, shuffle_xor(factor, 1));
      factor = fmaxf(factor, shuffle_xor(factor, 2));
      if (row >= block_.used_rows) continue;
      ATTEST_UNROLL
      for (int line = 0; line < Lines; ++line) {
        each(second, sum_[line], [&](const float& x, std::int32_t column) {
          const std::int32_t channel = 64 * line + column;
          if (channel < a_.value.width) block_.end_sum(row, channel, x * factor);
        });
      }
    }
  }

  const Arguments& a_;
  std::byte* shared_;
  AttendBlock block_;
  Visibility::Keys group_{0, 0};  ///< Keys that the warpgroup's rows see.
  // Of this thread's two rows; `all_`: its part of the sum of weights.
  AttendRow row_[2];
  float largest_[2] = {-INFINITY, -INFINITY}, all_[2] = {0, 0};
  float sum_[Lines][32] = {};
};

}  // namespace attest::cuda
