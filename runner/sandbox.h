// SPDX-License-Identifier: Apache-2.0
// Confines a worker that runs code nobody has read: a submission. One Sandbox a worker process.
//
//   SandboxPolicy policy;
//   policy.read_only = {worker_py, submission};                // files and directories to see, besides /usr/lib
//   Sandbox box(policy);                                       // throws Error: "sandbox: no seccomp: ..."
//   Worker worker(box.wrap({"/usr/bin/python3", "-I", "-B", worker_py.string()}));
//   worker.open(box.inside(submission).string(), {}, 10s);     // where the submission lies in there
//
// From then on the worker only runs while a request is open: it is frozen before its reply is looked at, and thawed by
// the next request. BackendChoice::sandbox does all of this for an Executor.
//
// Every layer has to be there, or the constructor throws; `insecure` takes what there is, and `layers()` says what that
// was. What the layers keep out, and what they do not: spec/sandbox.md. The program `attest-cage` (cage_main.cpp) joins
// the groups, gives up rights and starts bubblewrap; it outlives a crash of the parent by a moment, and cleans up.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "runner/worker_client.h"

namespace attest {

/// One line of defence, and whether it holds on this machine.
struct SandboxLayer {
  std::string name;  ///< "bubblewrap", "seccomp", "cgroup", "freezer", "rlimits", "uid", "network"
  bool active = false;
  std::string why;  ///< Active: what it is ("cgroup v1: memory, pids, cpu"). Else: what is missing, and what to do.
};

struct SandboxPolicy {
  /// What the worker may read besides /usr/lib, the program that it runs and a few devices. Files, and directories of
  /// few small ones, are copied to /attest/NAME, so that nothing of their surroundings shows. Other directories (a
  /// virtual environment) are mounted in their place, and what is in them must be readable by everybody. No symbolic
  /// links.
  std::vector<std::filesystem::path> read_only;
  int64_t memory_bytes = int64_t{2} << 30;  ///< Of all its processes, with /tmp. No swap.
  int64_t processes = 64;                   ///< Processes and threads.
  int64_t tmpfs_bytes = int64_t{64} << 20;  ///< Of /tmp, the only place where it can write. Gone with the worker.
  int64_t file_bytes = int64_t{64} << 20;   ///< Of one file.
  int64_t threads = 1;                      ///< Cores that it may keep busy; what OMP_NUM_THREADS says.
  std::chrono::milliseconds cpu{60000};     ///< Processor time of its whole life. Wall time: the limit of each call.
  bool may_fork = false;                    ///< Without: threads, but no processes.
  bool insecure = false;                    ///< Go on without the layers that are missing.
  std::vector<std::string> without;         ///< Layers to leave out as if they were missing: for tests.
};

class Sandbox {
 public:
  /// What this machine has, found out by trying: a process is put behind all layers and tries to get past each.
  /// The first call of a process does that (some 100 ms), later ones remember.
  static std::vector<SandboxLayer> probe();

  /// Makes the groups, and removes those of dead attest processes. Throws Error naming what is missing, unless
  /// `insecure`.
  explicit Sandbox(const SandboxPolicy& policy);
  /// Kills what is left inside, and removes the groups.
  ~Sandbox();
  Sandbox(const Sandbox&) = delete;
  Sandbox& operator=(const Sandbox&) = delete;

  /// The command, confined. Arguments that are files of `read_only` become their names inside; the program need not be
  /// listed. Once for each Sandbox. The options keep what they need: the Sandbox may go before the Worker.
  WorkerOptions wrap(std::vector<std::string> command);

  /// Where a path of `read_only` is found by the worker.
  [[nodiscard]] std::filesystem::path inside(const std::filesystem::path& path) const;

  /// All of its processes, whatever they have become. The worker of `wrap` calls these by itself.
  void freeze();
  void thaw();
  void kill();

  /// Those of this sandbox: what the report of a graded submission records.
  [[nodiscard]] const std::vector<SandboxLayer>& layers() const;

 private:
  class Cage;
  std::shared_ptr<Cage> cage_;
};

}  // namespace attest
