// SPDX-License-Identifier: Apache-2.0
#include "runner/diagnose.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <map>
#include <optional>

namespace attest {
namespace {

constexpr size_t kAcquitting = 4;     // passing cases that are there to catch a bug, tried before all else
constexpr size_t kSeenEnough = 10;    // failing cases, when the time is up
constexpr size_t kMoreFailing = 120;  // beyond those that every suspect has to explain
constexpr size_t kTable = 12;         // failing cases that every suspect is tried on before pairs are
constexpr size_t kMostPairs = 4000;   // that are played at all ...
constexpr size_t kMostTried = 40;     // ... and held against everything
constexpr size_t kBatch = 48;         // questions worth asking at once
constexpr double kMostCost = 0.5;     // seconds of passing cases for a hypothesis
constexpr double kCostly = 5;         // times the median cost
constexpr size_t kPartial = 3;        // explanations that are only a part
constexpr size_t kNamedCases = 5;
constexpr double kClearGain = 4;  // below it in every case, an agreement may be chance

/// Two explanations whose predictions are this much nearer and further are not told together.
bool is_clearly_nearer(double residual, double other) {
  return other > 4 * residual + 0.2;
}

std::vector<std::string> bugs_of(const Hypothesis& hypothesis) {
  std::vector<std::string> ids;
  for (const std::string& form : hypothesis.bugs) ids.emplace_back(bug_of(form));
  return ids;
}

/// What is known of a hypothesis.
struct Suspect {
  Hypothesis hypothesis;
  std::map<size_t, Agreement> known;  ///< By exhibit.

  [[nodiscard]] Match match(size_t exhibit) const {
    const auto found = known.find(exhibit);
    return found == known.end() ? Match::silent : found->second.match;
  }
  [[nodiscard]] bool has(size_t exhibit) const { return known.contains(exhibit); }
};
using Suspects = std::vector<Suspect*>;

class Detective {
 public:
  Detective(const Catalogue& catalogue, const std::vector<Exhibit>& exhibits, Predictions& predictions,
            const DiagnosisLimits& limits)
      : catalogue_(catalogue), exhibits_(exhibits), source_(predictions), limits_(limits) {
    std::vector<size_t> failing, passing;
    for (size_t i = 0; i < exhibits.size(); ++i) (exhibits[i].failed ? failing : passing).push_back(i);
    all_failing_ = spread(failing);
    failing_.assign(all_failing_.begin(),
                    all_failing_.begin() + static_cast<ptrdiff_t>(std::min(limits.failing, all_failing_.size())));
    passing_ = spread(passing);
    for (const Bug& bug : catalogue.bugs) {
      forms_.push_back(bug.id);
      for (const Realisation& one : bug.realisations) forms_.push_back(bug.id + "@" + one.id);
    }
  }

  Diagnosis run() {
    Diagnosis diagnosis;
    diagnosis.compared = static_cast<int64_t>(failing_.size());
    if (failing_.empty()) {
      diagnosis.verdict = Diagnosis::Verdict::nothing;
      diagnosis.line = "there is nothing to compare: no failing case has left results";
      return diagnosis;
    }
    Suspects alone;
    for (const std::string& bug : forms_) alone.push_back(&suspect({{bug}, ""}));
    Suspects suspects = acquit(alone);
    Suspects whole = try_all(suspects);
    // What looked explained until this case came up: it comes first from here on.
    failing_.insert(failing_.begin(), telling_.begin(), telling_.end());
    // Some bugs depend on tiles and splits, which are the backend's own choice.
    if (whole.empty()) whole = try_variants();
    if (whole.empty() && limits_.pairs) whole = try_pairs(suspects);

    if (!whole.empty()) {
      diagnosis.verdict = Diagnosis::Verdict::explained;
      diagnosis.explanations = rank(whole);
    } else {
      diagnosis.verdict = Diagnosis::Verdict::unexplained;
      diagnosis.explanations = parts();
    }
    diagnosis.passing = static_cast<int64_t>(used_passing_.size());
    diagnosis.predictions = predictions_;
    diagnosis.compared = static_cast<int64_t>(failing_.size());
    if (out_of_time_) diagnosis.notes.emplace_back("the time for the diagnosis was up before everything was tried");
    if (out_of_reach_) diagnosis.notes.emplace_back("so many pairs of bugs are possible that not all were tried");
    diagnosis.line = line(diagnosis);
    return diagnosis;
  }

 private:
  Suspect& suspect(const Hypothesis& hypothesis) {
    Suspect& one = suspects_[hypothesis];
    one.hypothesis = hypothesis;
    return one;
  }

  /// The cheapest of each family first, then the second ones: cheap and diverse. The costly ones come last.
  [[nodiscard]] std::vector<size_t> spread(std::vector<size_t> list) const {
    const auto by_cost = [&](size_t a, size_t b) { return exhibits_[a].cost < exhibits_[b].cost; };
    std::stable_sort(list.begin(), list.end(), by_cost);
    const double most = list.empty() ? 0 : kCostly * exhibits_[list[list.size() / 2]].cost;
    std::map<std::string, size_t> round;
    std::map<std::pair<bool, size_t>, std::vector<size_t>> rounds;
    for (const size_t i : list) {
      const std::string& id = exhibits_[i].id;
      const bool costly = exhibits_[i].cost > most;
      rounds[{costly, costly ? 0 : round[id.substr(0, id.find('/'))]++}].push_back(i);
    }
    std::vector<size_t> spread;
    for (const auto& [number, cases] : rounds) spread.insert(spread.end(), cases.begin(), cases.end());
    return spread;
  }

  /// Asks what is not known yet; false if the time is up.
  bool ask(const Suspects& suspects, const std::vector<size_t>& exhibits) {
    std::vector<Predictions::Question> questions;
    std::vector<std::pair<Suspect*, size_t>> open;
    for (const size_t exhibit : exhibits) {
      for (Suspect* one : suspects) {
        if (one->has(exhibit)) continue;
        questions.push_back({one->hypothesis, exhibit});
        open.emplace_back(one, exhibit);
      }
    }
    return ask(questions, open);
  }

  bool ask(const std::vector<Predictions::Question>& questions, const std::vector<std::pair<Suspect*, size_t>>& open) {
    if (questions.empty()) return true;
    if (out_of_time_) return false;
    const std::vector<Agreement> answers = source_.answer(questions);
    for (size_t i = 0; i < answers.size(); ++i) {
      open[i].first->known[open[i].second] = answers[i];
      if (!exhibits_[open[i].second].failed) used_passing_.insert(open[i].second);
    }
    predictions_ += static_cast<int64_t>(answers.size());
    out_of_time_ = answers.size() < questions.size();
    return !out_of_time_;
  }

  /// Whether a case is there to catch one of these bugs.
  [[nodiscard]] bool is_aimed_at(size_t exhibit, const Hypothesis& hypothesis) const {
    const auto& kills = exhibits_[exhibit].kills;
    return std::any_of(hypothesis.bugs.begin(), hypothesis.bugs.end(), [&](const std::string& form) {
      return std::find(kills.begin(), kills.end(), bug_of(form)) != kills.end();
    });
  }

  /// Passing cases for these bugs: those that are there to catch one of them first.
  [[nodiscard]] std::vector<size_t> passing_for(const Hypothesis& hypothesis, size_t count) const {
    std::vector<size_t> chosen;
    for (const bool wanted : {true, false}) {
      double spent = 0;
      for (const size_t i : passing_) {
        if (chosen.size() == count || is_aimed_at(i, hypothesis) != wanted) continue;
        // A few costly ones are enough, if there is nothing else.
        if (chosen.size() >= kAcquitting && spent + exhibits_[i].cost > kMostCost) continue;
        spent += exhibits_[i].cost;
        chosen.push_back(i);
      }
    }
    return chosen;
  }

  /// Drops those that the cheapest passing cases against them contradict.
  Suspects acquit(const Suspects& list) {
    Suspects left = list;
    for (size_t round = 0; round < kAcquitting && !left.empty(); ++round) {
      std::vector<Predictions::Question> questions;
      std::vector<std::pair<Suspect*, size_t>> open;
      for (Suspect* one : left) {
        const auto cases = passing_for(one->hypothesis, kAcquitting);
        if (round >= cases.size() || one->has(cases[round])) continue;
        questions.push_back({one->hypothesis, cases[round]});
        open.emplace_back(one, cases[round]);
      }
      if (!ask(questions, open)) break;
      std::erase_if(left, [&](const Suspect* one) { return is_contradicted(*one, false); });
    }
    return left;
  }

  [[nodiscard]] bool is_contradicted(const Suspect& one, bool failing) const {
    return std::any_of(one.known.begin(), one.known.end(), [&](const auto& known) {
      return exhibits_[known.first].failed == failing && known.second.match == Match::differs;
    });
  }

  /// Those that explain every failing case and that no passing one contradicts.
  Suspects try_all(const Suspects& list) {
    Suspects left = list;
    for (size_t done = 0; done < failing_.size() && !left.empty();) {
      const size_t count = std::clamp<size_t>(kBatch / left.size(), 1, failing_.size() - done);
      const auto begin = failing_.begin() + static_cast<ptrdiff_t>(done);
      const std::vector<size_t> batch(begin, begin + static_cast<ptrdiff_t>(count));
      const bool in_time = ask(left, batch);
      std::erase_if(left, [&](const Suspect* one) {
        return std::any_of(batch.begin(), batch.end(), [&](size_t f) {
          return one->has(f) && (one->match(f) == Match::silent || one->match(f) == Match::differs);
        });
      });
      if (!in_time) return cut_short(left);
      done += count;
    }
    std::erase_if(left, [&](const Suspect* one) { return !explains(*one); });
    return cross_examine(left);
  }

  /// The time is up: what has been seen of failing cases has to do, if it is enough to speak of.
  Suspects cut_short(Suspects left) {
    std::erase_if(left, [&](const Suspect* one) { return !explains(*one) || is_contradicted(*one, false); });
    if (left.empty()) return left;
    std::vector<size_t> seen;
    for (const size_t f : failing_) {
      if (std::all_of(left.begin(), left.end(), [&](const Suspect* one) { return one->has(f); })) seen.push_back(f);
    }
    if (seen.size() < std::min(kSeenEnough, failing_.size())) return {};
    failing_ = seen;
    return left;
  }

  /// Agrees in most of the failing cases, somewhere beyond chance, and is at worst too near to tell in the others.
  [[nodiscard]] bool explains(const Suspect& one) const {
    size_t agrees = 0, seen = 0;
    double gain = 0;
    for (const size_t f : failing_) {
      if (!one.has(f)) continue;
      ++seen;
      const Match match = one.match(f);
      if (match == Match::silent || match == Match::differs) return false;
      if (match != Match::agrees) continue;
      ++agrees;
      gain = std::max(gain, one.known.at(f).gain);
    }
    return agrees > 0 && 2 * agrees >= seen && gain >= kClearGain;
  }

  /// Passing cases, and, if more than one is left, whatever else could tell them apart.
  Suspects cross_examine(Suspects left) {
    if (left.empty()) return left;
    std::vector<Predictions::Question> questions;
    std::vector<std::pair<Suspect*, size_t>> open;
    for (Suspect* one : left) {
      for (const size_t p : passing_for(one->hypothesis, limits_.passing)) {
        if (one->has(p)) continue;
        questions.push_back({one->hypothesis, p});
        open.emplace_back(one, p);
      }
    }
    ask(questions, open);
    std::erase_if(left, [&](const Suspect* one) { return is_contradicted(*one, false); });
    if (left.empty() || out_of_time_) return left;
    // More failing cases: a few for one that is left alone, all that it takes to tell several apart.
    const size_t more = std::min(failing_.size() + kMoreFailing, all_failing_.size());
    for (size_t i = failing_.size(); i < all_failing_.size() && (left.size() > 1 || i < more); ++i) {
      if (!ask(left, {all_failing_[i]})) break;
      std::erase_if(left, [&](const Suspect* one) {
        const Match match = one->match(all_failing_[i]);
        return match == Match::silent || match == Match::differs;
      });
      if (left.empty()) {
        telling_.push_back(all_failing_[i]);
        break;
      }
    }
    for (const size_t p : passing_) {
      if (left.size() < 2) break;
      const bool aimed = std::any_of(left.begin(), left.end(), [&](const Suspect* one) {
        return !one->has(p) && is_aimed_at(p, one->hypothesis);
      });
      if (!aimed) continue;
      if (!ask(left, {p})) break;
      std::erase_if(left, [&](const Suspect* one) { return one->match(p) == Match::differs; });
    }
    return left;
  }

  /// All bugs in all the ways to compute that are right, on the simplest failing case; then as usual.
  Suspects try_variants() {
    Suspects list;
    for (const Variant& variant : catalogue_.correct) {
      for (const std::string& bug : forms_) list.push_back(&suspect({{bug}, variant.id}));
    }
    if (list.empty() || !ask(list, {failing_.front()})) return {};
    std::erase_if(list, [&](const Suspect* one) {
      const Match match = one->match(failing_.front());
      return match == Match::silent || match == Match::differs;
    });
    return try_all(acquit(list));
  }

  [[nodiscard]] bool is_random(const Suspect& one) const {
    const Bug* bug = catalogue_.find(one.hypothesis.bugs[0]);
    return bug != nullptr && bug->area == "determinism";
  }

  /// Two at once: each has to account for the failing cases in which the other is silent.
  Suspects try_pairs(const Suspects& suspects) {
    const std::vector<size_t> table(failing_.begin(),
                                    failing_.begin() + static_cast<ptrdiff_t>(std::min(kTable, failing_.size())));
    if (!ask(suspects, table)) return {};
    struct Pair {
      Suspect* both;
      int64_t alone;                ///< Failing cases that one of the two explains by itself.
      std::vector<size_t> to_play;  ///< In which both show.
    };
    std::vector<Pair> pairs;
    const auto is_possible = [](Match match) { return match == Match::agrees || match == Match::unclear; };
    for (size_t a = 0; a < suspects.size(); ++a) {
      for (size_t b = a + 1; b < suspects.size(); ++b) {
        Pair pair{nullptr, 0, {}};
        // Of results that come by chance only the size can be compared, which proves nothing of a second bug.
        bool possible = bugs_of(suspects[a]->hypothesis) != bugs_of(suspects[b]->hypothesis) &&
                        !is_random(*suspects[a]) && !is_random(*suspects[b]);
        for (const size_t f : table) {
          const Match one = suspects[a]->match(f), two = suspects[b]->match(f);
          if (one != Match::silent && two != Match::silent) {
            pair.to_play.push_back(f);
          } else {
            possible = possible && is_possible(one == Match::silent ? two : one);
          }
          pair.alone += one == Match::agrees || two == Match::agrees ? 1 : 0;
        }
        if (!possible) continue;
        const std::string &first = suspects[a]->hypothesis.bugs[0], &second = suspects[b]->hypothesis.bugs[0];
        pair.both = &suspect({{first, second}, ""});
        pairs.push_back(std::move(pair));
      }
    }
    std::stable_sort(pairs.begin(), pairs.end(), [](const Pair& a, const Pair& b) { return a.alone > b.alone; });
    if (pairs.size() > kMostPairs) {
      pairs.resize(kMostPairs);
      out_of_reach_ = true;
    }
    pairs_ = static_cast<int64_t>(pairs.size());
    for (size_t round = 0; round < table.size(); ++round) {
      std::vector<Predictions::Question> questions;
      std::vector<std::pair<Suspect*, size_t>> open;
      for (const Pair& pair : pairs) {
        if (round >= pair.to_play.size()) continue;
        questions.push_back({pair.both->hypothesis, pair.to_play[round]});
        open.emplace_back(pair.both, pair.to_play[round]);
      }
      if (!ask(questions, open)) break;
      std::erase_if(pairs, [&](const Pair& pair) {
        return round < pair.to_play.size() && !is_possible(pair.both->match(pair.to_play[round]));
      });
    }
    Suspects list;
    for (const Pair& pair : pairs) list.push_back(pair.both);
    if (list.size() > kMostTried) {
      list.resize(kMostTried);
      out_of_reach_ = true;
    }
    return try_all(list);
  }

  // ---- telling it ---------------------------------------------------------------------------------------------------

  struct Score {
    int64_t agrees = 0, unclear = 0, silent = 0, contradicted = 0;
    double residual = 0;
  };

  [[nodiscard]] Score score(const Suspect& one) const {
    Score score;
    for (const auto& [exhibit, agreement] : one.known) {
      const bool compared = std::find(failing_.begin(), failing_.end(), exhibit) != failing_.end();
      if (agreement.match == Match::differs) ++score.contradicted;
      if (!compared) continue;
      if (agreement.match == Match::silent) ++score.silent;
      if (agreement.match == Match::unclear) ++score.unclear;
      if (agreement.match != Match::agrees) continue;
      ++score.agrees;
      score.residual = std::max(score.residual, agreement.residual);
    }
    return score;
  }

  /// Those that nothing told apart are one explanation; less exact ones come after it.
  std::vector<Explanation> rank(Suspects whole) {
    std::stable_sort(whole.begin(), whole.end(), [&](const Suspect* a, const Suspect* b) {
      const Score x = score(*a), y = score(*b);
      return x.agrees != y.agrees ? x.agrees > y.agrees : x.residual < y.residual;
    });
    std::vector<Suspects> groups;
    for (Suspect* one : whole) {
      if (!groups.empty()) {
        Suspects& last = groups.back();
        const bool known = std::any_of(last.begin(), last.end(), [&](const Suspect* other) {
          return bugs_of(other->hypothesis) == bugs_of(one->hypothesis);
        });
        if (known) continue;  // the same bugs with other roundings, or in another form
        const Score x = score(*last.front()), y = score(*one);
        if (x.agrees == y.agrees && !is_clearly_nearer(x.residual, y.residual)) {
          last.push_back(one);
          continue;
        }
      }
      groups.push_back({one});
    }
    std::vector<Explanation> explanations;
    for (const Suspects& group : groups) {
      explanations.push_back(explain(group));
      explanations.back().whole = true;
    }
    return explanations;
  }

  /// What explains some of it, with nothing that passes against it.
  std::vector<Explanation> parts() {
    Suspects list;
    for (auto& [hypothesis, one] : suspects_) {
      if (hypothesis.bugs.size() != 1 || !hypothesis.variant.empty()) continue;
      const Score found = score(one);
      if (found.agrees > 0 && !is_contradicted(one, false) && found.agrees >= found.contradicted) list.push_back(&one);
    }
    std::stable_sort(list.begin(), list.end(), [&](const Suspect* a, const Suspect* b) {
      const Score x = score(*a), y = score(*b);
      return x.agrees - x.contradicted > y.agrees - y.contradicted;
    });
    if (list.size() > kPartial) list.resize(kPartial);
    // A passing case may still speak against them.
    std::vector<Explanation> explanations;
    for (Suspect* one : list) {
      ask({one}, passing_for(one->hypothesis, limits_.passing));
      if (!is_contradicted(*one, false)) explanations.push_back(explain({one}));
    }
    return explanations;
  }

  Explanation explain(const Suspects& group) {
    const Suspect& first = *group.front();
    const Score found = score(first);
    Explanation explanation;
    explanation.explained = found.agrees;
    explanation.unclear = found.unclear;
    explanation.silent = found.silent;
    explanation.contradicted = found.contradicted;
    explanation.variant = first.hypothesis.variant;
    std::set<std::string> named;
    for (const Suspect* one : group) {
      explanation.bugs.push_back(bugs_of(one->hypothesis));
      for (const std::string& form : one->hypothesis.bugs) {
        const Bug* bug = catalogue_.find(bug_of(form));
        if (bug == nullptr || !named.insert(bug->id).second) continue;
        std::string fault = bug->fault;
        for (const Realisation& realisation : bug->realisations) {
          if (bug->id + "@" + realisation.id == form) fault += " Here: " + realisation.about;
        }
        explanation.portraits.push_back({bug->id, bug->area, fault, bug->symptom, bug->look_for, bug->links});
      }
    }
    for (const size_t f : failing_) {
      if (first.match(f) != Match::agrees || !first.has(f)) continue;
      if (explanation.cases.empty()) explanation.clauses = exhibits_[f].clauses;
      if (explanation.cases.size() < kNamedCases) explanation.cases.push_back(exhibits_[f].id);
    }
    for (const auto& [exhibit, agreement] : first.known) {
      if (agreement.match == Match::differs && explanation.against.empty()) {
        explanation.against = exhibits_[exhibit].id + ": " + agreement.where;
      }
    }
    explanation.apart = apart(group);
    return explanation;
  }

  /// What the catalogue says of telling these from those that look like them.
  [[nodiscard]] std::string apart(const Suspects& group) const {
    const Suspect& first = *group.front();
    for (const std::string& id : bugs_of(first.hypothesis)) {
      const Bug* bug = catalogue_.find(id);
      const BugGroup* kin = bug == nullptr || bug->group.empty() ? nullptr : catalogue_.find_group(bug->group);
      if (kin == nullptr) continue;
      std::vector<std::string> here, away;
      for (const std::string& other : kin->bugs) {
        const bool together = std::any_of(group.begin(), group.end(), [&](const Suspect* one) {
          const auto named = bugs_of(one->hypothesis);
          return std::find(named.begin(), named.end(), other) != named.end();
        });
        (together ? here : away).push_back(other);
      }
      if (here.size() > 1) return kin->how_to_separate;
      return fmt::format("Easily taken for {}, which the cases that were run rule out.", fmt::join(away, ", "));
    }
    return "";
  }

  [[nodiscard]] std::string line(const Diagnosis& diagnosis) const {
    if (diagnosis.verdict == Diagnosis::Verdict::explained) {
      return claim_text(diagnosis.explanations.front(), diagnosis);
    }
    std::string text = fmt::format("no known bug explains this: {} bugs", catalogue_.bugs.size());
    if (pairs_ > 0) text += fmt::format(" and {} pairs of them", pairs_);
    return text + fmt::format(" were held against {} failing case{}", failing_.size(), failing_.size() == 1 ? "" : "s");
  }

  const Catalogue& catalogue_;
  const std::vector<Exhibit>& exhibits_;
  Predictions& source_;
  DiagnosisLimits limits_;
  std::vector<std::string> forms_;  ///< Every bug in each of its realisations, as the mutants call them.
  std::vector<size_t> all_failing_, failing_, passing_;
  std::vector<size_t> telling_;  ///< Failing cases beyond failing_ that left no suspect.
  std::set<size_t> used_passing_;
  std::map<Hypothesis, Suspect> suspects_;
  int64_t predictions_ = 0, pairs_ = 0;
  bool out_of_time_ = false, out_of_reach_ = false;
};

}  // namespace

Diagnosis diagnose(const Catalogue& catalogue, const std::vector<Exhibit>& exhibits, Predictions& predictions,
                   const DiagnosisLimits& limits) {
  return Detective(catalogue, exhibits, predictions, limits).run();
}

}  // namespace attest
