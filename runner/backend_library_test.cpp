// SPDX-License-Identifier: Apache-2.0
// ATTEST_TEST_BACKENDS is the folder with backends/hostile's libraries.
#include "runner/backend_library.h"

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_exception.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <stdexcept>

#include "cases/error.h"
#include "runner/places.h"

namespace attest {
namespace {

using Catch::Matchers::ContainsSubstring;
using Catch::Matchers::EndsWith;
using Catch::Matchers::MessageMatches;

std::string backend(const std::string& name) {
  return ATTEST_TEST_BACKENDS "/attest-backend-" + name + ".so";
}

TEST_CASE("a good library loads") {
  const BackendLibrary hostile(backend("hostile"));
  CHECK(std::string(hostile.table().name) == "hostile");
  CHECK_FALSE(hostile.has_device_memory());
  CHECK(hostile.device_type() == kDLCPU);
  CHECK(BackendLibrary(backend("detached")).has_device_memory());
}

TEST_CASE("a bad library is refused with its path and the reason") {
  const auto refused = [](const std::string& path, const std::string& end) {
    CHECK_THROWS_MATCHES(BackendLibrary(path), Error, MessageMatches(EndsWith(path + ": " + end)));
  };
  refused(backend("broken-version"), "has ABI version 7, this attest speaks 1");
  refused(backend("broken-size"), "has a table of 16 bytes, wanted at least 128");
  refused(backend("broken-name"), "has a name that does not match [a-z0-9_-]+");
  refused(backend("broken-run"), "has no run in its table");
  refused(backend("broken-memory"), "has 1 of the five memory functions, wanted all of them or none");
  refused(backend("broken-device"), "takes memory of cuda without the memory functions");
  refused(backend("broken-null"), "attest_get_backend returned NULL");
  refused(backend("broken-symbol"), "is no attest backend: it has no symbol attest_get_backend");
  refused("/nowhere/x.so", "no such file");
  refused(ATTEST_TEST_BACKENDS, "cannot be loaded: cannot read file data: Is a directory");
  refused("/proc/self/status", "cannot be loaded: invalid ELF header");
}

TEST_CASE("answers are taken down whatever a backend does") {
  const auto say = [](attest_message* message, const char* text) { std::strcpy(message->text, text); };
  Answer answer = ask([&](attest_message* m) { return say(m, "query: got\n1"), ATTEST_INVALID; });
  CHECK(answer.status == ATTEST_INVALID);
  CHECK(answer.message == "query: got 1");
  answer = ask([](attest_message* m) {
    std::memset(m->text, 'x', sizeof m->text);  // without its end
    return ATTEST_OK;
  });
  CHECK(answer.message == std::string(1020, 'x'));
  answer = ask([&](attest_message* m) { return say(m, "odd"), 99; });
  CHECK(answer.status == ATTEST_ERROR);
  CHECK(answer.message == "the backend returned status 99, which does not exist: odd");
  answer = ask([](attest_message*) -> attest_status { throw std::runtime_error("no"); });
  CHECK(answer.message == "an exception escaped the backend: no");
  answer = ask([](attest_message*) -> attest_status { throw 1; });
  CHECK(answer.message == "an exception escaped the backend: not a std::exception");
}

TEST_CASE("a problem takes the ABI's form") {
  Problem problem;
  problem.qk_head_dim = 3;
  problem.v_head_dim = 5;
  problem.causal = Causal::top_left;
  problem.scale = 0.25;
  attest_problem p = abi_problem(problem);
  CHECK(p.struct_size == sizeof p);
  CHECK(p.causal == ATTEST_CAUSAL_TOP_LEFT);
  CHECK(p.scale == 0.25);
  CHECK(p.window_left == -1);
  CHECK(p.window_right == -1);
  CHECK(p.cache == ATTEST_CACHE_NONE);
  CHECK(p.capacity == 0);
  CHECK(p.d_model == 0);
  CHECK(p.cache_dtype.bits == 32);
  problem.scale.reset();
  problem.level = Level::layer;
  problem.d_model = 6;
  problem.cache = CacheKind::contiguous;
  problem.capacity = 9;
  p = abi_problem(problem);
  CHECK(p.scale == 0);
  CHECK(p.d_model == 6);
  CHECK(p.capacity == 9);
  CHECK(p.cache == ATTEST_CACHE_CONTIGUOUS);

  DLTensor tensor{};
  CHECK(set_tensor(p, "q_norm_weight", &tensor));
  CHECK(p.q_norm_weight == &tensor);
  CHECK(set_tensor(p, "out_bias", &tensor));
  CHECK(p.out_bias == &tensor);
  CHECK_FALSE(set_tensor(p, "bias", &tensor));
}

TEST_CASE("every feature of a problem takes the ABI's form") {
  const auto abi = [](const char* json) { return abi_problem(problem_from_json(Json::parse(json), "test")); };
  attest_problem p = abi(R"({"dtype": "bf16", "head_dim": 8, "mask": "additive", "qk_norm": {"epsilon": 0.5},
      "window": {"left": 3}, "rope": {"style": "interleaved", "dim": 6, "base": 500, "scaling": {"kind": "yarn",
      "factor": 4, "original_length": 64, "low_frequency": 1, "high_frequency": 32, "attention_factor": 1.5}},
      "cache": "ring", "capacity": 9, "cache_dtype": "f8_e5m2", "kv_scale": "head"})");
  CHECK(p.dtype.code == kDLBfloat);
  CHECK(p.dtype.bits == 16);
  CHECK(p.mask == ATTEST_MASK_ADDITIVE);
  CHECK(p.norm_epsilon == 0.5);
  CHECK(p.rope.style == ATTEST_ROPE_INTERLEAVED);
  CHECK(p.rope.scaling == ATTEST_ROPE_SCALING_YARN);
  CHECK(p.rope.rotary_dim == 6);
  CHECK(p.rope.base == 500);
  CHECK(p.rope.factor == 4);
  CHECK(p.rope.original_length == 64);
  CHECK(p.rope.low_frequency == 1);
  CHECK(p.rope.high_frequency == 32);
  CHECK(p.rope.attention_factor == 1.5);
  CHECK(p.cache == ATTEST_CACHE_RING);
  CHECK(p.capacity == 9);
  CHECK(p.page_size == 0);
  CHECK(p.cache_dtype.code == kDLUInt);
  CHECK(p.cache_dtype.bits == 8);
  CHECK(p.cache_fp8 == ATTEST_FP8_E5M2);
  CHECK(p.kv_scale == ATTEST_KV_SCALE_PER_HEAD);
  CHECK(p.packed == 0);
  p = abi(R"({"head_dim": 8, "packed": true, "cache": "paged", "capacity": 9, "page_size": 4, "cache_dtype": "i8",
      "kv_scale": "token"})");
  CHECK(p.packed == 1);
  CHECK(p.cache == ATTEST_CACHE_PAGED);
  CHECK(p.page_size == 4);
  CHECK(p.cache_dtype.code == kDLInt);
  CHECK(p.cache_fp8 == ATTEST_FP8_NONE);
  CHECK(p.kv_scale == ATTEST_KV_SCALE_PER_TOKEN);
  CHECK(p.rope.style == ATTEST_ROPE_NONE);
  p = abi(R"({"dtype": "f16", "head_dim": 8, "cache": "contiguous", "capacity": 9})");
  CHECK(p.cache_dtype.bits == 16);
  CHECK(p.cache_dtype.code == kDLFloat);
}

TEST_CASE("a step takes every tensor of the interface by name") {
  StepArguments step(1, 1);
  for (const char* name : {"query", "key", "value", "query_lengths", "key_lengths", "query_start", "key_start",
                           "positions", "mask", "output", "lse", "cache.key", "cache.value", "cache.lengths",
                           "cache.block_table", "cache.key_scale", "cache.value_scale"}) {
    CAPTURE(name);
    DLTensor tensor{};
    CHECK(step.set(name, &tensor));
  }
}

TEST_CASE("a step has what was set and no more") {
  DLTensor tensor{};
  StepArguments step(3, 9);
  CHECK(step.get()->struct_size == sizeof(attest_step));
  CHECK(step.get()->max_query_length == 3);
  CHECK(step.get()->max_total_length == 9);
  CHECK(step.get()->cache == nullptr);
  CHECK(step.set("query", &tensor));
  CHECK(step.set("lse", &tensor));
  CHECK(step.get()->cache == nullptr);
  CHECK(step.set("cache.block_table", &tensor));
  REQUIRE(step.get()->cache != nullptr);
  CHECK(step.get()->cache->struct_size == sizeof(attest_cache));
  CHECK(step.get()->cache->block_table == &tensor);
  CHECK(step.get()->cache->key == nullptr);
  CHECK(step.get()->query == &tensor);
  CHECK(step.get()->output == nullptr);
  CHECK_FALSE(step.set("cache", &tensor));
  CHECK_FALSE(step.set("", &tensor));
}

TEST_CASE("backends are found by path or by name") {
  namespace fs = std::filesystem;
  CHECK(find_backend(backend("hostile")) == fs::path(backend("hostile")));
  CHECK_THROWS_MATCHES(find_backend("./x.so"), Error, MessageMatches(ContainsSubstring("./x.so: no such file")));
  CHECK_THROWS_MATCHES(find_backend("x.so"), Error, MessageMatches(ContainsSubstring("x.so: no such file")));
  ::setenv("ATTEST_BACKEND_PATH", "/nowhere::" ATTEST_TEST_BACKENDS, 1);
  CHECK(find_backend("hostile") == fs::path(backend("hostile")));
  CHECK_THROWS_MATCHES(
      find_backend("unknown"), Error,
      MessageMatches(ContainsSubstring("got \"unknown\", which is in none of /nowhere, " ATTEST_TEST_BACKENDS ", ") &&
                     ContainsSubstring("lib/attest/backends; there: alternative, broken-declarations, ") &&
                     ContainsSubstring("detached, hostile")));
  bool listed = false;
  for (const BackendPlace& place : list_backends()) listed = listed || place.name == "detached";
  CHECK(listed);
  ::unsetenv("ATTEST_BACKEND_PATH");
  CHECK(backend_places().size() == 1);
}

}  // namespace
}  // namespace attest
