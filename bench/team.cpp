// SPDX-License-Identifier: Apache-2.0
#include "bench/team.h"

#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

namespace attest::bench {

Cores::Cores() {
  ::sched_getaffinity(0, sizeof all_, &all_);
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &all_)) numbers_.push_back(cpu);
  }
  if (numbers_.empty()) numbers_.push_back(0);
}

void Cores::pin(pid_t thread, int place) const {
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(static_cast<size_t>(numbers_[static_cast<size_t>(place) % numbers_.size()]), &one);
  ::sched_setaffinity(thread, sizeof one, &one);  // A thread that is gone needs no core.
}

void Cores::release(pid_t thread) const {
  ::sched_setaffinity(thread, sizeof all_, &all_);
}

std::map<pid_t, int64_t> threads_now() {
  std::map<pid_t, int64_t> threads;
  std::error_code gone;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/task", gone)) {
    int64_t& time = threads[static_cast<pid_t>(std::stoi(entry.path().filename().string()))];
    std::ifstream(entry.path() / "schedstat") >> time;
  }
  return threads;
}

void let_threads_rest() {
  const auto another_runs = [] {
    std::error_code gone;
    for (const auto& entry : std::filesystem::directory_iterator("/proc/self/task", gone)) {
      if (entry.path().filename() == std::to_string(::gettid())) continue;
      std::ifstream file(entry.path() / "stat");
      std::string line;
      std::getline(file, line);
      // "17 (a name) R ...": a name may have brackets.
      const size_t name_ends = line.rfind(')');
      if (name_ends != std::string::npos && line.compare(name_ends, 3, ") R") == 0) return true;
    }
    return false;
  };
  for (int i = 0; i < 40; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    if (!another_runs()) return;
  }
}

void bind_openmp() {
  ::setenv("OMP_PROC_BIND", "true", 0);
  ::setenv("OMP_DYNAMIC", "false", 0);
}

Team::Team(const Cores& cores) : cores_(cores) {
  for (int i = 1; i < cores.count(); ++i) threads_.emplace_back([this, i] { serve(i); });
}

Team::~Team() {
  ends_ = true;
  wake();
  for (std::thread& thread : threads_) thread.join();
}

void Team::wake() {
  awake_ = 1;
  awake_.notify_all();
}

void Team::rest() {
  awake_ = 0;
}

void Team::run(const std::function<void(int)>& work) {
  work_ = &work;
  left_ = static_cast<int>(threads_.size());
  turn_.fetch_add(1, std::memory_order_release);
  work(0);
  while (left_.load(std::memory_order_acquire) > 0) std::this_thread::yield();
}

void Team::serve(int number) {
  cores_.pin(0, number);
  uint64_t seen = 0;
  while (true) {
    awake_.wait(0);
    if (ends_) return;
    if (const uint64_t turn = turn_.load(std::memory_order_acquire); turn != seen) {
      seen = turn;
      (*work_)(number);
      left_.fetch_sub(1, std::memory_order_acq_rel);
    }
  }
}

}  // namespace attest::bench
