// SPDX-License-Identifier: Apache-2.0
#include "bench/statistics.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <random>

namespace attest::bench {
namespace {

/// The smallest value that at least this share of the sorted values does not exceed (nearest rank: a value that was
/// measured, never one between two).
double quantile(const std::vector<double>& sorted, double share) {
  const auto rank = static_cast<size_t>(std::ceil(share * static_cast<double>(sorted.size())));
  return sorted[std::min(sorted.size() - 1, rank == 0 ? 0 : rank - 1)];
}

/// How many of n sorted values may lie below an interval of their median that misses it on that side with a chance of
/// at most `tail`.
size_t outside_of_interval(size_t n, double tail) {
  double chance = std::ldexp(1, -static_cast<int>(n));  // that k values lie below the median
  double below = chance;
  size_t k = 0;
  while (k < n / 2) {
    chance *= static_cast<double>(n - k) / static_cast<double>(k + 1);
    below += chance;
    if (below > tail) break;
    ++k;
  }
  return k;
}

}  // namespace

double median(std::vector<double> values) {
  if (values.empty()) return std::numeric_limits<double>::quiet_NaN();
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  if (values.size() % 2 == 1) return *middle;
  return (*middle + *std::max_element(values.begin(), middle)) / 2;
}

Summary summarise(std::vector<double> samples) {
  if (samples.empty()) return {};
  std::sort(samples.begin(), samples.end());
  return {.median = median(samples),
          .p95 = quantile(samples, 0.95),
          .p99 = quantile(samples, 0.99),
          .min = samples.front(),
          .n = static_cast<int64_t>(samples.size())};
}

Middle middle_of(std::vector<double> values, double confidence) {
  if (values.empty()) return {};
  std::sort(values.begin(), values.end());
  const size_t outside = outside_of_interval(values.size(), (1 - confidence) / 2);
  return {median(values), values[outside], values[values.size() - 1 - outside]};
}

std::string_view name(Verdict verdict) {
  static constexpr std::array<std::string_view, 5> kNames{"SAME", "FASTER", "SLOWER", "AMBIGUOUS", "NOT_MEASURED"};
  return kNames[static_cast<size_t>(verdict)];
}

int exit_code(Verdict verdict) {
  static constexpr std::array<int, 5> kCodes{0, 3, 1, 4, 5};
  return kCodes[static_cast<size_t>(verdict)];
}

Verdict worst(const std::vector<Verdict>& verdicts) {
  for (const Verdict one : {Verdict::slower, Verdict::not_measured, Verdict::ambiguous, Verdict::faster}) {
    if (std::find(verdicts.begin(), verdicts.end(), one) != verdicts.end()) return one;
  }
  return verdicts.empty() ? Verdict::not_measured : Verdict::same;
}

Comparison compare(const std::vector<double>& baseline, const std::vector<double>& candidate, double threshold,
                   double confidence) {
  Comparison result;
  std::vector<double> ratios;
  for (size_t i = 0; i < std::min(baseline.size(), candidate.size()); ++i) {
    const double ratio = std::log(candidate[i] / baseline[i]);
    if (std::isfinite(ratio)) ratios.push_back(ratio);
  }
  result.pairs = static_cast<int64_t>(ratios.size());
  if (ratios.size() < kLeastPairs) return result;
  const Middle middle = middle_of(ratios, confidence);
  result.change = middle.median;

  // Some dozens of resamples in the tail beyond the interval; fewer where that takes more than 100000 of them, which is
  // beyond a confidence of 99.9 %.
  const double tail = (1 - confidence) / 2;
  const auto resamples = static_cast<size_t>(std::clamp(50 / tail, 2000.0, 100000.0));
  std::mt19937_64 random(20240229);
  std::vector<double> medians(resamples), draw(ratios.size());
  for (double& one : medians) {
    // Not uniform_int_distribution: its numbers differ from library to library, and with them the verdicts.
    for (double& ratio : draw) ratio = ratios[random() % ratios.size()];
    one = median(draw);
  }
  std::sort(medians.begin(), medians.end());
  // The bootstrap's interval of a median is too narrow for few pairs: never narrower than that of order statistics.
  result.low = std::min(quantile(medians, tail), middle.low);
  result.high = std::max(quantile(medians, 1 - tail), middle.high);

  const double least = std::log1p(threshold);
  if (std::ldexp(2, -static_cast<int>(ratios.size())) > 1 - confidence) {
    result.verdict = Verdict::ambiguous;
  } else if (result.low > -least && result.high < least) {
    result.verdict = Verdict::same;
  } else if (result.high < 0 && result.change <= -least) {
    result.verdict = Verdict::faster;
  } else if (result.low > 0 && result.change >= least) {
    result.verdict = Verdict::slower;
  } else {
    result.verdict = Verdict::ambiguous;
  }
  return result;
}

double smallest_detectable(const Comparison& same_code) {
  if (same_code.verdict == Verdict::not_measured) return std::numeric_limits<double>::infinity();
  return std::expm1(std::max(std::abs(same_code.low), std::abs(same_code.high)));
}

}  // namespace attest::bench
