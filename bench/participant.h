// SPDX-License-Identifier: Apache-2.0
// A backend that takes part: loaded into this process, as an engine would, and called with nothing in between.
#pragma once

#include <chrono>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "bench/team.h"
#include "bench/workload.h"
#include "runner/backend_library.h"

namespace attest::bench {

class Participant {
 public:
  /// "NAME_OR_PATH[,option=value...]". Throws Error if it cannot be opened.
  Participant(const std::string& given, const Cores& cores);
  ~Participant();
  Participant(const Participant&) = delete;
  Participant& operator=(const Participant&) = delete;

  /// What it is called in results; at first what it calls itself.
  [[nodiscard]] const std::string& label() const { return label_; }
  void rename(std::string label) { label_ = std::move(label); }
  [[nodiscard]] const attest_backend& table() const { return library_->table(); }
  /// Empty, or why it has no plan for this problem.
  std::string prepare(const Workload& workload);
  void release();

  /// After its first step: finds its threads and puts them on cores. They are those that were not there `before`, or
  /// have worked for a tenth of the step: a library that several backends use has its threads from the first of them.
  void settle(const std::map<pid_t, int64_t>& before, double microseconds);
  void take_core() const;

  struct Timed {
    double microseconds = 0;
    std::string wrong;  ///< Empty, or why there is no result.
  };
  /// One step, timed by the caller's clock: append and attend. UNSUPPORTED is a refusal of the problem in a plan's
  /// first step only; whoever has answered one has failed.
  Timed step(const Workload& workload, size_t copy);

 private:
  std::string label_;
  const Cores& cores_;
  std::unique_ptr<BackendLibrary> library_;
  attest_context* context_ = nullptr;
  attest_plan* plan_ = nullptr;
  bool answered_ = false;  ///< The plan has done a step.
  std::vector<pid_t> threads_;
};

/// Opens them all, with labels that tell them apart: "mine", "mine#2".
std::vector<std::unique_ptr<Participant>> open_all(const std::vector<std::string>& given, const Cores& cores);

}  // namespace attest::bench
