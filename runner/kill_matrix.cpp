// SPDX-License-Identifier: Apache-2.0
#include "runner/kill_matrix.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <map>
#include <tuple>
#include <utility>

#include "runner/report_text.h"

namespace attest {
namespace {

using State = Cell::State;
using Rule = Complaint::Rule;

constexpr std::array<std::string_view, 10> kRules{"survives",       "single", "unclear",     "not_weak",    "not_cited",
                                                  "wrong_citation", "idle",   "false_alarm", "unsupported", "lost"};

bool cites(const MatrixCase& c, std::string_view bug) {
  return std::find(c.cites.begin(), c.cites.end(), bug) != c.cites.end();
}

bool is_clear(const Mutant& mutant, const MutantSummary& sum) {
  return !mutant.weak.empty() || sum.clear_margin >= kClearMargin;
}

/// The rows of each bug, the bugs in the order of their first ones.
std::vector<std::vector<size_t>> rows_by_bug(const KillMatrix& matrix) {
  std::vector<std::vector<size_t>> bugs;
  std::map<std::string_view, size_t> number;
  for (size_t m = 0; m < matrix.mutants.size(); ++m) {
    if (matrix.mutants[m].correct) continue;
    const auto [found, is_new] = number.try_emplace(matrix.mutants[m].bug(), bugs.size());
    if (is_new) bugs.emplace_back();
    bugs[found->second].push_back(m);
  }
  return bugs;
}

/// Four significant digits; JSON has no infinity, so that is a string, as in records.
Json number(double value) {
  if (!std::isfinite(value)) return "Infinity";
  const double rounded = std::strtod(fmt::format("{:.4g}", value).c_str(), nullptr);
  if (rounded == std::trunc(rounded) && std::abs(rounded) < 1e15) return static_cast<int64_t>(rounded);
  return rounded;
}

class Judgement {
 public:
  explicit Judgement(const KillMatrix& matrix) : matrix_(matrix) {}

  std::vector<Complaint> take() {
    for (size_t m = 0; m < matrix_.mutants.size(); ++m) {
      if (matrix_.mutants[m].correct) {
        judge_correct(m);
      } else {
        judge_bug(m);
      }
    }
    for (const std::vector<size_t>& rows : rows_by_bug(matrix_)) judge_citations(rows);
    if (matrix_.all_bugs && !matrix_.fast) judge_cases();
    std::stable_sort(complaints_.begin(), complaints_.end(),
                     [](const Complaint& a, const Complaint& b) { return a.rule < b.rule; });
    return std::move(complaints_);
  }

 private:
  template <typename... Args>
  void add(Rule rule, std::string subject, std::string c, fmt::format_string<Args...> format, Args&&... args) {
    complaints_.push_back({rule, std::move(subject), std::move(c), fmt::format(format, std::forward<Args>(args)...)});
  }

  void judge_bug(size_t m) {
    const Mutant& bug = matrix_.mutants[m];
    const MutantSummary sum = summary(matrix_, m);
    if (matrix_.all_cases && sum.played > 0) judge_kills(bug, sum);
    for (size_t c = 0; c < matrix_.cases.size(); ++c) {
      const Cell& cell = matrix_.at(m, c);
      const std::string& id = matrix_.cases[c].id;
      if (cell.lost) add(Rule::lost, bug.id, id, "{} on {} was {}", bug.id, id, cell.reason);
    }
  }

  /// A case names a bug, and means any realisation of it: only all of them together say that it is wrong.
  void judge_citations(const std::vector<size_t>& rows) {
    const std::string bug(matrix_.mutants[rows.front()].bug());
    if (matrix_.mutants[rows.front()].id != bug) return;  // some of its realisations were chosen
    int64_t citations = 0;
    // Of a bug that nothing catches, that is enough to say.
    const bool killed = std::any_of(rows.begin(), rows.end(), [&](size_t m) { return summary(matrix_, m).kills > 0; });
    for (size_t c = 0; c < matrix_.cases.size(); ++c) {
      const MatrixCase& one = matrix_.cases[c];
      if (!cites(one, bug)) continue;
      ++citations;
      bool catches = !killed, played = true;
      std::string reason;
      for (const size_t m : rows) {
        const Cell& cell = matrix_.at(m, c);
        catches |= cell.state == State::failed;
        played &= cell.state != State::not_played;
        if (reason.empty()) reason = cell.reason;
      }
      if (catches || !played) continue;
      add(Rule::wrong_citation, bug, one.id, "{} names {} in `kills`, but does not catch it{}", one.id, bug,
          reason.empty() ? "" : ": " + reason);
    }
    if (matrix_.all_cases && citations == 0) {
      add(Rule::not_cited, bug, "", "no case names {} in `kills`", bug);
    }
  }

  void judge_kills(const Mutant& bug, const MutantSummary& sum) {
    if (sum.kills == 0) {
      add(Rule::survives, bug.id, "", "{} survives: none of {} catches it", bug.id, count_text(sum.played, "case"));
      return;
    }
    const std::string best = matrix_.cases[*sum.best].id;
    if (sum.kills == 1) add(Rule::single, bug.id, best, "{} is caught by {} alone, wanted two cases", bug.id, best);
    const std::string where = sum.clear_in_f32 ? "in f32" : "in 16 bits, and none catches it in f32";
    if (!is_clear(bug, sum)) {
      add(Rule::unclear, bug.id, best, "{} is caught with {} times the allowed error at best {}, wanted {}", bug.id,
          ratio_text(sum.clear_margin), where, kClearMargin);
    }
    if (!bug.weak.empty() && sum.clear_margin >= kClearMargin) {
      add(Rule::not_weak, bug.id, best,
          "{} has a reason in the catalogue why it cannot be caught with a margin of {}, but is, with {} {}", bug.id,
          kClearMargin, ratio_text(sum.clear_margin), where);
    }
  }

  void judge_correct(size_t m) {
    const Mutant& mutant = matrix_.mutants[m];
    for (size_t c = 0; c < matrix_.cases.size(); ++c) {
      const Cell& cell = matrix_.at(m, c);
      const std::string& id = matrix_.cases[c].id;
      if (cell.state == State::failed) {
        add(Rule::false_alarm, mutant.id, id, "{} is right, but {} fails it: {}", mutant.id, id, cell.reason);
      }
      if (cell.state == State::unsupported) {
        add(Rule::unsupported, mutant.id, id, "{} does not support {}: {}", mutant.id, id, cell.reason);
      }
    }
  }

  void judge_cases() {
    const std::vector<int64_t> kills = kills_by_case(matrix_);
    for (size_t c = 0; c < kills.size(); ++c) {
      if (kills[c] > 0) continue;
      add(Rule::idle, "", matrix_.cases[c].id, "{} catches no bug", matrix_.cases[c].id);
    }
  }

  const KillMatrix& matrix_;
  std::vector<Complaint> complaints_;
};

Json to_json(const KillMatrix& matrix, size_t m) {
  const Mutant& mutant = matrix.mutants[m];
  const MutantSummary sum = summary(matrix, m);
  Json json{{"id", mutant.id}, {"played", sum.played}};
  if (mutant.correct) {
    double worst = 0;
    Json alarms = Json::object();
    for (size_t c = 0; c < matrix.cases.size(); ++c) {
      const Cell& cell = matrix.at(m, c);
      if (cell.state == State::failed) alarms[matrix.cases[c].id] = cell.reason;
      if (cell.state == State::passed) worst = std::max(worst, cell.worst.value_or(0));
    }
    json["worst"] = number(worst);
    json["alarms"] = std::move(alarms);
    return json;
  }
  json["area"] = mutant.area;
  if (!mutant.group.empty()) json["group"] = mutant.group;
  if (!mutant.weak.empty()) json["weak"] = mutant.weak;
  json["count"] = sum.kills;
  const auto named = [&](const char* name, const std::optional<size_t>& c, double margin) {
    if (!c) return;
    json[name] = {{"case", matrix.cases[*c].id}, {"margin", number(margin)}, {"why", matrix.at(m, *c).reason}};
  };
  named("best", sum.best, sum.best_margin);
  named("second", sum.second, sum.second_margin);
  json["cases"] = Json::object();
  for (size_t c = 0; c < matrix.cases.size(); ++c) {
    if (const Cell& cell = matrix.at(m, c); cell.state == State::failed) {
      json["cases"][matrix.cases[c].id] = number(cell.margin);
    }
  }
  return json;
}

}  // namespace

std::vector<Mutant> mutants_of(const Bug& bug) {
  std::vector<Mutant> list{{bug.id, false, bug.area, bug.group, bug.fault, bug.weak}};
  for (const Realisation& one : bug.realisations) {
    list.push_back({bug.id + "@" + one.id, false, bug.area, bug.group, one.about, one.weak});
  }
  return list;
}

Mutant mutant_of(const Variant& variant) {
  return {variant.id, true, "", "", variant.about, ""};
}

MatrixCase matrix_case(const Case& c) {
  return {c.id, c.family, c.about, c.problem.dtype, c.kills};
}

std::string_view name(Complaint::Rule rule) {
  return kRules[static_cast<size_t>(rule)];
}

MutantSummary summary(const KillMatrix& matrix, size_t mutant) {
  MutantSummary sum;
  double in_f32 = 0, in_halves = 0;
  for (size_t c = 0; c < matrix.cases.size(); ++c) {
    const Cell& cell = matrix.at(mutant, c);
    if (cell.state != State::not_played) ++sum.played;
    if (cell.state != State::failed) continue;
    ++sum.kills;
    if (!cell.lost) {
      double& clear = matrix.cases[c].dtype == DType::f32 ? in_f32 : in_halves;
      clear = std::max(clear, cell.margin);
      sum.clear_in_f32 |= matrix.cases[c].dtype == DType::f32;
    }
    if (!sum.best || cell.margin > sum.best_margin) {
      sum.second = std::exchange(sum.best, c);
      sum.second_margin = std::exchange(sum.best_margin, cell.margin);
    } else if (!sum.second || cell.margin > sum.second_margin) {
      sum.second = c;
      sum.second_margin = cell.margin;
    }
  }
  sum.clear_margin = sum.clear_in_f32 ? in_f32 : in_halves;
  return sum;
}

std::vector<Complaint> judge(const KillMatrix& matrix) {
  return Judgement(matrix).take();
}

std::vector<int64_t> kills_by_case(const KillMatrix& matrix) {
  std::vector<int64_t> kills(matrix.cases.size());
  for (size_t m = 0; m < matrix.mutants.size(); ++m) {
    if (matrix.mutants[m].correct) continue;
    for (size_t c = 0; c < kills.size(); ++c) {
      if (matrix.at(m, c).state == State::failed) ++kills[c];
    }
  }
  return kills;
}

MatrixTotals totals(const KillMatrix& matrix) {
  MatrixTotals sum;
  sum.cases = static_cast<int64_t>(matrix.cases.size());
  for (size_t m = 0; m < matrix.mutants.size(); ++m) {
    const Mutant& mutant = matrix.mutants[m];
    const MutantSummary one = summary(matrix, m);
    if (mutant.correct) {
      ++sum.correct;
      sum.correct_plays += one.played;
      sum.alarms += one.kills;
    } else {
      ++sum.realisations;
      sum.plays += one.played;
      sum.kills += one.kills;
    }
  }
  for (const std::vector<size_t>& rows : rows_by_bug(matrix)) {
    bool caught = true, killed = true;
    for (const size_t m : rows) {
      const MutantSummary one = summary(matrix, m);
      caught &= one.kills >= 2 && is_clear(matrix.mutants[m], one);
      killed &= one.kills > 0;
    }
    ++sum.bugs;
    if (caught) ++sum.caught;
    if (killed) ++sum.killed;
  }
  return sum;
}

std::vector<size_t> weakest_first(const KillMatrix& matrix) {
  std::vector<std::pair<MutantSummary, size_t>> bugs;
  for (size_t m = 0; m < matrix.mutants.size(); ++m) {
    if (!matrix.mutants[m].correct) bugs.emplace_back(summary(matrix, m), m);
  }
  const auto strength = [](const MutantSummary& sum) {
    return std::make_tuple(std::min<int64_t>(sum.kills, 2), sum.clear_margin, sum.second_margin, sum.kills);
  };
  std::stable_sort(bugs.begin(), bugs.end(),
                   [&](const auto& a, const auto& b) { return strength(a.first) < strength(b.first); });
  std::vector<size_t> order;
  for (const auto& [sum, m] : bugs) order.push_back(m);
  return order;
}

std::map<DType, Closest> closest(const KillMatrix& matrix) {
  std::map<DType, Closest> all;
  for (size_t m = 0; m < matrix.mutants.size(); ++m) {
    if (!matrix.mutants[m].correct) continue;
    for (size_t c = 0; c < matrix.cases.size(); ++c) {
      const Cell& cell = matrix.at(m, c);
      if (cell.state != State::passed || !cell.worst) continue;
      Closest& one = all[matrix.cases[c].dtype];
      if (one.mutant.empty() || *cell.worst > one.ratio) one = {*cell.worst, matrix.mutants[m].id, matrix.cases[c].id};
    }
  }
  return all;
}

Json to_json(const KillMatrix& matrix) {
  const std::vector<Complaint> complaints = judge(matrix);
  const MatrixTotals sum = totals(matrix);
  Json json{{"schema", "attest/matrix/1"},
            {"attest_version", matrix.attest_version},
            {"suite_hash", matrix.suite_hash},
            {"backend", matrix.backend},
            {"backend_version", matrix.backend_version},
            {"all_cases", matrix.all_cases},
            {"all_bugs", matrix.all_bugs},
            {"fast", matrix.fast},
            {"green", complaints.empty()}};
  json["totals"] = {
      {"bugs", sum.bugs},   {"caught", sum.caught},   {"cases", sum.cases},   {"plays", sum.plays},
      {"kills", sum.kills}, {"correct", sum.correct}, {"alarms", sum.alarms}, {"correct_plays", sum.correct_plays}};
  json["complaints"] = Json::array();
  for (const Complaint& complaint : complaints) {
    Json one{{"rule", name(complaint.rule)}, {"text", complaint.text}};
    if (!complaint.subject.empty()) one["mutant"] = complaint.subject;
    if (!complaint.c.empty()) one["case"] = complaint.c;
    json["complaints"].push_back(std::move(one));
  }
  json["bugs"] = Json::array();
  json["correct"] = Json::array();
  for (size_t m = 0; m < matrix.mutants.size(); ++m) {
    json[matrix.mutants[m].correct ? "correct" : "bugs"].push_back(to_json(matrix, m));
  }
  json["cases"] = Json::array();
  const std::vector<int64_t> kills = kills_by_case(matrix);
  for (size_t c = 0; c < matrix.cases.size(); ++c) {
    json["cases"].push_back({{"id", matrix.cases[c].id}, {"kills", kills[c]}});
  }
  return json;
}

}  // namespace attest
