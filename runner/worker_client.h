// SPDX-License-Identifier: Apache-2.0
// The parent's side of a worker process: starts it, asks it, and survives whatever it does. A worker that dies, hangs
// or answers garbage is a value (WorkerFailure); afterwards it is gone, and a fresh one is needed.
//
//   Worker worker({{find_worker().string()}});
//   auto opened = worker.open("backends/mine.so", {{"threads", "2"}}, 10s);
//   if (!opened) return opened.error().text;                       // "killed by SIGSEGV"
//   auto prepared = worker.prepare(problem, arena, weights, 10s);  // Reply: ok, unsupported, invalid, error
//   auto ran = worker.run({.tensors = ..., ...}, 10s);
//
// One thread at a time uses a Worker, and the thread that made it must live as long as it does: the kernel kills a
// worker when that thread ends (or the whole process, so that nothing stays behind). Threads may each have their own.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <tl/expected.hpp>
#include <vector>

#include "attest/backend.h"
#include "cases/problem.h"
#include "runner/arena.h"
#include "runner/protocol.h"
#include "runner/unique_fd.h"

namespace attest {

/// How a worker failed. `text` is one line for a person.
struct WorkerFailure {
  enum class Kind : int {
    died,       ///< "killed by SIGSEGV", "exited with code 3"
    timed_out,  ///< "no reply within 10 s"
    garbage,    ///< "the reply's nonce is wrong"
  };
  Kind kind;
  std::string text;
};

/// What holds a worker from outside (runner/sandbox.h). A Worker calls these in its own thread.
class Confinement {
 public:
  virtual ~Confinement() = default;
  /// Before a request is sent.
  virtual void thaw() = 0;
  /// After a reply, before anybody looks at it or at the shared memory. Throws Error if that cannot be done; the worker
  /// is killed then.
  virtual void freeze() = 0;
  /// The worker has ended or shall end: kills whatever is left of it, also what is frozen.
  virtual void kill() = 0;
  /// Why it may have ended, as far as its limits tell ("it may use 2 GiB of memory"), or nothing. After `kill`. Throws
  /// Error if it never began, for a reason that is not the worker's; `output` is what was printed then.
  virtual std::string explanation(const std::string& output) = 0;
};

struct WorkerOptions {
  /// argv. The program is taken as a path; a sandbox or a Python interpreter goes in front of the worker here.
  std::vector<std::string> command;
  /// "NAME=value", all of the environment; absent: the parent's.
  std::optional<std::vector<std::string>> environment = {};
  /// What it is held by; none: it is a process like any other.
  std::shared_ptr<Confinement> confinement = nullptr;
};

/// An answer to prepare, run or release.
struct Reply {
  attest_status status = ATTEST_ERROR;
  std::string message;  ///< The backend's words, one line; empty when it had none.
  double seconds = 0;   ///< run: as the worker says, synchronisation included. Never evidence: see `elapsed`.
  double elapsed = 0;   ///< From request to reply by the parent's own clock.
  Json details;         ///< What the worker had to add (spec/protocol.md), or null. For people, never for a verdict.
};

/// An answer to open. The fields below `reply` are empty unless its status is OK.
struct Opened {
  Reply reply;
  std::string name, version, description;
  std::string device;       ///< "cpu", "cuda", ...
  bool own_memory = false;  ///< The backend's is not the worker's, as a device's is not.
  int64_t abi_version = 0;
  Json declarations;  ///< An object.

  /// The library is sound, but what it runs on is not here; the reply's message says what is missing.
  [[nodiscard]] bool without_device() const { return reply.status == ATTEST_UNSUPPORTED; }
};

/// What replies say, their nonce taken off; `elapsed` is the caller's to know. Throw Error on what is not as agreed.
Reply reply_from_json(const Json& json, bool timed);  ///< `timed`: of run, which has `seconds`.
Opened opened_from_json(const Json& json);
std::vector<Reply> replies_from_json(const Json& json, size_t count);  ///< Of run_together.

/// One step, as spec/attest/backend.h has it. A tensor that is not named is NULL.
struct RunRequest {
  protocol::Tensors tensors;
  int64_t max_query_length = 0;
  int64_t max_total_length = 0;
  /// Device backends: names whose blocks are copied to the device before the step and back after it. The others keep
  /// what the device had.
  std::vector<std::string> upload, download;
};

class Worker {
 public:
  template <typename T>
  using Result = tl::expected<T, WorkerFailure>;
  using Duration = std::chrono::milliseconds;

  /// Starts the process. Throws Error when the program cannot be executed.
  explicit Worker(const WorkerOptions& options);
  /// Kills the process and all its children.
  ~Worker();
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  Result<Opened> open(const std::string& library, const std::map<std::string, std::string>& options, Duration limit);
  /// `tensors`: weights and the other tensors of a problem, by their field's name. The arena's memory is used by every
  /// `run` of the plan until it is released or prepared anew. Plans are told apart by number.
  Result<Reply> prepare(const Problem& problem, const Arena& arena, const protocol::Tensors& tensors, Duration limit,
                        int64_t plan = 0);
  Result<Reply> run(const RunRequest& request, Duration limit, int64_t plan = 0);
  /// One step of each of these plans, all of them at the same time. A reply each, in their order; none is evidence of
  /// more than the status. An empty list of replies does not come back: what the worker itself refuses is a failure.
  Result<std::vector<Reply>> run_together(const std::map<int64_t, RunRequest>& requests, Duration limit);
  Result<Reply> release(Duration limit, int64_t plan = 0);
  /// Workers for the challenge's submissions: calls a part of the interface that `run` does not reach. What happened is
  /// in `details` (spec/protocol.md, probe).
  Result<Reply> probe(const std::string& what, const Json& arguments, Duration limit, int64_t plan = 0);
  /// Lets the backend close in order and waits for the end of the process; anything but exit code 0 is a failure.
  Result<Reply> close(Duration limit);

  /// One request and its reply, both JSON objects; the nonce is taken care of. On any failure the process and
  /// its children are killed, and every later call fails in the same way.
  Result<Json> call(Json request, std::optional<int> fd, Duration limit);

  /// The last 4 KiB that the worker printed, made printable; complete up to the last reply.
  [[nodiscard]] std::string output() const;
  /// All bytes that it printed.
  [[nodiscard]] uint64_t output_bytes() const { return output_bytes_; }
  /// The process, for whoever limits or freezes it; -1 when it is gone.
  [[nodiscard]] pid_t pid() const { return pid_; }
  /// Whether a call can still succeed, as far as is known.
  [[nodiscard]] bool alive() const { return pid_ > 0 && !failure_; }

 private:
  tl::expected<void, protocol::Failure> wait(short events, protocol::Clock::time_point deadline);
  Result<Reply> ask(Json request, std::optional<int> fd, Duration limit, bool timed);
  tl::unexpected<WorkerFailure> fail(WorkerFailure::Kind kind, std::string text);
  tl::unexpected<WorkerFailure> fail(const protocol::Failure& failure, Duration limit);
  void drain();
  bool ended(Duration limit);
  std::optional<std::string> end(Duration grace);

  pid_t pid_ = -1;
  UniqueFd pidfd_;  // readable when the process has ended; none on old kernels
  UniqueFd socket_;
  UniqueFd log_;
  std::string tail_;
  uint64_t output_bytes_ = 0;
  std::shared_ptr<Confinement> confinement_;
  std::optional<WorkerFailure> failure_;
};

}  // namespace attest
