// SPDX-License-Identifier: Apache-2.0
#include "bench/results.h"

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_exception.hpp>
#include <catch2/matchers/catch_matchers_floating_point.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include "bench/page.h"
#include "bench/table.h"
#include "cases/error.h"

namespace attest::bench {
namespace {

using Catch::Matchers::ContainsSubstring;
using Catch::Matchers::MessageMatches;
using Catch::Matchers::WithinRel;

/// Two backends at two contexts; the second is wrong at one of them.
std::vector<Measured> invented(double factor = 1) {
  std::vector<Measured> list;
  for (const Shape& shape : shapes_from_json(R"({"shapes": [{"set": "decode", "context": [512, 2048]}]})", "test")) {
    Measured one{.shape = shape, .cost = cost_of(shape), .copies = 3, .ceiling = {40e9, 80e9, 150e9}, .series = {}};
    Series series{"mine", Temperature::cold, "", {}};
    for (int round = 0; round < 20; ++round) {
      const double noise = 1 + 0.001 * (round % 5);
      series.rounds.push_back({1000 * factor * noise, 1001 * factor * noise, 999 * factor * noise});
    }
    one.series.push_back(series);
    one.series.push_back({"other <b>", Temperature::cold, shape.context == 512 ? "" : "wrong\nthere", series.rounds});
    if (shape.context != 512) one.series.back().rounds.clear();
    list.push_back(one);
  }
  return list;
}

TEST_CASE("Results are Google Benchmark's JSON") {
  const Json json = Json::parse(results_json(invented(), {{"cpu", "an invented one"}}));
  for (const char* field : {"date", "host_name", "executable", "num_cpus", "mhz_per_cpu", "cpu_scaling_enabled",
                            "caches", "load_avg", "library_build_type"}) {
    INFO(field);
    CHECK(json["context"].contains(field));
  }
  CHECK(json["context"]["cpu"] == "an invented one");
  REQUIRE(json["benchmarks"].size() == 4);
  const Json& first = json["benchmarks"][0];
  for (const char* field : {"name", "family_index", "per_family_instance_index", "run_name", "run_type", "repetitions",
                            "repetition_index", "threads", "iterations", "real_time", "cpu_time", "time_unit"}) {
    INFO(field);
    CHECK(first.contains(field));
  }
  CHECK(first["name"] == "mine/decode/b1_h32-32_d128_c512_f32/cold");
  CHECK(first["run_type"] == "iteration");
  CHECK(first["time_unit"] == "us");
  CHECK(first["iterations"] == 60);
  CHECK_THAT(first["real_time"].get<double>(), WithinRel(1002.0, 1e-3));
  CHECK_THAT(first["tokens_per_second"].get<double>(), WithinRel(1e6 / 1002, 1e-3));
  const double bytes = cost_of(invented()[0].shape).bytes;
  CHECK_THAT(first["ceiling_share"].get<double>(), WithinRel(bytes / 40e9 * 1e6 / 1002, 1e-3));
  CHECK(json["benchmarks"][3]["error_occurred"] == true);
  CHECK(json["benchmarks"][3]["error_message"] == "wrong\nthere");
  CHECK(json["attest"]["rounds"].size() == 3);
}

TEST_CASE("Results read back as they were") {
  const Results results = parse_results(results_json(invented(), {}), "test");
  REQUIRE(results.list.size() == 4);
  CHECK(results.list[0].backend == "mine");
  CHECK(results.list[0].set == "decode");
  CHECK(results.list[0].temperature == "cold");
  CHECK(results.list[0].rounds.size() == 20);
  CHECK(results.list[0].medians()[1] == 1000 * 1.001);
  CHECK(results.list[3].wrong == "wrong\nthere");
}

TEST_CASE("A file that is none of ours is refused with the place") {
  const auto refused = [](const std::string& text, const std::string& part) {
    CHECK_THROWS_MATCHES(parse_results(text, "r.json"), Error, MessageMatches(ContainsSubstring(part)));
  };
  refused("{", "r.json");
  refused("{}", "no array \"benchmarks\"");
  refused(R"({"benchmarks": [{}]})", "benchmarks[0]: has no name");
  refused(R"({"benchmarks": [{"name": "BM_sort/8"}]})", "none of attest bench");
  refused(R"({"benchmarks": [{"name": "a/b/c/d"}], "attest": {"rounds": {"a/b/c/d": 3}}})", "no arrays");
}

TEST_CASE("Two runs compare series by series, and what is missing is NOT_MEASURED") {
  const Results before = parse_results(results_json(invented(), {}), "a");
  const Results after = parse_results(results_json(invented(1.2), {}), "b");
  const auto list = compare_results(before, after, 0.02);
  REQUIRE(list.size() == 4);
  CHECK(list[0].comparison.verdict == Verdict::slower);
  CHECK(list[3].comparison.verdict == Verdict::not_measured);
  CHECK(verdict_of(list) == Verdict::slower);
  CHECK(compare_results(before, before, 0.02)[0].comparison.verdict == Verdict::same);
  Results half = after;
  half.list.resize(1);
  CHECK(compare_results(half, before, 0.02).size() == 4);
  CHECK(compare_results(before, before, 0.02, "mine", "other <b>").size() == 2);
  CHECK_THAT(comparison_table(list), ContainsSubstring("time +20.0 %"));
}

TEST_CASE("Table and page name every series, and no name forges either") {
  const Results results = parse_results(results_json(invented(), {}), "test");
  const std::string table = results_table(results);
  CHECK_THAT(table, ContainsSubstring("decode/b1_h32-32_d128_c2048_f32"));
  CHECK_THAT(table, ContainsSubstring("no number: wrong\\nthere"));
  const std::string page = results_page(results);
  CHECK_THAT(page, ContainsSubstring("<svg"));
  CHECK_THAT(page, ContainsSubstring("class=\"ceiling\""));
  CHECK_THAT(page, ContainsSubstring("other &lt;b&gt;"));
  CHECK_THAT(page, !ContainsSubstring("other <b>"));
  CHECK_THAT(page, !ContainsSubstring("http"));
}

}  // namespace
}  // namespace attest::bench
