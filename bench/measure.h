// SPDX-License-Identifier: Apache-2.0
// The measurement of one shape: all backends and the machine's ceilings in turns, in random order, round after round,
// so that what the machine does meanwhile meets all of them.
#pragma once

#include <functional>
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

  [[nodiscard]] std::vector<double> samples() const;
  /// The median of each round: what is paired with another series.
  [[nodiscard]] std::vector<double> medians() const;
};

struct Ceiling {
  double read_cold = 0, read_hot = 0;  ///< Bytes per second; 0 where not measured.
  double multiply_add = 0;             ///< Operations per second.
};

struct Measured {
  Shape shape;
  Cost cost;
  size_t copies = 0;
  size_t copies_wanted = 0;  ///< With fewer, cold steps may find a part of their cache in the last cache.
  Ceiling ceiling;
  std::vector<Series> series;
};

/// The least time that a step can take by the ceilings, in microseconds, and which of them says so.
struct Bound {
  double microseconds = 0;
  bool memory = true;
};
Bound bound_of(const Measured& measured, Temperature temperature);

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
