// SPDX-License-Identifier: Apache-2.0
// Faults of the sliding window, and of the ring in which it keeps its tokens.
#include <algorithm>
#include <map>
#include <memory>

#include "bugs.h"

namespace mutants {
namespace {

/// A rollback of a sequence in a ring: where its tokens are taken to lie from then on.
struct Rollback {
  std::int64_t total = 0;          ///< At the end of the last step.
  std::int64_t kept = 0, at = 0;   ///< Tokens up to `at`, of which `kept` are left.
  std::int64_t written_ahead = 0;  ///< The write index less what it should be.
};

void move_window_begin(Hooks& k, std::int64_t by) {
  wrap(k.window_begin, [by](auto& right, const Call& c, const auto&... at) {
    return right(c, at...) + (c.p.window_left < 0 ? 0 : by);
  });
}

/// The left bound, the right one or both are compared with a ring's slot number.
void compare_slots(Hooks& k, bool left, bool right_too) {
  wrap(k.sees, [=](auto& right, const Call& c, KeyRange keys, std::int64_t j) {
    if (c.p.cache != ATTEST_CACHE_RING) return right(c, keys, j);
    const std::int64_t slot = j % c.p.capacity;
    return keys.begin <= (left ? slot : j) && (right_too ? slot : j) < keys.end;
  });
  wrap(k.walked, [](auto& right, const Call& c, const Sequence& s, const std::vector<Row>& rows) {
    if (c.p.cache != ATTEST_CACHE_RING) return right(c, s, rows);
    return KeyRange{std::max<std::int64_t>(c.past[s.b] - c.p.capacity, 0), s.total};
  });
}

}  // namespace

const std::vector<Bug> window_bugs{
    {"window-off1", [](Hooks& k) { move_window_begin(k, 1); }},
    {"window-off1@wider", [](Hooks& k) { move_window_begin(k, -1); }},

    {"window-no-right",
     [](Hooks& k) {
       wrap(k.window_end, [](auto& right, const Call& c, const Sequence& s, std::int64_t i) {
         return c.p.window_right == 0 ? s.total : right(c, s, i);
       });
     }},

    {"window-tile-only",
     [](Hooks& k) {
       wrap(k.window_begin, [](auto& right, const Call& c, const auto&... at) {
         return std::max<std::int64_t>(right(c, at...), 0) / c.numerics.key_tile * c.numerics.key_tile;
       });
     }},

    {"mask-combo-drop",  // without an explicit mask
     [](Hooks& k) {
       wrap(k.window_begin, [](auto& right, const Call& c, const Sequence& s, std::int64_t i) {
         return c.p.mask == ATTEST_MASK_NONE ? 0 : right(c, s, i);
       });
       wrap(k.window_end, [](auto& right, const Call& c, const Sequence& s, std::int64_t i) {
         return c.p.mask == ATTEST_MASK_NONE ? s.total : right(c, s, i);
       });
     }},

    {"window-buffer-index", [](Hooks& k) { compare_slots(k, true, true); }},
    {"window-buffer-index@window", [](Hooks& k) { compare_slots(k, true, false); }},
    {"window-buffer-index@causal", [](Hooks& k) { compare_slots(k, false, true); }},

    {"ring-start",
     [](Hooks& k) {
       wrap(k.read_slot, [](auto& right, const Call& c, std::int64_t b, std::int64_t t) {
         if (c.p.cache != ATTEST_CACHE_RING) return right(c, b, t);
         const std::int64_t kept = std::min(c.past[b], c.p.capacity);
         return right(c, b, c.past[b] % c.p.capacity + (t - (c.past[b] - kept)));
       });
     }},

    {"ring-prefill-clobber",
     [](Hooks& k) {
       k.append_first = [](const Call&) { return true; };
       wrap(k.fresh, [](auto& right, const Call& c, const auto&... at) {
         return c.p.cache != ATTEST_CACHE_RING && right(c, at...);
       });
     }},

    {"ring-trim-logical",
     [](Hooks& k) {
       const auto rollbacks = std::make_shared<std::map<std::int64_t, Rollback>>();
       wrap(k.lengths, [rollbacks](auto& right, Call& c) {
         right(c);
         for (std::int64_t b = 0; c.p.cache == ATTEST_CACHE_RING && b < c.p.batch; ++b) {
           Rollback& r = (*rollbacks)[b];
           if (c.past[b] == 0) r = {};
           if (c.past[b] < r.total) {
             r = {0, std::min(c.past[b], c.p.capacity), c.past[b], r.total + r.written_ahead - c.past[b]};
           }
           r.total = c.past[b] + c.e.keys[b];
         }
       });
       const auto slot = [rollbacks](auto& right, const Call& c, std::int64_t b, std::int64_t t) {
         if (c.p.cache != ATTEST_CACHE_RING) return right(c, b, t);
         const Rollback& r = rollbacks->at(b);
         return right(c, b, t < r.at ? t - (r.at - r.kept) : t + r.written_ahead);
       };
       wrap(k.read_slot, slot);
       wrap(k.write_slot, slot);
     }},
};

}  // namespace mutants
