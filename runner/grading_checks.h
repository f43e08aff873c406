// SPDX-License-Identifier: Apache-2.0
// The parts of the challenge's interface that no case reaches, as checks: what a worker is asked (spec/protocol.md,
// probe), and what its answers are worth. Pure. The answers come from the submission's own process, so these few points
// rest on its word (spec/grading.md); no answer is trusted to have any form.
#pragma once

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "runner/grade.h"

namespace attest {

struct Probe {
  std::string what;
  Json arguments;
};

/// One check: what is asked, in order, and who judges the answers.
struct InterfaceCheck {
  std::string name, about;
  bool counts = false;
  std::vector<Probe> probes;
  /// Given the `calls` of each probe's details; answers why the check fails, or nothing.
  std::function<std::string(const std::vector<Json>& calls)> judge;
};

/// Of a Python submission whose layer has this width and room for so many tokens (4 or more).
std::vector<InterfaceCheck> interface_checks(int64_t d_model, int64_t capacity);

/// The result of a check whose probes were answered with these `details`.
CheckResult judge_check(const InterfaceCheck& check, const std::vector<Json>& details);

/// Of a library: their names and what they ask; grading.cpp plays them through the ABI.
CheckResult library_check(bool overflow);

}  // namespace attest
