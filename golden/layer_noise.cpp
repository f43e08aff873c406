// SPDX-License-Identifier: Apache-2.0
#include "golden/layer_noise.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <span>
#include <tuple>

#include "cases/quantise.h"
#include "cases/storage.h"
#include "golden/heads.h"
#include "golden/rope.h"
#include "golden/tolerance.h"

namespace attest {
namespace {

constexpr int kRuns = 128;
constexpr double kUnit = 0x1p-24;
constexpr double kUniform = 0.5772;  // standard deviation of a number uniform on [-1, 1]
constexpr slong kPrecision = 128;    // of RoPE's angles, which are taken from the oracle

/// exp for x <= 0, from IEEE operations alone: the C library's may differ in the last bit between machines.
double portable_exp(double x) {
  if (x < -745) return 0;
  const double k = std::floor(x * 1.4426950408889634 + 0.5);
  const double r = (x - k * 0.693147180369123816490) - k * 1.90821492927058770002e-10;  // Cody-Waite split of ln 2
  double sum = 1;
  for (int i = 16; i >= 1; --i) sum = 1 + sum * r / i;
  return std::ldexp(sum, static_cast<int>(k));
}

double portable_tanh(double x) {
  const double e = portable_exp(-2 * std::fabs(x));
  return std::copysign((1 - e) / (1 + e), x);
}

/// ln for x >= 1, by Newton steps on portable_exp.
double portable_log(double x) {
  double y = static_cast<double>(std::ilogb(x)) * 0.6931471805599453;
  for (int i = 0; i < 8; ++i) y += x * portable_exp(-y) - 1;
  return y;
}

/// Random relative errors; silent when there is no seed.
class Noise {
 public:
  explicit Noise(uint64_t seed) : state_(seed) {}

  /// A nearly normal number of variance 1, or 0 in the silent run.
  double draw() {
    if (state_ == 0) return 0;
    uint64_t word = state_ += 0x9E3779B97F4A7C15;  // splitmix64
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9;
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB;
    word ^= word >> 31;
    const auto sum =
        static_cast<int64_t>((word & 0xffff) + ((word >> 16) & 0xffff) + ((word >> 32) & 0xffff) + (word >> 48));
    return static_cast<double>(sum - 131070) / 37837.0;
  }
  /// x after one rounding: uniform on +-u has a standard deviation of u / sqrt(3).
  double rounded(double x, double roundings = 1) { return x * (1 + kUnit * 0.5773502691896258 * roundings * draw()); }

  /// x after it was stored in 16 bits.
  double stored(double x, const DTypeInfo& dtype) {
    return x + (dtype.unit_roundoff * std::fabs(x) + dtype.half_subnormal) * kUniform * draw();
  }

  /// sum_i a_i b_i (+ start) as a sequential f32 loop would get it: products and partial sums are rounded, and the
  /// errors of independent roundings add up to one draw with the sum of their variances. A loop may run either way, and
  /// partial sums differ much when large terms come late, so the larger variance counts.
  double dot(const double* a, const double* b, size_t n, double start, size_t b_stride = 1) {
    double total = start;
    for (size_t i = 0; i < n; ++i) total += a[i] * b[i * b_stride];
    double sum = start;
    double products = 0, forward = 0, backward = 0;
    for (size_t i = 0; i < n; ++i) {
      const double product = a[i] * b[i * b_stride];
      backward += (total - sum) * (total - sum);
      sum += product;
      products += product * product;
      forward += sum * sum;
    }
    return total + kUnit * std::sqrt((products + std::max(forward, backward)) / 3) * draw();
  }

 private:
  uint64_t state_;
};

std::vector<double> widen(const Dense<float>& tensor) {
  return {tensor.data.begin(), tensor.data.end()};
}

/// The layer in double arithmetic, one run.
class NoisyLayer {
 public:
  NoisyLayer(const Case& c, const Inputs& inputs)
      : c_(c),
        p_(c.problem),
        inputs_(inputs),
        wq_(widen(inputs.weights.q)),
        wk_(widen(inputs.weights.k)),
        wv_(widen(inputs.weights.v)),
        wo_(widen(inputs.weights.out)),
        bq_(widen(inputs.weights.q_bias)),
        bk_(widen(inputs.weights.k_bias)),
        bv_(widen(inputs.weights.v_bias)),
        bo_(widen(inputs.weights.out_bias)),
        scale_(p_.scale.value_or(1 / std::sqrt(static_cast<double>(p_.qk_head_dim)))),
        slopes_(alibi_slopes()),
        q_norm_(widen(inputs.weights.q_norm)),
        k_norm_(widen(inputs.weights.k_norm)),
        half_(is_half(p_.dtype)),
        rope_(p_.rope, kPrecision, fmt::format("{}: {}.problem.rope", c.file.string(), c.id)) {}

  /// The run without noise comes first.
  std::vector<LayerSpread::Step> run(const Timeline& timeline, uint64_t seed) {
    Noise noise(seed);
    // A backend's frequencies are wrong in one way, for all tokens.
    frequency_noise_.clear();
    for (size_t c = 0; c < rope_.pairs(); ++c) frequency_noise_.push_back(kUniform * noise.draw());
    next_answer_ = 0;
    std::map<std::pair<int64_t, int64_t>, Projected> cache;
    std::vector<LayerSpread::Step> steps;
    for (size_t s = 0; s < timeline.size(); ++s) {
      const Moment& moment = timeline[s];
      LayerSpread::Step step;
      if (moment.step.kind == StepKind::load) {
        for (const auto& sequence : moment.incoming) {
          for (const Token& token : sequence) {
            const int64_t at = token.origin * moment.max_keys + token.index;
            cache[{token.origin, token.serial}] = {given(inputs_.steps[s].key, at, p_.kv_heads * p_.qk_head_dim),
                                                   given(inputs_.steps[s].value, at, p_.kv_heads * p_.v_head_dim)};
          }
        }
      }
      if (!moment.rows.empty()) {
        for (const auto& sequence : moment.incoming) {
          for (const Token& token : sequence) {
            const int64_t at = token.origin * moment.max_keys + token.index;
            Projected& kv = cache[{token.origin, token.serial}];
            kv = {project(inputs_.steps[s].key, at, wk_, bk_, noise),
                  project(inputs_.steps[s].value, at, wv_, bv_, noise)};
            transform(kv.k, k_norm_, token.angle, noise);
            if (half_) store_heads(kv.v, p_.v_head_dim, noise);
            if (p_.quantised()) {
              read_codes(kv.k, token, true, noise);
              read_codes(kv.v, token, false, noise);
            }
          }
        }
        for (const size_t r : checked_rows(c_, moment)) attend(moment, s, moment.rows[r], cache, noise, step);
      }
      steps.push_back(std::move(step));
    }
    return steps;
  }

 private:
  struct Projected {
    std::vector<double> k, v;
  };

  [[nodiscard]] std::vector<double> alibi_slopes() const {
    if (p_.alibi != Alibi::standard) return widen(inputs_.weights.alibi_slopes);
    int64_t n = 1;
    while (2 * n <= p_.query_heads) n *= 2;
    std::vector<double> slopes;
    for (int64_t h = 0; h < p_.query_heads; ++h) {
      const int64_t numerator = h < n ? 8 * (h + 1) : 4 * (2 * (h - n) + 1);
      slopes.push_back(portable_exp(-0.6931471805599453 * static_cast<double>(numerator) / static_cast<double>(n)));
    }
    return slopes;
  }

  static std::vector<double> given(const Dense<float>& tensor, int64_t token, int64_t width) {
    return {tensor.data.begin() + token * width, tensor.data.begin() + (token + 1) * width};
  }

  std::vector<double> project(const Dense<float>& x, int64_t token, const std::vector<double>& w,
                              const std::vector<double>& bias, Noise& noise) const {
    const auto width = static_cast<size_t>(p_.d_model);
    const std::vector<double> row(x.data.begin() + token * p_.d_model, x.data.begin() + (token + 1) * p_.d_model);
    std::vector<double> out(w.size() / width);
    for (size_t o = 0; o < out.size(); ++o) {
      out[o] = noise.dot(w.data() + o * width, row.data(), width, bias.empty() ? 0 : bias[o]);
    }
    return out;
  }

  /// Storage in 16 bits, head by head. Magnitudes that repeat are rounded alike.
  void store_heads(std::vector<double>& x, int64_t width, Noise& noise) {
    for (size_t start = 0; start < x.size(); start += static_cast<size_t>(width)) {
      const auto head = std::span(x).subspan(start, static_cast<size_t>(width));
      const double alike = remember([&] { return repeated(p_.dtype, head); });
      const double common = info(p_.dtype).unit_roundoff * alike * kUniform * noise.draw();
      for (double& value : head) {
        if (remember([&] { return is_exact(value) ? 1 : 0; }) == 0)
          value = noise.stored(value, info(p_.dtype)) + value * common;
      }
    }
  }
  /// Whether the dtype holds x.
  [[nodiscard]] bool is_exact(double x) const {
    return static_cast<double>(round_to(p_.dtype, static_cast<float>(x))) == x;
  }

  /// N1 and R1 on all heads of a query or a key, and the roundings to 16 bits before, between and after.
  void transform(std::vector<double>& x, const std::vector<double>& weight, int64_t angle, Noise& noise) {
    const auto width = static_cast<size_t>(p_.qk_head_dim);
    if (half_) store_heads(x, p_.qk_head_dim, noise);
    if (p_.norm_epsilon > 0) {
      for (size_t start = 0; start < x.size(); start += width) {
        const double mean = noise.dot(x.data() + start, x.data() + start, width, 0) / static_cast<double>(width);
        const double factor = noise.rounded(1 / std::sqrt(noise.rounded(mean + p_.norm_epsilon, 2)), 4);
        for (size_t d = start; d < start + width; ++d) x[d] = noise.rounded(x[d] * factor);
      }
      if (half_) store_heads(x, p_.qk_head_dim, noise);
      for (size_t i = 0; i < x.size(); ++i) x[i] = noise.rounded(x[i] * weight[i % width]);
      if (half_) store_heads(x, p_.qk_head_dim, noise);
    }
    if (!p_.rope) return;
    const Turn& turn = rope_.turn(angle);
    for (size_t c = 0; c < rope_.pairs(); ++c) {
      const double size = std::fabs(turn.angle[c]);
      const double off = turn.angle[c] * rope_.frequency_error()[c] * frequency_noise_[c] +
                         kUnit * (size + 2) * kUniform * noise.draw();
      const double cos = noise.rounded(turn.cosine[c] - turn.sine[c] * off, 2);
      const double sin = noise.rounded(turn.sine[c] + turn.cosine[c] * off, 2);
      const auto [one, other] = rope_.channels(c);
      for (size_t start = 0; start < x.size(); start += width) {
        const double a = x[start + one], b = x[start + other];
        x[start + one] = noise.rounded(noise.rounded(a * cos) - noise.rounded(b * sin));
        x[start + other] = noise.rounded(noise.rounded(a * sin) + noise.rounded(b * cos));
      }
    }
    if (half_) store_heads(x, p_.qk_head_dim, noise);
  }

  /// Q1: the codes are those of the run without noise, for a case whose codes could differ is refused.
  void read_codes(std::vector<double>& x, const Token& token, bool keys, Noise& noise) {
    auto& codes = codes_[{token.origin, token.serial, keys}];
    const auto heads = static_cast<size_t>(p_.kv_heads);
    const size_t width = x.size() / heads;
    const Dense<float>& scales = keys ? inputs_.key_scale : inputs_.value_scale;
    if (codes.empty()) {
      for (size_t h = 0; h < heads; ++h) {
        double scale = 0;
        if (p_.kv_scale == KvScale::token) {
          for (size_t d = 0; d < width; ++d) scale = std::max(scale, std::fabs(x[h * width + d]));
          scale /= info(p_.cache_dtype).largest;
        } else {
          scale = static_cast<double>(scales.data[p_.kv_scale == KvScale::head ? h : 0]);
        }
        for (size_t d = 0; d < width; ++d) {
          codes.push_back(scale == 0 ? 0 : code_of(p_.cache_dtype, x[h * width + d], scale) * scale);
        }
      }
    }
    for (size_t h = 0; h < heads; ++h) {
      const double scale = 1 + (read_error(p_) - kUnit) * kUniform * noise.draw();
      for (size_t d = h * width; d < (h + 1) * width; ++d) x[d] = noise.rounded(codes[d] * scale);
    }
    if (half_) store_heads(x, static_cast<int64_t>(width), noise);
  }

  /// The keys of a row that a mask lets pass, and what it adds to their logits.
  [[nodiscard]] std::vector<std::pair<int64_t, double>> visible(size_t s, const Row& row, size_t head) const {
    std::vector<std::pair<int64_t, double>> keys;
    const Dense<float>& mask = inputs_.steps[s].mask;
    const auto index = [&](size_t axis, int64_t i) { return mask.shape[axis] == 1 ? 0 : i; };
    for (int64_t j = row.begin; j < row.end; ++j) {
      double added = 0;
      if (p_.mask != MaskKind::none) {
        const int64_t line =
            (index(0, row.sequence) * mask.shape[1] + index(1, static_cast<int64_t>(head))) * mask.shape[2] +
            index(2, row.index);
        added = static_cast<double>(mask.data[static_cast<size_t>(line * mask.shape[3] + j)]);
        if (p_.mask == MaskKind::boolean ? added == 0 : std::isinf(added)) continue;
        if (p_.mask == MaskKind::boolean) added = 0;
      }
      keys.emplace_back(j, added);
    }
    return keys;
  }

  void attend(const Moment& moment, size_t s, const Row& row,
              const std::map<std::pair<int64_t, int64_t>, Projected>& cache, Noise& noise, LayerSpread::Step& step) {
    const auto dk = static_cast<size_t>(p_.qk_head_dim);
    const auto dv = static_cast<size_t>(p_.v_head_dim);
    auto q = project(inputs_.steps[s].query, row.sequence * moment.max_queries + row.index, wq_, bq_, noise);
    transform(q, q_norm_, row.angle, noise);
    std::vector<const Projected*> all;
    for (int64_t j = row.begin; j < row.end; ++j) {
      const Token& token = moment.tokens[static_cast<size_t>(row.sequence)][static_cast<size_t>(j)];
      all.push_back(&cache.at({token.origin, token.serial}));
    }
    std::vector<double> heads(static_cast<size_t>(p_.query_heads) * dv);
    for (size_t h = 0; h < static_cast<size_t>(p_.query_heads); ++h) {
      const size_t kv = h / static_cast<size_t>(p_.group());
      const double sink = p_.sinks ? static_cast<double>(inputs_.weights.sinks.data[h]) : -INFINITY;
      const auto positions = visible(s, row, h);
      std::vector<const Projected*> keys;
      for (const auto& [j, added] : positions) keys.push_back(all[static_cast<size_t>(j - row.begin)]);
      if (keys.empty()) {
        step.lse.push_back(sink);
        continue;
      }
      std::vector<double> weight(keys.size());
      double largest = sink;
      for (size_t j = 0; j < keys.size(); ++j) {
        weight[j] = noise.rounded(noise.dot(q.data() + h * dk, keys[j]->k.data() + kv * dk, dk, 0) * scale_, 2);
        if (p_.softcap > 0) {
          // A tanh that is computed through exp has an error that is absolute, not relative.
          weight[j] = noise.rounded(p_.softcap * portable_tanh(noise.rounded(weight[j] / p_.softcap)), 3) +
                      kUnit * kUniform * 4 * p_.softcap * noise.draw();
        }
        if (!slopes_.empty()) {
          const auto distance = static_cast<double>(std::llabs(row.position - positions[j].first));
          weight[j] = noise.rounded(weight[j] - noise.rounded(slopes_[h] * distance, 2));
        }
        if (p_.mask == MaskKind::additive) {
          const double added = positions[j].second;
          weight[j] = noise.rounded(weight[j] + noise.rounded(added, 2));
        }
        largest = std::max(largest, weight[j]);
      }
      // The argument of exp is rounded by the subtraction, and once more where exp2 is used; exp itself errs by an ulp.
      const auto exponential = [&](double logit) {
        return noise.rounded(portable_exp(logit - largest + kUnit * std::fabs(logit - largest) * noise.draw()), 2);
      };
      double sum = p_.sinks ? exponential(noise.rounded(sink)) : 0;
      double variance = 0;
      for (double& w : weight) {
        w = exponential(w);
        sum += w;
        variance += sum * sum;
      }
      sum += kUnit * std::sqrt(variance / 3) * noise.draw();
      step.lse.push_back(noise.rounded(largest + noise.rounded(portable_log(sum), 2)));
      // The weights may be stored in 16 bits, after they were summed.
      const DTypeInfo& storage = info(p_.dtype);
      double common = 1;
      if (half_) {
        const double alike = remember([&] { return repeated(p_.dtype, weight); });
        common += storage.unit_roundoff * alike * kUniform * noise.draw();
        for (double& w : weight) {
          w += (storage.unit_roundoff * w + storage.half_subnormal * sum) * kUniform * noise.draw();
        }
      }
      for (size_t d = 0; d < dv; ++d) {
        double total = 0;
        double rounding = 0;
        for (size_t j = 0; j < keys.size(); ++j) {
          const double product = weight[j] * keys[j]->v[kv * dv + d];
          total += product;
          rounding += product * product + total * total;
        }
        double& out = heads[h * dv + d];
        out = noise.rounded((total + kUnit * std::sqrt(rounding / 3) * noise.draw()) / sum, 2);
        if (half_) out = noise.stored(out * common, storage);
      }
    }
    for (size_t o = 0; o < static_cast<size_t>(p_.d_model); ++o) {
      step.output.push_back(
          noise.dot(wo_.data() + o * heads.size(), heads.data(), heads.size(), bo_.empty() ? 0 : bo_[o]));
    }
  }

  /// Noise would hide that numbers are equal, or exact: `ask` is asked in the run without, and the others get its
  /// answers.
  template <typename Ask>
  double remember(const Ask& ask) {
    if (next_answer_ == answers_.size()) answers_.push_back(ask());
    return answers_[next_answer_++];
  }

  const Case& c_;
  const Problem& p_;
  const Inputs& inputs_;
  std::vector<double> wq_, wk_, wv_, wo_, bq_, bk_, bv_, bo_;
  double scale_;
  std::vector<double> slopes_, q_norm_, k_norm_;
  bool half_;
  RopeTable rope_;
  std::vector<double> frequency_noise_;
  std::map<std::tuple<int64_t, int64_t, bool>, std::vector<double>> codes_;  ///< As they are read, by (origin, serial).
  std::vector<double> answers_;
  size_t next_answer_ = 0;
};

}  // namespace

LayerSpread layer_spread(const Case& c, const Timeline& timeline, const Inputs& inputs) {
  NoisyLayer layer(c, inputs);
  const auto exact = layer.run(timeline, 0);
  LayerSpread spread;
  for (const auto& step : exact) {
    spread.steps.push_back({std::vector<double>(step.output.size()), std::vector<double>(step.lse.size())});
  }
  const auto add = [](std::vector<double>& sums, const std::vector<double>& run, const std::vector<double>& centre) {
    for (size_t i = 0; i < sums.size(); ++i) {
      const double off = run[i] == centre[i] ? 0 : run[i] - centre[i];  // equal infinities are no error
      sums[i] += off * off;
    }
  };
  for (int run = 1; run <= kRuns; ++run) {
    const auto noisy = layer.run(timeline, static_cast<uint64_t>(run) * 0xD1B54A32D192ED03);
    for (size_t s = 0; s < exact.size(); ++s) {
      add(spread.steps[s].output, noisy[s].output, exact[s].output);
      add(spread.steps[s].lse, noisy[s].lse, exact[s].lse);
    }
  }
  for (auto& step : spread.steps) {
    for (auto* values : {&step.output, &step.lse}) {
      for (double& value : *values) value = std::sqrt(value / kRuns);
    }
  }
  return spread;
}

}  // namespace attest
