// SPDX-License-Identifier: Apache-2.0
// Faults of rotary positions.
#include <algorithm>
#include <cmath>

#include "bugs.h"

namespace mutants {

const std::vector<Bug> rope_bugs{
    {"rope-pairing",
     [](Hooks& k) {
       wrap(k.rope_pair, [](auto& right, attest_problem p, std::int64_t pair) {
         p.rope.style = p.rope.style == ATTEST_ROPE_HALF ? ATTEST_ROPE_INTERLEAVED : ATTEST_ROPE_HALF;
         return right(p, pair);
       });
     }},

    {"rope-theta",
     [](Hooks& k) {
       wrap(k.frequencies, [](auto& right, attest_problem p, std::int64_t length) {
         p.rope.base = p.rope.base == 10000 ? 500000 : 10000;
         return right(p, length);
       });
     }},

    {"rope-partial-width",
     [](Hooks& k) {
       wrap(k.frequencies, [](auto& right, attest_problem p, std::int64_t length) {
         const auto pairs = static_cast<std::size_t>(p.rope.rotary_dim / 2);
         p.rope.rotary_dim = p.qk_head_dim / 2 * 2;
         RopeFrequencies frequencies = right(p, length);
         frequencies.frequency.resize(std::min(pairs, frequencies.frequency.size()));
         return frequencies;
       });
       wrap(k.rope_pair, [](auto& right, attest_problem p, std::int64_t pair) {
         p.rope.rotary_dim = p.qk_head_dim;
         return right(p, pair);
       });
     }},

    {"rope-chunk-pos",
     [](Hooks& k) {
       wrap(k.rope_position, [](auto& right, const Call& c, Role role, std::int64_t b, std::int64_t t) {
         return c.step.positions == nullptr ? t : right(c, role, b, t);
       });
     }},

    {"rope-cache-order",  // cached keys are turned again when they are read
     [](Hooks& k) {
       wrap(k.fetch,
            [](auto& right, const Call& c, const Sequence& s, std::int64_t j, Role role, std::int64_t head, float* to) {
              right(c, s, j, role, head, to);
              if (role == Role::key && c.p.rope.style != ATTEST_ROPE_NONE && j < c.past[s.b])
                stage::turn(c, s.b, j, to);
            });
     }},

    {"rope-bf16",
     [](Hooks& k) {
       wrap(k.rope_angle, [](auto& right, const Numerics& n, std::int64_t position, double frequency) {
         const float narrow = round_to(Storage::bf16, static_cast<float>(position));
         return right(n, static_cast<std::int64_t>(narrow), frequency);
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
