// SPDX-License-Identifier: Apache-2.0
// One logit: what masks it by position, scale, cap, ALiBi, mask.
#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "kernel.h"

namespace mutants {
namespace {

/// Where a query stands for the window (clause M5).
std::int64_t window_position(const Call& c, const Sequence& s, std::int64_t i) {
  return c.p.causal == ATTEST_CAUSAL_TOP_LEFT ? i : s.first_position + i;
}

}  // namespace

std::int64_t stage::causal_end(const Call& c, const Sequence& s, std::int64_t i) {
  if (c.p.causal == ATTEST_CAUSAL_NONE) return s.total;
  return (c.p.causal == ATTEST_CAUSAL_TOP_LEFT ? i : s.first_position + i) + 1;
}

std::int64_t stage::window_begin(const Call& c, const Sequence& s, std::int64_t i) {
  return c.p.window_left < 0 ? 0 : window_position(c, s, i) - c.p.window_left;
}

std::int64_t stage::window_end(const Call& c, const Sequence& s, std::int64_t i) {
  return c.p.window_right < 0 ? s.total : window_position(c, s, i) + c.p.window_right + 1;
}

bool stage::sees(const Call& /*c*/, KeyRange keys, std::int64_t j) {
  return keys.begin <= j && j < keys.end;
}

KeyRange visible(const Call& c, const Sequence& s, std::int64_t i) {
  const std::int64_t end = std::min(c.hooks.causal_end(c, s, i), c.hooks.window_end(c, s, i));
  const std::int64_t begin = std::clamp<std::int64_t>(c.hooks.window_begin(c, s, i), 0, s.total);
  return {begin, std::clamp(end, begin, s.total)};
}

/// A View reads extents of 1 as if they were whole.
float stage::mask(const Call& c, const Sequence& s, std::int64_t h, std::int64_t i, std::int64_t j) {
  const DLTensor& tensor = *c.step.mask;
  if (j >= tensor.shape[3]) return 0;
  if (c.p.mask == ATTEST_MASK_ADDITIVE) return NumberView<4>(tensor)(s.b, h, i, j);
  return View<const std::uint8_t, 4>(tensor)(s.b, h, i, j) != 0 ? 0 : minus_infinity;
}

float stage::dot(const Call& c, const float* query, const float* key) {
  return dot_product(c.numerics.dot, query, key, c.p.qk_head_dim);
}

float stage::cap(const Call& c, float logit) {
  const auto cap = static_cast<float>(c.p.softcap);
  const float x = logit / cap;
  return cap * (c.numerics.tanh_through_exp ? 1 - 2 / (std::exp(2 * x) + 1) : std::tanh(x));
}

float stage::unscaled(const Call& c, const Sequence& s, float dot) {
  return c.numerics.scaling == Scaling::logit ? dot : dot / s.scale;
}

float stage::scaled(const Call& c, const Sequence& s, float dot) {
  return c.numerics.scaling == Scaling::logit ? dot * s.scale : dot;
}

float stage::uncapped(const Call& c, const Sequence& s, float dot) {
  return dot * ((c.numerics.scaling == Scaling::logit ? s.scale : 1) * c.numerics.units());
}

float stage::soften(const Call& c, const Sequence& s, float dot) {
  return c.p.softcap > 0 ? c.hooks.cap(c, scaled(c, s, dot)) * c.numerics.units() : uncapped(c, s, dot);
}

/// What is finite stays so.
float stage::in_units(const Call& c, float logit) {
  return c.numerics.exp2 && logit != minus_infinity ? std::max(logit * c.numerics.units(), lowest) : logit;
}

std::int64_t stage::distance(const Call& /*c*/, const Sequence& s, std::int64_t i, std::int64_t j) {
  return std::abs(s.first_position + i - j);
}

float logit(const Call& c, const Sequence& s, const Row& row, const float* key, std::int64_t j) {
  const bool seen = c.hooks.sees(c, row.keys, j);
  const float mask = c.step.mask == nullptr ? 0 : c.hooks.mask(c, s, row.head, row.i, j);
  if ((!seen || mask == minus_infinity) && c.hooks.replaces(!seen)) return c.hooks.masked(c, !seen, mask);
  float x = c.hooks.soften(c, s, c.hooks.dot(c, row.query.data(), key));
  if (!c.kernel.slopes.empty()) {
    const float slope = c.kernel.slopes[static_cast<std::size_t>(row.head)] * c.numerics.units();
    x -= slope * static_cast<float>(c.hooks.distance(c, s, row.i, j));
  }
  if (!seen) x += minus_infinity;
  return mask == 0 ? x : x + stage::in_units(c, mask);
}

}  // namespace mutants
