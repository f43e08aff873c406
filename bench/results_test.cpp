// SPDX-License-Identifier: Apache-2.0
#include "bench/results.h"

#include <fmt/format.h>
#include <unistd.h>

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
    Measured one{.shape = shape, .cost = cost_of(shape), .copies = 3, .ceiling = {}, .series = {}};
    one.ceiling = {std::vector(20, 40e9), std::vector(20, 80e9), std::vector(20, 150e9)};
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
  CHECK(json["attest"]["ceilings"].size() == 3);
  CHECK(json["attest"]["ceilings"]["mine/decode/b1_h32-32_d128_c512_f32/cold"].size() == 20);
}

TEST_CASE("The share of the ceiling is that of each round: a machine whose memory has two speeds does not change it") {
  Measured one = invented()[0];
  Series& series = one.series[0];
  one.series.resize(1);
  const double best = one.cost.bytes / 40e9 * 1e6;  // microseconds
  for (size_t round = 0; round < 20; ++round) {
    const double speed = round < 9 ? 1.5 : 1;
    one.ceiling.read_cold[round] = 40e9 * speed;
    // 80 % of what there is; but most of the fast rounds find the backend at a limit of its own.
    series.rounds[round] = {best / 0.8 / (round == 0 ? speed : 1)};
  }
  const Figures figures = figures_of(one, series);
  CHECK_THAT(figures.share.median, WithinRel(0.8, 1e-9));
  CHECK_THAT(figures.share.low, WithinRel(0.8 / 1.5, 1e-9));
  CHECK_THAT(figures.share.high, WithinRel(0.8, 1e-9));
  CHECK_THAT(figures.ceiling, WithinRel(best, 1e-9));
  Results results = parse_results(results_json({one}, {}), "test");
  CHECK_THAT(results_table(results), ContainsSubstring(" 80 % (53-80) of read"));
  for (const char* field : {"ceiling_share_low", "ceiling_share_high"}) results.list.at(0).counters.erase(field);
  CHECK_THAT(results_table(results), ContainsSubstring(" 80 % of read"));  // a file from before there were any
  series.rounds.resize(kLeastPairs - 1);
  for (auto* rates : {&one.ceiling.read_cold, &one.ceiling.read_hot, &one.ceiling.multiply_add}) {
    rates->resize(kLeastPairs - 1);  // They give no interval at 95 %.
  }
  CHECK_THAT(results_table(parse_results(results_json({one}, {}), "test")), ContainsSubstring(" % of read"));
  one.ceiling = {};
  const Results without = parse_results(results_json({one}, {}), "test");
  CHECK(without.list.at(0).counter("ceiling_share") == 0);
  CHECK_THAT(results_table(without), ContainsSubstring("no ceiling"));
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
  refused("[]", "no array \"benchmarks\"");
  refused("{}", "no array \"benchmarks\"");
  refused(R"({"benchmarks": [{"name": "BM_sort/8"}]})", "none of attest bench");
  refused(R"({"benchmarks": [{"name": "BM_sort/8/real_time/threads:2", "real_time": 3, "time_unit": "us"}]})",
          "none of attest bench");
}

TEST_CASE("Every broken field of a results file is named") {
  const std::string good = results_json(invented(), {});
  const auto refused = [&](const char* pointer, const Json& value, const std::string& part) {
    Json json = Json::parse(good);
    json[Json::json_pointer(pointer)] = value;
    INFO(pointer << " = " << value);
    CHECK_THROWS_MATCHES(parse_results(json.dump(), "r.json"), Error, MessageMatches(ContainsSubstring(part)));
  };
  const auto refused_without = [&](const char* object, const char* field, const std::string& part) {
    Json json = Json::parse(good);
    json[Json::json_pointer(object)].erase(field);
    INFO(object << " without " << field);
    CHECK_THROWS_MATCHES(parse_results(json.dump(), "r.json"), Error, MessageMatches(ContainsSubstring(part)));
  };
  const std::string missing = "is missing";
  refused_without("", "attest", "r.json: has no object \"attest\"");
  refused_without("", "context", missing);
  refused("/attest", 3, "r.json: file.attest: got 3, wanted an object");
  refused("/attest/format", 7, "r.json: attest.format: got 7, wanted 1");
  refused("/attest/format", "1", "r.json: attest.format: got \"1\", wanted an integer");
  refused("/attest/unit", "ns", "r.json: attest.unit: got \"ns\", wanted one of: us");
  refused_without("/attest", "rounds", missing);
  refused("/benchmarks", 3, "r.json: file.benchmarks: got 3, wanted an array");
  refused("/benchmarks/0", 3, "r.json: benchmarks[0]: got 3, wanted an object");
  refused_without("/benchmarks/0", "name", missing);
  refused("/benchmarks/0/name", 3, "r.json: benchmarks[0].name: got 3, wanted a string");
  refused("/benchmarks/0/name", "BM_sort/8", "wanted backend/set/shape/temperature");
  refused("/benchmarks/0/name", "a/b/c/cold", "benchmarks[0].name: got \"b\" in \"a/b/c/cold\", wanted one of: decode");
  refused("/benchmarks/0/name", "a/decode/c/d", "got \"d\" in \"a/decode/c/d\", wanted one of: cold, hot");
  refused("/benchmarks/0/name", "/decode/c/hot", "wanted backend/set/shape/temperature");
  refused("/benchmarks/1/name", "mine/decode/b1_h32-32_d128_c512_f32/cold",
          "benchmarks[1].name: got \"mine/decode/b1_h32-32_d128_c512_f32/cold\" a second time");
  refused("/benchmarks/0/time_unit", "ns", "r.json: benchmarks[0].time_unit: got \"ns\", wanted one of: us");
  refused_without("/benchmarks/0", "time_unit", missing);
  refused("/benchmarks/0/error_occurred", "yes", "benchmarks[0].error_occurred: got \"yes\", wanted true or false");
  refused("/benchmarks/3/error_message", 5, "r.json: benchmarks[3].error_message: got 5, wanted a string");
  refused("/benchmarks/3/error_message", "", "r.json: benchmarks[3].error_message: got \"\", wanted a reason");
  refused_without("/benchmarks/3", "error_message", missing);
  refused_without("/benchmarks/0", "real_time", "r.json: benchmarks[0]: the field \"real_time\" is missing");
  refused("/benchmarks/0/real_time", "3", "r.json: benchmarks[0].real_time: got \"3\", wanted a number");
  refused("/benchmarks/0/real_time", -1, "r.json: benchmarks[0].real_time: got -1, wanted 0 or more");
  refused("/benchmarks/0/real_time", nullptr, "r.json: benchmarks[0].real_time: got null");
  refused_without("/benchmarks/0", "ceiling_share", missing);
  refused_without("/benchmarks/0", "ceiling_us", missing);
  refused_without("/benchmarks/0", "ceiling_share_low", missing);
  refused("/benchmarks/0/ceiling_share_high", "1", "benchmarks[0].ceiling_share_high: got \"1\", wanted a number");
  refused("/benchmarks/0/ceiling_share_low", 7, "benchmarks[0].ceiling_share_low: got 7, wanted");
  refused("/attest/ceilings", {{"mine/decode/b1_h32-32_d128_c512_f32/cold", {1, 2}}}, "got 2 rounds, wanted 20");
  refused("/attest/ceilings", 3, "r.json: attest.ceilings: got 3, wanted an object");
  refused("/attest/ceilings/nobody", {1.0}, "attest.ceilings: \"nobody\" is the name of no benchmark");
  const std::string rounds = "r.json: attest.rounds[\"mine/decode/b1_h32-32_d128_c512_f32/cold\"]";
  const Json::json_pointer first = Json::json_pointer("/attest/rounds") / "mine/decode/b1_h32-32_d128_c512_f32/cold";
  refused(first.to_string().c_str(), 3, rounds + ": got number, wanted an array");
  refused(first.to_string().c_str(), Json::array(), rounds + ": got an empty array");
  const Json::json_pointer bound = Json::json_pointer("/attest/ceilings") / "mine/decode/b1_h32-32_d128_c512_f32/cold";
  refused((bound / 1).to_string().c_str(), 0, "c512_f32/cold\"][1]: got 0, wanted more than 0");
  refused((first / 1).to_string().c_str(), 3, rounds + "[1]: got number, wanted an array");
  refused((first / 1).to_string().c_str(), Json::array(), rounds + "[1]: got an empty array");
  refused((first / 1 / 2).to_string().c_str(), -2, rounds + "[1][2]: got -2, wanted more than 0");
  refused((first / 1 / 2).to_string().c_str(), 0, rounds + "[1][2]: got 0, wanted more than 0");
  refused((first / 1 / 2).to_string().c_str(), "2", rounds + "[1][2]: got \"2\", wanted a number");
  refused_without("/attest/rounds", "mine/decode/b1_h32-32_d128_c512_f32/cold", missing);
  refused("/attest/rounds/other", Json::parse("[[1]]"), "attest.rounds: \"other\" is the name of no benchmark");
  Json none = Json::parse(good);
  none["benchmarks"] = Json::array();
  none["attest"]["rounds"] = none["attest"]["ceilings"] = Json::object();
  CHECK_THROWS_MATCHES(parse_results(none.dump(), "r.json"), Error,
                       MessageMatches(ContainsSubstring("benchmarks: got none, wanted one at least")));
}

TEST_CASE("What Google Benchmark says besides is let be") {
  Json json = Json::parse(results_json(invented(), {}));
  json["context"]["library_version"] = "v9";
  json["context"]["load_avg"] = nullptr;
  json["benchmarks"][0]["label"] = "a label";
  json["benchmarks"][3].erase("real_time");  // without a number there is no time to check
  json["benchmarks"][1]["error_occurred"] = false;
  CHECK(parse_results(json.dump(), "r.json").list.size() == 4);
}

TEST_CASE("Results that cannot be written leave nothing behind") {
  const std::filesystem::path folder =
      std::filesystem::temp_directory_path() / fmt::format("attest-results-{}", ::getpid());
  std::filesystem::create_directories(folder / "r.json");
  CHECK_THROWS_MATCHES(write_file(folder / "r.json", "{}"), Error,
                       MessageMatches(ContainsSubstring((folder / "r.json").string() + ": cannot be written: ")));
  CHECK(std::distance(std::filesystem::directory_iterator(folder), {}) == 1);
  std::filesystem::remove_all(folder);
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

TEST_CASE("Cold steps over too few copies of the cache are marked, in table and page") {
  const auto shown = [](size_t copies_wanted) {
    std::vector<Measured> list = invented();
    list[0].copies_wanted = copies_wanted;
    list[0].series.push_back(list[0].series[0]);
    list[0].series.back().temperature = Temperature::hot;
    const Results results = parse_results(results_json(list, {}), "test");
    return std::pair(results_table(results), results_page(results));
  };
  const auto [table, page] = shown(16);
  CHECK_THAT(table, ContainsSubstring("  mine      cold* "));
  CHECK_THAT(table, ContainsSubstring("  mine      hot   "));
  // At the end of its shape, and of no other.
  CHECK_THAT(table, ContainsSubstring("\n  * 3 copies of the cache only, of 16 that make it cold: may be warm\n\n"));
  CHECK(table.find("may be warm") == table.rfind("may be warm"));
  CHECK_THAT(page, ContainsSubstring("cold * <small>3 of 16</small>"));
  CHECK_THAT(page, ContainsSubstring("hot</td>"));
  CHECK_THAT(page, ContainsSubstring("<p>* So many copies of the cache only"));
  CHECK_THAT(page, ContainsSubstring("at 512: 3 copies of 16, may be warm</title>"));
  CHECK_THAT(page, !ContainsSubstring("at 2048: "));

  for (const size_t enough : {0, 3}) {  // 0: a file from before this was kept
    const auto [unmarked, page_of] = shown(enough);
    CHECK_THAT(unmarked, !ContainsSubstring("*"));
    CHECK_THAT(page_of, !ContainsSubstring("may be warm"));
  }
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
