// SPDX-License-Identifier: Apache-2.0
// Runs many cases on one backend with several workers at once.
#pragma once

#include <functional>
#include <vector>

#include "runner/execute.h"

namespace attest {

/// A case to be run.
struct Planned : Subject {
  std::string repro;
};

/// Calls `finished` for each case as soon as it is done, one at a time and in any order: what it writes down at once is
/// not lost if the run is killed. Starts no further case once `finished` has returned false. `find` answers cases that
/// others name; without it those of the plan are found.
void run_campaign(const std::vector<Planned>& plan, const BackendChoice& choice, int jobs,
                  const std::function<bool(const CaseRecord&)>& finished, FindSubject find = {});

}  // namespace attest
