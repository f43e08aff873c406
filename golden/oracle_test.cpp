// SPDX-License-Identifier: Apache-2.0
// The oracle against formulas written here once more, in long double and without its code.
#include "golden/oracle.h"

#include <catch2/catch_test_macros.hpp>
#include <cmath>

#include "golden/make.h"

using namespace attest;

namespace {

Case make(const std::string& problem, const std::string& steps, const std::string& inputs = R"({"recipe": "sharp"})") {
  Json json{{"id", "one"}, {"about", ""}, {"clauses", {"A1"}}, {"kills", Json::array()}};
  json["problem"] = Json::parse(problem);
  json["inputs"] = Json::parse(inputs);
  json["steps"] = Json::parse(steps);
  return case_from_json(json, "family", "test");
}

struct Computed {
  Inputs inputs;
  OracleResult result;
};

Computed compute(const Case& c) {
  const Timeline timeline = play(c);
  Computed computed;
  computed.inputs = generate_inputs(c, timeline);
  computed.result = compute_golden(c, timeline, computed.inputs);
  return computed;
}

}  // namespace

TEST_CASE("core attention agrees with long double, and every value is proven") {
  const Case c = make(R"({"batch": 2, "query_heads": 4, "kv_heads": 2, "qk_head_dim": 12, "v_head_dim": 5,
                          "causal": "bottom_right", "lse": true})",
                      R"([{"attend": [6, 3], "keys": [9, 3]}])");
  const Computed computed = compute(c);
  const OracleResult& result = computed.result;
  CHECK(result.proven == result.values);
  CHECK(result.worst_radius < 1e-6);
  const StepInputs& in = computed.inputs.steps[0];
  const GoldenStep& golden = result.golden.steps[0];
  REQUIRE(golden.rows.size() == 2 * 9);
  for (size_t r = 0; r < 9; ++r) {
    const int64_t b = golden.rows[2 * r], i = golden.rows[2 * r + 1];
    const int64_t queries = b == 0 ? 6 : 3, keys = b == 0 ? 9 : 3;
    for (int64_t h = 0; h < 4; ++h) {
      std::vector<long double> p;
      long double sum = 0;
      for (int64_t j = 0; j <= keys - queries + i; ++j) {
        long double dot = 0;
        for (int64_t d = 0; d < 12; ++d) {
          dot += static_cast<long double>(in.query.data[static_cast<size_t>(((b * 6 + i) * 4 + h) * 12 + d)]) *
                 static_cast<long double>(in.key.data[static_cast<size_t>(((b * 9 + j) * 2 + h / 2) * 12 + d)]);
        }
        p.push_back(std::exp(dot / std::sqrt(12.0L)));
        sum += p.back();
      }
      for (int64_t d = 0; d < 5; ++d) {
        long double o = 0;
        for (size_t j = 0; j < p.size(); ++j) {
          o += p[j] / sum *
               static_cast<long double>(
                   in.value.data[static_cast<size_t>(((b * 9 + static_cast<int64_t>(j)) * 2 + h / 2) * 5 + d)]);
        }
        const size_t at = (r * 4 + static_cast<size_t>(h)) * 5 + static_cast<size_t>(d);
        CHECK(std::fabs(golden.output.value[at] - static_cast<double>(o)) <=
              1e-14 * (1 + std::fabs(golden.output.value[at])));
        CHECK(golden.output.allowed[at] > 0);
        CHECK(golden.output.allowed[at] < 1e-3);
      }
      CHECK(std::fabs(golden.lse.value[r * 4 + static_cast<size_t>(h)] - static_cast<double>(std::log(sum))) < 1e-13);
    }
  }
}

TEST_CASE("a row that sees nothing is 0, its LSE minus infinity") {
  const Case c = make(R"({"head_dim": 4, "causal": "bottom_right", "lse": true})", R"([{"attend": 5, "keys": 2}])");
  const GoldenStep golden = compute(c).result.golden.steps[0];
  for (size_t e = 0; e < 3 * 4; ++e) CHECK(golden.output.value[e] == 0);
  for (size_t r = 0; r < 3; ++r) CHECK(golden.lse.value[r] == -INFINITY);
  CHECK(std::isfinite(golden.lse.value[3]));
}

TEST_CASE("K = 0 and V = 1 give exactly 1, and LSE = ln n") {
  const Case c = make(R"({"head_dim": 4, "causal": "bottom_right", "lse": true})", R"([{"attend": 7}])",
                      R"({"recipe": "analytic"})");
  const OracleResult result = compute(c).result;
  for (const double value : result.golden.steps[0].output.value) CHECK(value == 1);
  for (size_t i = 0; i < 7; ++i) CHECK(result.golden.steps[0].lse.value[i] == std::log(static_cast<double>(i + 1)));
  CHECK(result.tie == 0);
}

TEST_CASE("negating V negates the output exactly; chunks equal the whole, bit for bit") {
  const Case whole =
      make(R"({"query_heads": 2, "head_dim": 8, "causal": "bottom_right", "cache": "contiguous", "capacity": 9})",
           R"([{"attend": 9}])");
  const Timeline timeline = play(whole);
  Inputs inputs = generate_inputs(whole, timeline);
  const GoldenTensor plain = compute_golden(whole, timeline, inputs).golden.steps[0].output;
  for (float& v : inputs.steps[0].value.data) v = -v;
  const GoldenTensor negated = compute_golden(whole, timeline, inputs).golden.steps[0].output;
  for (size_t i = 0; i < plain.value.size(); ++i) CHECK(plain.value[i] == -negated.value[i]);
  CHECK(plain.allowed == negated.allowed);

  const Case parts =
      make(R"({"query_heads": 2, "head_dim": 8, "causal": "bottom_right", "cache": "contiguous", "capacity": 12})",
           R"([{"attend": 4}, {"attend": 1, "repeat": 5}])");
  std::vector<double> joined;
  for (const GoldenStep& step : compute(parts).result.golden.steps) {
    joined.insert(joined.end(), step.output.value.begin(), step.output.value.end());
  }
  CHECK(joined == plain.value);
}

TEST_CASE("a layer of permutations is core attention with its channels moved") {
  const Case layer = make(R"({"level": "layer", "query_heads": 4, "kv_heads": 2, "head_dim": 8, "d_model": 32,
                              "causal": "bottom_right", "cache": "contiguous", "capacity": 8})",
                          R"([{"attend": 5}])", R"({"recipe": "needle", "weights": "permutation"})");
  const Case core = make(R"({"query_heads": 4, "kv_heads": 2, "head_dim": 8, "causal": "bottom_right"})",
                         R"([{"attend": 5}])", R"({"recipe": "needle"})");
  const Computed a = compute(layer);
  const Computed b = compute(core);
  const Dense<float>& wo = a.inputs.weights.out;
  for (size_t r = 0; r < 5; ++r) {
    for (size_t o = 0; o < 32; ++o) {
      double wanted = 0;
      for (size_t i = 0; i < 32; ++i) {
        if (wo.data[o * 32 + i] != 0)
          wanted = static_cast<double>(wo.data[o * 32 + i]) * b.result.golden.steps[0].output.value[r * 32 + i];
      }
      CHECK(a.result.golden.steps[0].output.value[r * 32 + o] == wanted);
    }
  }
  CHECK(a.result.golden.steps[0].cache_key.shape == std::vector<int64_t>{5, 2, 8});
  for (size_t i = 0; i < b.inputs.steps[0].key.data.size(); ++i) {
    CHECK(a.result.golden.steps[0].cache_key.value[i] == static_cast<double>(b.inputs.steps[0].key.data[i]));
  }
}

TEST_CASE("a golden survives its file, and the file is checked") {
  namespace fs = std::filesystem;
  const fs::path root = fs::temp_directory_path() / "attest-golden-test";
  const Case c =
      make(R"({"level": "layer", "query_heads": 2, "head_dim": 4, "lse": true, "cache": "contiguous", "capacity": 6})",
           R"([{"attend": 3}, {"reset": [0]}, {"attend": 2}])");
  Manifest manifest;
  MadeGolden made;
  make_goldens({&c}, 2, [&](const MadeGolden& one) { made = one; });
  write_file(golden_path(root, c.id), made.bytes);
  CHECK_THROWS_AS(load_golden(root, manifest, c), Error);  // not in the manifest
  manifest.cases[c.id] = made.entry;
  const Golden read = load_golden(root, manifest, c);
  const Golden computed = compute(c).result.golden;
  REQUIRE(read.steps.size() == 3);
  for (const size_t s : {0, 2}) {
    CHECK(read.steps[s].output.value == computed.steps[s].output.value);
    CHECK(read.steps[s].output.allowed == computed.steps[s].output.allowed);
    CHECK(read.steps[s].cache_value.value == computed.steps[s].cache_value.value);
    CHECK(read.steps[s].rows == computed.steps[s].rows);
  }
  std::string flipped = made.bytes;
  flipped.back() = static_cast<char>(flipped.back() ^ 1);
  write_file(golden_path(root, c.id), flipped);
  CHECK_THROWS_AS(load_golden(root, manifest, c), Error);
  fs::remove(golden_path(root, c.id));
  CHECK_THROWS_AS(load_golden(root, manifest, c), Error);
  Case other = c;
  other.hash = "0";
  CHECK_THROWS_AS(load_golden(root, manifest, other), Error);
  fs::remove_all(root);
}
