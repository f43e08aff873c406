// SPDX-License-Identifier: Apache-2.0
#include "cases/pages.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>

#include "cases/philox.h"

namespace attest {
namespace {

int64_t pages_for(int64_t tokens, int64_t page_size) {
  return (tokens + page_size - 1) / page_size;
}

}  // namespace

int64_t page_count(const Problem& p) {
  // Copies are made before the shared page is let go, so one sequence may hold a page more than it needs.
  return p.batch * (pages_for(p.capacity, p.page_size) + 1) + 2;
}

PageAllocator::PageAllocator(const Problem& problem, int64_t seed)
    : page_size_(problem.page_size),
      table_(static_cast<size_t>(problem.batch)),
      owners_(static_cast<size_t>(page_count(problem))),
      free_(owners_.size()) {
  std::iota(free_.begin(), free_.end(), int64_t{0});
  // Fisher and Yates' shuffle, from the suite's own generator: the same order on every machine.
  const PhiloxStream stream(static_cast<uint64_t>(seed), 0xca5e);
  for (size_t i = free_.size(); i-- > 1;) std::swap(free_[i], free_[stream.words(i)[0] % (i + 1)]);
}

int64_t PageAllocator::fresh() {
  if (free_.empty()) throw std::logic_error("the paged cache has no page left");
  const int64_t page = free_.back();
  free_.pop_back();
  owners_[static_cast<size_t>(page)] = 1;
  return page;
}

void PageAllocator::release(int64_t page) {
  // To the other end: what has just been given back comes last again, so stale pages do not return where they were.
  if (--owners_[static_cast<size_t>(page)] == 0) free_.insert(free_.begin(), page);
}

void PageAllocator::append(int64_t sequence, int64_t length, int64_t count) {
  if (count == 0) return;
  auto& pages = table_[static_cast<size_t>(sequence)];
  const auto kept = static_cast<size_t>(pages_for(length, page_size_));
  if (length % page_size_ != 0 && owners_[static_cast<size_t>(pages[kept - 1])] > 1) {
    const int64_t shared = pages[kept - 1];
    pages[kept - 1] = fresh();
    copies_.emplace_back(shared, pages[kept - 1]);
    release(shared);
  }
  while (static_cast<int64_t>(pages.size()) < pages_for(length + count, page_size_)) pages.push_back(fresh());
}

void PageAllocator::truncate(int64_t sequence, int64_t length) {
  auto& pages = table_[static_cast<size_t>(sequence)];
  while (static_cast<int64_t>(pages.size()) > pages_for(length, page_size_)) {
    release(pages.back());
    pages.pop_back();
  }
}

void PageAllocator::rearrange(const std::vector<int64_t>& source) {
  const auto old = table_;
  for (size_t b = 0; b < old.size(); ++b) {
    table_[b] = old[static_cast<size_t>(source[b])];
    for (const int64_t page : table_[b]) ++owners_[static_cast<size_t>(page)];
  }
  for (const auto& pages : old) {
    for (const int64_t page : pages) release(page);
  }
}

Pages PageAllocator::take() {
  return {table_, std::exchange(copies_, {})};
}

}  // namespace attest
