// SPDX-License-Identifier: Apache-2.0
// How good the diagnosis is, measured: every bug of the catalogue is put into a backend that computes in another way
// than the one that predictions are made with, run through workers like anybody's backend, and diagnosed. Then pairs of
// bugs, and backends whose results are right but for noise, which no known bug may be blamed for.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "runner/campaign.h"
#include "runner/explain_run.h"

namespace attest {

struct SelfTest {
  std::vector<std::string> bugs;  ///< Single ones; empty: all.
  bool singles = true;
  int64_t pairs = 200, noise = 50;
  uint64_t seed = 1;
  double seconds = 60;  ///< For a diagnosis.
};

struct SelfTrial {
  enum class Kind : int { single, pair, noise };
  enum class Result : int {
    right,    ///< First comes what was put in, or what nothing tells from it.
    kin,      ///< First comes another bug of its group.
    part,     ///< A pair of which one bug is named, and explains all that was seen.
    nothing,  ///< No known bug: right for noise.
    wrong,    ///< Something else is named.
    unseen,   ///< No case failed.
  };
  Kind kind = Kind::single;
  std::vector<std::string> bugs;
  std::string variant;  ///< Of the backend.
  std::string about;    ///< Noise: what was done.
  int64_t failing = 0;
  Result result = Result::nothing;
  double run_seconds = 0;
  Diagnosis diagnosis;
};
Json to_json(const SelfTrial& trial);
std::string_view name(SelfTrial::Kind kind);
std::string_view name(SelfTrial::Result result);

/// Whether a diagnosis names what was put in.
SelfTrial::Result judge_diagnosis(const Catalogue& catalogue, const SelfTrial& trial);

/// Does it all; `told` hears of each trial.
std::vector<SelfTrial> run_self_test(const Suite& suite, Subjects& subjects, const BackendChoice& mutants,
                                     const SelfTest& test, int jobs, const std::function<void(const SelfTrial&)>& told);

/// The figures as a table for a person.
std::string self_test_table(const Catalogue& catalogue, const std::vector<SelfTrial>& trials);
/// Whether the aims are met: 95 % of single bugs and 80 % of pairs right, and noise never blamed on a bug.
bool meets_aims(const std::vector<SelfTrial>& trials);

}  // namespace attest
