// SPDX-License-Identifier: Apache-2.0
// Runs cases on a backend in a worker process, one at a time, and hands what it did to the judge. Whatever happens to
// the worker becomes the verdict of that case; the next case gets a fresh one.
#pragma once

#include <chrono>
#include <filesystem>
#include <map>
#include <memory>
#include <string>

#include "cases/case.h"
#include "golden/golden.h"
#include "runner/record.h"
#include "runner/worker_client.h"

namespace attest {

struct BackendChoice {
  std::filesystem::path library;
  std::map<std::string, std::string> options;
  WorkerOptions worker;
  std::chrono::milliseconds limit{10000};  ///< For each call of the backend, by the parent's clock.
};

/// Runs cases one after the other in the thread that made it.
class Executor {
 public:
  explicit Executor(BackendChoice choice) : choice_(std::move(choice)) {}

  /// Runs and judges a case. `worst_radius` is its golden's; `repro` goes into the record.
  CaseRecord run(const Case& c, const Golden& golden, double worst_radius, std::string repro);

 private:
  struct Session;
  /// A worker with the backend open, or why there is none.
  std::optional<WorkerFailure> ensure_worker();

  BackendChoice choice_;
  std::unique_ptr<Worker> worker_;
};

}  // namespace attest
