// SPDX-License-Identifier: Apache-2.0
#include "runner/challenge.h"

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_exception.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <filesystem>
#include <functional>

using namespace attest;
using Catch::Matchers::ContainsSubstring;
using Catch::Matchers::MessageMatches;

namespace {

Json tensor(const std::vector<int64_t>& shape, const Json& values) {
  return {{"shape", shape}, {"values", values}};
}

Json file() {
  const Json random = "_TO_BE_GENERATED_";
  const Json cache{{"key", tensor({1, 2, 4}, {{{1, 2, 3, 4}, {5, 6, 7, 8.5}}})},
                   {"value", tensor({1, 2, 4}, {{{0, 0, 0, 0}, {1, 1, 1, -1}}})}};
  return {{"description", "d"},
          {"note", "n"},
          {"test_cases",
           {{{"id", 2},
             {"name", "cached"},
             {"description", "one more"},
             {"weight", 15},
             {"config", {{"d_model", 4}, {"num_heads", 2}, {"max_cache_len", 8}, {"dropout", 0.1}}},
             {"seed", 43},
             {"inputs",
              {{"query", tensor({1, 1, 4}, random)},
               {"key", tensor({1, 1, 4}, random)},
               {"value", tensor({1, 1, 4}, random)},
               {"cache", cache},
               {"use_causal_mask", true}}},
             {"expected",
              {{"output", tensor({1, 1, 4}, random)},
               {"cache", {{"key", tensor({1, 3, 4}, random)}, {"value", tensor({1, 3, 4}, random)}}}}}}}},
          {"scoring", {{"total_weight", 100}}}};
}

void refused(const std::function<void(Json& file, Json& test)>& spoil, const std::string& why) {
  Json json = file();
  spoil(json, json["test_cases"][0]);
  CHECK_THROWS_MATCHES(challenge_from_json(json, "f.json"), Error, MessageMatches(ContainsSubstring(why)));
}

}  // namespace

TEST_CASE("a challenge file is read as it is") {
  const ChallengeFile read = challenge_from_json(file(), "f.json");
  REQUIRE(read.tests.size() == 1);
  CHECK_FALSE(read.visible);
  const ChallengeTest& test = read.tests[0];
  CHECK(test.id == 2);
  CHECK(test.cached() == 2);
  CHECK(test.head_dim() == 2);
  CHECK(test.query.source == ChallengeValues::generated);
  CHECK(test.cache->first.data == std::vector<float>{1, 2, 3, 4, 5, 6, 7, 8.5F});
  CHECK(test.expected_cache->second.shape == std::vector<int64_t>{1, 3, 4});
  CHECK(challenge_from_json(to_json(read), "again").tests[0].cache->first.data == test.cache->first.data);
}

TEST_CASE("a visible file has one case, and need not expect anything") {
  Json json{{"description", "d"}, {"note", "n"}, {"test_case", file()["test_cases"][0]}};
  json["test_case"].erase("expected");
  const ChallengeFile read = challenge_from_json(json, "v.json");
  CHECK(read.visible);
  CHECK_FALSE(read.tests[0].output);
}

TEST_CASE("placeholders say where values come from") {
  Json json = file();
  Json& inputs = json["test_cases"][0]["inputs"];
  inputs["query"]["values"] = "_PLACEHOLDER_USE_VISIBLE_TEST_";
  inputs["cache"]["key"]["values"] = inputs["cache"]["value"]["values"] = "_FROM_TEST_1_OUTPUT_";
  const ChallengeTest test = challenge_from_json(json, "f").tests[0];
  CHECK(test.query.source == ChallengeValues::visible);
  CHECK(test.cache->second.source == ChallengeValues::from_test_1);
}

TEST_CASE("what is wrong with a challenge file is said with its place") {
  refused([](Json&, Json& test) { test["inputs"]["query"]["values"] = "_RANDOM_"; },
          "f.json: the file.test_cases[0].inputs.query.values: got \"_RANDOM_\", wanted numbers");
  refused([](Json&, Json& test) { test["inputs"]["query"]["values"] = "_FROM_TEST_1_OUTPUT_"; }, "no meaning here");
  refused([](Json&, Json& test) { test["expected"]["output"]["values"] = "_FROM_TEST_1_OUTPUT_"; }, "no meaning here");
  refused([](Json&, Json& test) { test["inputs"]["cache"]["key"]["values"] = "_TO_BE_GENERATED_"; },
          "same placeholder");
  refused([](Json&, Json& test) { test["inputs"]["cache"]["key"]["values"][0][1] = 3; },
          "cache.key.values[0][1]: got number, wanted an array: axis 2");
  refused([](Json&, Json& test) { test["inputs"]["cache"]["key"]["values"][0][1].push_back(1); },
          "values[0][1]: got 5 entries, wanted 4: axis 2 of the shape [1, 2, 4]");
  refused([](Json&, Json& test) { test["inputs"]["cache"]["key"]["values"][0][1][0] = 1e39; },
          "wanted at most 1e+09 in size");
  refused([](Json&, Json& test) { test["inputs"]["cache"]["key"]["values"][0][1][0] = nullptr; }, "wanted a number");
  refused([](Json&, Json& test) { test["inputs"]["cache"]["value"]["shape"] = {1, 1, 8}; }, "wanted 1: axis 1");
  refused([](Json&, Json& test) { test["inputs"]["key"]["shape"] = {2, 1, 4}; }, "got [2, 1, 4], wanted [1, 1, 4]");
  refused([](Json&, Json& test) { test["inputs"]["query"]["shape"] = {1, 1}; }, "got [1, 1], wanted 3 extents");
  refused([](Json&, Json& test) { test["inputs"]["query"]["shape"] = {1, -1, 4}; }, "got -1");
  refused([](Json&, Json& test) { test["inputs"]["query"]["shape"] = {4000000, 4000000, 4000000}; }, "at most");
  refused([](Json&, Json& test) { test["inputs"]["query"]["more"] = 1; }, "more");
  refused([](Json&, Json& test) { test["config"]["num_heads"] = 3; }, "num_heads: got 3, wanted a divisor of d_model");
  refused([](Json&, Json& test) { test["config"]["num_heads"] = 0; }, "num_heads: got 0");
  refused([](Json&, Json& test) { test["config"]["d_model"] = int64_t{1} << 40; }, "d_model: got 1099511627776");
  refused([](Json&, Json& test) { test["config"]["max_cache_len"] = 2; }, "3 with the new ones, wanted at most 2");
  refused([](Json&, Json& test) { test["config"]["dropout"] = 1; }, "dropout");
  refused([](Json&, Json& test) { test["weight"] = -1; }, "weight");
  refused([](Json&, Json& test) { test["weight"] = "ten"; }, "weight");
  refused([](Json&, Json& test) { test["seed"] = 1.5; }, "seed");
  refused([](Json&, Json& test) { test["name"] = "a\tb"; }, "control character");
  refused([](Json&, Json& test) { test["inputs"].erase("cache"); }, "cache");
  refused([](Json&, Json& test) { test["expected"]["cache"]["key"]["shape"] = {1, 2, 4}; }, "wanted [1, 3, 4]");
  refused([](Json&, Json& test) { test["weights"] = 1; }, "weights");
  refused([](Json& json, Json&) { json["test_cases"].push_back(json["test_cases"][0]); }, "got 2 twice");
  refused([](Json& json, Json&) { json["test_cases"] = Json::array(); }, "got 0 cases");
  refused([](Json& json, Json&) { json["test_case"] = json["test_cases"][0]; }, "wanted \"test_case\"");
  refused([](Json& json, Json&) { json.erase("test_cases"); }, "wanted \"test_case\"");
  refused([](Json& json, Json&) { json["scoring"]["total_weight"] = "all"; }, "scoring.total_weight");
  CHECK_THROWS_AS(challenge_from_json(Json(), "f"), Error);
  CHECK_THROWS_AS(challenge_from_json(Json::array(), "f"), Error);
}

TEST_CASE("the suite's own challenge files are read") {
  const std::filesystem::path dir = std::filesystem::path(ATTEST_SOURCE_DIR) / "cases" / "challenge";
  CHECK(read_challenge(dir / "test_cases.json").visible);
  CHECK(read_challenge(dir / "test_cases_hidden.json").tests.size() == 10);
}
