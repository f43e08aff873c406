// SPDX-License-Identifier: Apache-2.0
// The measurement end to end on small shapes. Nothing here asks how long anything took.
#include "bench/measure.h"

#include <fmt/format.h>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_container_properties.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <cstring>
#include <map>
#include <numeric>

#include "bench/ceiling.h"
#include "bench/measure_test_support.h"
#include "bench/reference.h"

namespace attest::bench {
namespace {

using Catch::Matchers::ContainsSubstring, Catch::Matchers::IsEmpty;

const std::string kDecode = R"("set": "decode", )" + kSmall;

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
    const Measured result = Stand({ATTEST_TEMPLATE}).measured(fmt::format("{}, {}", kind, kSmall));
    REQUIRE(result.series.size() == (result.shape.is_decode() ? 2U : 1U));
    for (const Series& series : result.series) {
      CHECK_THAT(series.wrong, IsEmpty());
      CHECK(series.rounds.size() == 6);
      CHECK(summarise(series.samples()).n >= 6);
    }
    CHECK(result.ceiling.read_cold.size() == 6);
    CHECK(result.ceiling.multiply_add.size() == 6);
    CHECK(median(result.ceiling.read_cold) > 0);
    CHECK(median(result.ceiling.multiply_add) > 0);
    const Bound bound = bound_of(result, result.series[0]);
    REQUIRE(bound.microseconds.size() == 6);
    for (const double one : bound.microseconds) CHECK(one > 0);
  }
}

TEST_CASE("A backend that does nothing gets no number, with the reason") {
  const Measured result = Stand({ATTEST_NOOP, ATTEST_TEMPLATE}).measured(kDecode);
  REQUIRE(result.series.size() == 4);
  CHECK_THAT(result.series[0].wrong, ContainsSubstring("before the timed loop: cache.lengths[0] is 39, wanted 40"));
  CHECK(result.series[0].rounds.empty());
  CHECK(result.series[1].wrong == result.series[0].wrong);
  CHECK_THAT(result.series[2].wrong, IsEmpty());
}

TEST_CASE("A backend that leaves out work once it was checked gets no number, neither cold nor hot") {
  const std::vector<std::pair<std::string, std::string>> tricks{
      {"repeat", "output[sequence"}, {"append_once", "cache.key[sequence"}, {"every_second", "was not written"}};
  for (const auto& [trick, finding] : tricks) {
    const Measured result = Stand({fmt::format("{},trick={}", ATTEST_LAZY, trick)}).measured(kDecode);
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
    Stand stand({fmt::format("{},trick=refuse,at={}", ATTEST_LAZY, step), ATTEST_TEMPLATE});
    stand.settings.memory = 20000;  // One copy of the cache: two steps before the rounds.
    const Measured result = stand.measured(kDecode);
    REQUIRE(result.copies == 1);
    REQUIRE(result.series.size() == 4);
    CHECK(result.series[1].wrong == result.series[0].wrong);
    CHECK(result.series[0].rounds.empty());
    CHECK(result.series[1].rounds.empty());
    CHECK_THAT(result.series[2].wrong, IsEmpty());
    return result.series[0].wrong;
  };
  CHECK(wrong_at(1) == "unsupported: this step is not to its taste");
  CHECK(wrong_at(2) == "a step failed: UNSUPPORTED after others were done: this step is not to its taste");
  CHECK(wrong_at(3) == "a step failed: UNSUPPORTED after others were done: this step is not to its taste");
}

TEST_CASE("Each turn is announced with whose it is") {
  std::map<std::string, int> words;
  Stand stand({ATTEST_TEMPLATE});
  stand.progress = [&](const std::string& what, const std::string& who) { ++words[who.empty() ? what : who]; };
  stand.measured(kDecode);
  CHECK(words["validating template"] == 1);
  CHECK(words["template cold"] == 6);
  CHECK(words["template hot"] == 6);
  CHECK(words["the ceilings"] == 18);
  CHECK(words["validating template again"] == 2);
}

TEST_CASE("The same backend twice has two labels") {
  const Measured result = Stand({ATTEST_TEMPLATE, ATTEST_TEMPLATE}).measured(R"("set": "prefill", )" + kSmall);
  CHECK(result.series[0].backend == "template");
  CHECK(result.series[1].backend == "template#2");
  CHECK(result.series[0].rounds.size() == result.series[1].rounds.size());
}

TEST_CASE("A cache that does not fit is not measured, and says so") {
  Stand stand({ATTEST_TEMPLATE});
  stand.settings.memory = 100;
  const Measured result = stand.measured(kDecode);
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
    REQUIRE(backends[0]->steps(workload, {0}).wrong.empty());
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
