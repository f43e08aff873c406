// SPDX-License-Identifier: Apache-2.0
#include "runner/report_junit.h"

#include <cmath>

#include "runner/markup.h"
#include "runner/report_console.h"
#include "runner/report_text.h"

namespace attest {
namespace {

struct Counts {
  int64_t tests = 0, failures = 0, errors = 0, skipped = 0;
  double seconds = 0;

  Counts& operator+=(const Counts& other) {
    tests += other.tests;
    failures += other.failures;
    errors += other.errors;
    skipped += other.skipped;
    seconds += other.seconds;
    return *this;
  }
};

/// The element that says how a test ended. JUnit's failure is a wrong answer, its error one that never came.
enum class Verdict { pass, failure, error, skipped };

Verdict verdict_of(const CaseRecord& record, bool excused) {
  switch (record.status) {
    case Status::pass:
      return Verdict::pass;
    case Status::unsupported:
      return excused ? Verdict::skipped : Verdict::failure;
    case Status::fail:
    case Status::untrusted:
      return Verdict::failure;
    case Status::error:
    case Status::crash:
    case Status::timeout:
      return Verdict::error;
  }
  return Verdict::error;
}

std::string attribute(std::string_view name, std::string_view value) {
  return fmt::format(" {}=\"{}\"", name, escape_attribute(value));
}

std::string attributes(const Counts& counts) {
  return fmt::format(" tests=\"{}\" failures=\"{}\" errors=\"{}\" skipped=\"{}\" time=\"{:.6f}\"", counts.tests,
                     counts.failures, counts.errors, counts.skipped, counts.seconds);
}

std::string properties(const Records& records) {
  std::string text = "    <properties>\n";
  const auto property = [&](std::string_view name, std::string_view value) {
    text += fmt::format("      <property{}{}/>\n", attribute("name", name), attribute("value", value));
  };
  for (const auto& [label, value] : run_facts(records)) property(label, value);
  return text + "    </properties>\n";
}

/// One test case; counts itself.
std::string test_case(std::string_view family, std::string_view name, Verdict verdict, std::string_view type,
                      const std::string& message, const std::string& output, double seconds, Counts& counts) {
  ++counts.tests;
  counts.seconds += seconds;
  std::string text =
      fmt::format("    <testcase{}{} time=\"{:.6f}\"", attribute("classname", fmt::format("attest.{}", family)),
                  attribute("name", name), seconds);
  if (verdict == Verdict::pass) return text + "/>\n";
  text += ">\n";
  if (verdict == Verdict::skipped) {
    ++counts.skipped;
    text += fmt::format("      <skipped{}/>\n", attribute("message", message));
  } else {
    const bool failure = verdict == Verdict::failure;
    ++(failure ? counts.failures : counts.errors);
    text += fmt::format("      <{}{}{}/>\n", failure ? "failure" : "error", attribute("type", type),
                        attribute("message", message));
  }
  if (!output.empty()) text += fmt::format("      <system-out>{}</system-out>\n", escape_text(output));
  return text + "    </testcase>\n";
}

}  // namespace

std::string junit_report(const Records& records) {
  const Certificate result = certificate(records);
  const RunRecord& run = records.run;
  // The format's dates have no zone; ours are UTC.
  std::string started = run.started;
  if (started.ends_with('Z')) started.pop_back();

  Counts all;
  std::string suites;
  const auto suite = [&](std::string_view name, const std::string& cases, const Counts& counts) {
    suites += fmt::format("  <testsuite{}{}{}{}>\n{}{}  </testsuite>\n", attribute("name", name), attributes(counts),
                          attribute("timestamp", started), attribute("hostname", run.host), properties(records), cases);
    all += counts;
  };

  for (const Tally& family : family_tallies(records)) {
    Counts counts;
    std::string cases;
    for (size_t i = 0; i < records.cases.size(); ++i) {
      const CaseRecord& record = records.cases[i];
      if (record.family != family.name) continue;
      const Verdict verdict = verdict_of(record, result.excused[i]);
      double seconds = 0;
      for (const auto& [phase, spent] : record.seconds) seconds += std::isfinite(spent) ? spent : 0;
      cases += test_case(family.name, record.id, verdict, name(record.status), record.reason,
                         failure_block(record, false), seconds, counts);
    }
    suite(family.name, cases, counts);
  }

  // A subset certifies nothing, and that is no failure of its cases.
  Counts counts;
  const Verdict verdict = result.certified                   ? Verdict::pass
                          : result.subset && result.complete ? Verdict::skipped
                                                             : Verdict::failure;
  const std::string diagnosis =
      records.diagnosis ? diagnosis_text(*records.diagnosis, false, Detail::brief) : std::string();
  const std::string cases =
      test_case("certificate", "certificate", verdict, "not-certified", result.line, diagnosis, 0, counts);
  suite("certificate", cases, counts);

  return fmt::format("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites{}{}>\n{}</testsuites>\n",
                     attribute("name", fmt::format("attest {}", run.backend)), attributes(all), suites);
}

}  // namespace attest
