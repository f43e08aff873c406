// SPDX-License-Identifier: Apache-2.0
// Faults of the factor on the logits. One that concerns the default scale leaves a given one alone.
#include <bit>
#include <cmath>
#include <cstdint>

#include "bugs.h"

namespace mutants {
namespace {

enum class In : std::uint8_t { all, decode };

/// The default scale is 1 / sqrt(width), in all steps or in those of one query.
template <class Width>
void default_from(Hooks& k, In where, Width width) {
  wrap(k.scale, [=](auto& right, const attest_problem& p, bool decode) {
    const bool given = p.scale != 0 || (where == In::decode && !decode);
    return given ? right(p, decode) : 1 / std::sqrt(static_cast<double>(width(p)));
  });
}

void by_d(Hooks& k, In where) {
  default_from(k, where, [](const auto& p) { return p.qk_head_dim * p.qk_head_dim; });
}

void inverted(Hooks& k, In where) {
  default_from(k, where, [](const auto& p) { return 1 / static_cast<double>(p.qk_head_dim); });
}

void by_model(Hooks& k, In where) {
  default_from(k, where, [](const auto& p) { return p.query_heads * p.qk_head_dim; });
}

/// To a power of two, as a tile of channels has it.
void by_padded_d(Hooks& k, In where) {
  default_from(k, where, [](const auto& p) { return std::bit_ceil(static_cast<std::uint64_t>(p.qk_head_dim)); });
}

void by_value_width(Hooks& k, In where) {
  default_from(k, where, [](const auto& p) { return p.v_head_dim; });
}

void ignore_given(Hooks& k, In where) {
  wrap(k.scale, [=](auto& right, attest_problem p, bool decode) {
    if (where == In::all || decode) p.scale = 0;
    return right(p, decode);
  });
}

}  // namespace

const std::vector<Bug> scale_bugs{
    {"scale-by-d", [](Hooks& k) { by_d(k, In::all); }},
    {"scale-by-d@decode", [](Hooks& k) { by_d(k, In::decode); }},

    {"scale-missing",  // in the decode path
     [](Hooks& k) {
       wrap(k.scale, [](auto& right, const attest_problem& p, bool decode) { return decode ? 1 : right(p, decode); });
     }},
    {"scale-missing@everywhere", [](Hooks& k) { k.scale = [](const attest_problem&, bool) { return 1; }; }},

    {"scale-inverted", [](Hooks& k) { inverted(k, In::all); }},
    {"scale-inverted@decode", [](Hooks& k) { inverted(k, In::decode); }},

    {"scale-dmodel", [](Hooks& k) { by_model(k, In::all); }},
    {"scale-dmodel@decode", [](Hooks& k) { by_model(k, In::decode); }},

    {"scale-padded-d", [](Hooks& k) { by_padded_d(k, In::all); }},
    {"scale-padded-d@decode", [](Hooks& k) { by_padded_d(k, In::decode); }},

    {"scale-wrong-width", [](Hooks& k) { by_value_width(k, In::all); }},  // the ABI knows no latent width
    {"scale-wrong-width@decode", [](Hooks& k) { by_value_width(k, In::decode); }},

    {"scale-arg-ignored", [](Hooks& k) { ignore_given(k, In::all); }},
    {"scale-arg-ignored@decode", [](Hooks& k) { ignore_given(k, In::decode); }},
};

}  // namespace mutants
