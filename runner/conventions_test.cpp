// SPDX-License-Identifier: Apache-2.0
#include "runner/conventions.h"

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_exception.hpp>
#include <catch2/matchers/catch_matchers_floating_point.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <limits>

namespace attest {
namespace {

using Catch::Matchers::ContainsSubstring;
using Catch::Matchers::MessageMatches;
using Catch::Matchers::WithinRel;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

Conventions declared(const char* json) {
  return conventions_from_json(Json::parse(json), "mine.so: its declarations");
}

TEST_CASE("nothing declared is the spec's own convention") {
  for (const char* json :
       {"{}", R"({"empty_lse": "-inf", "empty_output": "zero", "lse_base": "e", "determinism": []})"}) {
    const Conventions conventions = declared(json);
    CHECK(to_json(conventions) == Json::object());
    CHECK(alternatives(conventions).empty());
    CHECK(conventions.empty_lse() == -kInfinity);
    CHECK(conventions.lse_from_natural(3) == 3);
    CHECK(conventions.lse_to_natural(3) == 3);
    CHECK(conventions.lse_from_natural(-kInfinity) == -kInfinity);
    CHECK(conventions.lse_allowed(100, 0.5) == 0.5);
  }
}

TEST_CASE("alternatives are read, written and named") {
  const Json json =
      Json::parse(R"({"empty_lse": "+inf", "empty_output": "nan", "lse_base": "2", "determinism": ["d2", "d0"]})");
  const Conventions conventions = conventions_from_json(json, "test");
  CHECK(to_json(conventions) ==
        Json::parse(R"({"empty_lse": "+inf", "empty_output": "nan", "lse_base": "2", "determinism": ["d0", "d2"]})"));
  CHECK(alternatives(conventions) == std::vector<std::string>{"empty_lse +inf", "empty_output nan", "lse_base 2"});
  CHECK(conventions.empty_output_is_nan);
  CHECK_THAT(conventions.lse_from_natural(0.6931471805599453), WithinRel(1.0, 1e-15));
  CHECK_THAT(conventions.lse_to_natural(1), WithinRel(0.6931471805599453, 1e-15));
  CHECK(conventions.lse_from_natural(-kInfinity) == kInfinity);
  CHECK(conventions.lse_to_natural(kInfinity) == -kInfinity);
  CHECK_THAT(conventions.lse_allowed(0, 0.5), WithinRel(0.5 / 0.6931471805599453, 1e-12));
  CHECK(conventions.lse_allowed(100, 0.5) > conventions.lse_allowed(0, 0.5));
  CHECK(conventions.lse_allowed(-kInfinity, 0) == 0);
}

TEST_CASE("what is not known is refused by its name") {
  const auto refused = [](const char* json, const char* words) {
    CHECK_THROWS_MATCHES(declared(json), Error,
                         MessageMatches(ContainsSubstring("mine.so: its declarations") && ContainsSubstring(words)));
  };
  refused(R"({"lse_bass": "2"})", "lse_bass");
  refused(R"({"lse_base": "10"})", "lse_base: got \"10\", wanted one of: e, 2");
  refused(R"({"lse_base": 2})", "lse_base");
  refused(R"({"empty_output": null})", "empty_output");
  refused(R"({"determinism": ["d0", "d9"]})", "determinism: got \"d9\"");
  refused(R"({"determinism": "d0"})", "determinism");
  refused("[]", "wanted an object");
}

TEST_CASE("a case of determinism needs each level that its profiles name") {
  Conventions conventions;
  CHECK(undeclared_determinism({"core", "window"}, conventions).empty());
  CHECK(undeclared_determinism({"core", "determinism_d0"}, conventions) == "d0");
  conventions.determinism = {"d0"};
  CHECK(undeclared_determinism({"determinism_d0"}, conventions).empty());
  CHECK(undeclared_determinism({"determinism_d0", "determinism_d2"}, conventions) == "d2");
}

}  // namespace
}  // namespace attest
