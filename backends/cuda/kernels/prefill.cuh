// SPDX-License-Identifier: Apache-2.0
// Attention of many rows in f16 and bf16 by the products of warpgroups (wgmma), on GPUs of compute capability 9.0: as
// attend.cuh in all but the products. Each warpgroup has 64 rows; logits, weights and sums stay in its registers, and
// keys and values lie in shared memory as wgmma reads them, in lines of 128 bytes (64 channels) with their 16-byte
// pieces swapped.
//
// A turn multiplies the queries with the keys of one tile, and the weights of the tile before with its values. The
// softmax of the first product goes on while the tensor cores are at the second one; the copies for the next turn begin
// while they are at the first.
#pragma once

#include "attend_block.cuh"

namespace attest::cuda {

/// Where byte `byte` of row `row` lies in a tile of `rows` rows: for each 64 channels all rows, 128 bytes each, with
/// the 128-byte swizzle.
ATTEST_BOTH int swizzled(int row, int byte, int rows) {
  const int piece = byte % 128 / 16;
  return (byte / 128 * rows + row) * 128 + (piece ^ row % 8) * 16 + byte % 16;
}

/// `Lines`: of 64 channels that a value has. `Usual`: usual_prefill. Grid: (row tiles * splits) x KV heads x sequences.
template <class T, int Lines, bool Usual>
struct Prefill {
  static constexpr int warpgroups = prefill_rows / 64, threads = 128 * warpgroups, blocks = 1;
  static constexpr int rows = prefill_rows, keys = prefill_keys(Lines, Usual);
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
  using Source = PrefillSource<keys>;
  /// Columns of one product with values, and how many such products there are.
  static constexpr int columns = Lines == 1 ? 64 : 128, parts = 64 * Lines / columns;

  ATTEST_DEVICE Prefill(const Arguments& a, std::byte* shared, std::int32_t tile)
      : a_(a), shared_(shared), block_(a, tile, rows), first_(block_.first_tile()), tiles_(block_.tiles()) {
    row_[0] = block_.row(own_row(0));
    row_[1] = block_.row(own_row(1));
  }

  ATTEST_DEVICE void play() {
    block_.template fetch_queries<T, threads>(rows, padded_channels(), [this](int row, int byte) {
      return shared_ + a_.layout.query + swizzled(row, byte, rows);
    });
    clear_padding();
    put(0, find(0, look_up(0)));
    put(1, find(1, look_up(1)));
    if (Usual) entry_ = look_up(2);
    barrier();
    if (tiles_ > 0) fetch_keys(0);
    copy_commit();

    // Tiles that the warpgroup's rows see, one after the other; of the others it brings its share.
    const std::int32_t first_row = thread_index() / 128 * 64;
    const std::int32_t last_row = smaller(first_row + 64, block_.used_rows) - 1;
    std::int32_t begin = tiles_, end = tiles_;
    if (last_row >= first_row) {
      const std::int32_t seen = block_.row(first_row).seen.begin, seen_end = block_.row(last_row).seen.end;
      if (seen < seen_end) {
        begin = seen / keys - first_;
        end = (seen_end - 1) / keys + 1 - first_;
      }
    }
    begin = same_in_warp(begin);
    end = same_in_warp(end);
    for (std::int32_t turn = -1; turn < tiles_; ++turn) {
      // What the turn multiplies with is there, and nobody needs what it brings in its place.
      copy_wait<0>();
      publish_to_products();
      barrier();
      const bool with_keys = turn + 1 >= begin && turn + 1 < end, with_values = turn >= begin && turn < end;
      if (with_keys && with_values) {
        both_products(turn);
      } else if (with_keys) {
        first_product(turn);
      } else if (with_values) {
        last_product(turn);
      } else {
        fetch_next(turn);
      }
    }
    copy_wait<0>();
    finish();
  }

  // --- What lies where; tiles are counted from the block's first one

  /// The first row of this thread's fragments in its warpgroup's products, or the second one.
  [[nodiscard]] ATTEST_DEVICE static std::int32_t own_row(int second) {
    return thread_index() / 32 * 16 + thread_index() % 32 / 4 + 8 * second;
  }
  /// The column of its first number in group j of 8.
  [[nodiscard]] ATTEST_DEVICE static std::int32_t own_column(int j) { return 8 * j + thread_index() % 4 * 2; }
  [[nodiscard]] ATTEST_DEVICE std::byte* key_tile(std::int32_t tile) const {
    return shared_ + a_.layout.stage + tile % prefill_stages * a_.layout.stage_bytes;
  }
  [[nodiscard]] ATTEST_DEVICE std::byte* value_tile(std::int32_t tile) const {
    return key_tile(tile) + a_.layout.value;
  }
  [[nodiscard]] ATTEST_DEVICE Source& source(std::int32_t tile) const {
    return reinterpret_cast<Source*>(shared_ + a_.layout.source)[tile % prefill_sources];
  }
  [[nodiscard]] ATTEST_DEVICE std::int32_t padded_channels() const {
    return Usual ? 64 * Lines : rounded_up(a_.key.width, 16);
  }

  // --- Tiles

  /// Channels of keys beyond the last are zeros in every tile; copies leave them alone. Those of values come to sums
  /// that nobody asks for.
  ATTEST_DEVICE void clear_padding() const {
    if (Usual) return;
    const std::int32_t padding = padded_channels() - a_.key.width;
    for (std::int32_t i = thread_index(); i < prefill_stages * keys * padding; i += threads) {
      const std::int32_t tile = i / (keys * padding), n = i / padding % keys, c = a_.key.width + i % padding;
      *reinterpret_cast<T*>(key_tile(tile) + swizzled(n, 2 * c, keys)) = narrow<T>(0.0f);
    }
  }
  [[nodiscard]] ATTEST_DEVICE Slots::Entry look_up(std::int32_t tile) const { return block_.look_up(first_ + tile); }
  [[nodiscard]] ATTEST_DEVICE RowSource find(std::int32_t tile, const Slots::Entry& entry) const {
    return block_.find(first_ + tile, entry, false);
  }
  ATTEST_DEVICE void put(std::int32_t tile, const RowSource& found) const { block_.put(source(tile), found, false); }
  ATTEST_DEVICE void fetch_keys(std::int32_t tile) const { fetch(a_.key, tile, source(tile).key, key_tile(tile)); }
  ATTEST_DEVICE void fetch_values(std::int32_t tile) const {
    fetch(a_.value, tile, source(tile).value, value_tile(tile));
  }
  ATTEST_DEVICE void fetch(const KvSide& side, std::int32_t tile, const std::byte* const* from, std::byte* to) const {
    const auto place = [=](int n, int byte) { return to + swizzled(n, byte, keys); };
    if constexpr (Usual) {
      block_.template fetch_rows<threads, keys, 8 * Lines>(side, first_ + tile, from, place);
    } else {
      block_.template fetch<threads, 0>(side, first_ + tile, from, place);
    }
  }

  // --- Turns: number t multiplies with the keys of tile t + 1 and the values of tile t, and there is one before tile 0

  /// Brings the next turn's tiles, in the place of those that the last one multiplied with.
  ATTEST_DEVICE void fetch_next(std::int32_t turn) {
    if (turn + 2 < tiles_) fetch_keys(turn + 2);
    if (turn + 1 < tiles_) fetch_values(turn + 1);
    copy_commit();
    if constexpr (Usual) {
      put(turn + 3, find(turn + 3, entry_));
      entry_ = look_up(turn + 4);
    } else {
      put(turn + 3, find(turn + 3, look_up(turn + 3)));
    }
  }

  // --- A warpgroup's part of a turn

  using Logits = float[keys / 2];  ///< Of a tile, then its weights.

  ATTEST_DEVICE void first_product(std::int32_t turn) {
    Logits logits;  // The first product does not look at what is in there.
    warpgroup_fence();
    multiply_keys(logits, turn + 1);
    fetch_next(turn);
    warpgroup_wait<0>();
    hold(logits);
    soften(logits, (first_ + turn + 1) * keys);
    weigh(logits);
  }
  ATTEST_DEVICE void both_products(std::int32_t turn) {
    Logits logits;
    hold_sums();
    warpgroup_fence();
    multiply_keys(logits, turn + 1);
    if (!Usual) warpgroup_fence();
    multiply_values(turn);
    fetch_next(turn);
    warpgroup_wait<1>();  // For all but the product with values.
    hold(logits);
    soften(logits, (first_ + turn + 1) * keys);
    // The sums of weights are asked too, which are none if they are NaN: so all of the softmax comes before the wait,
    // while the tensor cores are busy.
    const bool changed = any_in_warp(!(factor_[0] == 1 && factor_[1] == 1 && all_[0] >= 0 && all_[1] >= 0));
    settle(changed);
    warpgroup_wait<0>();
    hold_sums();
    if (changed) rescale();
    weigh(logits);
  }
  ATTEST_DEVICE void last_product(std::int32_t turn) {
    hold_sums();
    warpgroup_fence();
    multiply_values(turn);
    fetch_next(turn);
    warpgroup_wait<0>();
    hold_sums();
  }

  ATTEST_DEVICE void multiply_keys(Logits& logits, std::int32_t tile) const {
    const std::uint64_t query = matrix_descriptor(shared_ + a_.layout.query + thread_index() / 128 * 64 * 128);
    const std::uint64_t key = matrix_descriptor(key_tile(tile));
    const auto multiply = [&](std::int32_t k, bool add) {
      multiply_add_64<T>(logits, further(query, k / 4 * rows * 128 + k % 4 * 32),
                         further(key, k / 4 * keys * 128 + k % 4 * 32), add);
    };
    multiply(0, false);
    if constexpr (Usual) {
      ATTEST_UNROLL
      for (std::int32_t k = 1; k < 4 * Lines; ++k) multiply(k, true);
    }
    warpgroup_commit();
    if constexpr (!Usual) {
      for (std::int32_t k = 1; k < padded_channels() / 16; ++k) {
        // Once would do for all; but ptxas wants a fence and a group in each round of a loop, and else makes its own.
        warpgroup_fence();
        multiply(k, true);
        warpgroup_commit();
      }
    }
  }
  ATTEST_DEVICE void multiply_values(std::int32_t tile) {
    const std::uint64_t value = matrix_descriptor(value_tile(tile), keys * 128);
    ATTEST_UNROLL
    for (int n = 0; n < keys / 16; ++n) {
      ATTEST_UNROLL
      for (int part = 0; part < parts; ++part) {
        multiply_add_64<T>(sum_[part], weights_[n], further(value, (part * columns / 64 * keys + n * 16) * 128));
      }
    }
    warpgroup_commit();
  }
  /// Of products with values: what they add to, and their left factors.
  ATTEST_DEVICE void hold_sums() {
    ATTEST_UNROLL
    for (int part = 0; part < parts; ++part) hold(sum_[part]);
    ATTEST_UNROLL
    for (int n = 0; n < keys / 16; ++n) hold(weights_[n]);
  }

  /// Turns the logits of a tile into weights by the largest logit so far, and finds by what the sums of before are to
  /// be multiplied.
  ATTEST_DEVICE void soften(Logits& logits, std::int32_t first) {
    ATTEST_UNROLL
    for (int second = 0; second < 2; ++second) {
      const AttendRow& row = row_[second];
      const bool all = row.seen.begin <= first && row.seen.end >= first + keys;
      const auto mask = [&](auto logit) {
        each(second, logits, [&](float& x, std::int32_t column) {
          const std::int32_t j = first + column;
          x = j >= row.seen.begin && j < row.seen.end ? logit(x, j) : -INFINITY;
        });
      };
      // By this the numbers are to be multiplied yet; the largest is the largest before and after.
      float scale = Usual ? a_.scale : 1.0f;
      if constexpr (Usual) {
        if (!all) mask([](float x, std::int32_t) { return x; });
      } else {
        mask([&](float x, std::int32_t j) { return row.logit(a_, x, j); });
      }
      float largest = -INFINITY;
      each(second, logits, [&](const float& x, std::int32_t) { largest = fmaxf(largest, x); });
      // A row's numbers are with four neighbours.
      largest = fmaxf(largest, shuffle_xor(largest, 1));
      largest = fmaxf(largest, shuffle_xor(largest, 2));
      largest = fmaxf(largest_[second], largest * scale);
      // A product rounded once is no less than itself rounded twice; where units in the last place are large, their
      // difference is no small number.
      constexpr float most_fused = 1 << 20;
      if (Usual && fabsf(largest) > most_fused) {
        each(second, logits, [&](float& x, std::int32_t) { x *= scale; });
        scale = 1;
      }
      // As long as all is masked, the difference of two infinities would be NaN. The difference comes first: in units
      // of log 2 the lowest number would be an infinity (clause M6), and a factor would not be 1 where nothing has
      // changed.
      const float base = largest == -INFINITY ? 0.0f : largest;
      factor_[second] = power_of_two((largest_[second] - base) * log2_e);
      largest_[second] = largest;
      float sum = 0;
      each(second, logits, [&](float& x, std::int32_t) {
        x = power_of_two(fused(x, scale, -base) * log2_e);
        sum += x;
      });
      all_[second] = all_[second] * factor_[second] + sum;
    }
  }
  /// Makes the sums of before fit to be added to.
  ATTEST_DEVICE void rescale() {
    ATTEST_UNROLL
    for (int part = 0; part < parts; ++part) {
      ATTEST_UNROLL
      for (int i = 0; i < columns / 2; ++i) sum_[part][i] *= factor_[i / 2 % 2];
    }
  }
  /// Makes the weights the left factor of the next product.
  ATTEST_DEVICE void weigh(const Logits& logits) {
    // In groups of 8 columns the sums of one product are the fragments of the next one.
    ATTEST_UNROLL
    for (int n = 0; n < keys / 16; ++n) {
      ATTEST_UNROLL
      for (int i = 0; i < 4; ++i) weights_[n][i] = pair_of<T>(logits[8 * n + 2 * i], logits[8 * n + 2 * i + 1]);
    }
  }
  /// Calls `take(number, column)` for this thread's numbers in one of its rows.
  template <int count, class Take>
  ATTEST_DEVICE static void each(int second, float (&numbers)[count], Take take) {
    ATTEST_UNROLL
    for (int j = 0; j < count / 4; ++j) {
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
      for (int part = 0; part < parts; ++part) {
        ATTEST_UNROLL
        for (int j = 0; j < columns / 8; ++j) {
          const std::int32_t channel = part * columns + own_column(j);
          if (!Usual && channel >= a_.value.width) continue;
          const float* const own = sum_[part] + (4 * j + 2 * second);
          block_.template end_sums<T>(row, channel, own[0] * factor, own[1] * factor);
        }
      }
    }
  }

  const Arguments& a_;
  std::byte* shared_;
  AttendBlock block_;
  std::int32_t first_, tiles_;  ///< Of keys.
  Slots::Entry entry_{};        ///< Usual: of the tile whose source is to be found next, asked a turn before.
  // Of this thread's two rows; `all_`: its part of the sum of weights; `factor_`: of their sums, for the last tile.
  AttendRow row_[2];
  float largest_[2] = {-INFINITY, -INFINITY}, all_[2] = {0, 0}, factor_[2] = {1, 1};
  std::uint32_t weights_[keys / 16][4] = {};  ///< As left factors.
  float sum_[parts][columns / 2] = {};
};

}  // namespace attest::cuda
