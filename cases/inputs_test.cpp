// SPDX-License-Identifier: Apache-2.0
#include "cases/inputs.h"

#include <algorithm>
#include <bit>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <cmath>

#include "cases/philox.h"
#include "cases/quantise.h"
#include "cases/recipes.h"
#include "cases/storage.h"

using namespace attest;
using Catch::Matchers::ContainsSubstring;

namespace {

Case make(const std::string& recipe, const std::string& steps, const std::string& problem = "{}") {
  Json json = Json::parse(R"({"id": "one", "about": "", "clauses": ["A1"], "kills": [],
      "problem": {"batch": 1, "query_heads": 4, "kv_heads": 2, "head_dim": 16, "causal": "bottom_right"}})");
  json["problem"].update(Json::parse(problem));
  json["inputs"] = {{"recipe", recipe}, {"seed", 3}};
  json["steps"] = Json::parse(steps);
  return case_from_json(json, "family", "test");
}

Inputs inputs_of(const Case& c) {
  return generate_inputs(c, play(c));
}

}  // namespace

TEST_CASE("Philox4x32-10 gives the published known answers") {
  CHECK(philox4x32_10({0, 0, 0, 0}, {0, 0}) == PhiloxWords{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  CHECK(philox4x32_10({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}) ==
        PhiloxWords{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  CHECK(philox4x32_10({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}) ==
        PhiloxWords{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}

TEST_CASE("tokens are the same however steps cut the sequence") {
  const std::string cache = R"({"cache": "contiguous", "capacity": 16})";
  for (const char* recipe :
       {"gaussian", "needle", "needle_odd", "seesaw", "flat", "rising", "cancelling", "large_logits"}) {
    const Inputs whole = inputs_of(make(recipe, R"([{"attend": 6}])", cache));
    const Inputs parts = inputs_of(make(recipe, R"([{"attend": 4}, {"attend": 2}])", cache));
    for (const auto member : {&StepInputs::query, &StepInputs::key, &StepInputs::value}) {
      std::vector<float> joined = (parts.steps[0].*member).data;
      joined.insert(joined.end(), (parts.steps[1].*member).data.begin(), (parts.steps[1].*member).data.end());
      INFO(recipe);
      CHECK(joined == (whole.steps[0].*member).data);
    }
  }
}

TEST_CASE("every recipe gives finite values, and all but three are exact in bf16") {
  for (const char* recipe : {"gaussian", "sharp", "bits", "needle", "needle_odd", "seesaw", "flat", "flat_cancel",
                             "negative_logits", "cancelling", "large_logits", "rising", "falling", "analytic"}) {
    INFO(recipe);
    const Inputs inputs = inputs_of(make(recipe, R"([{"attend": 9}])"));
    const std::string name = recipe;
    const bool coarse = name != "gaussian" && name != "sharp" && name != "bits";
    for (const auto* tensor : {&inputs.steps[0].query, &inputs.steps[0].key, &inputs.steps[0].value}) {
      for (const float x : tensor->data) {
        REQUIRE(std::isfinite(x));
        if (coarse) REQUIRE((std::bit_cast<uint32_t>(x) & 0xffff) == 0);
      }
    }
  }
}

TEST_CASE("the needle finds its key: 40 nats ahead of any other, and a leaked key would win") {
  const Case c = make("needle", R"([{"attend": 12}])");
  const Timeline timeline = play(c);
  const auto recipe = make_recipe(c, timeline);
  const double scale = 0.25;
  std::vector<float> q(16), k(16);
  const auto logit = [&](const Row& row, int64_t head, int64_t position) {
    recipe->query(row, head, q);
    recipe->key({0, 0, position, position, position, 0, position}, head / 2, k);
    double sum = 0;
    for (size_t d = 0; d < q.size(); ++d) sum += static_cast<double>(q[d]) * static_cast<double>(k[d]);
    return scale * sum;
  };
  for (const Row& row : timeline[0].rows) {
    if (row.position < 2) continue;
    for (int64_t head = 0; head < 4; ++head) {
      const int64_t kind = (head + row.position / 2) % 4;
      const double last = logit(row, head, row.position);
      const double masked = logit(row, head, row.position + 1);
      for (int64_t j = 0; j < row.position && kind == 0; ++j) CHECK(last - logit(row, head, j) >= 40);
      if (kind == 1 && row.position % 2 == 0) {
        CHECK(masked - last >= 10);
        for (int64_t j = 0; j < row.position; ++j) CHECK(last - logit(row, head, j) >= 20);
      }
    }
  }
}

TEST_CASE("the recipe of overflows hides +inf behind the mask, and all else is finite") {
  for (const char* dtype : {"f32", "bf16"}) {
    for (const char* axes : {"b", ""}) {
      INFO(dtype << " " << axes);
      Json json = Json::parse(R"({"id": "one", "about": "", "clauses": ["M6"], "kills": [],
          "problem": {"batch": 3, "query_heads": 4, "kv_heads": 2, "head_dim": 10, "mask": "additive"},
          "steps": [{"attend": 4, "keys": 9}]})");
      json["problem"]["dtype"] = dtype;
      json["inputs"] = {{"recipe", "overflow"}, {"mask", {{"pattern", "padding_left"}, {"axes", axes}}}};
      const Inputs inputs = inputs_of(case_from_json(json, "family", "test"));
      const StepInputs& in = inputs.steps[0];
      for (const auto* tensor : {&in.query, &in.key, &in.value}) {
        for (const float x : tensor->data) {
          REQUIRE(std::isfinite(x));
          REQUIRE((std::bit_cast<uint32_t>(x) & 0xffff) == 0);
        }
      }
      const float root = std::sqrt(10.0F);
      for (size_t row = 0; row < 12; ++row) {  // (b, i)
        for (size_t head = 0; head < 4; ++head) {
          const float* q = &in.query.data[(row * 4 + head) * 10];
          for (size_t j = 0; j < 9; ++j) {
            const float* k = &in.key.data[((row / 4 * 9 + j) * 2 + head / 2) * 10];
            float unscaled = 0, scaled = 0;
            for (size_t d = 0; d < 10; ++d) {
              unscaled += q[d] * k[d];
              scaled += (q[d] / root) * k[d];
            }
            const float added = in.mask.data[(*axes == 'b' ? row / 4 * 9 : 0) + j];
            CHECK((unscaled == INFINITY) == (added == -INFINITY));
            CHECK((scaled == INFINITY) == (added == -INFINITY));
            CHECK((std::fabs(scaled) < 100 || added == -INFINITY));
          }
        }
      }
    }
  }
}

TEST_CASE("the recipe of overflows is refused where its keys would be seen, or could not be held") {
  const auto generate = [](const std::string& problem, const std::string& pattern, const std::string& steps) {
    Json json = Json::parse(R"({"id": "one", "about": "", "clauses": ["M6"], "kills": [],
        "problem": {"batch": 3, "head_dim": 8, "cache": "contiguous", "capacity": 12}})");
    json["problem"].update(Json::parse(problem));
    json["inputs"] = {{"recipe", "overflow"}};
    if (!pattern.empty()) json["inputs"]["mask"] = {{"pattern", pattern}, {"axes", "b"}};
    json["steps"] = Json::parse(steps);
    return inputs_of(case_from_json(json, "family", "test"));
  };
  const std::string boolean = R"({"mask": "boolean"})", once = R"([{"attend": 7}])";
  CHECK_NOTHROW(generate(boolean, "padding_left", once));
  CHECK_THROWS_WITH(generate("{}", "", once), ContainsSubstring(R"(one.inputs.mask.pattern: got "", wanted)"));
  CHECK_THROWS_WITH(generate(boolean, "holes", once), ContainsSubstring(R"(got "holes", wanted "padding_left")"));
  CHECK_THROWS_WITH(generate(R"({"mask": "boolean", "dtype": "f16"})", "padding_left", once),
                    ContainsSubstring("one.problem.dtype"));
  CHECK_THROWS_WITH(generate(R"({"mask": "boolean", "qk_norm": {"epsilon": 1e-6}})", "padding_left", once),
                    ContainsSubstring("one.problem.qk_norm"));
  CHECK_THROWS_WITH(generate(R"({"mask": "boolean", "softcap": 30})", "padding_left", once),
                    ContainsSubstring("one.problem.softcap"));
  CHECK_THROWS_WITH(
      generate(R"({"mask": "boolean", "cache_dtype": "f8_e4m3", "kv_scale": "head"})", "padding_left", once),
      ContainsSubstring("one.problem.cache_dtype: got \"f8_e4m3\", wanted \"f32\""));
  CHECK_THROWS_WITH(generate(boolean, "padding_left", R"([{"attend": 7}, {"reorder": [2, 1, 0]}, {"attend": 1}])"),
                    ContainsSubstring("one.steps: key 1 of sequence 2"));
  CHECK_NOTHROW(generate(boolean, "padding_left", R"([{"attend": 7}, {"truncate": 1}, {"attend": 3}])"));
}

TEST_CASE("permutation weights return the recipe's tensors exactly") {
  Json json = Json::parse(R"({"id": "one", "about": "", "clauses": ["L1"], "kills": [],
      "problem": {"level": "layer", "query_heads": 4, "kv_heads": 2, "head_dim": 16, "d_model": 72},
      "inputs": {"recipe": "needle", "weights": "permutation"}, "steps": [{"attend": 5}]})");
  const Case c = case_from_json(json, "family", "test");
  const Inputs inputs = inputs_of(c);
  json["problem"] = {{"query_heads", 4}, {"kv_heads", 2}, {"head_dim", 16}};
  json["inputs"] = {{"recipe", "needle"}};
  const Inputs core = inputs_of(case_from_json(json, "family", "test"));
  const auto project = [](const Dense<float>& x, const Dense<float>& w) {
    std::vector<float> y;
    const auto in = static_cast<size_t>(w.shape[1]);
    for (size_t token = 0; token * in < x.data.size(); ++token) {
      for (size_t o = 0; o * in < w.data.size(); ++o) {
        float sum = 0;
        for (size_t i = 0; i < in; ++i) sum += w.data[o * in + i] * x.data[token * in + i];
        y.push_back(sum);
      }
    }
    return y;
  };
  CHECK(project(inputs.steps[0].query, inputs.weights.q) == core.steps[0].query.data);
  CHECK(project(inputs.steps[0].key, inputs.weights.k) == core.steps[0].key.data);
  CHECK(project(inputs.steps[0].value, inputs.weights.v) == core.steps[0].value.data);
}

TEST_CASE("uniform weights stay within 1/sqrt(d_model) and outliers are where they are said to be") {
  Json json = Json::parse(R"({"id": "one", "about": "", "clauses": ["L5"], "kills": [],
      "problem": {"level": "layer", "query_heads": 2, "head_dim": 16, "d_model": 50, "bias": true},
      "inputs": {"recipe": "gaussian", "bias_outliers": true}, "steps": [{"attend": 3}]})");
  const Inputs inputs = inputs_of(case_from_json(json, "family", "test"));
  const double bound = 1 / std::sqrt(50.0);
  double largest = 0;
  for (const float w : inputs.weights.q.data) largest = std::max(largest, std::fabs(static_cast<double>(w)));
  CHECK(largest <= bound);
  CHECK(largest > 0.98 * bound);
  CHECK(inputs.weights.k_bias.data[16] < -33);
  CHECK(inputs.weights.k_bias.data[19] < -13);
  CHECK(inputs.weights.k_bias.data[17] > -1);
  CHECK(inputs.steps[0].query.data == inputs.steps[0].key.data);  // self
}

TEST_CASE("each projection has a bias of its own, and all or none keep the short form") {
  const auto problem = [](const char* bias) {
    return problem_from_json(
        Json::parse(fmt::format(R"({{"level": "layer", "query_heads": 2, "head_dim": 8, "bias": {}}})", bias)), "test");
  };
  CHECK(to_json(problem("true"))["bias"] == true);
  CHECK(to_json(problem("false"))["bias"] == false);
  CHECK(to_json(problem(R"(["v", "out", "q", "k"])"))["bias"] == true);
  CHECK(to_json(problem(R"(["v", "q"])"))["bias"] == Json{"q", "v"});
  CHECK(identity(problem(R"(["v", "q"])")).ends_with("model16 bias-q-v"));
  CHECK(identity(problem("true")).ends_with("model16 bias"));
  CHECK_THROWS_AS(problem(R"(["q", "q"])"), Error);
  CHECK_THROWS_AS(problem(R"(["w"])"), Error);
  CHECK_THROWS_AS(problem("1"), Error);

  Json json = Json::parse(R"({"id": "one", "about": "", "clauses": ["L5"], "kills": [],
      "problem": {"level": "layer", "query_heads": 2, "head_dim": 8, "bias": ["k", "out"]},
      "inputs": {"recipe": "gaussian"}, "steps": [{"attend": 3}]})");
  const Weights weights = inputs_of(case_from_json(json, "family", "test")).weights;
  CHECK(weights.q_bias.data.empty());
  CHECK(weights.k_bias.data.size() == 16);
  CHECK(weights.v_bias.data.empty());
  CHECK(weights.out_bias.data.size() == 16);
}

TEST_CASE("the recipe of random bits has zeros of both signs") {
  const Json json = Json::parse(R"({"id": "one", "about": "", "clauses": ["C1"], "kills": [],
      "problem": {"query_heads": 4, "head_dim": 16}, "inputs": {"recipe": "bits"}, "steps": [{"attend": 32}]})");
  const Inputs inputs = inputs_of(case_from_json(json, "family", "test"));
  const auto& keys = inputs.steps[0].key.data;
  const auto zeros = [&](bool negative) {
    return std::count_if(keys.begin(), keys.end(), [&](float x) { return x == 0 && std::signbit(x) == negative; });
  };
  CHECK(zeros(false) > 4);
  CHECK(zeros(true) > 4);
  CHECK(zeros(false) + zeros(true) < 64);
}

TEST_CASE("inputs of a 16-bit problem are numbers of its dtype, and never subnormal") {
  for (const char* dtype : {"f16", "bf16"}) {
    for (const char* recipe : {"gaussian", "bits", "needle"}) {
      INFO(dtype << " " << recipe);
      const Case c = make(recipe, R"([{"attend": 9}])", Json{{"dtype", dtype}}.dump());
      const Inputs inputs = inputs_of(c);
      for (const auto* tensor : {&inputs.steps[0].query, &inputs.steps[0].key, &inputs.steps[0].value}) {
        for (const float x : tensor->data) {
          REQUIRE(round_to(c.problem.dtype, x) == x);
          REQUIRE((x == 0 || std::fabs(x) >= (c.problem.dtype == DType::f16 ? 0x1p-14F : 0x1p-126F)));
        }
      }
    }
  }
  CHECK_THROWS_AS(inputs_of(make("large_logits", R"([{"attend": 3}])", R"({"dtype": "f16"})")), Error);
}

TEST_CASE("a mask has the axes it is asked for, and chunks see the mask of the whole") {
  const auto masked = [](const std::string& pattern, const std::string& axes, const std::string& steps) {
    Json json = Json::parse(R"({"id": "one", "about": "", "clauses": ["A1"], "kills": [],
        "problem": {"batch": 2, "query_heads": 4, "head_dim": 4, "mask": "additive", "cache": "contiguous",
                    "capacity": 12}})");
    json["inputs"] = {{"recipe", "gaussian"}, {"mask", {{"pattern", pattern}, {"axes", axes}}}};
    json["steps"] = Json::parse(steps);
    return inputs_of(case_from_json(json, "family", "test"));
  };
  CHECK(masked("holes", "", R"([{"attend": 6}])").steps[0].mask.shape == std::vector<int64_t>{1, 1, 1, 6});
  CHECK(masked("holes", "bq", R"([{"attend": 6}])").steps[0].mask.shape == std::vector<int64_t>{2, 1, 6, 6});
  for (const char* pattern : {"holes", "blocks", "rows", "prefix", "bias", "bias_holes", "padding_left"}) {
    INFO(pattern);
    const Dense<float> whole = masked(pattern, "bhq", R"([{"attend": 9}])").steps[0].mask;
    const Dense<float> part = masked(pattern, "bhq", R"([{"attend": 7}, {"attend": 2}])").steps[1].mask;
    REQUIRE(part.shape == std::vector<int64_t>{2, 4, 2, 9});
    for (size_t bh = 0; bh < 8; ++bh) {
      const auto begin = whole.data.begin() + static_cast<int64_t>((bh * 9 + 7) * 9);
      CHECK(std::equal(begin, begin + 18, part.data.begin() + static_cast<int64_t>(bh * 18)));
    }
    const auto [least, most] = std::minmax_element(whole.data.begin(), whole.data.end());
    CHECK(*least < *most);
  }
}

TEST_CASE("keys and values of a quantised case lie clear of the middle between two codes") {
  for (const char* scale : {"tensor", "head", "token"}) {
    for (const char* codes : {"i8", "f8_e4m3", "f8_e5m2"}) {
      for (const char* dtype : {"f32", "bf16"}) {
        INFO(scale << " " << codes << " " << dtype);
        const Json problem{
            {"dtype", dtype}, {"cache", "contiguous"}, {"capacity", 12}, {"cache_dtype", codes}, {"kv_scale", scale}};
        const Case c = make("gaussian", R"([{"attend": 9}])", problem.dump());
        const Inputs inputs = inputs_of(c);
        CHECK(inputs.key_scale.data.size() == (*scale == 'h' ? 2U : std::string(scale) == "token" ? 0U : 1U));
        for (size_t vector = 0; vector < 18; ++vector) {
          const auto* x = inputs.steps[0].key.data.data() + vector * 16;
          double by = 0;
          for (size_t d = 0; d < 16; ++d) by = std::max(by, std::fabs(static_cast<double>(x[d])));
          by /= info(c.problem.cache_dtype).largest;
          if (*scale == 'h') by = static_cast<double>(inputs.key_scale.data[vector % 2]);
          if (std::string(scale) == "tensor") by = static_cast<double>(inputs.key_scale.data[0]);
          for (size_t d = 0; d < 16; ++d) {
            REQUIRE(code_margin(c.problem.cache_dtype, static_cast<double>(x[d]), by) >= kCodeMargin);
            REQUIRE(std::fabs(static_cast<double>(x[d])) <= by * info(c.problem.cache_dtype).largest * (1 + 1e-12));
          }
        }
      }
    }
  }
}
