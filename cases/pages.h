// SPDX-License-Identifier: Apache-2.0
// The pages of a paged cache: which of them each sequence has, in which order they are given out, and which must be
// copied before a step writes to one that is shared. What a serving engine's allocator does, out of order on purpose.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "cases/problem.h"

namespace attest {

/// Where tokens lie from one step on.
struct Pages {
  std::vector<std::vector<int64_t>> table;          ///< Per sequence, its pages in the order of its tokens.
  std::vector<std::pair<int64_t, int64_t>> copies;  ///< (from, to): to be copied before the step, in this order.
};

/// Number of pages of a problem's cache: enough for every sequence to be full alone, and a few that are never used.
int64_t page_count(const Problem& problem);

/// Gives pages out and takes them back. Sequences share the full pages of what they have in common after a fork or a
/// reorder; a page is copied when one of its owners is about to write to it.
class PageAllocator {
 public:
  /// `seed` chooses the order of the pages.
  PageAllocator(const Problem& problem, int64_t seed);

  /// Makes room for the tokens [length, length + count) of a sequence.
  void append(int64_t sequence, int64_t length, int64_t count);
  /// Keeps the pages of the first `length` tokens.
  void truncate(int64_t sequence, int64_t length);
  /// Sequence b takes what sequence source[b] had.
  void rearrange(const std::vector<int64_t>& source);

  /// The state as it is, with the copies since the last call.
  [[nodiscard]] Pages take();

 private:
  int64_t fresh();
  void release(int64_t page);

  int64_t page_size_;
  std::vector<std::vector<int64_t>> table_;
  std::vector<int64_t> owners_;  ///< Per page, how many sequences have it.
  std::vector<int64_t> free_;    ///< The next one is taken from the end.
  std::vector<std::pair<int64_t, int64_t>> copies_;
};

}  // namespace attest
