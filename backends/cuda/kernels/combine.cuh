// SPDX-License-Identifier: Apache-2.0
// Puts the splits of a row together (clause E2, with sums that are not yet divided). Always in the same order.
//
// A decoding step waits for this launch alone, with next to nothing to compute: what counts is how often a thread waits
// for memory. So the threads share a row's parts, and each asks for several at once.
#pragma once

#include "arguments.h"
#include "device.cuh"
#include "finish.cuh"

namespace attest::cuda {

/// Grid: rows x KV heads x sequences.
struct Combine {
  static constexpr int threads = 128, blocks = 4;
  static constexpr int warps = threads / 32, channels = threads;  ///< `channels`: that are added up at a time.
  using Arguments = CombineArguments;
  struct Notes {
    float of_warp[warps];
    float share[threads];        ///< Of as many parts.
    float sum[warps][channels];  ///< Of each warp's parts.
  };
  static constexpr int shared_bytes = sizeof(Notes);

  ATTEST_DEVICE static void run(const Arguments& a, std::byte* shared) {
    if (*a.go == 0) return;
    const Results& r = a.results;
    const std::int32_t b = block_index().z, head = block_index().y, row = block_index().x;
    const Sequence s = a.sequences[b];
    if (row >= s.queries * a.group) return;
    // The splits that the row's tile has written, as Attend counts them.
    const std::int32_t first_row = row / a.tile_rows * a.tile_rows;
    const std::int32_t last_row = smaller(first_row + a.tile_rows, s.queries * a.group) - 1;
    const std::int32_t begin = a.visibility.of(s, first_row / a.group).begin;
    const std::int32_t end = a.visibility.of(s, last_row / a.group).end;
    const std::int32_t parts = begin < end ? (end - 1) / a.split_keys - begin / a.split_keys + 1 : 0;

    Notes& notes = *reinterpret_cast<Notes*>(shared);
    const std::int64_t first = r.part(b, head, row, 0);
    float largest = -INFINITY, sum = 0;
    for (std::int32_t i = thread_index(); i < parts; i += threads) {
      largest = fmaxf(largest, r.weights[2 * (first + i)]);
    }
    largest = together(notes, largest, [](float x, float y) { return fmaxf(x, y); });
    for (std::int32_t i = thread_index(); i < parts; i += threads) {
      sum += share(r, first + i, largest) * r.weights[2 * (first + i) + 1];
    }
    sum = together(notes, sum, [](float x, float y) { return x + y; });
    const Row place = row_of(b, head, a.group, row);
    const Closed closed = close(r, place, largest, sum);
    if (thread_index() == 0) write_lse(r, s, place, closed.lse);
    for (std::int32_t c = 0; c < r.width; c += channels) {
      add(notes, r, first, parts, largest, c);
      if (c + thread_index() >= r.width) continue;
      float value = 0;
      for (int w = 0; w < warps; ++w) value += notes.sum[w][thread_index()];
      write(r, s, place, c + thread_index(), value * closed.factor);
    }
  }

 private:
  /// The same number in all threads: all of theirs, taken together.
  template <class Both>
  ATTEST_DEVICE static float together(Notes& notes, float mine, Both both) {
    for (int mask = 16; mask > 0; mask /= 2) mine = both(mine, shuffle_xor(mine, mask));
    barrier();  // The notes before have been read.
    if (thread_index() % 32 == 0) notes.of_warp[thread_index() / 32] = mine;
    barrier();
    float all = notes.of_warp[0];
    for (int w = 1; w < warps; ++w) all = both(all, notes.of_warp[w]);
    return all;
  }

  /// Adds up these channels of the parts, each warp its own ones; all threads have seen the sums then.
  ATTEST_DEVICE static void add(Notes& notes, const Results& r, std::int64_t first, std::int32_t parts, float largest,
                                std::int32_t channel) {
    constexpr int columns = channels / 32;
    const int warp = thread_index() / 32, lane = thread_index() % 32;
    const std::int32_t left = r.width - channel;
    float sum[columns] = {};
    for (std::int32_t begin = 0; begin < parts; begin += threads) {
      barrier();  // The shares before have been used.
      if (begin + thread_index() < parts)
        notes.share[thread_index()] = share(r, first + begin + thread_index(), largest);
      barrier();
      const std::int32_t count = smaller(threads, parts - begin);
      const float* const from = r.sums + (first + begin) * r.width + channel;
      ATTEST_UNROLL_BY(4)
      for (std::int32_t i = warp; i < count; i += warps) {
        ATTEST_UNROLL
        for (int k = 0; k < columns; ++k) {
          const int c = lane + 32 * k;
          if (c < left) sum[k] = fused(notes.share[i], from[static_cast<std::int64_t>(i) * r.width + c], sum[k]);
        }
      }
    }
    barrier();  // The sums before have been read.
    ATTEST_UNROLL
    for (int k = 0; k < columns; ++k) notes.sum[warp][lane + 32 * k] = sum[k];
    barrier();
  }

  /// The part of a split's weights in all of the row's.
  ATTEST_DEVICE static float share(const Results& r, std::int64_t part, float largest) {
    const float own = r.weights[2 * part];
    return own == -INFINITY ? 0.0f : power(own - largest);
  }
};

}  // namespace attest::cuda
