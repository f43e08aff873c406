// SPDX-License-Identifier: Apache-2.0
// Faults of the factor on the logits. One that concerns the default scale leaves a given one alone.
#include <bit>
#include <cmath>

#include "bugs.h"

namespace mutants {
namespace {

/// The default scale is 1 / sqrt(width).
template <class Width>
void default_from(Hooks& k, Width width) {
  wrap(k.scale, [width](auto& right, const attest_problem& p, bool decode) {
    return p.scale != 0 ? right(p, decode) : 1 / std::sqrt(static_cast<double>(width(p)));
  });
}

}  // namespace

const std::vector<Bug> scale_bugs{
    {"scale-by-d", [](Hooks& k) { default_from(k, [](const auto& p) { return p.qk_head_dim * p.qk_head_dim; }); }},

    {"scale-missing",  // in the decode path
     [](Hooks& k) {
       wrap(k.scale, [](auto& right, const attest_problem& p, bool decode) { return decode ? 1 : right(p, decode); });
     }},

    {"scale-inverted",
     [](Hooks& k) {
       wrap(k.scale, [](auto& right, const attest_problem& p, bool decode) {
         return p.scale != 0 ? right(p, decode) : std::sqrt(static_cast<double>(p.qk_head_dim));
       });
     }},

    {"scale-dmodel", [](Hooks& k) { default_from(k, [](const auto& p) { return p.query_heads * p.qk_head_dim; }); }},

    {"scale-padded-d",  // to a power of two, as a tile of channels has it
     [](Hooks& k) {
       default_from(k, [](const auto& p) { return std::bit_ceil(static_cast<std::uint64_t>(p.qk_head_dim)); });
     }},

    {"scale-wrong-width", [](Hooks& k) { default_from(k, [](const auto& p) { return p.v_head_dim; }); }},

    {"scale-arg-ignored",
     [](Hooks& k) {
       wrap(k.scale, [](auto& right, attest_problem p, bool decode) {
         p.scale = 0;
         return right(p, decode);
       });
     }},
};

}  // namespace mutants
