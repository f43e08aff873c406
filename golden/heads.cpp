// SPDX-License-Identifier: Apache-2.0
#include "golden/heads.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <utility>

#include "cases/storage.h"
#include "golden/tolerance.h"

namespace attest {
namespace {

constexpr double kUnit = 0x1p-24;
constexpr double kSpread = 4;      // lambda
constexpr double kTurning = 4;     // roundings of cos, sin, their products and the sum, relative to |x cos| + |y sin|
constexpr double kNormFactor = 5;  // mean, epsilon, square root and reciprocal, beyond the sum of squares
constexpr double kNormEach = 2;    // the factor's product, and the weight's

}  // namespace

Heads exact_heads(std::span<const float> values) {
  Heads heads{Balls(values.size()), {}, std::vector<double>(values.size()), {}};
  for (size_t i = 0; i < values.size(); ++i) {
    arb_set_d(heads.x[i], static_cast<double>(values[i]));
    heads.terms.push_back(std::fabs(static_cast<double>(values[i])));
  }
  return heads;
}

double storage_error(DType dtype, double x) {
  if (static_cast<double>(round_to(dtype, static_cast<float>(x))) == x) return 0;
  return info(dtype).unit_roundoff * std::fabs(x) + info(dtype).half_subnormal;
}

HeadTransform::HeadTransform(const Problem& problem, Balls weight, RopeTable& rope, slong precision)
    : p_(problem), weight_(std::move(weight)), epsilon_(1), rope_(rope), precision_(precision) {
  arb_set_d(epsilon_[0], problem.norm_epsilon);
}

void HeadTransform::apply(Heads& heads, int64_t angle) const {
  if (p_.norm_epsilon <= 0 && !p_.rope) return;
  const size_t count = heads.x.size() / static_cast<size_t>(p_.qk_head_dim);
  heads.blur.resize(count);
  const Turn* by = p_.rope ? &rope_.turn(angle) : nullptr;
  for (size_t h = 0; h < count; ++h) {
    if (p_.norm_epsilon > 0) norm(heads, h);
    if (by != nullptr) turn(heads, h, *by);
  }
}

void HeadTransform::norm(Heads& heads, size_t head) const {
  const auto width = static_cast<size_t>(p_.qk_head_dim);
  const auto length = static_cast<slong>(width);
  const arb_ptr x = heads.x[head * width];
  double* error = heads.error.data() + head * width;
  double* terms = heads.terms.data() + head * width;
  Blur& blur = heads.blur[head];
  Balls factor(1);
  arb_dot(factor[0], nullptr, 0, x, 1, x, 1, length, precision_);
  arb_div_si(factor[0], factor[0], length, precision_);
  arb_add(factor[0], factor[0], epsilon_[0], precision_);
  const double mean = middle(factor[0]);
  arb_rsqrt(factor[0], factor[0], precision_);
  // What is wrong with x moves the factor by sum(x dx) / (sum(x^2) + D epsilon).
  std::vector<double> before(width);
  double linear = 0, squares = 0;
  for (size_t d = 0; d < width; ++d) {
    before[d] = middle(x + d);
    linear += std::fabs(before[d]) * error[d];
    squares += before[d] * before[d] * error[d] * error[d];
  }
  const double own = (sum_growth(p_.qk_head_dim) / 2 + kNormFactor) * kUnit;
  const double common =
      own + std::min(linear, kSpread * std::sqrt(squares)) / (mean * static_cast<double>(p_.qk_head_dim));
  const double r = middle(factor[0]);
  std::vector<double> after(width);
  for (size_t d = 0; d < width; ++d) {
    arb_mul(x + d, x + d, factor[0], precision_);
    arb_mul(x + d, x + d, weight_[d], precision_);
    after[d] = middle(x + d);
    const double w = std::fabs(middle(weight_[d]));
    terms[d] *= w * r;
    error[d] = w * r * error[d] + std::fabs(after[d]) * (common + kNormEach * kUnit);
    // Storage: the normalised vector may be rounded, and its product with the weight.
    if (is_half(p_.dtype)) {
      error[d] += 2 * info(p_.dtype).unit_roundoff * std::fabs(after[d]) + (1 + w) * info(p_.dtype).half_subnormal;
    }
  }
  blur.common += own;
  blur.each += kNormEach * kUnit;
  if (is_half(p_.dtype)) {
    blur.stored_pairs += 2;
    blur.stored_rest += 2;
    for (double& value : before) value *= r;
    blur.alike += repeated(p_.dtype, before) + repeated(p_.dtype, after);
  }
}

void HeadTransform::turn(Heads& heads, size_t head, const Turn& turn) const {
  const size_t start = head * static_cast<size_t>(p_.qk_head_dim);
  Blur& blur = heads.blur[head];
  Balls first(1), second(1);
  std::vector<double> after;
  const double stretched = p_.rope.is_yarn() ? kTurning * kUnit : 0;  // the attention factor's own
  for (size_t c = 0; c < rope_.pairs(); ++c) {
    const auto [one, other] = rope_.channels(c);
    const size_t i = start + one, j = start + other;
    const double x = std::fabs(middle(heads.x[i])), y = std::fabs(middle(heads.x[j]));
    arb_mul(first[0], heads.x[i], turn.cos[c], precision_);
    arb_submul(first[0], heads.x[j], turn.sin[c], precision_);
    arb_mul(second[0], heads.x[i], turn.sin[c], precision_);
    arb_addmul(second[0], heads.x[j], turn.cos[c], precision_);
    arb_set(heads.x[i], first[0]);
    arb_set(heads.x[j], second[0]);
    const double cos = std::fabs(turn.cosine[c]), sin = std::fabs(turn.sine[c]);
    const auto lost = [&](double own, double from_own, double from_other, double across) {
      return from_own * cos + from_other * sin + across * turn.angle_error[c] + (kTurning * kUnit + stretched) * own;
    };
    const double ex = heads.error[i], ey = heads.error[j];
    heads.error[i] = lost(x * cos + y * sin, ex, ey, x * sin + y * cos);
    heads.error[j] = lost(x * sin + y * cos, ey, ex, x * cos + y * sin);
    const double tx = heads.terms[i], ty = heads.terms[j];
    heads.terms[i] = tx * cos + ty * sin;
    heads.terms[j] = tx * sin + ty * cos;
    for (const size_t k : {i, j}) {
      after.push_back(middle(heads.x[k]));
      if (is_half(p_.dtype)) heads.error[k] += storage_error(p_.dtype, after.back());
    }
  }
  blur.angles = &turn.angle_error;
  blur.common += stretched;
  if (is_half(p_.dtype)) {
    blur.stored_pairs += 1;
    blur.alike += repeated(p_.dtype, after);
  }
}

DotBlur::DotBlur(const Problem& problem, const RopeTable& rope)
    : rope_(rope),
      width_(static_cast<size_t>(problem.qk_head_dim)),
      unit_(is_half(problem.dtype) ? info(problem.dtype).unit_roundoff : 0),
      half_subnormal_(is_half(problem.dtype) ? info(problem.dtype).half_subnormal : 0) {}

double DotBlur::operator()(const double* q, const Blur& of_q, const double* k, const Blur& of_k) const {
  double dot = 0, linear = 0, squares = 0, stored = 0, stored_squares = 0, sizes = 0;
  const double each = of_q.each + of_k.each;
  const auto piece = [&](double size, double error, double roundings) {
    linear += size * error;
    squares += size * error * (size * error);
    stored += size * roundings;
    stored_squares += size * size * roundings;
  };
  // Half of a rotation's error lies along the vector's other channel, so a pair counts with its lengths.
  const double turning = std::sqrt(2.0) * kTurning * kUnit;
  for (size_t c = 0; c < rope_.pairs(); ++c) {
    const auto [i, j] = rope_.channels(c);
    const double size = std::sqrt((q[i] * q[i] + q[j] * q[j]) * (k[i] * k[i] + k[j] * k[j]));
    const double turned = (of_q.angles != nullptr ? (*of_q.angles)[c] + turning : 0) +
                          (of_k.angles != nullptr ? (*of_k.angles)[c] + turning : 0);
    piece(size, each + turned, of_q.stored_pairs + of_k.stored_pairs);
  }
  const size_t rest = 2 * rope_.pairs();
  for (size_t d = 0; d < width_; ++d) {
    dot += q[d] * k[d];
    sizes += std::fabs(q[d]) + std::fabs(k[d]);
    if (d >= rest) piece(std::fabs(q[d] * k[d]), each, of_q.stored_rest + of_k.stored_rest);
  }
  const double roundings = std::max(of_q.stored_pairs + of_k.stored_pairs, of_q.stored_rest + of_k.stored_rest);
  return (of_q.common + of_k.common) * std::fabs(dot) + std::min(linear, kSpread * std::sqrt(squares)) +
         unit_ * (std::min(stored, kSpread * std::sqrt(stored_squares)) + (of_q.alike + of_k.alike) * std::fabs(dot)) +
         half_subnormal_ * roundings * sizes;
}

double read_error(const Problem& problem) {
  // The scale's product; a scale that the backend wrote is itself three roundings wide.
  return problem.kv_scale == KvScale::none ? 0 : (problem.kv_scale == KvScale::token ? 6 : 3) * kUnit;
}

Blur code_blur(const Problem& problem, std::span<const double> numbers) {
  Blur blur;
  blur.common = read_error(problem);
  blur.each = kUnit;
  if (is_half(problem.dtype)) {
    blur.stored_pairs = blur.stored_rest = 1;
    blur.alike = repeated(problem.dtype, numbers);
  }
  return blur;
}

}  // namespace attest
