// SPDX-License-Identifier: Apache-2.0
#include "golden/tokens.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "cases/quantise.h"
#include "golden/tolerance.h"

namespace attest {
namespace {

constexpr double kUnit = 0x1p-24;
/// Roundings of a scale per token (the largest element's quotient, or product with a reciprocal), and of x / scale.
constexpr double kScaleRoundings = 3;

std::string place(const Case& c) {
  return fmt::format("{}: {}", c.file.string(), c.id);
}

}  // namespace

Balls exact(const std::vector<float>& values) {
  Balls balls(values.size());
  for (size_t i = 0; i < values.size(); ++i) arb_set_d(balls[i], static_cast<double>(values[i]));
  return balls;
}

Balls project(const Balls& w, const Balls& bias, const Balls& x, slong precision) {
  Balls y(w.size() / x.size());
  for (size_t o = 0; o < y.size(); ++o) {
    arb_dot(y[o], bias.size() > 0 ? bias[o] : nullptr, 0, w[o * x.size()], 1, x[0], 1, static_cast<slong>(x.size()),
            precision);
  }
  return y;
}

TokenStore::TokenStore(const Case& c, const Timeline& timeline, const Inputs& inputs, Purpose purpose, slong precision)
    : c_(c),
      p_(c.problem),
      timeline_(timeline),
      inputs_(inputs),
      purpose_(purpose),
      precision_(precision),
      q_{exact(inputs.weights.q.data), exact(inputs.weights.q_bias.data), &inputs.weights.q, &inputs.weights.q_bias},
      k_{exact(inputs.weights.k.data), exact(inputs.weights.k_bias.data), &inputs.weights.k, &inputs.weights.k_bias},
      v_{exact(inputs.weights.v.data), exact(inputs.weights.v_bias.data), &inputs.weights.v, &inputs.weights.v_bias},
      rope_(p_.rope, precision, place(c) + ".problem.rope"),
      transform_query_(p_, exact(inputs.weights.q_norm.data), rope_, precision),
      transform_key_(p_, exact(inputs.weights.k_norm.data), rope_, precision) {}

Heads TokenStore::query(size_t step, const Row& row) {
  const size_t source = timeline_[step].query_step;  // that of the attends whose results a merge joins
  const int64_t at = row.sequence * timeline_[source].max_queries + row.index;
  Heads heads = take(inputs_.steps[source].query, at, p_.query_heads * p_.qk_head_dim, q_);
  transform_query_.apply(heads, row.angle);
  return heads;
}

const TokenStore::Entry& TokenStore::learn(size_t step, const Token& token) {
  const StepInputs& in = inputs_.steps[step];
  const int64_t at = token.origin * timeline_[step].max_keys + token.index;
  Entry& entry = entries_[{token.origin, token.serial}];
  if (timeline_[step].step.kind == StepKind::load) {  // P8: finished, and exactly what is given
    entry.key.heads = given(in.key, at, p_.kv_heads * p_.qk_head_dim);
    entry.value.heads = given(in.value, at, p_.kv_heads * p_.v_head_dim);
    // Keys of one row have a blur each or none has; that of a given key is 0.
    if (p_.rope || p_.norm_epsilon > 0) entry.key.heads.blur.resize(static_cast<size_t>(p_.kv_heads));
    return entry;
  }
  entry.key.heads = take(in.key, at, p_.kv_heads * p_.qk_head_dim, k_);
  entry.value.heads = take(in.value, at, p_.kv_heads * p_.v_head_dim, v_);
  transform_key_.apply(entry.key.heads, token.angle);
  if (p_.quantised()) {
    quantise(entry.key, inputs_.key_scale, p_.qk_head_dim, true, token);
    quantise(entry.value, inputs_.value_scale, p_.v_head_dim, false, token);
  }
  return entry;
}

Heads TokenStore::given(const Dense<float>& tensor, int64_t index, int64_t width) {
  return exact_heads(std::span(tensor.data).subspan(static_cast<size_t>(index * width), static_cast<size_t>(width)));
}

/// One token's vector of `tensor`, `width` wide after the projection if there is one (L1, L2).
Heads TokenStore::take(const Dense<float>& tensor, int64_t index, int64_t width, const Projection& by) const {
  const bool core = p_.level == Level::core;
  const auto in = static_cast<size_t>(core ? width : p_.d_model);
  const auto x = std::span(tensor.data).subspan(static_cast<size_t>(index) * in, in);
  Heads heads = exact_heads(x);
  if (core) return heads;
  heads.x = project(by.w, by.bias, heads.x, precision_);
  heads.terms.resize(heads.x.size());
  heads.error.resize(heads.x.size());
  for (size_t o = 0; o < heads.x.size(); ++o) {
    double terms = by.biases->data.empty() ? 0 : std::fabs(static_cast<double>(by.biases->data[o]));
    int64_t count = 0;  // of terms that are not 0: adding the others rounds nothing
    for (size_t i = 0; i < in; ++i) {
      const double term = static_cast<double>(by.weights->data[o * in + i]) * static_cast<double>(x[i]);
      terms += std::fabs(term);
      if (term != 0) ++count;
    }
    heads.terms[o] = terms;
    // A code leaves no room for an error that no backend makes.
    heads.error[o] = (sum_growth(p_.quantised() ? count : p_.d_model) + 2) * kUnit * terms;
    if (is_half(p_.dtype)) heads.error[o] += storage_error(p_.dtype, middle(heads.x[o]));
  }
  return heads;
}

/// Q1, Q2: replaces a token's vectors by what is read back from their codes.
void TokenStore::quantise(Side& side, const Dense<float>& scales, int64_t width, bool keys, const Token& token) const {
  const auto dim = static_cast<size_t>(width);
  const auto heads = static_cast<size_t>(p_.kv_heads);
  const double largest = info(p_.cache_dtype).largest;
  side.codes.resize(heads * dim);
  side.scale = Balls(heads);
  side.scale_error.resize(heads);
  side.heads.blur.resize(heads);
  for (size_t h = 0; h < heads; ++h) {
    const arb_ptr x = side.heads.x[h * dim];
    const double* error = side.heads.error.data() + h * dim;
    double scale_error = 0;  // relative
    if (p_.kv_scale == KvScale::token) {
      Balls size(1);
      for (size_t d = 0; d < dim; ++d) {
        arb_abs(size[0], x + d);
        arb_max(side.scale[h], side.scale[h], size[0], precision_);
      }
      const double most = middle(side.scale[h]);
      arb_set_d(size[0], largest);
      arb_div(side.scale[h], side.scale[h], size[0], precision_);
      const double off = *std::max_element(error, error + dim);
      scale_error = most == 0 ? 0 : kScaleRoundings * kUnit + off / most;
      side.scale_error[h] = most == 0 ? std::numeric_limits<double>::infinity() : scale_error * most / largest;
    } else {
      arb_set_d(side.scale[h], static_cast<double>(scales.data[p_.kv_scale == KvScale::head ? h : 0]));
    }
    const double scale = middle(side.scale[h]);
    const auto numbers = std::span(side.codes).subspan(h * dim, dim);
    for (size_t d = 0; d < dim && scale > 0; ++d) {
      const double value = middle(x + d);
      // What a backend quantises instead may be this far off, twice over; it must not change the code.
      const double off = 2 * (error[d] + std::fabs(value) * (kScaleRoundings * kUnit + scale_error));
      numbers[d] = code_of(p_.cache_dtype, value, scale) + 0.0;  // no negative zero
      if (purpose_ == Purpose::golden && (code_of(p_.cache_dtype, value - off, scale) != numbers[d] ||
                                          code_of(p_.cache_dtype, value + off, scale) != numbers[d])) {
        throw Error::at(place(c_),
                        "element {} of the {} of sequence {}'s token {}, KV head {}, is {} codes wide, too near the "
                        "middle of two codes for a backend's rounding ({:.2g}); change the seed",
                        d, keys ? "key" : "value", token.origin, token.position, h, value / scale, off / scale);
      }
    }
    for (size_t d = 0; d < dim; ++d) {
      arb_set_d(x + d, numbers[d]);
      if (purpose_ != Purpose::unscaled) arb_mul(x + d, x + d, side.scale[h], precision_);
    }
    if (keys) side.heads.blur[h] = code_blur(p_, numbers);
  }
  if (!keys) side.heads.blur.clear();
}

}  // namespace attest
