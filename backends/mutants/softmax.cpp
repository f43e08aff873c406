// SPDX-License-Identifier: Apache-2.0
// The online softmax of the rows of a split: maximum, sum and output, rescaled as the maximum grows.
#include <algorithm>
#include <cmath>

#include "kernel.h"

namespace mutants {
namespace {

float sink_of(const Call& c, const Sequence& s, const Row& row) {
  return c.kernel.sinks[static_cast<std::size_t>(c.hooks.sink_head(c, s, row))] * c.numerics.units();
}

void raise_to(const Call& c, Row& row, float maximum) {
  if (maximum == row.maximum) return;
  c.hooks.rescale(row, c.numerics.power(row.maximum - c.hooks.reference(maximum)));
  row.maximum = maximum;
}

void update_row(const Call& c, Row& row, const float* logits, const float* values, std::int64_t n) {
  raise_to(c, row, c.hooks.maximum(c, row.maximum, *std::max_element(logits, logits + n)));
  const float reference = c.hooks.reference(row.maximum);
  for (std::int64_t k = 0; k < n; ++k) {
    const std::int64_t j = c.numerics.reversed ? n - 1 - k : k;
    const float weight = c.numerics.power(logits[j] - reference);
    c.hooks.add_weight(row, weight);
    c.hooks.weigh(c, row, c.hooks.kept_weight(weight), values + j * c.p.v_head_dim);
  }
}

}  // namespace

void find_maxima(const Call& c, std::vector<Row>& rows, const float* logits) {
  for (Row& row : rows) {
    const float maximum = *std::max_element(logits, logits + c.numerics.key_tile);
    raise_to(c, row, c.hooks.maximum(c, row.maximum, maximum));
    logits += c.numerics.key_tile;
  }
}

float stage::maximum(const Call& c, float before, float of_tile) {
  if (c.numerics.lazy_rescale > 0 && before != minus_infinity && of_tile <= before + c.numerics.lazy_rescale) {
    return before;
  }
  return std::max(before, of_tile);
}

float stage::reference(float maximum) {
  return maximum == minus_infinity ? 0 : maximum;  // Nothing is visible yet, and -inf - (-inf) is NaN.
}

void stage::rescale(Row& row, float factor) {
  row.sum.scale(factor);
  row.output.scale(factor);
}

float stage::weight_of_value(const Call& c, float weight) {
  return c.numerics.round_weights ? round_to(storage_of(c.p.dtype), weight) : weight;
}

void stage::weigh(const Call& c, Row& row, float weight, const float* value) {
  if (weight != 0) row.output.add(weight_of_value(c, weight), value);
}

void stage::update(const Call& c, std::vector<Row>& rows, const float* logits, const float* values, std::int64_t n) {
  for (Row& row : rows) {
    update_row(c, row, logits, values, n);
    logits += n;
  }
}

std::int64_t stage::sink_head(const Call& /*c*/, const Sequence& /*s*/, const Row& row) {
  return row.head;
}

void stage::start(const Call& c, const Sequence& s, Row& row, std::int64_t split) {
  row.maximum = minus_infinity;
  row.sum.clear();
  row.output.clear();
  if (c.kernel.sinks.empty() || split != 0 || c.numerics.sink_last) return;
  row.maximum = sink_of(c, s, row);
  row.sum.add(1);
}

void stage::finish(const Call& c, const Sequence& s, Row& row, std::int64_t split) {
  if (c.kernel.sinks.empty() || split != 0 || !c.numerics.sink_last) return;
  const float sink = sink_of(c, s, row);
  raise_to(c, row, std::max(row.maximum, sink));
  row.sum.add(c.numerics.power(sink - row.maximum));
}

float stage::partial_lse(const Call& c, float maximum, float sum) {
  if (c.numerics.exp2) return (maximum + std::log2(sum)) / c.numerics.units();
  return maximum + std::log(sum);
}

}  // namespace mutants
