// SPDX-License-Identifier: Apache-2.0
#include "cases/suite.h"

#include <unistd.h>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <set>

#include "cases/inputs.h"

using namespace attest;
using Catch::Matchers::ContainsSubstring;
namespace fs = std::filesystem;

namespace {

/// A suite in a temporary folder, one case file of which can be replaced.
class Scratch {
 public:
  Scratch() {
    write("cases/profiles.json",
          R"({"schema": "attest/profiles/1", "profiles": [{"id": "core", "about": ""}, {"id": "fp32", "about": ""}]})");
    write("cases/bugs.json", R"({"schema": "attest/bugs/1", "bugs": [{"id": "causal-plus1"}]})");
    write("spec/attention.md", "# The operator\n\n**A1 Scale.** Text.\n\n**M3 Causal.** Text.\n");
  }
  ~Scratch() { fs::remove_all(root); }
  void write(const std::string& name, const std::string& text) const { write_file(root / name, text); }
  void write_case(const std::string& clauses, const std::string& kills) const {
    write("cases/no_cache/one.json", R"({"schema": "attest/cases/1", "family": "no_cache", "about": "", "cases": [{
      "id": "one", "about": "", "clauses": )" +
                                         clauses + R"(, "kills": )" + kills + R"(, "problem": {"head_dim": 8},
      "inputs": {"recipe": "gaussian"}, "steps": [{"attend": 3}]}]})");
  }
  fs::path root = fs::temp_directory_path() / fmt::format("attest-suite-test-{}", ::getpid());
};

}  // namespace

TEST_CASE("a suite is loaded and its citations are checked") {
  const Scratch scratch;
  scratch.write_case(R"(["A1", "M3"])", R"(["causal-plus1"])");
  CHECK(load_suite(scratch.root).cases.size() == 1);
  scratch.write_case(R"(["A1", "Z9"])", "[]");
  CHECK_THROWS_WITH(load_suite(scratch.root),
                    ContainsSubstring("no_cache/one.clauses: got \"Z9\", which is not in spec/attention.md"));
  scratch.write_case(R"(["A1"])", R"(["no-such-bug"])");
  CHECK_THROWS_WITH(load_suite(scratch.root), ContainsSubstring("one.kills: got \"no-such-bug\""));
  scratch.write("cases/no_cache/one.json", "{]");
  CHECK_THROWS_WITH(load_suite(scratch.root), ContainsSubstring("one.json: parse error at line 1"));
}

TEST_CASE("catalogues of the wrong types, impossible steps and a case that equals itself: refused by file") {
  const Scratch scratch;
  scratch.write_case(R"(["A1"])", "[]");
  const std::string text = read_file(scratch.root / "cases/no_cache/one.json");
  const auto with = [&](const std::string& field) { return std::string(text).insert(text.find("\"steps\""), field); };
  scratch.write("cases/no_cache/one.json", with(R"("equals": "no_cache/one", )"));
  CHECK_THROWS_WITH(load_suite(scratch.root), ContainsSubstring("no_cache/one.equals: got \"no_cache/one\""));
  scratch.write("cases/no_cache/one.json", std::string(text).replace(text.find("3}]"), 3, "0}]"));
  CHECK_THROWS_WITH(load_suite(scratch.root), ContainsSubstring("one.json: no_cache/one step 0: has no query"));
  scratch.write("cases/no_cache/one.json", text);

  scratch.write("cases/bugs.json", R"({"schema": "attest/bugs/1", "bugs": 3})");
  CHECK_THROWS_WITH(load_suite(scratch.root), ContainsSubstring("bugs.json.bugs: got 3, wanted an array"));
  scratch.write("cases/bugs.json", R"({"schema": "attest/bugs/1", "bugs": [{"id": 3}]})");
  CHECK_THROWS_WITH(load_suite(scratch.root), ContainsSubstring("bugs.json.bugs[0].id: got 3, wanted a string"));
  scratch.write("cases/profiles.json", R"({"schema": "attest/profiles/1", "profiles": "core"})");
  CHECK_THROWS_WITH(load_suite(scratch.root), ContainsSubstring("profiles.json.profiles: got \"core\""));
}

TEST_CASE("two cases of one id, a family in the wrong folder: refused") {
  const Scratch scratch;
  scratch.write_case(R"(["A1"])", "[]");
  const std::string text = read_file(scratch.root / "cases/no_cache/one.json");
  scratch.write("cases/no_cache/two.json", text);
  CHECK_THROWS_WITH(load_suite(scratch.root), ContainsSubstring("taken twice"));
  fs::remove(scratch.root / "cases/no_cache/two.json");
  scratch.write("cases/stress/two.json", text);
  CHECK_THROWS_WITH(load_suite(scratch.root), ContainsSubstring("the name of its folder"));
}

TEST_CASE("the selection takes ids, profiles, parts of the identity and globs, and never nothing") {
  const Suite suite = load_suite(find_suite({}));
  CHECK(select(suite, {}).size() == suite.cases.size());
  CHECK(select(suite, {{"core"}, {}, {}}).size() > 100);
  const Case& first = suite.cases.front();
  CHECK(select(suite, {{}, {first.id}, {}}).size() == 1);
  CHECK(select(suite, {{}, {}, identity(first)}).front() == &first);
  for (const Case* c : select(suite, {{}, {}, "with_cache/*"})) CHECK(c->family == "with_cache");
  CHECK_THROWS_WITH(select(suite, {{}, {}, "no such thing"}), ContainsSubstring("selects no case"));
  CHECK_THROWS_WITH(select(suite, {{}, {"no/case"}, {}}), ContainsSubstring("which is no case"));
  CHECK_THROWS_WITH(select(suite, {{"nope"}, {}, {}}), ContainsSubstring("wanted one of: core"));
}

TEST_CASE("the shipped suite: every case plays, every recipe and family is used") {
  const Suite suite = load_suite(find_suite({}));
  CHECK(suite.cases.size() >= 120);
  std::set<std::string> families, recipes;
  for (const Case& c : suite.cases) {
    INFO(c.id);
    CHECK_NOTHROW(play(c));
    families.insert(c.family);
    recipes.insert(c.inputs.recipe);
  }
  for (const char* founding : {"no_cache", "with_cache", "batch_1", "single_head", "long_sequence", "stress"}) {
    CHECK(families.contains(founding));
  }
  CHECK(recipes.size() == 15);
}
