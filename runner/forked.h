// SPDX-License-Identifier: Apache-2.0
// Work in processes that are forked from this one. Whatever a part of the work does to its process (a crash, an endless
// loop, ruined memory, what it leaves in globals) ends with that process and is told; another one goes on behind it.
//
//   Forked forked;
//   forked.work = [&](size_t task, Stage& stage) {      // in a child, which keeps its own copy of everything
//     for (size_t part = 0; part < parts; ++part) if (stage.enter(part)) stage.send(result_of(task, part));
//   };
//   forked.received = [&](size_t task, std::string_view message) { ... };   // here
//   forked.lost = [&](size_t task, size_t part, const std::string& how) { ... };
//   forked.run(tasks, jobs);
#pragma once

#include <chrono>
#include <cstddef>
#include <functional>
#include <string>
#include <string_view>

namespace attest {

/// A child's way to its parent while it works on a task.
class Stage {
 public:
  /// Announces the next part of the task, in rising order. False if the part is to be skipped, because a child before
  /// this one has done it or ended in it.
  virtual bool enter(size_t part) = 0;
  /// Sends to the parent; at most 32 KiB at once.
  virtual void send(std::string_view message) = 0;

 protected:
  ~Stage() = default;
};

struct Forked {
  std::function<void(size_t task, Stage& stage)> work;                         ///< In a child.
  std::function<void(size_t task, std::string_view message)> received;         ///< In the order in which it was sent.
  std::function<void(size_t task, size_t part, const std::string& how)> lost;  ///< "killed by SIGSEGV"
  std::function<void(size_t task)> finished = [](size_t) {};
  std::chrono::milliseconds limit{60000};  ///< For a part, and for what comes before the first.

  /// Does the tasks, the first ones first, in so many processes. Throws Error with a child's words if its work throws,
  /// and if a child ends where no part of the work is to blame.
  void run(size_t tasks, int jobs) const;
};

}  // namespace attest
