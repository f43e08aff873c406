// SPDX-License-Identifier: Apache-2.0
// Puts the splits of a row together (clause E2, with sums that are not yet divided). Always in the same order.
#pragma once

#include "arguments.h"
#include "device.cuh"
#include "finish.cuh"

namespace attest::cuda {

/// Grid: rows x KV heads x sequences.
struct Combine {
  static constexpr int threads = 128, blocks = 4;
  using Arguments = CombineArguments;

  ATTEST_DEVICE static void run(const Arguments& a, std::byte*) {
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

    const std::int64_t first = r.part(b, head, row, 0);
    float largest = -INFINITY, sum = 0;
    for (std::int32_t i = 0; i < parts; ++i) largest = fmaxf(largest, r.weights[2 * (first + i)]);
    for (std::int32_t i = 0; i < parts; ++i) sum += share(r, first + i, largest) * r.weights[2 * (first + i) + 1];
    const Row place = row_of(b, head, a.group, row);
    const Closed closed = close(r, place, largest, sum);
    if (thread_index() == 0) write_lse(r, s, place, closed.lse);
    for (std::int32_t c = thread_index(); c < r.width; c += threads) {
      float value = 0;
      for (std::int32_t i = 0; i < parts; ++i)
        value += share(r, first + i, largest) * r.sums[(first + i) * r.width + c];
      write(r, s, place, c, value * closed.factor);
    }
  }

 private:
  ATTEST_DEVICE static float share(const Results& r, std::int64_t part, float largest) {
    const float own = r.weights[2 * part];
    return own == -INFINITY ? 0.0f : power(own - largest);
  }
};

}  // namespace attest::cuda
