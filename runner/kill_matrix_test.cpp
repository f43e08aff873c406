// SPDX-License-Identifier: Apache-2.0
#include "runner/kill_matrix.h"

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_vector.hpp>
#include <limits>

#include "runner/report_matrix.h"
#include "runner/report_test_support.h"

namespace attest {
namespace {

using Rule = Complaint::Rule;
constexpr double kEndless = std::numeric_limits<double>::infinity();

/// Three bugs on four cases, and two correct backends. Case d is one in bf16.
KillMatrix green_matrix() {
  KillMatrix matrix;
  matrix.attest_version = "0.1.0";
  matrix.suite_hash = "0123456789ab";
  matrix.backend = "mutants";
  matrix.backend_version = "1";
  matrix.all_cases = matrix.all_bugs = true;
  matrix.mutants = {{"one", false, "mask", "", "The first fault.", ""},
                    {"two", false, "mask", "pair", "The second fault.", ""},
                    {"three", false, "cache", "pair", "The third fault.", ""},
                    {"plain", true, "", "", "No option at all.", ""},
                    {"tile_7", true, "", "", "Tiles of 7.", ""}};
  matrix.cases = {{"f/a", "f", "", DType::f32, {"one", "two"}},
                  {"f/b", "f", "", DType::f32, {"two"}},
                  {"g/c", "g", "", DType::f32, {"three"}},
                  {"g/d", "g", "", DType::bf16, {"three"}}};
  matrix.clear();
  for (Cell& cell : matrix.cells) cell = {Cell::State::passed, 0, 0.25, ""};
  const auto kill = [&](size_t m, size_t c, double margin) {
    matrix.at(m, c) = {Cell::State::failed, margin, margin, "step 0, output: wrong"};
  };
  kill(0, 0, 1000);
  kill(0, 3, 30);
  kill(1, 0, 500);
  kill(1, 1, 3e6);
  kill(2, 2, kEndless);
  kill(2, 3, 7);
  return matrix;
}

std::vector<Rule> rules(const KillMatrix& matrix) {
  std::vector<Rule> list;
  for (const Complaint& complaint : judge(matrix)) list.push_back(complaint.rule);
  return list;
}

TEST_CASE("a matrix in which two cases kill every bug, one of them clearly, is green") {
  const KillMatrix matrix = green_matrix();
  CHECK(judge(matrix).empty());
  const MutantSummary two = summary(matrix, 1);
  CHECK(two.played == 4);
  CHECK(two.kills == 2);
  CHECK(two.best == 1);
  CHECK(two.second == 0);
  CHECK(two.best_margin == 3e6);
  CHECK(two.second_margin == 500);
  const MatrixTotals sum = totals(matrix);
  CHECK(sum.bugs == 3);
  CHECK(sum.caught == 3);
  CHECK(sum.plays == 12);
  CHECK(sum.kills == 6);
  CHECK(sum.correct_plays == 8);
  CHECK(sum.alarms == 0);
  CHECK(kills_by_case(matrix) == std::vector<int64_t>{2, 1, 1, 2});
  CHECK(weakest_first(matrix) == std::vector<size_t>{0, 1, 2});
  CHECK(closest(matrix).at(DType::bf16).ratio == 0.25);
}

TEST_CASE("a bug that nothing kills, or one case alone, is red") {
  KillMatrix matrix = green_matrix();
  matrix.at(1, 1) = {Cell::State::passed, 0, 0.1, ""};
  matrix.cases[1].cites = {};
  CHECK(rules(matrix) == std::vector{Rule::single, Rule::idle});
  matrix.at(1, 0) = {Cell::State::passed, 0, 0.1, ""};
  const auto complaints = judge(matrix);
  CHECK(rules(matrix) == std::vector{Rule::survives, Rule::idle});  // its citations need not be told as well
  CHECK(complaints[0].subject == "two");
  CHECK(complaints[0].text == "two survives: none of 4 cases catches it");
  CHECK(totals(matrix).caught == 2);
  CHECK(weakest_first(matrix).front() == 1);
}

TEST_CASE("a margin under 20 in f32 is red, unless the catalogue says why") {
  KillMatrix matrix = green_matrix();
  matrix.at(0, 0).margin = 19.5;
  CHECK(rules(matrix) == std::vector{Rule::unclear});  // what bf16 shows does not count beside f32
  CHECK(summary(matrix, 0).clear_margin == 19.5);
  matrix.mutants[0].weak = "Half of the keys can differ by no more.";
  CHECK(judge(matrix).empty());
  CHECK(totals(matrix).caught == 3);
  matrix.at(0, 0).margin = 21;
  CHECK(rules(matrix) == std::vector{Rule::not_weak});
}

TEST_CASE("a bug that shows in 16 bits only is measured there") {
  KillMatrix matrix = green_matrix();
  matrix.cases[2].dtype = DType::f16;
  CHECK(judge(matrix).empty());
  matrix.at(2, 2).margin = 3;
  CHECK(rules(matrix) == std::vector{Rule::unclear});
  CHECK(summary(matrix, 2).clear_margin == 7);
}

TEST_CASE("citations: of what a case does not kill, and none at all") {
  KillMatrix matrix = green_matrix();
  matrix.cases[2].cites = {"three", "one"};
  CHECK(rules(matrix) == std::vector{Rule::wrong_citation});
  CHECK(judge(matrix)[0].c == "g/c");
  matrix.at(0, 2) = {};  // not played: nothing is known
  CHECK(judge(matrix).empty());
  matrix.cases[0].cites = {"two"};
  matrix.cases[2].cites = {"three"};
  CHECK(rules(matrix) == std::vector{Rule::not_cited});
}

TEST_CASE("a case that kills nothing is red if all bugs were played") {
  KillMatrix matrix = green_matrix();
  matrix.at(1, 1) = {Cell::State::passed, 0, 0.1, ""};
  matrix.at(1, 2) = {Cell::State::failed, kEndless, std::nullopt, "NaN"};
  matrix.cases[1].cites = {};
  CHECK(rules(matrix) == std::vector{Rule::idle});
  matrix.all_bugs = false;
  CHECK(judge(matrix).empty());
}

/// Another realisation of bug "one", which passes case a, that names the bug.
KillMatrix realised_matrix() {
  KillMatrix matrix = green_matrix();
  matrix.mutants.insert(matrix.mutants.begin() + 1, {"one@decode", false, "mask", "", "In decode steps.", ""});
  std::vector<Cell> row(4, Cell{Cell::State::passed, 0, 0.25, ""});
  row[1] = row[2] = {Cell::State::failed, 50, 50, "wrong"};
  matrix.cells.insert(matrix.cells.begin() + 4, row.begin(), row.end());
  return matrix;
}

TEST_CASE("every realisation must be caught, a case that names the bug catches one of them") {
  KillMatrix matrix = realised_matrix();
  CHECK(judge(matrix).empty());
  CHECK(totals(matrix).bugs == 3);
  CHECK(totals(matrix).realisations == 4);
  CHECK(totals(matrix).caught == 3);
  CHECK(to_json(matrix).at("bugs")[1].at("id") == "one@decode");
  CHECK(console_summary(matrix, false).find("GREEN  3 of 3 bugs caught in 4 realisations, 0 false alarms") !=
        std::string::npos);
  matrix.at(1, 2) = {Cell::State::passed, 0, 0.1, ""};
  CHECK(rules(matrix) == std::vector{Rule::single});
  CHECK(judge(matrix)[0].subject == "one@decode");
  CHECK(totals(matrix).caught == 2);
  matrix.at(1, 1) = {Cell::State::passed, 0, 0.1, ""};
  CHECK(rules(matrix) == std::vector{Rule::survives});
  matrix = realised_matrix();
  matrix.cases[2].cites = {"three", "one"};  // caught of the second realisation alone
  CHECK(judge(matrix).empty());
  matrix.cases[1].cites = {"two", "one"};
  matrix.at(1, 1) = {Cell::State::passed, 0, 0.1, ""};
  CHECK(rules(matrix) == std::vector{Rule::single, Rule::wrong_citation});
  matrix.at(0, 1) = {};  // not played
  CHECK(rules(matrix) == std::vector{Rule::single});
  matrix.mutants[0].id = "one@prefill";  // without its first realisation
  matrix.cases[1].cites = {"two", "one"};
  matrix.at(0, 1) = {Cell::State::passed, 0, 0.1, ""};
  CHECK(rules(matrix) == std::vector{Rule::single});
}

TEST_CASE("a crash kills, but is red and no clear margin") {
  KillMatrix matrix = green_matrix();
  matrix.at(2, 2).lost = true;
  matrix.at(2, 2).reason = "killed by SIGSEGV";
  CHECK(rules(matrix) == std::vector{Rule::unclear, Rule::lost});
  CHECK(judge(matrix)[1].text == "three on g/c was killed by SIGSEGV");
  CHECK(summary(matrix, 2).kills == 2);
  CHECK(summary(matrix, 2).clear_margin == 7);
}

TEST_CASE("of a subset of the cases it is told how many kill") {
  KillMatrix matrix = green_matrix();
  matrix.all_cases = matrix.all_bugs = false;
  CHECK(console_summary(matrix, false).find("GREEN  3 of 3 bugs killed by some of 4 cases, 0 false") !=
        std::string::npos);
  matrix.mutants.resize(1);
  matrix.cells.resize(4);
  CHECK(console_summary(matrix, false).find("GREEN  2 of 4 cases kill one, 0 false") != std::string::npos);
}

TEST_CASE("of a subset of the cases only citations and alarms are judged") {
  KillMatrix matrix = green_matrix();
  matrix.at(1, 1) = {Cell::State::passed, 0, 0.1, ""};
  matrix.all_cases = matrix.all_bugs = false;
  CHECK(rules(matrix) == std::vector{Rule::wrong_citation});
}

TEST_CASE("a correct backend that fails or is not supported is red") {
  KillMatrix matrix = green_matrix();
  matrix.at(4, 2) = {Cell::State::failed, 1.5, 1.5, "step 1, lse: beyond"};
  matrix.at(3, 1) = {Cell::State::unsupported, 0, std::nullopt, "no window"};
  const auto complaints = judge(matrix);
  CHECK(rules(matrix) == std::vector{Rule::false_alarm, Rule::unsupported});
  CHECK(complaints[0].text == "tile_7 is right, but g/c fails it: step 1, lse: beyond");
  CHECK(complaints[1].text == "plain does not support f/b: no window");
}

TEST_CASE("the JSON of a matrix has kills only, and infinite margins by name") {
  const Json json = to_json(green_matrix());
  CHECK(json.at("green") == true);
  CHECK(json.at("bugs").size() == 3);
  CHECK(json.at("bugs")[2].at("cases") == Json{{"g/c", "Infinity"}, {"g/d", 7}});
  CHECK(json.at("bugs")[2].at("best").at("case") == "g/c");
  CHECK(json.at("correct")[1].at("worst") == 0.25);
  CHECK(json.at("cases")[0] == Json{{"id", "f/a"}, {"kills", 2}});
  KillMatrix red = green_matrix();
  red.at(4, 2) = {Cell::State::failed, 1.5, 1.5, "beyond"};
  red.at(1, 1) = {Cell::State::passed, 0, 0.1, ""};
  constexpr const char* kValidate = R"py(
import json, sys
try:
    import jsonschema
except ImportError:
    print("valid"); sys.exit()
schema = json.load(open(")py" ATTEST_SOURCE_DIR R"py(/spec/schema/matrix.schema.json"))
jsonschema.Draft202012Validator.check_schema(schema)
jsonschema.validate(json.load(open(sys.argv[1])), schema)
print("valid")
)py";
  CHECK(python(kValidate, json.dump()) == "valid\n");
  CHECK(python(kValidate, to_json(red).dump()) == "valid\n");
}

TEST_CASE("the console ends with the verdict") {
  CHECK(console_summary(green_matrix(), false)
            .ends_with("\n\nGREEN  3 of 3 bugs caught, 0 false alarms in 8 plays of correct backends · suite 0.1.0 "
                       "(0123456789ab), mutants 1\n"));
  KillMatrix red = green_matrix();
  red.fast = true;
  red.at(4, 2) = {Cell::State::failed, 1.5, 1.5, "beyond"};
  const std::string text = console_summary(red, false);
  CHECK(text.find("False alarms: 1\n  tile_7 is right, but g/c fails it: beyond\n") != std::string::npos);
  CHECK(text.find("\nRED  3 of 3 bugs caught, 1 false alarm in 8 plays of correct backends, 1 complaint") !=
        std::string::npos);
}

TEST_CASE("the page of a matrix is well-formed, and nothing in it can break out") {
  constexpr const char* kReader = R"py(
import sys
from html.parser import HTMLParser
class Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.ids, self.scripts = [], [], 0
    def handle_starttag(self, tag, attributes):
        if tag not in {"meta", "br", "input"}: self.open.append(tag)
        self.scripts += tag == "script"
        for name, value in attributes:
            assert name not in ("src", "href", "action") and not name.startswith("on"), (tag, name)
            if name == "id": self.ids.append(value)
    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, (tag, self.getpos())
reader = Reader()
text = open(sys.argv[1], encoding="utf-8").read()
reader.feed(text)
reader.close()
assert not reader.open and len(reader.ids) == len(set(reader.ids)) and "://" not in text
print("well-formed,", reader.scripts, "script")
)py";
  KillMatrix matrix = green_matrix();
  const std::string page = html_report(matrix);
  CHECK(page.find("<span class=\"verdict\">GREEN</span>") != std::string::npos);
  CHECK(page.find("\"S.") != std::string::npos);  // bug "one": 10^3 is eighteen sixths of a decade, then it passes
  CHECK(python(kReader, page) == "well-formed, 1 script\n");
  CHECK(python(kReader, html_report(KillMatrix{})) == "well-formed, 1 script\n");
  const std::string attack = "\"></script><script>alert(1)</script>\x1B[31m\n";
  for (Mutant& mutant : matrix.mutants) mutant.id = mutant.about = mutant.area = mutant.weak = attack;
  for (MatrixCase& c : matrix.cases) c.id = c.family = c.about = attack;
  for (Cell& cell : matrix.cells) cell.reason = attack;
  matrix.at(4, 2).state = Cell::State::failed;
  matrix.backend_version = attack;
  CHECK(python(kReader, html_report(matrix)) == "well-formed, 1 script\n");
}

}  // namespace
}  // namespace attest
