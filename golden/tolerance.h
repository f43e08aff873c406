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
  std::span<const double> logit{};      ///< s_j: what the softmax sees, after cap, bias and mask.
  std::span<const double> capped{};     ///< What the cap made of the dot product; empty without one.
  std::span<const double> bias{};       ///< What ALiBi added; or empty.
  std::span<const double> mask{};       ///< What an additive mask added; or empty.
  std::span<const double> dot{};        ///< scale * q.k_j
  std::span<const double> magnitude{};  ///< A_j = scale * sum_d |q_d k_jd|
  std::span<const double> blur{};       ///< x_j: what is wrong with dot because of q and k_j; or empty.
  std::span<const double> weight{};     ///< p_j
  double lse = 0;                       ///< Of the row, the sink included.
  double largest = 0;                   ///< m = max_j s_j, the sink included
  double softcap = 0;                   ///< 0: none.
  double sink_logit = 0;                ///< Of a row with a sink ...
  double sink_weight = 0;               ///< ... and the share of the sum that it takes; 0 without one.
  int64_t head_dim = 0;
  double read_error = 0;       ///< Values read from codes: relative, of f32 arithmetic ...
  bool stores_values = false;  ///< ... and whether they may be kept in 16 bits.
};

class RowTolerance {
 public:
  RowTolerance(const RowTerms& terms, DType dtype);

  /// Allowed error of output channel with values v_j (element j at v[j * stride]) and golden o.
  [[nodiscard]] double output(const double* v, size_t stride, double o) const;
  /// Allowed error of the row's log-sum-exp; `log_sum` is ln(sum_j exp(s_j - m)).
  [[nodiscard]] double lse(double lse, double log_sum) const;

 private:
  void move(const RowTerms& terms);
  [[nodiscard]] double stored_values(const double* v, size_t stride, double absolute) const;

  std::vector<double> weight_, logit_error_;  ///< p_j and epsilon_j; a large one as what it does to the weight.
  bool small_ = true;                         ///< Errors of f32 alone, which are so small that they add up linearly;
  std::vector<double> moved_;                 ///< else the share of the softmax that each error may move,
  double lse_moved_ = 0;                      ///< and what all of them may do to the LSE.
  double sink_error_ = 0;                     ///< p_sink * epsilon_sink
  std::vector<int64_t> group_;                ///< Keys of exactly equal logits share a number.
  double largest_, growth_, unit_, half_subnormal_, read_error_;
  DType dtype_;
  bool stores_weights_, stores_values_;  ///< P, or values read from codes, may be kept in the output's 16-bit dtype.
};

/// How a sum of n terms may accumulate error, in units of u: g0 of spec/tolerance.md.
double sum_growth(int64_t n);

/// The share of the magnitudes that are not 0 which, stored in `dtype`, repeat another: their rounding errors are
/// alike.
double repeated(DType dtype, std::span<const double> x);

/// Rounds up to f32.
float round_up(double x);

/// What an LSE may be off because f32 cannot hold it in units of log 2: half of it, where that is so, else 0. Only rows
/// whose keys all carry a mask near the lowest number get there.
double beyond_binary(double lse);

}  // namespace attest
