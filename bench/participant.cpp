// SPDX-License-Identifier: Apache-2.0
#include "bench/participant.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <span>

#include "cases/error.h"
#include "runner/markup.h"
#include "runner/places.h"

namespace attest::bench {
namespace {

/// "name,a=b,c=d" as a name and a JSON object of strings.
std::pair<std::string, Json> split(const std::string& given) {
  Json options = Json::object();
  size_t comma = given.find(',');
  const std::string backend = given.substr(0, comma);
  while (comma != std::string::npos) {
    const size_t next = given.find(',', comma + 1);
    const std::string pair = given.substr(comma + 1, next == std::string::npos ? next : next - comma - 1);
    const size_t equals = pair.find('=');
    if (equals == std::string::npos || equals == 0) {
      throw Error::at("--backend", "got \"{}\", wanted NAME,option=value", given);
    }
    options[pair.substr(0, equals)] = pair.substr(equals + 1);
    comma = next;
  }
  return {backend, options};
}

}  // namespace

Participant::Participant(const std::string& given, const Cores& cores) : cores_(cores) {
  const auto [backend, options] = split(given);
  library_ = std::make_unique<BackendLibrary>(find_backend(backend));
  label_ = table().name;
  if (has_device_memory()) ceilings_ = library_->ceilings();
  cores_.release(0);
  const std::string text = options.dump();
  const Answer answer = ask([&](attest_message* m) { return table().open(text.c_str(), &context_, m); });
  if (answer.status != ATTEST_OK) throw Error::at(given, "cannot be opened: {}", printable(answer.message));
}

Participant::~Participant() {
  release();
  if (context_ != nullptr) table().close(context_);
}

std::string Participant::prepare(const Workload& workload) {
  release();
  answered_ = false;
  cores_.release(0);
  const attest_problem* problem = &workload.problem();
  if (has_device_memory()) {
    const Device device(table(), context_);
    try {
      twin_ = std::make_unique<Twin>(device, workload);
    } catch (const DeviceFull& full) {
      // All that it gave has been given back: whether it gives any memory at all tells a shape too large from a fault.
      try {
        const DeviceMemory some(device, 4096, "a trial");
        return full.what();
      } catch (const DeviceRefusal&) {
        return "allocate failed: " + full.detail;
      }
    } catch (const DeviceRefusal& refusal) {
      return refusal.what();
    }
    problem = &twin_->problem();
  }
  const Answer answer = ask([&](attest_message* m) { return table().prepare(context_, problem, &plan_, m); });
  if (answer.status == ATTEST_OK && plan_ != nullptr) return {};
  plan_ = nullptr;
  return fmt::format("{}: {}", answer.status == ATTEST_UNSUPPORTED ? "unsupported" : "prepare failed",
                     printable(answer.message));
}

void Participant::release() {
  if (plan_ != nullptr) table().release(plan_);
  plan_ = nullptr;
  twin_.reset();
  ceiling_.reset();
}

int64_t Participant::last_cache() const {
  constexpr int64_t most = int64_t{1} << 40;
  return ceilings_ != nullptr ? std::clamp<int64_t>(ceilings_->last_cache(context_), 0, most) : 0;
}

std::string Participant::prepare_ceiling(DType dtype) {
  if (ceilings_ == nullptr) return fmt::format("the library exports no {}", ATTEST_CEILINGS_POINT);
  try {
    ceiling_ = std::make_unique<DeviceCeiling>(Device(table(), context_), *ceilings_, last_cache(), dtype);
    return {};
  } catch (const DeviceRefusal& refusal) {
    return refusal.what();
  }
}

void Participant::settle(const std::map<pid_t, int64_t>& before, double microseconds) {
  threads_.clear();
  for (const auto& [thread, time] : threads_now()) {
    const auto known = before.find(thread);
    const bool worked = known == before.end() || static_cast<double>(time - known->second) > 100 * microseconds;
    if (worked && thread != ::gettid()) threads_.push_back(thread);
  }
  int place = 1;
  for (const pid_t thread : threads_) cores_.pin(thread, place++);
}

void Participant::take_core() const {
  // Without threads that stay, it may start some in each step: they inherit what the caller has.
  if (threads_.empty()) {
    cores_.release(0);
  } else {
    cores_.pin(0, 0);
  }
}

size_t Participant::room_for(size_t steps) {
  return twin_ ? twin_->room_for(steps) : 1;
}

Participant::Timed Participant::steps(Workload& workload, const std::vector<size_t>& copies) {
  using Clock = std::chrono::steady_clock;
  workload.rewind(copies.back());
  std::span<const attest_step> steps(&workload.step(copies.back()), 1);
  if (twin_) {
    try {
      steps = twin_->queue(copies);
    } catch (const DeviceRefusal& refusal) {
      return {0, refusal.what()};
    }
  }
  const attest_backend& table = library_->table();
  const Clock::time_point begin = Clock::now();
  Answer answer{ATTEST_OK, {}};
  for (const attest_step& step : steps) {
    answer = ask([&](attest_message* m) { return table.run(plan_, &step, m); });
    if (answer.status != ATTEST_OK) break;
  }
  const bool taken = answer.status == ATTEST_OK;
  if (twin_) {
    // After a refusal too: it may have come after some work was queued, and its report is no other step's.
    const Answer waited = ask([&](attest_message* m) { return table.synchronize(context_, m); });
    if (taken) answer = waited;
  }
  const Clock::time_point end = Clock::now();
  const double microseconds = std::chrono::duration<double, std::micro>(end - begin).count();
  Timed timed{microseconds / static_cast<double>(steps.size()), {}};
  if (answer.status == ATTEST_OK) {
    answered_ = true;
  } else if (answer.status != ATTEST_UNSUPPORTED || taken) {
    timed.wrong = fmt::format("a step failed: {}", printable(answer.message));
  } else {
    // No problem says in which order a cache lies in memory: some find out only in a step.
    timed.wrong = fmt::format("{}: {}", answered_ ? "a step failed: UNSUPPORTED after others were done" : "unsupported",
                              printable(answer.message));
  }
  return timed;
}

Participant::Timed Participant::checked_steps(Workload& workload, const std::vector<size_t>& copies, size_t number) {
  for (const size_t copy : copies) workload.poison(copy);
  try {
    if (twin_) twin_->put_poison(copies);
    Timed timed = steps(workload, copies);
    if (twin_ && timed.wrong.empty()) twin_->fetch(copies, number);
    return timed;
  } catch (const DeviceRefusal& refusal) {
    return {0, refusal.what()};
  }
}

std::string Participant::check_clock(Workload& workload, const std::vector<size_t>& copies, double seconds) {
  if (!twin_) return {};
  // The least of several: nothing that happens now and then is taken for work.
  double in_time = INFINITY, after = INFINITY, spent = 0;
  try {
    for (int i = 0; i < 2 || (i < 5 && spent < 1e6 * seconds); ++i) {
      const Timed timed = steps(workload, copies);
      if (!timed.wrong.empty()) return timed.wrong;
      const double all = timed.microseconds * static_cast<double>(copies.size());
      const double first = twin_->look(), second = twin_->look();
      in_time = std::min(in_time, all);
      after = std::min(after, first - second);
      spent += all + first + second;
    }
  } catch (const DeviceRefusal& refusal) {
    return refusal.what();
  }
  // A download that finds caches cold takes a little longer than the next.
  constexpr double some = 10;
  if (after <= std::max(some, in_time / 4)) return {};
  return fmt::format(
      "its steps are not done when synchronize answers: that takes {:.0f} us, and the download after it {:.0f} us "
      "longer than the next one",
      in_time, after);
}

std::string Participant::renew() const {
  try {
    if (twin_) twin_->put_inputs();
    return {};
  } catch (const DeviceRefusal& refusal) {
    return refusal.what();
  }
}

std::vector<std::unique_ptr<Participant>> open_all(const std::vector<std::string>& given, const Cores& cores) {
  std::vector<std::unique_ptr<Participant>> all;
  for (const std::string& one : given) {
    auto participant = std::make_unique<Participant>(one, cores);
    const std::string name = participant->label();
    const auto taken = [&](const std::string& label) {
      return std::any_of(all.begin(), all.end(), [&](const auto& other) { return other->label() == label; });
    };
    std::string label = name;
    for (int number = 2; taken(label); ++number) label = fmt::format("{}#{}", name, number);
    participant->rename(label);
    all.push_back(std::move(participant));
  }
  return all;
}

}  // namespace attest::bench
