// SPDX-License-Identifier: Apache-2.0
// The C++ adapter: options, messages, argument checks, and the table made from a class.
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators_range.hpp>
#include <catch2/matchers/catch_matchers_exception.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>
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
  template <class T = std::int32_t>
  void fill(std::vector<T> values) {
    std::memcpy(memory_.data(), values.data(), values.size() * sizeof(T));
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

/// A legal packed step of core_problem without a cache: sequences of 1 and 3 queries, 2 and 0 keys.
struct PackedStep {
  attest_problem problem = core_problem();
  Tensor query{{4, 4, 16}}, key{{2, 2, 16}}, value{{2, 2, 8}}, output{{4, 4, 8}}, lse{{4, 4}};
  Tensor query_start{{3}, i32}, key_start{{3}, i32};
  attest_step step{};

  PackedStep() {
    problem.packed = 1;
    problem.wants_lse = 1;
    query_start.fill({0, 1, 4});
    key_start.fill({0, 2, 2});
    step.struct_size = sizeof step;
    step.query = query.dl();
    step.key = key.dl();
    step.value = value.dl();
    step.output = output.dl();
    step.lse = lse.dl();
    step.query_start = query_start.dl();
    step.key_start = key_start.dl();
  }
  Extents check() const { return check_step(problem, step); }
};

/// A legal step of core_problem with 6 pages of 8 tokens, of which each sequence may have 4: 5 keys, 3 queries.
struct PagedStep : CachedStep {
  Tensor key_pages{{6, 8, 2, 16}}, value_pages{{6, 8, 2, 8}}, table{{2, 4}, i32};
  PagedStep() {
    problem.cache = ATTEST_CACHE_PAGED;
    problem.capacity = 30;
    problem.page_size = 8;
    cache.key = key_pages.dl();
    cache.value = value_pages.dl();
    cache.block_table = table.dl();
    lengths.fill({6, 3});
    table.fill({5, 0, -1, 99, 2, -7, 6, 1 << 30});
  }
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

TEST_CASE("check_step answers the extents of a packed step") {
  PackedStep s;
  const Extents extents = s.check();
  CHECK(list(extents.queries) == std::vector<std::int64_t>{1, 3});
  CHECK(list(extents.keys) == std::vector<std::int64_t>{2, 0});
  CHECK(list(extents.query_start) == std::vector<std::int64_t>{0, 1});
  CHECK(list(extents.key_start) == std::vector<std::int64_t>{0, 2});
  CHECK(extents.query_tokens == 4);
  CHECK(extents.key_tokens == 2);
  CHECK(extents.largest_total() == 2);

  s.problem.level = ATTEST_LEVEL_LAYER;
  s.problem.d_model = 5;
  Tensor x({4, 5}), y({4, 5});
  s.step.query = s.step.key = s.step.value = x.dl();
  s.step.output = y.dl();
  s.key_start.fill({0, 0, 4});
  CHECK(list(s.check().keys) == std::vector<std::int64_t>{0, 4});
}

TEST_CASE("check_step refuses a wrong argument of a packed step") {
  PackedStep s;
  SECTION("starts") {
    s.query_start.fill({1, 1, 4});
    refused<Invalid>([&] { s.check(); }, "query_start[0]: got 1, wanted 0..0");
    s.query_start.fill({0, 5, 4});
    refused<Invalid>([&] { s.check(); }, "query_start[1]: got 5, wanted 0..4");
    s.query_start.fill({0, 3, 2});
    refused<Invalid>([&] { s.check(); }, "query_start[2]: got 2, wanted 3..4");
    s.query_start.fill({0, 1, 3});
    refused<Invalid>([&] { s.check(); }, "query_start[2]: got 3, wanted 4: the number of tokens");
    s.step.query_start = nullptr;
    refused<Invalid>([&] { s.check(); }, "query_start: got none, wanted a tensor of shape [3]");
  }
  SECTION("keys") {
    s.step.key_start = nullptr;
    refused<Invalid>([&] { s.check(); }, "key_start: got none, wanted a tensor of shape [3]");
  }
  SECTION("lengths") {
    Tensor counts({2}, i32);
    s.step.query_lengths = counts.dl();
    refused<Invalid>([&] { s.check(); }, "query_lengths: got a tensor, wanted none: the problem is packed");
    s.step.query_lengths = nullptr;
    s.step.key_lengths = counts.dl();
    refused<Invalid>([&] { s.check(); }, "key_lengths: got a tensor, wanted none: the problem is packed");
  }
  SECTION("shapes") {
    Tensor padded({1, 4, 4, 16}), lse({1, 4, 4});
    s.step.lse = lse.dl();
    refused<Invalid>([&] { s.check(); }, "lse: got shape [1, 4, 4], wanted [4, 4]");
    s.step.query = padded.dl();
    refused<Invalid>([&] { s.check(); }, "query: got shape [1, 4, 4, 16], wanted [any, 4, 16]");
  }
  SECTION("in the padded form there are none") {
    CachedStep padded;
    padded.step.query_start = s.query_start.dl();
    refused<Invalid>([&] { padded.check(); }, "query_start: got a tensor, wanted none: the problem is not packed");
    padded.step.query_start = nullptr;
    padded.step.key_start = s.key_start.dl();
    refused<Invalid>([&] { padded.check(); }, "key_start: got a tensor, wanted none: the problem is not packed");
  }
}

TEST_CASE("check_step takes a cached step without keys in both forms") {
  PackedStep s;
  CachedStep cached;
  s.problem.cache = ATTEST_CACHE_CONTIGUOUS;
  s.problem.capacity = 32;
  s.step.cache = &cached.cache;
  s.step.key = s.step.value = nullptr;
  const bool with_starts = GENERATE(false, true);
  s.key_start.fill({0, 0, 0});
  if (!with_starts) s.step.key_start = nullptr;
  cached.lengths.fill({7, 9});
  const Extents extents = s.check();
  CHECK(list(extents.keys) == std::vector<std::int64_t>{0, 0});
  CHECK(extents.total(1) == 9);
}

TEST_CASE("check_step and a paged cache") {
  PagedStep s;
  SECTION("only the entries in use count") {
    CHECK(s.check().total(0) == 11);
    s.lengths.fill({0, 0});
    s.step.key = s.step.value = nullptr;
    s.table.fill({-1, -1, -1, -1, -1, -1, -1, -1});
    CHECK(s.check().total(0) == 0);
  }
  SECTION("table") {
    s.table.fill({5, 6, 0, 0, 2, 0, 0, 0});
    refused<Invalid>([&] { s.check(); }, "cache.block_table[0, 1]: got 6, wanted 0..5");
    s.table.fill({5, 0, 0, 0, -2, 0, 0, 0});
    refused<Invalid>([&] { s.check(); }, "cache.block_table[1, 0]: got -2, wanted 0..5");
    Tensor narrow({2, 3}, i32);
    s.cache.block_table = narrow.dl();
    refused<Invalid>([&] { s.check(); }, "cache.block_table: got shape [2, 3], wanted [2, 4]");
    s.cache.block_table = nullptr;
    refused<Invalid>([&] { s.check(); }, "cache.block_table: got none, wanted a tensor of shape [2, 4]");
  }
  SECTION("pages") {
    Tensor fewer({5, 8, 2, 8}), shorter({6, 7, 2, 16});
    s.cache.value = fewer.dl();
    refused<Invalid>([&] { s.check(); }, "cache.value: got shape [5, 8, 2, 8], wanted [6, 8, 2, 8]");
    s.cache.key = shorter.dl();
    refused<Invalid>([&] { s.check(); }, "cache.key: got shape [6, 7, 2, 16], wanted [6, 8, 2, 16]");
  }
  SECTION("the capacity is not the pages' end") {
    s.lengths.fill({0, 26});
    refused<Overflow>([&] { s.check(); }, "cache.lengths[1]: 26 cached + 5 new tokens = 31, capacity is 30");
  }
  SECTION("a contiguous cache has no table") {
    CachedStep contiguous;
    contiguous.cache.block_table = s.table.dl();
    refused<Invalid>([&] { contiguous.check(); },
                     "cache.block_table: got a tensor, wanted none: the cache is not paged");
  }
}

TEST_CASE("check_step and a ring cache, whose length counts on") {
  CachedStep s;
  s.problem.cache = ATTEST_CACHE_RING;
  s.problem.window_left = 8;
  s.lengths.fill({1'000'000, 31});
  CHECK(s.check().total(0) == 1'000'005);
  s.lengths.fill({0, INT32_MAX - 4});
  CHECK_THROWS_AS(s.check(), Overflow);
}

TEST_CASE("check_step and a mask") {
  CachedStep s;
  s.lengths.fill({4, 0});
  s.problem.mask = ATTEST_MASK_BOOLEAN;
  SECTION("every axis may be broadcast") {
    const auto b = GENERATE(1, 2), h = GENERATE(1, 4), q = GENERATE(1, 3);
    Tensor mask({b, h, q, 9}, u8);
    s.step.mask = mask.dl();
    s.check();
    s.problem.mask = ATTEST_MASK_ADDITIVE;
    refused<Invalid>([&] { s.check(); }, "mask: got dtype u8, wanted f32");
  }
  SECTION("shape") {
    Tensor keys({1, 1, 1, 8}, u8), heads({1, 2, 3, 9}, u8), rank({4, 3, 9}, u8);
    s.step.mask = keys.dl();
    refused<Invalid>([&] { s.check(); }, "mask: got shape [1, 1, 1, 8], wanted [1, 1, 1, 9]");
    s.step.mask = heads.dl();
    refused<Invalid>([&] { s.check(); }, "mask: got shape [1, 2, 3, 9], wanted [1, 4, 3, 9]");
    s.step.mask = rank.dl();
    refused<Invalid>([&] { s.check(); }, "mask: got shape [4, 3, 9], wanted [2, 4, 3, any]");
  }
  SECTION("presence") {
    refused<Invalid>([&] { s.check(); }, "mask: got none, wanted a tensor of shape [2, 4, 3, any]");
    Tensor mask({1, 1, 1, 9}, u8);
    s.step.mask = mask.dl();
    s.problem.mask = ATTEST_MASK_NONE;
    refused<Invalid>([&] { s.check(); }, "mask: got a tensor, wanted none: the problem has no mask");
  }
}

TEST_CASE("A Mask answers what is added to the logit") {
  CachedStep s;
  const Mask none(s.problem, s.step);
  CHECK(none(1, 3, 2, 4) == 0);
  s.problem.mask = ATTEST_MASK_BOOLEAN;
  Tensor seen({2, 1, 1, 5}, u8), added({1, 1, 3, 5}, bf16);
  s.step.mask = seen.dl();
  s.check();
  static_cast<std::uint8_t*>(seen->data)[5 + 4] = 1;
  const Mask boolean(s.problem, s.step);
  CHECK(boolean(1, 3, 2, 4) == 0);
  CHECK(boolean(1, 3, 2, 3) == -std::numeric_limits<float>::infinity());
  s.problem.mask = ATTEST_MASK_ADDITIVE;
  s.step.mask = added.dl();
  NumberView<4>(*added.dl()).set(-2.5f, 0, 0, 2, 4);
  NumberView<4>(*added.dl()).set(-std::numeric_limits<float>::infinity(), 0, 0, 2, 3);
  const Mask additive(s.problem, s.step);
  CHECK(additive(1, 3, 2, 4) == -2.5f);
  CHECK(additive(1, 3, 2, 3) == -std::numeric_limits<float>::infinity());
}

TEST_CASE("check_step and RoPE positions") {
  PackedStep packed;
  CachedStep s;
  packed.problem.rope.style = s.problem.rope.style = ATTEST_ROPE_HALF;
  Tensor row({4}, i32), rows({2, 3}, i32), counts({2}, i32);
  packed.step.positions = row.dl();
  packed.key_start.fill({0, 0, 2});
  packed.check();
  packed.step.positions = rows.dl();
  refused<Invalid>([&] { packed.check(); }, "positions: got shape [2, 3], wanted [4]");

  s.step.positions = rows.dl();
  s.step.key_lengths = counts.dl();
  counts.fill({3, 1});
  s.check();
  counts.fill({3, 4});
  refused<Invalid>([&] { s.check(); }, "positions: got 3 of sequence 1, wanted one for each of its 4 keys");
  s.problem.rope.style = ATTEST_ROPE_NONE;
  refused<Invalid>([&] { s.check(); }, "positions: got a tensor, wanted none: the problem has no RoPE");
}

TEST_CASE("check_step and the scales of a quantised cache") {
  const bool paged = GENERATE(false, true);
  CachedStep contiguous;
  PagedStep pages;
  CachedStep& s = paged ? pages : contiguous;
  Tensor key({paged ? 6 : 2, paged ? 8 : 32, 2, 16}, i8), value({paged ? 6 : 2, paged ? 8 : 32, 2, 8}, i8);
  s.problem.cache_dtype = i8;
  s.cache.key = key.dl();
  s.cache.value = value.dl();
  Tensor one({1}), heads({2}), tokens({paged ? 6 : 2, paged ? 8 : 32, 2});
  const auto with = [&](int kind, Tensor& key_scale, Tensor& value_scale) {
    s.problem.kv_scale = kind;
    s.cache.key_scale = key_scale.dl();
    s.cache.value_scale = value_scale.dl();
    s.check();
  };
  with(ATTEST_KV_SCALE_PER_TENSOR, one, one);
  with(ATTEST_KV_SCALE_PER_HEAD, heads, heads);
  with(ATTEST_KV_SCALE_PER_TOKEN, tokens, tokens);
  refused<Invalid>([&] { with(ATTEST_KV_SCALE_PER_HEAD, one, heads); }, "cache.key_scale: got shape [1], wanted [2]");
  refused<Invalid>([&] { with(ATTEST_KV_SCALE_PER_TENSOR, one, heads); },
                   "cache.value_scale: got shape [2], wanted [1]");
  refused<Invalid>([&] { with(ATTEST_KV_SCALE_PER_TOKEN, tokens, heads); },
                   std::string("cache.value_scale: got shape [2], wanted ") + (paged ? "[6, 8, 2]" : "[2, 32, 2]"));
  s.cache.value_scale = nullptr;
  refused<Invalid>([&] { s.check(); }, std::string("cache.value_scale: got none, wanted a tensor of shape ") +
                                           (paged ? "[6, 8, 2]" : "[2, 32, 2]"));

  CachedStep plain;
  plain.cache.value_scale = one.dl();
  refused<Invalid>([&] { plain.check(); }, "cache.value_scale: got a tensor, wanted none: the cache is not quantised");
}

TEST_CASE("A NumberView reads and rounds any storage") {
  Tensor halves({2, 3}, bf16), codes({2}, u8);
  const NumberView<2> view(*halves.dl());
  view.set(1.00390625f, 1, 2);  // half a unit above 1: the tie goes to the even neighbour
  CHECK(view(1, 2) == 1);
  CHECK(view.storage() == Storage::bf16);
  CHECK(view.address(1, 2) == static_cast<char*>(halves->data) + 10);
  const NumberView<1> fp8(*codes.dl(), ATTEST_FP8_E4M3);
  fp8.set(1000, 1);
  CHECK(fp8(1) == 448);
  CHECK(fp8(0) == 0);
}

TEST_CASE("Tokens finds a token in each form") {
  const auto counted = [](Tensor& tensor, int count) {
    std::vector<float> values;
    for (int i = 0; i < count; ++i) values.push_back(static_cast<float>(i));
    tensor.fill(values);
  };
  SECTION("padded") {
    CachedStep s;
    counted(s.query, 2 * 3 * 4 * 16);
    const Tokens tokens = Tokens::of_queries(s.problem, s.check(), *s.query.dl());
    CHECK(tokens(1, 2, 3, 5) == ((1 * 3 + 2) * 4 + 3) * 16 + 5);
    CHECK(tokens.batch() == 2);
    CHECK(tokens.count(1) == 3);
    CHECK(tokens.number(1, 2) == 5);
    CHECK(tokens.numbers() == 6);
    CHECK(tokens.token_stride() == 64);
    CHECK(tokens.head_stride() == 16);
    CHECK(tokens.channel_stride() == 1);
    tokens.set(-1, 1, 2, 3, 5);
    CHECK(View<const float, 4>(*s.query.dl())(1, 2, 3, 5) == -1);
  }
  SECTION("packed") {
    PackedStep s;
    counted(s.query, 4 * 4 * 16);
    counted(s.lse, 16);
    const Extents extents = s.check();
    CHECK(Tokens::of_queries(s.problem, extents, *s.query.dl())(1, 2, 3, 5) == (3 * 4 + 3) * 16 + 5);
    CHECK(Tokens::of_lse(s.problem, extents, *s.lse.dl())(1, 2, 3, 0) == 3 * 4 + 3);
    CHECK(Tokens::of_lse(s.problem, extents, *s.lse.dl()).numbers() == 4);
    CHECK(Tokens::of_lse(s.problem, extents, *s.lse.dl()).number(1, 2) == 3);
    CHECK(Tokens::of_keys(s.problem, extents, *s.key.dl()).address(0, 1, 0, 0) ==
          static_cast<char*>(s.key->data) + 32 * 4);
  }
  SECTION("padded LSE") {
    CachedStep s;
    Tensor lse({2, 4, 3});
    counted(lse, 24);
    CHECK(Tokens::of_lse(s.problem, s.check(), *lse.dl())(1, 2, 3, 0) == (1 * 4 + 3) * 3 + 2);
  }
  SECTION("a layer's, and an extent of 1 whose stride is noise") {
    PackedStep s;
    s.problem.level = ATTEST_LEVEL_LAYER;
    s.problem.d_model = 5;
    Tensor x({4, 5}), token({1, 5});
    counted(x, 20);
    s.step.query = s.step.output = x.dl();
    token->strides[0] = 1'000'000'000'000;
    s.step.key = s.step.value = token.dl();
    s.key_start.fill({0, 0, 1});
    const Extents extents = s.check();
    CHECK(Tokens::of_queries(s.problem, extents, *x.dl())(1, 1, 0, 4) == 2 * 5 + 4);
    CHECK(Tokens::of_keys(s.problem, extents, *token.dl()).address(1, 0, 0, 4) == static_cast<char*>(token->data) + 16);
  }
}

TEST_CASE("Positions are the tokens' places, or what the step gives") {
  CachedStep s;
  s.problem.rope.style = ATTEST_ROPE_HALF;
  s.lengths.fill({4, 0});
  Tensor keys({2}, i32);
  keys.fill({3, 1});
  s.step.key_lengths = keys.dl();
  const Positions places(s.problem, s.check(), s.step);
  CHECK(places.query(0, 0) == 4);
  CHECK(places.key(0, 2) == 6);
  CHECK(places.query(1, 0) == -2);
  CHECK(places.key(1, 0) == 0);

  Tensor rows({2, 3}, i32);
  rows.fill({10, 20, 30, 7, 8, 9});
  s.step.positions = rows.dl();
  const Positions given(s.problem, s.check(), s.step);
  CHECK(given.query(1, 2) == 9);
  CHECK(given.key(0, 1) == 20);

  PackedStep packed;
  packed.problem.rope.style = ATTEST_ROPE_HALF;
  packed.key_start.fill({0, 0, 2});
  Tensor row({4}, i32);
  row.fill({10, 20, 30, 40});
  packed.step.positions = row.dl();
  const Positions in_row(packed.problem, packed.check(), packed.step);
  CHECK(in_row.query(1, 2) == 40);
  CHECK(in_row.key(1, 1) == 30);
}

TEST_CASE("Slots and scale_view find a token in each kind of cache") {
  const auto pair = [](Slot slot) { return std::pair(slot.outer, slot.inner); };
  PagedStep paged;
  CHECK(pair(Slots(paged.problem, paged.cache)(0, 10)) == std::pair<std::int64_t, std::int64_t>(0, 2));
  CHECK(pair(Slots(paged.problem, paged.cache)(1, 7)) == std::pair<std::int64_t, std::int64_t>(2, 7));
  CachedStep s;
  CHECK(pair(Slots(s.problem, s.cache)(1, 31)) == std::pair<std::int64_t, std::int64_t>(1, 31));
  s.problem.cache = ATTEST_CACHE_RING;
  CHECK(pair(Slots(s.problem, s.cache)(1, 70)) == std::pair<std::int64_t, std::int64_t>(1, 6));

  Tensor one({1}), heads({2}), tokens({2, 3, 2});
  one.fill<float>({5});
  heads.fill<float>({6, 7});
  tokens.fill<float>({0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11});
  s.problem.kv_scale = ATTEST_KV_SCALE_PER_TENSOR;
  CHECK(scale_view(s.problem, *one.dl())(1, 2, 1) == 5);
  s.problem.kv_scale = ATTEST_KV_SCALE_PER_HEAD;
  CHECK(scale_view(s.problem, *heads.dl())(1, 2, 1) == 7);
  s.problem.kv_scale = ATTEST_KV_SCALE_PER_TOKEN;
  CHECK(scale_view(s.problem, *tokens.dl())(1, 2, 1) == 11);
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
    p.capacity = 0;
    p.kv_scale = ATTEST_KV_SCALE_PER_HEAD;
    refused<Invalid>([&] { check_problem(p); }, "kv_scale: got 2, wanted 0: the problem has no cache");
    p.kv_scale = ATTEST_KV_SCALE_NONE;
    p.cache_fp8 = ATTEST_FP8_E5M2;
    refused<Invalid>([&] { check_problem(p); }, "cache_fp8: got 2, wanted 0: the problem has no cache");
  }
  SECTION("dtype") {
    p.dtype = DLDataType{kDLFloat, 64, 1};
    refused<Invalid>([&] { check_problem(p); }, "dtype: got f64, wanted f32, f16 or bf16");
    p.dtype = p.cache_dtype = bf16;
    check_problem(p);
  }
  SECTION("packed") {
    p.packed = 1;
    check_problem(p);
    p.mask = ATTEST_MASK_ADDITIVE;
    refused<Invalid>([&] { check_problem(p); }, "mask: got 2, wanted 0: the problem is packed");
  }
  SECTION("pages") {
    p.cache = ATTEST_CACHE_PAGED;
    p.capacity = 32;
    refused<Invalid>([&] { check_problem(p); }, "page_size: got 0, wanted at least 1");
    p.page_size = 48;
    check_problem(p);
    p.cache = ATTEST_CACHE_CONTIGUOUS;
    refused<Invalid>([&] { check_problem(p); }, "page_size: got 48, wanted 0: the cache is not paged");
  }
  SECTION("ring") {
    p.cache = ATTEST_CACHE_RING;
    p.capacity = 8;
    refused<Invalid>([&] { check_problem(p); }, "window_left: got -1, wanted 0..7: a ring keeps no more tokens");
    p.window_left = 8;
    refused<Invalid>([&] { check_problem(p); }, "window_left: got 8, wanted 0..7: a ring keeps no more tokens");
    p.window_left = 7;
    check_problem(p);
  }
  SECTION("quantised cache") {
    p.cache = ATTEST_CACHE_CONTIGUOUS;
    p.capacity = 8;
    p.cache_dtype = f16;
    refused<Invalid>([&] { check_problem(p); }, "cache_dtype: got f16, wanted f32, i8 or u8");
    p.cache_dtype = i8;
    refused<Invalid>([&] { check_problem(p); }, "kv_scale: got 0, wanted 1..3");
    p.kv_scale = ATTEST_KV_SCALE_PER_TOKEN;
    check_problem(p);
    p.cache_fp8 = ATTEST_FP8_E4M3;
    refused<Invalid>([&] { check_problem(p); }, "cache_fp8: got 1, wanted 0: the cache's dtype is not u8");
    p.cache_dtype = u8;
    check_problem(p);
    p.cache_fp8 = ATTEST_FP8_NONE;
    refused<Invalid>([&] { check_problem(p); }, "cache_fp8: got 0, wanted 1..2");
    p.cache_dtype = f32;
    refused<Invalid>([&] { check_problem(p); }, "kv_scale: got 3, wanted 0: the cache has the problem's dtype");
  }
  SECTION("QK-norm") {
    Tensor norm({16});
    p.k_norm_weight = norm.dl();
    refused<Invalid>([&] { check_problem(p); }, "norm_epsilon: got 0.000000, wanted more than 0");
    p.norm_epsilon = 1e-6;
    check_problem(p);
  }
  SECTION("RoPE") {
    p.rope.style = ATTEST_ROPE_HALF;
    p.rope.rotary_dim = 18;
    refused<Invalid>([&] { check_problem(p); }, "rope.rotary_dim: got 18, wanted 2..16");
    p.rope.rotary_dim = 5;
    refused<Invalid>([&] { check_problem(p); }, "rope.rotary_dim: got 5, wanted an even number");
    p.rope.rotary_dim = 2;
    refused<Invalid>([&] { check_problem(p); }, "rope.base: got 0.000000, wanted more than 0");
    p.rope.base = 10000;
    check_problem(p);
    p.rope.scaling = ATTEST_ROPE_SCALING_NTK;
    refused<Invalid>([&] { check_problem(p); }, "rope.factor: got 0.000000, wanted more than 0");
    p.rope.factor = 8;
    refused<Invalid>([&] { check_problem(p); }, "rope.rotary_dim: got 2, wanted at least 4");
    p.rope.scaling = ATTEST_ROPE_SCALING_LINEAR;
    check_problem(p);
    p.rope.scaling = ATTEST_ROPE_SCALING_LLAMA3;
    refused<Invalid>([&] { check_problem(p); }, "rope.original_length: got 0.000000, wanted more than 0");
    p.rope.original_length = 8192;
    refused<Invalid>([&] { check_problem(p); }, "rope.low_frequency: got 0.000000, wanted more than 0");
    p.rope.low_frequency = p.rope.high_frequency = 4;
    refused<Invalid>([&] { check_problem(p); },
                     "rope.high_frequency: got 4.000000, wanted more than the low one's 4.000000");
    p.rope.low_frequency = 1;
    check_problem(p);
    p.rope.scaling = ATTEST_ROPE_SCALING_YARN;
    check_problem(p);
    p.rope.attention_factor = std::numeric_limits<double>::quiet_NaN();
    refused<Invalid>([&] { check_problem(p); }, "rope.attention_factor: got nan, wanted a finite number");
    p.rope.attention_factor = 0;
    p.rope.base = 1;
    refused<Invalid>([&] { check_problem(p); }, "rope.base: got 1.000000, wanted more than 1");
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
    p.cache_dtype = i8;
    CHECK_THROWS_MATCHES(require_only(p, {.f32 = true, .contiguous_cache = true}), Unsupported,
                         Message("not implemented: an int8 cache"));
    p.cache_dtype = u8;
    CHECK_THROWS_MATCHES(require_only(p, {.f32 = true, .contiguous_cache = true, .int8_cache = true}), Unsupported,
                         Message("not implemented: an fp8 cache"));
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
