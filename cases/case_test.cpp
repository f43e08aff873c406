// SPDX-License-Identifier: Apache-2.0
#include "cases/case.h"

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

using attest::Case;
using attest::Json;
using Catch::Matchers::ContainsSubstring;

namespace {

Json minimal() {
  return Json::parse(R"({
    "id": "one", "about": "A case.", "clauses": ["A1"], "kills": [],
    "problem": {"batch": 2, "query_heads": 4, "kv_heads": 2, "head_dim": 8, "causal": "bottom_right",
                "cache": "contiguous", "capacity": 8},
    "inputs": {"recipe": "gaussian", "seed": 5},
    "steps": [{"attend": [3, 2]}, {"attend": 1, "repeat": 2}]
  })");
}

Case parse(const Json& json) {
  return attest::case_from_json(json, "family", "f.json: cases[0]");
}

void check_refused(const Json& json, const std::string& part) {
  CHECK_THROWS_WITH(parse(json), ContainsSubstring("f.json: cases[0]") && ContainsSubstring(part));
}

}  // namespace

TEST_CASE("a minimal case is read, with its defaults") {
  const Case c = parse(minimal());
  CHECK(c.id == "family/one");
  CHECK(c.profiles == std::vector<std::string>{"core"});
  CHECK(c.problem.qk_head_dim == 8);
  CHECK(c.problem.v_head_dim == 8);
  CHECK(c.problem.group() == 2);
  REQUIRE(c.steps.size() == 3);
  CHECK(c.steps[0].queries == std::vector<int64_t>{3, 2});
  CHECK(c.steps[2].keys == std::vector<int64_t>{1, 1});
  CHECK(identity(c) == "family/one [core f32 B2 H4/2 D8 causal cache8 gaussian steps <=3 1x2]");
}

TEST_CASE("the hash covers what a golden depends on and nothing else") {
  const std::string hash = parse(minimal()).hash;
  Json prose = minimal();
  prose["about"] = "Other words.";
  prose["kills"] = {"causal-plus1"};
  prose["inputs"]["poison"] = "zero";
  prose["layouts"] = {{"key", {{"order", "bhsd"}}}};
  CHECK(parse(prose).hash == hash);
  Json seed = minimal();
  seed["inputs"]["seed"] = 6;
  CHECK(parse(seed).hash != hash);
  Json scale = minimal();
  scale["problem"]["scale"] = 0.5;
  CHECK(parse(scale).hash != hash);
}

TEST_CASE("a problem survives the wire") {
  Json json = minimal();
  json["problem"]["scale"] = 0.375;
  json["problem"]["lse"] = true;
  const attest::Problem problem = parse(json).problem;
  CHECK(to_json(attest::problem_from_json(to_json(problem), "wire")) == to_json(problem));
}

TEST_CASE("broken cases are refused by field") {
  Json json = minimal();
  json["problem"]["kv_heads"] = 3;
  check_refused(json, "problem.kv_heads: got 3, wanted a divisor of query_heads = 4");
  json = minimal();
  json["problem"]["scale"] = 0.37;
  check_refused(json, "problem.scale");
  json = minimal();
  json["problem"]["windw"] = 3;
  check_refused(json, "unknown field \"windw\"");
  json = minimal();
  json["problem"]["query_heads"] = 0;
  check_refused(json, "problem.query_heads: got 0, wanted 1 to");
  json = minimal();
  json["inputs"]["recipe"] = "needel";
  check_refused(json, "inputs.recipe: got \"needel\", wanted one of: analytic");
  json = minimal();
  json["steps"][0]["attend"] = {1, 2, 3};
  check_refused(json, "steps[0].attend: got 3 entries, wanted 2 (the batch)");
  json = minimal();
  json["steps"][1]["repeat"] = 0;
  check_refused(json, "steps[1].repeat: got 0");
  json = minimal();
  json["steps"][0] = {{"reorder", {0, 2}}};
  check_refused(json, "steps[0].reorder: got 2, wanted 0 to 1");
  json = minimal();
  json["steps"][0]["expect"] = "invalid";
  check_refused(json, "go together");
  json = minimal();
  json["steps"][0].update({{"expect", "invalid"}, {"malform", {{"argument", "cache.lengths"}, {"change", "heads"}}}});
  check_refused(json, "cache.lengths has no axis of heads");
  json = minimal();
  json["steps"] = Json::array();
  check_refused(json, "steps: wanted an array of steps");
  json = minimal();
  json["layouts"] = {{"key", {{"order", "bsd"}}}};
  check_refused(json, "layouts.key.order: got \"bsd\", wanted each letter of \"bshd\" once");
  json["layouts"] = {{"cache", {{"order", "bshh"}}}};
  check_refused(json, "layouts.cache.order: got \"bshh\"");
  json["problem"]["level"] = "layer";
  json["layouts"] = {{"output", {{"order", "bshd"}}}};
  check_refused(json, "layouts.output.order: got \"bshd\", wanted each letter of \"bsd\" once");
  json = minimal();
  json["problem"]["capacity"] = 16777216;
  check_refused(json, "problem: the cache has 5.37e+08 elements, wanted at most 67108864");
  json = minimal();
  json["problem"].update({{"level", "layer"}, {"d_model", 16777216}});
  check_refused(json, "problem: a weight has 5.37e+08 elements");
  json = minimal();
  json["problem"]["batch"] = 16777216;
  check_refused(json, "problem: a token of each sequence has 5.37e+08 elements");
  json = minimal();
  json["steps"][1] = {{"attend", 16384}, {"repeat", 4096}};
  check_refused(json, "steps[1]: a tensor of the step has 4.29e+09 elements");
  json = minimal();
  json["id"] = "With Space";
  check_refused(json, "id: got \"With Space\"");
}
