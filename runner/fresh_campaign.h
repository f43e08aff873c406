// SPDX-License-Identifier: Apache-2.0
// A campaign of fresh cases: random ones (runner/random_cases.h), with goldens made on the spot, which every correct
// variant of the mutants backend plays. Each must pass: a false alarm would accuse somebody's right kernel. Needs the
// oracle.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "runner/mutant_plays.h"

namespace attest {

struct FreshCampaign {
  struct Alarm {
    std::string mutant, reason;
    uint64_t number = 0;  ///< Of the case.
  };

  uint64_t seed = 1;
  int64_t cases = 0, plays = 0;
  int64_t refused = 0;                   ///< Draws that are no case: others took their places.
  int64_t unsure = 0;                    ///< Cases whose golden is known to less than a sixteenth of the allowed error.
  std::map<std::string, Closest> worst;  ///< By dtype, of codes also theirs: "bf16", "f32 i8".
  std::vector<Alarm> alarms;
  double seconds = 0;

  /// Nothing was accused, and most draws were cases.
  [[nodiscard]] bool green() const { return alarms.empty() && cases > 0 && 4 * refused <= cases; }
};

/// Plays so many cases with all of the mutants, which are correct ones.
FreshCampaign run_fresh_campaign(const BackendLibrary& library, const std::vector<Mutant>& correct, uint64_t seed,
                                 int64_t cases, int jobs,
                                 const std::function<void(size_t done, size_t planned)>& progress);

/// campaign.json: what was found, alarms with their cases as they would stand in a case file.
Json to_json(const FreshCampaign& campaign);
std::string console_summary(const FreshCampaign& campaign, bool colour);

}  // namespace attest
