// SPDX-License-Identifier: Apache-2.0
// Goldens against a second opinion in long double; allowed errors against correct and against faulty backends.
#include <catch2/catch_test_macros.hpp>
#include <cstdio>
#include <cstdlib>

#include "golden/emulator_test.h"
#include "golden/oracle.h"

using namespace attest;

namespace {

struct Tried {
  const char* name;
  const char* problem;
  const char* steps;
  const char* inputs;
  std::vector<Fault> faults;
};

Case make(const Tried& tried, const std::string& dtype, const std::string& seed = "3") {
  Json json{{"id", "one"}, {"about", ""}, {"clauses", {"A1"}}, {"kills", Json::array()}};
  json["problem"] = Json::parse(tried.problem);
  json["problem"]["dtype"] = dtype;
  json["inputs"] = Json::parse(tried.inputs);
  json["inputs"]["seed"] = std::stoi(seed);
  json["steps"] = Json::parse(tried.steps);
  return case_from_json(json, "family", tried.name);
}

const char* const kSharp = R"({"recipe": "sharp"})";
const char* const kChunks = R"([{"attend": [7, 4]}, {"attend": 1}, {"attend": [3, 5]}])";

const std::vector<Tried>& all() {
  using enum Fault;
  static const std::vector<Tried> list{
      {"plain",
       R"({"batch": 2, "query_heads": 4, "kv_heads": 2, "head_dim": 32, "causal": "bottom_right", "lse": true,
           "cache": "contiguous", "capacity": 16})",
       kChunks,
       kSharp,
       {scale_dropped, first_key_lost}},
      {"boolean mask",
       R"({"batch": 2, "query_heads": 4, "kv_heads": 2, "head_dim": 16, "mask": "boolean", "lse": true})",
       R"([{"attend": 7, "keys": [11, 9]}])",
       R"({"recipe": "sharp", "mask": {"pattern": "holes", "axes": "bhq"}})",
       {mask_ignored, mask_added}},
      {"masked rows",
       R"({"query_heads": 2, "head_dim": 16, "mask": "boolean", "lse": true, "causal": "bottom_right"})",
       R"([{"attend": 9}])",
       R"({"recipe": "sharp", "mask": {"pattern": "rows", "axes": "q"}})",
       {mask_ignored, mask_added}},
      {"additive mask",
       R"({"batch": 2, "query_heads": 4, "kv_heads": 2, "head_dim": 16, "mask": "additive", "alibi": "standard",
           "softcap": 20, "lse": true, "cache": "contiguous", "capacity": 20})",
       kChunks,
       R"({"recipe": "sharp", "mask": {"pattern": "bias_holes", "axes": "bh"}})",
       {mask_ignored}},
      {"lowest mask",
       R"({"query_heads": 4, "head_dim": 16, "mask": "additive", "causal": "bottom_right"})",
       R"([{"attend": 12}])",
       R"({"recipe": "sharp", "mask": {"pattern": "lowest", "axes": "h"}})",
       {mask_ignored}},
      {"sentinel mask",
       R"({"query_heads": 4, "head_dim": 16, "mask": "additive", "lse": true})",
       R"([{"attend": 12}])",
       R"({"recipe": "sharp", "mask": {"pattern": "sentinel", "axes": "h"}})",
       {mask_ignored}},
      {"rope, half",
       R"({"batch": 2, "query_heads": 4, "kv_heads": 2, "head_dim": 32, "causal": "bottom_right", "lse": true,
           "rope": {"style": "half", "base": 10000}, "cache": "contiguous", "capacity": 16})",
       R"([{"attend": [7, 4]}, {"attend": 1}, {"attend": [3, 5], "positions": [300, 1001]}])",
       kSharp,
       {rope_base, rope_wrong_pairs, rope_positions_bf16, rope_keys_not_turned}},
      {"rope, partial, linear",
       R"({"batch": 2, "query_heads": 4, "kv_heads": 2, "head_dim": 32, "causal": "bottom_right", "lse": true,
           "rope": {"style": "interleaved", "dim": 20, "base": 10000, "scaling": {"kind": "linear", "factor": 2.5}},
           "cache": "contiguous", "capacity": 16})",
       kChunks,
       kSharp,
       {rope_unscaled, rope_wrong_pairs, rope_keys_not_turned}},
      {"rope, ntk",
       R"({"query_heads": 4, "kv_heads": 2, "head_dim": 24, "causal": "bottom_right", "lse": true,
           "rope": {"style": "half", "base": 10000, "scaling": {"kind": "ntk", "factor": 4}},
           "cache": "contiguous", "capacity": 16})",
       R"([{"attend": 8}, {"attend": 4, "positions": 300}])",
       kSharp,
       {rope_unscaled, rope_base}},
      {"rope, llama3",
       R"({"query_heads": 4, "kv_heads": 2, "head_dim": 32, "causal": "bottom_right", "lse": true,
           "rope": {"style": "interleaved", "base": 500000, "scaling": {"kind": "llama3", "factor": 8,
                    "original_length": 64, "low_frequency": 1, "high_frequency": 4}},
           "cache": "contiguous", "capacity": 16})",
       R"([{"attend": 8}, {"attend": 4, "positions": 60}])",
       kSharp,
       {rope_unscaled, rope_base}},
      {"rope, yarn",
       R"({"query_heads": 4, "kv_heads": 2, "head_dim": 32, "causal": "bottom_right", "lse": true,
           "rope": {"style": "half", "base": 10000, "scaling": {"kind": "yarn", "factor": 16, "original_length": 1000,
                    "low_frequency": 1, "high_frequency": 32}}})",
       R"([{"attend": 12}])",
       kSharp,
       {rope_unscaled, rope_wrong_pairs}},
      {"rope, yarn unrounded",
       R"({"query_heads": 4, "kv_heads": 2, "head_dim": 32, "causal": "bottom_right", "lse": true,
           "rope": {"style": "half", "base": 150000, "scaling": {"kind": "yarn_unrounded", "factor": 32,
                    "original_length": 4096, "low_frequency": 1, "high_frequency": 32, "attention_factor": 1.25}},
           "cache": "contiguous", "capacity": 16})",
       R"([{"attend": 8}, {"attend": 4, "positions": 300}])",
       kSharp,
       {rope_unscaled, rope_wrong_pairs}},
      {"rope far out",
       R"({"query_heads": 2, "head_dim": 64, "causal": "bottom_right", "lse": true,
           "rope": {"style": "half", "base": 500000}, "cache": "contiguous", "capacity": 12})",
       R"([{"attend": 4}, {"attend": 8, "positions": 8190}])",
       kSharp,
       {rope_positions_bf16, rope_base}},
      {"norm",
       R"({"batch": 2, "query_heads": 4, "kv_heads": 2, "head_dim": 32, "causal": "bottom_right", "lse": true,
           "scale": 1, "qk_norm": {"epsilon": 1e-6}, "cache": "contiguous", "capacity": 16})",
       kChunks,
       kSharp,
       {norm_without_weight}},
      {"norm of needles",
       R"({"query_heads": 4, "kv_heads": 2, "head_dim": 32, "causal": "bottom_right", "lse": true,
           "scale": 1, "qk_norm": {"epsilon": 1e-6}, "cache": "contiguous", "capacity": 16})",
       R"([{"attend": 9}, {"attend": 1}])",
       R"({"recipe": "needle"})",
       {norm_without_weight}},
      {"norm and rope",
       R"({"batch": 2, "query_heads": 4, "kv_heads": 2, "head_dim": 32, "causal": "bottom_right", "lse": true,
           "scale": 1, "qk_norm": {"epsilon": 0.25}, "rope": {"style": "half", "base": 10000, "dim": 24},
           "cache": "contiguous", "capacity": 16})",
       kChunks,
       kSharp,
       {norm_without_epsilon, norm_without_weight, norm_after_rope}},
      {"layer with norm and rope",
       R"({"level": "layer", "batch": 2, "query_heads": 4, "kv_heads": 2, "head_dim": 16, "d_model": 48, "scale": 2,
           "bias": true, "causal": "bottom_right", "lse": true, "qk_norm": {"epsilon": 1e-5},
           "rope": {"style": "half", "base": 10000}, "cache": "contiguous", "capacity": 16})",
       kChunks,
       R"({"recipe": "gaussian"})",
       {norm_after_rope, norm_without_weight, rope_keys_not_turned}},
      {"layer of permutations",
       R"({"level": "layer", "query_heads": 4, "kv_heads": 2, "head_dim": 16, "causal": "bottom_right", "lse": true,
           "cache": "contiguous", "capacity": 16})",
       R"([{"attend": 9}, {"attend": 1}])",
       R"({"recipe": "needle", "weights": "permutation"})",
       {scale_dropped, first_key_lost}},
      {"layer of equal logits",
       R"({"level": "layer", "query_heads": 4, "kv_heads": 2, "head_dim": 16, "causal": "bottom_right", "lse": true,
           "cache": "contiguous", "capacity": 16})",
       R"([{"attend": 9}, {"attend": 1}])",
       R"({"recipe": "flat", "weights": "permutation"})",
       {first_key_lost}},
      {"layer with a mask",
       R"({"level": "layer", "query_heads": 4, "kv_heads": 2, "head_dim": 16, "d_model": 48, "mask": "additive",
           "scale": 2, "lse": true})",
       R"([{"attend": 9}])",
       R"({"recipe": "gaussian", "mask": {"pattern": "bias_holes", "axes": "hq"}})",
       {mask_ignored}},
      {"int8 per tensor",
       R"({"batch": 2, "query_heads": 4, "kv_heads": 2, "head_dim": 32, "causal": "bottom_right", "lse": true,
           "cache": "contiguous", "capacity": 16, "cache_dtype": "i8", "kv_scale": "tensor"})",
       kChunks,
       kSharp,
       {codes_truncated, codes_unscaled}},
      {"int8 per token",
       R"({"batch": 2, "query_heads": 4, "kv_heads": 2, "head_dim": 32, "causal": "bottom_right", "lse": true,
           "cache": "contiguous", "capacity": 16, "cache_dtype": "i8", "kv_scale": "token"})",
       kChunks,
       kSharp,
       {codes_truncated, codes_unscaled}},
      {"int8 saturated",
       R"({"query_heads": 4, "kv_heads": 2, "head_dim": 32, "causal": "bottom_right", "lse": true,
           "cache": "contiguous", "capacity": 16, "cache_dtype": "i8", "kv_scale": "head"})",
       R"([{"attend": 9}, {"attend": 1}])",
       R"({"recipe": "sharp", "saturate": true})",
       {codes_unscaled}},
      {"e4m3 per head",
       R"({"batch": 2, "query_heads": 4, "kv_heads": 2, "head_dim": 32, "causal": "bottom_right", "lse": true,
           "cache": "contiguous", "capacity": 16, "cache_dtype": "f8_e4m3", "kv_scale": "head"})",
       kChunks,
       kSharp,
       {codes_unscaled}},
      {"e5m2 per token",
       R"({"batch": 2, "query_heads": 4, "kv_heads": 2, "head_dim": 32, "causal": "bottom_right", "lse": true,
           "cache": "contiguous", "capacity": 16, "cache_dtype": "f8_e5m2", "kv_scale": "token"})",
       kChunks,
       kSharp,
       {codes_unscaled}},
      {"e4m3 needles",
       R"({"query_heads": 4, "kv_heads": 2, "head_dim": 32, "causal": "bottom_right", "lse": true,
           "cache": "contiguous", "capacity": 16, "cache_dtype": "f8_e4m3", "kv_scale": "tensor"})",
       R"([{"attend": 9}, {"attend": 1}])",
       R"({"recipe": "needle"})",
       {codes_unscaled}},
      {"int8 layer",
       R"({"level": "layer", "query_heads": 4, "kv_heads": 2, "head_dim": 16, "causal": "bottom_right", "lse": true,
           "cache": "contiguous", "capacity": 16, "cache_dtype": "i8", "kv_scale": "token"})",
       R"([{"attend": 9}, {"attend": 1}])",
       R"({"recipe": "sharp", "weights": "permutation"})",
       {codes_truncated, codes_unscaled}},
      {"merge",
       R"({"batch": 2, "query_heads": 4, "kv_heads": 2, "head_dim": 16, "lse": true})",
       R"([{"attend": 3, "keys": [5, 7]}, {"attend": 3, "keys": [6, 0], "again": true},
           {"attend": 3, "keys": [1, 9], "again": true}, {"merge": 3}])",
       kSharp,
       {scale_dropped, first_key_lost}},
      {"merge with norm",
       R"({"query_heads": 4, "kv_heads": 2, "head_dim": 16, "lse": true, "scale": 1, "qk_norm": {"epsilon": 1e-5}})",
       R"([{"attend": 3, "keys": 5}, {"attend": 3, "keys": 6, "again": true}, {"merge": 2}])",
       kSharp,
       {norm_without_weight}},
  };
  return list;
}

/// Codes behind f32 arithmetic, that 16 bits before them would make undecidable.
const std::vector<Tried>& codes_after_rope() {
  static const std::vector<Tried> list{
      {"int8 after rope",
       R"({"query_heads": 4, "kv_heads": 2, "head_dim": 32, "causal": "bottom_right", "lse": true,
           "rope": {"style": "half", "base": 10000}, "qk_norm": {"epsilon": 1e-6}, "scale": 1,
           "cache": "contiguous", "capacity": 16, "cache_dtype": "i8", "kv_scale": "head"})",
       R"([{"attend": 5}, {"attend": 1}])",
       kSharp,
       {Fault::codes_unscaled, Fault::rope_base, Fault::norm_after_rope}},
      {"e4m3 after rope",
       R"({"query_heads": 4, "kv_heads": 2, "head_dim": 32, "causal": "bottom_right", "lse": true,
           "rope": {"style": "half", "base": 10000}, "cache": "contiguous", "capacity": 16, "cache_dtype": "f8_e4m3",
           "kv_scale": "token"})",
       R"([{"attend": 5}, {"attend": 1}])",
       kSharp,
       {Fault::codes_unscaled, Fault::rope_base}},
  };
  return list;
}

struct Computed {
  Timeline timeline;
  Inputs inputs;
  Golden golden;
};

Computed compute(const Case& c) {
  Computed computed{play(c), {}, {}};
  computed.inputs = generate_inputs(c, computed.timeline);
  computed.golden = compute_golden(c, computed.timeline, computed.inputs).golden;
  return computed;
}

std::vector<Legal> variants(bool half) {
  std::vector<Legal> list;
  for (const int frequencies : {0, 1, 2}) {
    for (const int order : {0, 1, 2}) {
      for (const bool folds : {false, true}) {
        list.push_back({half && order != 1, frequencies, order, order == 2, folds, order == 1});
        if (half) list.push_back({true, frequencies, order, false, folds, order != 1});
      }
    }
  }
  return list;
}

/// Set to see by how much: for spec/tolerance.md.
void report(const std::string& what, double quotient) {
  if (std::getenv("ATTEST_REPORT") != nullptr) std::printf("%-50s %.3g\n", what.c_str(), quotient);
}

void try_all(const std::vector<Tried>& list, const std::string& dtype) {
  for (const Tried& tried : list) {
    const Case c = make(tried, dtype);
    const Computed computed = compute(c);
    INFO(dtype << ' ' << tried.name);
    double worst = 0;
    for (const Legal& legal : variants(dtype != "f32")) {
      worst = std::max(worst, worst_error<float>(Emulator<float>(c, computed.timeline, computed.inputs, legal).run(),
                                                 computed.golden));
    }
    report(dtype + " " + tried.name, worst);
    CHECK(worst < 1);
    CHECK(worst > 0.001);
    for (const Fault fault : tried.faults) {
      const double wrong =
          worst_error<float>(Emulator<float>(c, computed.timeline, computed.inputs, {}, fault).run(), computed.golden);
      INFO("fault " << static_cast<int>(fault));
      report(dtype + " " + tried.name + ", fault " + std::to_string(static_cast<int>(fault)), wrong);
      CHECK(wrong > 10);
    }
  }
}

}  // namespace

TEST_CASE("every feature agrees with long double") {
  for (const auto* list : {&all(), &codes_after_rope()}) {
    for (const Tried& tried : *list) {
      INFO(tried.name);
      const Case c = make(tried, "f32");
      const Computed computed = compute(c);
      const auto reference = Emulator<long double>(c, computed.timeline, computed.inputs).run();
      CHECK(worst_error<long double>(reference, computed.golden, 1e-3) < 1e-11);
    }
  }
}

TEST_CASE("correct f32 backends stay within the allowed error, faulty ones do not") {
  try_all(all(), "f32");
  try_all(codes_after_rope(), "f32");
}

TEST_CASE("correct f16 backends stay within the allowed error, faulty ones do not") {
  try_all(all(), "f16");
}

TEST_CASE("correct bf16 backends stay within the allowed error, faulty ones do not") {
  try_all(all(), "bf16");
}
