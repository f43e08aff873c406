// SPDX-License-Identifier: Apache-2.0
// For tests: the operator written once more, plainly and without the oracle's code. In long double it is a second
// opinion on goldens; in float, with roundings where a backend may or may not have them, it is a correct backend; with
// a fault in it, a wrong one.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <numbers>
#include <utility>
#include <vector>

#include "cases/inputs.h"
#include "cases/storage.h"
#include "golden/golden.h"

namespace attest {

enum class Fault {
  none,
  scale_dropped,
  mask_ignored,
  mask_added,  // a boolean mask as a number, 0 or 1
  rope_positions_bf16,
  rope_base,
  rope_unscaled,
  rope_wrong_pairs,
  rope_keys_not_turned,
  norm_after_rope,
  norm_without_weight,
  norm_without_epsilon,
  codes_truncated,
  codes_unscaled,
  first_key_lost,
};

struct Legal {
  bool stores = true;       ///< 16-bit problems: rounds wherever a backend may.
  int frequencies = 0;      ///< 0: power function; 1: exp2; 2: running product.
  int order = 0;            ///< Of sums. 0: from the front; 1: from the back; 2: eight partial sums.
  bool base_two = false;    ///< Softmax by exp2.
  bool folds = false;       ///< Scales (of the softmax and of codes) are multiplied into vectors first, else last.
  bool normalises = false;  ///< Weights are divided by their sum before they are stored.
};

template <typename Real>
class Emulator {
 public:
  struct Step {
    std::vector<Real> output, lse, cache_key, cache_value, key_scale, value_scale;
  };

  Emulator(const Case& c, const Timeline& timeline, const Inputs& inputs, Legal legal = {}, Fault fault = Fault::none)
      : c_(c), p_(c.problem), timeline_(timeline), in_(inputs), legal_(legal), fault_(fault) {
    scale_ = p_.scale ? Real(*p_.scale) : Real(1) / std::sqrt(Real(p_.qk_head_dim));
    if (fault == Fault::scale_dropped) scale_ = 1;
    make_frequencies();
  }

  std::vector<Step> run() {
    std::vector<Step> steps;
    for (size_t s = 0; s < timeline_.size(); ++s) {
      steps.emplace_back();
      const Moment& moment = timeline_[s];
      for (const auto& sequence : moment.incoming) {
        if (moment.rows.empty() && moment.step.kind != StepKind::load) continue;
        for (const Token& token : sequence) append(s, token, steps.back());
      }
      if (moment.rows.empty()) continue;
      if (moment.step.kind == StepKind::merge) {
        merge(moment, steps);
        continue;
      }
      for (const size_t r : checked_rows(c_, moment)) attend(s, moment.rows[r], steps.back());
    }
    return steps;
  }

  [[nodiscard]] const std::vector<Real>& frequencies() const { return frequency_; }

 private:
  using Vector = std::vector<Real>;
  struct Stored {
    Vector key, value;              // codes, if there are
    Vector key_scale, value_scale;  // per head
  };

  void make_frequencies() {
    const Rope& rope = p_.rope;
    if (!rope) return;
    const bool scaled = fault_ != Fault::rope_unscaled;
    const Real r = Real(rope.dim), two_pi = 2 * std::numbers::pi_v<Real>;
    Real base = Real(rope.base) * (fault_ == Fault::rope_base ? Real(1.1) : Real(1));
    const Real factor = Real(rope.factor);
    if (scaled && rope.scaling == RopeScaling::ntk) base *= std::pow(factor, r / (r - 2));
    Real running = 1;
    const Real step = std::pow(base, -2 / r);
    for (int64_t pair = 0; pair < rope.dim / 2; ++pair) {
      const Real exponent = Real(2 * pair) / r;
      Real f = 1 / std::pow(base, exponent);
      if (legal_.frequencies == 1) f = std::exp2(-exponent * std::log2(base));
      if (legal_.frequencies == 2) f = running;
      running *= step;
      if (scaled && rope.scaling == RopeScaling::linear) f /= factor;
      if (scaled && rope.scaling == RopeScaling::llama3) {
        const Real turns = Real(rope.original_length) * f / two_pi;
        if (turns < Real(rope.low_frequency)) {
          f /= factor;
        } else if (turns <= Real(rope.high_frequency)) {
          const Real smooth =
              (turns - Real(rope.low_frequency)) / (Real(rope.high_frequency) - Real(rope.low_frequency));
          f = (1 - smooth) * f / factor + smooth * f;
        }
      }
      if (scaled && rope.is_yarn()) {
        const auto dim = [&](double turns) {
          return r * std::log(Real(rope.original_length) / (two_pi * Real(turns))) / (2 * std::log(base));
        };
        const bool rounds = rope.scaling == RopeScaling::yarn;
        const Real first = dim(rope.high_frequency), last = dim(rope.low_frequency);
        const Real low = std::max(rounds ? std::floor(first) : first, Real(0));
        const Real high = std::min(rounds ? std::ceil(last) : last, r - 1);
        const Real ramp = std::clamp((Real(pair) - low) / (high == low ? Real(0.001) : high - low), Real(0), Real(1));
        f = f / factor * ramp + f * (1 - ramp);
      }
      frequency_.push_back(f);
    }
    if (scaled && rope.is_yarn()) {
      magnitude_ = rope.attention_factor > 0 ? Real(rope.attention_factor) : Real(0.1L) * std::log(factor) + 1;
    }
  }

  /// A rounding that a backend may do or not.
  [[nodiscard]] Real maybe_stored(Real x) const {
    return legal_.stores && is_half(p_.dtype) ? Real(round_to(p_.dtype, static_cast<float>(x))) : x;
  }
  void maybe_store(Vector& x) const {
    for (Real& value : x) value = maybe_stored(value);
  }

  template <typename Term>
  [[nodiscard]] Real sum(size_t n, const Term& term) const {
    if (legal_.order == 2) {
      std::array<Real, 8> lanes{};
      for (size_t i = 0; i < n; ++i) lanes[i % 8] += term(i);
      return ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) + ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]));
    }
    Real total = 0;
    for (size_t i = 0; i < n; ++i) total += term(legal_.order == 0 ? i : n - 1 - i);
    return total;
  }

  /// A vector of an input, projected at the layer level.
  [[nodiscard]] Vector take(const Dense<float>& x, int64_t index, int64_t width, const Dense<float>& w,
                            const Dense<float>& bias) const {
    const int64_t in = p_.level == Level::core ? width : p_.d_model;
    const float* from = x.data.data() + index * in;
    if (p_.level == Level::core) return {from, from + in};
    Vector out;
    for (int64_t o = 0; o < width; ++o) {
      const float* row = w.data.data() + o * in;
      const Real y = sum(static_cast<size_t>(in), [&](size_t i) { return Real(row[i]) * Real(from[i]); });
      out.push_back(maybe_stored(bias.data.empty() ? y : y + Real(bias.data[static_cast<size_t>(o)])));
    }
    return out;
  }

  void norm(Vector& x, const Dense<float>& weight) const {
    if (p_.norm_epsilon <= 0) return;
    const auto width = static_cast<size_t>(p_.qk_head_dim);
    for (size_t start = 0; start < x.size(); start += width) {
      const Real mean = sum(width, [&](size_t d) { return x[start + d] * x[start + d]; }) / Real(width);
      const Real epsilon = fault_ == Fault::norm_without_epsilon ? Real(0) : Real(p_.norm_epsilon);
      const Real factor = 1 / std::sqrt(mean + epsilon);
      for (size_t d = 0; d < width; ++d) {
        const Real normed = maybe_stored(x[start + d] * factor);
        x[start + d] = maybe_stored(fault_ == Fault::norm_without_weight ? normed : normed * Real(weight.data[d]));
      }
    }
  }

  void turn(Vector& x, int64_t position) const {
    if (!p_.rope) return;
    const auto width = static_cast<size_t>(p_.qk_head_dim);
    const size_t pairs = frequency_.size();
    Real t = Real(position);
    if (fault_ == Fault::rope_positions_bf16) t = Real(round_to(DType::bf16, static_cast<float>(position)));
    const bool half = (p_.rope.style == RopeStyle::half) != (fault_ == Fault::rope_wrong_pairs);
    for (size_t c = 0; c < pairs; ++c) {
      const Real angle = t * frequency_[c];
      const Real cos = std::cos(angle) * magnitude_, sin = std::sin(angle) * magnitude_;
      for (size_t start = 0; start < x.size(); start += width) {
        Real& a = x[start + (half ? c : 2 * c)];
        Real& b = x[start + (half ? c + pairs : 2 * c + 1)];
        const Real turned = maybe_stored(a * cos - b * sin);
        b = maybe_stored(a * sin + b * cos);
        a = turned;
      }
    }
  }

  void transform(Vector& x, const Dense<float>& weight, int64_t position, bool key) const {
    if (fault_ != Fault::norm_after_rope) norm(x, weight);
    if (!key || fault_ != Fault::rope_keys_not_turned) turn(x, position);
    if (fault_ == Fault::norm_after_rope) norm(x, weight);
  }

  /// Replaces heads by codes; gives their scales.
  Vector quantise(Vector& x, const Dense<float>& given) const {
    const size_t heads = static_cast<size_t>(p_.kv_heads), width = x.size() / heads;
    const Real largest = Real(info(p_.cache_dtype).largest);
    Vector scales;
    for (size_t h = 0; h < heads; ++h) {
      Real scale = 0;
      for (size_t d = 0; d < width; ++d) scale = std::max(scale, std::fabs(x[h * width + d]) / largest);
      if (p_.kv_scale != KvScale::token) scale = Real(given.data[p_.kv_scale == KvScale::head ? h : 0]);
      for (size_t d = 0; d < width; ++d) {
        Real& value = x[h * width + d];
        value = std::clamp(scale == 0 ? Real(0) : value / scale, -largest, largest);
        if (p_.cache_dtype == DType::i8) {
          value = fault_ == Fault::codes_truncated ? std::trunc(value) : std::nearbyint(value);
        } else {
          value = Real(round_to(p_.cache_dtype, static_cast<float>(value)));
        }
      }
      scales.push_back(scale);
    }
    return scales;
  }

  void append(size_t s, const Token& token, Step& step) {
    const int64_t at = token.origin * timeline_[s].max_keys + token.index;
    const Weights& w = in_.weights;
    Stored& stored = stored_[{token.origin, token.serial}];
    if (timeline_[s].step.kind == StepKind::load) {
      const auto given = [&](const Dense<float>& tensor, int64_t width) {
        return Vector(tensor.data.begin() + at * width, tensor.data.begin() + (at + 1) * width);
      };
      stored.key = given(in_.steps[s].key, p_.kv_heads * p_.qk_head_dim);
      stored.value = given(in_.steps[s].value, p_.kv_heads * p_.v_head_dim);
      return;
    }
    stored.key = take(in_.steps[s].key, at, p_.kv_heads * p_.qk_head_dim, w.k, w.k_bias);
    stored.value = take(in_.steps[s].value, at, p_.kv_heads * p_.v_head_dim, w.v, w.v_bias);
    transform(stored.key, w.k_norm, token.angle, true);
    if (p_.quantised()) {
      stored.key_scale = quantise(stored.key, in_.key_scale);
      stored.value_scale = quantise(stored.value, in_.value_scale);
    } else if (p_.cache != CacheKind::none && is_half(p_.dtype)) {
      for (auto* x : {&stored.key, &stored.value}) {
        for (Real& value : *x) {
          if (sizeof(Real) == sizeof(float)) value = Real(round_to(p_.dtype, static_cast<float>(value)));
        }
      }
    }
    const auto join = [](Vector& to, const Vector& from) { to.insert(to.end(), from.begin(), from.end()); };
    join(step.cache_key, stored.key);
    join(step.cache_value, stored.value);
    join(step.key_scale, stored.key_scale);
    join(step.value_scale, stored.value_scale);
  }

  [[nodiscard]] Real slope(int64_t h) const {
    if (p_.alibi == Alibi::slopes) return Real(in_.weights.alibi_slopes.data[static_cast<size_t>(h)]);
    int64_t n = 1;
    while (2 * n <= p_.query_heads) n *= 2;
    return std::exp2(h < n ? Real(-8 * (h + 1)) / Real(n) : Real(-4 * (2 * (h - n) + 1)) / Real(n));
  }

  void attend(size_t s, const Row& row, Step& step) {
    const Moment& moment = timeline_[s];
    const auto dk = static_cast<size_t>(p_.qk_head_dim), dv = static_cast<size_t>(p_.v_head_dim);
    Vector q = take(in_.steps[s].query, row.sequence * moment.max_queries + row.index, p_.query_heads * p_.qk_head_dim,
                    in_.weights.q, in_.weights.q_bias);
    transform(q, in_.weights.q_norm, row.angle, false);
    Vector joined;
    for (int64_t h = 0; h < p_.query_heads; ++h) {
      const auto kv = static_cast<size_t>(h / p_.group());
      std::vector<const Stored*> keys;
      Vector logits;
      for (int64_t j = row.begin + (fault_ == Fault::first_key_lost ? 1 : 0); j < row.end; ++j) {
        Real added = 0;
        if (p_.mask != MaskKind::none && fault_ != Fault::mask_ignored) {
          const Dense<float>& mask = in_.steps[s].mask;
          const auto pick = [&](size_t axis, int64_t i) { return mask.shape[axis] == 1 ? 0 : i; };
          const int64_t at =
              ((pick(0, row.sequence) * mask.shape[1] + pick(1, h)) * mask.shape[2] + pick(2, row.index)) *
                  mask.shape[3] +
              j;
          const float value = mask.data[static_cast<size_t>(at)];
          if (p_.mask == MaskKind::boolean) {
            if (fault_ == Fault::mask_added) {
              added = Real(value);
            } else if (value == 0) {
              continue;
            }
          } else if (std::isinf(value)) {
            continue;
          } else {
            added = Real(value);
          }
        }
        const Token& token = moment.tokens[static_cast<size_t>(row.sequence)][static_cast<size_t>(j)];
        keys.push_back(&stored_.at({token.origin, token.serial}));
        const Real* k = keys.back()->key.data() + kv * dk;
        const Real code_scale = scale_of(keys.back()->key_scale, kv);
        Real logit = sum(dk, [&](size_t d) {
          const Real query = q[static_cast<size_t>(h) * dk + d];
          const Real key = p_.quantised() && legal_.folds ? maybe_stored(k[d] * code_scale) : k[d];
          return legal_.folds ? query * scale_ * key : query * key;
        });
        if (!legal_.folds) logit = p_.quantised() ? logit * code_scale * scale_ : logit * scale_;
        if (p_.softcap > 0) logit = Real(p_.softcap) * std::tanh(logit / Real(p_.softcap));
        if (p_.alibi != Alibi::none) logit -= slope(h) * Real(std::llabs(row.position - j));
        logits.push_back(logit + added);
      }
      const Vector out = softmax(logits, keys, kv, h, step);
      joined.insert(joined.end(), out.begin(), out.end());
    }
    if (p_.level == Level::core) {
      for (const Real value : joined) step.output.push_back(output(value));
      return;
    }
    maybe_store(joined);
    for (int64_t o = 0; o < p_.d_model; ++o) {
      const float* w = in_.weights.out.data.data() + o * p_.query_heads * static_cast<int64_t>(dv);
      const Real y = sum(joined.size(), [&](size_t i) { return Real(w[i]) * joined[i]; });
      step.output.push_back(
          output(in_.weights.out_bias.data.empty() ? y : y + Real(in_.weights.out_bias.data[static_cast<size_t>(o)])));
    }
  }

  [[nodiscard]] Real output(Real x) const {
    return sizeof(Real) == sizeof(float) ? Real(round_to(p_.dtype, static_cast<float>(x))) : x;
  }
  [[nodiscard]] Real scale_of(const Vector& scales, size_t kv) const {
    return scales.empty() || fault_ == Fault::codes_unscaled ? Real(1) : scales[kv];
  }

  Vector softmax(const Vector& logits, const std::vector<const Stored*>& keys, size_t kv, int64_t h, Step& step) {
    const auto dv = static_cast<size_t>(p_.v_head_dim);
    const Real sink = p_.sinks ? Real(in_.weights.sinks.data[static_cast<size_t>(h)]) : -INFINITY;
    if (logits.empty()) {
      step.lse.push_back(sink);
      return Vector(dv);
    }
    const Real largest = std::max(sink, *std::max_element(logits.begin(), logits.end()));
    const auto weigh = [&](Real logit) {
      return legal_.base_two ? std::exp2((logit - largest) * std::numbers::log2e_v<Real>) : std::exp(logit - largest);
    };
    Vector weight;
    for (const Real logit : logits) weight.push_back(weigh(logit));
    Real total = sum(weight.size(), [&](size_t j) { return weight[j]; });
    if (p_.sinks) total += weigh(sink);
    step.lse.push_back(largest + std::log(total));
    if (legal_.normalises) {
      for (Real& w : weight) w /= total;
    }
    maybe_store(weight);
    Vector out;
    for (size_t d = 0; d < dv; ++d) {
      const Real o = sum(weight.size(), [&](size_t j) {
        const Real v = keys[j]->value[kv * dv + d], code_scale = scale_of(keys[j]->value_scale, kv);
        if (!p_.quantised()) return weight[j] * v;
        return legal_.folds ? weight[j] * maybe_stored(v * code_scale) : weight[j] * v * code_scale;
      });
      out.push_back(legal_.normalises ? o : o / total);
    }
    return out;
  }

  /// E2, of results that were stored.
  void merge(const Moment& moment, std::vector<Step>& steps) const {
    const auto dv = static_cast<size_t>(p_.v_head_dim);
    Step& whole = steps.back();
    for (size_t i = 0; i < steps[moment.parts[0]].lse.size(); ++i) {
      double most = -INFINITY, total = 0;
      for (const size_t part : moment.parts) most = std::max(most, static_cast<double>(steps[part].lse[i]));
      std::vector<double> out(dv);
      for (const size_t part : moment.parts) {
        if (std::isinf(most)) continue;
        const double weight = std::exp(static_cast<double>(steps[part].lse[i]) - most);
        total += weight;
        for (size_t d = 0; d < dv; ++d) out[d] += weight * static_cast<double>(steps[part].output[i * dv + d]);
      }
      whole.lse.push_back(std::isinf(most) ? Real(-INFINITY) : Real(most + std::log(total)));
      for (const double o : out) whole.output.push_back(std::isinf(most) ? Real(0) : Real(o / total));
    }
  }

  const Case& c_;
  const Problem& p_;
  const Timeline& timeline_;
  const Inputs& in_;
  Legal legal_;
  Fault fault_;
  Real scale_ = 1, magnitude_ = 1;
  Vector frequency_;
  std::map<std::pair<int64_t, int64_t>, Stored> stored_;
};

/// The largest quotient of an error and what is allowed, of outputs, LSEs and the cache; relative errors against a
/// magnitude of at least `floor` if that is not 0.
template <typename Real>
double worst_error(const std::vector<typename Emulator<Real>::Step>& got, const Golden& golden, double floor = 0) {
  double worst = 0;
  const auto compare = [&](const std::vector<Real>& values, const GoldenTensor& wanted) {
    for (size_t i = 0; i < wanted.value.size(); ++i) {
      if (static_cast<double>(values[i]) == wanted.value[i]) continue;
      const double off = std::fabs(static_cast<double>(values[i]) - wanted.value[i]);
      const double unit =
          floor > 0 ? std::max(std::fabs(wanted.value[i]), floor) : static_cast<double>(wanted.allowed[i]);
      worst = std::isnan(off) ? INFINITY : std::max(worst, off / unit);
    }
  };
  for (size_t s = 0; s < golden.steps.size(); ++s) {
    compare(got[s].output, golden.steps[s].output);
    compare(got[s].lse, golden.steps[s].lse);
    compare(got[s].cache_key, golden.steps[s].cache_key);
    compare(got[s].cache_value, golden.steps[s].cache_value);
    compare(got[s].key_scale, golden.steps[s].key_scale);
    compare(got[s].value_scale, golden.steps[s].value_scale);
  }
  return worst;
}

}  // namespace attest
