// SPDX-License-Identifier: Apache-2.0
// QK-norm and RoPE: what happens to a query or key head before it is used or cached.
#include <cmath>

#include "kernel.h"

namespace mutants {

RopeFrequencies stage::frequencies(const attest_problem& p, std::int64_t /*length*/) {
  return rope_frequencies(p.rope);
}

std::pair<std::int64_t, std::int64_t> stage::rope_pair(const attest_problem& p, std::int64_t pair) {
  if (p.rope.style == ATTEST_ROPE_HALF) return {pair, pair + p.rope.rotary_dim / 2};
  return {2 * pair, 2 * pair + 1};
}

double stage::rope_angle(const Numerics& n, std::int64_t position, double frequency) {
  if (n.angles_in_float) {
    return static_cast<double>(static_cast<float>(position) * static_cast<float>(frequency));
  }
  return static_cast<double>(position) * frequency;
}

std::int64_t stage::rope_position(const Call& c, Role role, std::int64_t b, std::int64_t t) {
  return role == Role::query ? c.positions->query(b, t) : c.positions->key(b, t);
}

bool stage::normalises(const Call& /*c*/, std::int64_t /*b*/) {
  return true;
}

float stage::norm_root(float mean, double epsilon) {
  return std::sqrt(mean + static_cast<float>(epsilon));
}

void stage::normalise(const Call& c, Role role, std::int64_t b, float* head) {
  const std::vector<float>& weight = role == Role::query ? c.kernel.q_norm : c.kernel.k_norm;
  if (weight.empty() || !c.hooks.normalises(c, b)) return;
  const std::int64_t width = c.p.qk_head_dim;
  const float mean = dot_product(c.numerics.dot, head, head, width) / static_cast<float>(width);
  const float root = c.hooks.norm_root(mean, c.p.norm_epsilon);
  const float reciprocal = 1 / root;
  for (std::int64_t i = 0; i < width; ++i) {
    const float w = weight[static_cast<std::size_t>(i)];
    head[i] = c.numerics.reciprocal_root ? head[i] * reciprocal * w : head[i] / root * w;
  }
}

void stage::turn(const Call& c, std::int64_t b, std::int64_t position, float* head) {
  const RopeFrequencies& rope = c.frequencies[static_cast<std::size_t>(b)];
  for (std::size_t pair = 0; pair < rope.frequency.size(); ++pair) {
    const double angle = c.hooks.rope_angle(c.numerics, position, rope.frequency[pair]);
    const bool small = c.numerics.angles_in_float;
    const auto narrow = static_cast<float>(angle), size = static_cast<float>(rope.magnitude);
    const float cos = small ? std::cos(narrow) * size : static_cast<float>(std::cos(angle) * rope.magnitude);
    const float sin = small ? std::sin(narrow) * size : static_cast<float>(std::sin(angle) * rope.magnitude);
    const auto [first, second] = c.hooks.rope_pair(c.p, static_cast<std::int64_t>(pair));
    const float x = head[first], y = head[second];
    head[first] = x * cos - y * sin;
    head[second] = x * sin + y * cos;
  }
}

void stage::transform(const Call& c, Role role, std::int64_t b, std::int64_t t, float* head) {
  const auto round16 = [&] {
    if (!c.numerics.round_query) return;
    for (std::int64_t i = 0; i < c.p.qk_head_dim; ++i) head[i] = round_to(storage_of(c.p.dtype), head[i]);
  };
  normalise(c, role, b, head);
  round16();
  if (c.p.rope.style == ATTEST_ROPE_NONE) return;
  turn(c, b, c.hooks.rope_position(c, role, b, t), head);
  round16();
}

}  // namespace mutants
