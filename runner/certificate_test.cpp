// SPDX-License-Identifier: Apache-2.0
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <string>
#include <vector>

#include "runner/record.h"

namespace attest {
namespace {

using Names = std::vector<std::string>;

struct Given {
  Names profiles;
  Status status = Status::pass;
};

Records records_of(const std::vector<Given>& cases, const Names& asked = {}) {
  Records records;
  records.run.attest_version = "0.1.0";
  records.run.suite_hash = "3f2a9c01b7d4";
  records.run.backend = "mine";
  records.run.backend_version = "1.0";
  records.run.profiles = asked;
  for (const Given& given : cases) {
    CaseRecord record;
    record.id = fmt::format("family/case_{}", records.cases.size());
    record.profiles = given.profiles;
    record.status = given.status;
    if (given.status == Status::unsupported) record.reason = "no rotary embedding";
    records.cases.push_back(record);
  }
  const auto count = static_cast<int64_t>(cases.size());
  records.run.planned = count;
  records.end = EndRecord{count, 1.0};
  return records;
}

constexpr Status fail = Status::fail, no = Status::unsupported, crash = Status::crash;

TEST_CASE("the certificate of a run") {
  struct Row {
    std::string about;
    std::vector<Given> cases;
    Names asked;
    bool certified;
    std::string line;  // between the backend and the suite
  };
  const auto row = GENERATE(values<Row>({
      {"all pass", {{{"core"}}, {{"core"}}}, {}, true, "CERTIFIED  mine 1.0 · profiles core"},
      {"nothing run", {}, {}, false, "NOT CERTIFIED  mine 1.0 · no case was run, of 0 planned"},
      {"one fails",
       {{{"core"}}, {{"core"}, fail}, {{"core"}}},
       {},
       false,
       "NOT CERTIFIED  mine 1.0 · core: 1 of 3 cases does not pass, first family/case_1"},
      {"a crash is a failure",
       {{{"core"}, crash}},
       {},
       false,
       "NOT CERTIFIED  mine 1.0 · core: 1 of 1 case does not pass, first family/case_0"},
      {"untrusted is a failure",
       {{{"core"}, Status::untrusted}, {{"core"}, Status::timeout}},
       {},
       false,
       "NOT CERTIFIED  mine 1.0 · core: 2 of 2 cases do not pass, first family/case_0"},
      {"unsupported inside a claimed profile is a failure",
       {{{"core"}}, {{"core"}, no}},
       {},
       false,
       "NOT CERTIFIED  mine 1.0 · core: 1 of 2 cases does not pass, first family/case_1"},
      {"an unclaimed profile is left out",
       {{{"core"}}, {{"rope"}, no}, {{"rope"}, no}},
       {},
       true,
       "CERTIFIED  mine 1.0 · profiles core"},
      {"an unclaimed profile that was asked for",
       {{{"rope"}, no}},
       {"rope"},
       false,
       "NOT CERTIFIED  mine 1.0 · rope: not claimed, no rotary embedding"},
      {"asked for, and none of its cases there",
       {{{"core"}}},
       {"core", "rope"},
       false,
       "NOT CERTIFIED  mine 1.0 · rope: not claimed, none of its cases was run"},
      {"no profile claimed at all",
       {{{"core"}, no}},
       {},
       false,
       "NOT CERTIFIED  mine 1.0 · no profile is claimed: core: no rotary embedding"},
      {"no profile claimed, for one and the same reason",
       {{{"core"}, no}, {{"rope"}, no}},
       {},
       false,
       "NOT CERTIFIED  mine 1.0 · no profile is claimed: no rotary embedding"},
      {"several profiles", {{{"core"}}, {{"rope"}}}, {}, true, "CERTIFIED  mine 1.0 · profiles core, rope"},
      {"a case of two profiles may be declined by who lacks one",
       {{{"core"}}, {{"rope"}, no}, {{"core", "rope"}, no}},
       {},
       true,
       "CERTIFIED  mine 1.0 · profiles core"},
      {"and may not by who claims both",
       {{{"core"}}, {{"rope"}}, {{"core", "rope"}, no}},
       {},
       false,
       "NOT CERTIFIED  mine 1.0 · core: 1 of 2 cases does not pass, first family/case_2; rope: 1 of 2 cases does not "
       "pass, first "
       "family/case_2"},
      {"a wrong answer counts even where it could have been declined",
       {{{"core"}}, {{"rope"}, no}, {{"core", "rope"}, fail}},
       {},
       false,
       "NOT CERTIFIED  mine 1.0 · core: 1 of 2 cases does not pass, first family/case_2; rope: 2 of 2 cases do not "
       "pass, first family/case_1"},
      {"who has a feature in one dtype claims it, and may decline it in another",
       {{{"fp32", "rope"}, no}, {{"bf16", "rope"}}, {{"fp32", "core"}, no}},
       {},
       true,
       "CERTIFIED  mine 1.0 · profiles bf16, rope"},
      {"a profile of shared cases only is claimed by any of them",
       {{{"core"}}, {{"core", "lse"}}, {{"core", "lse"}, no}},
       {},
       false,
       "NOT CERTIFIED  mine 1.0 · core: 1 of 3 cases does not pass, first family/case_2; lse: 1 of 2 cases does not "
       "pass, first "
       "family/case_2"},
      {"a profile that was not asked for is not certified in passing",
       {{{"core"}}, {{"core", "rope"}}},
       {"core"},
       true,
       "CERTIFIED  mine 1.0 · profiles core"},
      {"cases of no profile certify nothing",
       {{{}}},
       {},
       false,
       "NOT CERTIFIED  mine 1.0 · no case of a profile was run"},
  }));
  CAPTURE(row.about);
  const Certificate result = certificate(records_of(row.cases, row.asked));
  CHECK(result.complete);
  CHECK(result.certified == row.certified);
  CHECK(result.line.substr(0, row.line.size()) == row.line);
  CHECK(result.line.find(" · suite 0.1.0 (3f2a9c01b7d4)", row.line.size()) == row.line.size());
}

TEST_CASE("a certified run's line ends in the number of cases that counted") {
  const Certificate result = certificate(records_of({{{"core"}}, {{"core"}}, {{"rope"}, no}}));
  CHECK(result.line == "CERTIFIED  mine 1.0 · profiles core · suite 0.1.0 (3f2a9c01b7d4) · 2 cases");
  CHECK(result.excused == std::vector<bool>{false, false, true});
}

TEST_CASE("profiles are counted without what is excused") {
  const Certificate result =
      certificate(records_of({{{"core"}}, {{"core"}, fail}, {{"core"}, no}, {{"rope"}, no}, {{"core", "rope"}, no}}));
  REQUIRE(result.profiles.size() == 2);
  const ProfileResult& core = result.profiles[0];
  CHECK(core.name == "core");
  CHECK(core.claimed);
  CHECK(core.cases == 3);
  CHECK(core.passed == 1);
  CHECK(core.failed == 1);
  CHECK(core.unsupported == 1);
  CHECK(core.reason == "family/case_1");
  const ProfileResult& rope = result.profiles[1];
  CHECK_FALSE(rope.claimed);
  CHECK_FALSE(rope.certified());
  CHECK(rope.unsupported == 2);
  CHECK(rope.reason == "no rotary embedding");
}

TEST_CASE("an unclaimed profile that was asked for excuses nothing") {
  CHECK(certificate(records_of({{{"rope"}, no}}, {"rope"})).excused == std::vector<bool>{false});
  CHECK(certificate(records_of({{{"core"}}, {{"core", "rope"}, no}}, {"core"})).excused ==
        std::vector<bool>{false, true});
}

TEST_CASE("a subset certifies nothing, whatever passes") {
  Records records = records_of({{{"core"}}});
  records.run.subset = true;
  const Certificate result = certificate(records);
  CHECK_FALSE(result.certified);
  CHECK(result.subset);
  CHECK(
      result.line ==
      "NOT CERTIFIED  mine 1.0 · certifies nothing: a subset was run, 1 of 1 cases pass · suite 0.1.0 (3f2a9c01b7d4)");
}

TEST_CASE("an incomplete run certifies nothing") {
  Records records = records_of({{{"core"}}, {{"core"}}});
  SECTION("without its end") {
    records.end.reset();
    CHECK(certificate(records).line.find(
              "incomplete: 2 of 2 planned cases have a record and the run's end is missing") != std::string::npos);
  }
  SECTION("with fewer cases than planned") {
    records.run.planned = 3;
    CHECK(certificate(records).line.find("incomplete: 2 of 3 planned cases have a record ·") != std::string::npos);
  }
  SECTION("with an end that counts others") {
    records.end->cases = 1;
  }
  const Certificate result = certificate(records);
  CHECK_FALSE(result.complete);
  CHECK_FALSE(result.certified);
}

TEST_CASE("the line names the conventions that a verdict was reached under") {
  Records records = records_of({{{"core"}}});
  records.run.conventions.lse_is_base_2 = records.run.conventions.empty_lse_is_positive = true;
  records.run.conventions.determinism = {"d0"};  // a promise, which its own profile is for
  CHECK(certificate(records).line ==
        "CERTIFIED  mine 1.0 · profiles core · under declared conventions: empty_lse +inf, lse_base 2 · suite 0.1.0 "
        "(3f2a9c01b7d4) · 1 case");
}

TEST_CASE("a backend cannot forge the line") {
  Records records = records_of({{{"core"}, no}});
  records.run.backend = "mine\nCERTIFIED  mine";
  records.cases[0].reason = "no\r\x1B[2KCERTIFIED";
  const std::string line = certificate(records).line;
  CHECK(line.substr(0, 13) == "NOT CERTIFIED");
  CHECK(line.find_first_of("\n\r\x1B") == std::string::npos);
}

}  // namespace
}  // namespace attest
