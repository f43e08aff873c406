// SPDX-License-Identifier: Apache-2.0
#include "runner/report_html.h"

#include <catch2/catch_test_macros.hpp>
#include <limits>

#include "runner/error_map.h"
#include "runner/report_markdown.h"
#include "runner/report_test_support.h"

namespace attest {
namespace {

bool contains(const std::string& text, std::string_view part) {
  return text.find(part) != std::string::npos;
}

size_t occurrences(const std::string& text, std::string_view part) {
  size_t count = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + part.size())) ++count;
  return count;
}

// Every tag is closed by its own, every id is there once, every link within the page has its target, and nothing is
// fetched from anywhere.
constexpr const char* kReader = R"py(
import sys
from html.parser import HTMLParser
from urllib.parse import unquote
VOID = {"meta", "br", "input", "link", "img", "hr"}
class Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.ids, self.links = [], [], []
    def handle_starttag(self, tag, attributes):
        if tag not in VOID: self.open.append(tag)
        for name, value in attributes:
            assert name not in ("src", "srcset", "action", "data") and not name.startswith("on"), (tag, name)
            if name == "id": self.ids.append(value)
            if name == "href":
                assert value.startswith("#"), value
                self.links.append(unquote(value[1:]))
    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, (tag, self.getpos())
reader = Reader()
text = open(sys.argv[1], encoding="utf-8").read()
reader.feed(text)
reader.close()
assert not reader.open, reader.open
assert len(reader.ids) == len(set(reader.ids)), reader.ids
assert set(reader.links) <= set(reader.ids), set(reader.links) - set(reader.ids)
assert "url(http" not in text and "@import" not in text and "://" not in text
print("well-formed,", len(reader.links), "links")
)py";

TEST_CASE("HTML: one well-formed page that fetches nothing") {
  CHECK(python(kReader, html_report(test_records("records_certified"))) == "well-formed, 0 links\n");
  CHECK(python(kReader, html_report(test_records("records_failing"))) == "well-formed, 8 links\n");
  CHECK(python(kReader, html_report(test_records("records_incomplete"))) == "well-formed, 0 links\n");
  CHECK(python(kReader, html_report(Records{})) == "well-formed, 0 links\n");
}

TEST_CASE("every report names the conventions that were declared") {
  Records records = test_records("records_certified");
  CHECK_FALSE(contains(html_report(records), "declared conventions"));
  records.run.conventions.empty_lse_is_positive = true;
  records.run.conventions.determinism = {"d0", "d1"};
  const std::string line = "under declared conventions: empty_lse +inf";
  CHECK(contains(html_report(records), line));
  CHECK(contains(html_report(records), "empty_lse +inf, determinism d0 d1"));
  CHECK(contains(certificate(records).line, line));  // with which the console ends
  CHECK(contains(markdown_report(records), "under declared conventions: empty"));
  CHECK(contains(markdown_report(records), "|Declares|"));
}

TEST_CASE("HTML: the verdict stands at the top") {
  CHECK(contains(html_report(test_records("records_certified")), "<span class=\"verdict\">CERTIFIED</span>"));
  CHECK(contains(html_report(test_records("records_failing")), "<span class=\"verdict\">NOT CERTIFIED</span>"));
  Records subset = test_records("records_certified");
  subset.run.subset = true;
  CHECK(contains(html_report(subset), "<span class=\"verdict\">NOT CERTIFIED · SUBSET</span>"));
}

TEST_CASE("HTML: what is under test cannot write into the page") {
  Records records = test_records("records_failing");
  const std::string attack = "\"><script>alert(1)</script>\x1B[31m\n";
  records.run.backend = attack;
  records.run.options = {{attack, attack}};
  for (CaseRecord& record : records.cases) {
    record.reason = record.about = record.repro = record.identity = attack;
    record.id += attack;
    record.family = attack;
    record.kills = record.clauses = record.profiles = {attack};
    record.seconds[attack] = 1;
    for (Finding& finding : record.findings) {
      finding.kind = finding.clause = finding.tensor = finding.index_names = finding.text = attack;
    }
  }
  const std::string page = html_report(records);
  CHECK(occurrences(page, "<script") == 1);
  CHECK_FALSE(contains(page, "alert(1)</script>"));
  CHECK_FALSE(contains(page, "\x1B"));
  CHECK(python(kReader, page).starts_with("well-formed"));
}

TEST_CASE("HTML: a failing case shows its findings, its map and the command") {
  const std::string page = html_report(test_records("records_failing"));
  CHECK(contains(page, "step 2, output[sequence 0, token 3, head 1, channel 7]"));
  CHECK(contains(page, "<dt>wanted</dt><dd>0.5</dd>"));
  CHECK(contains(page, "attest certify --backend mine --case with_cache/append_chunks_7_5_4"));
  CHECK(occurrences(page, "<figure class=\"map\">") == 5);
}

ErrorMap map_of(int64_t sequences, int64_t heads, int64_t positions, double ratio) {
  ErrorMap map;
  map.sequences = sequences;
  map.heads = heads;
  map.positions = positions;
  map.ratio.assign(static_cast<size_t>(sequences * heads * positions), ratio);
  return map;
}

TEST_CASE("an error map has a panel per head, and a class of colour per ratio") {
  ErrorMap map = map_of(2, 2, 3, 0.3);
  map.step = 3;
  map.ratio[0] = 1.0;                                       // right: the limit itself
  map.ratio[1] = 1.0001;                                    // wrong
  map.ratio[2] = -1;                                        // not checked
  map.ratio[3] = std::numeric_limits<double>::quiet_NaN();  // worse than anything
  const std::string figure = error_map_figure(map);
  CHECK(contains(figure, "Step 3: error / allowed"));
  CHECK(contains(figure, "head 0<tspan"));
  CHECK(contains(figure, "head 1<tspan"));
  CHECK_FALSE(contains(figure, "head 2<tspan"));
  for (const char* css : {"r3", "r4", "r9", "unchecked"}) {
    CAPTURE(css);
    CHECK(occurrences(figure, fmt::format("<path class=\"{}\"", css)) == 1);
  }
  CHECK(occurrences(figure, "<path class=\"r2\"") == 2);  // in both panels
  CHECK_FALSE(contains(figure, "<path class=\"r8\""));
  CHECK(contains(figure, "the largest is NaN or infinite"));
}

TEST_CASE("a long error map keeps the worst of the positions that share a cell") {
  ErrorMap map = map_of(1, 1, 8192, 0.001);
  map.ratio[5000] = 50;
  const std::string figure = error_map_figure(map);
  CHECK(contains(figure, "A cell is the worst of 32 positions."));
  CHECK(occurrences(figure, "<path class=\"r6\"") == 1);
  CHECK(figure.size() < 6000);  // neighbours of one colour are one rectangle
}

TEST_CASE("many heads: the worst are shown") {
  ErrorMap map = map_of(2, 40, 4, 0.001);
  map.ratio[static_cast<size_t>(39 * 4)] = 7;
  const std::string figure = error_map_figure(map);
  CHECK(contains(figure, "The 32 worst of 40 heads are shown."));
  CHECK(contains(figure, "head 39<tspan"));
  CHECK_FALSE(contains(figure, "head 31<tspan"));
}

TEST_CASE("with one sequence the heads are rows of one panel") {
  const std::string figure = error_map_figure(map_of(1, 14, 40, 0.5));
  CHECK(contains(figure, "a row per head"));
  CHECK_FALSE(contains(figure, "head 0<tspan"));
}

TEST_CASE("an empty error map is no picture") {
  CHECK(error_map_figure(ErrorMap{}).empty());
}

TEST_CASE("Markdown: the certificate, the tables and what failed") {
  const std::string page = markdown_report(test_records("records_failing"));
  CHECK(
      page.starts_with("# attest: mine\n\n**NOT CERTIFIED  mine 1.0 · core: 8 of 26 cases do not pass, first "
                       "no_cache/ragged_nan_row · suite 0.1.0 (3f2a9c01b7d4)**\n"));
  CHECK(contains(page, "|rope|1|0|1|0|not claimed: rotary position embedding is not implemented|\n"));
  CHECK(contains(page, "|with_cache|5|3|1|0|1|0|3.1e+05|\n"));
  CHECK(contains(page, "- `with_cache/poison_huge` crash: step 0: during run"));
  CHECK(contains(page, "`attest certify --backend mine --case stress/steps_hang`"));
  CHECK_FALSE(contains(page, "<with>"));
  CHECK_FALSE(contains(markdown_report(test_records("records_certified")), "did not pass"));
}

}  // namespace
}  // namespace attest
