// SPDX-License-Identifier: Apache-2.0
// The diagnosis of a run: its failing cases are run again, with their results kept, and held against the mutants.
#pragma once

#include <filesystem>
#include <optional>
#include <vector>

#include "runner/explain.h"
#include "runner/explain_predictions.h"
#include "runner/record.h"
#include "runner/subjects.h"

namespace attest {

struct DiagnosisChoice {
  double seconds = 10;                 ///< For all of it.
  int jobs = 1;                        ///< Mutants at once.
  bool pairs = true;                   ///< Also looks for two bugs at the same time.
  bool trace = true;                   ///< Adds a trace of the simplest failing case with a cache.
  std::filesystem::path library = {};  ///< The mutants; empty: the backend of that name.
};

/// What a diagnosis is made of. `actual` runs a failing case again.
struct Inquiry {
  const Catalogue& catalogue;
  Materials& materials;
  const std::vector<CaseRecord>& cases;
  Conventions conventions;
  MutantPredictions::Actual actual;
};

/// From whatever ran the cases.
Diagnosis diagnose_cases(const Inquiry& inquiry, const DiagnosisChoice& choice);

/// What a backend does with a case: run in a worker, outcomes kept.
Performance perform(Executor& executor, const Subject& subject);

/// Of a backend: its failing cases are run again in a worker. Never throws for what is missing here; it says so.
Diagnosis diagnose_run(const Suite& suite, Subjects& subjects, const BackendChoice& backend,
                       const Conventions& conventions, const std::vector<CaseRecord>& cases,
                       const DiagnosisChoice& choice);

}  // namespace attest
