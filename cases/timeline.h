// SPDX-License-Identifier: Apache-2.0
// What a case's steps mean, played through without any attention: which token lies in which slot of which sequence, and
// which rows each step computes. Inputs, the oracle and the runner read this and never count tokens themselves.
#pragma once

#include <cstdint>
#include <vector>

#include "cases/case.h"
#include "cases/pages.h"

namespace attest {

/// A token that was appended once. Slots refer to it; forks and reorders move references.
struct Token {
  int64_t origin;    ///< The sequence slot it was appended to.
  int64_t data;      ///< The slot whose data it takes (InputSpec::slots); else the same as `origin`.
  int64_t serial;    ///< Running number of tokens ever appended to that slot: new content after a rollback.
  int64_t position;  ///< Its index in the sequence.
  int64_t angle;     ///< Its RoPE position (clause R2).
  int64_t step;      ///< The step that brought it ...
  int64_t index;     ///< ... and its index among the step's keys of that sequence.
};

/// One query row (sequence b, index i) of a step.
struct Row {
  int64_t sequence;
  int64_t data;        ///< The slot whose data it takes, as Token::data.
  int64_t index;       ///< i, among the step's queries of the sequence.
  int64_t serial;      ///< Running number of queries of that slot.
  int64_t position;    ///< total - queries + i: the query's own position (clause M2).
  int64_t angle;       ///< Its RoPE position (clause R2).
  int64_t begin, end;  ///< Visible keys [begin, end) by position (clauses M1 to M5); a mask may hide some (M6).
};

/// A step with its bookkeeping done.
struct Moment {
  Step step;
  std::vector<int64_t> before;               ///< Cache lengths before the step (0 without a cache).
  std::vector<int64_t> after;                ///< And after it; equal to `before` if the step must be refused.
  std::vector<std::vector<Token>> tokens;    ///< Per sequence, the tokens after the step, by position.
  std::vector<std::vector<Token>> incoming;  ///< attend, load: per sequence, the step's own keys, refused ones too.
  std::vector<Row> rows;                     ///< attend that must succeed: rows in order (b, i).
  int64_t max_queries = 0, max_keys = 0;     ///< Padded extents Sq and Sk of the step's tensors.
  int64_t max_total = 0;                     ///< Longest sequence after the step.
  size_t query_step = 0;                     ///< The step whose query tensor the rows read: this one, or an earlier.
  std::vector<size_t> parts;                 ///< merge: the attends whose results are merged.
  Pages pages;                               ///< Paged cache: where its tokens lie from the step on.
};

using Timeline = std::vector<Moment>;

/// The slot of the cache's token axes, flattened, in which token `position` of a sequence lies: [B, C] of a contiguous
/// cache or a ring (clauses C6, C8), [pages, page_size] of a paged one (C7).
int64_t slot_of(const Problem& problem, const Moment& moment, int64_t sequence, int64_t position);

/// Plays a case through; throws if a step is impossible (truncate beyond the length, an overflow that is not expected).
Timeline play(const Case& c);

/// The keys that a query at `position` sees in a sequence of `total` keys, of a step with `queries` queries.
struct KeyRange {
  int64_t begin, end;
};
KeyRange visible_keys(const Problem& problem, int64_t total, int64_t queries, int64_t index);

/// The rows of a moment that have goldens: all, or `checked_rows` of them, spread evenly with the first and last rows
/// of every sequence first. Indices into `Moment::rows`, ascending.
std::vector<size_t> checked_rows(const Case& c, const Moment& moment);

}  // namespace attest
