// SPDX-License-Identifier: Apache-2.0
#include "runner/explain_run.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <chrono>
#include <tuple>

#include "runner/places.h"
#include "runner/report_text.h"
#include "runner/trace.h"

namespace attest {
namespace {

using Clock = std::chrono::steady_clock;

// A backend that hangs shall not eat the time of a diagnosis.
constexpr std::chrono::milliseconds kLongestStep{3000};

/// Whether a failing case has results that a prediction can be held against. A wrong message has none.
bool has_results(const CaseRecord& record) {
  if (record.status != Status::fail && record.status != Status::error) return false;
  return std::any_of(record.findings.begin(), record.findings.end(),
                     [](const Finding& finding) { return finding.kind != "message"; });
}

/// Time of a case that is not the backend's: what making its inputs and judging it takes.
double cost(const CaseRecord& record) {
  double seconds = 0;
  for (const char* phase : {"inputs", "judge"}) {
    if (const auto found = record.seconds.find(phase); found != record.seconds.end()) seconds += found->second;
  }
  return seconds;
}

/// What could not be looked at, and why.
std::vector<std::string> set_aside(const std::vector<CaseRecord>& cases) {
  std::map<std::string, int64_t> counts;
  for (const CaseRecord& record : cases) {
    if (record.status == Status::pass || record.status == Status::unsupported || has_results(record)) continue;
    const bool words = record.status == Status::fail && !record.findings.empty();
    ++counts[words ? "only messages are wrong" : fmt::format("the verdict is {}", name(record.status))];
  }
  std::vector<std::string> notes;
  for (const auto& [why, count] : counts) {
    notes.push_back(
        fmt::format("{} {} set aside: {}", count_text(count, "failing case"), count == 1 ? "is" : "are", why));
  }
  return notes;
}

/// Of the cheapest failing case in which a cache goes on, else of the cheapest; empty without any.
std::string trace_simplest(const Inquiry& inquiry, const std::vector<Exhibit>& exhibits) {
  const Exhibit* chosen = nullptr;
  const auto rank = [&](const Exhibit& one) {
    const Material& made = inquiry.materials[one.id];
    const bool cached = made.subject.c->problem.cache != CacheKind::none && made.subject.c->alongside.empty();
    const auto attends = std::count_if(made.timeline.begin(), made.timeline.end(), [](const Moment& moment) {
      return moment.step.kind == StepKind::attend && moment.step.expect == Expect::ok;
    });
    // A prefill and some decode steps show more than a token or two.
    const bool shows = cached && attends >= 3 && made.timeline.back().max_total >= 5;
    return std::tuple(!shows, !cached, one.cost);
  };
  for (const Exhibit& one : exhibits) {
    if (one.failed && (chosen == nullptr || rank(one) < rank(*chosen))) chosen = &one;
  }
  if (chosen == nullptr) return "";
  const Performance actual = inquiry.actual(*chosen);
  return trace(inquiry.materials[chosen->id].script(), &actual, inquiry.conventions);
}

// Correct variants that change roundings and nothing else: a bug may hang on tiles and splits.
constexpr const char* kOtherRoundings = "dot_pairwise";
constexpr const char* kOtherHalves = "round_all";

std::string known(const Catalogue& catalogue, const char* id) {
  const auto is_it = [&](const Variant& variant) { return variant.id == id; };
  return std::any_of(catalogue.correct.begin(), catalogue.correct.end(), is_it) ? id : "";
}

}  // namespace

Diagnosis diagnose_cases(const Inquiry& inquiry, const DiagnosisChoice& choice) {
  const auto start = Clock::now();
  std::vector<Exhibit> exhibits;
  int64_t failing = 0;
  for (const CaseRecord& record : inquiry.cases) {
    const bool passed = record.status == Status::pass;
    if (!passed && record.status != Status::unsupported) ++failing;
    if (!passed && !has_results(record)) continue;
    exhibits.push_back({record.id, !passed, cost(record), record.profiles, record.clauses, record.kills});
  }
  MutantPredictions::Setup setup{.library = choice.library,
                                 .other_roundings = known(inquiry.catalogue, kOtherRoundings),
                                 .other_halves = known(inquiry.catalogue, kOtherHalves),
                                 .random = {},
                                 .conventions = inquiry.conventions,
                                 .jobs = choice.jobs,
                                 .seconds = choice.seconds};
  for (const Bug& bug : inquiry.catalogue.bugs) {
    if (bug.area == "determinism") setup.random.insert(bug.id);
  }
  MutantPredictions predictions(setup, exhibits, inquiry.materials, inquiry.actual);
  Diagnosis diagnosis = diagnose(inquiry.catalogue, exhibits, predictions, {.pairs = choice.pairs});
  diagnosis.failing = failing;
  // Only here it is known how many have failed, with results or without.
  if (diagnosis.verdict == Diagnosis::Verdict::explained) {
    diagnosis.line = claim_text(diagnosis.explanations.front(), diagnosis);
  }
  if (failing == 0) diagnosis.line = "no case fails: there is nothing to diagnose";
  if (const int64_t passed = predictions.passed_again(); passed > 0) {
    diagnosis.notes.push_back(fmt::format("{} passed when run again: the results are not the same from run to run",
                                          count_text(passed, "failing case")));
  }
  if (choice.trace) diagnosis.trace = trace_simplest(inquiry, exhibits);
  for (std::string& note : set_aside(inquiry.cases)) diagnosis.notes.push_back(std::move(note));
  diagnosis.seconds = std::chrono::duration<double>(Clock::now() - start).count();
  return diagnosis;
}

Performance perform(Executor& executor, const Subject& subject) {
  Performance performance;
  CaseRecord record = executor.run(subject, "", &performance.outcomes);
  performance.status = record.status;
  performance.reason = record.reason;
  performance.findings = std::move(record.findings);
  performance.worst_ratio = record.worst_ratio;
  return performance;
}

Diagnosis diagnose_run(const Suite& suite, Subjects& subjects, const BackendChoice& backend,
                       const Conventions& conventions, const std::vector<CaseRecord>& cases,
                       const DiagnosisChoice& choice) {
  Diagnosis missing;
  missing.verdict = Diagnosis::Verdict::unavailable;
  DiagnosisChoice chosen = choice;
  try {
    if (chosen.library.empty()) chosen.library = find_backend("mutants");
    const Catalogue catalogue = load_catalogue(suite.root);
    Materials materials(subjects.finder());
    BackendChoice again = backend;
    again.limit = std::min(again.limit, kLongestStep);
    Executor executor(again, subjects.finder());
    const auto actual = [&](const Exhibit& exhibit) { return perform(executor, subjects.find(exhibit.id)); };
    return diagnose_cases({catalogue, materials, cases, conventions, actual}, chosen);
  } catch (const Error& error) {
    missing.line = fmt::format("no diagnosis: {}", error.what());
  }
  return missing;
}

}  // namespace attest
