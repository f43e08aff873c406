// SPDX-License-Identifier: Apache-2.0
// The splits' results become one, by their LSE (clause E2).
#include <algorithm>
#include <cmath>

#include "kernel.h"

namespace mutants {

void merge(Call& c, const Sequence& s, const std::vector<Row>& rows, Partials& partials,
           const std::vector<std::int64_t>& computed) {
  const std::vector<std::int64_t> splits = c.hooks.merged_splits(computed, partials.splits);
  for (std::size_t r = 0; r < rows.size(); ++r) {
    const auto row = static_cast<std::int64_t>(r);
    float largest = minus_infinity;
    for (const std::int64_t split : splits) largest = std::max(largest, partials.lse(split, row));
    const float reference = c.hooks.merge_reference(largest, splits.size());
    Sums sum(1, c.numerics.sums), output(static_cast<std::size_t>(c.p.v_head_dim), c.numerics.sums);
    for (const std::int64_t split : splits) {
      const float weight = std::exp(partials.lse(split, row) - reference);
      sum.add(weight);
      if (weight != 0) output.add(weight, partials.output(split, row, c.hooks.merge_stride(partials, split)));
    }
    const bool empty = sum[0] == 0;
    if (!c.hooks.writes(empty)) continue;
    const std::int64_t token = c.query_token(s.b, rows[r].i), head = rows[r].head;
    float* const to = c.output.at(token, head);
    float& lse = *c.lse.at(token, head);
    for (std::size_t i = 0; i < output.size(); ++i) to[i] = empty ? 0 : output[i] / sum[0];
    lse = empty ? c.hooks.empty_lse() : largest + std::log(sum[0]);
    if (c.numerics.other_conventions) {
      if (empty) std::fill_n(to, output.size(), std::numeric_limits<float>::quiet_NaN());
      lse = empty ? -lse : lse * log2_e;
    }
    c.written[static_cast<std::size_t>(token * c.p.query_heads + head)] = 1;
  }
}

}  // namespace mutants
