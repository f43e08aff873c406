// SPDX-License-Identifier: Apache-2.0
// Sets of the challenge's bugs are found again from what they make of a pack. That they are what the challenge's files
// do is tested with those files (grade_corpus_test.py).
#include "runner/challenge_bugs.h"

#include <catch2/catch_test_macros.hpp>
#include <cmath>

#include "runner/pack.h"

namespace {

using namespace attest;

const std::filesystem::path kRoot = ATTEST_SOURCE_DIR;

const Pack& pack() {
  static const Pack made = [] {
    const std::string secret = "a secret of the tests, 32 bytes.";
    return make_pack(std::as_bytes(std::span(secret)), kRoot / "cases/challenge/test_cases.json");
  }();
  return made;
}

unsigned bits(const std::vector<int>& places) {
  unsigned set = 0;
  for (const int place : places) set |= 1U << (place - 1);
  return set;
}

/// A submission with these bugs, as it would be played.
struct Submission {
  std::vector<Timeline> timelines;
  std::vector<std::vector<StepOutcome>> outcomes;
  std::vector<PlayedPart> parts;

  explicit Submission(unsigned bugs) {
    const size_t count = pack().cases.size();
    timelines.resize(count);
    outcomes.resize(count);
    for (size_t i = 0; i < count; ++i) {
      const PackCase& one = pack().cases[i];
      timelines[i] = play(*one.c);
      PlayedPart part{one.c.get(), &timelines[i], one.inputs.get(), &outcomes[i]};
      part.passed = true;
      const auto made = challenge_outputs(part, bugs);
      for (size_t s = 0; s < made.size() && part.passed; ++s) {
        StepOutcome& outcome = outcomes[i].emplace_back();
        if (timelines[i][s].step.kind != StepKind::attend) continue;
        if (!made[s]) {
          outcome.status = ATTEST_ERROR;
          outcome.message = bugs == bits({10}) ? "new_cache[\"key\"]: got a shape" : "RuntimeError: sizes";
          part.passed = false;
          continue;
        }
        outcome.output.data = *made[s];
        part.passed = is_right(one.golden.steps[s], outcome.output.data);
      }
      parts.push_back(part);
    }
  }

  static bool is_right(const GoldenStep& golden, const std::vector<float>& output) {
    // Every row is checked, in order, so the golden has the output's layout.
    if (golden.output.value.size() != output.size()) return false;
    for (size_t i = 0; i < output.size(); ++i) {
      const double error = std::fabs(static_cast<double>(output[i]) - golden.output.value[i]);
      if (!(error <= 1e-3)) return false;
    }
    return true;
  }
};

std::vector<std::string> ids(const std::vector<int>& places) {
  std::vector<std::string> list;
  for (const int place : places) list.push_back(challenge_bug_ids()[static_cast<size_t>(place - 1)]);
  return list;
}

}  // namespace

TEST_CASE("the layer without a bug has the golden's outputs, and nothing to find") {
  const Submission right(0);
  for (const PlayedPart& part : right.parts) {
    INFO(part.c->id);
    CHECK(part.passed);
  }
  CHECK_FALSE(find_challenge_bugs(load_catalogue(kRoot), right.parts).has_value());
}

TEST_CASE("every bug that does not draw lots is found again, alone and with others") {
  const Catalogue catalogue = load_catalogue(kRoot);
  const std::vector<std::vector<int>> sets{{1},    {2},    {3},    {4},       {5},       {6},         {7},
                                           {8},    {10},   {11},   {1, 6},    {2, 5},    {6, 7},      {3, 11},
                                           {1, 8}, {7, 8}, {2, 7}, {1, 2, 5}, {1, 6, 8}, {1, 2, 5, 6}};
  for (const auto& places : sets) {
    const Submission submission(bits(places));
    const auto found = find_challenge_bugs(catalogue, submission.parts);
    INFO(fmt::format("{}", ids(places).front()));
    REQUIRE(found.has_value());
    const auto& bugs = found->explanations.front().bugs;
    CHECK(found->verdict == Diagnosis::Verdict::explained);
    // One that hides behind the others is not missed: without it they explain as much.
    const bool named = std::find(bugs.begin(), bugs.end(), ids(places)) != bugs.end();
    const bool smaller = bugs.front().size() < places.size();
    CHECK((named || smaller));
    if (places.size() == 1) CHECK(bugs.size() == 1);
  }
}

TEST_CASE("a search that runs out of time says so") {
  using Clock = std::chrono::steady_clock;
  const Catalogue catalogue = load_catalogue(kRoot);
  const Submission submission(bits({1, 6, 8}));
  const auto late = find_challenge_bugs(catalogue, submission.parts, Clock::now());
  REQUIRE(late.has_value());
  CHECK(late->verdict == Diagnosis::Verdict::unexplained);
  CHECK(late->line.starts_with("ran out of time: 0 of "));
  CHECK(late->explanations.empty());
  CHECK(late->failing > 0);
  const auto in_time = find_challenge_bugs(catalogue, submission.parts, Clock::now() + std::chrono::minutes(5));
  REQUIRE(in_time.has_value());
  CHECK(in_time->verdict == Diagnosis::Verdict::explained);
  // Nothing failed: nothing to run out of time with.
  CHECK_FALSE(find_challenge_bugs(catalogue, Submission(0).parts, Clock::now()).has_value());
}

TEST_CASE("what no set of bugs does is not explained") {
  const Catalogue catalogue = load_catalogue(kRoot);
  Submission submission(bits({6}));
  for (auto& outcomes : submission.outcomes) {
    for (StepOutcome& outcome : outcomes) {
      for (float& x : outcome.output.data) x += 0.25F;
    }
  }
  for (PlayedPart& part : submission.parts) part.passed = false;
  CHECK_FALSE(find_challenge_bugs(catalogue, submission.parts).has_value());

  Submission dead(bits({6}));
  for (PlayedPart& part : dead.parts) part.answered = part.passed = false;
  CHECK_FALSE(find_challenge_bugs(catalogue, dead.parts).has_value());

  Submission spoilt(bits({6}));
  spoilt.parts.front().cache_is_right = false;
  CHECK_FALSE(find_challenge_bugs(catalogue, spoilt.parts).has_value());
}
