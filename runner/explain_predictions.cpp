// SPDX-License-Identifier: Apache-2.0
#include "runner/explain_predictions.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <type_traits>

#include "runner/forked.h"

namespace attest {
namespace {

using Clock = std::chrono::steady_clock;

// Questions about one case that a child answers in one go.
constexpr size_t kChunk = 16;
// A race is played this often; a mutant's does not depend on luck.
constexpr int kRounds = 2;

/// An agreement on its way from a child: all but its text, which follows.
struct Packet {
  size_t question;
  Match match;
  double residual, gain;
  int64_t wrong, matched;
};
static_assert(std::is_trivially_copyable_v<Packet>);

std::string pack(size_t question, const Agreement& agreement) {
  const Packet packet{question,       agreement.match, agreement.residual,
                      agreement.gain, agreement.wrong, agreement.matched};
  std::string bytes(sizeof packet, '\0');
  std::memcpy(bytes.data(), &packet, sizeof packet);
  return bytes + agreement.where.substr(0, 1000);
}

std::pair<size_t, Agreement> unpack(std::string_view bytes) {
  Packet packet{};
  std::memcpy(&packet, bytes.data(), sizeof packet);
  return {packet.question,
          {packet.match, packet.residual, packet.gain, packet.wrong, packet.matched,
           std::string(bytes.substr(sizeof packet))}};
}

}  // namespace

MutantPredictions::MutantPredictions(Setup setup, const std::vector<Exhibit>& exhibits, Materials& materials,
                                     Actual actual)
    : setup_(std::move(setup)),
      exhibits_(exhibits),
      materials_(materials),
      make_actual_(std::move(actual)),
      start_(Clock::now()),
      library_(std::make_unique<BackendLibrary>(setup_.library)) {}
MutantPredictions::~MutantPredictions() = default;

double MutantPredictions::left() const {
  return setup_.seconds - std::chrono::duration<double>(Clock::now() - start_).count();
}

const Performance* MutantPredictions::actual(size_t exhibit) const {
  const auto found = actual_.find(exhibit);
  return found == actual_.end() ? nullptr : &found->second;
}

void MutantPredictions::gather(const Question& question) {
  const Exhibit& exhibit = exhibits_[question.exhibit];
  const Case& c = *materials_[exhibit.id].subject.c;
  for (const std::string& id : c.alongside) materials_[id];
  for (const std::string& id : c.bitwise.with) materials_[id];
  if (!exhibit.failed) return;
  const auto [at, fresh] = actual_.try_emplace(question.exhibit);
  if (fresh) {
    at->second = make_actual_(exhibit);
    if (!at->second.failed()) ++passed_again_;
  }
  if (is_random(question.hypothesis) && !repeats_.contains(question.exhibit)) {
    repeats_[question.exhibit] = is_repeated(at->second, make_actual_(exhibit));
  }
}

bool MutantPredictions::is_random(const Hypothesis& hypothesis) const {
  return std::any_of(hypothesis.bugs.begin(), hypothesis.bugs.end(),
                     [&](const std::string& bug) { return setup_.random.contains(bug); });
}

Performance MutantPredictions::play_under(const Script& script, const Hypothesis& hypothesis, bool outcomes) {
  return rehearsal(hypothesis)
      .play(script, {.outcomes = outcomes, .partners = true, .rounds = kRounds},
            [&](const std::string& id) { return materials_[id].script(); });
}

/// Nothing predicts what comes by chance but its size, and that it is not the same again.
Agreement MutantPredictions::judge_random(const Script& script, const Question& question,
                                          const Performance& prediction) {
  if (repeats_.at(question.exhibit)) {
    Agreement agreement;
    agreement.match = Match::differs;
    agreement.where = "the backend's results are the same in each run";
    return agreement;
  }
  const Performance second = play_under(script, question.hypothesis, true);
  return compare(script, *actual(question.exhibit), setup_.conventions, {prediction, &second, true});
}

const Rehearsal& MutantPredictions::rehearsal(const Hypothesis& hypothesis) {
  auto& one = open_[hypothesis];
  if (!one) {
    std::map<std::string, std::string> options{{"bug", fmt::format("{}", fmt::join(hypothesis.bugs, ","))}};
    if (!hypothesis.variant.empty()) options["variant"] = hypothesis.variant;
    one = std::make_unique<Rehearsal>(*library_, options);
  }
  return *one;
}

Agreement MutantPredictions::judge(const Question& question) {
  const Exhibit& exhibit = exhibits_[question.exhibit];
  const Script script = materials_[exhibit.id].script();
  const Performance* const got = exhibit.failed ? actual(question.exhibit) : nullptr;
  const bool failed = got != nullptr && got->failed();
  const Performance prediction = play_under(script, question.hypothesis, failed);
  if (!failed) return compare_with_pass(*script.c, prediction);
  if (prediction.failed() && is_random(question.hypothesis)) return judge_random(script, question, prediction);
  Agreement agreement = compare(script, *got, setup_.conventions, {prediction});
  const std::string& other = is_half(script.c->problem.dtype) ? setup_.other_halves : setup_.other_roundings;
  if (!other.empty() && question.hypothesis.variant.empty() && is_near(agreement)) {
    const Performance second = play_under(script, {question.hypothesis.bugs, other}, true);
    agreement = compare(script, *got, setup_.conventions, {prediction, &second});
  }
  return agreement;
}

std::vector<Agreement> MutantPredictions::answer(const std::vector<Question>& questions) {
  std::map<size_t, std::vector<size_t>> by_exhibit;
  for (size_t q = 0; q < questions.size() && left() > 0; ++q) {
    gather(questions[q]);
    by_exhibit[questions[q].exhibit].push_back(q);
  }
  std::vector<std::vector<size_t>> tasks;
  for (const auto& [exhibit, list] : by_exhibit) {
    for (size_t begin = 0; begin < list.size(); begin += kChunk) {
      const size_t end = std::min(begin + kChunk, list.size());
      tasks.emplace_back(list.begin() + static_cast<ptrdiff_t>(begin), list.begin() + static_cast<ptrdiff_t>(end));
    }
  }
  std::stable_sort(tasks.begin(), tasks.end(), [](const auto& a, const auto& b) { return a.front() < b.front(); });

  std::vector<std::optional<Agreement>> answers(questions.size());
  Forked forked;
  forked.work = [&](size_t task, Stage& stage) {
    for (size_t part = 0; part < tasks[task].size() && left() > 0; ++part) {
      const size_t q = tasks[task][part];
      if (stage.enter(part)) stage.send(pack(q, judge(questions[q])));
    }
  };
  forked.received = [&](size_t, std::string_view message) {
    auto [q, agreement] = unpack(message);
    answers[q] = std::move(agreement);
  };
  forked.lost = [&](size_t task, size_t part, const std::string& how) {
    Agreement agreement;
    agreement.match = Match::differs;
    agreement.where = "the mutant was " + how;
    answers[tasks[task][part]] = std::move(agreement);
  };
  forked.limit = std::chrono::milliseconds(static_cast<int64_t>(1000 * std::clamp(left() + 1, 1.0, 60.0)));
  if (!tasks.empty()) forked.run(tasks.size(), setup_.jobs);

  std::vector<Agreement> list;
  for (auto& answer : answers) {
    if (!answer) break;
    list.push_back(std::move(*answer));
  }
  return list;
}

}  // namespace attest
