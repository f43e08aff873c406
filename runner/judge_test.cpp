// SPDX-License-Identifier: Apache-2.0
// The judge on outcomes made by hand from the golden itself, then bent in one place at a time.
#include "runner/judge.h"

#include <array>
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
    image.key = image.value = {{2, 6, 1, 4}, std::vector<float>(48, NAN)};
    image.lengths = {0, 0};
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

namespace {

/// Any problem: a golden that says 1 everywhere (and what is to be in the cache) with an allowed error of 0.125, and a
/// backend that does exactly that.
struct AnyBench {
  AnyBench(const std::string& problem, const std::string& steps,
           const std::string& inputs = R"({"recipe": "gaussian"})")
      : c(case_from_json(Json{{"id", "one"},
                              {"about", ""},
                              {"clauses", {"A6"}},
                              {"kills", Json::array()},
                              {"problem", Json::parse(problem)},
                              {"inputs", Json::parse(inputs)},
                              {"steps", Json::parse(steps)}},
                         "family", "test")),
        timeline(play(c)),
        made(generate_inputs(c, timeline)) {
    const Problem& p = c.problem;
    const auto ones = [](size_t n) {
      return GoldenTensor{{}, std::vector<double>(n, 1), std::vector<float>(n, 0.125F), std::vector<Mark>(n)};
    };
    for (const Moment& moment : timeline) {
      GoldenStep step;
      for (const Row& row : moment.rows) {
        step.rows.push_back(static_cast<int32_t>(row.sequence));
        step.rows.push_back(static_cast<int32_t>(row.index));
      }
      step.output = ones(moment.rows.size() * static_cast<size_t>(p.query_heads * p.v_head_dim));
      step.lse = ones(moment.rows.size() * static_cast<size_t>(p.query_heads));
      size_t tokens = 0;
      for (const auto& sequence : moment.incoming) tokens += sequence.size();
      if (p.transforms_keys()) step.cache_key = ones(tokens * static_cast<size_t>(p.kv_heads * p.qk_head_dim));
      if (p.transforms_values()) step.cache_value = ones(tokens * static_cast<size_t>(p.kv_heads * p.v_head_dim));
      if (p.kv_scale == KvScale::token) {
        step.key_scale = step.value_scale = ones(tokens * static_cast<size_t>(p.kv_heads));
      }
      golden.steps.push_back(step);
    }
    const int64_t outer = p.cache == CacheKind::paged ? page_count(p) : p.batch;
    const int64_t inner = p.cache == CacheKind::paged ? p.page_size : p.capacity;
    const auto filled = [&](std::vector<int64_t> shape) {
      int64_t n = 1;
      for (const int64_t extent : shape) n *= extent;
      return Dense<float>{std::move(shape), std::vector<float>(static_cast<size_t>(n), NAN)};
    };
    image.key = filled({outer, inner, p.kv_heads, p.qk_head_dim});
    image.value = filled({outer, inner, p.kv_heads, p.v_head_dim});
    if (p.kv_scale == KvScale::token) image.key_scale = image.value_scale = filled({outer, inner, p.kv_heads});
  }

  StepOutcome perfect(size_t s) {
    const Problem& p = c.problem;
    const Moment& moment = timeline[s];
    StepOutcome outcome;
    const auto ones = [](std::vector<int64_t> shape) {
      int64_t n = 1;
      for (const int64_t extent : shape) n *= extent;
      return Dense<float>{std::move(shape), std::vector<float>(static_cast<size_t>(n), 1)};
    };
    outcome.output = ones({p.batch, moment.max_queries, p.query_heads, p.v_head_dim});
    if (p.lse) outcome.lse = ones({p.batch, p.query_heads, moment.max_queries});
    if (p.cache == CacheKind::none) return outcome;
    image.lengths.assign(moment.before.begin(), moment.before.end());
    outcome.before = image;
    for (const auto& sequence : moment.incoming) {
      for (const Token& token : sequence) {
        const int64_t slot = slot_of(p, moment, token.origin, token.position);
        const int64_t from = token.origin * moment.max_keys + token.index;
        put(image.key, slot, made.steps[s].key, from, p.transforms_keys());
        put(image.value, slot, made.steps[s].value, from, p.transforms_values());
        if (p.kv_scale != KvScale::token) continue;
        put(image.key_scale, slot, {}, 0, true);
        put(image.value_scale, slot, {}, 0, true);
      }
    }
    image.lengths.assign(moment.after.begin(), moment.after.end());
    outcome.after = image;
    return outcome;
  }

  /// What is found when step `s` is bent, and all steps before it are perfect.
  std::vector<Finding> findings(size_t s, const std::function<void(StepOutcome&)>& bend) {
    Judge judge(c, timeline, made, golden, conventions);
    for (size_t i = 0; i <= s; ++i) {
      if (timeline[i].step.kind == StepKind::merge) judge.merge(i);
      if (timeline[i].step.kind != StepKind::attend) continue;
      StepOutcome outcome = perfect(i);
      if (i == s) bend(outcome);
      judge.step(i, outcome);
    }
    return judge.findings();
  }

  Case c;
  Timeline timeline;
  Inputs made;
  Golden golden;
  Conventions conventions;
  CacheImage image;

 private:
  static void put(Dense<float>& cache, int64_t slot, const Dense<float>& input, int64_t from, bool computed) {
    const auto width = static_cast<int64_t>(cache.data.size()) / (cache.shape[0] * cache.shape[1]);
    for (int64_t e = 0; e < width; ++e) {
      cache.data[static_cast<size_t>(slot * width + e)] =
          computed ? 1.0F : input.data[static_cast<size_t>(from * width + e)];
    }
  }
};

void check_one(const std::vector<Finding>& found, const std::string& kind, const std::string& clause,
               const std::string& tensor, const std::vector<int64_t>& index, const std::string& names) {
  REQUIRE(found.size() == 1);
  CHECK(found[0].kind == kind);
  CHECK(found[0].clause == clause);
  CHECK(found[0].tensor == tensor);
  CHECK(found[0].index == index);
  CHECK(found[0].index_names == names);
}

const auto kNothing = [](StepOutcome&) {};

}  // namespace

TEST_CASE("a paged cache: tokens are found through the table, spare slots stay") {
  const std::string problem = R"({"batch": 2, "query_heads": 1, "head_dim": 2, "cache": "paged", "capacity": 6,
                                 "page_size": 4, "causal": "bottom_right"})";
  const std::string steps = R"([{"attend": [3, 2]}, {"attend": 2}])";
  const auto bench = [&] { return AnyBench(problem, steps); };
  CHECK(bench().findings(1, kNothing).empty());
  AnyBench old = bench();
  const auto element = [&](int64_t sequence, int64_t position) {
    return static_cast<size_t>(slot_of(old.c.problem, old.timeline[1], sequence, position) * 2);
  };
  check_one(old.findings(1, [&](StepOutcome& o) { o.after.key.data[element(1, 0) + 1] += 1; }), "cache", "C5",
            "cache.key", {1, 0, 0, 1}, "sequence,position,head,channel");
  AnyBench appended = bench();
  check_one(appended.findings(1, [&](StepOutcome& o) { o.after.value.data[element(0, 4)] += 1; }), "cache", "C1",
            "cache.value", {0, 4, 0, 0}, "sequence,position,head,channel");
  AnyBench spare = bench();
  const auto found = spare.findings(1, [&](StepOutcome& o) { o.after.key.data[element(0, 4) + 4] = 7; });
  REQUIRE(found.size() == 1);
  CHECK(found[0].clause == "T3");
  CHECK(found[0].index_names == "page,slot,head,channel");
  CHECK(found[0].index[0] == old.timeline[1].pages.table[0][1]);
  CHECK(found[0].index[1] == 2);
}

TEST_CASE("a ring: only the tokens that are left are compared, and they may overwrite") {
  const std::string problem = R"({"batch": 1, "query_heads": 1, "head_dim": 2, "cache": "ring", "capacity": 4,
                                 "causal": "bottom_right", "window": {"left": 2}})";
  const auto bench = [&] { return AnyBench(problem, R"([{"attend": 3}, {"attend": 6}, {"attend": 1}])"); };
  CHECK(bench().findings(2, kNothing).empty());
  // After the second step the slots hold the tokens 8, 5, 6, 7.
  check_one(bench().findings(1, [](StepOutcome& o) { o.after.key.data[0] += 1; }), "cache", "C1", "cache.key",
            {0, 8, 0, 0}, "sequence,position,head,channel");
  // The third one writes token 9 to slot 1.
  CHECK(bench().findings(2, kNothing).empty());
  check_one(bench().findings(2, [](StepOutcome& o) { o.after.key.data[2 * 2] += 1; }), "cache", "C5", "cache.key",
            {0, 6, 0, 0}, "sequence,position,head,channel");
}

TEST_CASE("a quantised cache: codes and scales within their golden, old ones as they were") {
  const std::string problem = R"({"batch": 1, "query_heads": 2, "head_dim": 2, "cache": "contiguous", "capacity": 6,
                                 "cache_dtype": "i8", "kv_scale": "token"})";
  const auto bench = [&] { return AnyBench(problem, R"([{"attend": 2}, {"attend": 1}])"); };
  CHECK(bench().findings(1, kNothing).empty());
  CHECK(bench().findings(1, [](StepOutcome& o) { o.after.key.data[2 * 4] = 1.125F; }).empty());
  check_one(bench().findings(1, [](StepOutcome& o) { o.after.key.data[2 * 4 + 3] = 2; }), "cache", "Q1", "cache.key",
            {0, 2, 1, 1}, "sequence,position,head,channel");
  check_one(bench().findings(1, [](StepOutcome& o) { o.after.value_scale.data[2 * 2 + 1] = 2; }), "cache", "Q2",
            "cache.value_scale", {0, 2, 1}, "sequence,position,head");
  check_one(bench().findings(1, [](StepOutcome& o) { o.after.key_scale.data[0] = 2; }), "cache", "C5",
            "cache.key_scale", {0, 0, 0}, "sequence,position,head");
  check_one(bench().findings(1, [](StepOutcome& o) { o.after.key_scale.data[2 * 3] = 2; }), "cache", "T3",
            "cache.key_scale", {0, 3, 0}, "sequence,slot,head");
  // A vector of zeros may have any scale, if only a finite one.
  AnyBench zero = bench();
  zero.golden.steps[1].key_scale.allowed[0] = std::numeric_limits<float>::infinity();
  CHECK(zero.findings(1, [](StepOutcome& o) { o.after.key_scale.data[2 * 2] = 1e30F; }).empty());
  AnyBench nan = bench();
  nan.golden.steps[1].key_scale.allowed[0] = std::numeric_limits<float>::infinity();
  CHECK(nan.findings(1, [](StepOutcome& o) { o.after.key_scale.data[2 * 2] = NAN; }).size() == 1);
  // Of a code with no room for error nothing but the code will do.
  AnyBench exact = bench();
  for (float& allowed : exact.golden.steps[1].cache_key.allowed) allowed = 0;
  CHECK(exact.findings(1, kNothing).empty());
  AnyBench off = bench();
  for (float& allowed : off.golden.steps[1].cache_key.allowed) allowed = 0;
  const auto found = off.findings(1, [](StepOutcome& o) { o.after.key.data[2 * 4] = 0; });
  REQUIRE(found.size() == 1);
  CHECK(found[0].ratio == std::numeric_limits<double>::infinity());
}

TEST_CASE("results are merged by their LSE and judged against the whole") {
  const std::string steps = R"([{"attend": 1, "keys": 2}, {"attend": 1, "keys": 3, "again": true}, {"merge": 2}])";
  const std::string problem = R"({"batch": 1, "query_heads": 1, "head_dim": 1, "lse": true})";
  const auto merged = [&](const Conventions& conventions, std::array<double, 2> output, std::array<double, 2> lse,
                          double golden_output, double golden_lse) {
    AnyBench bench(problem, steps);
    for (size_t s : {size_t{0}, size_t{1}}) {
      bench.golden.steps[s].output.allowed[0] = std::numeric_limits<float>::infinity();
      bench.golden.steps[s].lse.allowed[0] = std::numeric_limits<float>::infinity();
    }
    bench.golden.steps[2].output.value[0] = golden_output;
    bench.golden.steps[2].output.allowed[0] = 1e-6F;
    bench.golden.steps[2].lse.value[0] = golden_lse;
    bench.golden.steps[2].lse.allowed[0] = 1e-6F;
    Judge judge(bench.c, bench.timeline, bench.made, bench.golden, conventions);
    for (size_t s : {size_t{0}, size_t{1}}) {
      StepOutcome outcome = bench.perfect(s);
      outcome.output.data[0] = static_cast<float>(output[s]);
      outcome.lse.data[0] = static_cast<float>(lse[s]);
      judge.step(s, outcome);
    }
    judge.merge(2);
    std::vector<Finding> found;
    for (const Finding& finding : judge.findings()) {
      if (finding.step == 2) found.push_back(finding);
    }
    return found;
  };
  // Weights of 1/4 and 3/4.
  const double ln3 = std::log(3.0);
  CHECK(merged({}, {8, 4}, {0, ln3}, 5, std::log(4.0)).empty());
  const auto wrong = merged({}, {8, 4}, {0, ln3}, 5.5, std::log(4.0));
  REQUIRE(wrong.size() == 1);
  CHECK(wrong[0].clause == "E2");
  CHECK(wrong[0].kind == "value");
  CHECK(merged({}, {8, 4}, {0, ln3}, 5, 2).size() == 1);
  CHECK(merged({}, {0, 4}, {-INFINITY, ln3}, 4, ln3).empty());
  CHECK(merged({}, {0, 0}, {-INFINITY, -INFINITY}, 0, -INFINITY).empty());
  CHECK(merged({}, {0, 4}, {NAN, ln3}, 4, ln3).size() == 2);
  Conventions other;
  other.empty_lse_is_positive = other.empty_output_is_nan = other.lse_is_base_2 = true;
  CHECK(merged(other, {8, 4}, {0, ln3 / std::log(2.0)}, 5, std::log(4.0)).empty());
  CHECK(merged(other, {NAN, 4}, {INFINITY, ln3 / std::log(2.0)}, 4, ln3).empty());
  CHECK_FALSE(merged(other, {8, 4}, {0, ln3}, 5, std::log(4.0)).empty());
}

TEST_CASE("declared conventions are what is wanted, and nothing else") {
  const std::string problem = R"({"batch": 1, "query_heads": 1, "head_dim": 1, "lse": true, "causal": "bottom_right"})";
  // Two queries, one key: the first query is before it.
  const auto judged = [&](const Conventions& conventions, float output, float lse, float other_lse) {
    AnyBench bench(problem, R"([{"attend": 2, "keys": 1}])");
    bench.golden.steps[0].output.value[0] = 0;
    bench.golden.steps[0].lse.value = {-INFINITY, 1};
    bench.conventions = conventions;
    return bench.findings(0, [&](StepOutcome& o) {
      o.output.data[0] = output;
      o.lse.data = {lse, other_lse};
    });
  };
  CHECK(judged({}, 0, -INFINITY, 1).empty());
  CHECK(judged({}, NAN, -INFINITY, 1).size() == 1);
  CHECK(judged({}, 0, INFINITY, 1).size() == 1);
  Conventions nan;
  nan.empty_output_is_nan = true;
  CHECK(judged(nan, NAN, -INFINITY, 1).empty());
  CHECK(judged(nan, 0, -INFINITY, 1).size() == 1);
  const auto unwritten = judged(nan, std::bit_cast<float>(kUnwritten), -INFINITY, 1);
  REQUIRE(unwritten.size() == 1);
  CHECK(unwritten[0].kind == "unwritten");
  Conventions positive;
  positive.empty_lse_is_positive = true;
  CHECK(judged(positive, 0, INFINITY, 1).empty());
  CHECK(judged(positive, 0, -INFINITY, 1).size() == 1);
  Conventions base_2;
  base_2.lse_is_base_2 = true;
  // The allowed error of 0.125 grows to 0.18, around 1.4427.
  CHECK(judged(base_2, 0, -INFINITY, 1.45F).empty());
  CHECK(judged(base_2, 0, -INFINITY, 1.62F).empty());
  CHECK(judged(base_2, 0, -INFINITY, 1).size() == 1);
}

TEST_CASE("rows without a golden may be empty where a mask hides all keys") {
  const auto bench = [&](const std::string& kind) {
    AnyBench made(R"({"batch": 1, "query_heads": 1, "head_dim": 1, "lse": true, "mask": ")" + kind + R"("})",
                  R"([{"attend": 4}])", R"({"recipe": "gaussian", "mask": {"pattern": "rows", "axes": "q"}})");
    for (GoldenTensor* tensor : {&made.golden.steps[0].output, &made.golden.steps[0].lse}) {
      tensor->value = {1};
      tensor->allowed = {0.125F};
    }
    made.golden.steps[0].rows = {0, 0};
    return made;
  };
  // Query 1 sees nothing.
  const auto right = [](StepOutcome& o) {
    o.output.data = {1, 0, 0, 0};
    o.lse.data = {1, -INFINITY, 1, 1};
  };
  for (const char* kind : {"boolean", "additive"}) {
    CAPTURE(kind);
    CHECK(bench(kind).findings(0, right).empty());
    CHECK(bench(kind).findings(0, [&](StepOutcome& o) { right(o), o.lse.data[1] = 0; })[0].clause == "M7");
    CHECK(bench(kind).findings(0, [&](StepOutcome& o) { right(o), o.lse.data[2] = -INFINITY; })[0].clause == "T4");
    CHECK(bench(kind).findings(0, [&](StepOutcome& o) { right(o), o.output.data[1] = 1e-9F; }).size() == 1);
    AnyBench declared = bench(kind);
    declared.conventions.empty_output_is_nan = declared.conventions.empty_lse_is_positive = true;
    CHECK(declared.findings(0, [&](StepOutcome& o) { right(o), o.output.data[1] = NAN, o.lse.data[1] = INFINITY; })
              .empty());
    CHECK(declared.findings(0, right).size() == 2);
  }
}
