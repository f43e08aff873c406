// SPDX-License-Identifier: Apache-2.0
#include "runner/protocol.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <array>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/matchers/catch_matchers_exception.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <thread>

#include "cases/error.h"

namespace attest::protocol {
namespace {

using namespace std::chrono_literals;
using Catch::Matchers::ContainsSubstring;
using Catch::Matchers::MessageMatches;
using Kind = Failure::Kind;

struct Pair {
  Pair() {
    std::array<int, 2> ends{};
    REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) == 0);
    here.reset(ends[0]);
    there.reset(ends[1]);
  }
  void write(std::string_view bytes) const {
    REQUIRE(::send(there.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(bytes.size()));
  }
  [[nodiscard]] Wait wait(Clock::duration limit = 100ms) const { return wait_until(here.get(), Clock::now() + limit); }
  [[nodiscard]] tl::expected<std::string, Failure> receive(UniqueFd* passed = nullptr) const {
    return receive_frame(here.get(), wait(), passed);
  }
  UniqueFd here, there;
};

bool same_file(int a, int b) {
  struct stat first {};
  struct stat second {};
  return ::fstat(a, &first) == 0 && ::fstat(b, &second) == 0 && first.st_dev == second.st_dev &&
         first.st_ino == second.st_ino;
}

TEST_CASE("frames arrive as they were sent, one after the other") {
  const Pair pair;
  const Wait wait = wait_until(pair.there.get(), Clock::now() + 1s);
  REQUIRE(send_frame(pair.there.get(), "{\"a\":1}", -1, wait));
  REQUIRE(send_frame(pair.there.get(), "", -1, wait));
  REQUIRE(send_frame(pair.there.get(), "third", -1, wait));
  CHECK(pair.receive() == "{\"a\":1}");
  CHECK(pair.receive() == "");
  CHECK(pair.receive() == "third");
}

TEST_CASE("the largest frame passes a full socket buffer, and none is larger") {
  const Pair pair;
  const std::string large(kMaxPayload, 'x');
  std::thread sender([&] { send_frame(pair.there.get(), large, -1, wait_until(pair.there.get(), Clock::now() + 5s)); });
  const auto received = receive_frame(pair.here.get(), pair.wait(5s));
  sender.join();
  REQUIRE(received);
  CHECK(*received == large);
  CHECK_THROWS_AS(send_frame(pair.there.get(), large + "x", -1, pair.wait()), std::logic_error);
}

TEST_CASE("a descriptor travels with its frame") {
  const Pair pair;
  const UniqueFd memory(::memfd_create("test", MFD_CLOEXEC));
  const Wait wait = wait_until(pair.there.get(), Clock::now() + 1s);
  SECTION("and arrives") {
    REQUIRE(send_frame(pair.there.get(), "none", -1, wait));
    REQUIRE(send_frame(pair.there.get(), "one", memory.get(), wait));
    UniqueFd passed;
    CHECK(pair.receive(&passed) == "none");
    CHECK_FALSE(passed);
    CHECK(pair.receive(&passed) == "one");
    REQUIRE(passed);
    CHECK(same_file(passed.get(), memory.get()));
    CHECK((::fcntl(passed.get(), F_GETFD) & FD_CLOEXEC) != 0);
  }
  SECTION("and leaves no trace where none is wanted") {
    const auto next_free = [] { return UniqueFd(::open("/dev/null", O_RDONLY | O_CLOEXEC)).get(); };
    const int before = next_free();
    REQUIRE(send_frame(pair.there.get(), "one", memory.get(), wait));
    CHECK(pair.receive() == "one");
    CHECK(next_free() == before);
  }
}

TEST_CASE("what is no frame is garbage, what is no whole frame is waited for") {
  const Pair pair;
  SECTION("oversize") {
    pair.write(std::string("\x01\x00\x10\x00", 4));
    const auto received = pair.receive();
    REQUIRE_FALSE(received);
    CHECK(received.error().kind == Kind::garbage);
    CHECK(received.error().text == "a frame of 1048577 bytes, the limit is 1048576");
  }
  SECTION("truncated header") {
    pair.write(std::string("\x05\x00", 2));
    CHECK(pair.receive().error().kind == Kind::timed_out);
  }
  SECTION("truncated payload") {
    pair.write(std::string("\x05\x00\x00\x00{", 5));
    CHECK(pair.receive().error().kind == Kind::timed_out);
  }
  SECTION("truncated by the end of the other side") {
    pair.write(std::string("\x05\x00\x00\x00{", 5));
    Pair copy;
    ::dup2(copy.there.get(), pair.there.get());
    CHECK(pair.receive().error().kind == Kind::closed);
  }
  SECTION("nothing") {
    CHECK(pair.receive().error().kind == Kind::timed_out);
  }
}

TEST_CASE("sending to nobody is an answer, and no signal") {
  Pair pair;
  pair.there.reset();
  CHECK(send_frame(pair.here.get(), "{}", -1, pair.wait()).error().kind == Kind::closed);
  CHECK(pair.receive().error().kind == Kind::closed);
}

TEST_CASE("sending to somebody who does not read times out") {
  const Pair pair;
  const std::string large(kMaxPayload, 'x');
  CHECK(send_frame(pair.here.get(), large, -1, pair.wait(50ms)).error().kind == Kind::timed_out);
}

TEST_CASE("a payload is one JSON object") {
  CHECK(parse_payload(R"({"a":[1,{"b":null}]})").value() == Json{{"a", {1, {{"b", nullptr}}}}});
  const auto text = GENERATE(as<std::string>{}, "", "{", "[]", "1", "null", "{\"a\":1} x", "{\"a\":\"\xff\"}",
                             "{\"a\":NaN}", "{'a':1}", std::string("\0\0", 2));
  CAPTURE(text);
  const auto parsed = parse_payload(text);
  REQUIRE_FALSE(parsed);
  CHECK(parsed.error().kind == Kind::garbage);
  CHECK_THAT(parsed.error().text, ContainsSubstring("not a JSON object: "));
}

TEST_CASE("a payload's nesting is limited") {
  const auto nested = [](int depth) {
    return "{\"a\":" + std::string(static_cast<size_t>(depth), '[') + std::string(static_cast<size_t>(depth), ']') +
           "}";
  };
  CHECK(parse_payload(nested(kMaxDepth - 1)));
  CHECK(parse_payload(nested(kMaxDepth)).error().text == "nested deeper than 32");
  CHECK_FALSE(parse_payload(std::string(kMaxPayload, '[')));
}

TEST_CASE("statuses have names") {
  for (const attest_status status : {ATTEST_OK, ATTEST_UNSUPPORTED, ATTEST_INVALID, ATTEST_OVERFLOW, ATTEST_ERROR}) {
    CHECK(status_named(name_of(status).value()) == status);
  }
  CHECK(name_of(ATTEST_OVERFLOW) == "overflow");
  CHECK_FALSE(name_of(5));
  CHECK_FALSE(name_of(99));
  CHECK_FALSE(name_of(-1));
  CHECK_FALSE(status_named("OK"));
  CHECK_FALSE(status_named(""));
}

TEST_CASE("tensors survive the journey, bent ones too") {
  Arena arena;
  const Block& block = arena.add("t", DType::bf16, {2, 3}, {7, 1});
  Tensor tensor = tensor_of(block);
  const auto journey = [&](const Tensor& sent) {
    const Json json = Json::parse(to_json(Tensors{{"cache.key", sent}}).dump());
    return tensors_from_json(json, "request.tensors", arena.bytes()).at("cache.key");
  };
  const auto same = [](const Tensor& a, const Tensor& b) {
    return a.dtype == b.dtype && a.shape == b.shape && a.strides == b.strides && a.offset == b.offset &&
           a.byte_offset == b.byte_offset && a.begin == b.begin && a.size == b.size;
  };
  CHECK(same(journey(tensor), tensor));
  tensor.byte_offset = 128;
  tensor.dtype = DType::f64;
  tensor.shape = {5, -3, 1};
  tensor.strides = {0, INT64_MAX, INT64_MIN};
  CHECK(same(journey(tensor), tensor));
  tensor.shape = {};
  tensor.strides = {};
  CHECK(same(journey(tensor), tensor));
  for (int d = 0; d < kDTypeCount; ++d) {
    tensor.dtype = static_cast<DType>(d);
    CHECK(same(journey(tensor), tensor));
  }
}

TEST_CASE("tensors outside of the memory are refused with their place") {
  const Json good{{"dtype", "f32"}, {"shape", {2}}, {"strides", {1}}, {"offset", 256}, {"begin", 0}, {"size", 1024}};
  CHECK(tensors_from_json({{"t", good}}, "tensors", 1024).size() == 1);
  const auto refused = [&](const char* field, const Json& value, const char* words) {
    Json bad = good;
    bad[field] = value;
    CAPTURE(bad.dump());
    CHECK_THROWS_MATCHES(tensors_from_json({{"t", bad}}, "tensors", 1024), Error,
                         MessageMatches(ContainsSubstring("tensors.t") && ContainsSubstring(words)));
  };
  refused("size", 1025, "lies outside of 1024 bytes");
  refused("size", 0, "lies outside of 1024 bytes");
  refused("size", INT64_MAX, "lies outside of 1024 bytes");
  refused("begin", -1, "lies outside of 1024 bytes");
  refused("begin", INT64_MAX, "lies outside of 1024 bytes");
  refused("offset", -1, "outside of its block");
  refused("offset", 1024, "outside of its block");
  refused("byte_offset", 257, "outside of its block");
  refused("byte_offset", -1, "outside of its block");
  refused("dtype", "float32", "wanted a dtype");
  refused("dtype", 3, "wanted a string");
  refused("shape", {1, 2}, "2 extents and 1 strides");
  refused("shape", "2", "wanted an array");
  refused("size", 1.5, "wanted an integer");
  refused("color", 1, "unknown field");
  CHECK_THROWS_AS(tensors_from_json(Json::array(), "tensors", 1024), Error);
}

TEST_CASE("nonces do not repeat") {
  CHECK(make_nonce().size() == 16);
  CHECK(make_nonce() != make_nonce());
}

TEST_CASE("foreign text becomes printable") {
  CHECK(printable("plain", 100) == "plain");
  CHECK(printable("a\nb\tc\x1b[31m\x7f", 100) == "a b c [31m ");
  CHECK(printable("a\nb\tc\r", 100, true) == "a\nb\tc ");
  CHECK(printable("\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80", 100) == "\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80");
  CHECK(printable("\xc3", 100) == "?");
  CHECK(printable("\xc0\x80|\xff|\x80", 100) == "??|?|?");
  CHECK(printable("\xed\xa0\x80", 100) == "???");       // a surrogate
  CHECK(printable("\xf4\x90\x80\x80", 100) == "????");  // beyond U+10FFFF
  CHECK(printable("a\xe2\x80\xa8z", 100) == "a z");
  CHECK(printable("\xe2\x82\xac\xe2\x82\xac", 5) == "\xe2\x82\xac");
  CHECK(printable("abcdef", 3) == "abc");
  for (int lead = 0; lead < 256; ++lead) {
    for (int next = 0; next < 256; ++next) {
      const std::string bytes{static_cast<char>(lead), static_cast<char>(next), static_cast<char>(0x80)};
      CHECK_NOTHROW(Json(printable(bytes, 100)).dump());
    }
  }
}

}  // namespace
}  // namespace attest::protocol
