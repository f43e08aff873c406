// SPDX-License-Identifier: Apache-2.0
// The memory of a case as a backend sees it, looked at in the arena itself.
#include "runner/session.h"

#include <algorithm>
#include <bit>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <limits>

#include "cases/pages.h"

using namespace attest;

namespace {

struct Bench {
  Bench(const std::string& problem, const std::string& steps, const std::string& inputs = R"({"recipe": "gaussian"})",
        const std::string& layouts = "{}")
      : c(case_from_json(Json{{"id", "one"},
                              {"about", ""},
                              {"clauses", {"A6"}},
                              {"kills", Json::array()},
                              {"problem", Json::parse(problem)},
                              {"inputs", Json::parse(inputs)},
                              {"layouts", Json::parse(layouts)},
                              {"steps", Json::parse(steps)}},
                         "family", "test")),
        timeline(play(c)),
        inputs_of(generate_inputs(c, timeline)),
        session(c, timeline, inputs_of) {}

  /// The block of a tensor in a request.
  [[nodiscard]] const Block& block(const RunRequest& request, const std::string& name) const {
    const int64_t begin = request.tensors.at(name).begin;
    const auto& blocks = session.arena().blocks();
    return *std::find_if(blocks.begin(), blocks.end(), [&](const Block& b) { return b.begin == begin; });
  }
  [[nodiscard]] std::vector<float> values(const RunRequest& request, const std::string& name) const {
    return session.arena().values(block(request, name));
  }
  [[nodiscard]] std::vector<int32_t> integers(const RunRequest& request, const std::string& name) const {
    return session.arena().gather<int32_t>(block(request, name));
  }

  Case c;
  Timeline timeline;
  Inputs inputs_of;
  Session session;
};

bool unwritten(float x) {
  return std::bit_cast<uint32_t>(x) == kUnwritten;
}

}  // namespace

TEST_CASE("padding is poisoned in the tensor's own dtype") {
  const auto last = [](const char* dtype, const char* poison) {
    Bench bench(std::string(R"({"batch": 2, "query_heads": 1, "head_dim": 2, "dtype": ")") + dtype + R"("})",
                R"([{"attend": [2, 1]}])", std::string(R"({"recipe": "gaussian", "poison": ")") + poison + R"("})");
    return bench.values(bench.session.begin(0), "query").back();
  };
  CHECK(std::isnan(last("f32", "nan")));
  CHECK(std::isnan(last("bf16", "nan")));
  CHECK(last("f32", "huge") == 3e38F);
  CHECK(last("f16", "huge") == 65504);
  CHECK(last("bf16", "huge") == 0x1.fep127F);
  CHECK(last("f16", "inf") == std::numeric_limits<float>::infinity());
  CHECK(last("f16", "zero") == 0);
}

TEST_CASE("unused slots of a quantised cache are poisoned, and so are their scales") {
  const auto unused = [](const char* codes, const char* poison) {
    Bench bench(std::string(R"({"batch": 1, "query_heads": 1, "head_dim": 2, "cache": "contiguous", "capacity": 4,
                               "kv_scale": "token", "cache_dtype": ")") +
                    codes + R"("})",
                R"([{"attend": 1}])", std::string(R"({"recipe": "gaussian", "poison": ")") + poison + R"("})");
    const RunRequest request = bench.session.begin(0);
    return std::pair(bench.values(request, "cache.key").back(), bench.values(request, "cache.value_scale").back());
  };
  CHECK(unused("i8", "nan").first == 127);
  CHECK(std::isnan(unused("i8", "nan").second));
  CHECK(unused("i8", "inf").first == -128);
  CHECK(std::isnan(unused("f8_e4m3", "nan").first));
  CHECK(std::isnan(unused("f8_e4m3", "inf").first));
  CHECK(unused("f8_e4m3", "huge").first == 448);
  CHECK(std::isnan(unused("f8_e5m2", "inf").first));
  CHECK(unused("f8_e5m2", "huge") == std::pair(57344.0F, 3e38F));
  CHECK(unused("f8_e5m2", "zero") == std::pair(0.0F, 0.0F));
}

TEST_CASE("a mask's padding attends if it is boolean, and is poison if it is added") {
  Bench boolean(R"({"batch": 2, "query_heads": 1, "head_dim": 2, "mask": "boolean"})", R"([{"attend": [3, 1]}])",
                R"({"recipe": "gaussian", "mask": {"pattern": "rows", "axes": "bq"}})");
  // Query 1 of sequence 0 sees nothing; of sequence 1 all but [0, 0] is padding.
  CHECK(boolean.values(boolean.session.begin(0), "mask") ==
        std::vector<float>{1, 1, 1, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1});
  Bench additive(R"({"batch": 2, "query_heads": 1, "head_dim": 2, "mask": "additive", "dtype": "f16"})",
                 R"([{"attend": [3, 1]}])",
                 R"({"recipe": "gaussian", "mask": {"pattern": "bias", "axes": "bq"}, "poison": "huge"})");
  const auto values = additive.values(additive.session.begin(0), "mask");
  for (size_t i = 0; i < 9; ++i) CHECK(std::fabs(values[i]) <= 4);
  CHECK(std::fabs(values[9]) <= 4);
  for (size_t i = 10; i < 18; ++i) CHECK(values[i] == 65504);
  // What serves all sequences has no padding.
  Bench shared(R"({"batch": 2, "query_heads": 1, "head_dim": 2, "mask": "additive"})", R"([{"attend": [3, 1]}])",
               R"({"recipe": "gaussian", "mask": {"pattern": "bias", "axes": ""}, "poison": "huge"})");
  for (const float x : shared.values(shared.session.begin(0), "mask")) CHECK(std::fabs(x) <= 4);
}

TEST_CASE("packed tokens lie one after the other, and come back padded") {
  Bench bench(R"({"batch": 3, "query_heads": 2, "head_dim": 2, "packed": true, "lse": true, "causal": "bottom_right",
                  "rope": {"style": "half", "base": 100}})",
              R"([{"attend": [1, 0, 2], "positions": [5, 0, 7]}])");
  const RunRequest request = bench.session.begin(0);
  CHECK_FALSE(request.tensors.contains("query_lengths"));
  CHECK(request.tensors.at("query").shape == std::vector<int64_t>{3, 2, 2});
  CHECK(request.tensors.at("lse").shape == std::vector<int64_t>{2, 3});
  CHECK(bench.integers(request, "query_start") == std::vector<int32_t>{0, 1, 1, 3});
  CHECK(bench.integers(request, "key_start") == std::vector<int32_t>{0, 1, 1, 3});
  CHECK(bench.integers(request, "positions") == std::vector<int32_t>{5, 7, 8});
  const auto& given = bench.inputs_of.steps[0].query.data;  // [3, 2, 2, 2]
  const auto query = bench.values(request, "query");
  CHECK(std::equal(query.begin(), query.begin() + 4, given.begin()));
  CHECK(std::equal(query.begin() + 4, query.end(), given.begin() + 16));

  // The worker's part.
  auto& arena = const_cast<Arena&>(bench.session.arena());
  arena.put(bench.block(request, "lse"), {1, 2, 3, 4, 5, 6});
  arena.put(bench.block(request, "output"), {1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3});
  const StepOutcome outcome = bench.session.end(0, {});
  CHECK(outcome.foreign.empty());
  CHECK(outcome.lse.shape == std::vector<int64_t>{3, 2, 2});
  CHECK(outcome.lse.data[0] == 1);                // sequence 0, head 0, query 0
  CHECK(outcome.lse.data[(2 * 2 + 1) * 2] == 5);  // sequence 2, head 1, query 0
  CHECK(outcome.lse.data[(2 * 2 + 1) * 2 + 1] == 6);
  CHECK(unwritten(outcome.lse.data[1]));
  CHECK(outcome.output.shape == std::vector<int64_t>{3, 2, 2, 2});
  CHECK(outcome.output.data[0] == 1);
  CHECK(unwritten(outcome.output.data[4]));
  CHECK(outcome.output.data[(2 * 2 + 1) * 4] == 3);
}

TEST_CASE("positions of padding are no positions") {
  Bench bench(R"({"batch": 2, "query_heads": 1, "head_dim": 2, "rope": {"style": "half", "base": 100}})",
              R"([{"attend": [2, 1], "positions": 10}, {"attend": 1}])");
  const RunRequest request = bench.session.begin(0);
  const auto positions = bench.integers(request, "positions");
  CHECK(std::vector<int32_t>(positions.begin(), positions.begin() + 3) == std::vector<int32_t>{10, 11, 10});
  CHECK((positions[3] < 0 || positions[3] > 1000000));
  CHECK_FALSE(bench.session.begin(1).tensors.contains("positions"));
}

TEST_CASE("a paged cache: the table, what lies behind it, and the pages that are copied") {
  Bench bench(R"({"batch": 2, "query_heads": 1, "head_dim": 2, "cache": "paged", "capacity": 8, "page_size": 4,
                  "cache_dtype": "i8", "kv_scale": "token"})",
              R"([{"attend": [3, 1]}, {"fork": {"from": 0, "to": 1}}, {"attend": [1, 1]}])");
  const RunRequest first = bench.session.begin(0);
  CHECK(first.tensors.at("cache.key").shape == std::vector<int64_t>{page_count(bench.c.problem), 4, 1, 2});
  CHECK(first.tensors.at("cache.key_scale").shape == std::vector<int64_t>{page_count(bench.c.problem), 4, 1});
  const auto table = bench.integers(first, "cache.block_table");
  const auto pages = [&](size_t s) { return bench.timeline[s].pages; };
  CHECK(table[0] == pages(0).table[0][0]);
  CHECK(table[2] == pages(0).table[1][0]);
  for (const size_t unused : {1U, 3U}) CHECK((table[unused] < 0 || table[unused] >= page_count(bench.c.problem)));

  // The worker appends: code 7 and scale 2 everywhere in sequence 0's page.
  auto& arena = const_cast<Arena&>(bench.session.arena());
  auto keys = bench.values(first, "cache.key");
  auto scales = bench.values(first, "cache.key_scale");
  const auto page = static_cast<size_t>(pages(0).table[0][0]);
  std::fill_n(keys.begin() + static_cast<int64_t>(page * 8), 8, 7.0F);
  std::fill_n(scales.begin() + static_cast<int64_t>(page * 4), 4, 2.0F);
  arena.put(bench.block(first, "cache.key"), keys);
  arena.put(bench.block(first, "cache.key_scale"), scales);
  bench.session.end(0, {});
  bench.session.apply(1);
  REQUIRE(pages(2).copies.size() == 1);
  const auto [from, to] = pages(2).copies[0];
  CHECK(from == pages(0).table[0][0]);
  const RunRequest second = bench.session.begin(2);
  CHECK(bench.values(second, "cache.key")[static_cast<size_t>(to * 8 + 7)] == 7);
  CHECK(bench.values(second, "cache.key_scale")[static_cast<size_t>(to * 4 + 3)] == 2);
  // The copy is the suite's doing and no change by the step.
  const StepOutcome outcome = bench.session.end(2, {});
  CHECK(outcome.before.key.data[static_cast<size_t>(to * 8)] == 7);
  CHECK(outcome.before.key.data == outcome.after.key.data);
}

TEST_CASE("forks and reorders of other caches move slots with their scales") {
  Bench bench(R"({"batch": 2, "query_heads": 1, "head_dim": 2, "cache": "contiguous", "capacity": 2,
                  "cache_dtype": "i8", "kv_scale": "token"})",
              R"([{"attend": 1}, {"reorder": [1, 0]}, {"fork": {"from": 1, "to": 0}}, {"attend": 1}])");
  const RunRequest request = bench.session.begin(0);
  auto& arena = const_cast<Arena&>(bench.session.arena());
  arena.put(bench.block(request, "cache.key"), {1, 2, 3, 4, 5, 6, 7, 8});
  arena.put(bench.block(request, "cache.value_scale"), {1, 2, 3, 4});
  bench.session.end(0, {});
  bench.session.apply(1);
  CHECK(bench.values(request, "cache.key") == std::vector<float>{5, 6, 7, 8, 1, 2, 3, 4});
  CHECK(bench.values(request, "cache.value_scale") == std::vector<float>{3, 4, 1, 2});
  bench.session.apply(2);
  CHECK(bench.values(request, "cache.key") == std::vector<float>{1, 2, 3, 4, 1, 2, 3, 4});
}

TEST_CASE("a load puts finished keys and values into their slots and leaves the others") {
  for (const char* dtype : {"f32", "f16"}) {
    Bench bench(std::string(R"({"batch": 2, "query_heads": 2, "head_dim": 2, "cache": "contiguous", "capacity": 4,
                               "dtype": ")") +
                    dtype + R"("})",
                R"([{"load": [2, 1]}, {"load": [0, 2]}, {"attend": 1}])");
    bench.session.apply(0);
    bench.session.apply(1);
    const RunRequest request = bench.session.begin(2);
    CHECK(bench.integers(request, "cache.lengths") == std::vector<int32_t>{2, 3});
    const auto keys = bench.values(request, "cache.key");
    const auto &first = bench.inputs_of.steps[0].key.data, &second = bench.inputs_of.steps[1].key.data;
    REQUIRE(keys.size() == 32);
    CHECK(std::equal(first.begin(), first.begin() + 8, keys.begin()));
    CHECK(std::equal(first.begin() + 8, first.begin() + 12, keys.begin() + 16));
    CHECK(std::equal(second.begin() + 8, second.begin() + 16, keys.begin() + 20));
    for (const size_t e : {8, 15, 28, 31}) CHECK(std::isnan(keys[e]));
    const auto values = bench.values(request, "cache.value");
    CHECK(std::equal(values.begin(), values.begin() + 8, bench.inputs_of.steps[0].value.data.begin()));
  }
}

TEST_CASE("scales that are inputs may not change") {
  Bench bench(R"({"batch": 1, "query_heads": 2, "head_dim": 2, "cache": "contiguous", "capacity": 2,
                  "cache_dtype": "f8_e4m3", "kv_scale": "head"})",
              R"([{"attend": 1}])");
  const RunRequest request = bench.session.begin(0);
  CHECK(request.tensors.at("cache.key_scale").shape == std::vector<int64_t>{2});
  CHECK(request.tensors.at("cache.key").dtype == DType::f8_e4m3);
  CHECK(bench.values(request, "cache.key_scale") == bench.inputs_of.key_scale.data);
  auto& arena = const_cast<Arena&>(bench.session.arena());
  arena.put_everywhere(bench.block(request, "cache.key_scale"), 1);
  const StepOutcome outcome = bench.session.end(0, {});
  REQUIRE(outcome.foreign.size() == 1);
  CHECK(outcome.foreign[0].tensor == "cache.key_scale");
  CHECK(outcome.foreign[0].input);
}

TEST_CASE("a malformed argument differs from the right one, whatever it is") {
  const auto bent = [](const std::string& problem, const std::string& argument, const std::string& change,
                       const std::string& inputs) {
    const std::string steps = R"([{"attend": 2, "expect": "invalid", "malform": {"argument": ")" + argument +
                              R"(", "change": ")" + change + R"("}}, {"attend": 2}])";
    Bench bench(problem, steps, inputs);
    protocol::Tensor wrong = bench.session.begin(0).tensors.at(argument);
    const protocol::Tensor right = bench.session.begin(1).tensors.at(argument);
    const DLDataType a = info(wrong.dtype).dlpack, b = info(right.dtype).dlpack;
    INFO(problem << " " << argument << " " << change);
    CHECK((wrong.shape != right.shape || a.code != b.code || a.bits != b.bits));
    return wrong;
  };
  const std::string plain = R"({"recipe": "gaussian"})";
  for (const char* dtype : {"f32", "f16", "bf16"}) {
    bent(std::string(R"({"head_dim": 2, "dtype": ")") + dtype + R"("})", "query", "dtype", plain);
  }
  for (const char* codes : {"i8", "f8_e4m3", "f8_e5m2"}) {
    bent(
        std::string(R"({"head_dim": 2, "cache": "contiguous", "capacity": 9, "kv_scale": "tensor", "cache_dtype": ")") +
            codes + R"("})",
        "cache.key", "dtype", plain);
  }
  const std::string paged = R"({"head_dim": 2, "cache": "paged", "capacity": 9, "page_size": 2})";
  for (const char* change : {"dtype", "rank", "batch", "head_dim"}) bent(paged, "cache.block_table", change, plain);
  // A mask's extent of 1 is legal, so it is never what comes out.
  for (const char* axes : {"", "b", "bhq"}) {
    const std::string mask =
        std::string(R"({"recipe": "gaussian", "mask": {"pattern": "holes", "axes": ")") + axes + R"("}})";
    for (const char* kind : {"boolean", "additive"}) {
      const std::string problem =
          std::string(R"({"batch": 2, "query_heads": 2, "head_dim": 2, "mask": ")") + kind + R"("})";
      for (const char* change : {"dtype", "rank", "head_dim"}) bent(problem, "mask", change, mask);
      CHECK(bent(problem, "mask", "batch", mask).shape[0] == 3);
      CHECK(bent(problem, "mask", "heads", mask).shape[1] == 3);
    }
  }
  const std::string packed = R"({"batch": 2, "query_heads": 2, "head_dim": 2, "packed": true})";
  CHECK(bent(packed, "key", "heads", plain).shape == std::vector<int64_t>{4, 1, 2});
  CHECK_THROWS_AS(bent(packed, "query", "batch", plain), Error);
}
