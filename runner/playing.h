// SPDX-License-Identifier: Apache-2.0
// A case while it is played through once: its memory, its judge and the bits that it leaves. Whoever plays it (Executor
// with a worker, Rehearsal in this process) only has to call the backend.
//
//   Playing playing(script);
//   playing.start(conventions);                 // its memory is there: prepare the problem in it
//   for each step s:
//     if (!playing.attends(s)) { playing.apply(s); continue; }
//     const RunRequest request = playing.begin(s);
//     ... run ...
//     if (!playing.end(s, reply)) break;
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "runner/bitwise.h"
#include "runner/session.h"
#include "runner/subjects.h"

namespace attest {

class Playing {
 public:
  /// `who` stands before what is said of this one; empty for the case itself.
  explicit Playing(const Script& script, std::string who = "");

  /// Makes the memory, and the judge if there is a golden.
  void start(const Conventions& conventions);
  [[nodiscard]] const Session& session() const { return *session_; }

  [[nodiscard]] const Case& c() const { return *script_.c; }
  [[nodiscard]] size_t steps() const { return script_.timeline->size(); }
  [[nodiscard]] bool attends(size_t s) const { return moment(s).step.kind == StepKind::attend; }
  [[nodiscard]] std::string named(const std::string& text) const { return who_.empty() ? text : who_ + ": " + text; }

  /// Does a step of the suite's own.
  void apply(size_t s);
  /// What the backend is asked in an attend.
  RunRequest begin(size_t s) { return session_->begin(s); }
  /// Takes its answer; false if going on makes no sense.
  bool end(size_t s, const Reply& reply);

  /// From here on the rows are kept, to be compared bit for bit with others.
  void keep_bits() { keeps_bits_ = true; }
  [[nodiscard]] const RunBits& bits() const { return bits_; }
  /// From here on what each step leaves is kept: one per step that was reached, empty for those of the suite's own.
  void keep_outcomes() { keeps_outcomes_ = true; }
  [[nodiscard]] bool keeps_outcomes() const { return keeps_outcomes_; }
  std::vector<StepOutcome>& outcomes() { return outcomes_; }

  /// What the judge found, each finding with its `who`; nothing without a golden.
  [[nodiscard]] std::vector<Finding> findings() const;
  [[nodiscard]] std::optional<double> worst_ratio() const;
  [[nodiscard]] std::optional<ErrorMap> error_map() const;

 private:
  [[nodiscard]] const Moment& moment(size_t s) const { return (*script_.timeline)[s]; }

  Script script_;
  std::string who_;
  std::optional<Session> session_;
  std::optional<Judge> judge_;
  bool keeps_bits_ = false, keeps_outcomes_ = false;
  RunBits bits_;
  std::vector<StepOutcome> outcomes_;
};

/// I1 to I4: plays a case's rows again, `runs` times in all and in the cases that its `bitwise` names, and tells the
/// first difference. `again` plays the case of an id (empty: itself) once more in fresh memory and answers its bits;
/// nothing if that has failed, which ends it. Throws Error if a case that is named has no row in common.
std::optional<Finding> compare_bits(
    const Case& c, const RunBits& reference, int64_t runs,
    const std::function<std::optional<RunBits>(const std::string& id, const std::string& who)>& again);

/// Cases that run at the same time do so this often: a race shows now and then.
inline constexpr int64_t kRoundsAlongside = 8;

/// The verdict where a backend does not prepare a problem, and why.
void refuse(const Playing& playing, attest_status answer, const std::string& message, Status& status,
            std::string& reason);
/// Why a case did not pass, on one line, from the first of its findings.
std::string reason_of(const Finding& finding);

}  // namespace attest
