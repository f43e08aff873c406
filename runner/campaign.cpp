// SPDX-License-Identifier: Apache-2.0
#include "runner/campaign.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <optional>
#include <thread>

namespace attest {

void run_campaign(const std::vector<Planned>& plan, const BackendChoice& choice, int jobs,
                  const std::function<bool(const CaseRecord&)>& finished,
                  const std::function<void(const CaseRecord&)>& in_order) {
  std::atomic<size_t> next{0};
  std::mutex mutex;
  std::vector<std::optional<CaseRecord>> done(plan.size());
  size_t emitted = 0;
  std::exception_ptr failure;

  const auto work = [&] {
    Executor executor(choice);  // a worker dies with the thread that made it
    for (size_t i = next++; i < plan.size(); i = next++) {
      try {
        CaseRecord record = executor.run(*plan[i].c, plan[i].golden, plan[i].worst_radius, plan[i].repro);
        const std::lock_guard lock(mutex);
        if (failure) break;
        if (!finished(record)) next = plan.size();
        done[i] = std::move(record);
        for (; emitted < done.size() && done[emitted]; ++emitted) in_order(*done[emitted]);
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
