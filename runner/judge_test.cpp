// SPDX-License-Identifier: Apache-2.0
// The judge on outcomes made by hand from the golden itself, then bent in one place at a time.
#include "runner/judge.h"

#include <bit>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <functional>
#include <limits>

using namespace attest;

namespace {

/// Two sequences, a prefill and a decode on a cache; a golden that says 1 everywhere with an allowed error of 0.125.
struct Bench {
  explicit Bench(const std::string& steps = R"([{"attend": [3, 2]}, {"attend": 1}])")
      : c(case_from_json(
            Json::parse(R"({"id": "one", "about": "", "clauses": ["A6"], "kills": [], "problem": {"batch": 2,
            "query_heads": 2, "kv_heads": 1, "head_dim": 4, "causal": "bottom_right", "cache": "contiguous", "capacity": 6,
            "lse": true}, "inputs": {"recipe": "gaussian"}, "steps": )" +
                        steps + "}"),
            "family", "test")),
        timeline(play(c)),
        inputs(generate_inputs(c, timeline)) {
    for (const Moment& moment : timeline) {
      GoldenStep step;
      for (const Row& row : moment.rows) {
        step.rows.push_back(static_cast<int32_t>(row.sequence));
        step.rows.push_back(static_cast<int32_t>(row.index));
      }
      const auto tensor = [&](size_t per_row) {
        const size_t n = moment.rows.size() * per_row;
        return GoldenTensor{{}, std::vector<double>(n, 1), std::vector<float>(n, 0.125F), std::vector<Mark>(n)};
      };
      step.output = tensor(8);
      step.lse = tensor(2);
      golden.steps.push_back(step);
    }
    image = {{{2, 6, 1, 4}, std::vector<float>(48, NAN)}, {{2, 6, 1, 4}, std::vector<float>(48, NAN)}, {0, 0}};
  }

  /// What a perfect backend leaves behind.
  StepOutcome perfect(size_t s) {
    const Moment& moment = timeline[s];
    StepOutcome outcome;
    const int64_t sq = moment.max_queries;
    outcome.output = {{2, sq, 2, 4}, std::vector<float>(static_cast<size_t>(2 * sq * 8), 1)};
    outcome.lse = {{2, 2, sq}, std::vector<float>(static_cast<size_t>(2 * sq * 2), 1)};
    outcome.before = image;
    for (const auto& sequence : moment.incoming) {
      for (const Token& token : sequence) {
        if (moment.step.expect != Expect::ok) break;
        for (int64_t d = 0; d < 4; ++d) {
          const auto to = static_cast<size_t>((token.origin * 6 + token.position) * 4 + d);
          const auto from = static_cast<size_t>((token.origin * moment.max_keys + token.index) * 4 + d);
          image.key.data[to] = inputs.steps[s].key.data[from];
          image.value.data[to] = inputs.steps[s].value.data[from];
        }
      }
    }
    image.lengths.assign(moment.after.begin(), moment.after.end());
    outcome.after = image;
    return outcome;
  }

  /// The findings when step `s` is bent and the steps before it are perfect.
  std::vector<Finding> findings(size_t s, const std::function<void(StepOutcome&)>& bend) {
    Judge judge(c, timeline, inputs, golden);
    for (size_t i = 0; i < s; ++i) REQUIRE(judge.step(i, perfect(i)));
    StepOutcome outcome = perfect(s);
    bend(outcome);
    judge.step(s, outcome);
    map = judge.error_map();
    worst = judge.worst_ratio();
    return judge.findings();
  }

  void check_one(size_t s, const std::string& kind, const std::string& clause,
                 const std::function<void(StepOutcome&)>& bend) {
    const auto found = findings(s, bend);
    REQUIRE(found.size() == 1);
    CHECK(found[0].kind == kind);
    CHECK(found[0].clause == clause);
    CHECK(found[0].step == static_cast<int64_t>(s));
  }

  Case c;
  Timeline timeline;
  Inputs inputs;
  Golden golden;
  CacheImage image;
  std::optional<ErrorMap> map;
  std::optional<double> worst;
};

}  // namespace

TEST_CASE("a perfect backend has no findings") {
  Bench bench;
  CHECK(bench.findings(1, [](StepOutcome&) {}).empty());
  CHECK(bench.worst == 0.0);
  CHECK_FALSE(bench.map);
}

TEST_CASE("the allowed error is allowed, and not a bit more") {
  Bench bench;
  CHECK(bench.findings(0, [](StepOutcome& o) { o.output.data[5] = 1.125F; }).empty());
  CHECK(bench.worst == 1.0);
  Bench other;
  other.check_one(0, "value", "A6", [](StepOutcome& o) { o.output.data[5] = std::nextafter(1.125F, 2.0F); });
}

TEST_CASE("a wrong value is found with its place, and drawn into the map") {
  Bench bench;
  const auto found = bench.findings(0, [](StepOutcome& o) {
    o.output.data[((1 * 3 + 1) * 2 + 1) * 4 + 2] = 3;  // sequence 1, token 1, head 1, channel 2
    o.output.data[0] = 2;
  });
  REQUIRE(found.size() == 1);
  CHECK(found[0].index == std::vector<int64_t>{1, 1, 1, 2});
  CHECK(found[0].got == 3.0);
  CHECK(found[0].wanted == 1.0);
  CHECK(found[0].allowed == 0.125);
  CHECK(found[0].ratio == 16.0);
  CHECK(found[0].bad == 2);
  CHECK(found[0].total == 5 * 8);
  REQUIRE(bench.map);
  CHECK(bench.map->ratio[(1 * 2 + 1) * 3 + 1] == 16);
  CHECK(bench.map->ratio[(1 * 2 + 1) * 3 + 2] == -1);  // a padded row is not checked
}

TEST_CASE("padded rows may hold anything") {
  Bench bench;
  CHECK(bench.findings(0, [](StepOutcome& o) { o.output.data[((1 * 3 + 2) * 2) * 4] = NAN; }).empty());
}

TEST_CASE("NaN, infinity and the sentinel never pass") {
  Bench nan;
  nan.check_one(0, "nan", "D2", [](StepOutcome& o) { o.output.data[3] = NAN; });
  Bench infinite;
  infinite.check_one(0, "value", "A6", [](StepOutcome& o) { o.output.data[3] = INFINITY; });
  Bench unwritten;
  unwritten.check_one(0, "unwritten", "T4",
                      [](StepOutcome& o) { o.output.data[3] = std::bit_cast<float>(kUnwritten); });
  Bench lse;
  lse.check_one(0, "value", "E1", [](StepOutcome& o) { o.lse.data[0] = 2; });
}

TEST_CASE("an infinite golden wants exactly that infinity") {
  Bench bench;
  bench.golden.steps[0].lse.value[0] = -INFINITY;
  CHECK(bench.findings(0, [](StepOutcome& o) { o.lse.data[0] = -INFINITY; }).empty());
  Bench other;
  other.golden.steps[0].lse.value[0] = -INFINITY;
  other.check_one(0, "value", "E1", [](StepOutcome& o) { o.lse.data[0] = -1e30F; });
}

TEST_CASE("cache: history, appended tokens, lengths and slots that no token was appended to") {
  Bench history;
  history.check_one(1, "cache", "C5", [](StepOutcome& o) { o.after.key.data[4] += 1; });
  Bench appended;
  appended.check_one(1, "cache", "C1", [](StepOutcome& o) { o.after.value.data[3 * 4 + 1] += 1e-6F; });
  Bench negative_zero;
  for (float& x : negative_zero.inputs.steps[1].key.data) x = -0.0F;
  negative_zero.check_one(1, "cache", "C1", [](StepOutcome& o) {
    for (float& x : o.after.key.data) x = x == 0 ? 0.0F : x;
  });
  Bench skipped;
  skipped.check_one(1, "cache", "C1", [](StepOutcome& o) { o.after.key.data[3 * 4] = NAN; });
  Bench length;
  length.check_one(1, "length", "C2", [](StepOutcome& o) { o.after.lengths[1] = 2; });
  Bench unused;
  unused.check_one(1, "cache", "T3", [](StepOutcome& o) { o.after.key.data[5 * 4] = 7; });
}

TEST_CASE("statuses: a legal step must be OK, and nothing else is judged when it is not") {
  Bench bench;
  const auto found = bench.findings(0, [](StepOutcome& o) {
    o.status = ATTEST_INVALID;
    o.message = "no";
    o.output.data[0] = NAN;
  });
  REQUIRE(found.size() == 1);
  CHECK(found[0].kind == "status");
  CHECK(found[0].text == "answered INVALID, wanted OK; it says: no");
}

TEST_CASE("foreign bytes are found even when the values are right") {
  Bench bench;
  bench.check_one(0, "guard", "T3", [](StepOutcome& o) {
    o.foreign.push_back({"output", "byte 4 past the end", false});
  });
  Bench input;
  input.check_one(0, "input", "T3", [](StepOutcome& o) { o.foreign.push_back({"query", "element", true}); });
}

TEST_CASE("a refusal changes nothing and says why") {
  const std::string steps = R"([{"attend": 4}, {"attend": 3, "expect": "overflow"}])";
  const auto refuse = [](StepOutcome& o) {
    o.status = ATTEST_OVERFLOW;
    o.message = "4 cached + 3 new tokens, capacity is 6";
    o.after = o.before;
    for (float& x : o.output.data) x = std::bit_cast<float>(kUnwritten);
    for (float& x : o.lse.data) x = std::bit_cast<float>(kUnwritten);
  };
  Bench good(steps);
  CHECK(good.findings(1, refuse).empty());
  Bench accepted(steps);
  accepted.check_one(1, "status", "V2", [](StepOutcome&) {});
  Bench mute(steps);
  mute.check_one(1, "message", "V3", [&](StepOutcome& o) { refuse(o), o.message = "no"; });
  Bench dirty(steps);
  dirty.check_one(1, "refusal", "P5", [&](StepOutcome& o) { refuse(o), o.after.key.data[4 * 4] = 1; });
  Bench advanced(steps);
  advanced.check_one(1, "refusal", "P5", [&](StepOutcome& o) { refuse(o), o.after.lengths[0] = 6; });
  Bench lse(steps);
  lse.check_one(1, "refusal", "P5", [&](StepOutcome& o) { refuse(o), o.lse.data[0] = 0; });
  Bench number(steps);
  number.check_one(1, "message", "V3", [&](StepOutcome& o) { refuse(o), o.message = "16 is too much"; });
  Bench written(steps);
  written.check_one(1, "refusal", "P5", [&](StepOutcome& o) { refuse(o), o.output.data[0] = 0; });
}

TEST_CASE("rows without a golden must still be finite and within their values") {
  Bench bench;
  for (GoldenTensor* tensor : {&bench.golden.steps[0].output, &bench.golden.steps[0].lse}) {
    tensor->value.resize(tensor->value.size() / 5);
    tensor->allowed.resize(tensor->value.size());
  }
  bench.golden.steps[0].rows = {0, 0};
  const auto small = [](StepOutcome& o) { std::fill(o.output.data.begin() + 8, o.output.data.end(), 0.0F); };
  CHECK(bench.findings(0, small).empty());
  Bench lse;
  lse.golden = bench.golden;
  lse.check_one(0, "invariant", "T4", [&](StepOutcome& o) { small(o), o.lse.data[4] = NAN; });
  Bench copy;
  copy.golden = bench.golden;
  copy.check_one(0, "invariant", "A6", [&](StepOutcome& o) { small(o), o.output.data[9] = 100; });
}
