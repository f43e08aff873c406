// SPDX-License-Identifier: Apache-2.0
// Faults of the cache: lengths, append positions, slots.
#include <algorithm>
#include <map>
#include <memory>

#include "bugs.h"

namespace mutants {
namespace {

/// A length of the cache before a step that still fits.
std::int64_t fitting(const Call& c, std::int64_t b, std::int64_t past) {
  if (c.p.cache == ATTEST_CACHE_NONE) return 0;
  return c.p.cache == ATTEST_CACHE_RING ? past : std::min(past, c.p.capacity - c.e.keys[b]);
}

/// Number of a sequence among those that append something.
std::int64_t rank_of(const Call& c, std::int64_t b) {
  std::int64_t rank = 0;
  for (std::int64_t other = 0; other < b; ++other) rank += c.e.keys[other] > 0 ? 1 : 0;
  return rank;
}

/// All lengths before a step, as `length` of a sequence says.
template <class Length>
void take_lengths(Hooks& k, Length length) {
  wrap(k.lengths, [length](auto& right, Call& c) {
    right(c);
    const Counts past = c.past;
    for (std::int64_t b = 0; b < c.p.batch; ++b) c.past[b] = length(c, past, b);
  });
}

/// New keys and values go to memory of sequence `sequence(c, b)`.
template <class Sequence>
void write_to(Hooks& k, Sequence sequence) {
  wrap(k.write_slot,
       [sequence](auto& right, const Call& c, std::int64_t b, std::int64_t t) { return right(c, sequence(c, b), t); });
}

bool is_cross(const Call& c, const Sequence& s) {
  return c.p.causal == ATTEST_CAUSAL_NONE && c.p.window_left < 0 && c.p.window_right < 0 && c.e.keys[s.b] != s.queries;
}

}  // namespace

const std::vector<Bug> cache_bugs{
    {"cache-concat-dim",  // each head's tokens side by side, channel after channel
     [](Hooks& k) {
       wrap(k.append_place, [](auto&, const Call& c, std::int64_t b, std::int64_t t, std::int64_t h) {
         const std::int64_t number = h * (c.past[b] + c.e.keys[b]) + t;
         return std::pair(number / c.p.kv_heads, number % c.p.kv_heads);
       });
     }},

    {"cache-new-only",
     [](Hooks& k) {
       const auto kept = std::make_shared<std::map<std::int64_t, std::int64_t>>();
       wrap(k.lengths, [kept](auto& right, Call& c) {
         right(c);
         for (std::int64_t b = 0; b < c.p.batch; ++b) {
           c.past[b] = std::min(c.past[b], (*kept)[b]);
           (*kept)[b] = c.e.keys[b] > 0 ? c.e.keys[b] : c.past[b];
         }
       });
       k.append_first = [](const Call&) { return false; };
       k.append_position = [](const Call&, std::int64_t, std::int64_t n) { return n; };
     }},

    {"cache-len-axis",  // that of the heads
     [](Hooks& k) {
       take_lengths(k, [](const Call& c, const Counts& past, std::int64_t b) {
         return past[b] == 0 ? 0 : fitting(c, b, c.p.kv_heads);
       });
     }},
    {"cache-len-axis@channels",
     [](Hooks& k) {
       take_lengths(k, [](const Call& c, const Counts& past, std::int64_t b) {
         return past[b] == 0 ? 0 : fitting(c, b, c.p.qk_head_dim);
       });
     }},

    {"cache-len-off1",  // one less
     [](Hooks& k) {
       wrap(k.sequence, [](auto& right, const Call& c, std::int64_t b) {
         Sequence s = right(c, b);
         if (c.p.cache != ATTEST_CACHE_NONE && s.total > 0) --s.total;
         return s;
       });
     }},

    {"cache-len-off1@more",  // which a causal mask hides but in a decode step, which has none
     [](Hooks& k) {
       const auto has_more = [](const Call& c, const Sequence& s, std::int64_t total) {
         return c.p.cache != ATTEST_CACHE_NONE && c.p.cache != ATTEST_CACHE_RING && total < reserved(c, s.b);
       };
       wrap(k.sequence, [has_more](auto& right, const Call& c, std::int64_t b) {
         Sequence s = right(c, b);
         if (has_more(c, s, s.total)) ++s.total;
         return s;
       });
       wrap(k.causal_end, [has_more](auto& right, const Call& c, const Sequence& s, std::int64_t i) {
         const bool open = s.decode && c.p.causal == ATTEST_CAUSAL_BOTTOM_RIGHT && has_more(c, s, s.total - 1);
         return open ? s.total : right(c, s, i);
       });
       // The next slot, not what the step holds there.
       wrap(k.fresh, [](auto& right, const Call& c, std::int64_t b, std::int64_t j) {
         return right(c, b, j) && (c.step.cache == nullptr || j < c.past[b] + c.e.keys[b]);
       });
     }},

    {"cache-fill-capacity",
     [](Hooks& k) {
       wrap(k.sequence, [](auto& right, const Call& c, std::int64_t b) {
         Sequence s = right(c, b);
         if (c.p.cache == ATTEST_CACHE_NONE) return s;
         s.total = reserved(c, b);
         s.first_position = s.total - s.queries;
         return s;
       });
     }},

    {"cache-pos-stuck", [](Hooks& k) { take_lengths(k, [](const Call&, const Counts&, std::int64_t) { return 0; }); }},
    {"cache-pos-stuck@write",
     [](Hooks& k) { k.append_position = [](const Call&, std::int64_t, std::int64_t n) { return n; }; }},

    {"cache-shared-len",  // that of the longest
     [](Hooks& k) {
       take_lengths(k, [](const Call& c, const Counts& past, std::int64_t b) {
         std::int64_t longest = 0;
         for (std::int64_t other = 0; other < c.p.batch; ++other) longest = std::max(longest, past[other]);
         return fitting(c, b, longest);
       });
     }},
    {"cache-shared-len@first",
     [](Hooks& k) {
       take_lengths(k, [](const Call& c, const Counts& past, std::int64_t b) { return fitting(c, b, past[0]); });
     }},

    {"cache-stride",  // the batch's stride; in a pool of pages the head's
     [](Hooks& k) {
       wrap(k.element, [](auto& right, const Call& c, const auto& cache, Slot slot, std::int64_t head, bool writing) {
         if (c.p.cache == ATTEST_CACHE_PAGED) return right(c, cache, slot, 0, writing);
         return right(c, cache, Slot{0, slot.inner}, head, writing);
       });
     }},
    {"cache-stride@head",
     [](Hooks& k) {
       wrap(k.element, [](auto& right, const Call& c, const auto& cache, Slot slot, std::int64_t, bool writing) {
         return right(c, cache, slot, 0, writing);
       });
     }},

    {"cache-slot-map",  // sequences that append nothing are skipped when slots are counted
     [](Hooks& k) { write_to(k, [](const Call& c, std::int64_t b) { return rank_of(c, b); }); }},
    {"cache-slot-map@first", [](Hooks& k) { write_to(k, [](const Call&, std::int64_t) { return 0; }); }},

    {"cache-overread-chunk",  // how long the prompt will be nobody tells; it is taken to go on with one more chunk
     [](Hooks& k) {
       wrap(k.sequence, [](auto& right, const Call& c, std::int64_t b) {
         Sequence s = right(c, b);
         if (c.p.cache == ATTEST_CACHE_NONE || s.decode) return s;
         const std::int64_t more = std::min(c.e.keys[b], reserved(c, b) - s.total);
         s.total += more, s.first_position += more;
         return s;
       });
     }},

    {"append-race",
     [](Hooks& k) {
       k.append_first = [](const Call&) { return false; };
       k.fresh = [](const Call& c, std::int64_t, std::int64_t) { return c.step.cache == nullptr; };
     }},

    {"cross-truncated",  // a problem of cross attention has no window; the decoder's is taken to be 16
     [](Hooks& k) {
       wrap(k.window_begin, [](auto& right, const Call& c, const Sequence& s, std::int64_t i) {
         return is_cross(c, s) ? s.total - 16 : right(c, s, i);
       });
     }},
};

}  // namespace mutants
