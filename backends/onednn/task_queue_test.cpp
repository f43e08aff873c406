// SPDX-License-Identifier: Apache-2.0
#include "task_queue.h"

#include <catch2/catch_test_macros.hpp>
#include <latch>
#include <numeric>
#include <thread>
#include <vector>

using attest::onednn::TaskQueue;

TEST_CASE("task queue: tasks come in their order, and then none") {
  const std::vector<int> tasks = {7, 8, 9};
  TaskQueue<int> queue(tasks, 1);
  for (const int& task : tasks) CHECK(queue.take() == &task);
  CHECK(queue.take() == nullptr);
  CHECK(queue.take_early() == nullptr);
  CHECK(queue.take() == nullptr);
}

TEST_CASE("task queue: nothing early while another thread may have none yet") {
  const std::vector<int> tasks = {7, 8, 9};
  TaskQueue<int> queue(tasks, 2);
  CHECK(queue.take_early() == nullptr);
  CHECK(queue.take() == &tasks[0]);
  CHECK(queue.take_early() == nullptr);
  CHECK(queue.take() == &tasks[1]);
  CHECK(queue.take_early() == &tasks[2]);
  CHECK(queue.take_early() == nullptr);
}

TEST_CASE("task queue: threads get each task once, also if there are fewer of them than it was told") {
  std::vector<int> tasks(10000);
  std::iota(tasks.begin(), tasks.end(), 0);
  TaskQueue<int> queue(tasks, 4);
  std::vector<std::vector<int>> got(3);
  std::latch start(3);
  std::vector<std::thread> threads;
  for (std::vector<int>& its : got) {
    threads.emplace_back([&] {
      start.arrive_and_wait();
      const int* early = nullptr;
      while (const int* const task = early != nullptr ? early : queue.take()) {
        its.push_back(*task);
        early = *task % 3 == 0 ? queue.take_early() : nullptr;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  std::vector<int> times(tasks.size());
  for (const std::vector<int>& its : got) {
    for (std::size_t i = 0; i < its.size(); ++i) {
      ++times[static_cast<std::size_t>(its[i])];
      if (i > 0) CHECK(its[i - 1] < its[i]);
    }
  }
  CHECK(times == std::vector<int>(tasks.size(), 1));
}
