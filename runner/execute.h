// SPDX-License-Identifier: Apache-2.0
// Runs cases on a backend in a worker process, one at a time, and hands what it did to the judge. Whatever happens to
// the worker becomes the verdict of that case; the next case gets a fresh one.
#pragma once

#include <chrono>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cases/case.h"
#include "runner/conventions.h"
#include "runner/record.h"
#include "runner/sandbox.h"
#include "runner/subjects.h"
#include "runner/worker_client.h"

namespace attest {

class Playing;
class RunBits;
struct Script;
struct StepOutcome;

struct BackendChoice {
  std::filesystem::path library;
  std::map<std::string, std::string> options;
  WorkerOptions worker;
  /// Every worker gets a sandbox of its own, which shows it the library and what else is named there.
  std::optional<SandboxPolicy> sandbox = std::nullopt;
  std::chrono::milliseconds limit{10000};                    ///< For each call of the backend, by the parent's clock.
  std::optional<std::chrono::milliseconds> open_limit = {};  ///< For its opening; absent: the same.
};

/// A case's record before anything has happened: it has passed so far.
CaseRecord record_of(const Case& c, std::string repro);

/// Runs cases one after the other in the thread that made it.
class Executor {
 public:
  explicit Executor(BackendChoice choice, FindSubject find = {});
  ~Executor();
  Executor(const Executor&) = delete;
  Executor& operator=(const Executor&) = delete;

  /// Runs and judges a case; `repro` goes into the record. Throws Error where the suite itself is at fault: the inputs
  /// are not the golden's, a case is named that cannot be found or that has nothing to compare. `outcomes` gets what
  /// each step has left behind: one per step that was answered, empty ones for steps that are no attend; of a case that
  /// is run several times, those of the last time that decided something.
  CaseRecord run(const Subject& subject, std::string repro, std::vector<StepOutcome>* outcomes = nullptr);

  /// Starts a worker and opens the backend, unless one is up; `run` does so by itself. What the backend said is in the
  /// reply; unless that is OK there is no worker afterwards.
  tl::expected<Opened, WorkerFailure> open();
  /// The worker that is up, for what no case asks; null without one. It may be gone after any other call.
  [[nodiscard]] Worker* worker() { return worker_ && worker_->alive() ? worker_.get() : nullptr; }
  /// That the backend declared when it was opened last.
  [[nodiscard]] const Conventions& conventions() const { return conventions_; }
  /// Of the sandboxes of its workers; active are those that each of them had. Empty without a sandbox.
  [[nodiscard]] const std::vector<SandboxLayer>& layers() const { return layers_; }
  /// How many workers it took so far.
  [[nodiscard]] int64_t workers() const { return workers_; }
  /// For calls from here on.
  void set_limit(std::chrono::milliseconds limit, std::chrono::milliseconds opening) {
    choice_.limit = limit;
    choice_.open_limit = opening;
  }
  /// When all calls have to be over: each gets what is left until then, if that is less than its limit.
  void set_deadline(std::chrono::steady_clock::time_point deadline) { deadline_ = deadline; }

 private:
  /// A limit, or what is left until the deadline; never nothing, so that what is over times out.
  [[nodiscard]] std::chrono::milliseconds left(std::chrono::milliseconds limit) const;

  /// One that is played on a plan of the worker's.
  struct Part;

  /// Ends the worker. What watches a device's process, as compute-sanitizer does, has its say when that ends by itself:
  /// outside of a sandbox it is asked to.
  void part_with_worker();
  /// A worker with the backend open, or why there is none.
  std::optional<WorkerFailure> ensure_worker();
  /// Gives the backend a problem; false if its answer is the verdict.
  bool prepare(Part& part, CaseRecord& record);
  void release(Part& part, CaseRecord& record);
  /// Takes step `s` of all of these, at the same time if they are several; false if there is nothing to go on with.
  bool step(std::vector<Part*> group, size_t s, CaseRecord& record);
  /// Prepares, plays through and releases; what the judges found goes into the record.
  void play(const std::vector<Part*>& group, CaseRecord& record);
  void run_alone(const Script& script, CaseRecord& record);
  void run_alongside(const Script& script, CaseRecord& record);
  void check_bits(const Script& script, const RunBits& reference, CaseRecord& record);
  [[nodiscard]] const Subject& find(const Case& c, const std::string& id) const;
  void failed(CaseRecord& record, const WorkerFailure& failure, size_t s, std::string_view during) const;

  BackendChoice choice_;
  std::optional<std::chrono::steady_clock::time_point> deadline_;
  FindSubject find_;
  std::unique_ptr<Worker> worker_;
  Opened opened_;  ///< What the open backend said of itself.
  int64_t workers_ = 0;
  std::vector<SandboxLayer> layers_;
  Conventions conventions_;                       ///< That the open backend declares.
  std::vector<StepOutcome>* outcomes_ = nullptr;  ///< Where the case that is run leaves what its steps did.
};

}  // namespace attest
