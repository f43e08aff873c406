// SPDX-License-Identifier: Apache-2.0
// What samples of time say: order statistics of one series, and two series that were taken in turns compared. Pure
// arithmetic: no clock here.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

namespace attest::bench {

/// Never the mean: one preempted step in a thousand moves it, and no user ever sees it.
struct Summary {
  double median = 0, p95 = 0, p99 = 0, min = 0;
  int64_t n = 0;  ///< 0: nothing was measured, and the rest means nothing.
};
Summary summarise(std::vector<double> samples);

/// The middle of an odd number of values, halfway between the two of an even one. NaN for none.
double median(std::vector<double> values);

/// A median, and between which bounds it may lie.
struct Middle {
  double median = 0, low = 0, high = 0;
};
/// Of values that were taken independently. The interval at `confidence` is that of order statistics, which holds for
/// any distribution; n values give none of more than 1 - 2 * 0.5^n, and then it is from the least to the largest. All 0
/// for no values.
Middle middle_of(std::vector<double> values, double confidence);

/// How a candidate compares with a baseline.
enum class Verdict : int {
  same,          ///< Any difference is smaller than the threshold, and the samples prove it.
  faster,        ///< By the threshold at least.
  slower,        ///< By the threshold at least.
  ambiguous,     ///< The samples allow more than one of these.
  not_measured,  ///< Too few pairs, or one side has no number. Never success.
};
std::string_view name(Verdict verdict);
/// The exit code of a comparison with this verdict: 0 same, 1 slower, 3 faster, 4 ambiguous, 5 not measured (2 is bad
/// usage everywhere).
int exit_code(Verdict verdict);
/// Of many comparisons the one to worry about most: slower, not measured, ambiguous, faster, same.
Verdict worst(const std::vector<Verdict>& verdicts);

/// Fewer pairs than this prove nothing: the widest interval of 5 pairs has less than 95 % confidence.
inline constexpr size_t kLeastPairs = 6;

struct Comparison {
  Verdict verdict = Verdict::not_measured;
  double change = 0;         ///< Median of ln(candidate / baseline): above 0 the candidate takes longer.
  double low = 0, high = 0;  ///< Interval of `change`.
  int64_t pairs = 0;
};

/// Pairs candidate[i] with baseline[i], which were taken one beside the other. `threshold`: the smallest difference
/// that counts, as a share (0.02). `confidence` of the interval: of m comparisons 1 - 0.05 / m each, so that the
/// whole run has a false alarm once in twenty. n pairs give no interval of more than 1 - 2 * 0.5^n: where that is less
/// than `confidence` the verdict is ambiguous. The interval is the bootstrap's, and never narrower than that of order
/// statistics. The same samples give the same answer: the bootstrap has a fixed seed.
Comparison compare(const std::vector<double>& baseline, const std::vector<double>& candidate, double threshold,
                   double confidence);

/// What an A/A run, the same code on both sides, could not have told from the noise: the interval's far end.
double smallest_detectable(const Comparison& same_code);

}  // namespace attest::bench
