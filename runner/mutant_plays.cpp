// SPDX-License-Identifier: Apache-2.0
#include "runner/mutant_plays.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <set>

#include "runner/forked.h"
#include "runner/markup.h"

namespace attest {
namespace {

/// The correct backend without any option.
constexpr const char* kPlain = "plain";
/// Cases that cost more are played with the bugs that they name, and few others.
constexpr double kCostly = 4e7;
/// Of the correct variants, one in so many plays a costly case; the plain one always.
constexpr size_t kSample = 8;
constexpr size_t kReasonColumns = 300;

/// Which mutants play a case.
using Plan = std::vector<std::pair<size_t, std::vector<size_t>>>;  ///< (case, mutants in rising order)

class MatrixRun {
 public:
  MatrixRun(const Suite& suite, const BackendLibrary& library, KillMatrix& matrix, std::vector<const Case*> cases,
            int jobs)
      : suite_(suite), subjects_(suite), library_(library), matrix_(matrix), cases_(std::move(cases)), jobs_(jobs) {
    for (const Case* c : cases_) cost_.push_back(cost(*c, play(*c)));
  }

  [[nodiscard]] double cost_of(size_t c) const { return cost_[c]; }
  [[nodiscard]] bool costly(size_t c) const { return cost_[c] > kCostly; }
  [[nodiscard]] bool names(size_t c, size_t m) const {
    const auto& kills = cases_[c]->kills;
    return std::find(kills.begin(), kills.end(), matrix_.mutants[m].bug()) != kills.end();
  }
  /// Whether a correct variant is among those that play a costly case.
  [[nodiscard]] bool sampled(size_t c, size_t m) const {
    return matrix_.mutants[m].id == kPlain || (c + m) % kSample == 0;
  }

  /// The costly cases first, so that the processes end together.
  void run(Plan plan, const std::function<void(size_t, size_t)>& progress) {
    std::erase_if(plan, [](const auto& one) { return one.second.empty(); });
    std::stable_sort(plan.begin(), plan.end(), [&](const auto& a, const auto& b) {
      return cost_[a.first] * static_cast<double>(a.second.size()) >
             cost_[b.first] * static_cast<double>(b.second.size());
    });
    Troupe troupe(library_, matrix_.mutants);
    size_t done = 0;
    Forked forked;
    forked.limit = std::chrono::minutes(2);
    forked.work = [&](size_t task, Stage& stage) { play_case(plan[task].first, plan[task].second, troupe, stage); };
    forked.received = [&](size_t task, std::string_view packet) {
      auto [m, cell] = unpack(packet);
      matrix_.at(m, plan[task].first) = std::move(cell);
    };
    forked.lost = [&](size_t task, size_t part, const std::string& how) {
      Cell& cell = matrix_.at(plan[task].second[part], plan[task].first);
      cell = {Cell::State::failed, std::numeric_limits<double>::infinity(), std::nullopt, how, true};
    };
    forked.finished = [&](size_t) {
      if (progress) progress(++done, plan.size());
    };
    forked.run(plan.size(), jobs_);
  }

 private:
  void play_case(size_t c, const std::vector<size_t>& mutants, Troupe& troupe, Stage& stage) const {
    // Gone with this case, so that a process does not come to hold all of the suite.
    std::map<std::string, Subject> subjects;
    Materials materials([&](const std::string& id) -> const Subject& {
      return subjects.insert_or_assign(id, subjects_.load(*find_case(suite_, id))).first->second;
    });
    const FindScript find = [&](const std::string& id) { return materials[id].script(); };
    const Script script = find(cases_[c]->id);
    for (size_t part = 0; part < mutants.size(); ++part) {
      if (!stage.enter(part)) continue;
      Rehearsal::How how;
      // A fault that the case is not there for may show in its repetitions; a few do.
      if (!names(c, mutants[part])) how.rounds = how.runs = 2;
      stage.send(pack(mutants[part], cell_of(troupe[mutants[part]].play(script, how, find))));
    }
  }

  const Suite& suite_;
  Subjects subjects_;
  const BackendLibrary& library_;
  KillMatrix& matrix_;
  std::vector<const Case*> cases_;
  std::vector<double> cost_;
  int jobs_;
};

/// All mutants on all cases, but for the costly ones.
Plan whole_plan(const KillMatrix& matrix, const MatrixRun& playing, bool everything) {
  Plan plan;
  for (size_t c = 0; c < matrix.cases.size(); ++c) {
    std::vector<size_t> mutants;
    for (size_t m = 0; m < matrix.mutants.size(); ++m) {
      const bool chosen = matrix.mutants[m].correct ? playing.sampled(c, m) : playing.names(c, m);
      if (everything || !playing.costly(c) || chosen) mutants.push_back(m);
    }
    plan.emplace_back(c, std::move(mutants));
  }
  return plan;
}

/// Of each bug the cases that name it, the cheapest first, until two have caught it and one of them clearly. Further
/// realisations go on to cases that do not, as `kills` is right if it is of one of them.
void play_fast(const KillMatrix& matrix, MatrixRun& playing, const std::function<void(size_t, size_t)>& progress) {
  std::vector<std::vector<size_t>> waiting(matrix.mutants.size());  // per bug, the cheapest last
  for (size_t m = 0; m < matrix.mutants.size(); ++m) {
    if (matrix.mutants[m].correct) continue;
    const bool further = matrix.mutants[m].id != matrix.mutants[m].bug();
    for (size_t c = 0; c < matrix.cases.size(); ++c) {
      if (playing.names(c, m) || (further && !playing.costly(c))) waiting[m].push_back(c);
    }
    std::stable_sort(waiting[m].begin(), waiting[m].end(), [&](size_t a, size_t b) {
      return std::pair(!playing.names(a, m), playing.cost_of(a)) > std::pair(!playing.names(b, m), playing.cost_of(b));
    });
  }
  for (bool first = true;; first = false) {
    std::map<size_t, std::set<size_t>> chosen;  // by case
    for (size_t m = 0; m < matrix.mutants.size(); ++m) {
      const MutantSummary sum = summary(matrix, m);
      const bool clear = !matrix.mutants[m].weak.empty() || sum.clear_margin >= kClearMargin;
      if (sum.kills >= 2 && clear) continue;
      for (int i = 0; i < 2 && !waiting[m].empty(); ++i) {
        chosen[waiting[m].back()].insert(m);
        waiting[m].pop_back();
      }
    }
    if (chosen.empty()) return;
    Plan plan;
    for (auto& [c, mutants] : chosen) {
      for (size_t m = 0; first && m < matrix.mutants.size(); ++m) {
        if (matrix.mutants[m].correct && (!playing.costly(c) || playing.sampled(c, m))) mutants.insert(m);
      }
      plan.emplace_back(c, std::vector<size_t>(mutants.begin(), mutants.end()));
    }
    playing.run(std::move(plan), progress);
  }
}

struct Packet {
  uint64_t mutant;
  Cell::State state;
  bool has_worst;
  double margin, worst;
};

}  // namespace

std::vector<Mutant> choose_mutants(const Catalogue& catalogue, const MatrixChoice& choice) {
  const bool all = choice.bugs.empty() && choice.variants.empty();
  const auto wanted = [&](const std::vector<std::string>& ids, const std::string& id) {
    return all || std::find(ids.begin(), ids.end(), id) != ids.end();
  };
  std::vector<Mutant> mutants;
  for (const Bug& bug : catalogue.bugs) {
    for (Mutant& one : mutants_of(bug)) {
      if (wanted(choice.bugs, bug.id) || wanted(choice.bugs, one.id)) mutants.push_back(std::move(one));
    }
  }
  // An area's bugs stand together, the areas as they come in the catalogue.
  std::map<std::string, size_t> areas;
  for (const Mutant& mutant : mutants) areas.emplace(mutant.area, areas.size());
  std::stable_sort(mutants.begin(), mutants.end(),
                   [&](const Mutant& a, const Mutant& b) { return areas.at(a.area) < areas.at(b.area); });
  const Variant plain{kPlain, "no option at all"};
  std::vector<Variant> correct{plain};
  correct.insert(correct.end(), catalogue.correct.begin(), catalogue.correct.end());
  for (const Variant& variant : correct) {
    if (wanted(choice.variants, variant.id)) mutants.push_back(mutant_of(variant));
  }
  const auto check = [&](const std::vector<std::string>& ids, bool are_correct, std::string_view option) {
    for (const std::string& id : ids) {
      if (std::none_of(mutants.begin(), mutants.end(),
                       [&](const Mutant& m) { return (m.id == id || m.bug() == id) && m.correct == are_correct; })) {
        throw Error::at(option, "got \"{}\", which is not in cases/bugs.json", id);
      }
    }
  };
  check(choice.bugs, false, "--bug");
  check(choice.variants, true, "--variant");
  return mutants;
}

std::vector<Mutant> correct_ones(const Catalogue& catalogue, const MatrixChoice& choice) {
  std::vector<Mutant> mutants = choose_mutants(catalogue, choice);
  std::erase_if(mutants, [](const Mutant& mutant) { return !mutant.correct; });
  return mutants;
}

std::map<std::string, std::string> options_of(const Mutant& mutant) {
  if (mutant.correct && mutant.id == kPlain) return {};
  return {{mutant.correct ? "variant" : "bug", mutant.id}};
}

Cell cell_of(const Performance& performance) {
  Cell cell;
  cell.state = performance.failed()                        ? Cell::State::failed
               : performance.status == Status::unsupported ? Cell::State::unsupported
                                                           : Cell::State::passed;
  cell.margin = performance.margin();
  cell.worst = performance.worst_ratio;
  cell.reason = shortened(printable(performance.reason), kReasonColumns);
  return cell;
}

std::string pack(size_t mutant, const Cell& cell) {
  Packet packet;
  std::memset(&packet, 0, sizeof packet);
  packet.mutant = mutant;
  packet.state = cell.state;
  packet.has_worst = cell.worst.has_value();
  packet.margin = cell.margin;
  packet.worst = cell.worst.value_or(0);
  return std::string(reinterpret_cast<const char*>(&packet), sizeof packet) + cell.reason;
}

std::pair<size_t, Cell> unpack(std::string_view text) {
  Packet packet;
  if (text.size() < sizeof packet) throw Error("a cell of the matrix is cut off");
  std::memcpy(&packet, text.data(), sizeof packet);
  Cell cell{packet.state, packet.margin, std::nullopt, std::string(text.substr(sizeof packet))};
  if (packet.has_worst) cell.worst = packet.worst;
  return {static_cast<size_t>(packet.mutant), std::move(cell)};
}

double cost(const Case& c, const Timeline& timeline) {
  const Problem& p = c.problem;
  const auto heads = static_cast<double>(p.query_heads * (p.qk_head_dim + p.v_head_dim));
  const auto stored = static_cast<double>(p.kv_heads * (p.qk_head_dim + p.v_head_dim));
  double sum = 0;
  for (const Moment& moment : timeline) {
    if (moment.step.kind != StepKind::attend) continue;
    for (const Row& row : moment.rows) sum += static_cast<double>(row.end - row.begin) * heads;
    const auto tokens = static_cast<double>(
        std::accumulate(moment.step.queries.begin(), moment.step.queries.end(),
                        std::accumulate(moment.step.keys.begin(), moment.step.keys.end(), int64_t{0})));
    if (p.level == Level::layer) sum += tokens * static_cast<double>(p.d_model) * (heads + stored);
    // What the suite itself does with every element: before and after a step, all of the cache.
    sum += 30 * (tokens * (heads + stored) + static_cast<double>(p.batch * (p.capacity + p.page_size)) * stored);
  }
  const auto partners = static_cast<double>(c.bitwise.with.size() + 2 * c.alongside.size());
  return sum * (static_cast<double>(c.alongside.empty() ? std::min<int64_t>(c.bitwise.runs, 2) : 2) + partners);
}

KillMatrix play_matrix(const Suite& suite, const Catalogue& catalogue, const BackendLibrary& library,
                       const MatrixChoice& choice, const std::function<void(size_t done, size_t planned)>& progress) {
  const auto start = std::chrono::steady_clock::now();
  const std::vector<const Case*> cases = select(suite, choice.selection);
  KillMatrix matrix;
  matrix.suite_hash = suite_hash(suite.root);
  matrix.backend = library.table().name;
  matrix.backend_version = printable(library.table().version);
  matrix.all_cases = cases.size() == suite.cases.size();
  matrix.all_bugs = choice.bugs.empty() && choice.variants.empty();
  matrix.fast = choice.fast;
  matrix.mutants = choose_mutants(catalogue, choice);
  for (const Case* c : cases) matrix.cases.push_back(matrix_case(*c));
  matrix.clear();
  MatrixRun playing(suite, library, matrix, cases, choice.jobs);
  if (choice.fast) {
    play_fast(matrix, playing, progress);
  } else {
    playing.run(whole_plan(matrix, playing, choice.everything), progress);
  }
  matrix.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return matrix;
}

}  // namespace attest
