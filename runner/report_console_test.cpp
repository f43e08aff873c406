// SPDX-License-Identifier: Apache-2.0
#include "runner/report_console.h"

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <limits>
#include <sstream>

#include "runner/report_test_support.h"
#include "runner/report_text.h"

namespace attest {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

Finding sample_finding() {
  Finding finding;
  finding.kind = "value";
  finding.clause = "M3";
  finding.step = 3;
  finding.tensor = "output";
  finding.index = {0, 3, 1, 7};
  finding.index_names = "sequence,token,head,channel";
  finding.got = 0.125;
  finding.wanted = 0.5;
  finding.allowed = 1.2e-6;
  finding.ratio = 312500;
  finding.bad = 12;
  finding.total = 384;
  finding.text = "differs from the golden by more than the allowed error";
  return finding;
}

CaseRecord sample_case(const std::string& id, Status status, const std::string& family = "with_cache") {
  CaseRecord record;
  record.id = family + "/" + id;
  record.family = family;
  record.about = "A needle.";
  record.profiles = {"core"};
  record.clauses = {"M3", "M2"};
  record.kills = {"causal-plus1", "cache-len-off1"};
  record.status = status;
  record.worst_ratio = status == Status::pass ? 0.25 : 312500;
  record.seconds = {{"run", 0.75}, {"judge", 0.25}};
  record.repro = "attest certify --backend mine --case " + record.id;
  if (status == Status::fail) {
    record.findings = {sample_finding()};
    record.reason = "step 3, output: differs";
  }
  return record;
}

Records sample_records() {
  Records records;
  records.run.attest_version = "0.1.0";
  records.run.suite_hash = "3f2a9c01b7d4";
  records.run.backend = "mine";
  records.run.backend_version = "1.0";
  records.run.jobs = 2;
  records.cases = {sample_case("a", Status::pass, "no_cache"), sample_case("b", Status::pass),
                   sample_case("c", Status::fail)};
  CaseRecord declined = sample_case("d", Status::unsupported);
  declined.profiles = {"rope"};
  declined.reason = "no rotary embedding";
  declined.worst_ratio.reset();
  records.cases.push_back(declined);
  records.run.planned = 4;
  records.end = EndRecord{4, 2.1};
  return records;
}

TEST_CASE("numbers as text") {
  CHECK(number_text(0.1F) == "0.100000001");
  CHECK(number_text(kNaN) == "NaN");
  CHECK(number_text(-kInf) == "-inf");
  CHECK(ratio_text(0) == "0");
  CHECK(ratio_text(0.3125) == "0.312");
  CHECK(ratio_text(1.0004) == "1.0004");
  CHECK(ratio_text(1 + 1e-12) == "1.00001");
  CHECK(ratio_text(312500) == "3.1e+05");
  CHECK(ratio_text(kNaN) == "inf");
  CHECK(seconds_text(0.0123) == "12.3 ms");
  CHECK(seconds_text(2.5) == "2.5 s");
  CHECK(seconds_text(125) == "2 min 05 s");
  CHECK(seconds_text(3725) == "1 h 02 min");
}

TEST_CASE("a finding as text") {
  Finding finding = sample_finding();
  CHECK(place_text(finding) == "step 3, output[sequence 0, token 3, head 1, channel 7]");
  CHECK(numbers_text(finding) == "got 0.125, wanted 0.5, allowed 1.2e-06, error/allowed 3.1e+05, 12 of 384 elements");
  finding.index_names = "sequence";
  CHECK(place_text(finding) == "step 3, output[sequence 0, 3, 1, 7]");
  finding.index.clear();
  CHECK(place_text(finding) == "step 3, output");
  finding.tensor.clear();
  CHECK(place_text(finding) == "step 3");
}

TEST_CASE("got and wanted are told apart even where nine digits do not") {
  Finding finding;
  finding.got = 1.0;
  finding.wanted = 1.0 + 0x1p-40;
  CHECK(numbers_text(finding) == "got 1, wanted 1.0000000000009095");
}

TEST_CASE("a failing case as a block") {
  CaseRecord record = sample_case("needle", Status::fail);
  for (int i = 0; i < 7; ++i) {
    Finding other;
    other.kind = "length";
    other.clause = "C2";
    other.step = i;
    other.tensor = "cache.lengths";
    other.text = "not advanced";
    record.findings.push_back(other);
  }
  CHECK(failure_block(record, false) ==
        "fail      with_cache/needle  A needle.\n"
        "  finding value: differs from the golden by more than the allowed error; clauses tested: M3, M2\n"
        "  at      step 3, output[sequence 0, token 3, head 1, channel 7]\n"
        "          got 0.125, wanted 0.5, allowed 1.2e-06, error/allowed 3.1e+05, 12 of 384 elements\n"
        "  also    length (C2) step 0, cache.lengths: not advanced\n"
        "  also    length (C2) step 1, cache.lengths: not advanced\n"
        "  also    length (C2) step 2, cache.lengths: not advanced\n"
        "  also    length (C2) step 3, cache.lengths: not advanced\n"
        "  also    length (C2) step 4, cache.lengths: not advanced\n"
        "          and 2 more\n"
        "  aims at causal-plus1, cache-len-off1\n"
        "  again   attest certify --backend mine --case with_cache/needle\n");
}

TEST_CASE("a finding's own clause is named, one that is only its case's is not") {
  CaseRecord record = sample_case("needle", Status::fail);
  record.findings.push_back(sample_finding());
  CHECK(failure_block(record, false).find("  also    value step 3, output") != std::string::npos);
  record.findings[0].clause = "E1";
  CHECK(failure_block(record, false).find("  finding value, clause E1: differs") != std::string::npos);
  record.findings[0].clause = "M3";
  record.findings[0].kind = "guard";
  CHECK(failure_block(record, false).find("  finding guard, clause M3: differs") != std::string::npos);
}

TEST_CASE("the summary of a run") {
  CHECK(console_summary(sample_records(), false) ==
        R"(Family      cases  pass  fail  unsupported  worst error/allowed
no_cache        1     1     -            -                 0.25
with_cache      3     1     1            1              3.1e+05
all             4     2     1            1              3.1e+05

Profile  cases  pass  unsupported  fail
core         3     2            -     1  not certified
rope         1     -            1     -  not claimed: no rotary embedding

Not passed
with_cache/c  fail  step 3, output: differs

Where the time went
  run                3 s  75%  ███████████████░░░░░
  judge              1 s  25%  █████░░░░░░░░░░░░░░░
  4 s in all over 2 workers; 2.1 s by the clock

NOT CERTIFIED  mine 1.0 · core: 1 of 3 cases does not pass, first with_cache/c · suite 0.1.0 (3f2a9c01b7d4)
)");
}

TEST_CASE("the certificate is the last line of a summary") {
  for (const char* name : {"records_certified", "records_failing", "records_incomplete"}) {
    const Records records = test_records(name);
    const std::string summary = console_summary(records, false);
    const std::string last = "\n" + certificate(records).line + "\n";
    CAPTURE(summary);
    CHECK(summary.ends_with(last));
    CHECK(summary.find('\x1B') == std::string::npos);
  }
}

TEST_CASE("colour is asked for, and is all that differs") {
  const std::string plain = console_summary(sample_records(), false);
  const std::string coloured = console_summary(sample_records(), true);
  std::string stripped;
  for (size_t i = 0; i < coloured.size(); ++i) {
    if (coloured[i] == '\x1B') {
      i = coloured.find('m', i);
    } else {
      stripped += coloured[i];
    }
  }
  CHECK(coloured != plain);
  CHECK(stripped == plain);
}

TEST_CASE("a run without cases has a summary") {
  const Records records;
  CHECK(console_summary(records, false) == "\nNOT CERTIFIED   · no case was run, of 0 planned · suite \n");
}

TEST_CASE("progress off a terminal is a line every tenth, without control codes") {
  std::ostringstream out;
  double now = 0;
  Progress progress(20, false, false, out, 0, [&] { return now; });
  for (int i = 0; i < 20; ++i) {
    now += 0.5;
    progress.finished(sample_case(std::to_string(i), i == 4 ? Status::unsupported : Status::pass));
  }
  progress.close();
  const std::string text = out.str();
  CHECK(std::count(text.begin(), text.end(), '\n') == 10);
  CHECK(text.find_first_of("\r\x1B") == std::string::npos);
  CHECK(text.starts_with(" 10%  2/20  2 pass  1 s\n 20%  4/20  4 pass  2 s\n 30%  6/20  5 pass, 1 unsupported  3 s\n"));
  CHECK(text.ends_with("100%  20/20  19 pass, 1 unsupported  10 s\n"));
}

TEST_CASE("progress prints a failure as it comes") {
  std::ostringstream out;
  Progress progress(100, false, false, out, 0, [] { return 0.0; });
  progress.finished(sample_case("x", Status::fail));
  CHECK(out.str() == failure_block(sample_case("x", Status::fail), false) + "\n");
}

TEST_CASE("progress on a terminal is one line that is written over") {
  std::ostringstream out;
  double now = 0;
  Progress progress(4, true, false, out, 80, [&] { return now; });
  now = 1;
  progress.finished(sample_case("a", Status::pass));
  CHECK(out.str() == "█████░░░░░░░░░░░░░░░  1/4  1 pass  3 s left  with_cache/a");
  out.str("");
  progress.finished(sample_case("b", Status::fail));
  CHECK(out.str() == "\r\x1B[K" + failure_block(sample_case("b", Status::fail), false) +
                         "\n██████████░░░░░░░░░░  2/4  1 pass, 1 fail  1 s left  with_cache/b");
  out.str("");
  progress.close();
  CHECK(out.str() == "\r\x1B[K");
}

TEST_CASE("a progress line fits the terminal") {
  for (const size_t columns : {20, 50, 60, 80}) {
    std::ostringstream out;
    Progress progress(4, true, false, out, columns, [] { return 0.0; });
    progress.finished(sample_case(std::string(100, 'x'), Status::pass));
    const std::string text = out.str();
    const auto characters = std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; });
    CAPTURE(columns, text);
    CHECK(static_cast<size_t>(characters) < columns);
  }
}

}  // namespace
}  // namespace attest
