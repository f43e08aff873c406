// SPDX-License-Identifier: Apache-2.0
// The oracle against formulas written here once more, in long double and without its code.
#include "golden/oracle.h"

#include <unistd.h>

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

TEST_CASE("results over parts of the keys merge to the whole") {
  const std::string problem = R"({"batch": 2, "query_heads": 2, "head_dim": 8, "lse": true})";
  const Case parts = make(problem, R"([{"attend": 3, "keys": [4, 0]}, {"attend": 3, "keys": [5, 6], "again": true},
                                       {"merge": 2}])");
  const Computed split = compute(parts);
  const GoldenStep& merged = split.result.golden.steps[2];
  REQUIRE(merged.output.shape == std::vector<int64_t>{6, 2, 8});
  CHECK(merged.rows == split.result.golden.steps[0].rows);
  // By the formula, in double; sequence 1 has all its keys in the second part.
  const auto& one = split.result.golden.steps[0];
  const auto& two = split.result.golden.steps[1];
  for (size_t i = 0; i < 12; ++i) {
    const double total = std::exp(one.lse.value[i]) + std::exp(two.lse.value[i]);
    CHECK(std::fabs(merged.lse.value[i] - std::log(total)) < 1e-13);
    const double share = std::exp(one.lse.value[i]) / total;
    for (size_t d = 0; d < 8; ++d) {
      const double o = share * one.output.value[i * 8 + d] + (1 - share) * two.output.value[i * 8 + d];
      CHECK(std::fabs(merged.output.value[i * 8 + d] - o) < 1e-13);
      CHECK(merged.output.allowed[i * 8 + d] > 0);
    }
    if (i >= 6) CHECK(merged.lse.value[i] == two.lse.value[i]);
  }
}

TEST_CASE("codes, their scales and what is read from them") {
  const std::string problem = R"({"head_dim": 8, "cache": "contiguous", "capacity": 8, "cache_dtype": "i8",
                                  "kv_scale": "token"})";
  const Case c = make(problem, R"([{"attend": 4}])");
  const Timeline timeline = play(c);
  Inputs inputs = generate_inputs(c, timeline);
  for (size_t d = 0; d < 8; ++d) inputs.steps[0].key.data[16 + d] = 0;  // token 2
  const GoldenStep golden = compute_golden(c, timeline, inputs).golden.steps[0];
  REQUIRE(golden.tokens.size() == 8);
  REQUIRE(golden.key_scale.shape == std::vector<int64_t>{4, 1});
  for (size_t t = 0; t < 4; ++t) {
    double most = 0;
    for (size_t d = 0; d < 8; ++d)
      most = std::max(most, std::fabs(static_cast<double>(inputs.steps[0].key.data[t * 8 + d])));
    CHECK(std::fabs(golden.key_scale.value[t] - most / 127) < 1e-16);
    CHECK(std::isinf(golden.key_scale.allowed[t]) == (t == 2));
    for (size_t d = 0; d < 8; ++d) {
      const double x = static_cast<double>(inputs.steps[0].key.data[t * 8 + d]);
      CHECK(golden.cache_key.value[t * 8 + d] == (most == 0 ? 0 : std::nearbyint(x / (most / 127))));
      CHECK(golden.cache_key.allowed[t * 8 + d] == 0);
    }
  }
  // An element between two codes is refused.
  inputs.steps[0].value.data[0] = 127;
  inputs.steps[0].value.data[1] = 3.5F;
  CHECK_THROWS_AS(compute_golden(c, timeline, inputs), Error);
  inputs.steps[0].value.data[1] = 3.51F;
  CHECK_NOTHROW(compute_golden(c, timeline, inputs));
}

TEST_CASE("what is loaded is as good as what was appended, bit for bit") {
  const std::string problem =
      R"({"batch": 2, "query_heads": 4, "kv_heads": 2, "head_dim": 8, "causal": "bottom_right", "lse": true,
          "cache": "contiguous", "capacity": 12})";
  const auto appended = compute(make(problem, R"([{"attend": 5}, {"attend": 3}])")).result.golden;
  const auto loaded = compute(make(problem, R"([{"load": 5}, {"attend": 3}])")).result.golden;
  CHECK(loaded.steps[0].rows.empty());
  CHECK(loaded.steps[1].output.value == appended.steps[1].output.value);
  CHECK(loaded.steps[1].output.allowed == appended.steps[1].output.allowed);
  CHECK(loaded.steps[1].lse.value == appended.steps[1].lse.value);
}

TEST_CASE("loaded keys are finished: a layer neither projects nor turns them") {
  const Case c = make(
      R"({"level": "layer", "query_heads": 2, "head_dim": 4, "d_model": 8, "cache": "contiguous", "capacity": 9,
          "rope": {"style": "half", "base": 10000}, "causal": "bottom_right"})",
      R"([{"load": 3}, {"attend": 1}])");
  const auto [inputs, result] = compute(c);
  CHECK(inputs.steps[0].key.shape == std::vector<int64_t>{1, 3, 2, 4});
  CHECK(inputs.steps[0].query.data.empty());
  CHECK(result.golden.steps[1].cache_key.shape == std::vector<int64_t>{1, 2, 4});
  Inputs equal = inputs;
  for (size_t i = 0; i < 24; ++i) equal.steps[0].value.data[i] = static_cast<float>(i % 8);
  equal.weights.out = {{8, 8}, std::vector<float>(64)};
  for (size_t i = 0; i < 8; ++i) equal.weights.out.data[9 * i] = 1;
  equal.weights.v = equal.weights.out;
  for (size_t i = 0; i < 8; ++i) equal.steps[1].value.data[i] = static_cast<float>(i);
  // Values that are all alike come out as they are: loaded ones as given, the new one through the identity.
  const OracleResult same = compute_golden(c, play(c), equal);
  for (size_t i = 0; i < 8; ++i) CHECK(same.golden.steps[1].output.value[i] == static_cast<double>(i));
}

TEST_CASE("channels that do not turn are copies") {
  const Case c = make(R"({"head_dim": 8, "rope": {"style": "half", "base": 100, "dim": 4}, "cache": "contiguous",
                          "capacity": 8})",
                      R"([{"attend": 3}])");
  const Computed computed = compute(c);
  const GoldenStep& golden = computed.result.golden.steps[0];
  REQUIRE(golden.cache_key.value.size() == 24);
  CHECK(golden.cache_value.empty());
  for (size_t i = 0; i < 24; ++i) {
    CHECK((golden.cache_key.allowed[i] == 0) == (i % 8 >= 4));
    if (i % 8 >= 4) CHECK(golden.cache_key.value[i] == static_cast<double>(computed.inputs.steps[0].key.data[i]));
  }
}

TEST_CASE("a case whose feature changes nothing is refused") {
  const auto check = [](const std::string& problem, const std::string& steps,
                        const std::string& inputs = R"({"recipe": "sharp"})") {
    const Case c = make(problem, steps, inputs);
    const Computed computed = compute(c);
    check_binding(c, computed.inputs, computed.result.golden);
  };
  const std::string window = R"({"head_dim": 8, "causal": "bottom_right", "window": {"left": 2}, )";
  CHECK_THROWS_AS(check(window + R"("cache": "ring", "capacity": 8})", R"([{"attend": 8}])"), Error);
  CHECK_NOTHROW(check(window + R"("cache": "ring", "capacity": 8})", R"([{"attend": 8}, {"attend": 1}])"));
  CHECK_NOTHROW(check(window + R"("cache": "ring", "capacity": 8})",
                      R"([{"attend": 8}, {"attend": 1}, {"truncate": [8]}, {"attend": 1}])"));
  const std::string paged = R"({"head_dim": 8, "causal": "bottom_right", "cache": "paged", "capacity": 8, )";
  CHECK_THROWS_AS(check(paged + R"("page_size": 4})", R"([{"attend": 4}])"), Error);
  CHECK_NOTHROW(check(paged + R"("page_size": 4})", R"([{"attend": 4}, {"attend": 1}])"));
  CHECK_NOTHROW(check(paged + R"("page_size": 4, "cache_dtype": "f8_e4m3", "kv_scale": "head"})",
                      R"([{"attend": 4}, {"attend": 1}])"));
  // Position 0 does not turn, and one key has the weight 1 whatever its logit.
  CHECK_THROWS_AS(check(R"({"head_dim": 8, "rope": {"style": "half", "base": 100}})", R"([{"attend": 1}])"), Error);
  CHECK_THROWS_AS(check(R"({"head_dim": 8, "mask": "boolean"})", R"([{"attend": 3}])",
                        R"({"recipe": "sharp", "mask": {"pattern": "padding_right", "axes": ""}})"),
                  Error);
}

TEST_CASE("goldens of codes and scales survive their file") {
  namespace fs = std::filesystem;
  const fs::path root = fs::temp_directory_path() / fmt::format("attest-golden-codes-test-{}", ::getpid());
  const Case c = make(R"({"dtype": "bf16", "query_heads": 2, "head_dim": 8, "lse": true, "cache": "contiguous",
                          "capacity": 8, "cache_dtype": "f8_e5m2", "kv_scale": "token"})",
                      R"([{"attend": 5}, {"attend": 1}])");
  Manifest manifest;
  make_goldens({&c}, 1, [&](const MadeGolden& made) {
    write_file(golden_path(root, c.id), made.bytes);
    manifest.cases[c.id] = made.entry;
  });
  const Golden read = load_golden(root, manifest, c);
  const Golden computed = compute(c).result.golden;
  for (const size_t s : {0, 1}) {
    CHECK(read.steps[s].cache_key.value == computed.steps[s].cache_key.value);
    CHECK(read.steps[s].value_scale.value == computed.steps[s].value_scale.value);
    CHECK(read.steps[s].value_scale.allowed == computed.steps[s].value_scale.allowed);
    CHECK(read.steps[s].tokens == computed.steps[s].tokens);
  }
  fs::remove_all(root);
}

TEST_CASE("a golden survives its file, and the file is checked") {
  namespace fs = std::filesystem;
  const fs::path root = fs::temp_directory_path() / fmt::format("attest-golden-test-{}", ::getpid());
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
