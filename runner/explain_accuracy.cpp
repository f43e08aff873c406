// SPDX-License-Identifier: Apache-2.0
#include "runner/explain_accuracy.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <bit>
#include <chrono>
#include <cmath>
#include <random>
#include <set>

#include "cases/sha256.h"
#include "runner/diagnose.h"

namespace attest {
namespace {

using Clock = std::chrono::steady_clock;

const std::vector<std::string_view> kKinds{"single", "pair", "noise"};
const std::vector<std::string_view> kResults{"right", "kin", "part", "nothing", "wrong", "unseen"};

// A bug that no case fails under is tried under so many more variants.
constexpr size_t kOtherVariants = 3;

double since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// A number from 0 to 1 for each draw, the same everywhere.
class Dice {
 public:
  explicit Dice(uint64_t seed) : engine_(seed) {}
  double roll() { return static_cast<double>(engine_() >> 11) * 0x1p-53; }
  size_t below(size_t count) { return static_cast<size_t>(roll() * static_cast<double>(count)); }

 private:
  std::mt19937_64 engine_;
};

// ---- noise ----------------------------------------------------------------------------------------------------------

/// What is done to right results: so many of a tensor's elements are moved by so many times their allowed error.
struct Noise {
  double cases = 1;            ///< Share of the cases it falls on.
  double elements = 1;         ///< Share of elements; 0: one of each tensor.
  double least = 2, most = 2;  ///< Times the allowed error.
  bool lse = false;
  uint64_t seed = 0;
};

Noise draw_noise(Dice& dice, uint64_t seed) {
  Noise noise;
  noise.seed = seed;
  noise.cases = std::vector<double>{1, 0.5, 0.1, 0.02}[dice.below(4)];
  noise.elements = std::vector<double>{1, 0.3, 0.05, 0.01, 0}[dice.below(5)];
  noise.least = 2 * std::pow(500, dice.roll());
  noise.most = noise.least * std::pow(1000 / noise.least, dice.roll());
  noise.lse = dice.roll() < 0.5;
  return noise;
}

std::string about(const Noise& noise) {
  return fmt::format("{:.3g} % of the cases, {} of each tensor by {:.3g} to {:.3g} times the allowed error{}",
                     100 * noise.cases,
                     noise.elements == 0 ? std::string("an element") : fmt::format("{:.3g} %", 100 * noise.elements),
                     noise.least, noise.most, noise.lse ? ", the LSE too" : "");
}

/// Moves elements of a step's rows that have goldens.
void disturb(const Script& script, size_t s, const Noise& noise, Dice& dice, StepOutcome& outcome) {
  const Problem& p = script.c->problem;
  const GoldenStep& golden = script.golden->steps[s];
  const bool layer = p.level == Level::layer;
  const auto width = static_cast<size_t>(layer ? p.d_model : p.query_heads * p.v_head_dim);
  const auto heads = static_cast<size_t>(p.query_heads);
  const auto queries = static_cast<size_t>((*script.timeline)[s].max_queries);
  const auto move = [&](float& x, float allowed) {
    const double times = noise.least * std::pow(noise.most / noise.least, dice.roll());
    const double by = times * static_cast<double>(allowed) * (dice.roll() < 0.5 ? -1 : 1);
    if (std::isfinite(x) && std::isfinite(by)) x = static_cast<float>(static_cast<double>(x) + by);
  };
  const size_t rows = golden.rows.size() / 2;
  const size_t chosen = rows == 0 ? 0 : dice.below(rows * width);
  for (size_t r = 0; r < rows; ++r) {
    const auto b = static_cast<size_t>(golden.rows[2 * r]), i = static_cast<size_t>(golden.rows[2 * r + 1]);
    for (size_t e = 0; e < width; ++e) {
      const bool hit = noise.elements == 0 ? r * width + e == chosen : dice.roll() < noise.elements;
      if (hit) move(outcome.output.data[(b * queries + i) * width + e], golden.output.allowed[r * width + e]);
    }
    for (size_t h = 0; h < heads && p.lse && noise.lse; ++h) {
      if (dice.roll() < noise.elements) {
        move(outcome.lse.data[(b * heads + h) * queries + i], golden.lse.allowed[r * heads + h]);
      }
    }
  }
}

/// A right performance, made noisy and judged again.
Performance noisy(const Script& script, const Rehearsal& right, const Noise& noise, const FindScript& find) {
  Performance performance = right.play(script, {.outcomes = true, .partners = false}, find);
  if (performance.status != Status::pass) return performance;
  Dice dice(noise.seed ^ std::stoull(sha256(script.c->id).substr(0, 15), nullptr, 16));
  if (dice.roll() >= noise.cases) return performance;
  Judge judge(*script.c, *script.timeline, *script.inputs, *script.golden);
  for (size_t s = 0; s < performance.outcomes.size(); ++s) {
    const Moment& moment = (*script.timeline)[s];
    if (moment.step.kind == StepKind::merge) judge.merge(s);
    if (moment.step.kind != StepKind::attend) continue;
    if (moment.step.expect == Expect::ok) disturb(script, s, noise, dice, performance.outcomes[s]);
    judge.step(s, performance.outcomes[s]);
  }
  performance.findings = judge.findings();
  performance.worst_ratio = judge.worst_ratio();
  if (!performance.findings.empty()) performance.status = Status::fail;
  return performance;
}

// ---- trials ---------------------------------------------------------------------------------------------------------

class Tester {
 public:
  Tester(const Suite& suite, Subjects& subjects, const BackendChoice& mutants, const SelfTest& test, int jobs)
      : suite_(suite),
        subjects_(subjects),
        mutants_(mutants),
        test_(test),
        jobs_(jobs),
        catalogue_(load_catalogue(suite.root)),
        materials_(subjects.finder()) {
    for (const Case& c : suite.cases) plan_.push_back({subjects.find(c.id), ""});
  }

  std::vector<SelfTrial> run(const std::function<void(const SelfTrial&)>& told) {
    Dice dice(test_.seed);
    std::vector<SelfTrial> trials;
    const auto add = [&](SelfTrial trial) {
      told(trial);
      trials.push_back(std::move(trial));
    };
    size_t variant = dice.below(catalogue_.correct.size());
    const auto next_variant = [&]() -> std::string {
      return catalogue_.correct[variant++ % catalogue_.correct.size()].id;
    };
    // Some bugs have no place in some variants: without a running maximum nothing is rescaled.
    const auto try_until_seen = [&](SelfTrial::Kind kind, const std::vector<std::string>& bugs,
                                    const std::string& first) {
      SelfTrial trial = try_bugs(kind, bugs, first);
      const auto at = std::find_if(catalogue_.correct.begin(), catalogue_.correct.end(),
                                   [&](const Variant& one) { return one.id == first; }) -
                      catalogue_.correct.begin();
      for (size_t more = 1; more <= kOtherVariants && trial.failing == 0; ++more) {
        trial =
            try_bugs(kind, bugs, catalogue_.correct[(static_cast<size_t>(at) + more) % catalogue_.correct.size()].id);
      }
      return trial;
    };
    for (const Bug& bug : catalogue_.bugs) {
      const bool wanted =
          test_.bugs.empty() || std::find(test_.bugs.begin(), test_.bugs.end(), bug.id) != test_.bugs.end();
      std::vector<std::string> forms{bug.id};
      for (const Realisation& one : bug.realisations) forms.push_back(bug.id + "@" + one.id);
      for (const std::string& form : forms) {
        const std::string other = next_variant();  // drawn in any case: a bug keeps its variant
        if (test_.singles && wanted) add(try_until_seen(SelfTrial::Kind::single, {form}, other));
      }
    }
    std::set<std::pair<size_t, size_t>> drawn;
    while (static_cast<int64_t>(drawn.size()) < test_.pairs) {
      const size_t a = dice.below(catalogue_.bugs.size()), b = dice.below(catalogue_.bugs.size());
      const Bug &one = catalogue_.bugs[std::min(a, b)], &two = catalogue_.bugs[std::max(a, b)];
      if (one.area == two.area || !drawn.insert({std::min(a, b), std::max(a, b)}).second) continue;
      add(try_until_seen(SelfTrial::Kind::pair, {one.id, two.id}, next_variant()));
    }
    for (int64_t n = 0; n < test_.noise; ++n) {
      const uint64_t seed = test_.seed * 1000003 + static_cast<uint64_t>(n);
      add(try_noise(draw_noise(dice, seed), next_variant()));
    }
    return trials;
  }

 private:
  [[nodiscard]] DiagnosisChoice choice() const {
    return {.seconds = test_.seconds, .jobs = jobs_, .trace = false, .library = mutants_.library};
  }

  SelfTrial try_bugs(SelfTrial::Kind kind, const std::vector<std::string>& bugs, const std::string& variant) {
    SelfTrial trial;
    trial.kind = kind;
    trial.bugs = bugs;
    trial.variant = variant;
    BackendChoice backend = mutants_;
    backend.options["bug"] = fmt::format("{}", fmt::join(bugs, ","));
    backend.options["variant"] = variant;
    const auto start = Clock::now();
    std::vector<CaseRecord> records;
    run_campaign(
        plan_, backend, jobs_,
        [&](const CaseRecord& record) {
          records.push_back(record);
          return true;
        },
        subjects_.finder());
    sort_by_plan(records);
    trial.run_seconds = since(start);
    trial.diagnosis = diagnose_run(suite_, subjects_, backend, {}, records, choice());
    trial.failing = trial.diagnosis.failing;
    trial.result = judge_diagnosis(catalogue_, trial);
    return trial;
  }

  SelfTrial try_noise(const Noise& noise, const std::string& variant) {
    SelfTrial trial;
    trial.kind = SelfTrial::Kind::noise;
    trial.variant = variant;
    trial.about = about(noise);
    const auto start = Clock::now();
    const BackendLibrary library(mutants_.library);
    const Rehearsal right(library, {{"variant", variant}});
    const FindScript find = [&](const std::string& id) { return materials_[id].script(); };
    std::vector<CaseRecord> records;
    for (const Case& c : suite_.cases) {
      if (!is_cheap(c)) continue;
      const auto begun = Clock::now();
      const Performance performance = noisy(materials_[c.id].script(), right, noise, find);
      CaseRecord& record = records.emplace_back();
      record.id = c.id;
      record.profiles = c.profiles;
      record.clauses = c.clauses;
      record.kills = c.kills;
      record.status = performance.status;
      record.findings = performance.findings;
      record.seconds["judge"] = since(begun);
    }
    trial.run_seconds = since(start);
    const auto actual = [&](const Exhibit& exhibit) {
      return noisy(materials_[exhibit.id].script(), right, noise, find);
    };
    trial.diagnosis = diagnose_cases({catalogue_, materials_, records, Conventions(), actual}, choice());
    trial.failing = trial.diagnosis.failing;
    trial.result = judge_diagnosis(catalogue_, trial);
    return trial;
  }

  /// Noise looks the same in a case of thousands of keys.
  static bool is_cheap(const Case& c) {
    int64_t most = c.problem.capacity;
    for (const Step& step : c.steps) {
      for (const int64_t keys : step.keys) most = std::max(most, keys);
    }
    return most <= 128 && c.problem.d_model <= 256 && c.problem.qk_head_dim <= 128;
  }

  const Suite& suite_;
  Subjects& subjects_;
  const BackendChoice& mutants_;
  const SelfTest& test_;
  int jobs_;
  Catalogue catalogue_;
  Materials materials_;
  std::vector<Planned> plan_;
};

bool is_kin(const Catalogue& catalogue, const std::string& a, const std::string& b) {
  if (a == b) return true;
  const Bug *one = catalogue.find(a), *two = catalogue.find(b);
  return one != nullptr && two != nullptr && !one->group.empty() && one->group == two->group;
}

}  // namespace

std::string_view name(SelfTrial::Kind kind) {
  return kKinds[static_cast<size_t>(kind)];
}

std::string_view name(SelfTrial::Result result) {
  return kResults[static_cast<size_t>(result)];
}

Json to_json(const SelfTrial& trial) {
  return {{"kind", name(trial.kind)},         {"bugs", trial.bugs},
          {"variant", trial.variant},         {"about", trial.about},
          {"failing", trial.failing},         {"result", name(trial.result)},
          {"run_seconds", trial.run_seconds}, {"diagnosis", to_json(trial.diagnosis)}};
}

SelfTrial::Result judge_diagnosis(const Catalogue& catalogue, const SelfTrial& trial) {
  using Result = SelfTrial::Result;
  const Diagnosis& diagnosis = trial.diagnosis;
  if (trial.failing == 0) return Result::unseen;
  if (diagnosis.verdict != Diagnosis::Verdict::explained) return Result::nothing;
  std::vector<std::string> bugs;
  for (const std::string& form : trial.bugs) bugs.emplace_back(bug_of(form));
  Result result = Result::wrong;
  for (const std::vector<std::string>& named : diagnosis.explanations.front().bugs) {
    if (std::set(named.begin(), named.end()) == std::set(bugs.begin(), bugs.end())) return Result::right;
    const bool kin = named.size() == bugs.size() &&
                     std::is_permutation(named.begin(), named.end(), bugs.begin(),
                                         [&](const auto& a, const auto& b) { return is_kin(catalogue, a, b); });
    const bool part =
        named.size() == 1 && bugs.size() == 2 && std::find(bugs.begin(), bugs.end(), named.front()) != bugs.end();
    if (kin) result = Result::kin;
    if (part && result == Result::wrong) result = Result::part;
  }
  return result;
}

std::vector<SelfTrial> run_self_test(const Suite& suite, Subjects& subjects, const BackendChoice& mutants,
                                     const SelfTest& test, int jobs,
                                     const std::function<void(const SelfTrial&)>& told) {
  return Tester(suite, subjects, mutants, test, jobs).run(told);
}

std::string self_test_table(const Catalogue& catalogue, const std::vector<SelfTrial>& trials) {
  using Kind = SelfTrial::Kind;
  using Result = SelfTrial::Result;
  struct Figures {
    std::map<Result, int64_t> by;
    int64_t all = 0, alone = 0, predictions = 0;
    double seconds = 0, slowest = 0, run = 0;
    void add(const SelfTrial& trial) {
      ++by[trial.result];
      ++all;
      const auto& explanations = trial.diagnosis.explanations;
      if (trial.result == Result::right && explanations.front().bugs.size() == 1) ++alone;
      predictions += trial.diagnosis.predictions;
      seconds += trial.diagnosis.seconds;
      slowest = std::max(slowest, trial.diagnosis.seconds);
      run += trial.run_seconds;
    }
  };
  std::vector<std::pair<std::string, Figures>> rows;
  const auto row = [&](const std::string& label) -> Figures& {
    for (auto& [known, found] : rows) {
      if (known == label) return found;
    }
    return rows.emplace_back(label, Figures{}).second;
  };
  for (const Kind kind : {Kind::single, Kind::pair, Kind::noise}) {
    for (const SelfTrial& trial : trials) {
      if (trial.kind != kind) continue;
      const Bug* bug = kind == Kind::single ? catalogue.find(bug_of(trial.bugs.front())) : nullptr;
      if (bug != nullptr) row("  " + bug->area).add(trial);
    }
    for (const SelfTrial& trial : trials) {
      if (trial.kind == kind)
        row(kind == Kind::single ? "all single bugs" : kind == Kind::pair ? "pairs" : "noise").add(trial);
    }
  }
  std::string text =
      fmt::format("{:<18} {:>6} {:>6} {:>6} {:>5} {:>5} {:>8} {:>6} {:>7} {:>9} {:>9} {:>9}\n", "", "trials", "right",
                  "alone", "kin", "part", "no known", "wrong", "unseen", "diagnosis", "slowest", "run");
  for (const auto& [label, found] : rows) {
    const auto count = [&](Result result) {
      const auto at = found.by.find(result);
      return at == found.by.end() ? int64_t{0} : at->second;
    };
    const auto n = static_cast<double>(found.all);
    text += fmt::format("{:<18} {:>6} {:>6} {:>6} {:>5} {:>5} {:>8} {:>6} {:>7} {:>7.2f} s {:>7.2f} s {:>7.2f} s\n",
                        label, found.all, count(Result::right), found.alone, count(Result::kin), count(Result::part),
                        count(Result::nothing), count(Result::wrong), count(Result::unseen), found.seconds / n,
                        found.slowest, found.run / n);
  }
  return text;
}

bool meets_aims(const std::vector<SelfTrial>& trials) {
  using Kind = SelfTrial::Kind;
  using Result = SelfTrial::Result;
  if (trials.empty()) return false;
  int64_t singles = 0, right = 0, pairs = 0, both = 0, blamed = 0;
  for (const SelfTrial& trial : trials) {
    const bool good = trial.result == Result::right || trial.result == Result::kin;
    if (trial.kind == Kind::single) ++singles, right += good ? 1 : 0;
    if (trial.kind == Kind::pair) ++pairs, both += good ? 1 : 0;
    if (trial.kind == Kind::noise && trial.diagnosis.verdict == Diagnosis::Verdict::explained) ++blamed;
  }
  return 100 * right >= 95 * singles && 100 * both >= 80 * pairs && blamed == 0;
}

}  // namespace attest
