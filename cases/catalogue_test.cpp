// SPDX-License-Identifier: Apache-2.0
#include "cases/catalogue.h"

#include <unistd.h>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include "cases/suite.h"

using namespace attest;
using Catch::Matchers::ContainsSubstring;
namespace fs = std::filesystem;

namespace {

Json bug(const std::string& id, const std::string& group = "") {
  Json json{{"id", id},
            {"area", "mask"},
            {"fault", "Wrong."},
            {"symptom", "Wrong results."},
            {"visible_with", "Any."},
            {"links", Json::array()},
            {"source", {"write-up"}}};
  if (!group.empty()) json["group"] = group;
  return json;
}

Catalogue load(Json bugs, Json groups = Json::array(), Json correct = nullptr) {
  const fs::path root = fs::temp_directory_path() / fmt::format("attest-catalogue-test-{}", ::getpid());
  Json json{{"schema", "attest/bugs/1"}, {"bugs", std::move(bugs)}, {"groups", std::move(groups)}};
  if (!correct.is_null()) json["correct"] = std::move(correct);
  write_file(root / "cases/bugs.json", json.dump());
  struct Remove {
    fs::path path;
    ~Remove() { fs::remove_all(path); }
  } const remove{root};
  return load_catalogue(root);
}

}  // namespace

TEST_CASE("the suite's own catalogue loads") {
  const Catalogue catalogue = load_catalogue(find_suite(""));
  CHECK(catalogue.bugs.size() >= 120);
  CHECK(catalogue.correct.size() >= 20);
  REQUIRE(catalogue.find("causal-plus1") != nullptr);
  CHECK(catalogue.find("causal-plus1")->area == "mask");
  REQUIRE(catalogue.find_group("off_by_one") != nullptr);
  CHECK(catalogue.find_group("off_by_one")->bugs.size() >= 2);
  CHECK(catalogue.find("no-such-bug") == nullptr);
}

TEST_CASE("a catalogue that contradicts itself is refused") {
  const Json pair = Json::array({{{"id", "pair"}, {"bugs", {"one", "two"}}, {"how_to_separate", "Look."}}});
  CHECK(load({bug("one", "pair"), bug("two", "pair")}, pair).groups.size() == 1);
  CHECK_THROWS_WITH(load({bug("one"), bug("one")}), ContainsSubstring("bugs[1].id: got \"one\", which is taken"));
  CHECK_THROWS_WITH(load({bug("one", "pair"), bug("two")}, pair),
                    ContainsSubstring("the group pair names two, which does not name it"));
  CHECK_THROWS_WITH(load({bug("one", "pair"), bug("two", "pair"), bug("three", "pair")}, pair),
                    ContainsSubstring("three names the group pair, which does not name it"));
  CHECK_THROWS_WITH(load({bug("one", "pair")}), ContainsSubstring("one names the group pair"));
  Json odd = bug("one");
  odd["weakness"] = "None.";
  CHECK_THROWS_WITH(load({odd}), ContainsSubstring("weakness"));
}

TEST_CASE("a bug may have several realisations") {
  Json several = bug("one");
  several["realisations"] = {{{"id", "decode"}, {"about", "In decode steps."}},
                             {{"id", "1e-6"}, {"about", "Always."}, {"weak", "Too small."}}};
  const Catalogue catalogue = load({several, bug("two")});
  CHECK(catalogue.bugs[0].names() == std::vector<std::string>{"one", "one@decode", "one@1e-6"});
  CHECK(catalogue.bugs[0].realisations[1].weak == "Too small.");
  CHECK(catalogue.bugs[1].names() == std::vector<std::string>{"two"});
  CHECK(catalogue.find("one@decode") == &catalogue.bugs[0]);
  CHECK(catalogue.find("two@decode") == nullptr);
  CHECK(bug_of("one@decode") == "one");
  CHECK(bug_of("two") == "two");
  several["realisations"].push_back({{"id", "decode"}, {"about", "Again."}});
  CHECK_THROWS_WITH(load({several}), ContainsSubstring("realisations[2].id: got \"decode\", which is taken"));
}

TEST_CASE("weak bugs and correct variants have their words") {
  Json weak = bug("one");
  weak["weak"] = "One key of many.";
  const Catalogue catalogue = load({weak}, Json::array(), {{{"id", "tile_1"}, {"about", "Tiles of one."}}});
  CHECK(catalogue.bugs[0].weak == "One key of many.");
  CHECK(catalogue.correct[0].about == "Tiles of one.");
}
