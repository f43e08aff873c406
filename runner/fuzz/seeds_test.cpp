// SPDX-License-Identifier: Apache-2.0
// Every seed, and every input that a fuzzer has found (seeds/*/found-*), once through its target, in ordinary builds.
#include <catch2/catch_test_macros.hpp>
#include <filesystem>

#include "cases/json.h"
#include "runner/fuzz/targets.h"

namespace fs = std::filesystem;

TEST_CASE("the fuzz targets take their seeds") {
  for (const attest::fuzz::Target& target : attest::fuzz::kTargets) {
    int seeds = 0;
    for (const auto& entry : fs::directory_iterator(fs::path(ATTEST_FUZZ_SEEDS) / target.name)) {
      INFO(entry.path());
      CHECK_NOTHROW(target.run(attest::read_file(entry.path())));
      ++seeds;
    }
    INFO(target.name);
    CHECK(seeds > 0);
  }
}
