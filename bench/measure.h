// SPDX-License-Identifier: Apache-2.0
// The measurement of one shape: all backends and the machine's ceilings in turns, in random order, round after round,
// so that what the machine does meanwhile meets all of them.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "bench/participant.h"
#include "bench/shape.h"
#include "bench/statistics.h"
#include "bench/team.h"

namespace attest::bench {

struct Settings {
  double seconds = 1;      ///< For each series.
  int64_t rounds = 20;     ///< At most; fewer where a step takes long, but never less than kLeastPairs.
  double step_limit = 10;  ///< Seconds that a step may take: beyond that it is not measured.
  int64_t memory = 0;      ///< Bytes that the copies of a cache may take; 0: half of what is free.
  uint64_t seed = 1;       ///< Of the order.
  bool validate = true;    ///< Only the harness's own cost is measured without.
};

/// Whether a step finds its cache in the machine's caches.
enum class Temperature : int { cold, hot };
std::string_view name(Temperature temperature);

/// One backend at one temperature.
struct Series {
  std::string backend;
  Temperature temperature = Temperature::cold;
  std::string wrong;                        ///< Why there are no numbers; empty if there are.
  std::vector<std::vector<double>> rounds;  ///< Microseconds per step, by round.
  size_t queued = 1;                        ///< Steps that are waited for at a time; a sample is their mean.

  [[nodiscard]] std::vector<double> samples() const;
  /// The median of each round: what is paired with another series.
  [[nodiscard]] std::vector<double> medians() const;
};

/// Medians by round, which are paired with those of the series; empty where not measured.
struct Ceiling {
  std::vector<double> read_cold, read_hot;  ///< Bytes per second.
  std::vector<double> multiply_add;         ///< Operations per second.
};

/// A device's ceiling, by the backend that runs on it. Of hot steps there is none: nothing measures its caches.
struct DeviceLimit {
  Ceiling ceiling;
  std::string how;    ///< Sizes of what was done.
  std::string wrong;  ///< Why there is none.
};

struct Measured {
  Shape shape;
  Cost cost;
  size_t copies = 0;
  size_t copies_wanted = 0;  ///< With fewer, cold steps may find a part of their cache in the last cache.
  Ceiling ceiling;           ///< The host's; empty where no backend works on it.
  std::map<std::string, DeviceLimit> devices{};  ///< By the backend's label.
  std::vector<Series> series;

  /// What a series is measured beside.
  [[nodiscard]] const Ceiling& ceiling_of(const Series& one) const;
};

/// The least time that a step can take by the ceilings, in microseconds and by round, and which of them says so in
/// most; empty without any.
struct Bound {
  std::vector<double> microseconds;
  bool memory = true;
};
Bound bound_of(const Measured& measured, const Series& series);

/// Size of the last cache of this machine in bytes.
int64_t last_cache();
/// Copies that make a cache cold: what their steps read is five times the last cache.
size_t copies_wanted(const Shape& shape, int64_t last_cache);
/// As many of these as there may be, within `memory`; 0 if not even one fits.
size_t copies_for(const Shape& shape, int64_t last_cache, int64_t memory);

/// Called before each turn: what is done, and whose turn it is, or nothing where `what` says so.
using Progress = std::function<void(const std::string& what, const std::string& who)>;
Measured measure(const Shape& shape, std::vector<std::unique_ptr<Participant>>& backends, const Cores& cores,
                 Team& team, const Settings& settings, const Progress& progress);

}  // namespace attest::bench
