// SPDX-License-Identifier: Apache-2.0
// Runs one submission: every case of a pack, twice, and the checks of the interface, in a confined worker process. What
// it does becomes results that runner/grade.h turns into points; the submission decides nothing but what its outputs
// hold (spec/grading.md).
//
//   Grading grading(pack, setup);                          // once: finds the worker, refuses a machine without a
//   sandbox const GradeRun run = grading.run("kv_attention.py", "anna"); const Grade grade = grade_run(run, Scheme{});
#pragma once

#include <chrono>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "runner/execute.h"
#include "runner/grade.h"
#include "runner/pack.h"
#include "runner/python.h"
#include "runner/sandbox.h"

namespace attest {

struct GradingSetup {
  std::chrono::milliseconds limit{10000};    ///< For one call, by the parent's clock.
  std::chrono::milliseconds opening{60000};  ///< For loading the submission: a cold disk takes long over PyTorch.
  std::chrono::milliseconds total{120000};   ///< For the whole submission. Cases that are left then time out.
  bool insecure = false;                     ///< Grades without the layers of the sandbox that are missing here.
  bool diagnose = true;                      ///< Looks for the bugs that explain the failures.
  double diagnosis_seconds = 5;
  int diagnosis_jobs = 1;
  std::filesystem::path suite;  ///< The suite's root: its catalogue of bugs.
  std::string attest_version;
};

/// What a submission may be: a Python file with the challenge's class, or a library with the interface of
/// spec/attest/backend.h. By its name's ending.
enum class SubmissionKind : int { python, library };

/// The bytes of a submission, which are read once and never again. Throws Error unless it is a regular file (no
/// symbolic link), ends in .py or .so, and is not too large.
struct SubmissionFile {
  std::string bytes, sha256;
  SubmissionKind kind = SubmissionKind::python;
};
SubmissionFile read_submission(const std::filesystem::path& file);

class Grading {
 public:
  /// The pack must outlive this. Throws Error if something is missing that every submission needs, such as a layer of
  /// the sandbox, and says what.
  Grading(const Pack& pack, GradingSetup setup);
  ~Grading();
  Grading(const Grading&) = delete;
  Grading& operator=(const Grading&) = delete;

  /// What else grades depend on here, for people: the Python with its libraries, and the sandbox's layers.
  [[nodiscard]] std::string conditions() const;

  /// Never throws for what the submission does. Throws Error where the machine or the pack is at fault.
  [[nodiscard]] GradeRun run(const SubmissionFile& file, const std::string& submission) const;
  /// The same for one that is no file to run: every case is an error.
  [[nodiscard]] GradeRun refuse(const std::string& submission, const std::string& why) const;

 private:
  class Session;

  [[nodiscard]] SandboxPolicy policy(SubmissionKind kind, const std::filesystem::path& submission) const;
  [[nodiscard]] BackendChoice backend(SubmissionKind kind, const std::filesystem::path& submission) const;
  [[nodiscard]] GradeRun begin(const std::string& submission) const;

  const Pack& pack_;
  GradingSetup setup_;
  Python python_;
  std::filesystem::path python_worker_;
  std::string without_python_;       ///< Why no Python submission can be run here; else empty.
  std::vector<std::string> layers_;  ///< Of the sandbox: those that are active here.
};

}  // namespace attest
