// SPDX-License-Identifier: Apache-2.0
#include "cases/json.h"

#include <unistd.h>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_exception.hpp>

using attest::Error;
using attest::Fields;
using attest::Json;
using Catch::Matchers::Message;

namespace {
enum class Colour { red, green };
}

TEST_CASE("fields are read with strict types") {
  const Json json = Json::parse(R"({"n": 3, "x": 2.5, "s": "text", "b": true, "list": [1, 2], "c": "green"})");
  Fields fields(json, "file: place");
  CHECK(fields.required<int64_t>("n") == 3);
  CHECK(fields.required<double>("x") == 2.5);
  CHECK(fields.required<double>("n") == 3.0);
  CHECK(fields.required<std::string>("s") == "text");
  CHECK(fields.required<bool>("b"));
  CHECK(fields.required<std::vector<int64_t>>("list") == std::vector<int64_t>{1, 2});
  CHECK(fields.choice<Colour>("c", {"red", "green"}) == Colour::green);
  CHECK(fields.optional<int64_t>("absent", 7) == 7);
  fields.finish();
}

TEST_CASE("errors name the place, what was got and what was wanted") {
  const Json json = Json::parse(R"({"n": 3.5, "s": 1, "c": "blue", "list": [1, "two"], "extra": {"a": 1}})");
  Fields fields(json, "f.json: cases[2]");
  CHECK_THROWS_MATCHES(fields.required<int64_t>("n"), Error, Message("f.json: cases[2].n: got 3.5, wanted an integer"));
  CHECK_THROWS_MATCHES(fields.required<std::string>("s"), Error, Message("f.json: cases[2].s: got 1, wanted a string"));
  CHECK_THROWS_MATCHES(fields.choice<Colour>("c", {"red", "green"}), Error,
                       Message("f.json: cases[2].c: got \"blue\", wanted one of: red, green"));
  CHECK_THROWS_MATCHES(fields.required<std::vector<int64_t>>("list"), Error,
                       Message("f.json: cases[2].list[1]: got \"two\", wanted an integer"));
  CHECK_THROWS_MATCHES(fields.required<bool>("gone"), Error,
                       Message("f.json: cases[2]: the field \"gone\" is missing"));
  CHECK_THROWS_MATCHES(fields.finish(), Error, Message("f.json: cases[2]: unknown field \"extra\" = {\"a\":1}"));
}

TEST_CASE("a 64-bit number beyond int64 is refused, not wrapped") {
  CHECK_THROWS_AS(attest::json_to<int64_t>(Json(UINT64_MAX), "n"), Error);
}

TEST_CASE("a broken file is named with line and column") {
  try {
    attest::parse_json("{\n  \"a\": 1,\n}", "broken.json");
    FAIL("it was parsed");
  } catch (const Error& error) {
    const std::string line = error.what();
    CHECK(line.starts_with("broken.json: parse error at line 3, column 1"));
    CHECK(line.find('\n') == std::string::npos);
  }
}

TEST_CASE("a key that an object has twice is refused by its name") {
  CHECK_THROWS_MATCHES(attest::parse_json(R"([{"a": {"b": 1}, "b": 1}, {"a": 1, "c": [], "a": 2}])", "f.json"), Error,
                       Message("f.json: the key \"a\" is there twice in one object"));
  CHECK(attest::parse_json(R"([{"a": {"a": 1}, "b": {"a": [{"a": 1}, {"a": 2}]}}])", "f.json").size() == 1);
}

TEST_CASE("nesting without end is refused, not a stack that overflows") {
  const auto nested = [](size_t depth) { return std::string(depth, '[') + std::string(depth, ']'); };
  CHECK(attest::parse_json(nested(64), "f.json").is_array());
  CHECK_THROWS_MATCHES(attest::parse_json(nested(65), "f.json"), Error,
                       Message("f.json: arrays and objects are nested deeper than 64"));
  CHECK_THROWS_AS(attest::parse_json(nested(1'000'000), "f.json"), Error);
}

TEST_CASE("an array or object field is refused if it is neither") {
  const Json json = Json::parse(R"({"list": 3, "map": []})");
  Fields fields(json, "f.json");
  CHECK_THROWS_MATCHES(fields.array("list"), Error, Message("f.json.list: got 3, wanted an array"));
  CHECK_THROWS_MATCHES(fields.object("map"), Error, Message("f.json.map: got [], wanted an object"));
}

TEST_CASE("a file that is not there is an error, and a written one is read back") {
  CHECK_THROWS_AS(attest::read_file("/nonexistent/file"), Error);
  const auto path =
      std::filesystem::temp_directory_path() / fmt::format("attest-json-test-{}", ::getpid()) / "deep" / "file";
  attest::write_file(path, std::string("a\0b", 3));
  CHECK(attest::read_file(path) == std::string("a\0b", 3));
  std::filesystem::remove_all(path.parent_path().parent_path());
}
