// SPDX-License-Identifier: Apache-2.0
// Runs many cases on one backend with several workers at once, and gives the records back in plan order.
#pragma once

#include <functional>
#include <vector>

#include "golden/golden.h"
#include "runner/execute.h"

namespace attest {

/// A case with what it will be judged by.
struct Planned {
  const Case* c = nullptr;
  Golden golden;
  double worst_radius = 0;
  std::string repro;
};

/// Calls `finished` for each case as soon as it is done, and `in_order` for each in plan order; both one at a time.
/// Stops early, with what was done, when `finished` returns false.
void run_campaign(const std::vector<Planned>& plan, const BackendChoice& choice, int jobs,
                  const std::function<bool(const CaseRecord&)>& finished,
                  const std::function<void(const CaseRecord&)>& in_order);

}  // namespace attest
