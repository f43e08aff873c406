// SPDX-License-Identifier: Apache-2.0
#include "cases/timeline.h"

#include <algorithm>
#include <set>

namespace attest {
namespace {

/// The state that steps change: what every slot holds, and how many tokens and queries it has ever seen.
struct State {
  std::vector<std::vector<Token>> tokens;
  std::vector<int64_t> next_serial, next_query;

  [[nodiscard]] std::vector<int64_t> lengths() const {
    std::vector<int64_t> lengths;
    for (const auto& sequence : tokens) lengths.push_back(static_cast<int64_t>(sequence.size()));
    return lengths;
  }
};

std::string step_place(const Case& c, size_t step) {
  return fmt::format("{}: {} step {}", c.file.string(), c.id, step);
}

void attend(const Case& c, size_t index, State& state, Moment& moment) {
  const Step& step = moment.step;
  const bool cached = c.problem.cache != CacheKind::none;
  const bool refused = step.expect != Expect::ok;
  bool overflows = false;
  moment.incoming.resize(state.tokens.size());
  for (size_t b = 0; b < state.tokens.size(); ++b) {
    if (!cached) state.tokens[b].clear();
    const auto length = static_cast<int64_t>(state.tokens[b].size());
    if (c.problem.level == Level::layer && c.inputs.self && step.queries[b] != step.keys[b]) {
      throw Error::at(step_place(c, index), "has {} queries and {} keys; with \"self\" they must be equal",
                      step.queries[b], step.keys[b]);
    }
    overflows = overflows || (cached && length + step.keys[b] > c.problem.capacity);
    for (int64_t i = 0; i < step.keys[b]; ++i) {
      moment.incoming[b].push_back(
          {static_cast<int64_t>(b), state.next_serial[b]++, length + i, static_cast<int64_t>(index), i});
    }
    moment.max_queries = std::max(moment.max_queries, step.queries[b]);
    moment.max_keys = std::max(moment.max_keys, step.keys[b]);
  }
  if (overflows != (step.expect == Expect::overflow)) {
    throw Error::at(step_place(c, index), "{} the capacity {}, but \"expect\" says otherwise",
                    overflows ? "exceeds" : "stays within", c.problem.capacity);
  }
  if (moment.max_queries == 0) throw Error::at(step_place(c, index), "has no query");
  if (refused) {
    // What was refused is gone: the queries that come after it are new ones, as the keys are.
    for (size_t b = 0; b < state.tokens.size(); ++b) state.next_query[b] += step.queries[b];
    return;
  }
  for (size_t b = 0; b < state.tokens.size(); ++b) {
    auto& tokens = state.tokens[b];
    tokens.insert(tokens.end(), moment.incoming[b].begin(), moment.incoming[b].end());
    const auto total = static_cast<int64_t>(tokens.size());
    for (int64_t i = 0; i < step.queries[b]; ++i) {
      const KeyRange keys = visible_keys(c.problem, total, step.queries[b], i);
      moment.rows.push_back(
          {static_cast<int64_t>(b), i, state.next_query[b]++, total - step.queries[b] + i, keys.begin, keys.end});
    }
  }
}

void apply(const Case& c, size_t index, State& state, Moment& moment) {
  const Step& step = moment.step;
  switch (step.kind) {
    case StepKind::attend:
      attend(c, index, state, moment);
      break;
    case StepKind::truncate:
      for (size_t b = 0; b < state.tokens.size(); ++b) {
        if (step.lengths[b] > moment.before[b]) {
          throw Error::at(step_place(c, index), "truncates sequence {} to {}, which has {} tokens", b, step.lengths[b],
                          moment.before[b]);
        }
        state.tokens[b].resize(static_cast<size_t>(step.lengths[b]));
      }
      break;
    case StepKind::reset:
      for (const int64_t b : step.sequences) state.tokens[static_cast<size_t>(b)].clear();
      break;
    case StepKind::fork:
      state.tokens[static_cast<size_t>(step.to)] = state.tokens[static_cast<size_t>(step.from)];
      break;
    case StepKind::reorder: {
      const auto old = state.tokens;
      for (size_t b = 0; b < old.size(); ++b) state.tokens[b] = old[static_cast<size_t>(step.sequences[b])];
      break;
    }
  }
}

}  // namespace

KeyRange visible_keys(const Problem& problem, int64_t total, int64_t queries, int64_t index) {
  // Under top-left alignment rows count from the first key (M4, M5), else from the last one (M2).
  const int64_t position = problem.causal == Causal::top_left ? index : total - queries + index;
  KeyRange keys{0, problem.causal == Causal::none ? total : position + 1};
  if (problem.window_left) keys.begin = position - *problem.window_left;
  if (problem.window_right) keys.end = std::min(keys.end, position + *problem.window_right + 1);
  keys.begin = std::clamp<int64_t>(keys.begin, 0, total);
  keys.end = std::clamp<int64_t>(keys.end, keys.begin, total);
  return keys;
}

Timeline play(const Case& c) {
  const auto batch = static_cast<size_t>(c.problem.batch);
  State state{std::vector<std::vector<Token>>(batch), std::vector<int64_t>(batch), std::vector<int64_t>(batch)};
  Timeline timeline;
  for (size_t i = 0; i < c.steps.size(); ++i) {
    Moment moment;
    moment.step = c.steps[i];
    moment.before = c.problem.cache == CacheKind::none ? std::vector<int64_t>(batch) : state.lengths();
    apply(c, i, state, moment);
    moment.after = state.lengths();
    moment.tokens = state.tokens;
    moment.max_total = *std::max_element(moment.after.begin(), moment.after.end());
    timeline.push_back(std::move(moment));
  }
  return timeline;
}

std::vector<size_t> checked_rows(const Case& c, const Moment& moment) {
  const size_t rows = moment.rows.size();
  const auto wanted = static_cast<size_t>(c.checked_rows);
  std::set<size_t> chosen;
  if (rows == 0 || wanted == 0 || wanted >= rows) {
    for (size_t r = 0; r < rows; ++r) chosen.insert(r);
    return {chosen.begin(), chosen.end()};
  }
  for (size_t r = 0; r < rows; ++r) {
    const bool first = r == 0 || moment.rows[r - 1].sequence != moment.rows[r].sequence;
    const bool last = r + 1 == rows || moment.rows[r + 1].sequence != moment.rows[r].sequence;
    if (first || last) chosen.insert(r);
  }
  // A stride that shares no factor with powers of two walks over all residues of a tile.
  for (size_t k = 0; chosen.size() < wanted; ++k) chosen.insert((k * 2654435761U + rows / 2) % rows);
  return {chosen.begin(), chosen.end()};
}

}  // namespace attest
