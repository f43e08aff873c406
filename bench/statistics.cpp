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
  result.change = median(ratios);

  // Enough resamples that the tail beyond the interval holds some dozens of them.
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
  result.low = quantile(medians, tail);
  result.high = quantile(medians, 1 - tail);

  const double least = std::log1p(threshold);
  if (result.low > -least && result.high < least) {
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
