// SPDX-License-Identifier: Apache-2.0
// What a diagnosis says: which known bugs would do what a backend did. A line of the records, and all that reports show
// of it; made by runner/diagnose.h, read back without the mutants or the suite.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "cases/json.h"

namespace attest {

/// A bug as the reader of a report meets it (cases/bugs.json).
struct BugPortrait {
  std::string id, area, fault, symptom, look_for;
  std::vector<std::string> links;
};

/// One explanation: a bug, or two at once, or several that nothing told apart.
struct Explanation {
  /// Each alone would do: one bug, or two at the same time. Several: all that was run looks the same under each.
  std::vector<std::vector<std::string>> bugs;
  /// Every failing case that was compared, and nothing against it. Else it is a part of the truth at best.
  bool whole = false;
  int64_t explained = 0, unclear = 0;  ///< Failing cases, of those compared.
  int64_t silent = 0;                  ///< Failing cases in which the bug would not show.
  int64_t contradicted = 0;            ///< Cases, failing or passing, in which it would show otherwise.
  std::string variant;               ///< With which correct roundings and tiles the prediction was made, if it matters.
  std::vector<std::string> cases;    ///< Explained ones, the simplest first; a few.
  std::vector<std::string> clauses;  ///< That the first of them test.
  std::string against;               ///< The first contradiction.
  std::string apart;                 ///< What tells these bugs apart, or from those that look like them.
  std::vector<BugPortrait> portraits;  ///< Of every bug named, in order.
};

struct Diagnosis {
  enum class Verdict : int {
    explained,    ///< By the first explanation.
    unexplained,  ///< No known bug does this; explanations are partial.
    nothing,      ///< No failing case has results to compare.
    unavailable,  ///< The mutants are not here.
  };
  Verdict verdict = Verdict::nothing;
  std::string line;  ///< The answer in one line.
  std::vector<Explanation> explanations;
  int64_t failing = 0;   ///< Cases that did not pass ...
  int64_t compared = 0;  ///< ... those of them whose results were compared ...
  int64_t passing = 0;   ///< ... and passing ones that predictions were held against.
  int64_t predictions = 0;
  double seconds = 0;
  std::vector<std::string> notes;
  std::string trace;  ///< Of the simplest failing case with a cache; may be empty.
};

Json to_json(const Diagnosis& diagnosis);
Diagnosis diagnosis_from_json(Fields& fields);

/// "causal-plus1", "causal-plus1 or causal-strict", "scale-missing together with gqa-modulo or gqa-wrong-divisor".
std::string bugs_text(const Explanation& explanation);
/// "causal-plus1 explains 14 of 14 failing cases, contradicted by none of 38 passing ones".
std::string claim_text(const Explanation& explanation, const Diagnosis& diagnosis);
enum class Detail : int {
  brief,  ///< The answer, and what to look for.
  full,   ///< Also where it was seen before, and the trace.
};
/// For a terminal.
std::string diagnosis_text(const Diagnosis& diagnosis, bool colour, Detail detail);
/// The same as HTML (a section of the report) and Markdown; empty if there is nothing to say.
std::string diagnosis_html(const Diagnosis& diagnosis);
std::string diagnosis_markdown(const Diagnosis& diagnosis);

}  // namespace attest
