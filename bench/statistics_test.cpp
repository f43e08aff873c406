// SPDX-License-Identifier: Apache-2.0
#include "bench/statistics.h"

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_floating_point.hpp>
#include <cmath>
#include <numeric>
#include <random>

namespace attest::bench {
namespace {

using Catch::Matchers::WithinAbs;

/// Steps of about 100 us on a noisy machine: both sides of a pair share its mood, each has some noise of its own.
struct Pairs {
  std::vector<double> baseline, candidate;
};
Pairs noisy(size_t n, double factor, double own_noise, uint64_t seed = 1) {
  std::mt19937_64 random(seed);
  const auto noise = [&](double size) { return 1 + size * (static_cast<double>(random() >> 11) * 0x1p-53 - 0.5); };
  Pairs pairs;
  for (size_t i = 0; i < n; ++i) {
    const double mood = 100 * noise(0.8);
    pairs.baseline.push_back(mood * noise(own_noise));
    pairs.candidate.push_back(mood * factor * noise(own_noise));
  }
  return pairs;
}
Comparison compared(const Pairs& pairs, double threshold = 0.02) {
  return compare(pairs.baseline, pairs.candidate, threshold, 0.95);
}

TEST_CASE("Order statistics are values that were measured") {
  std::vector<double> samples(200);
  std::iota(samples.begin(), samples.end(), 1);
  std::shuffle(samples.begin(), samples.end(), std::mt19937(3));
  const Summary summary = summarise(samples);
  CHECK(summary.median == 100.5);
  CHECK(summary.p95 == 190);
  CHECK(summary.p99 == 198);
  CHECK(summary.min == 1);
  CHECK(summary.n == 200);
}

TEST_CASE("A single sample is all of its statistics, and none is n = 0") {
  const Summary one = summarise({7});
  CHECK(one.median == 7);
  CHECK(one.p99 == 7);
  CHECK(one.n == 1);
  CHECK(summarise({}).n == 0);
  CHECK(std::isnan(median({})));
}

TEST_CASE("An outlier moves the tail and not the median") {
  std::vector<double> samples(99, 10.0);
  samples.push_back(1e6);
  CHECK(summarise(samples).median == 10);
  CHECK(summarise(samples).p99 == 10);
  samples.push_back(1e6);
  CHECK(summarise(samples).p99 == 1e6);
}

TEST_CASE("A median has an interval, which holds where the values are few") {
  std::vector<double> values(100);
  std::iota(values.begin(), values.end(), 1);
  const Middle many = middle_of(values, 0.95);
  CHECK(many.median == 50.5);
  CHECK(many.low <= 41);  // order statistics: the 40th and the 61st
  CHECK(many.low >= 35);
  CHECK(many.high >= 60);
  CHECK(many.high <= 66);
  const Middle few = middle_of({3, 1, 2}, 0.95);
  CHECK(few.median == 2);
  CHECK(few.low == 1);
  CHECK(few.high == 3);
  const Middle one = middle_of({7}, 0.95);
  CHECK(one.low == 7);
  CHECK(one.high == 7);
  CHECK(middle_of({}, 0.95).median == 0);
}

TEST_CASE("The same code is SAME although the machine's mood swings by 80 %") {
  const Comparison result = compared(noisy(60, 1, 0.02));
  CHECK(result.verdict == Verdict::same);
  CHECK(result.low <= result.change);
  CHECK(result.change <= result.high);
  CHECK(smallest_detectable(result) < 0.02);
}

TEST_CASE("A change of 10 % is seen, in its direction") {
  const Comparison slower = compared(noisy(60, 1.1, 0.02));
  CHECK(slower.verdict == Verdict::slower);
  CHECK_THAT(slower.change, WithinAbs(std::log(1.1), 0.01));
  CHECK(compared(noisy(60, 1 / 1.1, 0.02)).verdict == Verdict::faster);
}

TEST_CASE("A change below the threshold is SAME, near it AMBIGUOUS") {
  CHECK(compared(noisy(200, 1.005, 0.01)).verdict == Verdict::same);
  Pairs undecided;
  for (int i = 0; i < 12; ++i) {
    undecided.baseline.push_back(100);
    undecided.candidate.push_back(i % 2 == 0 ? 95 : 105);
  }
  CHECK(compared(undecided).verdict == Verdict::ambiguous);
}

TEST_CASE("Too few pairs, or numbers that are none, are NOT_MEASURED") {
  CHECK(compared(noisy(kLeastPairs - 1, 2, 0)).verdict == Verdict::not_measured);
  CHECK(compared({}).verdict == Verdict::not_measured);
  CHECK(compare(std::vector<double>(50, 0.0), std::vector<double>(50, 1.0), 0.02, 0.95).verdict ==
        Verdict::not_measured);
  CHECK(std::isinf(smallest_detectable(compared({}))));
}

TEST_CASE("A/A comparisons alarm as rarely as their confidence says") {
  int alarms = 0;
  for (uint64_t seed = 1; seed <= 200; ++seed) {
    const Verdict verdict = compared(noisy(30, 1, 0.1, seed), 0.005).verdict;
    alarms += verdict == Verdict::faster || verdict == Verdict::slower ? 1 : 0;
  }
  CHECK(alarms <= 20);  // 5 % are expected; the seeds are fixed, so this never flickers
}

TEST_CASE("Pairs that cannot give the confidence that is asked for are AMBIGUOUS, however clear they look") {
  const Pairs few = noisy(kLeastPairs, 2, 0.001);
  CHECK(compare(few.baseline, few.candidate, 0.02, 0.95).verdict == Verdict::slower);
  CHECK(compare(few.baseline, few.candidate, 0.02, 0.97).verdict == Verdict::ambiguous);
  const Pairs same = noisy(10, 1, 0.001);
  CHECK(compare(same.baseline, same.candidate, 0.02, 0.998).verdict == Verdict::same);
  CHECK(compare(same.baseline, same.candidate, 0.02, 0.999).verdict == Verdict::ambiguous);
}

TEST_CASE("Two runs of 50 series without a difference have no false verdict") {
  int alarms = 0;
  for (uint64_t seed = 1; seed <= 100; ++seed) {
    const Pairs same = noisy(11, 1, 0.2, seed);  // as few as this confidence allows
    const Verdict verdict = compare(same.baseline, same.candidate, 0.0001, 1 - 0.05 / 50).verdict;
    alarms += verdict == Verdict::faster || verdict == Verdict::slower ? 1 : 0;
  }
  CHECK(alarms == 0);
}

TEST_CASE("The worst verdict of many, and the exit codes") {
  CHECK(worst({Verdict::same, Verdict::faster}) == Verdict::faster);
  CHECK(worst({Verdict::faster, Verdict::ambiguous, Verdict::not_measured}) == Verdict::not_measured);
  CHECK(worst({Verdict::not_measured, Verdict::slower}) == Verdict::slower);
  CHECK(worst({}) == Verdict::not_measured);
  CHECK(exit_code(Verdict::same) == 0);
  CHECK(exit_code(Verdict::slower) == 1);
  CHECK(exit_code(Verdict::faster) == 3);
  CHECK(exit_code(Verdict::ambiguous) == 4);
  CHECK(exit_code(Verdict::not_measured) == 5);
  CHECK(name(Verdict::not_measured) == "NOT_MEASURED");
}

}  // namespace
}  // namespace attest::bench
