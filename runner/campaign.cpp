// SPDX-License-Identifier: Apache-2.0
#include "runner/campaign.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <thread>

namespace attest {

void run_campaign(const std::vector<Planned>& plan, const BackendChoice& choice, int jobs,
                  const std::function<bool(const CaseRecord&)>& finished) {
  std::atomic<size_t> next{0};
  std::mutex mutex;
  std::exception_ptr failure;

  const auto work = [&] {
    Executor executor(choice);  // a worker dies with the thread that made it
    for (size_t i = next++; i < plan.size(); i = next++) {
      try {
        CaseRecord record = executor.run(*plan[i].c, plan[i].golden, plan[i].worst_radius, plan[i].repro);
        record.index = static_cast<int64_t>(i);
        const std::lock_guard lock(mutex);
        if (failure) break;
        if (!finished(record)) next = plan.size();
      } catch (...) {
        const std::lock_guard lock(mutex);
        if (!failure) failure = std::current_exception();
        next = plan.size();
      }
    }
  };
  std::vector<std::thread> threads;
  for (int t = 0; t < std::clamp(jobs, 1, static_cast<int>(plan.size())); ++t) threads.emplace_back(work);
  for (std::thread& thread : threads) thread.join();
  if (failure) std::rethrow_exception(failure);
}

}  // namespace attest
