// SPDX-License-Identifier: Apache-2.0
// The error that a correct backend may make, derived per element from the case's own data (spec/tolerance.md).
// Plain double arithmetic without library functions other than sqrt, so that every machine gets the same bits.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "cases/dtype.h"

namespace attest {

/// One attention row in the terms of spec/tolerance.md; spans run over its visible keys.
struct RowTerms {
  std::span<const double> logit;      ///< s_j: what the softmax sees, after cap and bias.
  std::span<const double> bias;       ///< What was added after the cap.
  std::span<const double> dot;        ///< scale * q.k_j
  std::span<const double> magnitude;  ///< A_j = scale * sum_d |q_d k_jd|
  std::span<const double> weight;     ///< p_j
  double largest = 0;                 ///< m = max_j s_j, the sink included
  double softcap = 0;                 ///< 0: none.
  double sink_logit = 0;              ///< Of a row with a sink ...
  double sink_weight = 0;             ///< ... and the share of the sum that it takes; 0 without one.
  int64_t head_dim = 0;
};

class RowTolerance {
 public:
  RowTolerance(const RowTerms& terms, DType dtype);

  /// Allowed error of output channel with values v_j (element j at v[j * stride]) and golden o.
  [[nodiscard]] double output(const double* v, size_t stride, double o) const;
  /// Allowed error of the row's log-sum-exp; `log_sum` is ln(sum_j exp(s_j - m)).
  [[nodiscard]] double lse(double lse, double log_sum) const;

 private:
  std::vector<double> weight_, logit_error_;  ///< p_j and epsilon_j
  double sink_error_ = 0;                     ///< p_sink * epsilon_sink
  std::vector<int64_t> group_;                ///< Keys of exactly equal logits share a number.
  double largest_, growth_, unit_, half_subnormal_;
  bool stores_weights_;  ///< P may be kept in the output's dtype (16-bit, class F).
};

/// How a sum of n terms may accumulate error, in units of u: g0 of spec/tolerance.md.
double sum_growth(int64_t n);

/// Rounds up to f32.
float round_up(double x);

}  // namespace attest
