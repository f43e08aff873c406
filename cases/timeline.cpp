// SPDX-License-Identifier: Apache-2.0
#include "cases/timeline.h"

#include <algorithm>
#include <numeric>
#include <optional>
#include <set>

namespace attest {
namespace {

// Every moment keeps the tokens of all sequences, so a long decode takes the square of its length.
constexpr size_t kMaxKept = size_t{1} << 24;

/// The state that steps change: what every slot holds, and how many tokens and queries it has ever seen.
struct State {
  std::vector<std::vector<Token>> tokens;
  std::vector<int64_t> next_serial, next_query;
  std::optional<PageAllocator> pages;

  [[nodiscard]] std::vector<int64_t> lengths() const {
    std::vector<int64_t> lengths;
    for (const auto& sequence : tokens) lengths.push_back(static_cast<int64_t>(sequence.size()));
    return lengths;
  }
  void cut(size_t sequence, int64_t length) {
    tokens[sequence].resize(static_cast<size_t>(length));
    if (pages) pages->truncate(static_cast<int64_t>(sequence), length);
  }
  /// Sequence b takes what sequence source[b] had.
  void rearrange(const std::vector<int64_t>& source) {
    const auto old = tokens;
    for (size_t b = 0; b < old.size(); ++b) tokens[b] = old[static_cast<size_t>(source[b])];
    if (pages) pages->rearrange(source);
  }
};

std::string step_place(const Case& c, size_t step) {
  return fmt::format("{}: {} step {}", c.file.string(), c.id, step);
}

int64_t data_slot(const Case& c, size_t sequence) {
  return c.inputs.slots.empty() ? static_cast<int64_t>(sequence) : c.inputs.slots[sequence];
}

/// C8: a ring still has what the queries of its next step may see, if it is cut to this length.
void check_ring(const Case& c, size_t index, int64_t sequence, int64_t length, int64_t kept) {
  if (!c.problem.window_left) return;  // check_binding's question what a ring's window changes
  const int64_t lost = std::max<int64_t>(0, length - c.problem.capacity);
  if (kept < length && std::max<int64_t>(0, kept - *c.problem.window_left) < lost) {
    throw Error::at(step_place(c, index),
                    "truncates sequence {} to {}, whose window needs tokens that the ring has lost", sequence, kept);
  }
}

/// The last attend before a step.
size_t last_attend(const Case& c, size_t index, const Timeline& timeline) {
  for (size_t i = index; i-- > 0;) {
    if (timeline[i].step.kind == StepKind::attend) return i;
  }
  throw Error::at(step_place(c, index), "wants an attend before it");
}

/// E2: rows over the keys of all parts.
void merge(const Case& c, size_t index, const Timeline& timeline, Moment& moment) {
  for (size_t i = index; moment.parts.size() < static_cast<size_t>(moment.step.parts);) {
    i = last_attend(c, i, timeline);
    moment.parts.insert(moment.parts.begin(), i);
  }
  const Moment& first = timeline[moment.parts.front()];
  moment.query_step = first.query_step;
  moment.max_queries = first.max_queries;
  moment.rows = first.rows;
  moment.tokens.resize(first.tokens.size());
  for (const size_t part : moment.parts) {
    if (timeline[part].query_step != first.query_step) {
      throw Error::at(step_place(c, index), "merges step {}, whose queries are not those of step {}", part,
                      moment.parts.front());
    }
    for (size_t b = 0; b < moment.tokens.size(); ++b) {
      const auto& tokens = timeline[part].tokens[b];
      moment.tokens[b].insert(moment.tokens[b].end(), tokens.begin(), tokens.end());
    }
  }
  for (Row& row : moment.rows) {
    row.begin = 0;
    row.end = static_cast<int64_t>(moment.tokens[static_cast<size_t>(row.sequence)].size());
  }
}

void attend(const Case& c, size_t index, const Timeline& timeline, State& state, Moment& moment) {
  const Step& step = moment.step;
  const bool cached = c.problem.cache != CacheKind::none;
  const bool bounded = cached && c.problem.cache != CacheKind::ring;
  const bool refused = step.expect != Expect::ok;
  bool overflows = false;
  const auto angle = [&](size_t b, int64_t i, int64_t position) {
    return step.positions.empty() ? position : step.positions[b] + i;
  };
  if (step.again) {
    const Moment& before = timeline[last_attend(c, index, timeline)];
    if (before.step.queries != step.queries) {
      throw Error::at(step_place(c, index),
                      "repeats the queries of the attend before it, but has another number of them");
    }
    moment.query_step = before.query_step;
    for (size_t b = 0; b < step.queries.size(); ++b) state.next_query[b] -= step.queries[b];
  }
  moment.incoming.resize(state.tokens.size());
  for (size_t b = 0; b < state.tokens.size(); ++b) {
    if (!cached) state.tokens[b].clear();
    const auto length = static_cast<int64_t>(state.tokens[b].size());
    if (c.problem.level == Level::layer && c.inputs.self && step.queries[b] != step.keys[b]) {
      throw Error::at(step_place(c, index), "has {} queries and {} keys; with \"self\" they must be equal",
                      step.queries[b], step.keys[b]);
    }
    overflows = overflows || (bounded && length + step.keys[b] > c.problem.capacity);
    for (int64_t i = 0; i < step.keys[b]; ++i) {
      moment.incoming[b].push_back({static_cast<int64_t>(b), data_slot(c, b), state.next_serial[b]++, length + i,
                                    angle(b, i, length + i), static_cast<int64_t>(index), i});
    }
    moment.max_queries = std::max(moment.max_queries, step.queries[b]);
    moment.max_keys = std::max(moment.max_keys, step.keys[b]);
  }
  if (overflows != (step.expect == Expect::overflow)) {
    throw Error::at(step_place(c, index), "{} the capacity {}, but \"expect\" says otherwise",
                    overflows ? "exceeds" : "stays within", c.problem.capacity);
  }
  if (moment.max_queries == 0) throw Error::at(step_place(c, index), "has no query");
  if (state.pages && !overflows) {
    for (size_t b = 0; b < state.tokens.size(); ++b) {
      state.pages->append(static_cast<int64_t>(b), static_cast<int64_t>(state.tokens[b].size()), step.keys[b]);
    }
  }
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
      const int64_t position = total - step.queries[b] + i;
      // A ring has a window, but where that is taken away to see whether it matters.
      if (c.problem.cache == CacheKind::ring && c.problem.window_left &&
          keys.begin < std::min(keys.end, moment.before[b] - c.problem.capacity)) {
        throw Error::at(step_place(c, index),
                        "query {} of sequence {} sees token {}, which a ring of {} has overwritten", i, b, keys.begin,
                        c.problem.capacity);
      }
      moment.rows.push_back({static_cast<int64_t>(b), data_slot(c, b), i, state.next_query[b]++, position,
                             angle(b, i, position), keys.begin, keys.end});
    }
  }
}

/// P8: tokens whose keys and values come from elsewhere.
void load(const Case& c, size_t index, State& state, Moment& moment) {
  moment.incoming.resize(state.tokens.size());
  for (size_t b = 0; b < state.tokens.size(); ++b) {
    auto& tokens = state.tokens[b];
    const auto length = static_cast<int64_t>(tokens.size());
    const int64_t count = moment.step.keys[b];
    if (length + count > c.problem.capacity) {
      throw Error::at(step_place(c, index), "loads {} tokens into sequence {}, which has {} of at most {}", count, b,
                      length, c.problem.capacity);
    }
    for (int64_t i = 0; i < count; ++i) {
      moment.incoming[b].push_back({static_cast<int64_t>(b), data_slot(c, b), state.next_serial[b]++, length + i,
                                    length + i, static_cast<int64_t>(index), i});
    }
    tokens.insert(tokens.end(), moment.incoming[b].begin(), moment.incoming[b].end());
    state.next_query[b] += count;  // their queries were elsewhere: a layer's own input stays that of its token
    moment.max_keys = std::max(moment.max_keys, count);
  }
}

void apply(const Case& c, size_t index, const Timeline& timeline, State& state, Moment& moment) {
  const Step& step = moment.step;
  switch (step.kind) {
    case StepKind::attend:
      attend(c, index, timeline, state, moment);
      break;
    case StepKind::merge:
      merge(c, index, timeline, moment);
      break;
    case StepKind::truncate:
      for (size_t b = 0; b < state.tokens.size(); ++b) {
        if (step.lengths[b] > moment.before[b]) {
          throw Error::at(step_place(c, index), "truncates sequence {} to {}, which has {} tokens", b, step.lengths[b],
                          moment.before[b]);
        }
        if (c.problem.cache == CacheKind::ring) {
          check_ring(c, index, static_cast<int64_t>(b), moment.before[b], step.lengths[b]);
        }
        state.cut(b, step.lengths[b]);
      }
      break;
    case StepKind::reset:
      for (const int64_t b : step.sequences) state.cut(static_cast<size_t>(b), 0);
      break;
    case StepKind::fork: {
      std::vector<int64_t> source(state.tokens.size());
      std::iota(source.begin(), source.end(), int64_t{0});
      source[static_cast<size_t>(step.to)] = step.from;
      state.rearrange(source);
      break;
    }
    case StepKind::reorder:
      state.rearrange(step.sequences);
      break;
    case StepKind::load:
      load(c, index, state, moment);
      break;
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

int64_t slot_of(const Problem& problem, const Moment& moment, int64_t sequence, int64_t position) {
  switch (problem.cache) {
    case CacheKind::paged: {
      const auto& pages = moment.pages.table[static_cast<size_t>(sequence)];
      return pages[static_cast<size_t>(position / problem.page_size)] * problem.page_size +
             position % problem.page_size;
    }
    case CacheKind::ring:
      return sequence * problem.capacity + position % problem.capacity;
    default:
      return sequence * problem.capacity + position;
  }
}

Timeline play(const Case& c) {
  const auto batch = static_cast<size_t>(c.problem.batch);
  State state{std::vector<std::vector<Token>>(batch), std::vector<int64_t>(batch), std::vector<int64_t>(batch), {}};
  if (c.problem.cache == CacheKind::paged) state.pages.emplace(c.problem, c.inputs.pages);
  Timeline timeline;
  size_t kept = 0;
  const auto keep = [&](Moment& moment) {
    for (const auto& tokens : moment.tokens) kept += tokens.size();
    if (kept > kMaxKept) {
      throw Error::at(step_place(c, timeline.size()), "brings the tokens of all steps to more than {} (2^24)",
                      kMaxKept);
    }
    timeline.push_back(std::move(moment));
  };
  for (size_t i = 0; i < c.steps.size(); ++i) {
    Moment moment;
    moment.step = c.steps[i];
    moment.before = c.problem.cache == CacheKind::none ? std::vector<int64_t>(batch) : state.lengths();
    moment.query_step = i;
    apply(c, i, timeline, state, moment);
    if (state.pages) moment.pages = state.pages->take();
    if (moment.step.kind == StepKind::merge) {
      keep(moment);
      continue;
    }
    if (state.pages && moment.step.expect == Expect::invalid) {
      // Pages were there for a step in which something else is wrong; it leaves none behind.
      for (size_t b = 0; b < batch; ++b) {
        state.pages->truncate(static_cast<int64_t>(b), static_cast<int64_t>(state.tokens[b].size()));
      }
    }
    moment.after = state.lengths();
    moment.tokens = state.tokens;
    moment.max_total = *std::max_element(moment.after.begin(), moment.after.end());
    keep(moment);
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
