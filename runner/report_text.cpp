// SPDX-License-Identifier: Apache-2.0
#include "runner/report_text.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "runner/markup.h"

namespace attest {
namespace {

std::vector<std::string> split(std::string_view text, char separator) {
  std::vector<std::string> parts;
  while (!text.empty()) {
    const size_t end = std::min(text.find(separator), text.size());
    parts.emplace_back(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return parts;
}

std::string with_digits(double value, int digits) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  return fmt::format("{:.{}g}", value, digits);
}

}  // namespace

std::string number_text(double value) {
  return with_digits(value, 9);
}

std::string ratio_text(double ratio) {
  if (!std::isfinite(ratio)) return "inf";
  if (ratio == 0) return "0";
  // Never "1" for what is beyond the limit.
  if (ratio > 1 && ratio < 1.01) return fmt::format("{:.6g}", std::max(ratio, 1.00001));
  if (ratio < 1e-3 || ratio >= 1000) return fmt::format("{:.1e}", ratio);
  return fmt::format("{:.3g}", ratio);
}

std::string seconds_text(double seconds) {
  if (!std::isfinite(seconds) || seconds < 0) return "?";
  if (seconds < 0.9995) return fmt::format("{:.3g} ms", seconds * 1000);
  if (seconds < 99.5) return fmt::format("{:.3g} s", seconds);
  const auto whole = static_cast<int64_t>(std::llround(seconds));
  if (whole < 3600) return fmt::format("{} min {:02} s", whole / 60, whole % 60);
  return fmt::format("{} h {:02} min", whole / 3600, whole / 60 % 60);
}

std::string count_text(int64_t count, std::string_view thing) {
  return fmt::format("{} {}{}", count, thing, count == 1 ? "" : "s");
}

std::string place_text(const Finding& finding) {
  std::string text = fmt::format("step {}", finding.step);
  if (finding.tensor.empty()) return text;
  text += ", " + printable(finding.tensor);
  if (finding.index.empty()) return text;
  const std::vector<std::string> names = split(finding.index_names, ',');
  text += "[";
  for (size_t i = 0; i < finding.index.size(); ++i) {
    if (i > 0) text += ", ";
    if (i < names.size()) text += printable(names[i]) + " ";
    text += std::to_string(finding.index[i]);
  }
  return text + "]";
}

std::string numbers_text(const Finding& finding) {
  std::vector<std::string> parts;
  // Nine digits tell f32 values apart; a golden is a double and may differ only beyond them.
  const auto same = [&](int digits) {
    return with_digits(*finding.got, digits) == with_digits(*finding.wanted, digits);
  };
  const int digits = finding.got && finding.wanted && *finding.got != *finding.wanted && same(9) ? 17 : 9;
  if (finding.got) parts.push_back("got " + with_digits(*finding.got, digits));
  if (finding.wanted) parts.push_back("wanted " + with_digits(*finding.wanted, digits));
  if (finding.allowed) parts.push_back("allowed " + with_digits(*finding.allowed, 3));
  if (finding.ratio) parts.push_back("error/allowed " + ratio_text(*finding.ratio));
  if (finding.total > 0) parts.push_back(fmt::format("{} of {}", finding.bad, count_text(finding.total, "element")));
  return fmt::format("{}", fmt::join(parts, ", "));
}

bool cites_its_case(const CaseRecord& record, const Finding& finding) {
  return finding.kind == "value" && !record.clauses.empty() && finding.clause == record.clauses.front();
}

std::string finding_text(const CaseRecord& record, const Finding& finding) {
  std::string text = printable(finding.kind);
  if (!finding.clause.empty() && !cites_its_case(record, finding)) {
    text += fmt::format(" ({})", printable(finding.clause));
  }
  text += " " + place_text(finding);
  if (!finding.text.empty()) text += ": " + printable(finding.text);
  if (const std::string numbers = numbers_text(finding); !numbers.empty()) text += "; " + numbers;
  return text;
}

void Tally::add(const CaseRecord& record) {
  ++cases;
  ++by_status[record.status];
  for (const auto& [phase, spent] : record.seconds) seconds += spent;
  if (!record.worst_ratio) return;
  const double ratio = std::isnan(*record.worst_ratio) ? std::numeric_limits<double>::infinity() : *record.worst_ratio;
  worst_ratio = std::max(worst_ratio.value_or(0), ratio);
}

int64_t Tally::count(Status status) const {
  const auto found = by_status.find(status);
  return found == by_status.end() ? 0 : found->second;
}

std::vector<Tally> family_tallies(const Records& records) {
  std::vector<Tally> tallies;
  for (const CaseRecord& record : records.cases) {
    auto found = std::find_if(tallies.begin(), tallies.end(), [&](const Tally& t) { return t.name == record.family; });
    if (found == tallies.end()) {
      tallies.emplace_back().name = record.family;
      found = tallies.end() - 1;
    }
    found->add(record);
  }
  return tallies;
}

Tally whole_tally(const Records& records) {
  Tally tally;
  tally.name = "all";
  for (const CaseRecord& record : records.cases) tally.add(record);
  return tally;
}

std::vector<std::pair<std::string, double>> phase_seconds(const Records& records) {
  std::map<std::string, double> sums;
  for (const CaseRecord& record : records.cases) {
    for (const auto& [phase, seconds] : record.seconds) sums[phase] += seconds;
  }
  std::vector<std::pair<std::string, double>> phases;
  for (const char* phase : {"inputs", "golden", "start", "prepare", "run", "judge"}) {
    if (const auto found = sums.find(phase); found != sums.end()) {
      phases.emplace_back(*found);
      sums.erase(found);
    }
  }
  phases.insert(phases.end(), sums.begin(), sums.end());
  return phases;
}

std::vector<const CaseRecord*> failing_cases(const Records& records, const Certificate& certificate) {
  std::vector<const CaseRecord*> failing;
  for (size_t i = 0; i < records.cases.size(); ++i) {
    if (records.cases[i].status != Status::pass && !certificate.excused[i]) failing.push_back(&records.cases[i]);
  }
  return failing;
}

std::vector<std::pair<std::string, std::string>> run_facts(const Records& records) {
  const RunRecord& run = records.run;
  std::vector<std::pair<std::string, std::string>> facts;
  const auto add = [&](const char* label, const std::string& text) {
    if (!text.empty()) facts.emplace_back(label, printable(text));
  };
  add("Backend", run.backend + (run.backend_version.empty() ? "" : " " + run.backend_version));
  add("Description", run.backend_description);
  add("Library", run.library);
  std::string options;
  for (const auto& [key, value] : run.options)
    options += fmt::format("{}{}={}", options.empty() ? "" : " ", key, value);
  add("Options", options);
  add("Device", run.device);
  std::vector<std::string> declared = alternatives(run.conventions);
  if (!run.conventions.determinism.empty()) {
    declared.push_back(fmt::format("determinism {}", fmt::join(run.conventions.determinism, " ")));
  }
  add("Declares", fmt::format("{}", fmt::join(declared, ", ")));
  add("Suite", run.attest_version + (run.suite_hash.empty() ? "" : " (" + run.suite_hash + ")"));
  add("Profiles", run.profiles.empty() ? "every profile that the backend claims"
                                       : fmt::format("{}", fmt::join(run.profiles, ", ")));
  add("Plan", count_text(run.planned, "case") + (run.subset ? ", a subset" : "") +
                  (run.plan_hash.empty() ? "" : " (" + run.plan_hash + ")"));
  add("Started", run.started);
  add("Machine", run.host + (run.cpu.empty() ? "" : (run.host.empty() ? "" : ", ") + run.cpu));
  add("Cores", fmt::format("{}, {} at once", run.cores, count_text(run.jobs, "worker")));
  if (records.end) add("Wall clock", seconds_text(records.end->wall_seconds));
  return facts;
}

}  // namespace attest
