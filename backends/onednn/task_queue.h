// SPDX-License-Identifier: Apache-2.0
// Tasks that threads take one by one, in their order.
#pragma once

#include <atomic>
#include <cstddef>
#include <vector>

namespace attest::onednn {

/// It borrows the tasks.
template <class Task>
class TaskQueue {
 public:
  TaskQueue(const std::vector<Task>& tasks, int threads) : tasks_(tasks), threads_(static_cast<std::size_t>(threads)) {}

  /// Null: there is none left.
  const Task* take() {
    const std::size_t i = given_.fetch_add(1, std::memory_order_relaxed);
    return i < tasks_.size() ? &tasks_[i] : nullptr;
  }
  /// For a thread that is nearly done with its task, and asks memory for what the next one begins with. Null, too,
  /// while another thread may have none yet.
  const Task* take_early() { return given_.load(std::memory_order_relaxed) < threads_ ? nullptr : take(); }

 private:
  const std::vector<Task>& tasks_;
  std::size_t threads_;
  std::atomic<std::size_t> given_ = 0;
};

}  // namespace attest::onednn
