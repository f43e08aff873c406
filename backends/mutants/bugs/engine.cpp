// SPDX-License-Identifier: Apache-2.0
// Faults of what an engine remembers between steps. The ABI tells a backend of no truncate, reset, fork or reorder: a
// kernel without state of its own cannot get them wrong, these keep some.
#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <tuple>

#include "bugs.h"

namespace mutants {
namespace {

using PerSequence = std::map<std::int64_t, std::int64_t>;

/// What a graph was captured with.
struct Capture {
  Counts past{0, 0};
  std::map<std::pair<std::int64_t, std::int64_t>, std::int64_t> pages;  ///< By sequence and column.
};

/// Steps of the same shapes replay the same graph.
std::pair<std::int64_t, std::int64_t> shape_of(const Call& c) {
  return {c.e.query_tokens, c.e.key_tokens};
}

Capture capture(const Call& c) {
  Capture captured{c.past, {}};
  for (std::int64_t b = 0; b < c.table.shape(0); ++b) {
    for (std::int64_t column = 0; column < c.table.shape(1); ++column) captured.pages[{b, column}] = c.page(b, column);
  }
  return captured;
}

/// Whether two sequences hold the same keys.
bool same_keys(const Call& c, std::int64_t a, std::int64_t b) {
  if (c.e.past[a] != c.e.past[b]) return false;
  const auto width = static_cast<std::size_t>(c.p.qk_head_dim);
  std::vector<float> x(width), y(width);
  for (std::int64_t t = std::max<std::int64_t>(c.e.past[a] - c.p.capacity, 0); t < c.e.past[a]; ++t) {
    const Slot from = stage::slot(c, a, t), other = stage::slot(c, b, t);
    for (std::int64_t i = 0; i < c.p.qk_head_dim; ++i) {
      if ((*c.keys.cache)(from.outer, from.inner, 0, i) != (*c.keys.cache)(other.outer, other.inner, 0, i))
        return false;
    }
  }
  return true;
}

/// A sequence's RoPE positions less its tokens' indices.
struct Shift {
  std::int64_t delta = 0;
  bool known = false;  ///< In this step.
};

/// Keys or values are kept in a cache of the engine's own, which nobody permutes.
void keep_own(Hooks& k, Role kept) {
  using Place = std::tuple<std::int64_t, std::int64_t, std::int64_t>;  // sequence, token, head
  const auto own = std::make_shared<std::map<Place, std::vector<float>>>();
  wrap(k.fetch,
       [=](auto& right, const Call& c, const Sequence& s, std::int64_t j, Role role, std::int64_t head, float* to) {
         right(c, s, j, role, head, to);
         if (role != kept || c.step.cache == nullptr || j >= c.past[s.b]) return;
         const auto found = own->find({s.b, j, head});
         if (found != own->end()) std::copy(found->second.begin(), found->second.end(), to);
       });
  wrap(k.finished, [=](auto& right, const Call& c) {
    right(c);
    const std::int64_t width = kept == Role::key ? c.p.qk_head_dim : c.p.v_head_dim;
    for (std::int64_t b = 0; c.step.cache != nullptr && b < c.p.batch; ++b) {
      const Sequence s = stage::sequence(c, b);
      for (std::int64_t j = c.past[b]; j < s.total; ++j) {
        for (std::int64_t head = 0; head < c.p.kv_heads; ++head) {
          std::vector<float>& vector = (*own)[{b, j, head}];
          vector.resize(static_cast<std::size_t>(width));
          c.hooks.fetch(c, s, j, kept, head, vector.data());
        }
      }
    }
  });
}

/// What the attention reads is as it was captured; the append has its own arguments.
void replay(Hooks& k, bool lengths, bool table) {
  using Shape = std::pair<std::int64_t, std::int64_t>;
  const auto graphs = std::make_shared<std::map<Shape, Capture>>();
  wrap(k.lengths, [graphs](auto& right, Call& c) {
    right(c);
    graphs->try_emplace(shape_of(c), capture(c));
  });
  if (lengths) {
    wrap(k.sequence, [graphs](auto& right, const Call& c, std::int64_t b) {
      Sequence s = right(c, b);
      s.total = graphs->at(shape_of(c)).past[b] + c.e.keys[b];
      s.first_position = s.total - s.queries;
      return s;
    });
  }
  if (table) {
    wrap(k.read_slot, [graphs](auto& right, const Call& c, std::int64_t b, std::int64_t t) {
      Slot slot = right(c, b, t);
      const auto& pages = graphs->at(shape_of(c)).pages;
      const auto page = pages.find({b, t / std::max<std::int64_t>(c.p.page_size, 1)});
      if (page != pages.end()) slot.outer = page->second;
      return slot;
    });
  }
}

}  // namespace

const std::vector<Bug> engine_bugs{
    {"cache-rollback-clears",
     [](Hooks& k) {
       const auto totals = std::make_shared<PerSequence>(), lost = std::make_shared<PerSequence>();
       wrap(k.lengths, [totals, lost](auto& right, Call& c) {
         right(c);
         for (std::int64_t b = 0; b < c.p.batch; ++b) {
           if (c.e.past[b] < (*totals)[b]) (*lost)[b] = c.e.past[b];
           (*totals)[b] = c.e.total(b);
           c.past[b] -= std::min(c.past[b], (*lost)[b]);
         }
       });
     }},

    {"cache-reset-stale",
     [](Hooks& k) {
       const auto totals = std::make_shared<PerSequence>(), stale = std::make_shared<PerSequence>();
       wrap(k.lengths, [totals, stale](auto& right, Call& c) {
         right(c);
         for (std::int64_t b = 0; c.p.cache != ATTEST_CACHE_NONE && b < c.p.batch; ++b) {
           if (c.e.past[b] == 0) (*stale)[b] = (*totals)[b];
           c.past[b] += (*stale)[b];
           if (c.p.cache != ATTEST_CACHE_RING) c.past[b] = std::min(c.past[b], c.p.capacity - c.e.keys[b]);
           (*totals)[b] = c.past[b] + c.e.keys[b];
         }
       });
     }},

    {"beam-no-reorder", [](Hooks& k) { keep_own(k, Role::value); }},
    {"beam-no-reorder@keys", [](Hooks& k) { keep_own(k, Role::key); }},

    {"cache-alias",  // a sequence that holds the same keys as an earlier one is a fork of it, and takes its memory
     [](Hooks& k) {
       const auto owners = std::make_shared<PerSequence>();
       wrap(k.lengths, [owners](auto& right, Call& c) {
         right(c);
         for (std::int64_t b = 0; c.p.cache != ATTEST_CACHE_NONE && b < c.p.batch; ++b) {
           std::int64_t& owner = owners->try_emplace(b, b).first->second;
           if (c.e.past[b] == 0) owner = b;
           for (std::int64_t a = 0; c.e.past[b] > 0 && owner == b && a < b; ++a) {
             if (same_keys(c, a, b)) owner = owners->at(a);
           }
         }
       });
       const auto slot = [owners](auto& right, const Call& c, std::int64_t b, std::int64_t t) {
         return right(c, owners->at(b), t);
       };
       wrap(k.read_slot, slot);
       wrap(k.write_slot, slot);
     }},

    {"shift-delta",  // the ABI shifts no cached K; the nearest are jumps in the given positions
     [](Hooks& k) {
       const auto shifts = std::make_shared<std::map<std::int64_t, Shift>>();
       wrap(k.lengths, [shifts](auto& right, Call& c) {
         right(c);
         for (auto& [b, shift] : *shifts) shift.known = false;
       });
       wrap(k.rope_position, [shifts](auto& right, const Call& c, Role role, std::int64_t b, std::int64_t t) {
         const std::int64_t given = right(c, role, b, t), index = c.past[b] + t;
         if (c.step.positions == nullptr) return given;
         Shift& shift = (*shifts)[b];
         const std::int64_t moved = given - (index + shift.delta);
         if (!shift.known && moved != 0) shift.delta = moved;  // += is meant
         shift.known = true;
         return index + shift.delta;
       });
     }},

    {"graph-stale", [](Hooks& k) { replay(k, true, true); }},
    {"graph-stale@lengths", [](Hooks& k) { replay(k, true, false); }},
    {"graph-stale@table", [](Hooks& k) { replay(k, false, true); }},

    {"mask-stale-plan",  // a problem has a mask in all its steps or in none; a row's first one stays
     [](Hooks& k) {
       using Place = std::tuple<std::int64_t, std::int64_t, std::int64_t>;
       const auto first = std::make_shared<std::map<Place, std::vector<float>>>();
       wrap(k.mask,
            [first](auto& right, const Call& c, const Sequence& s, std::int64_t h, std::int64_t i, std::int64_t j) {
              const auto [row, is_new] = first->try_emplace({s.b, h, i});
              for (std::int64_t n = 0; is_new && n < c.step.mask->shape[3]; ++n) {
                row->second.push_back(right(c, s, h, i, n));
              }
              const auto column = static_cast<std::size_t>(j);
              return column < row->second.size() ? row->second[column] : right(c, s, h, i, j);
            });
     }},
};

}  // namespace mutants
