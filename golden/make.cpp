// SPDX-License-Identifier: Apache-2.0
#include "golden/make.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <exception>
#include <mutex>
#include <thread>

#include "cases/inputs.h"
#include "cases/sha256.h"
#include "golden/oracle.h"

namespace attest {
namespace {

MadeGolden make_golden(const Case& c) {
  const auto start = std::chrono::steady_clock::now();
  const Timeline timeline = play(c);
  const Inputs inputs = generate_inputs(c, timeline);
  OracleResult result = compute_golden(c, timeline, inputs);
  check_binding(c, inputs, result.golden);
  MadeGolden made;
  made.c = &c;
  made.bytes = encode(c, inputs, result.golden);
  made.entry = {c.hash,
                hash(inputs),
                sha256(made.bytes),
                static_cast<int64_t>(made.bytes.size()),
                result.values,
                result.proven,
                result.tie,
                result.zero,
                result.worst_radius};
  made.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return made;
}

/// Roughly proportional to the time a golden takes: the terms of all dot products.
double cost(const Case& c) {
  double terms = 0;
  for (const Moment& moment : play(c)) {
    if (moment.rows.empty()) continue;
    for (const size_t r : checked_rows(c, moment)) {
      const Row& row = moment.rows[r];
      terms += static_cast<double>((row.end - row.begin) * c.problem.query_heads *
                                   (c.problem.qk_head_dim + c.problem.v_head_dim));
    }
    for (const auto& sequence : moment.incoming) {
      terms += static_cast<double>(sequence.size()) * 40 * static_cast<double>(c.problem.d_model * c.problem.d_model);
    }
  }
  return terms;
}

}  // namespace

void make_goldens(const std::vector<const Case*>& cases, int jobs, const std::function<void(const MadeGolden&)>& done) {
  std::vector<std::pair<double, const Case*>> queue;
  for (const Case* c : cases) queue.emplace_back(cost(*c), c);
  std::stable_sort(queue.begin(), queue.end(), [](const auto& a, const auto& b) { return a.first > b.first; });

  std::atomic<size_t> next{0};
  std::mutex mutex;
  std::exception_ptr failure;
  const auto work = [&] {
    for (size_t i = next++; i < queue.size(); i = next++) {
      try {
        const MadeGolden made = make_golden(*queue[i].second);
        const std::lock_guard lock(mutex);
        if (failure) break;
        done(made);
      } catch (...) {
        const std::lock_guard lock(mutex);
        if (!failure) failure = std::current_exception();
        next = queue.size();
      }
    }
    release_oracle_thread();
  };
  std::vector<std::thread> threads;
  for (int t = 0; t < std::max(1, jobs); ++t) threads.emplace_back(work);
  for (std::thread& thread : threads) thread.join();
  if (failure) std::rethrow_exception(failure);
}

}  // namespace attest
