// SPDX-License-Identifier: Apache-2.0
// Results and comparisons as tables for a terminal.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "bench/results.h"
#include "bench/statistics.h"

namespace attest::bench {

/// Three digits that matter, and all before the point: "0.812", "81.2", "8120"; "-" for 0.
std::string digits(double value);

/// A larger share of the ceiling is no feat: something else used the machine while the ceiling was measured.
inline constexpr double kMostShare = 1.2;

/// "85 % (84-88) of read", with its interval, "of FMA", and of a device "of copy", "of product"; or that there is no
/// ceiling, or a wrong one.
std::string share_of_ceiling(const Result& result);

/// One line a series, grouped by shape; a backend without a number has its reason.
std::string results_table(const Results& results);

struct Compared {
  std::string name;
  Comparison comparison;
};
/// Pairs every series of `candidate` with the one of the same name in `baseline`, round by round. With backends given,
/// only series of that backend on each side, paired by shape and temperature.
std::vector<Compared> compare_results(const Results& baseline, const Results& candidate, double threshold,
                                      const std::string& baseline_backend = "",
                                      const std::string& candidate_backend = "");
std::string comparison_table(const std::vector<Compared>& list);
/// The run's: the worst of all.
Verdict verdict_of(const std::vector<Compared>& list);

}  // namespace attest::bench
