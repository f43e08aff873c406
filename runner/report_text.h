// SPDX-License-Identifier: Apache-2.0
// What the reports have in common: numbers and findings as text, and what the cases of a run add up to.
// Every text here is one line, safe for a terminal (runner/markup.h) and not yet escaped for XML, HTML or Markdown.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "runner/record.h"

namespace attest {

/// An element's value, with the nine digits that tell any two f32 apart: "0.100000001", "NaN", "-inf".
std::string number_text(double value);
/// An error over its allowed error: "0.31", "3.1e+05", "inf" where no finite error is right.
std::string ratio_text(double ratio);
/// "3.2 ms", "1.25 s", "2 min 05 s".
std::string seconds_text(double seconds);
/// "1 case", "2 cases".
std::string count_text(int64_t count, std::string_view thing);

/// Where a finding is: "step 3, output[sequence 0, token 3, head 1, channel 7]".
std::string place_text(const Finding& finding);
/// Its numbers: "got 0.5, wanted 0.25, allowed 1.2e-06, error/allowed 2.1e+05, 12 of 384 elements"; empty without any.
std::string numbers_text(const Finding& finding);
/// Whether a finding has no clause of its own: a wrong value breaks one of those that its case tests, and which one it
/// cannot tell, so it has the first.
bool cites_its_case(const CaseRecord& record, const Finding& finding);
/// All of it on one line; the clause only if it is the finding's own.
std::string finding_text(const CaseRecord& record, const Finding& finding);

/// Cases of one family (or of all).
struct Tally {
  std::string name;
  int64_t cases = 0;
  std::map<Status, int64_t> by_status;
  std::optional<double> worst_ratio;  ///< NaN counts as infinite.
  double seconds = 0;

  void add(const CaseRecord& record);
  [[nodiscard]] int64_t count(Status status) const;
};

/// By family, in the order in which they were run.
std::vector<Tally> family_tallies(const Records& records);
Tally whole_tally(const Records& records);
/// Seconds by phase over all cases: the phases of runner/record.h in their order, then others by name.
std::vector<std::pair<std::string, double>> phase_seconds(const Records& records);
/// Cases that neither passed nor are excused, in their order.
std::vector<const CaseRecord*> failing_cases(const Records& records, const Certificate& certificate);

/// What a reader of the reports needs to know of a run, as pairs of a label and a text.
std::vector<std::pair<std::string, std::string>> run_facts(const Records& records);

}  // namespace attest
