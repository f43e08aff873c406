// SPDX-License-Identifier: Apache-2.0
// What happens to a query or key head between its projection and its use: QK-norm, then RoPE (clauses N1, R1 to R3).
#pragma once

#include <attest/backend.hpp>
#include <cstdint>
#include <vector>

#include "heads.h"

namespace attest::onednn {

class RopeNorm {
 public:
  /// It copies the weight, [Dk] or null for no norm.
  RopeNorm(const attest_problem& problem, const DLTensor* norm_weight);

  [[nodiscard]] bool does_anything() const { return !weight_.empty() || !frequency_.empty(); }

  /// In place on compact heads [token][head][Dk]; positions[t] is token t's, and read only for RoPE. It runs in the
  /// calling thread's OpenMP team size.
  void apply(float* data, std::int64_t tokens, std::int64_t heads, const std::vector<std::int64_t>& positions);

 private:
  void normalise(float* head) const;
  void angles(std::int64_t position, float* cosines, float* sines) const;
  void rotate(float* head, const float* cosines, const float* sines) const;

  std::int64_t width_;
  std::vector<float> weight_;  ///< Empty: no norm.
  double epsilon_;
  int style_;
  std::vector<double> frequency_;  ///< One a pair; empty: no RoPE.
  double magnitude_;
  Scratch angles_;
};

}  // namespace attest::onednn
