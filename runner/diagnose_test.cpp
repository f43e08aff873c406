// SPDX-License-Identifier: Apache-2.0
// The rules of a diagnosis, on a world made by hand: which bug shows in which case is a table.
#include "runner/diagnose.h"

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <functional>
#include <map>

#include "runner/comparison.h"

using namespace attest;
using Catch::Matchers::ContainsSubstring;
using Catch::Matchers::StartsWith;

namespace {

Bug bug(const std::string& id, const std::string& group = "") {
  Bug one;
  one.id = id;
  one.area = "area of " + id;
  one.fault = "Does " + id + ".";
  one.symptom = "Wrong.";
  one.look_for = "The place of " + id + ".";
  one.group = group;
  return one;
}

/// Cases "f/0", "f/1", ... fail and "p/0", ... pass. What a hypothesis makes of them is asked of a function.
struct World : Predictions {
  using Rule = std::function<Match(const Hypothesis&, size_t)>;

  World(size_t failing, size_t passing, Rule rule_) : rule(std::move(rule_)) {
    for (size_t i = 0; i < failing + passing; ++i) {
      Exhibit one;
      one.failed = i < failing;
      one.id = one.failed ? "f/" + std::to_string(i) : "p/" + std::to_string(i - failing);
      one.cost = 0.001 * static_cast<double>(i + 1);
      one.clauses = {"A" + std::to_string(i)};
      exhibits.push_back(one);
    }
    for (const char* id : {"one", "two", "three", "four"}) catalogue.bugs.push_back(bug(id));
  }

  std::vector<Agreement> answer(const std::vector<Question>& questions) override {
    std::vector<Agreement> list;
    for (const Question& question : questions) {
      if (asked == patience) break;
      ++asked;
      Agreement agreement;
      agreement.match = rule(question.hypothesis, question.exhibit);
      agreement.gain = gain;
      agreement.residual = residual[question.hypothesis.bugs.front()];
      if (agreement.match == Match::differs) agreement.where = "somewhere else";
      list.push_back(agreement);
    }
    return list;
  }
  Diagnosis diagnosis() { return diagnose(catalogue, exhibits, *this, {}); }

  Rule rule;
  Catalogue catalogue;
  std::vector<Exhibit> exhibits;
  std::map<std::string, double> residual;
  double gain = 1000;
  size_t asked = 0, patience = 1000000;
};

bool is(const Hypothesis& hypothesis, const std::vector<std::string>& bugs) {
  return hypothesis.bugs == bugs;
}

using Names = std::vector<std::vector<std::string>>;

}  // namespace

TEST_CASE("The bug that explains all failing cases and shows in no passing one is named") {
  World world(6, 5, [](const Hypothesis& hypothesis, size_t c) {
    if (is(hypothesis, {"two"})) return c < 6 ? Match::agrees : Match::silent;
    return c % 2 == 0 ? Match::differs : Match::silent;
  });
  const Diagnosis diagnosis = world.diagnosis();
  CHECK(diagnosis.verdict == Diagnosis::Verdict::explained);
  REQUIRE(diagnosis.explanations.size() == 1);
  const Explanation& first = diagnosis.explanations.front();
  CHECK(first.bugs == Names{{"two"}});
  CHECK(first.whole);
  CHECK(first.explained == 6);
  CHECK(first.contradicted == 0);
  CHECK(first.clauses == std::vector<std::string>{"A0"});
  CHECK(first.cases.front() == "f/0");
  REQUIRE(first.portraits.size() == 1);
  CHECK(first.portraits.front().look_for == "The place of two.");
  CHECK(diagnosis.line == "two explains 6 of 6 failing cases, contradicted by none of 5 passing ones");
  CHECK(diagnosis.notes.empty());
}

TEST_CASE("A passing case in which it would show clears a bug") {
  World world(4, 6, [](const Hypothesis& hypothesis, size_t c) {
    if (is(hypothesis, {"one"})) return c < 4 || c == 9 ? (c == 9 ? Match::differs : Match::agrees) : Match::silent;
    return Match::silent;
  });
  CHECK(world.diagnosis().verdict == Diagnosis::Verdict::unexplained);
  CHECK(world.diagnosis().explanations.empty());

  SECTION("and one that is too near to tell does not") {
    world.rule = [](const Hypothesis& hypothesis, size_t c) {
      if (is(hypothesis, {"one"})) return c < 4 ? Match::agrees : Match::unclear;
      return Match::silent;
    };
    CHECK(world.diagnosis().explanations.at(0).bugs == Names{{"one"}});
  }
}

TEST_CASE("Bugs that nothing tells apart are one explanation, and a nearer one goes first") {
  World world(5, 3, [](const Hypothesis& hypothesis, size_t c) {
    if (hypothesis.bugs.size() > 1 || c >= 5) return Match::silent;
    return is(hypothesis, {"one"}) || is(hypothesis, {"three"}) ? Match::agrees : Match::differs;
  });
  SECTION("equally near") {
    const Diagnosis diagnosis = world.diagnosis();
    REQUIRE(diagnosis.explanations.size() == 1);
    CHECK(diagnosis.explanations[0].bugs == Names{{"one"}, {"three"}});
    CHECK_THAT(diagnosis.line, StartsWith("one or three explains 5 of 5"));
  }
  SECTION("one of them exactly") {
    world.residual["one"] = 0.9;
    const Diagnosis diagnosis = world.diagnosis();
    REQUIRE(diagnosis.explanations.size() == 2);
    CHECK(diagnosis.explanations[0].bugs == Names{{"three"}});
    CHECK(diagnosis.explanations[1].bugs == Names{{"one"}});
  }
  SECTION("told apart by a failing case beyond the sample") {
    World large(60, 0, [](const Hypothesis& hypothesis, size_t c) {
      if (is(hypothesis, {"one"})) return Match::agrees;
      if (is(hypothesis, {"three"})) return c == 55 ? Match::differs : Match::agrees;
      return Match::silent;
    });
    CHECK(large.diagnosis().explanations.at(0).bugs == Names{{"one"}});
    CHECK(large.diagnosis().explanations.size() == 1);
  }
}

TEST_CASE("A group of the catalogue says how its bugs are told apart") {
  World world(3, 0, [](const Hypothesis& hypothesis, size_t) {
    return is(hypothesis, {"one"}) || is(hypothesis, {"two"}) ? Match::agrees : Match::silent;
  });
  world.catalogue.bugs[0].group = world.catalogue.bugs[1].group = "alike";
  world.catalogue.groups.push_back({"alike", {"one", "two"}, "Use more queries."});
  CHECK(world.diagnosis().explanations.at(0).apart == "Use more queries.");
  world.rule = [](const Hypothesis& hypothesis, size_t) {
    return is(hypothesis, {"one"}) ? Match::agrees : Match::differs;
  };
  CHECK_THAT(world.diagnosis().explanations.at(0).apart, ContainsSubstring("two"));
}

TEST_CASE("A bug that hangs on tiles is found in the variant that has the backend's") {
  World world(4, 2, [](const Hypothesis& hypothesis, size_t c) {
    if (!is(hypothesis, {"four"}) || c >= 4) return Match::silent;
    return hypothesis.variant == "tile_7" ? Match::agrees : Match::differs;
  });
  world.catalogue.correct = {{"tile_1", ""}, {"tile_7", ""}};
  const Diagnosis diagnosis = world.diagnosis();
  REQUIRE(diagnosis.explanations.size() == 1);
  CHECK(diagnosis.explanations[0].bugs == Names{{"four"}});
  CHECK(diagnosis.explanations[0].variant == "tile_7");
}

TEST_CASE("Two bugs at once are found if no single one explains all") {
  // "one" shows in even failing cases, "three" in those from 3 on; where both show the result is of its own.
  const auto rule = [](const Hypothesis& hypothesis, size_t c) {
    if (c >= 8) return Match::silent;
    const bool first = c % 2 == 0, second = c >= 3;
    if (is(hypothesis, {"one"})) return !first ? Match::silent : second ? Match::differs : Match::agrees;
    if (is(hypothesis, {"three"})) return !second ? Match::silent : first ? Match::differs : Match::agrees;
    if (is(hypothesis, {"one", "three"})) return Match::agrees;
    return hypothesis.bugs.size() == 1 ? Match::silent : Match::differs;
  };
  World world(8, 4, rule);
  world.exhibits.erase(world.exhibits.begin() + 1);  // a case that fails for no reason
  world.rule = [&](const Hypothesis& hypothesis, size_t c) { return rule(hypothesis, c == 0 ? 0 : c + 1); };
  const Diagnosis diagnosis = world.diagnosis();
  CHECK(diagnosis.verdict == Diagnosis::Verdict::explained);
  REQUIRE(!diagnosis.explanations.empty());
  CHECK(diagnosis.explanations[0].bugs == Names{{"one", "three"}});
  CHECK_THAT(diagnosis.line, StartsWith("one together with three explains 7 of 7 failing cases"));
  CHECK(diagnosis.explanations[0].portraits.size() == 2);
}

TEST_CASE("What no bug explains gets no name") {
  SECTION("noise") {
    World world(20, 20, [](const Hypothesis&, size_t c) { return c < 20 ? Match::differs : Match::silent; });
    const Diagnosis diagnosis = world.diagnosis();
    CHECK(diagnosis.verdict == Diagnosis::Verdict::unexplained);
    CHECK(diagnosis.explanations.empty());
    CHECK_THAT(diagnosis.line, StartsWith("no known bug explains this: 4 bugs"));
  }
  SECTION("an agreement that may be chance") {
    World world(2, 0, [](const Hypothesis& hypothesis, size_t) {
      return is(hypothesis, {"one"}) ? Match::agrees : Match::silent;
    });
    world.gain = 1.5;
    CHECK(world.diagnosis().verdict == Diagnosis::Verdict::unexplained);
  }
  SECTION("one bug beside something unknown is a part at best") {
    World world(6, 3, [](const Hypothesis& hypothesis, size_t c) {
      if (c >= 6) return Match::silent;
      if (is(hypothesis, {"two"})) return c < 4 ? Match::agrees : Match::silent;
      return hypothesis.bugs.size() == 1 ? Match::silent : Match::differs;
    });
    const Diagnosis diagnosis = world.diagnosis();
    CHECK(diagnosis.verdict == Diagnosis::Verdict::unexplained);
    REQUIRE(diagnosis.explanations.size() == 1);
    CHECK(diagnosis.explanations[0].bugs == Names{{"two"}});
    CHECK_FALSE(diagnosis.explanations[0].whole);
    CHECK_THAT(diagnosis_text(diagnosis, false, Detail::full),
               ContainsSubstring("a part at best: two explains 4 of 6 failing cases, and in 2 it would not show"));
  }
}

TEST_CASE("When the time is up, what was not seen is not claimed") {
  const auto rule = [](const Hypothesis& hypothesis, size_t c) {
    return is(hypothesis, {"one"}) && c < 30 ? Match::agrees : Match::silent;
  };
  World world(30, 0, rule);
  world.patience = 3;  // not even every bug on the first case
  const Diagnosis hasty = world.diagnosis();
  CHECK(hasty.verdict == Diagnosis::Verdict::unexplained);
  CHECK_THAT(hasty.notes.at(0), ContainsSubstring("the time"));

  World longer(30, 0, rule);
  longer.patience = 14;
  const Diagnosis some = longer.diagnosis();
  if (some.verdict == Diagnosis::Verdict::explained) CHECK(some.compared < 30);
}

TEST_CASE("Without a failing case that has results there is nothing to compare") {
  World world(0, 3, [](const Hypothesis&, size_t) { return Match::silent; });
  CHECK(world.diagnosis().verdict == Diagnosis::Verdict::nothing);
  CHECK(world.asked == 0);
}

// ---- agreement of results -------------------------------------------------------------------------------------------

namespace {

/// A prefill of 3 tokens without a cache; a golden that says 1 everywhere with an allowed error of 0.125.
struct Bench {
  explicit Bench(const std::string& poison = "nan")
      : c(case_from_json(
            Json::parse(R"({"id": "one", "about": "", "clauses": ["A6"], "kills": [], "problem": {"query_heads": 2,
          "kv_heads": 1, "head_dim": 4, "causal": "bottom_right"}, "inputs": {"recipe": "gaussian", "poison": ")" +
                        poison + R"("}, "steps": [{"attend": 3}]})"),
            "family", "test")),
        timeline(play(c)),
        inputs(generate_inputs(c, timeline)) {
    GoldenStep& step = golden.steps.emplace_back();
    for (int32_t i = 0; i < 3; ++i) step.rows.insert(step.rows.end(), {0, i});
    step.output = {{}, std::vector<double>(24, 1), std::vector<float>(24, 0.125F), std::vector<Mark>(24)};
  }
  /// Results of 1 but for these elements; failing.
  static Performance with(const std::map<size_t, float>& elements) {
    Performance performance;
    StepOutcome& outcome = performance.outcomes.emplace_back();
    outcome.output = {{1, 3, 2, 4}, std::vector<float>(24, 1)};
    for (const auto& [at, x] : elements) outcome.output.data[at] = x;
    performance.status = Status::fail;
    Finding& finding = performance.findings.emplace_back();
    finding.kind = "value";
    finding.ratio = 100;
    return performance;
  }
  Agreement compare(const Performance& actual, const Performance& prediction, const Performance* other = nullptr,
                    bool random = false) const {
    return attest::compare({&c, &timeline, &inputs, &golden}, actual, {}, {prediction, other, random});
  }

  Case c;
  Timeline timeline;
  Inputs inputs;
  Golden golden;
};

}  // namespace

TEST_CASE("Results agree if they are wrong in the same way within what rounding may do") {
  const Bench bench;
  const auto wrong = Bench::with({{5, 9}, {6, -3}});
  CHECK(bench.compare(wrong, wrong).match == Match::agrees);
  const Agreement near = bench.compare(Bench::with({{5, 9.1F}, {6, -3}, {7, 1.1F}}), wrong);
  CHECK(near.match == Match::agrees);
  CHECK(near.wrong == 2);
  CHECK(near.matched == 2);
  CHECK(near.gain > 20);
  CHECK(bench.compare(Bench::with({{5, 9}, {6, 1}}), wrong).match == Match::differs);
  CHECK(bench.compare(Bench::with({{5, 9}, {6, -3}, {20, 4}}), wrong).match == Match::differs);
  CHECK_THAT(bench.compare(Bench::with({{5, 9}}), wrong).where, ContainsSubstring("output[0, 0, 1, 2]"));
  CHECK(bench.compare(Bench::with({{5, 9}, {6, -3.6F}}), wrong).match == Match::unclear);

  SECTION("a prediction that passes says nothing") {
    Performance right = Bench::with({});
    right.status = Status::pass;
    CHECK(bench.compare(wrong, right).match == Match::silent);
  }
  SECTION("a small error must not be explained by another small error") {
    CHECK(bench.compare(Bench::with({{3, 1.2F}}), Bench::with({{4, 1.2F}})).match != Match::agrees);
    CHECK(bench.compare(Bench::with({{3, 1.2F}}), Bench::with({{3, 1.21F}})).match == Match::agrees);
  }
}

TEST_CASE("What another rounding moves is no difference, unless it is noise of another kind") {
  const Bench bench;
  const auto prediction = Bench::with({{0, 3}, {1, 5}, {2, 4}, {3, -2}}),
             other = Bench::with({{0, 3.2F}, {1, 4.8F}, {2, 4}, {3, -2}});
  const auto actual = Bench::with({{0, 3.9F}, {1, 4.2F}, {2, 4}, {3, -2}});
  CHECK(bench.compare(actual, prediction).match != Match::agrees);
  CHECK(is_near(bench.compare(actual, prediction)));
  CHECK(bench.compare(actual, prediction, &other).match == Match::agrees);
  // Everything moves by a little, and the backend is wrong in one place only.
  std::map<size_t, float> noise, noise_too;
  for (size_t e = 0; e < 24; ++e) {
    noise[e] = e % 2 == 0 ? 1.4F : 0.6F;
    noise_too[e] = e % 3 == 0 ? 1.4F : 0.6F;
  }
  const auto everywhere = Bench::with(noise), again = Bench::with(noise_too);
  CHECK(bench.compare(Bench::with({{7, 3}}), everywhere, &again).match != Match::agrees);
}

TEST_CASE("Results that change from run to run are compared by their size") {
  const Bench bench;
  const auto one = Bench::with({{0, 3}, {9, -4}, {17, 2}}), two = Bench::with({{1, 4}, {5, -2}, {22, 5}});
  CHECK(bench.compare(Bench::with({{2, -3}, {11, 4}}), one, &two, true).match == Match::agrees);
  CHECK(bench.compare(Bench::with({{2, -300}, {11, 4}}), one, &two, true).match != Match::agrees);
  CHECK(bench.compare(Bench::with({{2, 1.2F}}), one, &two, true).match != Match::agrees);
  CHECK(is_repeated(one, one));
  CHECK_FALSE(is_repeated(one, two));
}

TEST_CASE("NaN agrees with NaN, and what was not written with what was not written") {
  const Bench bench;
  const auto nan = std::numeric_limits<float>::quiet_NaN();
  const auto unwritten = std::bit_cast<float>(kUnwritten);
  CHECK(bench.compare(Bench::with({{5, nan}}), Bench::with({{5, -nan}})).match == Match::agrees);
  CHECK(bench.compare(Bench::with({{5, nan}}), Bench::with({{5, 3e38F}})).match == Match::agrees);
  CHECK(bench.compare(Bench::with({{5, 7}}), Bench::with({{5, nan}})).match == Match::differs);
  CHECK(bench.compare(Bench::with({{5, unwritten}}), Bench::with({{5, unwritten}})).match == Match::agrees);
  // What comes of huge poison hangs on the order of sums.
  CHECK(Bench("huge").compare(Bench::with({{5, 7}}), Bench::with({{5, nan}})).match == Match::unclear);
}

TEST_CASE("A status, the end of a case and bits that change have to be the same") {
  const Bench bench;
  const auto wrong = Bench::with({{5, 9}});
  Performance refused = Bench::with({{5, 9}});
  refused.outcomes[0].status = ATTEST_INVALID;
  CHECK(bench.compare(wrong, refused).match == Match::differs);
  CHECK(bench.compare(refused, refused).match == Match::agrees);
  Performance changing = Bench::with({});
  changing.findings[0].kind = "bitwise";
  CHECK(bench.compare(wrong, changing).match == Match::differs);
  CHECK(bench.compare(changing, changing).match == Match::agrees);
}

TEST_CASE("A pass contradicts what would show clearly") {
  const Bench bench;
  Performance prediction = Bench::with({{5, 9}});
  CHECK(compare_with_pass(bench.c, prediction).match == Match::differs);
  prediction.findings[0].ratio = 3;
  CHECK(compare_with_pass(bench.c, prediction).match == Match::unclear);
  prediction.status = Status::pass;
  CHECK(compare_with_pass(bench.c, prediction).match == Match::silent);
  Performance poisoned = Bench::with({});
  poisoned.findings[0].kind = "nan";
  CHECK(compare_with_pass(bench.c, poisoned).match == Match::differs);
  CHECK(compare_with_pass(Bench("huge").c, poisoned).match == Match::unclear);
}
