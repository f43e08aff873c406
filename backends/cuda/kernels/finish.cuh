// SPDX-License-Identifier: Apache-2.0
// The end of a row: its sink, its division, its LSE; between splits, what is kept of it.
#pragma once

#include "arguments.h"
#include "device.cuh"

namespace attest::cuda {

inline constexpr float log2_e = 1.44269504088896340736f;

/// exp(x) for x <= 0, also -inf.
ATTEST_DEVICE float power(float x) {
  return exp2f(x * log2_e);
}

/// A row of queries x heads of a group, in the order in which Attend counts them.
struct Row {
  std::int32_t b, kv_head, number, query, query_head;
};
ATTEST_DEVICE Row row_of(std::int32_t b, std::int32_t kv_head, std::int32_t group, std::int32_t number) {
  const std::int32_t query = number / group;
  return {b, kv_head, number, query, kv_head * group + number - query * group};
}

ATTEST_DEVICE void keep(const Results& to, const Row& row, std::int32_t split, float largest, float sum) {
  float* const at = to.weights + 2 * to.part(row.b, row.kv_head, row.number, split);
  at[0] = largest;
  at[1] = sum;
}
ATTEST_DEVICE void keep(const Results& to, const Row& row, std::int32_t split, std::int32_t channel, float value) {
  to.sums[to.part(row.b, row.kv_head, row.number, split) * to.width + channel] = value;
}

/// Ends a row with this largest logit and sum of weights: answers what its sums are to be multiplied by, and its LSE.
struct Closed {
  float factor, lse;
};
ATTEST_DEVICE Closed close(const Results& to, const Row& row, float largest, float sum) {
  float top = largest, all = sum, share = 1;
  if (to.sinks != nullptr) {
    const float sink = to.sinks[row.query_head * to.sinks_stride];
    top = fmaxf(largest, sink);
    share = largest == -INFINITY ? 0.0f : power(largest - top);
    all = sum * share + power(sink - top);
  }
  if (!(all > 0)) return {0, -INFINITY};
  return {share / all, top + logf(all)};
}

ATTEST_DEVICE void write_lse(const Results& to, const Sequence& s, const Row& row, float lse) {
  if (to.lse == nullptr) return;
  to.lse[row.b * to.lse_sequence + row.query_head * to.lse_head + (s.query_start + row.query) * to.lse_token] = lse;
}
ATTEST_DEVICE void write(const Results& to, const Sequence& s, const Row& row, std::int32_t channel, float value) {
  store_number(to.output.storage, value, to.output.at(row.b, s.query_start + row.query, row.query_head, channel));
}

}  // namespace attest::cuda
