// SPDX-License-Identifier: Apache-2.0
#include "golden/tolerance.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace attest {
namespace {

constexpr double kUnit = 0x1p-24;  // accumulation is f32 whatever the storage
constexpr double kSmallestNormal = 0x1p-126;
constexpr double kSpread = 4;  // lambda: standard deviations of a random walk

}  // namespace

double sum_growth(int64_t n) {
  const auto count = static_cast<double>(n);
  return std::min(count, std::max(kSpread * std::sqrt(count), count / 8));
}

float round_up(double x) {
  auto rounded = static_cast<float>(x);
  if (static_cast<double>(rounded) < x) rounded = std::nextafter(rounded, std::numeric_limits<float>::infinity());
  return rounded;
}

RowTolerance::RowTolerance(const RowTerms& terms, DType dtype)
    : weight_(terms.weight.begin(), terms.weight.end()),
      largest_(terms.largest),
      growth_(sum_growth(static_cast<int64_t>(terms.logit.size()))),
      unit_(info(dtype).unit_roundoff),
      half_subnormal_(info(dtype).half_subnormal),
      stores_weights_(dtype != DType::f32) {
  const size_t n = terms.logit.size();
  const double dot_growth = sum_growth(terms.head_dim);
  for (size_t j = 0; j < n; ++j) {
    const double s = terms.logit[j];
    const double bias = terms.bias.empty() ? 0 : terms.bias[j];
    // The cap flattens what is wrong with the dot product, and adds the error of a tanh that may be absolute, not
    // relative, when it is computed through exp.
    double slope = 1;
    double capping = 0;
    if (terms.softcap > 0) {
      const double saturation = (s - bias) / terms.softcap;
      slope = 1 - saturation * saturation;
      capping = slope * 2 * std::fabs(terms.dot[j]) + 4 * terms.softcap;
    }
    logit_error_.push_back(kUnit * (slope * (dot_growth * terms.magnitude[j] + 2 * std::fabs(terms.dot[j])) + capping +
                                    4 * std::fabs(bias) + 2 * std::fabs(s) + 3 * std::fabs(s - terms.largest) + 4));
  }
  sink_error_ = terms.sink_weight * kUnit *
                (2 * std::fabs(terms.sink_logit) + 3 * std::fabs(terms.sink_logit - terms.largest) + 4);
  // Equal logits make rounding errors coherent: number the groups, and let the sums grow linearly if they dominate.
  std::vector<size_t> order(n);
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return terms.logit[a] < terms.logit[b]; });
  group_.resize(n);
  int64_t groups = 0;
  for (size_t k = 0; k < n; ++k) {
    if (k == 0 || terms.logit[order[k]] != terms.logit[order[k - 1]]) ++groups;
    group_[order[k]] = groups - 1;
  }
  const auto count = static_cast<double>(n);
  if (static_cast<double>(groups) < count / 2) {
    growth_ = std::max(std::min(count, kSpread * std::sqrt(count)), count / 2);
  }
}

double RowTolerance::output(const double* v, size_t stride, double o) const {
  double absolute = 0;                              // W
  double from_logits = sink_error_ * std::fabs(o);  // the sink is a key whose value is 0
  double reach = 0;
  for (size_t j = 0; j < weight_.size(); ++j) {
    reach += std::fabs(v[j * stride]);
    absolute += weight_[j] * std::fabs(v[j * stride]);
    from_logits += weight_[j] * std::fabs(v[j * stride] - o) * logit_error_[j];
  }
  double from_weights = kSmallestNormal * reach;  // weights below it may be flushed to zero
  if (stores_weights_) {
    std::vector<double> sums(group_.empty() ? 0
                                            : static_cast<size_t>(*std::max_element(group_.begin(), group_.end())) + 1);
    double squares = 0;  // V2
    for (size_t j = 0; j < weight_.size(); ++j) {
      sums[static_cast<size_t>(group_[j])] += weight_[j] * v[j * stride];
      squares += v[j * stride] * v[j * stride];
    }
    double grouped = 0;  // Q squared
    for (const double sum : sums) grouped += sum * sum;
    const auto n = static_cast<double>(weight_.size());
    from_weights += std::min(unit_ * (std::fabs(o) + kSpread * std::sqrt(grouped)), unit_ * (absolute + std::fabs(o))) +
                    half_subnormal_ * std::min(kSpread * std::sqrt(squares), std::sqrt(n * squares));
  }
  const double from_sums = (growth_ + 8) * kUnit * (absolute + std::fabs(o));
  return unit_ * std::fabs(o) + half_subnormal_ + from_weights + from_logits + from_sums;
}

double RowTolerance::lse(double lse, double log_sum) const {
  double from_logits = sink_error_;
  for (size_t j = 0; j < weight_.size(); ++j) from_logits += weight_[j] * logit_error_[j];
  return kUnit * std::fabs(lse) + from_logits + (growth_ + 8) * kUnit +
         2 * kUnit * (std::fabs(largest_) + std::fabs(log_sum));
}

}  // namespace attest
