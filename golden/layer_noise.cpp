// SPDX-License-Identifier: Apache-2.0
#include "golden/layer_noise.h"

#include <algorithm>
#include <cmath>
#include <map>

namespace attest {
namespace {

constexpr int kRuns = 128;
constexpr double kUnit = 0x1p-24;

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
        slopes_(alibi_slopes()) {}

  std::vector<LayerSpread::Step> run(const Timeline& timeline, uint64_t seed) {
    Noise noise(seed);
    std::map<std::pair<int64_t, int64_t>, Projected> cache;
    std::vector<LayerSpread::Step> steps;
    for (size_t s = 0; s < timeline.size(); ++s) {
      const Moment& moment = timeline[s];
      LayerSpread::Step step;
      if (!moment.rows.empty()) {
        for (const auto& sequence : moment.incoming) {
          for (const Token& token : sequence) {
            const int64_t at = token.origin * moment.max_keys + token.index;
            cache[{token.origin, token.serial}] = {project(inputs_.steps[s].key, at, wk_, bk_, noise),
                                                   project(inputs_.steps[s].value, at, wv_, bv_, noise)};
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

  void attend(const Moment& moment, size_t s, const Row& row,
              const std::map<std::pair<int64_t, int64_t>, Projected>& cache, Noise& noise, LayerSpread::Step& step) {
    const auto dk = static_cast<size_t>(p_.qk_head_dim);
    const auto dv = static_cast<size_t>(p_.v_head_dim);
    const auto q = project(inputs_.steps[s].query, row.sequence * moment.max_queries + row.index, wq_, bq_, noise);
    std::vector<const Projected*> keys;
    for (int64_t j = row.begin; j < row.end; ++j) {
      const Token& token = moment.tokens[static_cast<size_t>(row.sequence)][static_cast<size_t>(j)];
      keys.push_back(&cache.at({token.origin, token.serial}));
    }
    std::vector<double> heads(static_cast<size_t>(p_.query_heads) * dv);
    for (size_t h = 0; h < static_cast<size_t>(p_.query_heads); ++h) {
      const size_t kv = h / static_cast<size_t>(p_.group());
      const double sink = p_.sinks ? static_cast<double>(inputs_.weights.sinks.data[h]) : -INFINITY;
      if (keys.empty()) {
        step.lse.push_back(sink);
        continue;
      }
      std::vector<double> weight(keys.size());
      double largest = sink;
      for (size_t j = 0; j < keys.size(); ++j) {
        weight[j] = noise.rounded(noise.dot(q.data() + h * dk, keys[j]->k.data() + kv * dk, dk, 0) * scale_, 2);
        if (p_.softcap > 0)
          weight[j] = noise.rounded(p_.softcap * portable_tanh(noise.rounded(weight[j] / p_.softcap)), 3);
        if (!slopes_.empty()) {
          const auto distance = static_cast<double>(std::llabs(row.position - row.begin - static_cast<int64_t>(j)));
          weight[j] = noise.rounded(weight[j] - noise.rounded(slopes_[h] * distance, 2));
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
      for (size_t d = 0; d < dv; ++d) {
        double total = 0;
        double rounding = 0;
        for (size_t j = 0; j < keys.size(); ++j) {
          const double product = weight[j] * keys[j]->v[kv * dv + d];
          total += product;
          rounding += product * product + total * total;
        }
        heads[h * dv + d] = noise.rounded((total + kUnit * std::sqrt(rounding / 3) * noise.draw()) / sum, 2);
      }
    }
    for (size_t o = 0; o < static_cast<size_t>(p_.d_model); ++o) {
      step.output.push_back(
          noise.dot(wo_.data() + o * heads.size(), heads.data(), heads.size(), bo_.empty() ? 0 : bo_[o]));
    }
  }

  const Case& c_;
  const Problem& p_;
  const Inputs& inputs_;
  std::vector<double> wq_, wk_, wv_, wo_, bq_, bk_, bv_, bo_;
  double scale_;
  std::vector<double> slopes_;
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
