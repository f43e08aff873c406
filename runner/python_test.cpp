// SPDX-License-Identifier: Apache-2.0
// backends/python/worker.py as the runner asks it: its answers must be such as Worker takes.
#include "runner/python.h"

#include <catch2/catch_test_macros.hpp>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "cases/json.h"
#include "runner/arena.h"
#include "runner/worker_client.h"

namespace attest {
namespace {

using namespace std::chrono_literals;

const std::string kSources = ATTEST_PYTHON_SOURCES;  // backends/python

/// One with the module, or nothing, where the test is to be skipped.
std::optional<Python> python_with(bool torch) {
  try {
    return choose_python(torch);
  } catch (const Error& error) {
    WARN(error.what());
    return std::nullopt;
  }
}

Problem problem_of(const char* text) {
  return problem_from_json(parse_json(text, "test"), "test");
}

Worker worker_of(const Python& python) {
  WorkerOptions options;
  options.command = python_worker_command(python);
  return Worker(options);
}

// PyTorch is imported when the worker opens.
constexpr auto kLimit = 120s;

/// Blocks of a step by the names of the protocol.
using Blocks = std::map<std::string, const Block*>;

RunRequest request_of(const Blocks& blocks, int64_t queries, int64_t total) {
  RunRequest request;
  for (const auto& [name, block] : blocks) request.tensors[name] = protocol::tensor_of(*block);
  request.max_query_length = queries;
  request.max_total_length = total;
  return request;
}

TEST_CASE("an interpreter is asked what it has") {
  const auto python = python_with(false);
  if (!python) SKIP("no Python with NumPy");
  CHECK(python->version.starts_with("3."));
  CHECK_FALSE(python->numpy.empty());
  CHECK_FALSE(python->folders.empty());
  CHECK_THROWS_AS(look_at_python("/bin/false"), Error);
  CHECK_THROWS_AS(look_at_python("/bin/echo"), Error);
  CHECK_THROWS_AS(look_at_python("/nowhere/python"), Error);
}

TEST_CASE("ATTEST_PYTHON is what is taken, and nothing else is tried") {
  const char* before = std::getenv("ATTEST_PYTHON");
  const std::string kept = before != nullptr ? before : "";
  ::setenv("ATTEST_PYTHON", "/nowhere/python", 1);
  CHECK_THROWS_AS(choose_python(), Error);
  ::setenv("ATTEST_PYTHON", "/bin/false", 1);
  CHECK_THROWS_AS(choose_python(), Error);
  before != nullptr ? ::setenv("ATTEST_PYTHON", kept.c_str(), 1) : ::unsetenv("ATTEST_PYTHON");
}

TEST_CASE("a function answers all requests, and its values come back") {
  const auto python = python_with(false);
  if (!python) SKIP("no Python with NumPy");
  const Problem problem = problem_of(R"({"head_dim": 2, "query_heads": 2, "kv_heads": 1, "causal": "bottom_right"})");
  Arena arena;
  const Blocks blocks{{"query", &arena.add("query", DType::f32, {1, 2, 2, 2})},
                      {"key", &arena.add("key", DType::f32, {1, 2, 1, 2})},
                      {"value", &arena.add("value", DType::f32, {1, 2, 1, 2})},
                      {"output", &arena.add("output", DType::f32, {1, 2, 2, 2}, {16, 8, 3, 1})}};
  arena.commit();
  arena.fill(*blocks.at("query"), 0.0F);  // equal logits: the output is the mean of the visible values
  arena.fill(*blocks.at("key"), 1.0F);
  arena.put(*blocks.at("value"), {1, 2, 3, 4});
  const auto before = arena.snapshot(*blocks.at("output"));

  Worker worker = worker_of(*python);
  const auto opened =
      worker.open(kSources + "/example_numpy.py", {{"kind", "function"}, {"function", "attention"}}, kLimit);
  REQUIRE(opened);
  CHECK(opened->reply.status == ATTEST_OK);
  CHECK(opened->name == "example_numpy-attention");
  CHECK(opened->device == "cpu");
  CHECK(opened->declarations == Json::object());
  REQUIRE(worker.prepare(problem, arena, {}, kLimit, 5)->status == ATTEST_OK);
  const RunRequest request = request_of(blocks, 2, 2);
  const auto ran = worker.run(request, kLimit, 5);
  REQUIRE(ran);
  CHECK(ran->message.empty());
  CHECK(ran->status == ATTEST_OK);
  CHECK(arena.values(*blocks.at("output")) == std::vector<float>{1, 2, 1, 2, 2, 3, 2, 3});
  CHECK_FALSE(arena.intact(*blocks.at("output"), before, Elements::may_change));
  const auto together = worker.run_together({{5, request}}, kLimit);
  REQUIRE(together);
  CHECK(together->at(0).status == ATTEST_OK);

  RunRequest wrong = request;
  wrong.tensors["key"].shape[3] = 1;
  const auto refused = worker.run(wrong, kLimit, 5);
  CHECK(refused->status == ATTEST_INVALID);
  CHECK(refused->message == "key: got shape [1, 2, 1, 1], wanted [1, 2, 1, 2]");
  CHECK(worker.probe("reset_cache", Json::object(), kLimit, 5)->status == ATTEST_ERROR);
  CHECK(worker.release(kLimit, 5)->status == ATTEST_OK);
  CHECK(worker.release(kLimit, 5)->status == ATTEST_ERROR);
  CHECK(worker.close(kLimit)->status == ATTEST_OK);
}

TEST_CASE("a submission to the challenge is a backend, and can be probed") {
  const auto python = python_with(true);
  if (!python) SKIP("no Python with PyTorch");
  const Problem problem = problem_of(R"({"level": "layer", "query_heads": 2, "head_dim": 1, "bias": true,
                                         "causal": "bottom_right", "cache": "contiguous", "capacity": 3})");
  Arena arena;
  Blocks weights, blocks;
  for (const std::string name : {"q", "k", "v", "out"}) {
    weights[name + "_weight"] = &arena.add(name + "_weight", DType::f32, {2, 2});
    weights[name + "_bias"] = &arena.add(name + "_bias", DType::f32, {2});
  }
  for (const std::string name : {"query", "key", "value", "output"}) {
    blocks[name] = &arena.add(name, DType::f32, {1, 2, 2});
  }
  blocks["cache.key"] = &arena.add("cache.key", DType::f32, {1, 3, 2, 1});
  blocks["cache.value"] = &arena.add("cache.value", DType::f32, {1, 3, 2, 1});
  blocks["cache.lengths"] = &arena.add("cache.lengths", DType::i32, {1});
  arena.commit();
  protocol::Tensors tensors;
  for (const auto& [name, block] : weights) {
    name.ends_with("bias") ? arena.fill(*block, 0.0F) : arena.put(*block, {1, 0, 0, 1});
    tensors[name] = protocol::tensor_of(*block);
  }
  arena.fill(*weights.at("q_weight"), 0.0F);  // equal logits
  arena.put(*weights.at("out_bias"), {10, 20});
  arena.fill(*blocks.at("query"), 1.0F);
  arena.fill(*blocks.at("key"), 7.0F);
  arena.put(*blocks.at("value"), {1, 2, 3, 4});
  arena.fill(*blocks.at("cache.lengths"), 0);

  Worker worker = worker_of(*python);
  const auto opened = worker.open(kSources + "/tests/submission.py", {{"kind", "challenge"}}, kLimit);
  REQUIRE(opened);
  REQUIRE(opened->reply.message.empty());
  REQUIRE(worker.prepare(problem, arena, tensors, kLimit)->status == ATTEST_OK);
  const RunRequest request = request_of(blocks, 2, 2);
  const auto ran = worker.run(request, kLimit);
  REQUIRE(ran);
  CHECK(ran->message.empty());
  CHECK(arena.values(*blocks.at("output")) == std::vector<float>{11, 22, 12, 23});
  CHECK(arena.gather<int32_t>(*blocks.at("cache.lengths")) == std::vector<int32_t>{2});
  const std::vector<float> values = arena.values(*blocks.at("cache.value"));
  CHECK(std::vector<float>(values.begin(), values.begin() + 4) == std::vector<float>{1, 2, 3, 4});
  CHECK(std::isnan(values[4]));

  const auto overflowing = worker.run(request, kLimit);
  REQUIRE(overflowing);
  CHECK(overflowing->status == ATTEST_OVERFLOW);
  CHECK(overflowing->message.find("capacity is 3") != std::string::npos);
  const auto probed = worker.probe("position_ids", {{"seq_len", 2}, {"cache_len", 3}}, kLimit);
  REQUIRE(probed);
  CHECK(probed->status == ATTEST_OK);
  CHECK(probed->details["calls"][0]["returned"]["values"] == Json{3, 4});
  CHECK(worker.output().find("a submission may print what it likes") != std::string::npos);
  CHECK(worker.close(kLimit)->status == ATTEST_OK);
}

}  // namespace
}  // namespace attest
