// SPDX-License-Identifier: Apache-2.0
#include "runner/trace.h"

#include <fmt/core.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numbers>
#include <numeric>
#include <optional>
#include <set>
#include <tuple>

#include "cases/quantise.h"
#include "runner/comparison.h"
#include "runner/markup.h"
#include "runner/report_text.h"

namespace attest {
namespace {

std::vector<double> doubles(const float* from, size_t count) {
  return {from, from + count};
}

/// R3: the frequencies of the pairs.
std::vector<double> frequencies(const Rope& rope) {
  const auto r = static_cast<double>(rope.dim);
  const double two_pi = 2 * std::numbers::pi;
  const double base = rope.scaling == RopeScaling::ntk ? rope.base * std::pow(rope.factor, r / (r - 2)) : rope.base;
  double low = 0, high = 0;
  if (rope.is_yarn()) {
    const auto dim = [&](double x) { return r * std::log(rope.original_length / (two_pi * x)) / (2 * std::log(base)); };
    const bool whole = rope.scaling == RopeScaling::yarn;
    low = std::max(whole ? std::floor(dim(rope.high_frequency)) : dim(rope.high_frequency), 0.0);
    high = std::min(whole ? std::ceil(dim(rope.low_frequency)) : dim(rope.low_frequency), r - 1);
    if (low == high) high += 0.001;
  }
  std::vector<double> frequency;
  for (int64_t pair = 0; pair < rope.dim / 2; ++pair) {
    const auto c = static_cast<double>(pair);
    const double f = std::pow(base, -2 * c / r);
    double kept = 1;  // the share that keeps its frequency
    if (rope.scaling == RopeScaling::linear) kept = 0;
    if (rope.is_yarn()) kept = 1 - std::clamp((c - low) / (high - low), 0.0, 1.0);
    if (rope.scaling == RopeScaling::llama3) {
      const double turns = rope.original_length * f / two_pi;
      kept = std::clamp((turns - rope.low_frequency) / (rope.high_frequency - rope.low_frequency), 0.0, 1.0);
    }
    frequency.push_back(kept == 1 ? f : kept * f + (1 - kept) * f / rope.factor);
  }
  return frequency;
}

/// B1: standard slopes.
double standard_slope(int64_t head, int64_t heads) {
  const auto n = static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(heads)));
  const double power = head < n ? -8 * static_cast<double>(head + 1) : -4 * static_cast<double>(2 * (head - n) + 1);
  return std::exp2(power / static_cast<double>(n));
}

/// M6: what a mask adds to a logit; -inf hides the key.
double mask_at(const Problem& p, const Dense<float>& mask, int64_t b, int64_t h, int64_t i, int64_t j) {
  if (mask.data.empty()) return 0;
  const auto at = [&](size_t axis, int64_t index) { return mask.shape[axis] == 1 ? 0 : index; };
  const float x = mask.data[flat(mask.shape, {at(0, b), at(1, h), at(2, i), j})];
  if (p.mask == MaskKind::boolean) return x != 0 ? 0 : -kInfinity;
  return static_cast<double>(x);
}

}  // namespace

Evaluation::Evaluation(const Case& c, const Timeline& timeline, const Inputs& inputs)
    : c_(c), timeline_(timeline), inputs_(inputs) {
  const Problem& p = c.problem;
  if (p.rope) frequency_ = frequencies(p.rope);
  if (p.rope.is_yarn()) {
    magnitude_ = p.rope.attention_factor != 0 ? p.rope.attention_factor : 0.1 * std::log(p.rope.factor) + 1;
  }
  for (int64_t h = 0; h < p.query_heads && p.alibi != Alibi::none; ++h) {
    slopes_.push_back(p.alibi == Alibi::standard
                          ? standard_slope(h, p.query_heads)
                          : static_cast<double>(inputs.weights.alibi_slopes.data[static_cast<size_t>(h)]));
  }
}

/// All heads of a token side by side; at the layer level projected (L1, L2).
std::vector<double> Evaluation::take(const Dense<float>& tensor, int64_t index, int64_t width,
                                     const Dense<float>& weight, const Dense<float>& bias) const {
  const bool core = c_.problem.level == Level::core;
  const auto in = static_cast<size_t>(core ? width : c_.problem.d_model);
  const std::vector<double> x = doubles(tensor.data.data() + static_cast<size_t>(index) * in, in);
  if (core) return x;
  std::vector<double> y(static_cast<size_t>(width));
  for (size_t o = 0; o < y.size(); ++o) {
    if (!bias.data.empty()) y[o] = static_cast<double>(bias.data[o]);
    for (size_t n = 0; n < in; ++n) y[o] += static_cast<double>(weight.data[o * in + n]) * x[n];
  }
  return y;
}

/// N1
void Evaluation::normalise(std::vector<double>& head, const Dense<float>& weight) const {
  if (c_.problem.norm_epsilon == 0) return;
  const double squares = std::inner_product(head.begin(), head.end(), head.begin(), 0.0);
  const double size = std::sqrt(squares / static_cast<double>(head.size()) + c_.problem.norm_epsilon);
  for (size_t d = 0; d < head.size(); ++d) head[d] *= static_cast<double>(weight.data[d]) / size;
}

/// R1, R2
void Evaluation::turn(std::vector<double>& head, int64_t angle) const {
  const size_t pairs = frequency_.size();
  for (size_t pair = 0; pair < pairs; ++pair) {
    const bool half = c_.problem.rope.style == RopeStyle::half;
    double &x = head[half ? pair : 2 * pair], &y = head[half ? pair + pairs : 2 * pair + 1];
    const double a = static_cast<double>(angle) * frequency_[pair];
    const double cos = magnitude_ * std::cos(a), sin = magnitude_ * std::sin(a);
    std::tie(x, y) = std::pair(x * cos - y * sin, x * sin + y * cos);
  }
}

/// Q1, Q2: what is read back.
void Evaluation::quantise(std::vector<double>& head, const Dense<float>& scale, int64_t kv_head) const {
  const Problem& p = c_.problem;
  if (!p.quantised()) return;
  double by = 0;
  if (p.kv_scale == KvScale::token) {
    for (const double x : head) by = std::max(by, std::fabs(x));
    by /= info(p.cache_dtype).largest;
  } else {
    by = static_cast<double>(scale.data[p.kv_scale == KvScale::head ? static_cast<size_t>(kv_head) : 0]);
  }
  for (double& x : head) x = by == 0 ? 0 : code_of(p.cache_dtype, x, by) * by;
}

const Evaluation::Stored& Evaluation::stored(const Token& token) {
  const auto [at, made] = stored_.try_emplace({token.origin, token.serial});
  Stored& stored = at->second;
  if (!made) return stored;
  const Problem& p = c_.problem;
  const auto step = static_cast<size_t>(token.step);
  const int64_t index = token.origin * timeline_[step].max_keys + token.index;
  const Weights& w = inputs_.weights;
  if (timeline_[step].step.kind == StepKind::load) {  // P8
    const auto give = [&](const Dense<float>& tensor, int64_t width, std::vector<std::vector<double>>& heads) {
      for (int64_t h = 0; h < p.kv_heads; ++h) {
        heads.push_back(doubles(tensor.data.data() + (index * p.kv_heads + h) * width, static_cast<size_t>(width)));
      }
    };
    give(inputs_.steps[step].key, p.qk_head_dim, stored.key);
    give(inputs_.steps[step].value, p.v_head_dim, stored.value);
    return stored;
  }
  const auto keys = take(inputs_.steps[step].key, index, p.kv_heads * p.qk_head_dim, w.k, w.k_bias);
  const auto values = take(inputs_.steps[step].value, index, p.kv_heads * p.v_head_dim, w.v, w.v_bias);
  for (int64_t h = 0; h < p.kv_heads; ++h) {
    std::vector<double> key(keys.begin() + h * p.qk_head_dim, keys.begin() + (h + 1) * p.qk_head_dim);
    std::vector<double> value(values.begin() + h * p.v_head_dim, values.begin() + (h + 1) * p.v_head_dim);
    normalise(key, w.k_norm);
    turn(key, token.angle);
    quantise(key, inputs_.key_scale, h);
    quantise(value, inputs_.value_scale, h);
    stored.key.push_back(std::move(key));
    stored.value.push_back(std::move(value));
  }
  return stored;
}

const std::vector<double>& Evaluation::value(const Token& token, int64_t kv_head) {
  return stored(token).value[static_cast<size_t>(kv_head)];
}

/// A2, A5, B1
double Evaluation::logit(const std::vector<double>& query, const std::vector<double>& key, int64_t head,
                         int64_t distance) const {
  const Problem& p = c_.problem;
  const double scale = p.scale ? *p.scale : 1 / std::sqrt(static_cast<double>(p.qk_head_dim));
  double s = scale * std::inner_product(query.begin(), query.end(), key.begin(), 0.0);
  if (p.softcap > 0) s = p.softcap * std::tanh(s / p.softcap);
  if (!slopes_.empty()) s -= slopes_[static_cast<size_t>(head)] * static_cast<double>(std::abs(distance));
  return s;
}

Evaluation::Head Evaluation::head(size_t step, const Row& row, int64_t head) {
  const Problem& p = c_.problem;
  const size_t source = timeline_[step].query_step;
  const auto queries = take(inputs_.steps[source].query, row.sequence * timeline_[source].max_queries + row.index,
                            p.query_heads * p.qk_head_dim, inputs_.weights.q, inputs_.weights.q_bias);
  std::vector<double> query(queries.begin() + head * p.qk_head_dim, queries.begin() + (head + 1) * p.qk_head_dim);
  normalise(query, inputs_.weights.q_norm);
  turn(query, row.angle);

  const auto& tokens = timeline_[step].tokens[static_cast<size_t>(row.sequence)];
  const auto kv = static_cast<size_t>(head / p.group());
  Head result;
  std::vector<double> logits;
  double largest = p.sinks ? static_cast<double>(inputs_.weights.sinks.data[static_cast<size_t>(head)]) : -kInfinity;
  const double sink = largest;
  for (int64_t j = row.begin; j < row.end; ++j) {
    const double mask = mask_at(p, inputs_.steps[step].mask, row.sequence, head, row.index, j);
    result.masked.push_back(mask == -kInfinity);
    // Of a masked key not even the logit counts.
    logits.push_back(result.masked.back()
                         ? -kInfinity
                         : logit(query, stored(tokens[static_cast<size_t>(j)]).key[kv], head, row.position - j) + mask);
    largest = std::max(largest, logits.back());
  }
  result.output.assign(static_cast<size_t>(p.v_head_dim), 0);
  result.weight.assign(logits.size(), 0);
  result.lse = -kInfinity;
  if (largest == -kInfinity) return result;  // M7
  double sum = std::exp(sink - largest);
  for (const double s : logits) sum += std::exp(s - largest);
  result.sink = std::exp(sink - largest) / sum;
  result.lse = largest + std::log(sum);
  for (size_t j = 0; j < logits.size(); ++j) {
    result.weight[j] = std::exp(logits[j] - largest) / sum;
    if (result.weight[j] == 0) continue;
    const auto& value = stored(tokens[static_cast<size_t>(row.begin) + j]).value[kv];
    for (size_t d = 0; d < value.size(); ++d) result.output[d] += result.weight[j] * value[d];
  }
  return result;
}

std::vector<double> Evaluation::output(size_t step, const Row& row) {
  const Problem& p = c_.problem;
  std::vector<double> heads;
  for (int64_t h = 0; h < p.query_heads; ++h) {
    const Head one = head(step, row, h);
    heads.insert(heads.end(), one.output.begin(), one.output.end());
  }
  if (p.level == Level::core) return heads;
  const Weights& w = inputs_.weights;
  std::vector<double> y(static_cast<size_t>(p.d_model));
  for (size_t o = 0; o < y.size(); ++o) {
    if (!w.out_bias.data.empty()) y[o] = static_cast<double>(w.out_bias.data[o]);
    for (size_t n = 0; n < heads.size(); ++n) y[o] += static_cast<double>(w.out.data[o * heads.size() + n]) * heads[n];
  }
  return y;
}

namespace {

/// The lines of a trace, from one case.
class Tracer {
 public:
  Tracer(const Script& script, const Performance* actual, const Conventions& conventions, const TraceChoice& choice)
      : c_(*script.c),
        timeline_(*script.timeline),
        golden_(script.golden),
        actual_(actual),
        conventions_(conventions),
        choice_(choice),
        evaluation_(c_, timeline_, *script.inputs) {}

  std::string text() {
    text_ = printable(identity(c_)) + "\n";
    if (!c_.about.empty()) text_ += printable(c_.about) + "\n";
    for (const size_t s : steps()) show_step(s);
    return text_;
  }

 private:
  /// The first prefill and the first decode steps; of a case without either, its first attends.
  [[nodiscard]] std::vector<size_t> steps() const {
    std::set<size_t> chosen;
    size_t decode = 0;
    for (size_t s = 0; s < timeline_.size(); ++s) {
      const Moment& moment = timeline_[s];
      if (moment.step.kind != StepKind::attend || moment.step.expect != Expect::ok) continue;
      const bool continues = std::any_of(moment.before.begin(), moment.before.end(), [](int64_t n) { return n > 0; });
      if (chosen.empty()) chosen.insert(s);
      if (s != *chosen.begin() && (continues || c_.problem.cache == CacheKind::none) && decode < choice_.decode_steps) {
        if (moment.max_queries == 1 || decode == 0 || c_.problem.cache == CacheKind::none) chosen.insert(s), ++decode;
      }
    }
    return {chosen.begin(), chosen.end()};
  }

  [[nodiscard]] const StepOutcome* outcome(size_t s) const {
    if (actual_ == nullptr || s >= actual_->outcomes.size()) return nullptr;
    const StepOutcome& one = actual_->outcomes[s];
    return one.status == ATTEST_OK && !one.output.data.empty() ? &one : nullptr;
  }

  /// Place of a row among those of the golden.
  [[nodiscard]] std::optional<size_t> golden_row(size_t s, const Row& row) const {
    if (golden_ == nullptr || s >= golden_->steps.size()) return std::nullopt;
    const auto& rows = golden_->steps[s].rows;
    for (size_t r = 0; 2 * r < rows.size(); ++r) {
      if (rows[2 * r] == row.sequence && rows[2 * r + 1] == row.index) return r;
    }
    return std::nullopt;
  }

  void show_step(size_t s) {
    const Moment& moment = timeline_[s];
    const bool decodes = moment.max_queries == 1;
    text_ += fmt::format("\nstep {} of {}: {}{}\n", s, timeline_.size(), decodes ? "decode" : "prefill",
                         actual_ != nullptr && outcome(s) == nullptr ? ", which has left no result" : "");
    size_t shown = 0;
    for (size_t r = 0, worst = 0; r < moment.rows.size(); ++r) {
      const bool first = r == 0 || moment.rows[r - 1].sequence != moment.rows[r].sequence;
      if (first || ratio(s, moment.rows[r]) >= ratio(s, moment.rows[worst])) worst = r;
      const bool last = r + 1 == moment.rows.size() || moment.rows[r + 1].sequence != moment.rows[r].sequence;
      if (!last) continue;
      if (shown++ == choice_.sequences) {
        text_ += "  (more sequences)\n";
        break;
      }
      show_row(s, moment.rows[worst]);
    }
  }

  /// The largest error of a row over what is allowed there, where it is beyond it; else 0.
  [[nodiscard]] double ratio(size_t s, const Row& row) const {
    const StepOutcome* const got = outcome(s);
    const auto r = golden_row(s, row);
    if (got == nullptr || !r) return 0;
    const auto& golden = golden_->steps[s].output;
    const size_t width = golden.value.size() / (golden_->steps[s].rows.size() / 2);
    const auto from = static_cast<size_t>(row.sequence * timeline_[s].max_queries + row.index) * width;
    double largest = 0;
    for (size_t e = 0; e < width; ++e) {
      const double error = std::fabs(static_cast<double>(got->output.data[from + e]) - golden.value[*r * width + e]);
      const auto allowed = static_cast<double>(golden.allowed[*r * width + e]);
      if (error <= allowed) continue;
      largest = std::max(largest, std::isnan(error) ? std::numeric_limits<double>::infinity() : error / allowed);
    }
    return largest;
  }

  void show_row(size_t s, const Row& row) {
    const Problem& p = c_.problem;
    const Moment& moment = timeline_[s];
    const auto b = static_cast<size_t>(row.sequence);
    const bool cached = p.cache != CacheKind::none;
    text_ += fmt::format("  sequence {}, query {} of {} at position {}: ", row.sequence, row.index,
                         moment.step.queries[b], row.position);
    text_ += cached ? fmt::format("past {} + {} new keys", moment.before[b], moment.step.keys[b])
                    : fmt::format("{} keys", moment.step.keys[b]);
    text_ += row.begin == row.end ? ", sees none" : fmt::format(", sees [{}, {})", row.begin, row.end);
    if (row.angle != row.position && p.rope) text_ += fmt::format(", RoPE position {}", row.angle);
    text_ += "\n";
    text_ +=
        fmt::format("    {:>4} {:>2}  {:<{}}  {:>6}", "head", "kv", "weights: key x share", weight_columns(), "sum");
    if (p.level == Level::core) text_ += numbers_head();
    text_ += "\n";
    const auto heads = std::min<int64_t>(p.query_heads, static_cast<int64_t>(choice_.heads));
    for (int64_t h = 0; h < heads; ++h) show_head(s, row, h);
    if (heads < p.query_heads) text_ += fmt::format("    ({} more heads)\n", p.query_heads - heads);
    if (p.level == Level::layer) show_projected(s, row);
  }

  [[nodiscard]] size_t weight_columns() const { return 14 * choice_.weights + 16; }

  [[nodiscard]] std::string numbers_head() const {
    std::string text = fmt::format("  {:>7} {:>13}", "channel", "wanted");
    if (actual_ != nullptr) text += fmt::format(" {:>13} {:>13}", "got", "error/allowed");
    return text;
  }

  /// "5 x 0.912  7 x 0.031  (5 more 0.036)"
  [[nodiscard]] std::string weights(const Row& row, const Evaluation::Head& head) const {
    std::vector<size_t> order(head.weight.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return head.weight[a] > head.weight[b]; });
    std::string text;
    const auto masked = static_cast<size_t>(std::count(head.masked.begin(), head.masked.end(), true));
    const size_t visible = order.size() - masked;
    const size_t shown = std::min(choice_.weights, visible);
    double rest = 0;
    for (size_t n = 0; n < visible; ++n) {
      const double share = head.weight[order[n]];
      if (n >= shown) {
        rest += share;
        continue;
      }
      text += fmt::format("{}{} x {}", n == 0 ? "" : "  ", row.begin + static_cast<int64_t>(order[n]),
                          share < 5e-4 ? fmt::format("{:.0e}", share) : fmt::format("{:.3f}", share));
    }
    if (visible > shown) text += fmt::format("  ({} more {:.3f})", visible - shown, rest);
    if (masked > 0) text += fmt::format("  {} masked", masked);
    if (c_.problem.sinks) text += fmt::format("  sink {:.3f}", head.sink);
    return text.empty() ? "none" : text;
  }

  void show_head(size_t s, const Row& row, int64_t h) {
    const Problem& p = c_.problem;
    const Evaluation::Head head = evaluation_.head(s, row, h);
    const double sum = std::accumulate(head.weight.begin(), head.weight.end(), 0.0);
    std::string line =
        fmt::format("    {:>4} {:>2}  {:<{}}  {:>6.3f}", h, h / p.group(), weights(row, head), weight_columns(), sum);
    if (p.level == Level::layer) {
      text_ += line + "\n";
      return;
    }
    const std::string indent(line.size(), ' ');
    const StepOutcome* const got = outcome(s);
    const auto r = golden_row(s, row);
    const auto width = static_cast<size_t>(p.v_head_dim);
    const auto from =
        static_cast<size_t>((row.sequence * timeline_[s].max_queries + row.index) * p.query_heads + h) * width;
    std::vector<float> result;
    if (got != nullptr) {
      result.assign(got->output.data.begin() + static_cast<ptrdiff_t>(from),
                    got->output.data.begin() + static_cast<ptrdiff_t>(from + width));
    }
    bool wrong = false;
    for (size_t d = 0; d < width; ++d) {
      double wanted = head.output[d], allowed = -1;
      if (r) {
        const size_t at = (*r * static_cast<size_t>(p.query_heads) + static_cast<size_t>(h)) * width + d;
        wanted = golden_->steps[s].output.value[at];
        allowed = static_cast<double>(golden_->steps[s].output.allowed[at]);
      }
      wrong =
          wrong || (got != nullptr && allowed >= 0 && !(std::fabs(static_cast<double>(result[d]) - wanted) <= allowed));
      if (d < choice_.channels) {
        text_ += (d == 0 ? line : indent) +
                 numbers(std::to_string(d), wanted, got == nullptr ? nullptr : &result[d], allowed) + "\n";
      }
    }
    if (p.lse) {
      const double wanted =
          r ? golden_->steps[s].lse.value[*r * static_cast<size_t>(p.query_heads) + static_cast<size_t>(h)] : head.lse;
      const double allowed =
          r ? static_cast<double>(
                  golden_->steps[s].lse.allowed[*r * static_cast<size_t>(p.query_heads) + static_cast<size_t>(h)])
            : -1;
      const float* lse = got == nullptr ? nullptr : &got->lse.data[flat(got->lse.shape, {row.sequence, h, row.index})];
      text_ += indent +
               numbers("lse", conventions_.lse_from_natural(wanted), lse,
                       allowed < 0 ? allowed : conventions_.lse_allowed(wanted, allowed)) +
               "\n";
    }
    if (wrong) show_source(s, row, h, result);
  }

  void show_projected(size_t s, const Row& row) {
    const auto width = static_cast<size_t>(c_.problem.d_model);
    const std::vector<double> computed = evaluation_.output(s, row);
    const auto r = golden_row(s, row);
    const StepOutcome* const got = outcome(s);
    const auto from = static_cast<size_t>(row.sequence * timeline_[s].max_queries + row.index) * width;
    text_ += "    after the output projection:\n" + std::string(10, ' ') + numbers_head() + "\n";
    for (size_t d = 0; d < std::min(width, choice_.channels); ++d) {
      const double wanted = r ? golden_->steps[s].output.value[*r * width + d] : computed[d];
      const double allowed = r ? static_cast<double>(golden_->steps[s].output.allowed[*r * width + d]) : -1;
      text_ += std::string(10, ' ') +
               numbers(std::to_string(d), wanted, got == nullptr ? nullptr : &got->output.data[from + d], allowed) +
               "\n";
    }
  }

  [[nodiscard]] std::string numbers(const std::string& label, double wanted, const float* got, double allowed) const {
    std::string text = fmt::format("  {:>7} {:>13}", label, number_text(wanted));
    if (actual_ == nullptr) return text;
    if (got == nullptr) return text + fmt::format(" {:>13} {:>13}", "-", "-");
    const auto x = static_cast<double>(*got);
    const bool unwritten = std::bit_cast<uint32_t>(*got) == kUnwritten;
    text += fmt::format(" {:>13}", unwritten ? "unwritten" : number_text(x));
    if (allowed < 0) return text + fmt::format(" {:>13}", "-");
    const double error = x == wanted ? 0 : std::fabs(x - wanted);
    const double ratio = error == 0 ? 0 : error / allowed;
    text += fmt::format(" {:>13}", ratio_text(ratio));
    if (!(error <= allowed)) text += "  <-";
    return text;
  }

  /// A wrong output that is one token's value names its source.
  void show_source(size_t s, const Row& row, int64_t h, const std::vector<float>& result) {
    const Problem& p = c_.problem;
    double largest = 0;
    for (const float x : result) {
      if (!std::isfinite(x)) return;
      largest = std::max(largest, static_cast<double>(std::fabs(x)));
    }
    if (largest == 0) {
      text_ += "          all that it has is 0\n";
      return;
    }
    const auto& tokens = timeline_[s].tokens;
    for (size_t b = 0; b < tokens.size(); ++b) {
      for (const Token& token : tokens[b]) {
        for (int64_t kv = 0; kv < p.kv_heads; ++kv) {
          const auto& value = evaluation_.value(token, kv);
          double off = 0;
          for (size_t d = 0; d < result.size(); ++d) {
            off = std::max(off, std::fabs(static_cast<double>(result[d]) - value[d]));
          }
          if (off > 2e-3 * largest) continue;
          std::string where = fmt::format("key {}", token.position);
          if (static_cast<int64_t>(b) != row.sequence) where += fmt::format(" of sequence {}", b);
          if (kv != h / p.group()) where += fmt::format(" of KV head {}", kv);
          text_ += fmt::format(
              "          what it has is the value of {}{}\n", where,
              static_cast<int64_t>(b) == row.sequence && (token.position < row.begin || token.position >= row.end)
                  ? ", which it does not see"
                  : "");
          return;
        }
      }
    }
  }

  const Case& c_;
  const Timeline& timeline_;
  const Golden* golden_;
  const Performance* actual_;
  const Conventions& conventions_;
  TraceChoice choice_;
  Evaluation evaluation_;
  std::string text_;
};

}  // namespace

std::string trace(const Script& script, const Performance* actual, const Conventions& conventions,
                  const TraceChoice& choice) {
  return Tracer(script, actual, conventions, choice).text();
}

}  // namespace attest
