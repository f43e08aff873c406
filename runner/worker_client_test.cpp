// SPDX-License-Identifier: Apache-2.0
// ATTEST_WORKER is the worker program, ATTEST_TEST_BACKENDS the folder with backends/hostile's libraries.
#include "runner/worker_client.h"

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/matchers/catch_matchers_exception.hpp>
#include <catch2/matchers/catch_matchers_floating_point.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <cerrno>
#include <cmath>
#include <csignal>
#include <fstream>
#include <thread>

#include "cases/error.h"

namespace attest {
namespace {

using namespace std::chrono_literals;
using Catch::Matchers::ContainsSubstring;
using Catch::Matchers::MessageMatches;
using Catch::Matchers::StartsWith;
using Catch::Matchers::WithinAbs;
using Kind = WorkerFailure::Kind;
using Options = std::map<std::string, std::string>;

// Generous: nothing but a hang may ever come near it, also on a loaded machine and under a sanitizer.
constexpr auto kLimit = 60s;

std::string backend(const std::string& name) {
  return ATTEST_TEST_BACKENDS "/attest-backend-" + name + ".so";
}

Worker fresh() {
  return Worker({{ATTEST_WORKER}, std::nullopt});
}

// A worker that is a shell script: `request` reads a request and sets $nonce, `frame TEXT` sends a frame.
Worker shell(const std::string& script) {
  const std::string prelude = R"(
frame() { printf "\\$(printf %03o $((${#1} % 256)))\\$(printf %03o $((${#1} / 256)))\\000\\000%s" "$1" >&3; }
request() {
  size=$(head -c 4 <&3 | od -An -tu4)
  text=$(head -c $size <&3)
  nonce=${text#*\"nonce\":\"}
  nonce=${nonce%%\"*}
}
)";
  return Worker({{"/bin/bash", "-c", prelude + script}, std::nullopt});
}

bool process_exists(pid_t pid) {
  std::ifstream stat("/proc/" + std::to_string(pid) + "/stat");
  std::string number, name, state;
  // A zombie that nobody has reaped yet is no process any more.
  return static_cast<bool>(stat >> number >> name >> state) && state != "Z";
}

bool gone_soon(pid_t pid) {
  for (int i = 0; i < 500 && process_exists(pid); ++i) std::this_thread::sleep_for(10ms);
  return !process_exists(pid);
}

// A small causal problem with a cache, two sequences, one step at a time.
class Play {
 public:
  Play() {
    problem.batch = 2;
    problem.query_heads = 2;
    problem.kv_heads = 1;
    problem.qk_head_dim = 4;
    problem.v_head_dim = 3;
    problem.causal = Causal::bottom_right;
    problem.cache = CacheKind::contiguous;
    problem.capacity = 5;
    problem.lse = true;
    add("query", DType::f32, {2, 2, 2, 4});
    add("key", DType::f32, {2, 2, 1, 4});
    add("value", DType::f32, {2, 2, 1, 3});
    const std::vector<int64_t> shape{2, 2, 2, 3};
    blocks["output"] = &arena.add("output", DType::f32, shape, strides_for(shape, "bshd", {"bhsd", 2}));
    add("lse", DType::f32, {2, 2, 2});
    add("cache.key", DType::f32, {2, 5, 1, 4});
    add("cache.value", DType::f32, {2, 5, 1, 3});
    add("cache.lengths", DType::i32, {2});
    arena.commit();
    arena.fill(at("query"), 0.0F);  // equal logits: the output is the mean of the visible values
    arena.fill(at("key"), 1.0F);
    arena.fill(at("cache.lengths"), 0);
    set_values({1, 3});
  }

  // Values of both sequences' two tokens, in every channel.
  void set_values(const std::vector<float>& tokens) {
    std::vector<float> values;
    for (int b = 0; b < 2; ++b) {
      for (const float token : tokens) values.insert(values.end(), 3, token);
    }
    arena.scatter(at("value"), values);
  }
  [[nodiscard]] RunRequest request() const {
    RunRequest request;
    for (const auto& [name, block] : blocks) {
      request.tensors[name] = protocol::tensor_of(*block);
      request.upload.push_back(name);
      request.download.push_back(name);
    }
    request.max_query_length = 2;
    request.max_total_length = 2;
    return request;
  }
  [[nodiscard]] const Block& at(const std::string& name) const { return *blocks.at(name); }

  Problem problem;
  Arena arena;
  std::map<std::string, const Block*> blocks;

 private:
  void add(const std::string& name, DType dtype, std::vector<int64_t> shape) {
    blocks[name] = &arena.add(name, dtype, std::move(shape));
  }
};

// Opens and prepares; both must succeed.
void prepare(Worker& worker, const Play& play, const std::string& library, const Options& options) {
  const auto opened = worker.open(library, options, kLimit);
  REQUIRE(opened);
  INFO(opened->reply.message);
  REQUIRE(opened->reply.status == ATTEST_OK);
  const auto prepared = worker.prepare(play.problem, play.arena, {}, kLimit);
  REQUIRE(prepared);
  INFO(prepared->message);
  REQUIRE(prepared->status == ATTEST_OK);
}

void check_first_step(const Play& play) {
  const std::vector<float> output = play.arena.gather<float>(play.at("output"));
  for (size_t i = 0; i < output.size(); ++i) {
    CHECK_THAT(output[i], WithinAbs(i / 6 % 2 == 0 ? 1.0 : 2.0, 1e-6));  // [b, i, h, d]
  }
  CHECK(play.arena.gather<int32_t>(play.at("cache.lengths")) == std::vector<int32_t>{2, 2});
  CHECK(play.arena.gather<float>(play.at("cache.value"))[3] == 3.0F);
  for (const auto& [name, block] : play.blocks) {
    CAPTURE(name);
    const std::vector<std::byte> before = play.arena.snapshot(*block);
    CHECK_FALSE(play.arena.intact(*block, before, Elements::may_change));
  }
}

TEST_CASE("a case from open to close") {
  const auto name = GENERATE(as<std::string>{}, "hostile", "detached");
  CAPTURE(name);
  Play play;
  Worker worker = fresh();
  const auto opened = worker.open(backend(name), {}, kLimit);
  REQUIRE(opened);
  CHECK(opened->reply.status == ATTEST_OK);
  CHECK(opened->name == name);
  CHECK(opened->version == "1.0");
  CHECK_THAT(opened->description, StartsWith("the template"));
  CHECK(opened->device == "cpu");
  CHECK(opened->abi_version == ATTEST_ABI_VERSION);
  CHECK(opened->declarations == Json::parse(name == "hostile" ? R"({"determinism": ["d0", "d1"]})" : "{}"));

  REQUIRE(worker.prepare(play.problem, play.arena, {}, kLimit)->status == ATTEST_OK);
  const auto sentinel = play.arena.snapshot(play.at("output"));
  const auto query = play.arena.snapshot(play.at("query"));
  const auto first = worker.run(play.request(), kLimit);
  REQUIRE(first);
  INFO(first->message);
  CHECK(first->status == ATTEST_OK);
  CHECK(first->message.empty());
  CHECK(first->seconds > 0);
  CHECK(first->elapsed >= first->seconds);
  check_first_step(play);
  CHECK_FALSE(play.arena.intact(play.at("output"), sentinel, Elements::may_change));
  CHECK_FALSE(play.arena.intact(play.at("query"), query, Elements::must_stay));

  // One token is left of the cache, which two do not fit into.
  REQUIRE(worker.run(play.request(), kLimit)->status == ATTEST_OK);
  const auto refused = worker.run(play.request(), kLimit);
  REQUIRE(refused);
  CHECK(refused->status == ATTEST_OVERFLOW);
  CHECK_THAT(refused->message, ContainsSubstring("capacity is 5"));

  // A step of another shape than the problem's is passed on as it is.
  RunRequest malformed = play.request();
  malformed.tensors["query"].shape[3] = 3;
  const auto invalid = worker.run(malformed, kLimit);
  REQUIRE(invalid);
  CHECK(invalid->status == ATTEST_INVALID);
  CHECK_THAT(invalid->message, ContainsSubstring("query") && ContainsSubstring("wanted [2, 2, 2, 4]"));
  malformed = play.request();
  malformed.tensors["key"].dtype = DType::f16;
  CHECK(worker.run(malformed, kLimit)->status == ATTEST_INVALID);
  malformed = play.request();
  malformed.tensors.erase("output");
  malformed.upload.clear();
  malformed.download.clear();
  CHECK(worker.run(malformed, kLimit)->status == ATTEST_INVALID);

  CHECK(worker.release(kLimit)->status == ATTEST_OK);
  CHECK(worker.alive());
  const auto closed = worker.close(kLimit);
  REQUIRE(closed);
  CHECK(closed->status == ATTEST_OK);
  CHECK_FALSE(worker.alive());
  CHECK(worker.output().empty());
}

TEST_CASE("data may point before the first element") {
  Play play;
  Worker worker = fresh();
  prepare(worker, play, backend("hostile"), {});
  RunRequest request = play.request();
  for (auto& [name, tensor] : request.tensors) tensor.byte_offset = 256;
  CHECK(worker.run(request, kLimit)->status == ATTEST_OK);
  check_first_step(play);
}

TEST_CASE("what is not uploaded stays as the device has it") {
  Play play;
  Worker worker = fresh();
  prepare(worker, play, backend("detached"), {});
  REQUIRE(worker.run(play.request(), kLimit)->status == ATTEST_OK);
  // The device's cache goes on, whatever the host's copy holds.
  play.arena.reset(play.at("cache.key"));
  play.arena.reset(play.at("cache.value"));
  play.arena.fill(play.at("cache.lengths"), 0);
  RunRequest request = play.request();
  request.upload = {"query", "key", "value"};
  request.download = {"output", "cache.lengths"};
  REQUIRE(worker.run(request, kLimit)->status == ATTEST_OK);
  CHECK(play.arena.gather<int32_t>(play.at("cache.lengths")) == std::vector<int32_t>{4, 4});
  CHECK_THAT(play.arena.gather<float>(play.at("output"))[6], WithinAbs(2.0, 1e-6));
  CHECK(std::isnan(play.arena.gather<float>(play.at("cache.value"))[0]));
  CHECK(worker.close(kLimit));
}

TEST_CASE("a layer's weights arrive by name") {
  Problem problem;
  problem.level = Level::layer;
  problem.qk_head_dim = problem.v_head_dim = problem.d_model = 2;
  problem.bias = {true, true, true, true};
  Arena arena;
  protocol::Tensors weights;
  std::map<std::string, const Block*> blocks;
  for (const std::string letter : {"q", "k", "v", "out"}) {
    blocks[letter + "_weight"] = &arena.add(letter + "_weight", DType::f32, {2, 2});
    blocks[letter + "_bias"] = &arena.add(letter + "_bias", DType::f32, {2});
  }
  for (const auto& [name, block] : blocks) weights[name] = protocol::tensor_of(*block);
  const Block& x = arena.add("x", DType::f32, {1, 1, 2});
  const Block& output = arena.add("output", DType::f32, {1, 1, 2});
  arena.commit();
  for (const auto& [name, block] : blocks) {
    if (block->shape.size() == 2) arena.scatter(*block, std::vector<float>{1, 0, 0, 1});
    if (block->shape.size() == 1) arena.fill(*block, name == "v_bias" ? 10.0F : name == "out_bias" ? 100.0F : 0.0F);
  }
  arena.scatter(x, std::vector<float>{1, 2});
  const auto name = GENERATE(as<std::string>{}, "hostile", "detached");
  Worker worker = fresh();
  REQUIRE(worker.open(backend(name), {}, kLimit)->reply.status == ATTEST_OK);
  const auto prepared = worker.prepare(problem, arena, weights, kLimit);
  REQUIRE(prepared);
  INFO(prepared->message);
  REQUIRE(prepared->status == ATTEST_OK);
  // One block serves as three tensors.
  RunRequest request;
  for (const char* tensor : {"query", "key", "value"}) request.tensors[tensor] = protocol::tensor_of(x);
  request.tensors["output"] = protocol::tensor_of(output);
  request.upload = {"query", "output"};
  request.download = {"output"};
  const auto ran = worker.run(request, kLimit);
  REQUIRE(ran);
  INFO(ran->message);
  REQUIRE(ran->status == ATTEST_OK);
  CHECK(arena.gather<float>(output) == std::vector<float>{111, 112});

  weights.erase("k_weight");
  CHECK(worker.prepare(problem, arena, weights, kLimit)->status == ATTEST_INVALID);
  weights["kk_weight"] = weights["q_weight"];
  const auto unknown = worker.prepare(problem, arena, weights, kLimit);
  CHECK(unknown->status == ATTEST_ERROR);
  CHECK_THAT(unknown->message, ContainsSubstring("no tensor \"kk_weight\""));
  CHECK(worker.close(kLimit));
}

TEST_CASE("several plans are told apart by number") {
  Play one;
  Play two;
  two.problem.capacity = 4;
  Worker worker = fresh();
  prepare(worker, one, backend("hostile"), {});
  REQUIRE(worker.prepare(two.problem, two.arena, {}, kLimit, 7)->status == ATTEST_OK);
  CHECK(worker.run(one.request(), kLimit)->status == ATTEST_OK);
  CHECK(worker.run(two.request(), kLimit, 7)->status == ATTEST_INVALID);  // its cache holds 5 tokens, not 4
  CHECK(worker.release(kLimit, 7)->status == ATTEST_OK);
  CHECK(worker.run(two.request(), kLimit, 7)->status == ATTEST_ERROR);
  check_first_step(one);
  CHECK(worker.run(one.request(), kLimit)->status == ATTEST_OK);
}

TEST_CASE("steps of several plans run at the same time") {
  const auto name = GENERATE(as<std::string>{}, "hostile", "detached");
  Play one;
  Play two;
  Worker worker = fresh();
  prepare(worker, one, backend(name), {});
  REQUIRE(worker.prepare(two.problem, two.arena, {}, kLimit, 7)->status == ATTEST_OK);
  RunRequest malformed = two.request();
  malformed.tensors["query"].shape[3] = 3;
  auto replies = worker.run_together({{0, one.request()}, {7, malformed}}, kLimit);
  REQUIRE(replies);
  REQUIRE(replies->size() == 2);
  CHECK((*replies)[0].status == ATTEST_OK);
  CHECK((*replies)[0].seconds > 0);
  CHECK((*replies)[1].status == ATTEST_INVALID);
  CHECK_THAT((*replies)[1].message, ContainsSubstring("query"));
  check_first_step(one);
  replies = worker.run_together({{7, two.request()}}, kLimit);
  REQUIRE(replies);
  CHECK((*replies)[0].status == ATTEST_OK);
  check_first_step(two);
  // What the worker itself refuses is no reply of a backend.
  const auto unknown = worker.run_together({{0, one.request()}, {8, two.request()}}, kLimit);
  REQUIRE_FALSE(unknown);
  CHECK(unknown.error().kind == Kind::garbage);
  CHECK_THAT(unknown.error().text, ContainsSubstring("runs[1].plan: got 8, which is not prepared"));
}

TEST_CASE("calls that run together are in the backend at the same time") {
  Play one;
  Play two;
  Worker worker = fresh();
  prepare(worker, one, backend("hostile"), {{"fault", "overlap"}});
  REQUIRE(worker.prepare(two.problem, two.arena, {}, kLimit, 1)->status == ATTEST_OK);
  REQUIRE(worker.run_together({{0, one.request()}, {1, two.request()}}, kLimit));
  const auto last = [](const Play& play) { return play.arena.gather<float>(play.at("output"))[18]; };
  CHECK(last(one) + last(two) > 4.5F);  // 2 + 2, but for the one that saw the other and added to it
}

TEST_CASE("a plan that is asked to run twice at once is refused") {
  Play play;
  Worker worker = fresh();
  prepare(worker, play, backend("hostile"), {});
  const Json run{{"plan", 0},
                 {"tensors", protocol::to_json(play.request().tensors)},
                 {"upload", Json::array()},
                 {"download", Json::array()},
                 {"max_query_length", 2},
                 {"max_total_length", 2}};
  const auto reply = worker.call({{"op", "run_together"}, {"runs", {run, run}}}, std::nullopt, kLimit);
  REQUIRE(reply);
  CHECK((*reply)["status"] == "error");
  CHECK_THAT((*reply)["message"].get<std::string>(), ContainsSubstring("request.runs[1].plan: got 0 twice"));
  CHECK_FALSE(reply->contains("replies"));
}

TEST_CASE("a crash among calls that run together is the worker's end") {
  Play one;
  Play two;
  Worker worker = fresh();
  prepare(worker, one, backend("hostile"), {{"fault", "abort"}});
  REQUIRE(worker.prepare(two.problem, two.arena, {}, kLimit, 1)->status == ATTEST_OK);
  const auto replies = worker.run_together({{0, one.request()}, {1, two.request()}}, kLimit);
  REQUIRE_FALSE(replies);
  CHECK(replies.error().text == "killed by SIGABRT");
}

TEST_CASE("requests out of order are answered, not obeyed") {
  Play play;
  Worker worker = fresh();
  CHECK(worker.run(play.request(), kLimit)->message == "request: no backend is open");
  CHECK(worker.open("/nowhere/x.so", {}, kLimit)->reply.message == "/nowhere/x.so: no such file");
  CHECK_THAT(worker.open(backend("broken-version"), {}, kLimit)->reply.message,
             ContainsSubstring("has ABI version 7, this attest speaks 1"));
  CHECK_THAT(worker.open(backend("broken-declarations"), {}, kLimit)->reply.message,
             ContainsSubstring("broken-declarations.so: its declarations: "));
}

TEST_CASE("a wrong option is refused by the backend") {
  Worker worker = fresh();
  const auto opened = worker.open(backend("hostile"), {{"fault", "no such"}}, kLimit);
  REQUIRE(opened);
  CHECK(opened->reply.status == ATTEST_INVALID);
  CHECK(opened->reply.message == "option fault: got \"no such\", wanted a name of README.md");
}

TEST_CASE("a backend without its device says who it is and what is missing") {
  Worker worker = fresh();
  const auto opened = worker.open(backend("hostile"), {{"fault", "no_device"}}, kLimit);
  REQUIRE(opened);
  CHECK(opened->without_device());
  CHECK(opened->reply.message == "no device: it was left at home");
  CHECK(opened->name == "hostile");
  CHECK(opened->declarations == Json::parse(R"({"determinism": ["d0", "d1"]})"));
}

TEST_CASE("requests that this worker does not know") {
  Worker worker = fresh();
  REQUIRE(worker.open(backend("hostile"), {}, kLimit)->reply.status == ATTEST_OK);
  const auto answered = [&](Json request, const char* words) {
    const auto reply = worker.call(std::move(request), std::nullopt, kLimit);
    REQUIRE(reply);
    CHECK((*reply)["status"] == "error");
    CHECK_THAT((*reply)["message"].get<std::string>(), ContainsSubstring(words));
  };
  answered({{"op", "dance"}}, "got \"dance\", which this worker does not know");
  answered({{"op", 1}}, "wanted a string");
  answered(Json::object(), "the field \"op\" is missing");
  answered({{"op", "open"}, {"protocol", 1}}, "open already");
  answered({{"op", "release"}, {"plan", 0}}, "got 0, which is not prepared");
  answered({{"op", "prepare"}, {"plan", 0}, {"bytes", 4096}}, "no descriptor");
  Arena arena;
  arena.add("t", DType::f32, {1});
  arena.commit();
  const auto reply = worker.call({{"op", "prepare"}, {"plan", 0}, {"bytes", 1}}, arena.fd(), kLimit);
  CHECK_THAT((*reply)["message"].get<std::string>(), ContainsSubstring("request.bytes: got 1"));
}

TEST_CASE("each way to die, hang or lie is a value, and a fresh worker goes on") {
  struct Expected {
    const char* fault;
    Kind kind;
    const char* text;
  };
  const auto expected =
      GENERATE(Expected{"crash", Kind::died, "killed by SIGSEGV"}, Expected{"abort", Kind::died, "killed by SIGABRT"},
               Expected{"exit", Kind::died, "exited with code 0"}, Expected{"orphan", Kind::died, "exited with code 3"},
               Expected{"hang", Kind::timed_out, "no reply within 0.5 s"},
               Expected{"garbage", Kind::garbage, "the reply is a frame of "},
               Expected{"forge", Kind::garbage, "the reply's nonce is wrong"},
               Expected{"close_socket", Kind::died, "exited with code 2"});
  CAPTURE(expected.fault);
  Play play;
  Worker worker = fresh();
  const pid_t pid = worker.pid();
  REQUIRE(worker.open(backend("hostile"), {{"fault", expected.fault}, {"at", "2"}}, kLimit)->reply.status == ATTEST_OK);
  REQUIRE(worker.prepare(play.problem, play.arena, {}, kLimit)->status == ATTEST_OK);
  REQUIRE(worker.run(play.request(), kLimit)->status == ATTEST_OK);
  check_first_step(play);
  const auto limit = expected.kind == Kind::timed_out ? Worker::Duration(500ms) : Worker::Duration(kLimit);
  const auto start = std::chrono::steady_clock::now();
  const auto failed = worker.run(play.request(), limit);
  CHECK(std::chrono::steady_clock::now() - start < 30s);
  REQUIRE_FALSE(failed);
  CHECK(failed.error().kind == expected.kind);
  CHECK_THAT(failed.error().text, StartsWith(expected.text));
  CHECK_FALSE(worker.alive());
  CHECK_FALSE(process_exists(pid));
  CHECK(worker.release(kLimit).error().text == failed.error().text);

  Worker next = fresh();
  play.arena.fill(play.at("cache.lengths"), 0);
  prepare(next, play, backend("hostile"), {});
  REQUIRE(next.run(play.request(), kLimit)->status == ATTEST_OK);
  check_first_step(play);
}

TEST_CASE("a fault may strike when a backend is opened or a problem prepared") {
  Play play;
  Worker worker = fresh();
  SECTION("open") {
    const auto opened = worker.open(backend("hostile"), {{"fault", "crash"}, {"where", "open"}}, kLimit);
    REQUIRE_FALSE(opened);
    CHECK(opened.error().text == "killed by SIGSEGV");
  }
  SECTION("prepare") {
    REQUIRE(worker.open(backend("hostile"), {{"fault", "throw"}, {"where", "prepare"}}, kLimit));
    const auto prepared = worker.prepare(play.problem, play.arena, {}, kLimit);
    REQUIRE(prepared);
    CHECK(prepared->status == ATTEST_ERROR);
    CHECK(prepared->message == "an exception escaped the backend: thrown through a C interface");
    CHECK(worker.prepare(play.problem, play.arena, {}, kLimit)->status == ATTEST_OK);
  }
}

TEST_CASE("answers that are none become errors with the reason") {
  Play play;
  Worker worker = fresh();
  const auto answer = [&](const char* fault) {
    prepare(worker, play, backend("hostile"), {{"fault", fault}});
    const auto reply = worker.run(play.request(), kLimit);
    REQUIRE(reply);
    CHECK(reply->status == ATTEST_ERROR);
    return reply->message;
  };
  SECTION("throw") {
    CHECK(answer("throw") == "an exception escaped the backend: thrown through a C interface");
  }
  SECTION("status99") {
    CHECK(answer("status99") == "the backend returned status 99, which does not exist");
  }
  CHECK(worker.run(play.request(), kLimit)->status == ATTEST_OK);
}

TEST_CASE("what a backend prints is kept in part, counted, and no reply") {
  Play play;
  Worker worker = fresh();
  SECTION("noise") {
    prepare(worker, play, backend("hostile"), {{"fault", "stdout_noise"}});
    REQUIRE(worker.run(play.request(), kLimit)->status == ATTEST_OK);
    CHECK_THAT(worker.output(), ContainsSubstring("\"message\":\"noise\""));
    CHECK_THAT(worker.output(), ContainsSubstring("?? [31m\n"));
  }
  SECTION("a flood") {
    prepare(worker, play, backend("hostile"), {{"fault", "stdout_flood"}});
    REQUIRE(worker.run(play.request(), kLimit)->status == ATTEST_OK);
    CHECK(worker.output_bytes() == 100'000'000);
    CHECK(worker.output().size() == 4096);
  }
  SECTION("slowness is no fault") {
    prepare(worker, play, backend("hostile"), {{"fault", "slow"}});
    const auto reply = worker.run(play.request(), kLimit);
    REQUIRE(reply->status == ATTEST_OK);
    CHECK(reply->seconds >= 0.05);
  }
  check_first_step(play);
}

TEST_CASE("out-of-bounds writes and other tampering show in the memory") {
  Play play;
  Worker worker = fresh();
  std::map<std::string, std::vector<std::byte>> before;
  const auto run = [&](const char* fault, int steps = 1) {
    prepare(worker, play, backend("hostile"), {{"fault", fault}});
    for (int i = 0; i < steps; ++i) {
      for (const auto& [name, block] : play.blocks) before[name] = play.arena.snapshot(*block);
      REQUIRE(worker.run(play.request(), kLimit)->status == ATTEST_OK);
    }
  };
  const auto foreign = [&](const char* name, Elements elements) {
    return play.arena.intact(play.at(name), before[name], elements);
  };
  SECTION("overrun") {
    run("overrun");
    CHECK(foreign("output", Elements::may_change) == "byte 1 past the end");
  }
  SECTION("underrun") {
    run("underrun");
    CHECK(foreign("output", Elements::may_change) == "byte 4 before the start");
  }
  SECTION("gap") {
    run("gap");
    CHECK(foreign("output", Elements::may_change) == "the gap after element [0, 0, 0, 2]");
  }
  SECTION("modify_input") {
    run("modify_input");
    CHECK(foreign("query", Elements::must_stay) == "element [0, 0, 0, 0]");
    CHECK_FALSE(foreign("key", Elements::must_stay));
  }
  SECTION("nan") {
    run("nan");
    CHECK(std::isnan(play.arena.gather<float>(play.at("output"))[18]));
  }
  SECTION("wrong") {
    run("wrong");
    CHECK(play.arena.gather<float>(play.at("output"))[18] == 5.0F);
    CHECK(play.arena.gather<float>(play.at("output"))[19] == 2.0F);
  }
  SECTION("unwritten") {
    run("unwritten");
    CHECK_FALSE(std::isnan(play.arena.gather<float>(play.at("output"))[17]));
    CHECK(std::isnan(play.arena.gather<float>(play.at("output"))[18]));
    CHECK_FALSE(foreign("output", Elements::may_change));
  }
  SECTION("cache_skip") {
    run("cache_skip");
    CHECK(std::isnan(play.arena.gather<float>(play.at("cache.key"))[0]));
    CHECK(play.arena.gather<int32_t>(play.at("cache.lengths")) == std::vector<int32_t>{2, 2});
  }
  SECTION("length") {
    run("length");
    CHECK(play.arena.gather<int32_t>(play.at("cache.lengths")) == std::vector<int32_t>{0, 0});
  }
  SECTION("cache_history") {
    run("cache_history");
    CHECK(play.arena.gather<float>(play.at("cache.key"))[0] == 1.0F);
    REQUIRE(worker.run(play.request(), kLimit)->status == ATTEST_OK);  // the first step with a history
    CHECK(play.arena.gather<float>(play.at("cache.key"))[0] != 1.0F);
  }
}

TEST_CASE("refusals that are none") {
  Play play;
  Worker worker = fresh();
  RunRequest illegal = play.request();
  illegal.tensors["query"].shape[3] = 3;
  const auto output = play.arena.snapshot(play.at("output"));
  SECTION("refuse") {
    prepare(worker, play, backend("hostile"), {{"fault", "refuse"}});
    CHECK(worker.run(play.request(), kLimit)->status == ATTEST_INVALID);
    CHECK_FALSE(play.arena.intact(play.at("output"), output, Elements::must_stay));
  }
  SECTION("accept") {
    prepare(worker, play, backend("hostile"), {{"fault", "accept"}});
    CHECK(worker.run(illegal, kLimit)->status == ATTEST_OK);
    CHECK_FALSE(play.arena.intact(play.at("output"), output, Elements::must_stay));
  }
  SECTION("refuse_dirty") {
    prepare(worker, play, backend("hostile"), {{"fault", "refuse_dirty"}});
    CHECK(worker.run(illegal, kLimit)->status == ATTEST_INVALID);
    CHECK(play.arena.intact(play.at("output"), output, Elements::must_stay) == "element [0, 0, 0, 0]");
  }
  CHECK(worker.run(play.request(), kLimit)->status == ATTEST_OK);
}

TEST_CASE("a program that cannot be executed is the user's error") {
  CHECK_THROWS_MATCHES(Worker({{"/nowhere/attest-worker"}, std::nullopt}), Error,
                       MessageMatches(ContainsSubstring("/nowhere/attest-worker: cannot be executed: No such file")));
  CHECK_THROWS_AS(Worker({{"/"}, std::nullopt}), Error);
}

TEST_CASE("replies of any other program are judged") {
  const auto reply = [](const std::string& script, Worker::Duration limit = kLimit) {
    Worker worker = shell(script);
    return worker.release(limit);
  };
  // A reply with these fields behind its nonce.
  const auto fields = [&](const std::string& text) {
    return reply("request; frame '{\"nonce\":\"'$nonce'\"" + text + "}'; sleep 100");
  };
  const auto garbage = [](const Worker::Result<Reply>& result, const std::string& words) {
    REQUIRE_FALSE(result);
    CHECK(result.error().kind == Kind::garbage);
    CHECK_THAT(result.error().text, ContainsSubstring(words));
  };
  SECTION("good") {
    const auto good = fields(R"(,"status":"invalid","message":"a\nb","details":{"x":[1]})");
    REQUIRE(good);
    CHECK(good->status == ATTEST_INVALID);
    CHECK(good->message == "a b");
    CHECK(good->details == Json{{"x", {1}}});
  }
  SECTION("fields") {
    garbage(fields(R"(,"status":"OK","message":"")"), "reply.status: got \"OK\", wanted a status");
    garbage(fields(R"(,"status":0,"message":"")"), "reply.status: got 0, wanted a string");
    garbage(fields(R"(,"message":"")"), "\"status\" is missing");
    garbage(fields(R"(,"status":"ok")"), "\"message\" is missing");
    garbage(fields(R"(,"status":"ok","message":null)"), "reply.message: got null");
    garbage(fields(R"(,"status":"ok","message":"","verdict":"pass")"), "unknown field \"verdict\"");
    garbage(fields(R"(,"status":"ok","message":"","details":1)"), "reply.details: wanted an object");
  }
  SECTION("frames") {
    garbage(reply("request; frame '{}'; sleep 100"), "the reply's nonce is wrong");
    garbage(reply("request; frame '{\"nonce\":1}'; sleep 100"), "the reply's nonce is wrong");
    garbage(reply("request; frame 'hello'; sleep 100"), "the reply is not a JSON object: hello");
    garbage(reply("request; frame '[]'; sleep 100"), "the reply is not a JSON object: []");
    garbage(reply("frame '{}'; request; sleep 100"), "");  // before or after the request was sent
  }
  SECTION("ends") {
    CHECK(reply("exit 3").error().text == "exited with code 3");
    CHECK(reply("kill -TERM $$").error().text == "killed by SIGTERM");
    CHECK(reply("exec 3>&-; sleep 100").error().text == "closed its control socket");
    CHECK(reply("sleep 100", 200ms).error().text == "no reply within 0.2 s");
    CHECK(reply("printf '\\010\\000\\000\\000{' >&3; sleep 100", 200ms).error().kind != Kind::died);
    CHECK(reply("printf '\\010\\000\\000\\000{' >&3; exit 1").error().kind != Kind::timed_out);
  }
  SECTION("a reply to a request that is still to come") {
    Worker worker = shell("request; frame '{\"nonce\":\"'$nonce'\",\"status\":\"ok\",\"message\":\"\"}{}'; sleep 100");
    // The braces are part of that frame, so it is no object.
    garbage(worker.release(kLimit), "not a JSON object");
    Worker second = shell(R"(
      request; good='{"nonce":"'$nonce'","status":"ok","message":""}'; frame "$good"; frame "$good"; echo; sleep 100)");
    REQUIRE(second.release(kLimit));
    std::this_thread::sleep_for(100ms);
    garbage(second.release(kLimit), "");
  }
  SECTION("run has a time") {
    const auto run = [&](const std::string& seconds) {
      Worker worker = shell("request; frame '{\"nonce\":\"'$nonce'\",\"status\":\"ok\",\"message\":\"\"" + seconds +
                            "}'; sleep 100");
      return worker.run({}, kLimit);
    };
    CHECK(run(",\"seconds\":0.5")->seconds == 0.5);
    garbage(run(""), "\"seconds\" is missing");
    garbage(run(",\"seconds\":-1"), "reply.seconds: got -1");
    garbage(run(",\"seconds\":\"1\""), "reply.seconds: got \"1\"");
    garbage(run(",\"seconds\":1e999"), "");
  }
  SECTION("runs together have a reply each") {
    const auto together = [&](const std::string& replies) {
      Worker worker = shell("request; frame '{\"nonce\":\"'$nonce'\",\"status\":\"ok\",\"message\":\"\"" + replies +
                            "}'; sleep 100");
      return worker.run_together({{0, RunRequest()}, {1, RunRequest()}}, kLimit);
    };
    const std::string one = R"({"status":"ok","message":"","seconds":0})";
    const auto good = together(",\"replies\":[" + one + "," + one + "]");
    REQUIRE(good);
    CHECK(good->size() == 2);
    const auto bad = [&](const std::string& replies, const std::string& words) {
      const auto result = together(replies);
      REQUIRE_FALSE(result);
      CHECK(result.error().kind == Kind::garbage);
      CHECK_THAT(result.error().text, ContainsSubstring(words));
    };
    bad("", "\"replies\" is missing");
    bad(",\"replies\":1", "wanted an array");
    bad(",\"replies\":[" + one + "]", "reply.replies: got 1, wanted 2");
    bad(",\"replies\":[" + one + R"(,{"status":"ok","message":""}])", "\"seconds\" is missing");
  }
}

TEST_CASE("a worker that dies between calls is noticed") {
  Worker worker = fresh();
  REQUIRE(worker.open(backend("hostile"), {}, kLimit)->reply.status == ATTEST_OK);
  ::kill(worker.pid(), SIGKILL);
  const auto reply = worker.release(kLimit);
  REQUIRE_FALSE(reply);
  CHECK(reply.error().kind == Kind::died);
  CHECK(reply.error().text == "killed by SIGKILL");
}

TEST_CASE("nothing outlives a worker") {
  pid_t child = -1;
  {
    Worker worker = shell(
        "sleep 1000 & echo $!; request; frame '{\"nonce\":\"'$nonce'\",\"status\":\"ok\",\"message\":\"\"}'; wait");
    REQUIRE(worker.release(kLimit));
    child = std::stoi(worker.output());
    CHECK(process_exists(child));
  }
  REQUIRE(child > 0);
  CHECK(gone_soon(child));
}

TEST_CASE("a worker has three streams, one socket, and nothing else") {
  const UniqueFd null(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  const UniqueFd leaked(::fcntl(null.get(), F_DUPFD, 20));  // without close-on-exec
  Worker worker = shell("ls -l /proc/self/fd; ulimit -c");
  CHECK(worker.release(kLimit).error().text == "exited with code 0");
  const std::string output = worker.output();
  CAPTURE(output);
  CHECK_THAT(output, ContainsSubstring("0 -> /dev/null"));
  CHECK_THAT(output, ContainsSubstring("1 -> pipe:"));
  CHECK_THAT(output, ContainsSubstring("3 -> socket:"));
  CHECK_THAT(output, !ContainsSubstring(std::to_string(leaked.get()) + " -> /dev/null"));
  CHECK_THAT(output, ContainsSubstring("\n0\n"));
}

TEST_CASE("the environment is the parent's or the given one") {
  Worker worker({{"/bin/sh", "-c", "/usr/bin/env"}, std::vector<std::string>{"ATTEST_ONLY=1"}});
  CHECK(worker.release(kLimit).error().text == "exited with code 0");
  CHECK_THAT(worker.output(), ContainsSubstring("ATTEST_ONLY=1") && !ContainsSubstring("HOME="));
}

TEST_CASE("threads have workers of their own") {
  std::vector<std::thread> threads;
  std::array<bool, 3> good{};
  for (bool& result : good) {
    threads.emplace_back([&result] {
      bool all = true;
      for (int i = 0; i < 3; ++i) {
        Play play;
        Worker worker = fresh();
        all = all && worker.open(backend("hostile"), {{"fault", i == 1 ? "crash" : "none"}}, kLimit).has_value();
        all = all && worker.prepare(play.problem, play.arena, {}, kLimit).has_value();
        all = all && worker.run(play.request(), kLimit).has_value() == (i != 1);
      }
      result = all;
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(good == std::array<bool, 3>{true, true, true});
}

}  // namespace
}  // namespace attest
