// SPDX-License-Identifier: Apache-2.0
// The evaluation in double against every golden of a small case: two readings of the clauses that share no code.
#include "runner/trace.h"

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <cmath>

#include "cases/suite.h"
#include "runner/subjects.h"

using namespace attest;

namespace {

/// Whether a case is small enough to be evaluated without haste.
bool is_small(const Case& c, const Timeline& timeline) {
  double products = 0;
  for (const Moment& moment : timeline) {
    for (const Row& row : moment.rows) {
      products += static_cast<double>((row.end - row.begin) * c.problem.query_heads *
                                      (c.problem.qk_head_dim + c.problem.v_head_dim));
    }
  }
  return products < 1e6;
}

}  // namespace

TEST_CASE("The evaluation in double agrees with the goldens") {
  const Suite suite = load_suite(find_suite(""));
  Subjects subjects(suite);
  int64_t cases = 0, elements = 0;
  for (const Case& c : suite.cases) {
    const Timeline timeline = play(c);
    if (!is_small(c, timeline)) continue;
    const Subject subject = subjects.load(c);
    const Inputs inputs = generate_inputs(c, timeline);
    Evaluation evaluation(c, timeline, inputs);
    double worst = 0;
    for (size_t s = 0; s < timeline.size(); ++s) {
      const GoldenStep& golden = subject.golden.steps[s];
      for (size_t r = 0; 2 * r < golden.rows.size(); ++r) {
        const auto row = std::find_if(timeline[s].rows.begin(), timeline[s].rows.end(), [&](const Row& one) {
          return one.sequence == golden.rows[2 * r] && one.index == golden.rows[2 * r + 1];
        });
        REQUIRE(row != timeline[s].rows.end());
        const std::vector<double> output = evaluation.output(s, *row);
        for (size_t d = 0; d < output.size(); ++d, ++elements) {
          const size_t at = r * output.size() + d;
          const double error = std::fabs(output[d] - golden.output.value[at]);
          if (error > 0) worst = std::max(worst, error / static_cast<double>(golden.output.allowed[at]));
        }
        for (int64_t h = 0; h < c.problem.query_heads && c.problem.lse; ++h) {
          const size_t at = r * static_cast<size_t>(c.problem.query_heads) + static_cast<size_t>(h);
          const double lse = evaluation.head(s, *row, h).lse, wanted = golden.lse.value[at];
          if (lse == wanted) continue;
          worst = std::max(worst, std::fabs(lse - wanted) / static_cast<double>(golden.lse.allowed[at]));
        }
      }
    }
    ++cases;
    INFO(c.id);
    // Double against a tolerance for float: far below it.
    CHECK(worst < 0.25);
  }
  CHECK(cases > 500);
  CHECK(elements > 100000);
}

TEST_CASE("A trace says which keys a decode step sees, what they weigh and what came out") {
  const Suite suite = load_suite(find_suite(""));
  Subjects subjects(suite);
  const auto script_of = [&](const std::string& id) {
    const Case* c = find_case(suite, id);
    REQUIRE(c != nullptr);
    return c;
  };
  const Case& c = *script_of("with_cache/append_prefill_and_decode");
  const Timeline timeline = play(c);
  const Inputs inputs = generate_inputs(c, timeline);
  const Subject subject = subjects.load(c);
  const std::string text = trace({&c, &timeline, &inputs, &subject.golden}, nullptr, {});
  CHECK(text.find("with_cache/append_prefill_and_decode") == 0);
  CHECK(text.find("past ") != std::string::npos);
  CHECK(text.find("sees [0, ") != std::string::npos);
  CHECK(text.find("1.000") != std::string::npos);
  CHECK(text.find("error/allowed") == std::string::npos);  // there is nothing to compare
}
