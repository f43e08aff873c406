// SPDX-License-Identifier: Apache-2.0
// Which rows are computed together: the queries of one head in a prefill, the query heads of one KV head in a decode.
#include <algorithm>
#include <cmath>

#include "kernel.h"

namespace mutants {
namespace {

Row make_row(const Call& c, const Sequence& s, std::int64_t i, std::int64_t h, const float* query) {
  std::vector<float> q(query, query + c.p.qk_head_dim);
  if (c.numerics.scaling != Scaling::logit) {
    const float root = std::sqrt(std::abs(s.scale));
    for (float& x : q) x *= c.numerics.scaling == Scaling::query ? s.scale : std::copysign(root, s.scale);
  }
  const auto width = static_cast<std::size_t>(c.p.v_head_dim);
  return {i, h, std::move(q), visible(c, s, i), width, c.numerics.sums};
}

void prefill(Call& c, const Sequence& s) {
  for (std::int64_t h = 0; h < c.p.query_heads; ++h) {
    for (std::int64_t first = 0; first < s.queries; first += c.numerics.query_tile) {
      std::vector<Row> rows;
      for (std::int64_t i = first; i < std::min(first + c.numerics.query_tile, s.queries); ++i) {
        rows.push_back(make_row(c, s, i, h, c.query.at(c.query_token(s.b, i), h)));
      }
      attend_rows(c, s, c.hooks.kv_head(c.p, h, false), rows);
    }
  }
}

void decode(Call& c, const Sequence& s) {
  for (std::int64_t kv_head = 0; kv_head < c.p.kv_heads; ++kv_head) {
    std::vector<Row> rows;
    for (std::int64_t h = 0; h < c.p.query_heads; ++h) {
      if (c.hooks.kv_head(c.p, h, true) == kv_head) rows.push_back(make_row(c, s, 0, h, c.hooks.decode_query(c, s, h)));
    }
    if (!rows.empty()) attend_rows(c, s, kv_head, rows);
  }
}

}  // namespace

double stage::scale(const attest_problem& p, bool /*decode*/) {
  return p.scale != 0 ? p.scale : 1 / std::sqrt(static_cast<double>(p.qk_head_dim));
}

std::int64_t stage::kv_head(const attest_problem& p, std::int64_t h, bool /*decode*/) {
  return h / (p.query_heads / p.kv_heads);
}

const float* stage::decode_query(const Call& c, const Sequence& s, std::int64_t h) {
  return c.query.at(c.query_token(s.b, 0), h);
}

void attend(Call& c) {
  for (std::int64_t b = 0; b < c.p.batch; ++b) {
    const Sequence s = c.hooks.sequence(c, b);
    if (s.queries == 0) continue;
    if (s.decode) {
      decode(c, s);
    } else {
      prefill(c, s);
    }
  }
}

}  // namespace mutants
