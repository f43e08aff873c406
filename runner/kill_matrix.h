// SPDX-License-Identifier: Apache-2.0
// The kill matrix: which case of the suite catches which bug of the catalogue, and how clearly. A suite proves nothing
// by what passes it; it proves something by what does not. Pure: what was played comes in, the verdict comes out.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "cases/case.h"
#include "cases/catalogue.h"

namespace attest {

/// A row: a realisation of a bug, or a correct backend that computes in its own way.
struct Mutant {
  std::string id;  ///< Of a realisation its name (Bug::names).
  bool correct = false;
  std::string area, group;  ///< Of the bug.
  std::string about;        ///< The bug's fault, how the realisation differs, or what the correct one does.
  std::string weak;         ///< Bug::weak, Realisation::weak

  /// Id of the bug that it realises.
  [[nodiscard]] std::string_view bug() const { return bug_of(id); }
};
/// The bug's realisations, its own id first.
std::vector<Mutant> mutants_of(const Bug& bug);
Mutant mutant_of(const Variant& variant);

/// A column.
struct MatrixCase {
  std::string id, family, about;
  DType dtype = DType::f32;        ///< Of the problem.
  std::vector<std::string> cites;  ///< Case::kills
};
MatrixCase matrix_case(const Case& c);

/// What a mutant made of a case.
struct Cell {
  enum class State : uint8_t { not_played, unsupported, passed, failed };
  State state = State::not_played;
  double margin = 0;            ///< Failed: the largest error / allowed; infinite where no finite error is to blame.
  std::optional<double> worst;  ///< The largest error / allowed of what was compared, failed or not.
  std::string reason;           ///< Unless it passed.
  bool lost = false;            ///< Its process crashed or ran out of time: it failed, but of what?
};

struct KillMatrix {
  std::string attest_version, suite_hash;
  std::string backend, backend_version;
  bool all_cases = false, all_bugs = false;  ///< Else some were chosen, and rules that need all of them do not hold.
  bool fast = false;                         ///< Only as many cases per bug as it takes.
  double seconds = 0;
  std::vector<Mutant> mutants;  ///< Bugs, the realisations of each together, then the correct ones.
  std::vector<MatrixCase> cases;
  std::vector<Cell> cells;  ///< [mutants][cases]

  /// Makes all cells; call when mutants and cases are there.
  void clear() { cells.assign(mutants.size() * cases.size(), {}); }
  [[nodiscard]] Cell& at(size_t mutant, size_t c) { return cells[mutant * cases.size() + c]; }
  [[nodiscard]] const Cell& at(size_t mutant, size_t c) const { return cells[mutant * cases.size() + c]; }
};

/// The margin that the best case of a bug has to have.
inline constexpr double kClearMargin = 20;

/// What the cases do to one mutant.
struct MutantSummary {
  int64_t played = 0, kills = 0;
  std::optional<size_t> best, second;  ///< The cases with the largest margins, the first of equal ones.
  double best_margin = 0, second_margin = 0;
  /// The margin that kClearMargin is asked of: the best of a case in f32, or, if only 16-bit cases kill it, of those.
  /// A crash or a timeout does not count.
  double clear_margin = 0;
  bool clear_in_f32 = false;
};
MutantSummary summary(const KillMatrix& matrix, size_t mutant);

/// Why a matrix is red.
struct Complaint {
  enum class Rule : uint8_t {
    survives,        ///< No case catches the bug.
    single,          ///< Only one does.
    unclear,         ///< None does with the margin that is asked for, and the catalogue gives no reason why.
    not_weak,        ///< One does, but the catalogue has a reason why none can.
    not_cited,       ///< No case names the bug in `kills`.
    wrong_citation,  ///< A case does, but catches no realisation of it.
    idle,            ///< A case catches nothing.
    false_alarm,     ///< A case fails a correct backend.
    unsupported,     ///< The mutants do not support a case, so that it proves nothing.
    lost,            ///< A bug's process crashed or ran out of time, so that the case did not get to judge it.
  };
  Rule rule;
  std::string subject;  ///< The bug, or the correct one ...
  std::string c;        ///< ... and the case, as far as the rule has them.
  std::string text;     ///< One line that says it all.
};
std::string_view name(Complaint::Rule rule);

/// All complaints, in the order of the rules; a matrix without any is green.
std::vector<Complaint> judge(const KillMatrix& matrix);

/// Sums over the whole matrix.
struct MatrixTotals {
  int64_t bugs = 0, realisations = 0, correct = 0, cases = 0;
  int64_t plays = 0, kills = 0;  ///< Of bugs.
  int64_t correct_plays = 0, alarms = 0;
  int64_t caught = 0;  ///< Bugs whose every realisation two cases kill, one of them clearly unless it is weak.
  int64_t killed = 0;  ///< Bugs whose every realisation some case kills.
};
MatrixTotals totals(const KillMatrix& matrix);
/// How many of the bugs' realisations each case kills.
std::vector<int64_t> kills_by_case(const KillMatrix& matrix);

/// kill_matrix.json (spec/schema/matrix.schema.json).
Json to_json(const KillMatrix& matrix);

/// Realisations by how clearly they are caught, the least so first.
std::vector<size_t> weakest_first(const KillMatrix& matrix);
/// What a correct backend comes to, at worst: by dtype, the largest error / allowed of its cases that have passed.
struct Closest {
  double ratio = 0;
  std::string mutant, c;
};
std::map<DType, Closest> closest(const KillMatrix& matrix);

}  // namespace attest
