// SPDX-License-Identifier: Apache-2.0
#include "runner/random_cases.h"

#include <catch2/catch_test_macros.hpp>
#include <map>
#include <set>

#include "cases/inputs.h"
#include "cases/timeline.h"

using namespace attest;

TEST_CASE("random cases: the same on every machine, and each its own") {
  CHECK(random_case_json(7, 3) == random_case_json(7, 3));
  CHECK(random_case(1, 0).hash.starts_with("7e50a829dab4"));
  std::set<std::string> hashes;
  for (uint64_t number = 0; number < 100; ++number) {
    for (const uint64_t seed : {1, 2}) {
      Json json = random_case_json(seed, number);
      json.erase("id");
      hashes.insert(json.dump());
    }
  }
  CHECK(hashes.size() == 200);
}

TEST_CASE("random cases: nearly all are cases, and together they have every feature") {
  std::map<std::string, int> seen;
  int refused = 0;
  for (uint64_t number = 0; number < 2000; ++number) {
    try {
      const Case c = random_case(11, number);
      const Problem& p = c.problem;
      for (const Moment& moment : play(c)) {
        ++seen[fmt::format("step {}", static_cast<int>(moment.step.kind))];
        ++seen[fmt::format("expect {}", static_cast<int>(moment.step.expect))];
        if (!moment.step.positions.empty()) ++seen["positions"];
      }
      for (const std::string& feature : features(p)) ++seen[feature];
      ++seen[fmt::format("dtype {}", info(p.dtype).name)];
      ++seen[fmt::format("cache {}", static_cast<int>(p.cache))];
      ++seen[fmt::format("rope scaling {}", static_cast<int>(p.rope.scaling))];
      ++seen[fmt::format("causal {}", static_cast<int>(p.causal))];
      ++seen[fmt::format("scale of {} {}", info(p.cache_dtype).name, static_cast<int>(p.kv_scale))];
      ++seen["recipe " + c.inputs.recipe];
      ++seen["mask " + c.inputs.mask.pattern];
      if (p.packed) ++seen["packed"];
      if (p.level == Level::layer) ++seen["layer"];
      if (c.inputs.saturate) ++seen["saturate"];
      if (!c.layouts.cache.order.empty()) ++seen["layout"];
    } catch (const Error&) {
      ++refused;
    }
  }
  CHECK(refused < 100);
  for (const char* feature : {"scale",
                              "window",
                              "softcap",
                              "alibi",
                              "sinks",
                              "mask",
                              "rope",
                              "rope_scaling",
                              "qk_norm",
                              "packed",
                              "layer",
                              "saturate",
                              "layout",
                              "positions",
                              "dtype f32",
                              "dtype f16",
                              "dtype bf16",
                              "cache 0",
                              "cache 1",
                              "cache 2",
                              "cache 3",
                              "causal 0",
                              "causal 1",
                              "causal 2",
                              "step 0",
                              "step 1",
                              "step 2",
                              "step 3",
                              "step 4",
                              "step 5",
                              "expect 1",
                              "expect 2",
                              "recipe needle",
                              "recipe analytic",
                              "recipe overflow",
                              "mask rows",
                              "mask lowest",
                              "rope scaling 1",
                              "rope scaling 5",
                              "scale of i8 1",
                              "scale of f8_e4m3 2",
                              "scale of f8_e5m2 3"}) {
    CAPTURE(feature);
    CHECK(seen[feature] >= 5);
  }
}
