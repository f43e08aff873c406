// SPDX-License-Identifier: Apache-2.0
// Faults of the causal mask and of explicit masks.
#include <algorithm>
#include <map>
#include <memory>
#include <tuple>

#include "bugs.h"

namespace mutants {
namespace {

bool is_set(const Call& c, std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j) {
  return View<const std::uint8_t, 4>(*c.step.mask)(b, h, i, j) != 0;
}

/// The mask's element with this number among those of its own shape, rows in order.
template <class Mask>
float element(const Call& c, const Mask& right, std::int64_t number) {
  const std::int64_t* const shape = c.step.mask->shape;
  const std::int64_t j = number % shape[3], i = number / shape[3] % shape[2];
  const std::int64_t h = number / (shape[3] * shape[2]) % shape[1], b = number / (shape[3] * shape[2] * shape[1]);
  Sequence s{};
  s.b = std::min(b, shape[0] - 1);
  return right(c, s, h, i, j);
}

/// The number within one sequence's part of the mask.
std::int64_t number_in_sequence(const Call& c, std::int64_t h, std::int64_t i, std::int64_t j) {
  const std::int64_t* const shape = c.step.mask->shape;
  return ((shape[1] == 1 ? 0 : h) * shape[2] + (shape[2] == 1 ? 0 : i)) * shape[3] + std::min(j, shape[3] - 1);
}

float least_finite(DLDataType dtype) {
  return dtype.bits == 32 ? lowest : dtype.code == kDLFloat ? F16::decode(0xFBFF) : Bf16::decode(0xFF7F);
}

/// The length of the longest sequence's queries and keys: what padded tensors are made for.
std::int64_t padded_offset(const Call& c) {
  std::int64_t queries = 0, total = 0;
  for (std::int64_t b = 0; b < c.p.batch; ++b) {
    queries = std::max(queries, c.e.queries[b]);
    total = std::max(total, c.past[b] + c.e.keys[b]);
  }
  return total - queries;
}

enum class In : std::uint8_t { all, prefill, decode };

bool is_in(In where, const Sequence& s) {
  return where == In::all || s.decode == (where == In::decode);
}

void move_causal_end(Hooks& k, std::int64_t by, In where) {
  wrap(k.causal_end, [=](auto& right, const Call& c, const Sequence& s, std::int64_t i) {
    return right(c, s, i) + (c.p.causal == ATTEST_CAUSAL_NONE || !is_in(where, s) ? 0 : by);
  });
}

/// A boolean mask is read the other way round where `applies` says so.
template <class Applies>
void invert(Hooks& k, Applies applies) {
  wrap(k.mask, [=](auto& right, const Call& c, const Sequence& s, const auto&... at) {
    const float added = right(c, s, at...);
    if (c.p.mask != ATTEST_MASK_BOOLEAN || !applies(c, s)) return added;
    return added == 0 ? minus_infinity : 0.0F;
  });
}

}  // namespace

const std::vector<Bug> mask_bugs{
    {"causal-plus1", [](Hooks& k) { move_causal_end(k, 1, In::all); }},  // a decode step has no key after its own

    {"causal-strict", [](Hooks& k) { move_causal_end(k, -1, In::all); }},
    {"causal-strict@prefill", [](Hooks& k) { move_causal_end(k, -1, In::prefill); }},
    {"causal-strict@decode", [](Hooks& k) { move_causal_end(k, -1, In::decode); }},

    {"causal-topleft-cached",
     [](Hooks& k) {
       wrap(k.causal_end, [](auto& right, const Call& c, const Sequence& s, std::int64_t i) {
         return c.p.causal == ATTEST_CAUSAL_BOTTOM_RIGHT ? i + 1 : right(c, s, i);
       });
     }},

    {"causal-skipped-cached",
     [](Hooks& k) {
       wrap(k.causal_end, [](auto& right, const Call& c, const Sequence& s, std::int64_t i) {
         return c.past[s.b] > 0 ? s.total : right(c, s, i);
       });
     }},

    {"causal-padded-anchor",
     [](Hooks& k) {
       wrap(k.causal_end, [](auto& right, const Call& c, const Sequence& s, std::int64_t i) {
         return c.p.causal == ATTEST_CAUSAL_BOTTOM_RIGHT ? padded_offset(c) + i + 1 : right(c, s, i);
       });
     }},

    {"mask-bool-added",
     [](Hooks& k) {
       wrap(k.mask, [](auto& right, const Call& c, const auto&... at) {
         const float added = right(c, at...);
         return c.p.mask == ATTEST_MASK_BOOLEAN ? (added == 0 ? 1.0F : 0.0F) : added;
       });
     }},

    {"mask-polarity", [](Hooks& k) { invert(k, [](const Call&, const Sequence&) { return true; }); }},
    {"mask-polarity@padding",
     [](Hooks& k) { invert(k, [](const Call& c, const Sequence&) { return c.step.mask->shape[2] == 1; }); }},
    {"mask-polarity@decode", [](Hooks& k) { invert(k, [](const Call&, const Sequence& s) { return s.decode; }); }},

    {"mask-rank3",  // the ABI's masks have four axes: of [1, H, Q, K] the second is taken for the batch
     [](Hooks& k) {
       wrap(k.mask, [](auto& right, const Call& c, const Sequence& s, std::int64_t h, std::int64_t i, std::int64_t j) {
         const bool one_for_all = c.step.mask->shape[0] == 1 && c.step.mask->shape[1] > 1;
         return right(c, s, one_for_all ? s.b % c.p.query_heads : h, i, j);
       });
     }},

    {"mask-query-axis",
     [](Hooks& k) {
       wrap(k.mask, [](auto& right, const Call& c, const Sequence& s, std::int64_t h, std::int64_t i, std::int64_t j) {
         const bool of_keys = c.step.mask->shape[2] == 1;
         return right(c, s, h, i, of_keys ? std::max<std::int64_t>(s.first_position + i, 0) : j);
       });
     }},

    {"mask-batch-stride",
     [](Hooks& k) {
       wrap(k.mask, [](auto& right, const Call& c, const Sequence& s, std::int64_t h, std::int64_t i, std::int64_t j) {
         const std::int64_t* const shape = c.step.mask->shape;
         const std::int64_t before = shape[0] == 1 ? 0 : s.b * shape[1] * shape[2] * s.total;
         return element(c, right, before + number_in_sequence(c, h, i, j));
       });
     }},

    {"mask-count-prefix",
     [](Hooks& k) {
       using Place = std::tuple<std::int64_t, std::int64_t, std::int64_t>;
       const auto kept = std::make_shared<std::map<Place, std::int64_t>>();  // of the step
       wrap(k.lengths, [kept](auto& right, Call& c) { kept->clear(), right(c); });
       wrap(k.mask,
            [kept](auto& right, const Call& c, const Sequence& s, std::int64_t h, std::int64_t i, std::int64_t j) {
              if (c.p.mask != ATTEST_MASK_BOOLEAN) return right(c, s, h, i, j);
              const auto [found, fresh] = kept->try_emplace({s.b, h, i}, 0);
              const std::int64_t columns = std::min(s.total, c.step.mask->shape[3]);
              for (std::int64_t n = 0; fresh && n < columns; ++n) found->second += is_set(c, s.b, h, i, n) ? 1 : 0;
              return j < found->second ? 0 : minus_infinity;
            });
     }},

    {"kvlen-ignored",  // the padded extent is taken for the number of keys
     [](Hooks& k) {
       wrap(k.sequence, [](auto& right, const Call& c, std::int64_t b) {
         Sequence s = right(c, b);
         if (c.p.packed != 0 || c.step.key == nullptr) return s;
         const std::int64_t unused = c.step.key->shape[1] - c.e.keys[b];
         s.total += unused, s.first_position += unused;
         return s;
       });
     }},

    {"mask-finite-sentinel",
     [](Hooks& k) { k.masked = [](const Call& c, bool, float) { return stage::in_units(c, -1e4F); }; }},
    {"mask-finite-sentinel@maximum",
     [](Hooks& k) {
       wrap(k.start, [](auto& right, const Call& c, const Sequence& s, Row& row, std::int64_t split) {
         right(c, s, row, split);
         if (row.maximum == minus_infinity) row.maximum = stage::in_units(c, -5e4F);
       });
     }},

    {"mask-sum-overflow",  // with masks that are finite nobody guards against a maximum of -inf
     [](Hooks& k) {
       k.masked = [](const Call& c, bool by_position, float mask) {
         const float least = least_finite(c.p.dtype);
         const float planes = (by_position ? least : 0) + (mask == minus_infinity ? least : mask);
         return stage::in_units(c, round_to(storage_of(c.p.dtype), planes));
       };
       k.reference = [](float maximum) { return maximum; };
     }},

    {"masked-nan-leak",
     [](Hooks& k) {
       wrap(k.loads, [](auto& right, const Call& c, const Sequence& s, KeyRange walked, Role role, std::int64_t j) {
         return right(c, s, walked, role, j) || (role == Role::value && j >= walked.begin && j < reserved(c, s.b));
       });
       k.weigh = [](const Call& c, Row& row, float weight, const float* value) {
         row.output.add(stage::weight_of_value(c, weight), value);
       };
     }},

    {"mask-inf-added", [](Hooks& k) { k.replaces = [](bool by_position) { return by_position; }; }},
    {"mask-inf-added@position", [](Hooks& k) { k.replaces = [](bool by_position) { return !by_position; }; }},

    {"empty-row-garbage", [](Hooks& k) { k.writes = [](bool empty) { return !empty; }; }},

    {"mask-bit-offset",  // sequence b's bits begin at a byte; its offset in bits is divided as if they did not
     [](Hooks& k) {
       wrap(k.mask, [](auto& right, const Call& c, const Sequence& s, std::int64_t h, std::int64_t i, std::int64_t j) {
         const std::int64_t* const shape = c.step.mask->shape;
         if (c.p.mask != ATTEST_MASK_BOOLEAN || shape[0] == 1) return right(c, s, h, i, j);
         const std::int64_t bits = shape[1] * shape[2] * shape[3], bytes = (bits + 7) / 8;
         const std::int64_t bit = s.b * bits / 8 * 8 + number_in_sequence(c, h, i, j);
         const std::int64_t sequence = bit / (bytes * 8), number = bit % (bytes * 8);
         return number < bits ? element(c, right, sequence * bits + number) : minus_infinity;
       });
     }},
};

}  // namespace mutants
