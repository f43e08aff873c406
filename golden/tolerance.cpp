// SPDX-License-Identifier: Apache-2.0
#include "golden/tolerance.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

#include "cases/storage.h"

namespace attest {
namespace {

constexpr double kUnit = 0x1p-24;  // accumulation is f32 whatever the storage
constexpr double kSmallestNormal = 0x1p-126;
constexpr double kSpread = 4;  // lambda: standard deviations of a random walk

/// At least, or at most, e^x: a power of two.
double exp_above(double x) {
  return std::ldexp(1.0, static_cast<int>(std::ceil(std::clamp(x, -1400.0, 1400.0) * 1.4426951)));
}
double exp_below(double x) {
  return std::ldexp(1.0, static_cast<int>(std::floor(std::clamp(x, -1400.0, 1400.0) * 1.4426951)));
}

}  // namespace

double sum_growth(int64_t n) {
  const auto count = static_cast<double>(n);
  return std::min(count, std::max(kSpread * std::sqrt(count), count / 8));
}

double repeated(DType dtype, std::span<const double> x) {
  std::vector<float> stored;
  for (const double value : x) {
    if (value != 0) stored.push_back(std::fabs(round_to(dtype, static_cast<float>(value))));
  }
  if (stored.empty()) return 0;
  std::sort(stored.begin(), stored.end());
  const auto distinct = std::unique(stored.begin(), stored.end()) - stored.begin();
  return distinct == 1 ? 1 : 1 - static_cast<double>(distinct) / static_cast<double>(stored.size());
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
      read_error_(terms.read_error),
      dtype_(dtype),
      stores_weights_(dtype != DType::f32),
      stores_values_(terms.stores_values) {
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
      const double saturation = terms.capped[j] / terms.softcap;
      slope = 1 - saturation * saturation;
      capping = slope * 2 * std::fabs(terms.dot[j]) + 4 * terms.softcap;
    }
    const double added = 4 * std::fabs(bias) + (terms.mask.empty() ? 0 : 4 * std::fabs(terms.mask[j]));
    const double error = kUnit * (slope * (dot_growth * terms.magnitude[j] + 2 * std::fabs(terms.dot[j])) + capping +
                                  added + 2 * std::fabs(s) + 3 * std::fabs(s - terms.largest) + 4);
    const double blur = terms.blur.empty() ? 0 : terms.blur[j];
    // Far off, the cap may flatten less: its slope changes by e^(2x / cap) at most.
    const double bend = terms.softcap > 0 ? 2 * blur / terms.softcap : 0;
    const double blurred = blur * std::min(1.0, slope * (bend <= 0.5 ? 1 + 1.5 * bend : exp_above(bend)));
    logit_error_.push_back(error + blurred);
    small_ = small_ && blur == 0 && error <= 0.5;
  }
  sink_error_ = kUnit * (2 * std::fabs(terms.sink_logit) + 3 * std::fabs(terms.sink_logit - terms.largest) + 4);
  if (!small_) move(terms);
  sink_error_ *= terms.sink_weight;
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

/// What weights may become if logits err by more than a little. With errors d_j, a weight p_j becomes p_j e^d_j / Z,
/// and the output moves by sum p_j (e^d_j - 1) (v_j - o) / Z, with Z = sum p_k e^d_k.
void RowTolerance::move(const RowTerms& terms) {
  const size_t n = weight_.size();
  double sum = terms.sink_weight * (1 - std::min(sink_error_, 1.0));  // at most Z
  double grown = 0, highest = terms.sink_weight > 0 ? terms.sink_logit : -std::numeric_limits<double>::infinity();
  double safest = highest;
  for (size_t j = 0; j < n; ++j) {
    const double error = logit_error_[j];
    sum += weight_[j] * (error <= 0.5 ? 1 - error : exp_below(-error));
    grown += error <= 0.5 ? weight_[j] * error * (1 + error) : exp_above(terms.logit[j] - terms.lse + error);
    highest = std::max(highest, terms.logit[j] + error);
    safest = std::max(safest, terms.logit[j] - error);
  }
  sum = std::max(sum, 0x1p-900);
  for (size_t j = 0; j < n; ++j) {
    const double error = logit_error_[j];
    const double most = std::min(1.0, exp_above(terms.logit[j] - terms.lse + error) / sum);
    moved_.push_back(error <= 0.5 ? weight_[j] * error * (1 + error) / sum : std::max(most, weight_[j] / sum));
  }
  sink_error_ /= sum;
  // ln Z lies between these.
  const double up = std::min(grown, highest - terms.lse + 0.7 * std::ilogb(2 * static_cast<double>(n + 1)));
  const double down = std::min((1 - sum) / sum, terms.lse - safest);
  lse_moved_ = std::max(up, down);
}

double RowTolerance::output(const double* v, size_t stride, double o) const {
  double absolute = 0;                              // W
  double from_logits = sink_error_ * std::fabs(o);  // the sink is a key whose value is 0
  double reach = 0;
  double furthest = sink_error_ > 0 ? std::fabs(o) : 0;  // no weights whatever move a mean beyond its values
  for (size_t j = 0; j < weight_.size(); ++j) {
    const double off = std::fabs(v[j * stride] - o);
    reach += std::fabs(v[j * stride]);
    absolute += weight_[j] * std::fabs(v[j * stride]);
    from_logits += small_ ? weight_[j] * off * logit_error_[j] : moved_[j] * off;
    if ((small_ ? weight_[j] : moved_[j]) > 0) furthest = std::max(furthest, off);
  }
  from_logits = std::min(from_logits, furthest);
  if (!small_ && stores_weights_) from_logits *= 1 + 8 * unit_;  // what was moved is rounded as the rest is
  double from_weights = kSmallestNormal * reach;                 // weights below it may be flushed to zero
  if (stores_weights_) {
    std::vector<double> sums(group_.empty() ? 0
                                            : static_cast<size_t>(*std::max_element(group_.begin(), group_.end())) + 1);
    double squares = 0, apart = 0;  // V2; Q squared, if equal weights are rounded apart ...
    for (size_t j = 0; j < weight_.size(); ++j) {
      const double part = weight_[j] * v[j * stride];
      sums[static_cast<size_t>(group_[j])] += part;
      apart += part * part;
      squares += v[j * stride] * v[j * stride];
    }
    double grouped = 0;  // ... and if they are rounded alike
    for (const double sum : sums) grouped += sum * sum;
    grouped = std::max(grouped, apart);
    const auto n = static_cast<double>(weight_.size());
    from_weights += std::min(unit_ * (std::fabs(o) + kSpread * std::sqrt(grouped)), unit_ * (absolute + std::fabs(o))) +
                    half_subnormal_ * std::min(kSpread * std::sqrt(squares), std::sqrt(n * squares));
  }
  const double from_values = read_error_ * absolute + (stores_values_ ? stored_values(v, stride, absolute) : 0);
  const double from_sums = (growth_ + 8) * kUnit * (absolute + std::fabs(o));
  return unit_ * std::fabs(o) + half_subnormal_ + from_weights + from_values + from_logits + from_sums;
}

double RowTolerance::stored_values(const double* v, size_t stride, double absolute) const {
  // Values that are stored as the same number are rounded alike, whatever their weights.
  std::vector<std::pair<float, double>> parts;
  for (size_t j = 0; j < weight_.size(); ++j) {
    const double value = v[j * stride];
    parts.emplace_back(std::fabs(round_to(dtype_, static_cast<float>(value))), weight_[j] * value);
  }
  std::sort(parts.begin(), parts.end());
  double squares = 0;
  for (size_t first = 0; first < parts.size();) {
    double sum = 0;
    const float size = parts[first].first;
    for (; first < parts.size() && parts[first].first == size; ++first) sum += parts[first].second;
    squares += sum * sum;
  }
  return unit_ * std::min(kSpread * std::sqrt(squares), absolute) + half_subnormal_;
}

double RowTolerance::lse(double lse, double log_sum) const {
  double from_logits = sink_error_;
  for (size_t j = 0; j < weight_.size(); ++j) from_logits += weight_[j] * logit_error_[j];
  if (!small_) from_logits = sink_error_ + lse_moved_;
  return kUnit * std::fabs(lse) + from_logits + (growth_ + 8) * kUnit +
         2 * kUnit * (std::fabs(largest_) + std::fabs(log_sum)) + beyond_binary(lse);
}

double beyond_binary(double lse) {
  constexpr double kLog2E = 1.4426950408889634;
  return std::fabs(lse) * kLog2E > static_cast<double>(std::numeric_limits<float>::max()) ? std::fabs(lse) / 2 : 0;
}

}  // namespace attest
