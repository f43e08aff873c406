// SPDX-License-Identifier: Apache-2.0
// The two products of attention on tiles in shared memory: logits = queries x keys, and sum = sum * factor + weights x
// values. Two engines with one interface: fused multiply-adds in f32, and 16-bit matrix instructions that sum in f32.
// Rows are queries of one KV head's group; pitches are in elements, and rows begin at multiples of 16 bytes.
//
// What lies in a tile's unused places is finite, except rows of queries that are not there: their results are not used.
#pragma once

#include "arguments.h"
#include "device.cuh"

namespace attest::cuda {

/// Threads of a block of attention: four warps.
inline constexpr int attend_threads = 128;

/// f32 with fused multiply-adds: 16 rows, up to 128 * Columns channels of values.
template <int Columns>
struct FusedEngine {
  using Number = float;
  static constexpr Storage storage = Storage::f32;
  static constexpr int rows = 16, stages = 2, most_keys = most_fused_keys;
  static constexpr int channel_unit = 4;  ///< Channels are padded with zeros to a multiple of this.
  static constexpr int most_value_channels = attend_threads * Columns;

  /// Each key has as many threads as there are for it; they share its channels.
  ATTEST_DEVICE static void logits(const float* query, int query_pitch, const float* key, int key_pitch, int channels,
                                   int keys, int used_rows, float* to, int to_pitch) {
    const int threads_per_key = attend_threads / keys;
    const int n = thread_index() / threads_per_key, part = thread_index() % threads_per_key;
    float sum[rows] = {};
    for (int c = 4 * part; c < channels; c += 4 * threads_per_key) {
      const float* const k = key + n * key_pitch + c;
      const float k0 = k[0], k1 = k[1], k2 = k[2], k3 = k[3];
      ATTEST_UNROLL
      for (int r = 0; r < rows; ++r) {
        if (r >= used_rows) break;
        const float* const q = query + r * query_pitch + c;
        sum[r] = fused(q[0], k0, fused(q[1], k1, fused(q[2], k2, fused(q[3], k3, sum[r]))));
      }
    }
    for (int mask = threads_per_key / 2; mask > 0; mask /= 2) {
      ATTEST_UNROLL
      for (int r = 0; r < rows; ++r) {
        if (r >= used_rows) break;
        sum[r] += shuffle_xor(sum[r], mask);
      }
    }
    if (part != 0) return;
    ATTEST_UNROLL
    for (int r = 0; r < rows; ++r) {
      if (r >= used_rows) break;
      to[r * to_pitch + n] = sum[r];
    }
  }

  /// Each thread has whole columns.
  struct Sum {
    float value[rows][Columns] = {};

    ATTEST_DEVICE void add(const float* weight, int weight_pitch, const float* factor, const float* v, int v_pitch,
                           int channels, int keys, int used_rows) {
      ATTEST_UNROLL
      for (int r = 0; r < rows; ++r) {
        ATTEST_UNROLL
        for (int k = 0; k < Columns; ++k) value[r][k] *= factor[r];
      }
      for (int n = 0; n < keys; ++n) {
        ATTEST_UNROLL
        for (int k = 0; k < Columns; ++k) {
          const int c = thread_index() + k * attend_threads;
          if (c >= channels) break;
          const float x = v[n * v_pitch + c];
          ATTEST_UNROLL
          for (int r = 0; r < rows; ++r) {
            if (r >= used_rows) break;
            value[r][k] = fused(weight[r * weight_pitch + n], x, value[r][k]);
          }
        }
      }
    }

    /// Calls `take(row, channel, value)` for this thread's part of the rows that are used.
    template <class Take>
    ATTEST_DEVICE void give(int used_rows, int channels, Take take) const {
      ATTEST_UNROLL
      for (int r = 0; r < rows; ++r) {
        ATTEST_UNROLL
        for (int k = 0; k < Columns; ++k) {
          const int c = thread_index() + k * attend_threads;
          if (r < used_rows && c < channels) take(r, c, value[r][k]);
        }
      }
    }
  };
};

/// mma.m16n8k16: 16 * RowBlocks rows. With one row block the four warps share keys and channels, with four each has 16
/// rows of its own. A warp has `Groups` groups of 16 channels of values.
template <class T, int RowBlocks, int Groups>
struct MatrixEngine {
  static_assert(RowBlocks == 1 || RowBlocks == 2 || RowBlocks == 4);
  using Number = T;
  static constexpr Storage storage = std::is_same_v<T, Half> ? Storage::f16 : Storage::bf16;
  static constexpr int rows = 16 * RowBlocks, stages = 3, most_keys = most_matrix_keys;
  static constexpr int channel_unit = 16;
  static constexpr int sharing = attend_threads / 32 / RowBlocks;  ///< Warps that have the same rows.
  static constexpr int most_value_channels = 16 * sharing * Groups;

  /// Where a thread's fragments lie.
  struct Lane {
    int lane, first_row, share;

    ATTEST_DEVICE Lane()
        : lane(thread_index() % 32),
          first_row(thread_index() / 32 % RowBlocks * 16),
          share(thread_index() / 32 / RowBlocks) {}
    /// Of a 16 x 16 piece of a matrix that is read row by row as the first factor.
    [[nodiscard]] ATTEST_DEVICE int row() const { return lane % 16; }
    [[nodiscard]] ATTEST_DEVICE int column() const { return lane / 16 * 8; }
  };

  ATTEST_DEVICE static void logits(const T* query, int query_pitch, const T* key, int key_pitch, int channels, int keys,
                                   int, float* to, int to_pitch) {
    const Lane at;
    const T* const q = query + (at.first_row + at.row()) * query_pitch + at.column();
    for (int n = 16 * at.share; n < keys; n += 16 * sharing) {
      const T* const k = key + (n + at.lane / 16 * 8 + at.lane % 8) * key_pitch + at.lane / 8 % 2 * 8;
      float sum[2][4] = {};
      for (int c = 0; c < channels; c += 16) {
        std::uint32_t a[4], b[4];
        load_matrices(a, q + c);
        load_matrices(b, k + c);
        multiply_add<T>(sum[0], a, b[0], b[1]);
        multiply_add<T>(sum[1], a, b[2], b[3]);
      }
      float* const row = to + (at.first_row + at.lane / 4) * to_pitch + n + at.lane % 4 * 2;
      ATTEST_UNROLL
      for (int half = 0; half < 2; ++half) {
        row[8 * half] = sum[half][0];
        row[8 * half + 1] = sum[half][1];
        row[8 * to_pitch + 8 * half] = sum[half][2];
        row[8 * to_pitch + 8 * half + 1] = sum[half][3];
      }
    }
  }

  struct Sum {
    float value[Groups][2][4] = {};

    ATTEST_DEVICE void add(const T* weight, int weight_pitch, const float* factor, const T* v, int v_pitch,
                           int channels, int keys, int) {
      const Lane at;
      const float upper = factor[at.first_row + at.lane / 4], lower = factor[at.first_row + at.lane / 4 + 8];
      ATTEST_UNROLL
      for (int group = 0; group < Groups; ++group) {
        ATTEST_UNROLL
        for (int half = 0; half < 2; ++half) {
          value[group][half][0] *= upper, value[group][half][1] *= upper;
          value[group][half][2] *= lower, value[group][half][3] *= lower;
        }
      }
      const T* const w = weight + (at.first_row + at.row()) * weight_pitch + at.column();
      for (int n = 0; n < keys; n += 16) {
        std::uint32_t a[4];
        load_matrices(a, w + n);
        const T* const row = v + (n + at.row()) * v_pitch + at.column();
        ATTEST_UNROLL
        for (int group = 0; group < Groups; ++group) {
          const int first = channel(at, group);
          if (first >= channels) break;
          std::uint32_t b[4];
          load_matrices_transposed(b, row + first);
          multiply_add<T>(value[group][0], a, b[0], b[1]);
          multiply_add<T>(value[group][1], a, b[2], b[3]);
        }
      }
    }

    template <class Take>
    ATTEST_DEVICE void give(int used_rows, int channels, Take take) const {
      const Lane at;
      ATTEST_UNROLL
      for (int group = 0; group < Groups; ++group) {
        ATTEST_UNROLL
        for (int i = 0; i < 8; ++i) {
          const int r = at.first_row + at.lane / 4 + i / 2 % 2 * 8;
          const int c = channel(at, group) + i / 4 * 8 + at.lane % 4 * 2 + i % 2;
          if (r < used_rows && c < channels) take(r, c, value[group][i / 4][i % 4]);
        }
      }
    }

   private:
    ATTEST_DEVICE static int channel(const Lane& at, int group) { return 16 * (group * sharing + at.share); }
  };
};

}  // namespace attest::cuda
