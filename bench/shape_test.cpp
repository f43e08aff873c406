// SPDX-License-Identifier: Apache-2.0
#include "bench/shape.h"

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_exception.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <set>

#include "cases/error.h"

namespace attest::bench {
namespace {

using Catch::Matchers::ContainsSubstring;
using Catch::Matchers::MessageMatches;

std::vector<Shape> parsed(const std::string& shape) {
  return shapes_from_json("{\"shapes\": [" + shape + "]}", "mine.json");
}
void refused(const std::string& text, const std::string& part) {
  INFO(text);
  CHECK_THROWS_MATCHES(parsed(text), Error, MessageMatches(ContainsSubstring(part)));
}

TEST_CASE("Built-in shapes are legal problems with names of their own") {
  std::set<std::string> names;
  for (const char* set : {"decode", "prefill", "mixed", "model:llama3-8b"}) {
    names.clear();
    for (const Shape& shape : find_shapes(set)) {
      INFO(shape.set << "/" << shape.name);
      CHECK(names.insert(shape.set + "/" + shape.name).second);
      CHECK_NOTHROW(problem_from_json(to_json(shape.problem), shape.name));
      CHECK(shape.before.size() == static_cast<size_t>(shape.problem.batch));
      for (size_t b = 0; b < shape.before.size(); ++b) {
        CHECK(shape.before[b] >= 0);
        CHECK(shape.queries[b] >= 1);
        CHECK(shape.before[b] + shape.queries[b] <= shape.problem.capacity);
      }
    }
  }
}

TEST_CASE("The decode set has every axis") {
  const auto shapes = find_shapes("decode");
  const auto some = [&](auto test) { return std::any_of(shapes.begin(), shapes.end(), test); };
  CHECK(some([](const Shape& s) { return s.problem.batch == 64; }));
  CHECK(some([](const Shape& s) { return s.context == 32768; }));
  CHECK(some([](const Shape& s) { return s.problem.query_heads == 14; }));
  CHECK(some([](const Shape& s) { return s.problem.quantised(); }));
  CHECK(some([](const Shape& s) { return s.problem.dtype == DType::bf16; }));
  CHECK(some([](const Shape& s) { return s.problem.cache == CacheKind::paged; }));
  CHECK(some([](const Shape& s) { return s.before.front() != s.before.back(); }));
}

TEST_CASE("Bytes and operations of a decode step by hand") {
  const Shape shape =
      parsed(R"({"set": "decode", "batch": 2, "query_heads": 4, "kv_heads": 2, "head_dim": 8, "context": 32,
                 "lengths": "skewed"})")
          .front();
  CHECK(shape.before == std::vector<int64_t>{31, 15});
  CHECK(shape.tokens() == 2);
  const Cost cost = cost_of(shape);
  CHECK(cost.kv_bytes == (32 + 16) * 2 * 16 * 4);
  CHECK(cost.bytes == cost.kv_bytes + 2 * (4 + 2) * 16 * 4);
  CHECK(cost.flops == 2 * (32 + 16) * 4 * 16);
}

TEST_CASE("A prefill counts the visible half only") {
  const Shape shape = parsed(R"({"set": "prefill", "query_heads": 1, "head_dim": 4, "context": 10})").front();
  CHECK(shape.queries == std::vector<int64_t>{10});
  CHECK(cost_of(shape).flops == 2 * 55 * 8);
  const Shape chunk =
      parsed(R"({"set": "prefill", "query_heads": 1, "head_dim": 4, "context": 10, "chunk": 4})").front();
  CHECK(chunk.before == std::vector<int64_t>{6});
  CHECK(cost_of(chunk).flops == 2 * (4 * 6 + 10) * 8);
}

TEST_CASE("A list of contexts is a shape each") {
  const auto shapes = parsed(R"({"set": "decode", "context": [64, 128]})");
  REQUIRE(shapes.size() == 2);
  CHECK(shapes[1].name == "b1_h32-32_d128_c128_f32");
}

TEST_CASE("What a layer is as wide as, and how long a mixed batch's chunk is, stand in the name") {
  const auto layers = parsed(R"({"set": "layer", "context": 64}, {"set": "layer", "context": 64, "d_model": 512})");
  REQUIRE(layers.size() == 2);
  CHECK(layers[0].name == "b1_h32-32_d128_model4096_c64_f32");
  CHECK(layers[1].name == "b1_h32-32_d128_model512_c64_f32");
  const auto mixed = parsed(R"({"set": "mixed", "batch": 2, "context": [64, 512]})");
  CHECK(mixed[0].name == "b2_h32-32_d128_chunk64_c64_f32");
  CHECK(mixed[0].queries == std::vector<int64_t>{64, 1});
  CHECK(mixed[1].name == "b2_h32-32_d128_chunk256_c512_f32");
  CHECK(parsed(R"({"set": "prefill", "context": 64, "chunk": 64})").front().queries == std::vector<int64_t>{64});
}

TEST_CASE("Heads may come first in a cache's memory") {
  const Shape shape = parsed(R"({"set": "decode", "context": 64, "order": "heads"})").front();
  CHECK(shape.heads_first);
  CHECK(shape.name == "b1_h32-32_d128_c64_f32_heads");
  CHECK_FALSE(parsed(R"({"set": "decode", "context": 64, "order": "tokens"})").front().heads_first);
}

TEST_CASE("A broken shapes file says where") {
  CHECK_THROWS_MATCHES(shapes_from_json("{", "mine.json"), Error, MessageMatches(ContainsSubstring("mine.json")));
  CHECK_THROWS_MATCHES(shapes_from_json("{\"shapes\": []}", "mine.json"), Error,
                       MessageMatches(ContainsSubstring("has no shapes")));
  refused(R"({"context": 64})", "set");
  refused(R"({"set": "decode"})", "context");
  refused(R"({"set": "decode", "context": 0})", "shapes[0].context: got 0");
  refused(R"({"set": "decode", "context": 64, "batches": 2})", "batches");
  refused(R"({"set": "decode", "context": 64, "query_heads": 6, "kv_heads": 4})", "wanted a divisor");
  refused(R"({"set": "decode", "context": 64, "dtype": "f8"})", "dtype");
  refused(R"({"set": "decode", "context": 64, "chunk": 8})", "one token");
  refused(R"({"set": "prefill", "context": 64, "chunk": 65})", "shapes[0].chunk: got 65, wanted 1 to 64");
  refused(R"({"set": "prefill", "context": [64, 32], "chunk": 64})", "shapes[0].chunk: got 64, wanted 1 to 32");
  refused(R"({"set": "prefill", "context": 64, "chunk": -1})", "shapes[0].chunk: got -1");
  refused(R"({"set": "mixed", "context": 64, "chunk": 65})", "shapes[0].chunk: got 65, wanted 1 to 64");
  refused(R"({"set": "mixed", "context": 64, "chunk": 0})", "shapes[0].chunk: got 0, wanted 1 to");
  refused(R"({"set": "layer", "context": 64, "dtype": "f16"})", "f32 only");
  refused(R"({"set": "decode", "context": 64}, {"set": "decode", "context": 64})", "there already");
  CHECK_THROWS_MATCHES(find_shapes("model:gpt2"), Error, MessageMatches(ContainsSubstring("model:llama3-8b")));
  CHECK_THROWS_MATCHES(find_shapes("nowhere.json"), Error, MessageMatches(ContainsSubstring("nowhere.json")));
}

}  // namespace
}  // namespace attest::bench
