// SPDX-License-Identifier: Apache-2.0
// Which cases a fuzzer may play: what a case is allowed to take (2^26 elements a tensor) would be a second each.
#pragma once

#include <algorithm>
#include <numeric>

#include "cases/case.h"

namespace attest::fuzz {

inline bool is_small(const Case& c) {
  const Problem& p = c.problem;
  constexpr int64_t kMost = 256;
  if (std::max({p.batch, p.query_heads, p.kv_heads, p.qk_head_dim, p.v_head_dim, p.d_model, p.capacity}) > kMost) {
    return false;
  }
  if (c.steps.size() > 32) return false;
  int64_t tokens = 0;
  for (const Step& step : c.steps) {
    tokens = std::accumulate(step.queries.begin(), step.queries.end(), tokens);
    tokens = std::accumulate(step.keys.begin(), step.keys.end(), tokens);
  }
  if (tokens > kMost) return false;
  const int64_t width = std::max(p.query_heads * std::max(p.qk_head_dim, p.v_head_dim), p.d_model);
  return (tokens + p.d_model + p.batch) * width <= int64_t{1} << 14;
}

}  // namespace attest::fuzz
