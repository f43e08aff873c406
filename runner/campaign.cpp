// SPDX-License-Identifier: Apache-2.0
#include "runner/campaign.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <thread>

namespace attest {

void run_campaign(const std::vector<Planned>& plan, const BackendChoice& choice, int jobs,
                  const std::function<bool(const CaseRecord&)>& finished, FindSubject find) {
  if (!find) {
    find = [&](const std::string& id) -> const Subject& {
      const auto found = std::find_if(plan.begin(), plan.end(), [&](const Planned& p) { return p.c->id == id; });
      if (found == plan.end()) throw Error::at(id, "is named by another case, but is not in the plan");
      return *found;
    };
  }
  std::atomic<size_t> next{0};
  std::mutex mutex;
  std::exception_ptr failure;

  const auto work = [&] {
    Executor executor(choice, find);  // a worker dies with the thread that made it
    for (size_t i = next++; i < plan.size(); i = next++) {
      try {
        CaseRecord record = executor.run(plan[i], plan[i].repro);
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
