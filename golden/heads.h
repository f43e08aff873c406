// SPDX-License-Identifier: Apache-2.0
// Query, key and value heads on their way to the dot product: QK-norm (N1), RoPE (R1) and codes (Q1, Q2), in balls,
// and what a correct backend may lose on that way (spec/tolerance.md).
#pragma once

#include <span>
#include <vector>

#include "cases/problem.h"
#include "golden/ball.h"
#include "golden/rope.h"

namespace attest {

/// How far the vector of one head may be off when it enters a dot product, by the ways in which such errors add up.
struct Blur {
  double common = 0;                            ///< Relative, the same for all channels.
  double each = 0;                              ///< Relative, of each channel on its own.
  const std::vector<double>* angles = nullptr;  ///< Absolute errors of RoPE's angles, by pair.
  double stored_pairs = 0, stored_rest = 0;     ///< Roundings to 16 bits: of the channels that turn, and of others ...
  double alike = 0;                             ///< ... and of each the share that errs alike: repeated magnitudes.
};

/// All heads of one token, or of one query, side by side.
struct Heads {
  Balls x;
  std::vector<double> terms;  ///< Sizes of what was summed to each element.
  std::vector<double> error;  ///< Absolute: what a backend's elements may be off by.
  std::vector<Blur> blur;     ///< Per head; empty: the vectors enter exactly.
};

/// Elements that are copies of inputs.
Heads exact_heads(std::span<const float> values);

/// What a rounding of x to a 16-bit dtype adds to an error; nothing to a number that the dtype holds.
double storage_error(DType dtype, double x);

/// Norm and RoPE, as the problem has them; of the queries or of the keys.
class HeadTransform {
 public:
  /// `weight` is the norm's; `rope` may be empty and outlives this.
  HeadTransform(const Problem& problem, Balls weight, RopeTable& rope, slong precision);

  void apply(Heads& heads, int64_t angle) const;

 private:
  void norm(Heads& heads, size_t head) const;
  void turn(Heads& heads, size_t head, const Turn& turn) const;

  const Problem& p_;
  Balls weight_, epsilon_;
  RopeTable& rope_;
  slong precision_;
};

/// An error of q.k_j, absolute and without the scale, that comes from what is wrong with q and k_j before.
class DotBlur {
 public:
  explicit DotBlur(const Problem& problem, const RopeTable& rope);
  [[nodiscard]] double operator()(const double* q, const Blur& of_q, const double* k, const Blur& of_k) const;

 private:
  const RopeTable& rope_;
  size_t width_;
  double unit_, half_subnormal_;  ///< Of the storage; 0 for f32.
};

/// What a backend that reads codes with f32 arithmetic may lose, relative to each product and to the sum.
double read_error(const Problem& problem);
/// The blur of a key that is read from codes; `numbers` are those of one head.
Blur code_blur(const Problem& problem, std::span<const double> numbers);

}  // namespace attest
