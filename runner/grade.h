// SPDX-License-Identifier: Apache-2.0
// Points for a submission to the challenge: what its cases and checks came to, turned into a grade (spec/grading.md).
// Pure: no worker, no clock, no file. Grading runs a submission (runner/grading.h); reports are made from a Grade alone
// (runner/grade_report.h), and a batch keeps them as JSON (runner/grade_batch.h).
//
//   const Grade grade = grade_run(run, Scheme{});
//   grade.automatic;                       // of 70
//   grade.groups[0].points;                // the visible case, of 10
//   write_file("grade.json", to_json(grade).dump(2));
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "cases/json.h"
#include "runner/explain.h"
#include "runner/record.h"

namespace attest {

/// Where automatic points come from, in the order of every report.
enum class Group : int { visible, hidden_1_4, hidden_5_8, hidden_9_10 };
std::string_view name(Group group);   ///< "visible", "hidden_1_4", ... in JSON
std::string_view title(Group group);  ///< "Visible case", "Hidden cases 1-4", ... for people
Group group_of(bool hidden, int number);

/// How points are shared out.
struct Scheme {
  /// Per group, in order. Within a group every case counts the same.
  std::vector<double> points{10, 25, 25, 10};
  /// The hidden groups' points are shared over all hidden cases by the organisers' weights instead.
  bool weights = false;
  /// Of the visible group: what the checks of the interface are worth, if there are any that count.
  double interface_share = 0.5;
};

/// What one part of a case came to. `findings` and `reason` may hold words of the submission.
struct PartResult {
  int number = 0;
  std::string name, category;
  double weight = 0;
  bool hidden = true;
  std::string part;  ///< "whole", "own cache", "canonical cache"
  std::string id;    ///< The attest case.
  Status status = Status::error;
  std::string reason;  ///< Empty if it passed.
  std::vector<Finding> findings;
  std::optional<double> worst_ratio;
  double seconds = 0;  ///< By the parent's clock, both runs.
};

/// One check of the interface that the challenge's page promises, beside the cases.
struct CheckResult {
  std::string name;     ///< "overflow", "validate_inputs", ...
  std::string about;    ///< What is asked, one sentence.
  bool counts = false;  ///< For points. Those that do not are shown to graders.
  Status status = Status::error;
  std::string reason;  ///< Empty if it passed. May hold words of the submission.
};

struct GradeLayer {
  std::string name;
  bool active = false;
  std::string why;  ///< Not active: why.
};

/// What was run, and under which conditions.
struct GradeRun {
  std::string submission;  ///< As the grader named it: a file, or a student's folder.
  std::string sha256;
  std::string kind;  ///< "python" or "library"
  std::string pack;  ///< Its id.
  std::string attest_version;
  std::string worker;   ///< What ran it, in its own words: "Python 3.11.2, PyTorch 1.13.1". Not evidence.
  std::string started;  ///< ISO 8601, UTC.
  double seconds = 0;   ///< All of it by the parent's clock; `opening` is part of it.
  double opening = 0;   ///< Until the submission was loaded: mostly the import of PyTorch.
  int64_t workers = 0;  ///< Processes that it took; more than one if some died.
  bool insecure = false;
  std::vector<GradeLayer> layers;  ///< Of the sandboxes that it ran in, each as in the worst; empty if nothing ran.
  /// Why it could not be loaded, in words of the submission's interpreter; every case has this status then.
  std::string refused;
  std::vector<PartResult> parts;  ///< Visible first, then by number and part, however they were run.
  std::vector<CheckResult> checks;
  std::vector<std::string> notes;  ///< For graders.
  std::string printed;             ///< The last that it printed, made printable and cut. For graders.
  std::optional<Diagnosis> diagnosis;
};

struct CaseGrade {
  int number = 0;
  std::string name, category;
  double weight = 0;
  bool hidden = true;
  Group group = Group::visible;
  Status status = Status::error;  ///< The worst of its parts.
  double points = 0, possible = 0;
  std::vector<PartResult> parts;
};

struct CheckGrade {
  CheckResult result;
  double points = 0, possible = 0;
};

struct GroupGrade {
  Group group = Group::visible;
  double points = 0, possible = 0;
  int64_t passed = 0, cases = 0;
};

/// What a person adds: 30 points for the review, 10 for the bonus (spec/grading.md). Absent: not judged yet.
struct ManualGrade {
  std::optional<double> review, bonus;
  std::string comment, grader;
};
inline constexpr double kReviewPoints = 30, kBonusPoints = 10;

struct Grade {
  GradeRun run;  ///< Its parts and checks are moved into what follows.
  Scheme scheme;
  std::vector<CaseGrade> cases;
  std::vector<CheckGrade> checks;
  std::vector<GroupGrade> groups;  ///< All four.
  double automatic = 0, automatic_possible = 0;
  ManualGrade manual;
  /// pass if every case and every check that counts passed; else the worst status of a case or such a check.
  Status status = Status::error;

  /// Automatic points and what a person gave so far.
  [[nodiscard]] double total() const { return automatic + manual.review.value_or(0) + manual.bonus.value_or(0); }
  [[nodiscard]] bool complete() const { return manual.review.has_value(); }
};

/// The worse of two: pass, unsupported, untrusted, fail, error, timeout, crash.
Status worse(Status a, Status b);

/// Throws Error if the scheme has no four groups, or a negative or infinite number.
Grade grade_run(GradeRun run, const Scheme& scheme);

/// Points on a grid of a hundredth, as they are shown: "6.25", "10".
std::string points_text(double points);

/// {"review": 24.5, "bonus": 8, "comment": "...", "grader": "..."}; each may be missing. Throws Error on anything else
/// and on points outside of their range.
ManualGrade manual_from_json(const Json& json, const std::string& place);

/// The grader's form (schema: spec/schema/grade.schema.json).
Json to_json(const Grade& grade);
/// Throws Error on anything that to_json does not write.
Grade grade_from_json(const Json& json, const std::string& place);

}  // namespace attest
