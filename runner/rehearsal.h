// SPDX-License-Identifier: Apache-2.0
// Plays cases on a trusted backend inside of this process, through its C ABI: no worker, no memory that is passed
// around, no limit of time. For the project's own mutants, which are played thousands of times; a backend that is not
// trusted goes through Executor.
//
//   const BackendLibrary library(find_backend("mutants"));
//   const Rehearsal rehearsal(library, {{"bug", "causal-plus1"}});
//   const Performance performance = rehearsal.play({&c, &timeline, &inputs, &golden});
//   if (performance.failed()) ... performance.margin(), performance.findings
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "runner/backend_library.h"
#include "runner/playing.h"

namespace attest {

/// Answers a case that another one names (`bitwise`, `alongside`). Throws Error if there is none.
using FindScript = std::function<Script(const std::string& id)>;

/// How a case went.
struct Performance {
  Status status = Status::pass;  ///< pass, fail, unsupported or error; unjudged cases pass.
  std::string reason;            ///< One line, unless it passed.
  std::vector<Finding> findings;
  std::optional<double> worst_ratio;  ///< Largest error / allowed of all that was compared.
  /// What each step has left behind, if it was asked for: one per step of the case that was reached. Of steps that are
  /// no attend it is empty.
  std::vector<StepOutcome> outcomes;

  [[nodiscard]] bool failed() const { return status == Status::fail || status == Status::error; }
  /// How clearly it failed: the largest error / allowed; infinite where no finite error is to blame (NaN, a status, a
  /// guard, an element that was not written). 0 for one that has not failed.
  [[nodiscard]] double margin() const;
};

class Rehearsal {
 public:
  /// Opens the backend; the library must outlive this. Throws Error with the backend's words if it does not open, if
  /// its declarations are no good or its memory is a device's.
  explicit Rehearsal(const BackendLibrary& library, const std::map<std::string, std::string>& options = {});
  ~Rehearsal();
  Rehearsal(const Rehearsal&) = delete;
  Rehearsal& operator=(const Rehearsal&) = delete;

  [[nodiscard]] const Conventions& conventions() const { return conventions_; }

  struct How {
    bool outcomes = false;              ///< Keeps them.
    bool partners = true;               ///< Else a case is played alone and once, whatever others it names.
    int64_t rounds = kRoundsAlongside;  ///< How often a case that runs alongside others is played.
    int64_t runs = 1 << 20;             ///< How often at most one is that wants the same bits from run to run.
  };
  /// Plays a case as Executor does, with the same verdict. `find` is needed for cases that name others. Several threads
  /// may play at once.
  [[nodiscard]] Performance play(const Script& script, const How& how, const FindScript& find = {}) const;
  [[nodiscard]] Performance play(const Script& script) const { return play(script, How{}); }

 private:
  struct Part;

  /// Prepares, plays through and releases; several at the same time.
  void play(const std::vector<Part*>& group, Performance& performance) const;
  /// False if there is nothing to go on with.
  static bool step(std::vector<Part*> group, size_t s, Performance& performance);
  void play_alone(const Script& script, const How& how, const FindScript& find, Performance& performance) const;
  void play_alongside(const Script& script, const How& how, const FindScript& find, Performance& performance) const;

  const BackendLibrary& library_;
  attest_context* context_ = nullptr;
  Conventions conventions_;
};

}  // namespace attest
