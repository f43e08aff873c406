// SPDX-License-Identifier: Apache-2.0
// A control group of Linux around one worker: limits that hold for everything it starts, and a handle to stop, count
// and end all of that at once. Version 2, version 1, or both at the same time (version 1 controllers beside an empty
// version 2 tree, whose groups can be frozen and killed all the same).
//
//   ControlGroup group = ControlGroup::make({.memory_bytes = 2 << 30, .processes = 64, .cores = 1});
//   ... the child: group.join(); exec
//   group.freeze();                        // nothing in there runs when this returns
//   group.thaw();
//   group.kill();                          // everything, also what is frozen; waits until it is gone
//
// Groups are made below the one that this process is in (version 1), or below the nearest one that may hand its
// controllers on (version 2), so limits around attest itself stay in force. Their names say which process made them;
// those of dead ones are removed by `sweep`.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace attest {

struct GroupLimits {
  int64_t memory_bytes = 0;
  int64_t processes = 0;  ///< And threads.
  int64_t cores = 0;      ///< 0: all.
};

/// What a group has of its limits. Nothing here throws: what cannot be read is 0.
struct GroupEvents {
  int64_t out_of_memory = 0;  ///< Processes that were killed for it.
  int64_t forks_refused = 0;
  std::chrono::microseconds cpu{0};
};

class ControlGroup {
 public:
  /// Which tree the freezer shall come from, where there is a choice. Version 2's is preferred: what it has frozen can
  /// still be killed.
  enum class Freezer { best, version_1 };

  /// Makes the groups and sets the limits. What this machine cannot do is left out, and told by `missing`. Throws
  /// nothing but std::bad_alloc.
  static ControlGroup make(const GroupLimits& limits, Freezer freezer = Freezer::best);
  /// Groups that another process made, by `directories`.
  explicit ControlGroup(std::vector<std::filesystem::path> directories);
  ControlGroup() = default;
  /// Does not remove them: `remove` does.
  ~ControlGroup() = default;

  [[nodiscard]] const std::vector<std::filesystem::path>& directories() const { return directories_; }
  /// "v1: memory, pids, cpu; v2: freezer", for people.
  [[nodiscard]] const std::string& description() const { return description_; }
  /// Limits that could not be set, each with its reason; the cores are no such limit.
  [[nodiscard]] const std::string& missing() const { return missing_; }
  /// Why it cannot be frozen; empty if it can.
  [[nodiscard]] const std::string& no_freezer() const { return no_freezer_; }

  /// Puts the calling process into all of them. Throws Error.
  void join() const;
  /// Returns when nothing in the group runs any more. Throws Error when that takes more than two seconds.
  void freeze() const;
  void thaw() const;
  /// Kills all processes, whatever state they are in, and waits until they are gone; false if some are not after two
  /// seconds.
  bool kill() const;
  /// Removes the groups; their processes must be gone. False if one is still there.
  bool remove() const;
  [[nodiscard]] GroupEvents events() const;

  /// Kills what is in the groups of attest processes that have ended, and removes them. How many there were.
  static int sweep();

 private:
  [[nodiscard]] const std::filesystem::path* with(std::string_view file) const;

  std::vector<std::filesystem::path> directories_;
  std::string description_, missing_, no_freezer_;
};

}  // namespace attest
