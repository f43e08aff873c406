// SPDX-License-Identifier: Apache-2.0
// What the mutants do with cases, held against what a backend did. In child processes: several at a time, and a mutant
// that crashes takes down no more than itself.
#pragma once

#include <chrono>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "runner/diagnose.h"
#include "runner/execute.h"

namespace attest {

class MutantPredictions : public Predictions {
 public:
  struct Setup {
    std::filesystem::path library;  ///< The mutants.
    /// Variants that round otherwise, for a second opinion: in f32, and in 16 bits. Empty: none is asked.
    std::string other_roundings, other_halves;
    std::set<std::string> random;  ///< Bugs whose results change from run to run.
    Conventions conventions;       ///< Of the backend.
    int jobs = 1;
    double seconds = 10;  ///< From the making of this on.
  };
  /// What the backend did with a failing case, outcomes included. Called in this process, once for each.
  using Actual = std::function<Performance(const Exhibit&)>;

  /// All must outlive this.
  MutantPredictions(Setup setup, const std::vector<Exhibit>& exhibits, Materials& materials, Actual actual);
  ~MutantPredictions() override;

  std::vector<Agreement> answer(const std::vector<Question>& questions) override;

  /// A failing case's results, if they have been asked for; else null.
  [[nodiscard]] const Performance* actual(size_t exhibit) const;
  /// Failing cases that passed when they were run again.
  [[nodiscard]] int64_t passed_again() const { return passed_again_; }

 private:
  /// Everything that a child needs is there before it starts.
  void gather(const Question& question);
  const Rehearsal& rehearsal(const Hypothesis& hypothesis);
  /// In a child.
  Agreement judge(const Question& question);
  Agreement judge_random(const Script& script, const Question& question, const Performance& prediction);
  [[nodiscard]] bool is_random(const Hypothesis& hypothesis) const;
  Performance play_under(const Script& script, const Hypothesis& hypothesis, bool outcomes);
  [[nodiscard]] double left() const;

  Setup setup_;
  const std::vector<Exhibit>& exhibits_;
  Materials& materials_;
  Actual make_actual_;
  std::chrono::steady_clock::time_point start_;
  std::unique_ptr<BackendLibrary> library_;
  std::map<size_t, Performance> actual_;
  std::map<size_t, bool> repeats_;                         ///< Whether a failing case leaves the same bits each time.
  std::map<Hypothesis, std::unique_ptr<Rehearsal>> open_;  ///< In a child.
  int64_t passed_again_ = 0;
};

}  // namespace attest
