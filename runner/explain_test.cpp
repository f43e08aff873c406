// SPDX-License-Identifier: Apache-2.0
// What a diagnosis says in a terminal, in HTML, Markdown and the records.
#include "runner/explain.h"

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include "runner/report_console.h"
#include "runner/report_html.h"
#include "runner/report_junit.h"
#include "runner/report_markdown.h"
#include "runner/report_test_support.h"

using namespace attest;
using Catch::Matchers::ContainsSubstring;

namespace {

Explanation explanation(const std::vector<std::vector<std::string>>& bugs) {
  Explanation one;
  one.bugs = bugs;
  one.whole = true;
  one.explained = 14;
  one.cases = {"window/left_0"};
  one.clauses = {"M3", "M5"};
  one.portraits.push_back({"causal-plus1",
                           "mask",
                           "Query i sees one key more.",
                           "A key leaks in.",
                           "The comparison.",
                           {"https://github.com/some/thing/issues/1", "javascript:alert(1)"}});
  return one;
}

Diagnosis diagnosis() {
  Diagnosis made;
  made.verdict = Diagnosis::Verdict::explained;
  made.explanations.push_back(explanation({{"causal-plus1"}}));
  made.failing = 15;
  made.compared = 14;
  made.passing = 38;
  made.predictions = 100;
  made.seconds = 0.5;
  made.line = claim_text(made.explanations[0], made);
  made.notes = {"1 failing case is set aside: the verdict is crash"};
  made.trace = "step 0\n  head 0\n";
  return made;
}

Diagnosis read_back(const Json& json) {
  Fields fields(json, "record");
  fields.required<std::string>("record");
  Diagnosis made = diagnosis_from_json(fields);
  fields.finish();
  return made;
}

}  // namespace

TEST_CASE("bugs are named with those that nothing tells from them") {
  CHECK(bugs_text(explanation({{"a"}})) == "a");
  CHECK(bugs_text(explanation({{"a"}, {"b"}})) == "a or b");
  CHECK(bugs_text(explanation({{"a"}, {"b"}, {"c"}})) == "a, b or c");
  CHECK(bugs_text(explanation({{"a", "b"}})) == "a together with b");
  CHECK(bugs_text(explanation({{"a", "b"}, {"a", "c"}})) == "a together with b or c");
  CHECK(bugs_text(explanation({{"a", "c"}, {"b", "c"}})) == "c together with a or b");
  CHECK(bugs_text(explanation({{"a", "b"}, {"c", "d"}})) == "a together with b or c together with d");
}

TEST_CASE("the claim counts what was explained and what speaks against it") {
  Diagnosis made = diagnosis();
  CHECK(made.line ==
        "causal-plus1 explains 14 of 14 failing cases (compared, of 15), contradicted by none of 38 passing "
        "ones");
  made.failing = 14;
  made.explanations[0].unclear = 2;
  made.explanations[0].explained = 12;
  made.passing = 0;
  CHECK(claim_text(made.explanations[0], made) ==
        "causal-plus1 explains 12 of 14 failing cases (2 too near to tell), contradicted by none");
}

TEST_CASE("the text says where to look") {
  const std::string brief = diagnosis_text(diagnosis(), false, Detail::brief);
  CHECK_THAT(brief, ContainsSubstring("Diagnosis\n  causal-plus1 explains 14 of 14"));
  CHECK_THAT(brief, ContainsSubstring("area mask · clauses M3, M5 · seen in window/left_0"));
  CHECK_THAT(brief, ContainsSubstring("Look for: The comparison."));
  CHECK_THAT(brief, ContainsSubstring("note: 1 failing case is set aside"));
  CHECK_THAT(brief, !ContainsSubstring("github") && !ContainsSubstring("head 0"));
  const std::string full = diagnosis_text(diagnosis(), false, Detail::full);
  CHECK_THAT(full, ContainsSubstring("https://github.com/some/thing/issues/1") && ContainsSubstring("  head 0\n"));
  CHECK(full.find('\x1b') == std::string::npos);
}

TEST_CASE("a part is never told as the whole") {
  Diagnosis made = diagnosis();
  made.verdict = Diagnosis::Verdict::unexplained;
  made.line = "no known bug explains this";
  Explanation& part = made.explanations[0];
  part.whole = false;
  part.explained = 3;
  part.contradicted = 2;
  part.against = "a/b: it has 1, the bug makes 2";
  for (const std::string& text :
       {diagnosis_text(made, false, Detail::full), diagnosis_markdown(made), diagnosis_html(made)}) {
    CHECK_THAT(text, ContainsSubstring("no known bug explains this"));
    CHECK_THAT(text, ContainsSubstring("part at best: causal", Catch::CaseSensitive::No));
    CHECK_THAT(text, !ContainsSubstring("contradicted by none"));
  }
}

TEST_CASE("a diagnosis in the records is read back as it was") {
  const Json json = to_json(diagnosis());
  CHECK(to_json(read_back(json)) == json);
  Json empty = json;
  empty["explanations"] = Json::array();
  CHECK_THROWS_WITH(read_back(empty), ContainsSubstring("explanations"));
  Json odd = json;
  odd["mood"] = "good";
  CHECK_THROWS_WITH(read_back(odd), ContainsSubstring("mood"));
  odd = json;
  odd["verdict"] = "sure";
  CHECK_THROWS_WITH(read_back(odd), ContainsSubstring("verdict"));
}

TEST_CASE("reports show the diagnosis, and no text of it can break them") {
  Records records = test_records("records_failing");
  records.diagnosis = diagnosis();
  records.diagnosis->explanations[0].portraits[0].fault = "<script>alert(1)</script> | \x1b[31m";
  records.diagnosis->trace = "<b>\n";
  const std::string html = html_report(records);
  CHECK_THAT(html, ContainsSubstring("causal-plus1 explains 14 of 14"));
  CHECK_THAT(html, ContainsSubstring("href=\"https://github.com/some/thing/issues/1\""));
  CHECK_THAT(html, ContainsSubstring("&lt;script&gt;alert(1)") && ContainsSubstring("&lt;b&gt;"));
  CHECK_THAT(html, !ContainsSubstring("<script>alert(1)") && !ContainsSubstring("href=\"javascript"));
  CHECK_THAT(markdown_report(records),
             ContainsSubstring("## Diagnosis") && ContainsSubstring("**causal-plus1 explains"));
  const std::string console = console_summary(records, false);
  CHECK(console.find("Diagnosis") < console.find("NOT CERTIFIED"));
  CHECK_THAT(junit_report(records), ContainsSubstring("causal-plus1 explains 14 of 14"));
}
