// SPDX-License-Identifier: Apache-2.0
// RoPE's angles (clauses R1 to R3) as balls, and how far from them a backend that computes in f32 may be
// (spec/tolerance.md).
#pragma once

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "cases/problem.h"
#include "golden/ball.h"

namespace attest {

/// How one position turns: per pair of channels.
struct Turn {
  Balls cos, sin;                    ///< Times YaRN's attention factor.
  std::vector<double> cosine, sine;  ///< The same, rounded.
  std::vector<double> angle;         ///< t f_c
  std::vector<double> angle_error;   ///< What a backend's angle may be off by.
};

class RopeTable {
 public:
  /// Empty without RoPE. Throws if YaRN's ramp starts or ends so near a whole number that f32 could take another;
  /// `place` names it.
  RopeTable(const Rope& rope, slong precision, const std::string& place);

  [[nodiscard]] size_t pairs() const { return frequency_error_.size(); }
  /// The two channels of a pair (R1).
  [[nodiscard]] std::pair<size_t, size_t> channels(size_t pair) const {
    return style_ == RopeStyle::half ? std::pair(pair, pair + pairs()) : std::pair(2 * pair, 2 * pair + 1);
  }
  /// Of a position; computed once.
  const Turn& turn(int64_t position);

  [[nodiscard]] const Balls& frequencies() const { return frequency_; }
  /// Relative errors of frequencies and angles, as f32 gives them.
  [[nodiscard]] const std::vector<double>& frequency_error() const { return frequency_error_; }
  /// YaRN's attention factor; else 1.
  [[nodiscard]] double magnitude() const { return middle(magnitude_[0]); }

 private:
  void stretch(const Rope& rope, const Balls& log_base, const std::string& place);

  RopeStyle style_;
  slong precision_;
  Balls frequency_, magnitude_;
  std::vector<double> frequency_error_;
  std::map<int64_t, Turn> turns_;
};

}  // namespace attest
