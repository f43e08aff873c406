// SPDX-License-Identifier: Apache-2.0
#include "golden/oracle.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <optional>
#include <utility>

#include "golden/ball.h"
#include "golden/heads.h"
#include "golden/layer_noise.h"
#include "golden/rounded.h"
#include "golden/tokens.h"
#include "golden/tolerance.h"

namespace attest {
namespace {

constexpr double kUnit = 0x1p-24;
constexpr double kSmallestNormal = 0x1p-126;
constexpr double kMerge = 0x1p-48;  // a few roundings of f64
constexpr std::array<slong, 3> kPrecisions{128, 256, 512};

/// A case's operator at one working precision.
class Oracle {
 public:
  Oracle(const Case& c, const Timeline& timeline, const Inputs& inputs, const LayerSpread* spread, slong precision,
         Purpose purpose = Purpose::golden)
      : c_(c),
        p_(c.problem),
        timeline_(timeline),
        inputs_(inputs),
        spread_(spread),
        precision_(precision),
        tokens_(c, timeline, inputs, purpose, precision),
        blur_(c.problem, tokens_.rope()),
        scale_(1),
        cap_(1),
        wo_(exact(inputs.weights.out.data)),
        bo_(exact(inputs.weights.out_bias.data)) {
    // A1: the real 1 / sqrt(Dk), or exactly the given value.
    if (p_.scale) {
      arb_set_d(scale_[0], *p_.scale);
    } else {
      arb_set_ui(scale_[0], static_cast<ulong>(p_.qk_head_dim));
      arb_rsqrt(scale_[0], scale_[0], precision_);
    }
    arb_set_d(cap_[0], p_.softcap);
    if (p_.alibi != Alibi::none) slopes_ = alibi_slopes();
  }

  /// False if an element stayed undecided that more bits could decide.
  bool run(OracleResult& result) {
    result_ = &result;
    decided_ = true;
    for (size_t s = 0; s < timeline_.size(); ++s) {
      result.golden.steps.emplace_back();
      if (!timeline_[s].rows.empty()) attend(s, result.golden.steps.back());
      if (timeline_[s].step.kind == StepKind::load) {
        for (const auto& sequence : timeline_[s].incoming) {
          for (const Token& token : sequence) tokens_.learn(s, token);
        }
      }
    }
    return decided_;
  }

 private:
  using Value = std::pair<Rounded, double>;  ///< With its allowed error.

  /// The keys and values of one sequence and KV head, as balls and (for bounds) as doubles. Values lie channel by
  /// channel, so that a weighted sum over keys is one dot product.
  struct History {
    History(const Oracle& oracle, const std::vector<Token>& tokens, int64_t kv_head)
        : dk(static_cast<size_t>(oracle.p_.qk_head_dim)), dv(static_cast<size_t>(oracle.p_.v_head_dim)) {
      const auto head = static_cast<size_t>(kv_head);
      resize(tokens.size());
      for (size_t j = 0; j < size; ++j) {
        const TokenStore::Entry& entry = oracle.tokens_.at(tokens[j]);
        const Balls& key = entry.key.heads.x;
        const Balls& value = entry.value.heads.x;
        keys.push_back(key[head * dk]);
        if (!entry.key.heads.blur.empty()) blurs.push_back(&entry.key.heads.blur[head]);
        for (size_t d = 0; d < dk; ++d) key_doubles[j * dk + d] = middle(key[head * dk + d]);
        for (size_t d = 0; d < dv; ++d) {
          values[d * size + j] = *value[head * dv + d];  // borrowed: the history outlives this
          value_doubles[j * dv + d] = middle(value[head * dv + d]);
        }
      }
    }
    /// Some of another's keys.
    History(const History& all, const std::vector<int64_t>& some) : dk(all.dk), dv(all.dv) {
      resize(some.size());
      for (size_t j = 0; j < size; ++j) {
        const auto from = static_cast<size_t>(some[j]);
        keys.push_back(all.keys[from]);
        if (!all.blurs.empty()) blurs.push_back(all.blurs[from]);
        std::copy_n(&all.key_doubles[from * dk], dk, &key_doubles[j * dk]);
        std::copy_n(&all.value_doubles[from * dv], dv, &value_doubles[j * dv]);
        for (size_t d = 0; d < dv; ++d) values[d * size + j] = all.values[d * all.size + from];
      }
    }
    void resize(size_t n) {
      size = n;
      values.resize(n * dv);
      value_doubles.resize(n * dv);
      key_doubles.resize(n * dk);
    }
    size_t dk, dv, size = 0;
    std::vector<arb_srcptr> keys;
    std::vector<const Blur*> blurs;  ///< Empty if keys are exact.
    std::vector<arb_struct> values;
    std::vector<double> key_doubles, value_doubles;
  };

  /// The results of one row: per head its outputs and LSE.
  struct RowResult {
    Balls heads;                 ///< Layer level: the concatenated head outputs ...
    std::vector<double> reach;   ///< ... and for each of their channels the sum of all |v|.
    std::vector<Value> outputs;  ///< Core level.
    std::vector<Value> lses;
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
    std::vector<RowResult> results(rows.size());
    for (size_t first = 0; first < rows.size();) {
      size_t last = first;
      const int64_t sequence = moment.rows[rows[first]].sequence;
      while (last < rows.size() && moment.rows[rows[last]].sequence == sequence) ++last;
      std::vector<Heads> queries;
      for (size_t r = first; r < last; ++r) {
        queries.push_back(tokens_.query(s, moment.rows[rows[r]]));
        if (!layer) continue;
        results[r].heads = Balls(static_cast<size_t>(p_.query_heads * p_.v_head_dim));
        results[r].reach.resize(results[r].heads.size());
      }
      for (int64_t kv = 0; kv < p_.kv_heads; ++kv) {
        const History history(*this, moment.tokens[static_cast<size_t>(sequence)], kv);
        for (size_t r = first; r < last; ++r) {
          for (int64_t h = kv * p_.group(); h < (kv + 1) * p_.group(); ++h) {  // A4
            attend_row(s, history, moment.rows[rows[r]], queries[r - first], h, results[r]);
          }
        }
      }
      first = last;
    }
    for (size_t r = 0; r < rows.size(); ++r) {
      const Row& row = moment.rows[rows[r]];
      step.rows.push_back(static_cast<int32_t>(row.sequence));
      step.rows.push_back(static_cast<int32_t>(row.index));
      if (layer) project_out(s, r, results[r]);
      if (moment.step.kind == StepKind::merge) allow_merged(moment, r, results[r]);
      for (const auto& [value, allowed] : results[r].outputs) store(step.output, value, allowed);
      for (size_t h = 0; h < results[r].lses.size(); ++h) {
        auto [value, allowed] = results[r].lses[h];
        if (layer) {
          const double spread = spread_->steps[s].lse[r * static_cast<size_t>(p_.query_heads) + h];
          // A row without keys is computed from f32 data alone, and has no spread.
          if (spread > 0) allowed = kUnit * std::fabs(value.value) + 8 * spread + beyond_binary(value.value);
        }
        if (p_.lse) store(step.lse, value, std::isinf(value.value) ? 0 : allowed);
      }
    }
  }

  /// C1, L4: the step's tokens enter the history, and their goldens the step's if the cache holds no copies.
  void learn(size_t s, GoldenStep& step) {
    const bool cached = p_.cache != CacheKind::none && (p_.transforms_keys() || p_.transforms_values());
    for (const auto& sequence : timeline_[s].incoming) {
      for (const Token& token : sequence) {
        const TokenStore::Entry& entry = tokens_.learn(s, token);
        if (!cached) continue;
        step.tokens.push_back(static_cast<int32_t>(token.origin));
        step.tokens.push_back(static_cast<int32_t>(token.index));
        if (p_.transforms_keys()) store_side(entry.key, step.cache_key, step.key_scale);
        if (p_.transforms_values()) store_side(entry.value, step.cache_value, step.value_scale);
      }
    }
    const auto tokens = static_cast<int64_t>(step.tokens.size() / 2);
    step.cache_key.shape = {tokens, p_.kv_heads, p_.qk_head_dim};
    step.cache_value.shape = {tokens, p_.kv_heads, p_.v_head_dim};
    step.key_scale.shape = step.value_scale.shape = {tokens, p_.kv_heads};
  }

  void store_side(const TokenStore::Side& side, GoldenTensor& tensor, GoldenTensor& scale) {
    for (const double code : side.codes) {
      Rounded exactly;
      exactly.value = code;
      store(tensor, exactly, 0);
    }
    if (!side.codes.empty()) {
      for (size_t h = 0; p_.kv_scale == KvScale::token && h < side.scale.size(); ++h) {
        store(scale, round_ball(side.scale[h], middle(side.scale[h]), precision_), side.scale_error[h]);
      }
      return;
    }
    const Heads& heads = side.heads;
    for (size_t i = 0; i < heads.x.size(); ++i) {
      const Rounded value = round_ball(heads.x[i], heads.terms[i], precision_);
      // What is computed is stored; in 16 bits the last rounding has been counted. What is not, is copied.
      const double stored = heads.error[i] > 0 && !is_half(p_.dtype) ? kUnit * std::fabs(value.value) : 0;
      store(tensor, value, heads.error[i] + stored);
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

  /// The keys of a row that its mask lets pass (M6), and what an additive mask adds to their logits.
  void apply_mask(size_t s, const Row& row, int64_t head, std::vector<int64_t>& positions,
                  std::vector<double>& added) const {
    const Dense<float>& mask = inputs_.steps[s].mask;
    const auto index = [&](size_t axis, int64_t i) { return mask.shape[axis] == 1 ? 0 : i; };
    const int64_t line =
        (index(0, row.sequence) * mask.shape[1] + index(1, head)) * mask.shape[2] + index(2, row.index);
    const float* values = mask.data.data() + line * mask.shape[3];
    const bool boolean = p_.mask == MaskKind::boolean;
    std::vector<int64_t> passed;
    for (const int64_t j : positions) {
      const float value = values[j];
      if (boolean ? value == 0 : std::isinf(value)) continue;
      passed.push_back(j);
      if (!boolean) added.push_back(static_cast<double>(value));
    }
    positions = std::move(passed);
  }

  /// A2, A3, A6 for one row and query head; M1 to M5 by row.begin and row.end.
  void attend_row(size_t s, const History& all, const Row& row, const Heads& queries, int64_t head, RowResult& result) {
    const auto dk = static_cast<size_t>(p_.qk_head_dim);
    const auto dv = static_cast<size_t>(p_.v_head_dim);
    const bool layer = p_.level == Level::layer;
    std::vector<int64_t> positions(static_cast<size_t>(row.end - row.begin));
    std::iota(positions.begin(), positions.end(), row.begin);
    std::vector<double> mask;
    if (p_.mask != MaskKind::none) apply_mask(s, row, head, positions, mask);
    const size_t n = positions.size();
    if (n == 0) {  // M7
      Rounded nothing;
      nothing.value = p_.sinks ? static_cast<double>(inputs_.weights.sinks.data[static_cast<size_t>(head)])
                               : -std::numeric_limits<double>::infinity();
      // The sink alone: what its exponential, the sum and the logarithm may add, as in any other row.
      result.lses.emplace_back(nothing, p_.sinks ? kUnit * (5 * std::fabs(nothing.value) + 12) : 0);
      if (!layer) result.outputs.insert(result.outputs.end(), dv, {Rounded{}, 0});
      return;
    }
    std::optional<History> rest;
    if (n < static_cast<size_t>(row.end - row.begin)) rest.emplace(all, positions);
    const History& history = rest ? *rest : all;
    const size_t begin = rest ? 0 : static_cast<size_t>(row.begin);
    arb_srcptr query_head = queries.x[static_cast<size_t>(head) * dk];
    Balls logits(n), biases(1);
    std::vector<double> logit(n), dot(n), bias(p_.alibi == Alibi::none ? 0 : n), capped(p_.softcap > 0 ? n : 0);
    std::vector<double> magnitude(n), weight(n), blur;
    for (size_t j = 0; j < n; ++j) {
      arb_dot(logits[j], nullptr, 0, query_head, 1, history.keys[begin + j], 1, static_cast<slong>(dk), precision_);
      arb_mul(logits[j], logits[j], scale_[0], precision_);
      dot[j] = middle(logits[j]);
      if (p_.softcap > 0) {  // A5
        arb_div(logits[j], logits[j], cap_[0], precision_);
        arb_tanh(logits[j], logits[j], precision_);
        arb_mul(logits[j], logits[j], cap_[0], precision_);
        capped[j] = middle(logits[j]);
      }
      if (!bias.empty()) {  // B1
        const int64_t distance = std::llabs(row.position - positions[j]);
        arb_mul_si(biases[0], slopes_[static_cast<size_t>(head)], -static_cast<slong>(distance), precision_);
        arb_add(logits[j], logits[j], biases[0], precision_);
        bias[j] = middle(biases[0]);
      }
      if (!mask.empty()) {  // M6
        arb_set_d(biases[0], mask[j]);
        arb_add(logits[j], logits[j], biases[0], precision_);
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
    if (!layer) dot_errors(history, queries, static_cast<size_t>(head), begin, magnitude, blur);
    const RowTerms terms{.logit = logit,
                         .capped = capped,
                         .bias = bias,
                         .mask = mask,
                         .dot = dot,
                         .magnitude = magnitude,
                         .blur = blur,
                         .weight = weight,
                         .lse = middle(lse[0]),
                         .largest = largest,
                         .softcap = p_.softcap,
                         .sink_logit = p_.sinks ? sink : 0,
                         .sink_weight = sink_share / total,
                         .head_dim = p_.qk_head_dim,
                         .read_error = read_error(p_),
                         .stores_values = p_.quantised() && is_half(p_.dtype)};
    const RowTolerance tolerance(terms, p_.dtype);
    result.lses.emplace_back(round_ball(lse[0], std::fabs(largest) + log_sum, precision_),
                             tolerance.lse(middle(lse[0]), log_sum));

    Balls out(1);
    for (size_t d = 0; d < dv; ++d) {
      arb_dot(out[0], nullptr, 0, weights[0], 1, &history.values[d * history.size + begin], 1, static_cast<slong>(n),
              precision_);
      arb_div(out[0], out[0], sum[0], precision_);
      const double* v = history.value_doubles.data() + begin * dv + d;
      if (layer) {  // L3: heads side by side
        const size_t channel = static_cast<size_t>(head) * dv + d;
        arb_set(result.heads[channel], out[0]);
        for (size_t j = 0; j < n; ++j) result.reach[channel] += std::fabs(v[j * dv]);
        continue;
      }
      double terms_size = 0;
      for (size_t j = 0; j < n; ++j) terms_size += weight[j] * std::fabs(v[j * dv]);
      const Rounded value = round_ball(out[0], terms_size, precision_);
      result.outputs.emplace_back(value, tolerance.output(v, dv, value.value));
    }
  }

  /// Fills A_j, what the dot products would be if nothing cancelled, and x_j, unless queries and keys are exact.
  void dot_errors(const History& history, const Heads& queries, size_t head, size_t begin,
                  std::vector<double>& magnitude, std::vector<double>& blur) const {
    const size_t dk = history.dk;
    const double scale = middle(scale_[0]);
    std::vector<double> query(dk);
    for (size_t d = 0; d < dk; ++d) query[d] = middle(queries.x[head * dk + d]);
    const Blur none;
    const bool blurred = !queries.blur.empty() || !history.blurs.empty();
    if (blurred) blur.resize(magnitude.size());
    for (size_t j = 0; j < magnitude.size(); ++j) {
      const double* k = history.key_doubles.data() + (begin + j) * dk;
      double sum = 0;
      for (size_t d = 0; d < dk; ++d) sum += std::fabs(query[d] * k[d]);
      magnitude[j] = scale * sum;
      if (!blurred) continue;
      blur[j] = scale * blur_(query.data(), queries.blur.empty() ? none : queries.blur[head], k,
                              history.blurs.empty() ? none : *history.blurs[begin + j]);
    }
  }

  /// L3: y = Wo concat(heads) + bo, with the Monte Carlo bound, and for weights that are flushed to zero.
  void project_out(size_t s, size_t r, RowResult& result) {
    const Balls& heads = result.heads;
    const Balls y = project(wo_, bo_, heads, precision_);
    for (size_t o = 0; o < y.size(); ++o) {
      double terms = bo_.size() > 0 ? std::fabs(middle(bo_[o])) : 0;
      double flushed = 0;
      for (size_t i = 0; i < heads.size(); ++i) {
        const double weight = std::fabs(middle(wo_[o * heads.size() + i]));
        terms += weight * std::fabs(middle(heads[i]));
        flushed += kSmallestNormal * weight * result.reach[i];
      }
      const Rounded value = round_ball(y[o], terms, precision_);
      const double spread = spread_->steps[s].output[r * y.size() + o];
      const DTypeInfo& storage = info(p_.dtype);
      result.outputs.emplace_back(
          value, storage.unit_roundoff * std::fabs(value.value) + 8 * spread + flushed + storage.half_subnormal);
    }
  }

  /// E2: a merged row may be off by what its parts may be off, each by its share.
  void allow_merged(const Moment& moment, size_t r, RowResult& result) const {
    const auto dv = static_cast<size_t>(p_.v_head_dim);
    for (size_t h = 0; h < result.lses.size(); ++h) {
      const size_t at = r * result.lses.size() + h;
      const double whole = result.lses[h].first.value;
      if (std::isinf(whole)) continue;  // no part has a key
      std::vector<double> share;
      double widest = 0, of_lse = 0;
      for (const size_t part : moment.parts) {
        const GoldenTensor& lse = result_->golden.steps[part].lse;
        Balls x(1);
        if (!std::isinf(lse.value[at])) {
          arb_set_d(x[0], lse.value[at] - whole);
          arb_exp(x[0], x[0], precision_);
        }
        share.push_back(middle(x[0]));
        widest = std::max(widest, static_cast<double>(lse.allowed[at]));
        of_lse += share.back() * static_cast<double>(lse.allowed[at]);
      }
      // The merge is done in f64, whose roundings are lost in the second order of what the LSEs may be off.
      const double grown = 1 + 2 * widest;
      result.lses[h].second = grown * of_lse + kMerge * (1 + std::fabs(whole));
      for (size_t d = 0; d < dv; ++d) {
        auto& [value, allowed] = result.outputs[h * dv + d];
        double sum = 0, sizes = 0;
        for (size_t i = 0; i < share.size(); ++i) {
          const GoldenTensor& output = result_->golden.steps[moment.parts[i]].output;
          const GoldenTensor& lse = result_->golden.steps[moment.parts[i]].lse;
          const double o = output.value[at * dv + d];
          sum += share[i] * (static_cast<double>(output.allowed[at * dv + d]) +
                             std::fabs(o - value.value) * static_cast<double>(lse.allowed[at]));
          sizes += share[i] * std::fabs(o);
        }
        allowed = grown * sum + kMerge * sizes;
      }
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
  TokenStore tokens_;
  DotBlur blur_;
  Balls scale_, cap_, slopes_, wo_, bo_;
  OracleResult* result_ = nullptr;
  bool decided_ = true;
};

}  // namespace

std::string oracle_version() {
  return "6";
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

namespace {

/// C7, C8: a ring that never comes round, or sequences that never need a second page, test no more than a plain cache.
void check_storage(const Case& c, const Timeline& timeline) {
  bool used = c.problem.cache != CacheKind::paged && c.problem.cache != CacheKind::ring;
  for (const Moment& moment : timeline) {
    if (c.problem.cache == CacheKind::ring) used = used || moment.max_total > c.problem.capacity;
    for (const auto& pages : moment.pages.table) used = used || pages.size() > 1;
  }
  if (!used) {
    throw Error::at(fmt::format("{}: {}", c.file.string(), c.id), "the {}",
                    c.problem.cache == CacheKind::ring ? "ring never comes round: no sequence outgrows its capacity"
                                                       : "pages do not matter: no sequence has two");
  }
}

}  // namespace

void check_binding(const Case& c, const Inputs& inputs, const Golden& golden) {
  constexpr double kBinding = 100;
  check_storage(c, play(c));
  std::vector<std::string> names = features(c.problem);
  if (c.problem.quantised()) names.emplace_back("kv_scale");
  for (const std::string& feature : names) {
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
    const Purpose purpose = feature == "kv_scale" ? Purpose::unscaled : Purpose::probe;
    // Without its mask a case may have logits beyond f32 (the recipe overflow), which leave 128 bits no fraction.
    Oracle(other, timeline, inputs, &none, kPrecisions[1], purpose).run(result);
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
