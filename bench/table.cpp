// SPDX-License-Identifier: Apache-2.0
#include "bench/table.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <utility>

#include "runner/markup.h"

namespace attest::bench {
namespace {

/// What a share of the ceiling is a share of: a device's are copies and products, the host's a read and multiply-adds.
std::string ceiling_name(const Result& result) {
  const bool memory = result.counter("ceiling_is_memory") > 0;
  if (result.counter("ceiling_is_device") > 0) return memory ? "of copy" : "of product";
  return memory ? "of read" : "of FMA";
}

/// Why devices have no ceiling, a line each.
std::string reasons(const Results& results) {
  std::string text;
  for (const auto& [fact, value] : results.context) {
    if (fact.starts_with(kNoCeiling)) text += fmt::format("{}: {}\n", printable(fact), printable(value));
  }
  return text.empty() ? text : "\n" + text;
}

}  // namespace

std::string digits(double value) {
  if (value == 0) return "-";
  const int before = static_cast<int>(std::floor(std::log10(std::abs(value)))) + 1;
  return fmt::format("{:.{}f}", value, std::clamp(3 - before, 0, 3));
}

std::string share_of_ceiling(const Result& result) {
  const double share = result.counter("ceiling_share");
  if (share <= 0) return "no ceiling";
  if (share > kMostShare) {
    return result.counter("ceiling_is_device") > 0 ? "? the ceiling was disturbed, or too low"
                                                   : "? the ceiling was disturbed";
  }
  const double low = result.counter("ceiling_share_low"), high = result.counter("ceiling_share_high");
  const std::string interval = high > 0 ? fmt::format(" ({:.0f}-{:.0f})", 100 * low, 100 * high) : "";
  return fmt::format("{:.0f} %{} {}", 100 * share, interval, ceiling_name(result));
}

std::string results_table(const Results& results) {
  size_t widest = 8;
  for (const Result& result : results.list) widest = std::max(widest, width(result.backend));
  std::string text, title, note;
  for (const Result& result : results.list) {
    if (const std::string now = result.set + "/" + result.shape; now != title) {
      title = now;
      text += std::exchange(note, "");
      text += fmt::format("{}{}\n  {:<{}} {:<5} {:>9} {:>9} {:>9} {:>9} {:>6} {:>10} {:>8} {:>8} {:>25}\n",
                          text.empty() ? "" : "\n", title, "backend", widest, "", "median us", "p95", "p99", "min", "n",
                          "tokens/s", "KV GB/s", "GFLOP/s", "ceiling");
    }
    if (result.maybe_warm()) {
      note = fmt::format("  * {} copies of the cache only, of {} that make it cold: may be warm\n",
                         result.counter("copies"), result.counter("copies_wanted"));
    }
    text += fmt::format("  {:<{}} {:<5} ", printable(result.backend), widest,
                        result.temperature + (result.maybe_warm() ? "*" : ""));
    if (!result.wrong.empty()) {
      text += fmt::format("no number: {}\n", printable(result.wrong));
      continue;
    }
    const auto figure = [&](const char* name) { return digits(result.counter(name)); };
    text +=
        fmt::format("{:>9} {:>9} {:>9} {:>9} {:>6} {:>10} {:>8} {:>8} {:>25}\n", figure("real_time"), figure("p95_us"),
                    figure("p99_us"), figure("min_us"), result.counter("n"), figure("tokens_per_second"),
                    figure("kv_gb_per_second"), figure("gflops"), share_of_ceiling(result));
  }
  return text + note + reasons(results);
}

std::vector<Compared> compare_results(const Results& baseline, const Results& candidate, double threshold,
                                      const std::string& baseline_backend, const std::string& candidate_backend) {
  const bool by_name = baseline_backend.empty();
  const auto key = [&](const Result& result) {
    return by_name ? result.name : result.set + "/" + result.shape + "/" + result.temperature;
  };
  std::map<std::string, const Result*> others;
  std::vector<std::string> names;
  for (const Result& result : baseline.list) {
    if (!by_name && result.backend != baseline_backend) continue;
    if (others.emplace(key(result), &result).second) names.push_back(key(result));
  }
  std::map<std::string, const Result*> mine;
  for (const Result& result : candidate.list) {
    if (!by_name && result.backend != candidate_backend) continue;
    mine.emplace(key(result), &result);
    // What the baseline never measured is named too: silence would look like success.
    if (others.emplace(key(result), nullptr).second) names.push_back(key(result));
  }
  std::vector<Compared> list;
  for (const std::string& name : names) {
    const Result* before = others[name];
    const Result* after = mine.contains(name) ? mine[name] : nullptr;
    Comparison comparison;
    if (before != nullptr && after != nullptr && before->wrong.empty() && after->wrong.empty()) {
      comparison =
          compare(before->medians(), after->medians(), threshold, 1 - 0.05 / static_cast<double>(names.size()));
    }
    list.push_back({name, comparison});
  }
  return list;
}

std::string comparison_table(const std::vector<Compared>& list) {
  size_t widest = 4;
  for (const Compared& one : list) widest = std::max(widest, width(one.name));
  std::string text;
  for (const auto& [title, comparison] : list) {
    text += fmt::format("{:<12} {:<{}}", name(comparison.verdict), printable(title), widest);
    if (comparison.verdict == Verdict::not_measured) {
      text += fmt::format("  {} pairs, {} are needed\n", comparison.pairs, kLeastPairs);
    } else {
      text += fmt::format("  time {:+.1f} % ({:+.1f} to {:+.1f}), {} pairs\n", 100 * std::expm1(comparison.change),
                          100 * std::expm1(comparison.low), 100 * std::expm1(comparison.high), comparison.pairs);
    }
  }
  return text;
}

Verdict verdict_of(const std::vector<Compared>& list) {
  std::vector<Verdict> verdicts;
  for (const Compared& one : list) verdicts.push_back(one.comparison.verdict);
  return worst(verdicts);
}

}  // namespace attest::bench
