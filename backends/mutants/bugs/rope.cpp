// SPDX-License-Identifier: Apache-2.0
// Faults of rotary positions.
#include <algorithm>
#include <cmath>

#include "bugs.h"

namespace mutants {
namespace {

/// The style that `style` makes of the problem's.
template <class Style>
void pair_as(Hooks& k, Style style) {
  wrap(k.rope_pair, [style](auto& right, attest_problem p, std::int64_t pair) {
    p.rope.style = style(p.rope.style);
    return right(p, pair);
  });
}

template <class Base>
void take_base(Hooks& k, Base base) {
  wrap(k.frequencies, [base](auto& right, attest_problem p, std::int64_t length) {
    p.rope.base = base(p.rope.base);
    return right(p, length);
  });
}

void frequencies_of_head(Hooks& k) {
  wrap(k.frequencies, [](auto& right, attest_problem p, std::int64_t length) {
    const auto pairs = static_cast<std::size_t>(p.rope.rotary_dim / 2);
    p.rope.rotary_dim = p.qk_head_dim / 2 * 2;
    RopeFrequencies frequencies = right(p, length);
    frequencies.frequency.resize(std::min(pairs, frequencies.frequency.size()));
    return frequencies;
  });
}

void offset_of_head(Hooks& k) {
  wrap(k.rope_pair, [](auto& right, attest_problem p, std::int64_t pair) {
    p.rope.rotary_dim = p.qk_head_dim;
    return right(p, pair);
  });
}

/// Positions are counted in the step where `applies` says so.
template <class Applies>
void start_again(Hooks& k, Applies applies) {
  wrap(k.rope_position, [applies](auto& right, const Call& c, Role role, std::int64_t b, std::int64_t t) {
    return c.step.positions == nullptr && applies(c, role, b) ? t : right(c, role, b, t);
  });
}

/// Cached keys are turned when they are read, new ones too or not.
void turn_when_read(Hooks& k, bool new_too) {
  wrap(k.fetch, [new_too](auto& right, const Call& c, const Sequence& s, std::int64_t j, Role role, std::int64_t head,
                          float* to) {
    right(c, s, j, role, head, to);
    if (role != Role::key || c.p.rope.style == ATTEST_ROPE_NONE) return;
    const bool is_new = j >= c.past[s.b];
    if (is_new && !new_too) return;
    stage::turn(c, s.b, is_new ? stage::rope_position(c, role, s.b, j - c.past[s.b]) : j, to);
  });
}

void leave_keys(Hooks& k) {
  wrap(k.transform, [](auto& right, const Call& c, Role role, std::int64_t b, std::int64_t t, float* head) {
    return role == Role::key ? stage::normalise(c, role, b, head) : right(c, role, b, t, head);
  });
}

}  // namespace

const std::vector<Bug> rope_bugs{
    {"rope-pairing",
     [](Hooks& k) {
       pair_as(k, [](auto style) { return style == ATTEST_ROPE_HALF ? ATTEST_ROPE_INTERLEAVED : ATTEST_ROPE_HALF; });
     }},
    {"rope-pairing@half", [](Hooks& k) { pair_as(k, [](auto) { return ATTEST_ROPE_HALF; }); }},
    {"rope-pairing@interleaved", [](Hooks& k) { pair_as(k, [](auto) { return ATTEST_ROPE_INTERLEAVED; }); }},

    {"rope-theta", [](Hooks& k) { take_base(k, [](double base) { return base == 10000 ? 500000 : 10000; }); }},
    {"rope-theta@10000", [](Hooks& k) { take_base(k, [](double) { return 10000; }); }},
    {"rope-theta@500000", [](Hooks& k) { take_base(k, [](double) { return 500000; }); }},

    {"rope-partial-width", [](Hooks& k) { frequencies_of_head(k), offset_of_head(k); }},
    {"rope-partial-width@frequencies", frequencies_of_head},
    {"rope-partial-width@offset", offset_of_head},

    {"rope-chunk-pos", [](Hooks& k) { start_again(k, [](const Call&, Role, std::int64_t) { return true; }); }},
    {"rope-chunk-pos@queries",
     [](Hooks& k) { start_again(k, [](const Call&, Role role, std::int64_t) { return role == Role::query; }); }},
    {"rope-chunk-pos@keys",
     [](Hooks& k) { start_again(k, [](const Call&, Role role, std::int64_t) { return role == Role::key; }); }},
    {"rope-chunk-pos@prefill",
     [](Hooks& k) { start_again(k, [](const Call& c, Role, std::int64_t b) { return c.e.queries[b] != 1; }); }},

    {"rope-cache-order", [](Hooks& k) { turn_when_read(k, false); }},  // again
    {"rope-cache-order@never", leave_keys},
    {"rope-cache-order@when-read", [](Hooks& k) { leave_keys(k), turn_when_read(k, true); }},

    {"rope-bf16",
     [](Hooks& k) {
       wrap(k.rope_angle, [](auto& right, const Numerics& n, std::int64_t position, double frequency) {
         const float narrow = round_to(Storage::bf16, static_cast<float>(position));
         return right(n, static_cast<std::int64_t>(narrow), frequency);
       });
     }},
    {"rope-bf16@frequencies",
     [](Hooks& k) {
       wrap(k.rope_angle, [](auto& right, const Numerics& n, std::int64_t position, double frequency) {
         return right(n, position, static_cast<double>(round_to(Storage::bf16, static_cast<float>(frequency))));
       });
     }},

    {"rope-dynamic-base",  // a problem that names no trained length is taken to have one of 32
     [](Hooks& k) {
       wrap(k.frequencies, [](auto& right, attest_problem p, std::int64_t length) {
         const double trained = p.rope.original_length > 0 ? p.rope.original_length : 32;
         const double factor = p.rope.factor > 1 ? p.rope.factor : 2, r = static_cast<double>(p.rope.rotary_dim);
         const double stretch = factor * static_cast<double>(length) / trained - (factor - 1);
         if (r > 2) p.rope.base *= std::pow(std::max(stretch, 1.0), r / (r - 2));
         return right(p, length);
       });
     }},
};

}  // namespace mutants
