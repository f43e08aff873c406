// SPDX-License-Identifier: Apache-2.0
#include "bench/measure.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <new>
#include <optional>
#include <random>

#include "bench/ceiling.h"
#include "bench/device_ceiling.h"
#include "bench/reference.h"

namespace attest::bench {
namespace {

using Clock = std::chrono::steady_clock;

double microseconds_since(Clock::time_point begin) {
  return std::chrono::duration<double, std::micro>(Clock::now() - begin).count();
}

int64_t free_memory() {
  return static_cast<int64_t>(::sysconf(_SC_AVPHYS_PAGES)) * ::sysconf(_SC_PAGESIZE);
}

/// The largest of those that the backends' steps read through.
int64_t last_cache_of(const std::vector<std::unique_ptr<Participant>>& backends) {
  int64_t most = 0;
  for (const auto& backend : backends) {
    const int64_t its = backend->last_cache();
    most = std::max(most, its > 0 ? its : last_cache());
  }
  return most;
}

/// One that gets turns: a backend at a temperature, or a ceiling.
struct Item {
  Participant* backend = nullptr;  ///< Null: a ceiling.
  Series* series = nullptr;        ///< A backend's.
  Participant* device = nullptr;   ///< A ceiling's; null: the host's.
  bool multiply_add = false;       ///< A ceiling's kind.
  Temperature temperature = Temperature::cold;
  size_t samples = 1;           ///< Of a turn.
  size_t next = 0;              ///< The copy that is used next.
  std::vector<double> rates{};  ///< A ceiling's, by round.
};

class Measurement {
 public:
  Measurement(const Shape& shape, std::vector<std::unique_ptr<Participant>>& backends, const Cores& cores, Team& team,
              const Settings& settings, const Progress& progress, size_t copies)
      : cores_(cores), team_(team), settings_(settings), progress_(progress), workload_(shape, team, copies) {
    if (settings_.validate) reference_.emplace(workload_);
    result_.shape = shape;
    result_.cost = cost_of(shape);
    result_.copies = copies;
    result_.copies_wanted = copies_wanted(shape, last_cache_of(backends));
    const bool hot_too = shape.is_decode();  // A prefill computes: where its cache lay hardly shows.
    result_.series.reserve(backends.size() * 2);
    for (const auto& backend : backends) {
      for (const Temperature temperature : {Temperature::cold, Temperature::hot}) {
        if (temperature == Temperature::hot && !hot_too) continue;
        result_.series.push_back({backend->label(), temperature, {}, {}});
        items_.push_back({.backend = backend.get(), .series = &result_.series.back(), .temperature = temperature});
      }
    }
    // A host on which nobody works is no ceiling of anybody.
    if (std::all_of(backends.begin(), backends.end(), [](const auto& one) { return one->has_device_memory(); })) return;
    items_.push_back({.temperature = Temperature::cold});
    if (hot_too) items_.push_back({.temperature = Temperature::hot});
    items_.push_back({.multiply_add = true});
  }

  /// No plan, and nothing on a device, outlives the workload that it is of.
  ~Measurement() {
    for (const Item& item : items_) {
      if (item.backend != nullptr) item.backend->release();
    }
  }
  Measurement(const Measurement&) = delete;
  Measurement& operator=(const Measurement&) = delete;

  Measured run() {
    int64_t rounds = settings_.rounds;
    for (Item& item : items_) {
      if (item.backend != nullptr) begin(item, rounds);
    }
    add_devices();
    std::mt19937_64 random(settings_.seed);
    for (int64_t round = 0; round < rounds; ++round) {
      const std::string now = fmt::format("round {} of {}", round + 1, rounds);
      for (size_t i = items_.size(); i > 1; --i) std::swap(items_[i - 1], items_[random() % i]);
      for (Item& item : items_) {
        if (item.backend == nullptr) {
          progress_(now, item.device != nullptr ? "the ceilings of " + item.device->label() : "the ceilings");
          ceiling_turn(item);
        } else if (item.series->wrong.empty()) {
          progress_(now, fmt::format("{} {}", item.series->backend, name(item.temperature)));
          backend_turn(item);
        }
      }
    }
    check_again();
    cores_.release(0);
    for (Item& item : items_) {
      if (item.backend != nullptr) {
        if (!item.series->wrong.empty()) item.series->rounds.clear();
      } else if (item.device != nullptr) {
        DeviceLimit& limit = result_.devices[item.device->label()];
        if (!limit.wrong.empty()) continue;
        (item.multiply_add ? limit.ceiling.multiply_add : limit.ceiling.read_cold) = std::move(item.rates);
      } else if (item.multiply_add) {
        result_.ceiling.multiply_add = std::move(item.rates);
      } else {
        (item.temperature == Temperature::cold ? result_.ceiling.read_cold : result_.ceiling.read_hot) =
            std::move(item.rates);
      }
    }
    return std::move(result_);
  }

 private:
  /// Prepares, checks the first step and sees how long the second one takes.
  void begin(Item& item, int64_t& rounds) {
    Series& series = *item.series;
    if (item.temperature == Temperature::hot) {
      const auto cold = std::find_if(items_.begin(), items_.end(), [&](const Item& other) {
        return other.backend == item.backend && other.temperature == Temperature::cold;
      });
      series.wrong = cold->series->wrong;
      item.samples = cold->samples;
      series.queued = cold->series->queued;
      return;
    }
    progress_(fmt::format("validating {}", series.backend), "");
    let_threads_rest();  // Threads of the backend before are none of this one's.
    const auto threads = threads_now();
    series.wrong = item.backend->prepare(workload_);
    if (!series.wrong.empty()) return;
    Participant::Timed timed = item.backend->checked_steps(workload_, {0}, 0);
    series.wrong = timed.wrong.empty() ? checked(0, "before the timed loop") : timed.wrong;
    item.backend->settle(threads, timed.microseconds);
    if (!series.wrong.empty()) return;
    if (timed.microseconds < settings_.step_limit * 1e6) {
      item.backend->take_core();
      const size_t copy = workload_.copies() - 1;  // the first one is warm now
      timed = item.backend->steps(workload_, {copy});
      series.wrong = timed.wrong;
      if (!series.wrong.empty()) return;
    }
    double seconds = timed.microseconds / 1e6;
    if (seconds > settings_.step_limit) {
      series.wrong = fmt::format("one step takes {:.1f} s; --step-limit is {:g}", seconds, settings_.step_limit);
      return;
    }
    // Each copy once: what a backend keeps for a place in memory is not made in a step that counts. The fastest of
    // these says how many steps make a turn.
    double spent = seconds;
    for (size_t copy = 1; spent < settings_.seconds && copy + 1 < workload_.copies(); ++copy) {
      timed = item.backend->steps(workload_, {copy});
      series.wrong = timed.wrong;
      if (!series.wrong.empty()) return;
      seconds = std::min(seconds, timed.microseconds / 1e6);
      spent += timed.microseconds / 1e6;
    }
    // A device's steps are queued until it is busy for as long as by a ceiling's work: launches and the waking of the
    // host do not count then, as in decoding, which does not wait for each token.
    constexpr double most = 64;
    series.queued =
        item.backend->room_for(static_cast<size_t>(std::clamp(std::ceil(kEnoughWork / seconds), 1.0, most)));
    seconds *= static_cast<double>(series.queued);
    const double turn = settings_.seconds / static_cast<double>(settings_.rounds);
    item.samples = static_cast<size_t>(std::clamp(turn / seconds, 1.0, 1000.0));
    // Long steps: fewer rounds, but enough that two series can still be compared.
    const auto affordable = static_cast<int64_t>(settings_.seconds / seconds);
    rounds = std::min(rounds, std::max<int64_t>(affordable, kLeastPairs));
  }

  /// Ceilings of the devices on which somebody is right.
  void add_devices() {
    std::vector<Item> more;
    for (const Item& item : items_) {
      if (item.backend == nullptr || !item.backend->has_device_memory() || !item.series->wrong.empty()) continue;
      if (item.temperature != Temperature::cold) continue;
      DeviceLimit& limit = result_.devices[item.backend->label()];
      progress_(fmt::format("preparing the ceilings of {}", item.backend->label()), "");
      limit.wrong = item.backend->prepare_ceiling(workload_.shape().problem.dtype);
      if (!limit.wrong.empty()) continue;
      limit.how = item.backend->ceiling()->name();
      for (const bool multiply_add : {false, true})
        more.push_back({.device = item.backend, .multiply_add = multiply_add});
    }
    items_.insert(items_.end(), more.begin(), more.end());
  }

  std::string checked(size_t copy, const char* when) const {
    if (!reference_) return {};
    const std::string wrong = reference_->check(workload_, copy);
    return wrong.empty() ? wrong : fmt::format("wrong {}: {}", when, wrong);
  }

  size_t copy_of(Item& item) const {
    return item.temperature == Temperature::hot ? 0 : item.next++ % workload_.copies();
  }
  /// As many as its steps are queued at a time.
  std::vector<size_t> copies_of(Item& item) const {
    std::vector<size_t> copies(item.series->queued);
    for (size_t& copy : copies) copy = copy_of(item);
    return copies;
  }

  /// What was right at first must still be, with other inputs and in two steps that follow each other: a backend that
  /// repeats an answer, or works now and then, was fast for nothing. Who is wrong in the cold has no hot number either.
  void check_again() {
    if (!reference_) return;
    workload_.renew(team_);
    reference_.emplace(workload_);
    for (Item& item : items_) {
      if (item.backend == nullptr || !item.series->wrong.empty()) continue;
      progress_(fmt::format("validating {} again", item.series->backend), "");
      let_threads_rest();
      item.backend->take_core();
      item.series->wrong = item.backend->renew();
      const auto check = [&](const std::vector<size_t>& copies, size_t number) {
        if (!item.series->wrong.empty()) return;
        const Participant::Timed timed = item.backend->checked_steps(workload_, copies, number);
        item.series->wrong = timed.wrong.empty() ? checked(copies[number], "after the timed loop") : timed.wrong;
      };
      const auto check_clock = [&](const std::vector<size_t>& copies) {
        if (!item.series->wrong.empty()) return;
        item.series->wrong = item.backend->check_clock(workload_, copies, settings_.seconds);
      };
      // Steps alone, since queued ones over the same copy may append what another has left out; and of queued ones the
      // last, and one in their midst.
      check({copy_of(item)}, 0);
      check({copy_of(item)}, 0);
      check_clock({copy_of(item)});
      if (item.series->queued > 1) {
        const std::vector<size_t> queued = copies_of(item);
        check(queued, queued.size() - 1);
        check(queued, queued.size() / 2);
        check_clock(queued);
      }
    }
    for (const Item& item : items_) {
      if (item.backend == nullptr || item.series->wrong.empty()) continue;
      for (const Item& other : items_) {
        if (other.backend == item.backend && other.series->wrong.empty()) other.series->wrong = item.series->wrong;
      }
    }
  }

  void backend_turn(Item& item) {
    let_threads_rest();
    Series& series = *item.series;
    item.backend->take_core();
    std::vector<double> samples;
    samples.reserve(item.samples);
    // The first step wakes threads and fills predictors; it counts only where a step is long enough not to care.
    const bool warm_up = item.samples > 1 || item.temperature == Temperature::hot;
    for (size_t i = warm_up ? 0 : 1; i <= item.samples; ++i) {
      const Participant::Timed timed = item.backend->steps(workload_, copies_of(item));
      if (!timed.wrong.empty()) {
        series.wrong = timed.wrong;
        return;
      }
      if (i > 0) samples.push_back(timed.microseconds);
    }
    series.rounds.push_back(std::move(samples));
  }

  void ceiling_turn(Item& item) {
    let_threads_rest();
    cores_.pin(0, 0);
    if (item.device != nullptr) {
      std::string& wrong = result_.devices[item.device->label()].wrong;
      try {
        if (wrong.empty()) rate_turn(item);
      } catch (const DeviceRefusal& refusal) {
        wrong = refusal.what();
      }
      return;
    }
    team_.wake();
    rate_turn(item);
    team_.rest();
  }

  void rate_turn(Item& item) {
    std::vector<double> rates;
    double spent = 0;
    const double turn = 1e6 * settings_.seconds / static_cast<double>(settings_.rounds);
    for (int i = 0; i < 3 || (spent < turn && i < 200); ++i) {
      const size_t copy = copy_of(item);
      const Clock::time_point begin = Clock::now();
      double amount = 0;
      if (item.device != nullptr) {
        const DeviceCeiling& ceiling = *item.device->ceiling();
        amount = item.multiply_add ? ceiling.multiply() : ceiling.copy();
      } else if (item.multiply_add) {
        amount = multiply_add(team_);
      } else {
        read_all(team_, workload_.reads(copy));
        amount = bytes_in(workload_.reads(copy));
      }
      const double time = microseconds_since(begin);
      spent += time;
      if (i > 0) rates.push_back(amount / time * 1e6);
    }
    item.rates.push_back(median(rates));
  }

  const Cores& cores_;
  Team& team_;
  const Settings& settings_;
  const Progress& progress_;
  Workload workload_;
  std::optional<Reference> reference_;
  Measured result_;
  std::vector<Item> items_;
};

}  // namespace

std::string_view name(Temperature temperature) {
  return temperature == Temperature::cold ? "cold" : "hot";
}

std::vector<double> Series::samples() const {
  std::vector<double> all;
  for (const auto& round : rounds) all.insert(all.end(), round.begin(), round.end());
  return all;
}

std::vector<double> Series::medians() const {
  std::vector<double> all;
  for (const auto& round : rounds) all.push_back(median(round));
  return all;
}

const Ceiling& Measured::ceiling_of(const Series& one) const {
  const auto device = devices.find(one.backend);
  return device != devices.end() ? device->second.ceiling : ceiling;
}

Bound bound_of(const Measured& measured, const Series& series) {
  const Ceiling& ceiling = measured.ceiling_of(series);
  if (measured.devices.contains(series.backend) && series.temperature == Temperature::hot) return {};
  const std::vector<double>& read = series.temperature == Temperature::hot ? ceiling.read_hot : ceiling.read_cold;
  Bound bound;
  size_t by_memory = 0;
  for (size_t round = 0; round < std::max(read.size(), ceiling.multiply_add.size()); ++round) {
    const double memory = round < read.size() ? 1e6 * measured.cost.bytes / read[round] : 0;
    const double compute =
        round < ceiling.multiply_add.size() ? 1e6 * measured.cost.flops / ceiling.multiply_add[round] : 0;
    bound.microseconds.push_back(std::max(memory, compute));
    if (memory >= compute) ++by_memory;
  }
  bound.memory = 2 * by_memory >= bound.microseconds.size();
  return bound;
}

int64_t last_cache() {
  for (const int level : {_SC_LEVEL4_CACHE_SIZE, _SC_LEVEL3_CACHE_SIZE, _SC_LEVEL2_CACHE_SIZE}) {
    if (const long size = ::sysconf(level); size > 0) return size;
  }
  return 32 << 20;
}

size_t copies_wanted(const Shape& shape, int64_t last_cache) {
  // What a step reads counts, and of that a skewed batch has less than its cache takes.
  const auto read = std::max<int64_t>(static_cast<int64_t>(cost_of(shape).kv_bytes), 1);
  return static_cast<size_t>(std::max<int64_t>((5 * last_cache + read - 1) / read, 1));
}

size_t copies_for(const Shape& shape, int64_t last_cache, int64_t memory) {
  constexpr size_t most = 4096;
  const auto fit = static_cast<size_t>(memory / std::max<int64_t>(cache_bytes(shape), 1));
  return std::min({copies_wanted(shape, last_cache), fit, most});
}

Measured measure(const Shape& shape, std::vector<std::unique_ptr<Participant>>& backends, const Cores& cores,
                 Team& team, const Settings& settings, const Progress& progress) {
  const int64_t memory = settings.memory > 0 ? settings.memory : free_memory() / 2;
  std::string wrong =
      fmt::format("a cache takes {} MiB, of {} that may be used", cache_bytes(shape) >> 20, memory >> 20);
  cores.pin(0, 0);
  if (const size_t copies = copies_for(shape, last_cache_of(backends), memory); copies > 0) {
    try {
      return Measurement(shape, backends, cores, team, settings, progress, copies).run();
    } catch (const std::bad_alloc&) {
      wrong = "there is not enough memory";
    }
  }
  Measured nothing{.shape = shape, .cost = cost_of(shape), .ceiling = {}, .devices = {}, .series = {}};
  for (const auto& backend : backends) nothing.series.push_back({backend->label(), Temperature::cold, wrong, {}});
  return nothing;
}

}  // namespace attest::bench
