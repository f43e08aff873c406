// SPDX-License-Identifier: Apache-2.0
// The measurement end to end on small shapes. Nothing here asks how long anything took.
#include "bench/measure.h"

#include <fmt/format.h>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <cstring>
#include <map>
#include <numeric>

#include "bench/ceiling.h"
#include "bench/reference.h"

namespace attest::bench {
namespace {

using Catch::Matchers::ContainsSubstring;

Shape shape_of(const std::string& fields) {
  return shapes_from_json("{\"shapes\": [{" + fields + "}]}", "test").front();
}
Settings quick() {
  Settings settings;
  settings.seconds = 0.01;
  settings.rounds = 6;
  settings.memory = 64 << 20;
  return settings;
}
Measured measured(const Shape& shape, const std::vector<std::string>& backends, const Settings& settings = quick()) {
  const Cores cores;
  auto opened = open_all(backends, cores);
  Team team(cores);
  const Measured result = measure(shape, opened, cores, team, settings, [](const auto&...) {});
  cores.release(0);
  return result;
}

const std::string kSmall = R"("query_heads": 4, "kv_heads": 2, "head_dim": 16, "context": 40)";

TEST_CASE("A right backend gets a number in every kind of shape") {
  for (const std::string& kind : std::vector<std::string>{
           R"("set": "decode")", R"("set": "decode", "dtype": "f16", "batch": 3, "lengths": "skewed")",
           R"("set": "decode", "dtype": "bf16", "cache": "paged", "batch": 2)", R"("set": "decode", "kv": "int8")",
           R"("set": "decode", "kv": "int8", "dtype": "f16")", R"("set": "prefill")",
           R"("set": "prefill", "chunk": 8, "batch": 2)",
           R"("set": "mixed", "batch": 3, "cache": "paged", "lengths": "skewed", "chunk": 7)",
           R"("set": "decode", "batch": 2, "order": "heads")",
           R"("set": "decode", "batch": 2, "cache": "paged", "order": "heads")",
           R"("set": "layer", "batch": 2, "d_model": 48)"}) {
    INFO(kind);
    const Shape shape = shape_of(kind + ", " + kSmall);
    const Measured result = measured(shape, {ATTEST_TEMPLATE});
    REQUIRE(result.series.size() == (shape.is_decode() ? 2U : 1U));
    for (const Series& series : result.series) {
      CHECK(series.wrong == "");
      CHECK(series.rounds.size() == 6);
      CHECK(summarise(series.samples()).n >= 6);
    }
    CHECK(result.ceiling.read_cold > 0);
    CHECK(result.ceiling.multiply_add > 0);
    CHECK(bound_of(result, Temperature::cold).microseconds > 0);
  }
}

TEST_CASE("A backend that does nothing gets no number, with the reason") {
  const Measured result = measured(shape_of(R"("set": "decode", )" + kSmall), {ATTEST_NOOP, ATTEST_TEMPLATE});
  REQUIRE(result.series.size() == 4);
  CHECK_THAT(result.series[0].wrong, ContainsSubstring("before the timed loop: cache.lengths[0] is 39, wanted 40"));
  CHECK(result.series[0].rounds.empty());
  CHECK(result.series[1].wrong == result.series[0].wrong);
  CHECK(result.series[2].wrong == "");
}

TEST_CASE("A backend that leaves out work once it was checked gets no number, neither cold nor hot") {
  const std::vector<std::pair<std::string, std::string>> tricks{
      {"repeat", "output[sequence"}, {"append_once", "cache.key[sequence"}, {"every_second", "was not written"}};
  for (const auto& [trick, finding] : tricks) {
    const Measured result =
        measured(shape_of(R"("set": "decode", )" + kSmall), {std::string(ATTEST_LAZY) + ",trick=" + trick});
    REQUIRE(result.series.size() == 2);
    for (const Series& series : result.series) {
      INFO(trick << ", " << name(series.temperature) << ": " << series.wrong);
      CHECK_THAT(series.wrong, ContainsSubstring("after the timed loop") && ContainsSubstring(finding));
      CHECK(series.rounds.empty());
    }
  }
}

TEST_CASE("UNSUPPORTED is a refusal in a plan's first step, and a failure in any other") {
  const auto wrong_at = [](int step) {
    Settings settings = quick();
    settings.memory = 20000;  // One copy of the cache: two steps before the rounds.
    const Measured result =
        measured(shape_of(R"("set": "decode", )" + kSmall),
                 {fmt::format("{},trick=refuse,at={}", ATTEST_LAZY, step), ATTEST_TEMPLATE}, settings);
    REQUIRE(result.copies == 1);
    REQUIRE(result.series.size() == 4);
    CHECK(result.series[1].wrong == result.series[0].wrong);
    CHECK(result.series[0].rounds.empty());
    CHECK(result.series[1].rounds.empty());
    CHECK(result.series[2].wrong == "");
    return result.series[0].wrong;
  };
  CHECK(wrong_at(1) == "unsupported: this step is not to its taste");
  CHECK(wrong_at(2) == "a step failed: UNSUPPORTED after others were done: this step is not to its taste");
  CHECK(wrong_at(3) == "a step failed: UNSUPPORTED after others were done: this step is not to its taste");
}

TEST_CASE("Each turn is announced with whose it is") {
  const Cores cores;
  auto opened = open_all({ATTEST_TEMPLATE}, cores);
  Team team(cores);
  std::map<std::string, int> words;
  measure(shape_of(R"("set": "decode", )" + kSmall), opened, cores, team, quick(),
          [&](const std::string& what, const std::string& who) { ++words[who.empty() ? what : who]; });
  cores.release(0);
  CHECK(words["validating template"] == 1);
  CHECK(words["template cold"] == 6);
  CHECK(words["template hot"] == 6);
  CHECK(words["the ceilings"] == 18);
  CHECK(words["validating template again"] == 2);
}

TEST_CASE("The same backend twice has two labels") {
  const Measured result = measured(shape_of(R"("set": "prefill", )" + kSmall), {ATTEST_TEMPLATE, ATTEST_TEMPLATE});
  CHECK(result.series[0].backend == "template");
  CHECK(result.series[1].backend == "template#2");
  CHECK(result.series[0].rounds.size() == result.series[1].rounds.size());
}

TEST_CASE("A cache that does not fit is not measured, and says so") {
  Settings settings = quick();
  settings.memory = 100;
  const Measured result = measured(shape_of(R"("set": "decode", )" + kSmall), {ATTEST_TEMPLATE}, settings);
  CHECK_THAT(result.series.at(0).wrong, ContainsSubstring("a cache takes"));
}

TEST_CASE("Copies make five times the last cache, where memory allows") {
  const Shape shape = shape_of(R"("set": "decode", "kv_heads": 32, "context": 2048)");  // 64 MiB
  CHECK(copies_for(shape, 32 << 20, int64_t{16} << 30) == 3);
  CHECK(copies_for(shape, 1 << 20, int64_t{16} << 30) == 1);
  CHECK(copies_for(shape, 32 << 20, 130 << 20) == 2);
  CHECK(copies_for(shape, 32 << 20, 1 << 20) == 0);
  CHECK(copies_wanted(shape, 32 << 20) == 3);
  const Shape small = shape_of(R"("set": "decode", "query_heads": 1, "head_dim": 1, "context": 16)");  // 128 bytes
  CHECK(copies_for(small, 32 << 20, int64_t{16} << 30) == 4096);
  CHECK(copies_wanted(small, 32 << 20) == 5 * (32 << 20) / 128);
}

/// A step done by a right backend, to be spoilt.
struct Done {
  explicit Done(const Shape& shape) : team(cores), workload(shape, team, 1), reference(workload) {
    auto backends = open_all({ATTEST_TEMPLATE}, cores);
    REQUIRE(backends[0]->prepare(workload).empty());
    REQUIRE(backends[0]->step(workload, 0).wrong.empty());
    cores.release(0);
  }
  Cores cores;
  Team team;
  Workload workload;
  Reference reference;
};

TEST_CASE("What is wrong after a step is found and named") {
  Done done(shape_of(R"("set": "decode", "batch": 2, )" + kSmall));
  const auto check = [&] { return done.reference.check(done.workload, 0); };
  REQUIRE(check().empty());

  auto* output = done.workload.output().as<float>();
  const float right = output[0];
  output[0] += 1e-3F;
  CHECK_THAT(check(), ContainsSubstring("output[sequence 0, token 0, head 0] channel 0"));
  output[0] = std::numeric_limits<float>::quiet_NaN();
  CHECK_THAT(check(), ContainsSubstring("no number"));
  output[0] = right;

  auto* key = done.workload.cache_key(0).as<float>() + done.workload.cache_row(0, 39, 0);
  key[3] += 1;
  CHECK_THAT(check(), ContainsSubstring("cache.key[sequence 0, token 39, head 0] channel 3"));
  key[3] -= 1;
  done.workload.rewind(0);
  CHECK_THAT(check(), ContainsSubstring("cache.lengths[0]"));
}

TEST_CASE("The read ceiling reads every byte once, whatever the runs") {
  const Cores cores;
  Team team(cores);
  const std::vector<std::byte> bytes(100003);
  const std::span<const std::byte> all(bytes);
  team.wake();
  const std::vector<std::span<const std::byte>> runs{all.first(1), all.subspan(1, 50000), all.subspan(50001)};
  read_all(team, runs);
  CHECK(multiply_add(team) > 0);
  team.rest();
  CHECK(bytes_in(runs) == 100003);
}

}  // namespace
}  // namespace attest::bench
