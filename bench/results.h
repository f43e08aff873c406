// SPDX-License-Identifier: Apache-2.0
// Results as Google Benchmark's JSON, which its compare.py and others read, with the samples of every round beside.
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "bench/measure.h"
#include "cases/json.h"

namespace attest::bench {

/// "mine/decode/b1_h32-8_d128_c2048_f32/cold"
std::string result_name(const Shape& shape, const Series& series);

/// What the numbers of one series are worth.
struct Figures {
  Summary step;  ///< Microseconds.
  double tokens_per_second = 0, kv_gb_per_second = 0, gflops = 0;
  Middle share;        ///< Of the ceiling, reached round by round, and its interval at 95 %; 0 without a ceiling.
  double ceiling = 0;  ///< Median over the rounds of the least time that the step can take, in microseconds.
  bool memory_bound = true;
};
Figures figures_of(const Measured& measured, const Series& series);

/// The whole file's text. `facts` join the context: backends, ceilings, pinning.
std::string results_json(const std::vector<Measured>& measured, const std::map<std::string, std::string>& facts);

/// A results file, read back.
struct Result {
  std::string name, backend, set, shape, temperature;
  std::string wrong;                        ///< Why there is no number.
  std::map<std::string, double> counters;   ///< And "real_time".
  std::vector<std::vector<double>> rounds;  ///< Microseconds; empty where there is no number.

  [[nodiscard]] std::vector<double> medians() const;
  /// 0 where there is none.
  [[nodiscard]] double counter(const std::string& counter_name) const;
  /// Cold steps over fewer copies of the cache than make it cold: what is called cold may be warm.
  [[nodiscard]] bool maybe_warm() const;
};
/// With a backend's label and " for SET/SHAPE" the name of a fact of the context: why a device has no ceiling there.
inline constexpr std::string_view kNoCeiling = "no ceiling of ";

struct Results {
  std::map<std::string, std::string> context;
  std::vector<Result> list;
};
/// Throws Error with the file and the field of what is wrong: a number that nobody measured is worse than none. Fields
/// that Google Benchmark has besides are let be.
Results parse_results(std::string_view text, std::string_view place);
Results read_results(const std::filesystem::path& path);

}  // namespace attest::bench
