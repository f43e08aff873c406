// SPDX-License-Identifier: Apache-2.0
#include "cases/case.h"

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include "cases/inputs.h"

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
  CHECK(c.profiles == std::vector<std::string>{"core", "fp32"});
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

TEST_CASE("a layout may be a view into a larger tensor") {
  Json json = minimal();
  json["layouts"] =
      Json::parse(R"({"key": {"order": "bhsd", "pad": 2, "pads": {"h": 4, "s": 0}}, "cache": {"absurd": true}})");
  const Case c = parse(json);
  CHECK(c.layouts.key.pads == std::map<char, int64_t>{{'h', 4}, {'s', 0}});
  CHECK(c.layouts.key.pad == 2);
  CHECK_FALSE(c.layouts.key.absurd);
  CHECK(c.layouts.cache.absurd);
  const auto refused = [](const std::string& layout, const std::string& part, bool packed = false) {
    Json wrong = minimal();
    wrong["problem"]["packed"] = packed;
    wrong["layouts"]["key"] = Json::parse(layout);
    check_refused(wrong, part);
  };
  refused(R"({"pads": {"x": 1}})", "layouts.key.pads.x: wanted a letter of \"bshd\"");
  refused(R"({"pads": {"h": -1}})", "layouts.key.pads.h: got -1");
  refused(R"({"pads": {"h": 4097}})", "layouts.key.pads.h: got 4097");
  refused(R"({"pads": 3})", "layouts.key.pads");
  refused(R"({"absurd": 1})", "layouts.key.absurd");
  // Packed token axes have no batch.
  refused(R"({"order": "bhsd"})", "wanted each letter of \"shd\" once", true);
  refused(R"({"pads": {"b": 1}})", "wanted a letter of \"shd\"", true);
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

TEST_CASE("a case that would take all memory with tiny tensors is refused") {
  Json json = minimal();
  json["problem"] = {{"batch", 1 << 20}, {"head_dim", 1}};
  json["steps"] = Json::parse(R"([{"attend": 0, "repeat": 2}])");
  check_refused(json, "steps[0].repeat: got 2 steps of 1048576 sequences, wanted at most 1048576 (2^20) in all");
  json["steps"] = Json::parse(R"([{"attend": 0}, {"attend": 0}])");
  check_refused(json, "steps: got 2 steps of 1048576 sequences");
  json["problem"] = {{"batch", 1}, {"head_dim", 1}};
  json["steps"] = Json::parse(R"([{"attend": 2097152}, {"attend": 1}])");
  check_refused(json, "steps: got 4.19e+06 query and key tokens, wanted at most 4194304 (2^22)");
}

TEST_CASE("dtype, level, alignment and LSE are profiles of every case that has them") {
  Json json = minimal();
  json["profiles"] = {"softcap", "bf16"};
  json["problem"].update(Json::parse(R"({"dtype": "bf16", "causal": "top_left", "lse": true})"));
  CHECK(parse(json).profiles == std::vector<std::string>{"softcap", "bf16", "top_left", "lse"});
  json["problem"].update(Json::parse(R"({"dtype": "f16", "level": "layer", "lse": false, "causal": "none"})"));
  CHECK(parse(json).profiles == std::vector<std::string>{"softcap", "bf16", "fp16", "layer"});
  json["profiles"] = {"core", "core"};
  check_refused(json, "profiles: got \"core\" twice");
}

TEST_CASE("every feature is read, written and named") {
  const auto problem = [](const std::string& fields) {
    Json json = Json::parse(R"({"head_dim": 8})");
    json.update(Json::parse(fields));
    return attest::problem_from_json(json, "p");
  };
  for (const char* fields : {
           R"({"dtype": "bf16"})",
           R"({"dtype": "f16", "mask": "additive"})",
           R"({"mask": "boolean", "lse": true})",
           R"({"rope": {"style": "half", "base": 500000}})",
           R"({"rope": {"style": "interleaved", "dim": 4, "base": 10000, "scaling": {"kind": "linear", "factor": 8}}})",
           R"({"rope": {"style": "half", "base": 1e6, "scaling": {"kind": "yarn", "factor": 4, "original_length": 4096,
               "low_frequency": 1, "high_frequency": 32, "attention_factor": 1.25}}})",
           R"({"qk_norm": {"epsilon": 1e-6}, "packed": true})",
           R"({"cache": "paged", "capacity": 40, "page_size": 16})",
           R"({"cache": "ring", "capacity": 9, "window": {"left": 8}})",
           R"({"cache": "contiguous", "capacity": 9, "cache_dtype": "f8_e4m3", "kv_scale": "head"})",
       }) {
    INFO(fields);
    const attest::Problem read = problem(fields);
    const attest::Problem again = attest::problem_from_json(to_json(read), "again");
    CHECK(to_json(again) == to_json(read));
    CHECK(identity(again) == identity(read));
    CHECK(to_json(read) != to_json(problem("{}")));
  }
  CHECK(features(problem(R"({"rope": {"style": "half", "base": 100, "scaling": {"kind": "ntk", "factor": 2}},
                             "qk_norm": {"epsilon": 1}, "mask": "boolean"})")) ==
        std::vector<std::string>{"mask", "rope", "rope_scaling", "qk_norm"});
}

TEST_CASE("features that cannot be are refused, with the field and what was wanted") {
  const auto refused = [](const std::string& fields, const std::string& part) {
    Json json = minimal();
    json["problem"].update(Json::parse(fields));
    check_refused(json, part);
  };
  refused(R"({"dtype": "f64"})", "problem.dtype: got \"f64\"");
  refused(R"({"cache": "ring"})",
          "problem.cache: got \"ring\", wanted a window with a left bound below the capacity 8");
  refused(R"({"cache": "ring", "window": {"left": 8}})", "wanted a window with a left bound below the capacity 8");
  refused(R"({"cache": "paged"})", "problem.page_size: got 0");
  refused(R"({"cache_dtype": "i8"})", "problem: the field \"kv_scale\" is missing");
  refused(R"({"cache_dtype": "i8", "kv_scale": "none"})", "wanted tensor, head or token");
  refused(R"({"page_size": 4})", "unknown field \"page_size\"");
  refused(R"({"rope": {"style": "half", "dim": 10, "base": 1e4}})",
          "rope.dim: got 10, wanted an even number from 2 to");
  refused(R"({"rope": {"style": "half", "dim": 3, "base": 1e4}})", "rope.dim: got 3");
  refused(R"({"rope": {"style": "half", "base": 0}})", "rope.base: got 0, wanted a positive number");
  refused(R"({"rope": {"style": "half", "base": 1e4, "scaling": {"kind": "llama3", "factor": 8}}})", "original_length");
  refused(R"({"rope": {"style": "half", "base": 1e4, "scaling": {"kind": "linear", "factor": 8, "low_frequency": 1}}})",
          "low_frequency");
  refused(R"({"qk_norm": {"epsilon": 0}})", "qk_norm.epsilon: got 0");
  refused(R"({"packed": true, "mask": "boolean"})", "problem.packed: got true, wanted false");
  refused(R"({"mask": "boolean"})", "inputs: the field \"mask\" is missing");

  const auto mask = [](const std::string& kind, const std::string& spec, const std::string& part) {
    Json json = minimal();
    json["problem"]["mask"] = kind;
    json["inputs"]["mask"] = Json::parse(spec);
    check_refused(json, part);
  };
  mask("boolean", R"({"pattern": "bias", "axes": ""})", "inputs.mask.pattern: got \"bias\", wanted one of: blocks");
  mask("additive", R"({"pattern": "bias", "axes": "qb"})", "inputs.mask.axes: got \"qb\"");
  mask("boolean", R"({"pattern": "blocks", "axes": "bh"})", "wanted a q");

  Json positions = minimal();
  positions["steps"][0]["positions"] = 4;
  check_refused(positions, "steps[0].positions: wanted a problem with RoPE");
  Json merge = minimal();
  merge["steps"].push_back({{"merge", 2}});
  check_refused(merge, "wanted a problem of the core level with lse");
  Json bitwise = minimal();
  bitwise["bitwise"] = Json::object();
  check_refused(bitwise, "bitwise");
}

TEST_CASE("a load wants a contiguous cache of the problem's dtype") {
  const auto load = [](const std::string& problem, const std::string& tokens, const std::string& why) {
    Json json = minimal();
    for (const char* field : {"cache", "capacity"}) json["problem"].erase(field);
    json["problem"].update(Json::parse(problem));
    json["steps"] = Json::parse(R"([{"load": )" + tokens + R"(}, {"attend": 1}])");
    if (!why.empty()) return check_refused(json, why);
    const Case c = parse(json);
    CHECK(c.steps[0].kind == attest::StepKind::load);
    CHECK(attest::identity(c).find(" load4 1]") != std::string::npos);
  };
  const std::string cache = R"({"cache": "contiguous", "capacity": 9})";
  load(cache, "4", "");
  load(cache, "0", "steps[0].load: got no token");
  load(cache, "[1, 2, 3, 4]", "steps[0].load: got 4 entries");
  load(cache, "-1", "steps[0].load: got -1");
  load("{}", "4", "wanted a problem with a cache for this step");
  load(R"({"cache": "paged", "capacity": 9, "page_size": 2})", "4", "got a paged cache, wanted a contiguous one");
  load(R"({"cache": "contiguous", "capacity": 9, "cache_dtype": "i8", "kv_scale": "token"})", "4", "not of codes");
}

TEST_CASE("inputs that come with a case are named by their hash, which the case's hash covers") {
  Json json = minimal();
  json["inputs"] = {{"given", std::string(64, 'a')}};
  const Case one = parse(json);
  json["inputs"] = {{"given", std::string(64, 'b')}};
  CHECK(parse(json).hash != one.hash);
  CHECK_THROWS_AS(attest::generate_inputs(one, attest::play(one)), attest::Error);
  json["inputs"] = {{"given", "abc"}};
  check_refused(json, "inputs.given: got \"abc\", wanted a SHA-256");
}
