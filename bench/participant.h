// SPDX-License-Identifier: Apache-2.0
// A backend that takes part: loaded into this process, as an engine would, and called with nothing in between. One with
// memory of its own works on a twin of the workload.
#pragma once

#include <chrono>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "bench/device_ceiling.h"
#include "bench/team.h"
#include "bench/twin.h"
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
  [[nodiscard]] bool has_device_memory() const { return library_->has_device_memory(); }
  /// Empty, or why it has no plan for this problem. The workload is used until release().
  std::string prepare(const Workload& workload);
  /// Gives back the plan, and then all of the device's memory.
  void release();

  /// After its first step: finds its threads and puts them on cores. They are those that were not there `before`, or
  /// have worked for a tenth of the step: a library that several backends use has its threads from the first of them.
  void settle(const std::map<pid_t, int64_t>& before, double microseconds);
  void take_core() const;

  /// Bytes of the last cache that its steps read through, at most 1 TiB; 0: the host's, or not known.
  [[nodiscard]] int64_t last_cache() const;
  /// After prepare(), for a device: empty if it has a ceiling, or why it has none.
  std::string prepare_ceiling(DType dtype);
  /// Until release(); null without.
  [[nodiscard]] const DeviceCeiling* ceiling() const { return ceiling_.get(); }

  /// Of so many steps that are to be queued at a time: for how many a device has room; 1 without a device.
  size_t room_for(size_t steps);

  struct Timed {
    double microseconds = 0;
    std::string wrong;  ///< Empty, or why there is no result.
  };
  /// Takes back what steps have appended to these copies, then does one over each, timed by the caller's clock: append
  /// and attend, until a device has finished the last of them. Several only for a device; the time is a step's share.
  /// UNSUPPORTED is a refusal of the problem in a plan's first step only; whoever has answered one has failed.
  Timed steps(Workload& workload, const std::vector<size_t>& copies);
  /// The same where whatever the step of this number leaves out will be seen: all that steps write is spoilt before,
  /// and what this one has written lies in the workload's own memory afterwards.
  Timed checked_steps(Workload& workload, const std::vector<size_t>& copies, size_t number);
  /// Empty, or that a device goes on with its steps when `synchronize` has answered, and does them in whatever is
  /// called next, which no clock sees. For at most `seconds`.
  std::string check_clock(Workload& workload, const std::vector<size_t>& copies, double seconds);
  /// After Workload::renew: empty, or why a device has not got the new inputs.
  std::string renew() const;

 private:
  std::string label_;
  const Cores& cores_;
  std::unique_ptr<BackendLibrary> library_;
  const attest_ceilings* ceilings_ = nullptr;
  attest_context* context_ = nullptr;
  attest_plan* plan_ = nullptr;
  std::unique_ptr<Twin> twin_;  ///< Of a device.
  std::unique_ptr<DeviceCeiling> ceiling_;
  bool answered_ = false;  ///< The plan has done a step.
  std::vector<pid_t> threads_;
};

/// Opens them all, with labels that tell them apart: "mine", "mine#2".
std::vector<std::unique_ptr<Participant>> open_all(const std::vector<std::string>& given, const Cores& cores);

}  // namespace attest::bench
