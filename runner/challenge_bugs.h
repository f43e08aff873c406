// SPDX-License-Identifier: Apache-2.0
// Which of the challenge's eleven bugs a submission still has: its layer, computed once more in plain loops with any of
// them in it, and held against what the submission did. Students repair some and leave others, so every set of bugs is
// a hypothesis; 2048 of them are tried in a moment, since the smallest parts reject nearly all. What the mutants do
// (runner/explain_run.h) is more general, and one or two bugs at a time.
//
//   const auto found = find_challenge_bugs(catalogue, parts);
//   if (found) ... found->line;        // "causal-strict together with dropout-eval explains ..."
//
// No worker; of the clock only the deadline.
#pragma once

#include <chrono>
#include <optional>
#include <string>
#include <vector>

#include "cases/catalogue.h"
#include "cases/inputs.h"
#include "golden/golden.h"
#include "runner/explain.h"
#include "runner/judge.h"

namespace attest {

/// The numbered places of kv_attention.py, as bits: place 1 is bit 0.
inline constexpr int kChallengeBugs = 11;
/// Their ids in cases/bugs.json, in the order of the places.
const std::vector<std::string>& challenge_bug_ids();

/// What a submission did with a part of a case. All must outlive the search.
struct PlayedPart {
  const Case* c = nullptr;
  const Timeline* timeline = nullptr;
  const Inputs* inputs = nullptr;
  const std::vector<StepOutcome>* outcomes = nullptr;  ///< As Executor leaves them.
  bool passed = false;
  bool answered = true;        ///< Its process lived: else there is nothing to compare.
  bool cache_is_right = true;  ///< The judge found nothing wrong with the cache.
};

/// What the layer with these bugs makes of a part: per step of the timeline the output [B, S, d_model], row by row, or
/// nothing from the step on that raises. Bit 8 (dropout) is left out here.
std::vector<std::optional<std::vector<float>>> challenge_outputs(const PlayedPart& part, unsigned bugs);

/// The smallest sets of bugs under which every part would be as it is; nothing if there are none, or no part failed.
/// Where the deadline comes first, the diagnosis says so, with what was found until then, or unexplained.
std::optional<Diagnosis> find_challenge_bugs(
    const Catalogue& catalogue, const std::vector<PlayedPart>& parts,
    std::chrono::steady_clock::time_point deadline = std::chrono::steady_clock::time_point::max());

}  // namespace attest
