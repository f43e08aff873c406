// SPDX-License-Identifier: Apache-2.0
// For the tests of the measurement: small shapes, and backends on a stand.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "bench/measure.h"

namespace attest::bench {

/// The fields of one shape, as a file of shapes gives them.
inline Shape shape_of(const std::string& fields) {
  return shapes_from_json("{\"shapes\": [{" + fields + "}]}", "test").front();
}

inline const std::string kSmall = R"("query_heads": 4, "kv_heads": 2, "head_dim": 16, "context": 40)";

/// Backends that stay open from one shape to the next.
struct Stand {
  explicit Stand(const std::vector<std::string>& given) : backends(open_all(given, cores)), team(cores) {
    settings.seconds = 0.01;
    settings.rounds = 6;
    settings.memory = 1 << 20;
  }
  ~Stand() { cores.release(0); }
  Measured measured(const std::string& fields) {
    return measure(shape_of(fields), backends, cores, team, settings, progress);
  }
  Cores cores;
  std::vector<std::unique_ptr<Participant>> backends;
  Team team;
  Settings settings;
  Progress progress = [](const auto&...) {};
};

}  // namespace attest::bench
