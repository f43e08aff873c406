// SPDX-License-Identifier: Apache-2.0
// Names the bug: holds what a backend did against what each known bug would have done, and keeps those bugs that
// explain every failing case and are contradicted by none, passing ones included. Single bugs first, then pairs. The
// rules and the search only; who plays the cases is somebody else (runner/explain_predictions.h).
//
//   const Diagnosis diagnosis = diagnose(catalogue, cases, predictions, {});
//   fmt::print("{}", diagnosis_text(diagnosis, true));
#pragma once

#include <set>
#include <string>
#include <vector>

#include "cases/catalogue.h"
#include "runner/explain.h"
#include "runner/explain_agreement.h"

namespace attest {

/// Bugs that are there at the same time, in code that is right but for them.
struct Hypothesis {
  std::vector<std::string> bugs;  ///< As the mutants call them: ids of the catalogue, or "id@realisation".
  std::string variant;            ///< A correct way to compute (Catalogue::correct); empty: the usual one.
  auto operator<=>(const Hypothesis&) const = default;
};

/// A case that the backend has run.
struct Exhibit {
  std::string id;
  bool failed = false;
  double cost = 0;  ///< Seconds that one prediction takes, about.
  std::vector<std::string> profiles, clauses, kills;
};

/// What the cases would look like under hypotheses.
class Predictions {
 public:
  virtual ~Predictions() = default;
  struct Question {
    Hypothesis hypothesis;
    size_t exhibit;
  };
  /// How each hypothesis stands to its case, in the order of the questions. Fewer answers than questions: the time is
  /// up.
  virtual std::vector<Agreement> answer(const std::vector<Question>& questions) = 0;
};

struct DiagnosisLimits {
  size_t failing = 40;  ///< Cases that a single hypothesis has to explain.
  size_t passing = 40;  ///< Cases that may contradict it.
  bool pairs = true;
};

/// `exhibits`: failing ones have results that can be compared.
Diagnosis diagnose(const Catalogue& catalogue, const std::vector<Exhibit>& exhibits, Predictions& predictions,
                   const DiagnosisLimits& limits);

}  // namespace attest
