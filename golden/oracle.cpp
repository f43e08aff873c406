// SPDX-License-Identifier: Apache-2.0
#include "golden/oracle.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <utility>

#include "golden/ball.h"
#include "golden/layer_noise.h"
#include "golden/tolerance.h"

namespace attest {
namespace {

constexpr double kUnit = 0x1p-24;
constexpr double kSmallestNormal = 0x1p-126;
constexpr std::array<slong, 3> kPrecisions{128, 256, 512};

/// A ball rounded to a double, and what that proves.
struct Rounded {
  double value = 0;
  Mark mark = Mark::proven;
  double radius = 0;     ///< |exact - value| is at most this.
  bool decided = true;   ///< Proven, or proven zero; else more bits are worth a try.
  bool adjacent = true;  ///< Its two candidates are neighbours: within one ulp, whichever is right.
};

/// `terms` bounds the magnitude of what was summed to get x: only against it can a zero be told from a small number.
Rounded round_ball(arb_srcptr x, double terms, slong precision) {
  arf_t low, high;
  arf_init(low);
  arf_init(high);
  arb_get_lbound_arf(low, x, precision);
  arb_get_ubound_arf(high, x, precision);
  const double below = arf_get_d(low, ARF_RND_NEAR);
  const double above = arf_get_d(high, ARF_RND_NEAR);
  arf_clear(low);
  arf_clear(high);
  Rounded rounded;
  if (below == above) {
    rounded.value = below == 0 ? 0.0 : below;  // no negative zero
    rounded.radius = std::fabs(below) * 0x1p-53;
  } else if (below <= 0 && above >= 0 && std::max(-below, above) < terms * 0x1p-100) {
    rounded.mark = Mark::zero;
    rounded.radius = terms * 0x1p-100;
  } else {
    // Undecided: the ball straddles the middle between two doubles, or it is still too wide.
    rounded.value = std::clamp(middle(x), below, above);
    rounded.mark = Mark::tie;
    rounded.radius = std::max(above - rounded.value, rounded.value - below) + std::fabs(rounded.value) * 0x1p-53;
    rounded.decided = false;
    rounded.adjacent = std::nextafter(below, above) == above;
  }
  return rounded;
}

Balls exact(const std::vector<float>& values) {
  Balls balls(values.size());
  for (size_t i = 0; i < values.size(); ++i) arb_set_d(balls[i], static_cast<double>(values[i]));
  return balls;
}

/// A case's operator at one working precision.
class Oracle {
 public:
  Oracle(const Case& c, const Timeline& timeline, const Inputs& inputs, const LayerSpread* spread, slong precision)
      : c_(c),
        p_(c.problem),
        timeline_(timeline),
        inputs_(inputs),
        spread_(spread),
        precision_(precision),
        scale_(1),
        cap_(1) {
    // A1: the real 1 / sqrt(Dk), or exactly the given value.
    if (p_.scale) {
      arb_set_d(scale_[0], *p_.scale);
    } else {
      arb_set_ui(scale_[0], static_cast<ulong>(p_.qk_head_dim));
      arb_rsqrt(scale_[0], scale_[0], precision_);
    }
    arb_set_d(cap_[0], p_.softcap);
    if (p_.alibi != Alibi::none) slopes_ = alibi_slopes();
    const Weights& w = inputs.weights;
    wq_ = exact(w.q.data);
    wk_ = exact(w.k.data);
    wv_ = exact(w.v.data);
    wo_ = exact(w.out.data);
    bq_ = exact(w.q_bias.data);
    bk_ = exact(w.k_bias.data);
    bv_ = exact(w.v_bias.data);
    bo_ = exact(w.out_bias.data);
  }

  /// False if an element stayed undecided that more bits could decide.
  bool run(OracleResult& result) {
    result_ = &result;
    decided_ = true;
    for (size_t s = 0; s < timeline_.size(); ++s) {
      result.golden.steps.emplace_back();
      if (!timeline_[s].rows.empty()) attend(s, result.golden.steps.back());
    }
    return decided_;
  }

 private:
  struct KeyValue {
    Balls key, value;  ///< [Hk * Dk], [Hk * Dv]
  };

  void attend(size_t s, GoldenStep& step) {
    const Moment& moment = timeline_[s];
    learn(s, step);
    const auto rows = checked_rows(c_, moment);
    const auto count = static_cast<int64_t>(rows.size());
    const bool layer = p_.level == Level::layer;
    step.output.shape =
        layer ? std::vector<int64_t>{count, p_.d_model} : std::vector<int64_t>{count, p_.query_heads, p_.v_head_dim};
    if (p_.lse) step.lse.shape = {count, p_.query_heads};

    // Rows of one sequence share their keys and values; gather those once per KV head.
    std::vector<Balls> heads;                  // per row, layer level: the concatenated head outputs
    std::vector<std::vector<double>> reaches;  // and for each of their channels the sum of all |v|
    std::vector<std::vector<std::pair<Rounded, double>>> outputs(rows.size()), lses(rows.size());
    for (size_t first = 0; first < rows.size();) {
      size_t last = first;
      const int64_t sequence = moment.rows[rows[first]].sequence;
      while (last < rows.size() && moment.rows[rows[last]].sequence == sequence) ++last;
      std::vector<Balls> queries;
      for (size_t r = first; r < last; ++r) {
        queries.push_back(query(s, moment.rows[rows[r]]));
        heads.emplace_back(layer ? static_cast<size_t>(p_.query_heads * p_.v_head_dim) : 0);
        reaches.emplace_back(heads.back().size());
      }
      for (int64_t kv = 0; kv < p_.kv_heads; ++kv) {
        const History history(*this, moment.tokens[static_cast<size_t>(sequence)], kv);
        for (size_t r = first; r < last; ++r) {
          for (int64_t h = kv * p_.group(); h < (kv + 1) * p_.group(); ++h) {  // A4
            attend_row(history, moment.rows[rows[r]], queries[r - first], h, heads[r], reaches[r], outputs[r], lses[r]);
          }
        }
      }
      first = last;
    }
    for (size_t r = 0; r < rows.size(); ++r) {
      const Row& row = moment.rows[rows[r]];
      step.rows.push_back(static_cast<int32_t>(row.sequence));
      step.rows.push_back(static_cast<int32_t>(row.index));
      if (layer) project_out(s, r, heads[r], reaches[r], outputs[r]);
      for (const auto& [value, allowed] : outputs[r]) store(step.output, value, allowed);
      for (size_t h = 0; h < lses[r].size(); ++h) {
        double allowed = lses[r][h].second;
        if (layer) {
          const double spread = spread_->steps[s].lse[r * static_cast<size_t>(p_.query_heads) + h];
          allowed = kUnit * std::fabs(lses[r][h].first.value) + 8 * spread;
        }
        if (p_.lse) store(step.lse, lses[r][h].first, std::isinf(lses[r][h].first.value) ? 0 : allowed);
      }
    }
  }

  /// C1, L4: the step's tokens enter the history; at the layer level projected, and with their own goldens.
  void learn(size_t s, GoldenStep& step) {
    const Moment& moment = timeline_[s];
    const StepInputs& in = inputs_.steps[s];
    const bool layer = p_.level == Level::layer;
    const auto vector_at = [&](const Dense<float>& tensor, int64_t token, int64_t width) {
      const auto begin = tensor.data.begin() + token * width;
      return exact(std::vector<float>(begin, begin + width));
    };
    for (const auto& sequence : moment.incoming) {
      for (const Token& token : sequence) {
        const int64_t at = token.origin * moment.max_keys + token.index;
        KeyValue& kv = history_[{token.origin, token.serial}];
        if (!layer) {
          kv.key = vector_at(in.key, at, p_.kv_heads * p_.qk_head_dim);
          kv.value = vector_at(in.value, at, p_.kv_heads * p_.v_head_dim);
          continue;
        }
        kv.key = project(wk_, bk_, vector_at(in.key, at, p_.d_model));
        kv.value = project(wv_, bv_, vector_at(in.value, at, p_.d_model));
        if (p_.cache == CacheKind::none) continue;
        step.tokens.push_back(static_cast<int32_t>(token.origin));
        step.tokens.push_back(static_cast<int32_t>(token.index));
        store_projection(step.cache_key, kv.key, inputs_.weights.k, inputs_.weights.k_bias, in.key, at);
        store_projection(step.cache_value, kv.value, inputs_.weights.v, inputs_.weights.v_bias, in.value, at);
      }
    }
    const auto tokens = static_cast<int64_t>(step.tokens.size() / 2);
    step.cache_key.shape = {tokens, p_.kv_heads, p_.qk_head_dim};
    step.cache_value.shape = {tokens, p_.kv_heads, p_.v_head_dim};
  }

  /// L1: y = W x + bias, W [out, in].
  [[nodiscard]] Balls project(const Balls& w, const Balls& bias, const Balls& x) const {
    Balls y(w.size() / x.size());
    for (size_t o = 0; o < y.size(); ++o) {
      arb_dot(y[o], bias.size() > 0 ? bias[o] : nullptr, 0, w[o * x.size()], 1, x[0], 1, static_cast<slong>(x.size()),
              precision_);
    }
    return y;
  }

  void store_projection(GoldenTensor& tensor, const Balls& y, const Dense<float>& w, const Dense<float>& bias,
                        const Dense<float>& x, int64_t token) {
    const auto width = static_cast<size_t>(p_.d_model);
    const size_t start = static_cast<size_t>(token) * width;
    for (size_t o = 0; o < y.size(); ++o) {
      double magnitude = bias.data.empty() ? 0 : std::fabs(static_cast<double>(bias.data[o]));
      for (size_t i = 0; i < width; ++i) {
        magnitude += std::fabs(static_cast<double>(w.data[o * width + i]) * static_cast<double>(x.data[start + i]));
      }
      const Rounded value = round_ball(y[o], magnitude, precision_);
      store(tensor, value, (sum_growth(p_.d_model) + 2) * kUnit * magnitude + kUnit * std::fabs(value.value));
    }
  }

  /// B1: the given slopes, or 2^(-8 (h + 1) / n) for the first n heads, n being the largest power of two up to Hq, and
  /// 2^(-4 (2 (h - n) + 1) / n) for the rest.
  [[nodiscard]] Balls alibi_slopes() const {
    if (p_.alibi == Alibi::slopes) return exact(inputs_.weights.alibi_slopes.data);
    int64_t n = 1;
    while (2 * n <= p_.query_heads) n *= 2;
    Balls slopes(static_cast<size_t>(p_.query_heads)), exponent(1);
    for (int64_t h = 0; h < p_.query_heads; ++h) {
      const int64_t numerator = h < n ? -8 * (h + 1) : -4 * (2 * (h - n) + 1);
      arb_set_si(exponent[0], numerator);
      arb_div_si(exponent[0], exponent[0], n, precision_);
      Balls two(1);
      arb_set_ui(two[0], 2);
      arb_pow(slopes[static_cast<size_t>(h)], two[0], exponent[0], precision_);
    }
    return slopes;
  }

  /// A query's heads, [Hq * Dk]. L1, L2.
  [[nodiscard]] Balls query(size_t s, const Row& row) const {
    const Dense<float>& x = inputs_.steps[s].query;
    const int64_t width = p_.level == Level::core ? p_.query_heads * p_.qk_head_dim : p_.d_model;
    const auto begin = x.data.begin() + (row.sequence * timeline_[s].max_queries + row.index) * width;
    Balls balls = exact(std::vector<float>(begin, begin + width));
    return p_.level == Level::core ? std::move(balls) : project(wq_, bq_, balls);
  }

  /// The keys and values of one sequence and KV head, as balls and (for bounds) as doubles. Values lie channel by
  /// channel, so that a weighted sum over keys is one dot product.
  struct History {
    History(const Oracle& oracle, const std::vector<Token>& tokens, int64_t kv_head) {
      const auto dk = static_cast<size_t>(oracle.p_.qk_head_dim);
      const auto dv = static_cast<size_t>(oracle.p_.v_head_dim);
      const auto head = static_cast<size_t>(kv_head);
      const size_t n = tokens.size();
      size = n;
      values.resize(n * dv);
      value_doubles.resize(n * dv);
      key_doubles.resize(n * dk);
      for (size_t j = 0; j < n; ++j) {
        const KeyValue& kv = oracle.history_.at({tokens[j].origin, tokens[j].serial});
        keys.push_back(kv.key[head * dk]);
        for (size_t d = 0; d < dk; ++d) key_doubles[j * dk + d] = middle(kv.key[head * dk + d]);
        for (size_t d = 0; d < dv; ++d) {
          values[d * n + j] = *kv.value[head * dv + d];  // borrowed: the history outlives this
          value_doubles[j * dv + d] = middle(kv.value[head * dv + d]);
        }
      }
    }
    size_t size = 0;
    std::vector<arb_srcptr> keys;
    std::vector<arb_struct> values;
    std::vector<double> key_doubles, value_doubles;
  };

  /// A2, A3, A6 for one row and query head; M1 to M4 by row.begin and row.end.
  void attend_row(const History& history, const Row& row, const Balls& q, int64_t head, Balls& concatenated,
                  std::vector<double>& reach, std::vector<std::pair<Rounded, double>>& outputs,
                  std::vector<std::pair<Rounded, double>>& lses) {
    const auto dk = static_cast<size_t>(p_.qk_head_dim);
    const auto dv = static_cast<size_t>(p_.v_head_dim);
    const auto begin = static_cast<size_t>(row.begin);
    const size_t n = static_cast<size_t>(row.end) - begin;
    const bool layer = p_.level == Level::layer;
    if (n == 0) {  // M7
      Rounded nothing;
      nothing.value = p_.sinks ? static_cast<double>(inputs_.weights.sinks.data[static_cast<size_t>(head)])
                               : -std::numeric_limits<double>::infinity();
      lses.emplace_back(nothing, kUnit * std::fabs(p_.sinks ? nothing.value : 0));
      if (!layer) outputs.insert(outputs.end(), dv, {Rounded{}, 0});
      return;
    }
    arb_srcptr query_head = q[static_cast<size_t>(head) * dk];
    Balls logits(n), biases(1);
    std::vector<double> logit(n), dot(n), bias(p_.alibi == Alibi::none ? 0 : n), magnitude(n), weight(n);
    for (size_t j = 0; j < n; ++j) {
      arb_dot(logits[j], nullptr, 0, query_head, 1, history.keys[begin + j], 1, static_cast<slong>(dk), precision_);
      arb_mul(logits[j], logits[j], scale_[0], precision_);
      dot[j] = middle(logits[j]);
      if (p_.softcap > 0) {  // A5
        arb_div(logits[j], logits[j], cap_[0], precision_);
        arb_tanh(logits[j], logits[j], precision_);
        arb_mul(logits[j], logits[j], cap_[0], precision_);
      }
      if (!bias.empty()) {  // B1
        const int64_t distance = std::llabs(row.position - (row.begin + static_cast<int64_t>(j)));
        arb_mul_si(biases[0], slopes_[static_cast<size_t>(head)], -static_cast<slong>(distance), precision_);
        arb_add(logits[j], logits[j], biases[0], precision_);
        bias[j] = middle(biases[0]);
      }
      logit[j] = middle(logits[j]);
    }
    const size_t top = static_cast<size_t>(std::max_element(logit.begin(), logit.end()) - logit.begin());
    Balls shift(1), sum(1), weights(n);
    arb_set(shift[0], logits[top]);
    const double sink =
        p_.sinks ? static_cast<double>(inputs_.weights.sinks.data[static_cast<size_t>(head)]) : -INFINITY;
    if (sink > logit[top]) arb_set_d(shift[0], sink);
    mag_zero(arb_radref(shift[0]));  // any common shift is exact mathematics, so it needs no radius
    for (size_t j = 0; j < n; ++j) {
      arb_sub(weights[j], logits[j], shift[0], precision_);
      arb_exp(weights[j], weights[j], precision_);
      arb_add(sum[0], sum[0], weights[j], precision_);
    }
    double sink_share = 0;
    if (p_.sinks) {  // S1
      Balls share(1);
      arb_set_d(share[0], sink);
      arb_sub(share[0], share[0], shift[0], precision_);
      arb_exp(share[0], share[0], precision_);
      arb_add(sum[0], sum[0], share[0], precision_);
      sink_share = middle(share[0]);
    }
    Balls lse(1);
    arb_log(lse[0], sum[0], precision_);
    const double log_sum = middle(lse[0]);
    arb_add(lse[0], lse[0], shift[0], precision_);

    const double total = middle(sum[0]);
    for (size_t j = 0; j < n; ++j) weight[j] = middle(weights[j]) / total;
    const double largest = middle(shift[0]);
    if (!layer) dot_magnitudes(history, query_head, begin, magnitude);
    const RowTerms terms{
        logit,         bias, dot, magnitude, weight, largest, p_.softcap, p_.sinks ? sink : 0, sink_share / total,
        p_.qk_head_dim};
    const RowTolerance tolerance(terms, p_.dtype);
    lses.emplace_back(round_ball(lse[0], std::fabs(largest) + log_sum, precision_),
                      tolerance.lse(middle(lse[0]), log_sum));

    Balls out(1);
    for (size_t d = 0; d < dv; ++d) {
      arb_dot(out[0], nullptr, 0, weights[0], 1, &history.values[d * history.size + begin], 1, static_cast<slong>(n),
              precision_);
      arb_div(out[0], out[0], sum[0], precision_);
      const double* v = history.value_doubles.data() + begin * dv + d;
      if (layer) {  // L3: heads side by side
        const size_t channel = static_cast<size_t>(head) * dv + d;
        arb_set(concatenated[channel], out[0]);
        for (size_t j = 0; j < n; ++j) reach[channel] += std::fabs(v[j * dv]);
        continue;
      }
      double terms_size = 0;
      for (size_t j = 0; j < n; ++j) terms_size += weight[j] * std::fabs(v[j * dv]);
      const Rounded value = round_ball(out[0], terms_size, precision_);
      outputs.emplace_back(value, tolerance.output(v, dv, value.value));
    }
  }

  /// Fills A_j: what the dot products would be if nothing cancelled.
  void dot_magnitudes(const History& history, arb_srcptr query_head, size_t begin,
                      std::vector<double>& magnitude) const {
    const auto dk = static_cast<size_t>(p_.qk_head_dim);
    for (size_t j = 0; j < magnitude.size(); ++j) {
      const double* k = history.key_doubles.data() + (begin + j) * dk;
      double sum = 0;
      for (size_t d = 0; d < dk; ++d) sum += std::fabs(middle(query_head + d) * k[d]);
      magnitude[j] = middle(scale_[0]) * sum;
    }
  }

  /// L3: y = Wo concat(heads) + bo, with the Monte Carlo bound, and for weights that are flushed to zero.
  void project_out(size_t s, size_t r, const Balls& heads, const std::vector<double>& reach,
                   std::vector<std::pair<Rounded, double>>& outputs) {
    const Balls y = project(wo_, bo_, heads);
    for (size_t o = 0; o < y.size(); ++o) {
      double terms = bo_.size() > 0 ? std::fabs(middle(bo_[o])) : 0;
      double flushed = 0;
      for (size_t i = 0; i < heads.size(); ++i) {
        const double weight = std::fabs(middle(wo_[o * heads.size() + i]));
        terms += weight * std::fabs(middle(heads[i]));
        flushed += kSmallestNormal * weight * reach[i];
      }
      const Rounded value = round_ball(y[o], terms, precision_);
      const double spread = spread_->steps[s].output[r * y.size() + o];
      outputs.emplace_back(value,
                           kUnit * std::fabs(value.value) + 8 * spread + flushed + info(p_.dtype).half_subnormal);
    }
  }

  void store(GoldenTensor& tensor, const Rounded& value, double allowed) {
    tensor.value.push_back(value.value);
    tensor.allowed.push_back(round_up(allowed));
    tensor.mark.push_back(value.mark);
    if (!value.adjacent && precision_ == kPrecisions.back()) {
      throw Error::at(fmt::format("{}: {}", c_.file.string(), c_.id), "a value near {} is not decided at {} bits",
                      value.value, precision_);
    }
    decided_ = decided_ && value.decided;
    ++result_->values;
    ++(value.mark == Mark::proven ? result_->proven : value.mark == Mark::tie ? result_->tie : result_->zero);
    if (value.radius > 0) result_->worst_radius = std::max(result_->worst_radius, value.radius / allowed);
  }

  const Case& c_;
  const Problem& p_;
  const Timeline& timeline_;
  const Inputs& inputs_;
  const LayerSpread* spread_;
  slong precision_;
  Balls scale_, cap_, slopes_, wq_, wk_, wv_, wo_, bq_, bk_, bv_, bo_;
  std::map<std::pair<int64_t, int64_t>, KeyValue> history_;  ///< By (origin, serial).
  OracleResult* result_ = nullptr;
  bool decided_ = true;
};

}  // namespace

std::string oracle_version() {
  return "4";
}

OracleResult compute_golden(const Case& c, const Timeline& timeline, const Inputs& inputs) {
  LayerSpread spread;
  if (c.problem.level == Level::layer) spread = layer_spread(c, timeline, inputs);
  OracleResult result;
  for (const slong precision : kPrecisions) {
    result = {};
    Oracle oracle(c, timeline, inputs, &spread, precision);
    if (oracle.run(result)) break;
  }
  return result;
}

void check_binding(const Case& c, const Inputs& inputs, const Golden& golden) {
  constexpr double kBinding = 100;
  for (const std::string& feature : features(c.problem)) {
    Case other = c;
    other.problem = without(c.problem, feature);
    const Timeline timeline = play(other);
    // Only values are compared, so no allowed errors are needed: all spreads are 0.
    LayerSpread none;
    for (const Moment& moment : timeline) {
      const size_t rows = moment.rows.empty() ? 0 : checked_rows(other, moment).size();
      none.steps.push_back({std::vector<double>(rows * static_cast<size_t>(c.problem.d_model)),
                            std::vector<double>(rows * static_cast<size_t>(c.problem.query_heads))});
    }
    OracleResult result;
    Oracle(other, timeline, inputs, &none, kPrecisions[0]).run(result);
    double change = 0;
    const auto compare = [&](const GoldenTensor& with, const GoldenTensor& off) {
      for (size_t i = 0; i < with.value.size(); ++i) {
        if (with.value[i] == off.value[i]) continue;  // equal infinities too
        change = std::max(change, std::fabs(with.value[i] - off.value[i]) / static_cast<double>(with.allowed[i]));
      }
    };
    for (size_t s = 0; s < golden.steps.size(); ++s) {
      compare(golden.steps[s].output, result.golden.steps[s].output);
      compare(golden.steps[s].lse, result.golden.steps[s].lse);
    }
    if (!(change > kBinding)) {
      throw Error::at(
          fmt::format("{}: {}", c.file.string(), c.id),
          "the feature \"{}\" does not matter: without it no element changes by more than {:.3g} times its allowed "
          "error, wanted {}",
          feature, change, kBinding);
    }
  }
}

void release_oracle_thread() {
  flint_cleanup();
}

}  // namespace attest
