// SPDX-License-Identifier: Apache-2.0
// The C++ adapter: options, messages, argument checks, and the table made from a class.
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators_range.hpp>
#include <catch2/matchers/catch_matchers_exception.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <limits>
#include <string>
#include <vector>

#include "attest/backend.hpp"

namespace {

using namespace attest::abi;
using Catch::Matchers::ContainsSubstring;
using Catch::Matchers::Message;

/// A tensor with its memory; compact unless its strides are changed.
class Tensor {
 public:
  explicit Tensor(std::vector<std::int64_t> shape, DLDataType dtype = f32)
      : shape_(std::move(shape)), strides_(shape_) {
    std::int64_t stride = 1;
    for (std::size_t axis = shape_.size(); axis-- > 0; stride *= shape_[axis]) strides_[axis] = stride;
    memory_.resize(static_cast<std::size_t>(std::max<std::int64_t>(stride, 1)) * dtype.bits / 8);
    tensor_.data = memory_.data();
    tensor_.device = {kDLCPU, 0};
    tensor_.ndim = static_cast<int>(shape_.size());
    tensor_.dtype = dtype;
    tensor_.shape = shape_.data();
    tensor_.strides = strides_.data();
    tensor_.byte_offset = 0;
  }
  Tensor(const Tensor&) = delete;
  Tensor& operator=(const Tensor&) = delete;

  DLTensor* dl() { return &tensor_; }
  DLTensor* operator->() { return &tensor_; }
  void fill(std::vector<std::int32_t> values) {
    std::memcpy(memory_.data(), values.data(), values.size() * sizeof(std::int32_t));
  }

 private:
  std::vector<std::int64_t> shape_, strides_;
  std::vector<char> memory_;
  DLTensor tensor_{};
};

attest_problem core_problem() {
  attest_problem p{};
  p.struct_size = sizeof p;
  p.batch = 2;
  p.query_heads = 4;
  p.kv_heads = 2;
  p.qk_head_dim = 16;
  p.v_head_dim = 8;
  p.dtype = p.cache_dtype = f32;
  p.window_left = p.window_right = -1;
  return p;
}

/// A legal step of core_problem with a cache of 32 tokens: 3 queries, 5 keys.
struct CachedStep {
  attest_problem problem = core_problem();
  Tensor query{{2, 3, 4, 16}}, key{{2, 5, 2, 16}}, value{{2, 5, 2, 8}}, output{{2, 3, 4, 8}};
  Tensor cache_key{{2, 32, 2, 16}}, cache_value{{2, 32, 2, 8}}, lengths{{2}, i32};
  attest_cache cache{};
  attest_step step{};

  CachedStep() {
    problem.cache = ATTEST_CACHE_CONTIGUOUS;
    problem.capacity = 32;
    cache.struct_size = sizeof cache;
    cache.key = cache_key.dl();
    cache.value = cache_value.dl();
    cache.lengths = lengths.dl();
    step.struct_size = sizeof step;
    step.query = query.dl();
    step.key = key.dl();
    step.value = value.dl();
    step.output = output.dl();
    step.cache = &cache;
  }
  Extents check() const { return check_step(problem, step); }
};

std::vector<std::int64_t> list(const Counts& counts) {
  std::vector<std::int64_t> values;
  for (std::int64_t b = 0; b < counts.batch(); ++b) values.push_back(counts[b]);
  return values;
}

template <class Error, class Call>
void refused(Call&& call, const std::string& message) {
  CHECK_THROWS_MATCHES(call(), Error, Message(message));
}

std::string options_error(const char* json) {
  try {
    Options{json};
  } catch (const Invalid& error) {
    return error.what();
  }
  return "accepted";
}

}  // namespace

TEST_CASE("Options parses an object of strings") {
  Options options(R"( { "threads" : "2" , "a\"\\\/\b\f\n\r\t\u00e9\ud83d\ude00" : "" } )");
  CHECK(options.take_count("threads", 7) == 2);
  CHECK(options.take_count("threads", 7) == 7);
  CHECK(options.take("a\"\\/\b\f\n\r\t\xc3\xa9\xf0\x9f\x98\x80", "none").empty());
  options.finish();
  Options(nullptr).finish();
  Options("{}").finish();
  Options(" { } ").finish();
}

TEST_CASE("Options refuses all else and says where") {
  CHECK(options_error("") == "options: at character 0: wanted '{'");
  CHECK(options_error("[]") == "options: at character 0: wanted '{'");
  CHECK(options_error(R"({"a":2})") == "options: at character 5: wanted a string");
  CHECK(options_error(R"({"a":"b",})") == "options: at character 9: wanted a string");
  CHECK(options_error(R"({"a":"b" "c":"d"})") == "options: at character 9: wanted '}'");
  CHECK(options_error(R"({"a":"b"} x)") == "options: at character 10: wanted the end");
  CHECK(options_error(R"({"a":"b","a":"c"})") == "options: at character 16: option a stands there twice");
  CHECK(options_error("{\"a\":\"b") == "options: at character 7: a control character, or no closing '\"'");
  CHECK(options_error("{\"a\":\"\n\"}") == "options: at character 6: a control character, or no closing '\"'");
  for (const char* bad :
       {R"({"a":"\x"})", R"({"a":"\u12"})", R"({"a":"\ud83d"})", R"({"a":"\ude00"})", R"({"a":"\ud83d\u0041"})",
        R"({"a":"\u0000"})", R"({"a)", R"({"a\)", R"({"a":"\u)", "{", "{,}"}) {
    INFO(bad);
    CHECK(options_error(bad) != "accepted");
  }
}

TEST_CASE("Options refuses what nobody took, and a count that is none") {
  refused<Invalid>([] { Options(R"({"tile":"64"})").finish(); }, "option tile: this backend has no such option");
  for (const std::string text : {"", "0", "-1", "2x", "1000000", " 2"}) {
    refused<Invalid>([&] { Options(("{\"threads\":\"" + text + "\"}").c_str()).take_count("threads", 1); },
                     "option threads: got \"" + text + "\", wanted a whole number from 1 to 999999");
  }
}

TEST_CASE("A message is one line, cut between characters and within struct_size") {
  attest_message message{};
  message.struct_size = sizeof message;
  write_message(&message, "two\nlines");
  CHECK(std::string(message.text) == "two lines");

  write_message(&message, std::string(2000, 'x'));
  CHECK(std::string(message.text) == std::string(sizeof message.text - 1, 'x'));
  write_message(&message, std::string(sizeof message.text - 2, 'x') + "\xc3\xa9");
  CHECK(std::string(message.text) == std::string(sizeof message.text - 2, 'x'));

  message.struct_size = offsetof(attest_message, text) + 4;
  std::memset(message.text, '#', sizeof message.text);
  write_message(&message, "abcdef");
  CHECK(std::string(message.text) == "abc");
  CHECK(message.text[4] == '#');
  message.struct_size = 0;
  write_message(&message, "nothing is written");
  CHECK(std::string(message.text) == "abc");
  write_message(nullptr, "nowhere");
}

TEST_CASE("A View follows strides and offset") {
  Tensor tensor({2, 3});
  auto* const floats = static_cast<float*>(tensor->data);
  for (int i = 0; i < 6; ++i) floats[i] = static_cast<float>(i);
  CHECK(View<const float, 2>(*tensor.dl())(1, 2) == 5);

  tensor->shape[0] = 2, tensor->shape[1] = 2;
  tensor->strides[0] = 1, tensor->strides[1] = 2;
  tensor->byte_offset = sizeof(float);
  CHECK(View<const float, 2>(*tensor.dl())(1, 1) == 4);

  tensor->shape[0] = 1, tensor->strides[0] = 1'000'000'000'000;
  CHECK(View<const float, 2>(*tensor.dl()).stride(0) == 0);
  CHECK_THROWS_AS((View<float, 3>(*tensor.dl())), std::logic_error);

  const View<float, 2> compact(floats, {2, 3});
  CHECK(&compact(1, 1) == floats + 4);
}

TEST_CASE("check_step answers the extents of a legal step") {
  CachedStep s;
  s.lengths.fill({27, 4});
  Tensor keys({2}, i32), queries({2}, i32);
  keys.fill({5, 0});
  queries.fill({0, 3});
  s.step.key_lengths = keys.dl();
  s.step.query_lengths = queries.dl();
  const Extents extents = s.check();
  CHECK(list(extents.queries) == std::vector<std::int64_t>{0, 3});
  CHECK(list(extents.past) == std::vector<std::int64_t>{27, 4});
  CHECK(list(extents.keys) == std::vector<std::int64_t>{5, 0});
  CHECK(extents.total(0) == 32);

  s.step.key = s.step.value = s.step.key_lengths = nullptr;
  CHECK(list(s.check().keys) == std::vector<std::int64_t>{0, 0});
}

TEST_CASE("check_step refuses a wrong argument by name, got and wanted") {
  CachedStep s;
  SECTION("shape") {
    Tensor wrong({2, 5, 3, 16});
    s.step.key = wrong.dl();
    refused<Invalid>([&] { s.check(); }, "key: got shape [2, 5, 3, 16], wanted [2, 5, 2, 16]");
  }
  SECTION("rank") {
    Tensor wrong({2, 3, 64});
    s.step.query = wrong.dl();
    refused<Invalid>([&] { s.check(); }, "query: got shape [2, 3, 64], wanted [2, any, 4, 16]");
  }
  SECTION("value and key disagree") {
    Tensor wrong({2, 4, 2, 8});
    s.step.value = wrong.dl();
    refused<Invalid>([&] { s.check(); }, "value: got shape [2, 4, 2, 8], wanted [2, 5, 2, 8]");
  }
  SECTION("dtype") {
    Tensor wrong({2, 5, 2, 8}, f16);
    s.step.value = wrong.dl();
    refused<Invalid>([&] { s.check(); }, "value: got dtype f16, wanted f32");
  }
  SECTION("output") {
    Tensor wrong({2, 4, 4, 8});
    s.step.output = wrong.dl();
    refused<Invalid>([&] { s.check(); }, "output: got shape [2, 4, 4, 8], wanted [2, 3, 4, 8]");
  }
  SECTION("cache") {
    Tensor wrong({2, 31, 2, 16});
    s.cache.key = wrong.dl();
    refused<Invalid>([&] { s.check(); }, "cache.key: got shape [2, 31, 2, 16], wanted [2, 32, 2, 16]");
    s.step.cache = nullptr;
    refused<Invalid>([&] { s.check(); }, "cache: got none, wanted one: the problem has a cache");
  }
  SECTION("presence") {
    s.step.output = nullptr;
    refused<Invalid>([&] { s.check(); }, "output: got none, wanted a tensor of shape [2, 3, 4, 8]");
    s.step.value = nullptr;
    refused<Invalid>([&] { s.check(); }, "value: got none, wanted a tensor of shape [2, 5, 2, 8]");
    s.step.key = nullptr;
    s.step.value = s.value.dl();
    refused<Invalid>([&] { s.check(); }, "value: got a tensor, wanted none: there is no key");
  }
  SECTION("lse") {
    Tensor lse({2, 4, 3});
    s.step.lse = lse.dl();
    refused<Invalid>([&] { s.check(); }, "lse: got a tensor, wanted none: the problem wants none");
    s.problem.wants_lse = 1;
    s.check();
    s.step.lse = nullptr;
    refused<Invalid>([&] { s.check(); }, "lse: got none, wanted a tensor of shape [2, 4, 3]");
  }
  SECTION("lengths") {
    s.lengths.fill({0, -3});
    refused<Invalid>([&] { s.check(); }, "cache.lengths[1]: got -3, wanted 0..32");
    s.lengths.fill({33, 0});
    refused<Invalid>([&] { s.check(); }, "cache.lengths[0]: got 33, wanted 0..32");
    s.lengths.fill({0, 0});
    Tensor counts({2}, i32);
    counts.fill({6, 0});
    s.step.key_lengths = counts.dl();
    refused<Invalid>([&] { s.check(); }, "key_lengths[0]: got 6, wanted 0..5");
    s.step.key_lengths = nullptr;
    s.step.query_lengths = counts.dl();
    refused<Invalid>([&] { s.check(); }, "query_lengths[0]: got 6, wanted 0..3");
  }
  SECTION("memory") {
    s.query->data = nullptr;
    refused<Invalid>([&] { s.check(); }, "query: got a null pointer, wanted [2, 3, 4, 16] elements");
  }
  SECTION("device") {
    s.query->device.device_type = kDLCUDA;
    refused<Invalid>([&] { s.check(); }, "query: got memory of device type 2, wanted 1");
  }
  SECTION("alignment") {
    s.query->byte_offset = 2;
    refused<Invalid>([&] { s.check(); }, "query: got an address that is no multiple of its element's 4 bytes");
  }
  SECTION("strides") {
    s.query->strides = nullptr;
    refused<Invalid>([&] { s.check(); }, "query: got no strides, wanted a value per axis");
  }
  SECTION("capacity") {
    s.lengths.fill({0, 30});
    refused<Overflow>([&] { s.check(); }, "cache.lengths[1]: 30 cached + 5 new tokens = 35, capacity is 32");
  }
}

TEST_CASE("check_step at the layer level wants d_model-wide tensors") {
  CachedStep s;
  s.problem.level = ATTEST_LEVEL_LAYER;
  s.problem.d_model = 48;
  Tensor x({2, 3, 48}), y({2, 3, 48});
  s.step.query = s.step.key = s.step.value = x.dl();
  s.step.output = y.dl();
  CHECK(list(s.check().keys) == std::vector<std::int64_t>{3, 3});
  Tensor wrong({2, 3, 47});
  s.step.query = wrong.dl();
  refused<Invalid>([&] { s.check(); }, "query: got shape [2, 3, 47], wanted [2, 3, 48]");
}

TEST_CASE("check_problem refuses what is not a problem") {
  attest_problem p = core_problem();
  check_problem(p);
  SECTION("heads") {
    p.kv_heads = 3;
    refused<Invalid>([&] { check_problem(p); }, "kv_heads: got 3, wanted a divisor of the 4 query heads");
  }
  SECTION("extents") {
    p.v_head_dim = 0;
    refused<Invalid>([&] { check_problem(p); }, "v_head_dim: got 0, wanted at least 1");
  }
  SECTION("enums") {
    p.causal = 3;
    refused<Invalid>([&] { check_problem(p); }, "causal: got 3, wanted 0..2");
  }
  SECTION("scale") {
    p.scale = std::numeric_limits<double>::infinity();
    refused<Invalid>([&] { check_problem(p); }, "scale: got inf, wanted a finite number");
  }
  SECTION("cache") {
    p.cache = ATTEST_CACHE_CONTIGUOUS;
    refused<Invalid>([&] { check_problem(p); }, "capacity: got 0, wanted at least 1");
    p.cache = ATTEST_CACHE_NONE;
    p.capacity = 4;
    refused<Invalid>([&] { check_problem(p); }, "capacity: got 4, wanted 0: the problem has no cache");
  }
  SECTION("weights") {
    Tensor weight({64, 48});
    p.q_weight = weight.dl();
    refused<Invalid>([&] { check_problem(p); },
                     "q_weight: got a tensor, wanted none: the problem is of the core level");
    p.level = ATTEST_LEVEL_LAYER;
    p.d_model = 48;
    refused<Invalid>([&] { check_problem(p); }, "k_weight: got none, wanted a tensor of shape [32, 48]");
    Tensor bias({63});
    Tensor k({32, 48}), v({16, 48}), out({48, 32});
    p.k_weight = k.dl(), p.v_weight = v.dl(), p.out_weight = out.dl();
    check_problem(p);
    p.q_bias = bias.dl();
    refused<Invalid>([&] { check_problem(p); }, "q_bias: got shape [63], wanted [64]");
  }
}

TEST_CASE("require_only refuses each feature that was not named") {
  attest_problem p = core_problem();
  Tensor norm({16}), sinks({4});
  const Features plain{.f32 = true};
  require_only(p, plain);
  const auto reason = [&] {
    try {
      require_only(p, plain);
    } catch (const Unsupported& error) {
      return std::string(error.what());
    }
    return std::string("supported");
  };
  SECTION("dtype") {
    p.dtype = bf16;
    CHECK(reason() == "not implemented: dtype bf16");
  }
  SECTION("level") {
    p.level = ATTEST_LEVEL_LAYER;
    CHECK(reason() == "not implemented: the layer level");
  }
  SECTION("window of zero") {
    p.window_left = 0;
    CHECK(reason() == "not implemented: a sliding window");
  }
  SECTION("cache dtype") {
    p.cache = ATTEST_CACHE_CONTIGUOUS;
    CHECK(reason() == "not implemented: a contiguous cache");
    p.cache_dtype = f16;
    CHECK_THROWS_MATCHES(require_only(p, {.f32 = true, .contiguous_cache = true}), Unsupported,
                         Message("not implemented: a f16 cache under f32"));
  }
  SECTION("one by one") {
    const int which = GENERATE(Catch::Generators::range(0, 11));
    CAPTURE(which);
    if (which == 0) p.causal = ATTEST_CAUSAL_BOTTOM_RIGHT;
    if (which == 1) p.causal = ATTEST_CAUSAL_TOP_LEFT;
    if (which == 2) p.mask = ATTEST_MASK_BOOLEAN;
    if (which == 3) p.mask = ATTEST_MASK_ADDITIVE;
    if (which == 4) p.softcap = 30;
    if (which == 5) p.alibi = ATTEST_ALIBI_STANDARD;
    if (which == 6) p.sinks = sinks.dl();
    if (which == 7) p.rope.style = ATTEST_ROPE_HALF;
    if (which == 8) p.k_norm_weight = norm.dl();
    if (which == 9) p.packed = 1;
    if (which == 10) p.wants_lse = 1;
    CHECK_THAT(reason(), ContainsSubstring("not implemented: "));
  }
}

namespace {

/// Answers what its step tells it to: the batch of the problem chooses.
struct Fake {
  static constexpr const char* name = "fake";
  static constexpr const char* version = "0.1";
  static std::string description() { return "throws"; }
  explicit Fake(Options& options) { options.take("known", ""); }
  struct Plan {
    Plan(Fake&, const attest_problem& p) : problem(p) {
      if (p.batch == 99) throw Unsupported("99 is too many");
    }
    void run(const attest_step&) const {
      if (problem.batch == 1) throw Overflow("full");
      if (problem.batch == 2) throw std::runtime_error("broken");
      if (problem.batch == 3) throw std::bad_alloc();
      if (problem.batch == 4) throw 4;
    }
    attest_problem problem;
  };
};

}  // namespace

TEST_CASE("The table of a class") {
  const attest_backend* const table = table_of<Fake>();
  REQUIRE(table != nullptr);
  CHECK(table->abi_version == ATTEST_ABI_VERSION);
  CHECK(std::string(table->name) == "fake");
  CHECK(table->device_type == kDLCPU);
  CHECK(table->allocate == nullptr);
  CHECK(table_of<Fake>() == table);

  attest_message message{};
  message.struct_size = sizeof message;
  const auto text = [&] { return std::string(message.text); };
  attest_context* context = nullptr;
  CHECK(table->open(R"({"unknown":"1"})", &context, &message) == ATTEST_INVALID);
  CHECK(text() == "option unknown: this backend has no such option");
  CHECK(context == nullptr);
  REQUIRE(table->open(R"({"known":"1"})", &context, &message) == ATTEST_OK);
  CHECK(text().empty());

  attest_problem problem = core_problem();
  attest_plan* plan = nullptr;
  problem.batch = 99;
  CHECK(table->prepare(context, &problem, &plan, &message) == ATTEST_UNSUPPORTED);
  CHECK(text() == "99 is too many");
  problem.struct_size = 8;
  CHECK(table->prepare(context, &problem, &plan, &message) == ATTEST_INVALID);
  CHECK_THAT(text(), ContainsSubstring("problem.struct_size: got 8, wanted at least"));

  SECTION("a newer suite's problem passes while its new fields are unused") {
    struct Newer {
      attest_problem problem;
      std::int64_t field;
    } newer{core_problem(), 0};
    newer.problem.struct_size = sizeof newer;
    REQUIRE(table->prepare(context, &newer.problem, &plan, &message) == ATTEST_OK);
    table->release(plan);
    newer.field = 1;
    CHECK(table->prepare(context, &newer.problem, &plan, &message) == ATTEST_UNSUPPORTED);
    CHECK_THAT(text(), ContainsSubstring("newer than this backend's backend.h"));
  }
  SECTION("exceptions become statuses") {
    const std::pair<attest_status, std::string> wanted[] = {{ATTEST_OK, ""},
                                                            {ATTEST_OVERFLOW, "full"},
                                                            {ATTEST_ERROR, "broken"},
                                                            {ATTEST_ERROR, "out of memory"},
                                                            {ATTEST_ERROR, "an exception that is no std::exception"}};
    attest_step step{};
    step.struct_size = sizeof step;
    for (std::int64_t batch : {1, 2, 3, 4, 0}) {
      problem = core_problem();
      problem.batch = batch;
      REQUIRE(table->prepare(context, &problem, &plan, &message) == ATTEST_OK);
      CHECK(table->run(plan, &step, &message) == wanted[batch].first);
      CHECK(text() == wanted[batch].second);
      table->release(plan);
    }
  }
  table->close(context);
}
