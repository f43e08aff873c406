// SPDX-License-Identifier: Apache-2.0
// Faults of block tables and pages.
#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>

#include "bugs.h"

namespace mutants {
namespace {

bool paged(const Call& c) {
  return c.p.cache == ATTEST_CACHE_PAGED;
}

using Prefix = std::vector<bool>;

/// A hash of a page that collides often: one sign of its first key.
bool hash_of_page(const Call& c, std::int64_t page) {
  return std::signbit((*c.keys.cache)(page, 0, 0, 0));
}

void ignore_table(Hooks& k) {
  wrap(k.read_slot, [](auto& right, const Call& c, std::int64_t b, std::int64_t t) {
    if (!paged(c)) return right(c, b, t);
    return Slot{c.page(b, 0) + t / c.p.page_size, t % c.p.page_size};
  });
}

/// The allocator's pages are twice as large.
void mix_sizes(Hooks& k) {
  wrap(k.read_slot, [](auto& right, const Call& c, std::int64_t b, std::int64_t t) {
    if (!paged(c)) return right(c, b, t);
    const std::int64_t size = 2 * c.p.page_size, slot = c.page(b, t / size) * c.p.page_size + t % size;
    return Slot{slot / c.p.page_size, slot % c.p.page_size};
  });
}

/// The page of the table's next entry in memory, -1 beyond its end.
std::int64_t page_after(const Call& c, std::int64_t b, std::int64_t column) {
  const std::int64_t columns = c.table.shape(1), number = b * columns + column + 1;
  return number < c.table.shape(0) * columns ? c.table(number / columns, number % columns) : -1;
}

}  // namespace

const std::vector<Bug> paged_bugs{
    {"page-tail-nan",
     [](Hooks& k) {
       wrap(k.loads, [](auto& right, const Call& c, const Sequence& s, KeyRange walked, Role role, std::int64_t j) {
         return right(c, s, walked, role, j) ||
                (paged(c) && role == Role::value && j >= s.total && j < reserved(c, s.b));
       });
       wrap(k.weigh, [](auto& right, const Call& c, Row& row, float weight, const float* value) {
         if (paged(c) && weight == 0) return row.output.add(weight, value);
         return right(c, row, weight, value);
       });
     }},

    {"page-i32",  // wraps at 1024 elements
     [](Hooks& k) {
       wrap(k.element, [](auto& right, const Call& c, const auto& cache, Slot slot, std::int64_t head, bool writing) {
         if (!paged(c) || writing) return right(c, cache, slot, head, writing);
         const std::int64_t in_page = right(c, cache, Slot{0, slot.inner}, head, writing);
         return (right(c, cache, slot, head, writing) - in_page) % 1024 + in_page;
       });
     }},

    {"page-contiguous", ignore_table},
    {"page-contiguous@from-step", [](Hooks& k) { ignore_table(k), attend_from_step(k); }},

    {"page-size-mix", mix_sizes},
    {"page-size-mix@from-step", [](Hooks& k) { mix_sizes(k), attend_from_step(k); }},

    {"page-iter-stride",  // tiles of V have 64 channels: from the second one on the page is still the last tile's
     [](Hooks& k) {
       wrap(k.fetch,
            [](auto& right, const Call& c, const Sequence& s, std::int64_t j, Role role, std::int64_t head, float* to) {
              right(c, s, j, role, head, to);
              const std::int64_t late = j - c.numerics.key_tile, width = c.p.v_head_dim;
              if (!paged(c) || role != Role::value || width <= 64 || late < 0) return;
              std::vector<float> stale(static_cast<std::size_t>(width));
              right(c, s, late, role, head, stale.data());
              std::copy(stale.begin() + 64, stale.end(), to + 64);
            });
     }},

    {"page-table-oob",  // a device reports the access to a page that is none as an error
     [](Hooks& k) {
       wrap(k.read_slot, [](auto& right, const Call& c, std::int64_t b, std::int64_t t) {
         if (!paged(c)) return right(c, b, t);
         const std::int64_t prefetched = page_after(c, b, t / c.p.page_size), pages = c.keys.cache->shape(0);
         if (prefetched < 0 || prefetched >= pages) {
           throw std::runtime_error("illegal memory access: page " + std::to_string(prefetched));
         }
         return right(c, b, t);
       });
     }},

    {"prefix-collision",  // a full page is taken from the first sequence whose pages up to there have the same hashes
     [](Hooks& k) {
       using Place = std::pair<std::int64_t, std::int64_t>;
       const auto shared = std::make_shared<std::map<Place, std::int64_t>>();  // of the step
       wrap(k.lengths, [shared](auto& right, Call& c) {
         right(c);
         shared->clear();
         std::map<Prefix, std::int64_t> known;
         for (std::int64_t b = 0; paged(c) && b < c.p.batch; ++b) {
           Prefix prefix;
           for (std::int64_t column = 0; (column + 1) * c.p.page_size <= c.past[b]; ++column) {
             prefix.push_back(hash_of_page(c, c.page(b, column)));
             (*shared)[{b, column}] = known.try_emplace(prefix, c.page(b, column)).first->second;
           }
         }
       });
       wrap(k.read_slot, [shared](auto& right, const Call& c, std::int64_t b, std::int64_t t) {
         const auto found = paged(c) ? shared->find({b, t / c.p.page_size}) : shared->end();
         return found == shared->end() ? right(c, b, t) : Slot{found->second, t % c.p.page_size};
       });
     }},
};

}  // namespace mutants
