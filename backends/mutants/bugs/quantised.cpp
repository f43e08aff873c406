// SPDX-License-Identifier: Apache-2.0
// Faults of quantised caches.
#include <algorithm>
#include <cmath>
#include <limits>

#include "bugs.h"

namespace mutants {
namespace {

/// A code is multiplied by `factor` of its scale where `applies` says so.
template <class Factor, class Applies>
void multiply_by(Hooks& k, Factor factor, Applies applies) {
  wrap(k.dequantise, [=](auto& right, Role role, bool fresh, float code, float scale) {
    return right(role, fresh, code, applies(role) ? factor(scale) : scale);
  });
}

float one(float /*scale*/) {
  return 1;
}
float square(float scale) {
  return scale * scale;
}
bool each(Role /*role*/) {
  return true;
}
bool is_key(Role role) {
  return role == Role::key;
}
bool is_value(Role role) {
  return role == Role::value;
}

/// What is fresh is read as it should be.
void only_cached(Hooks& k) {
  attend_from_step(k);
  wrap(k.dequantise, [](auto& wrong, Role role, bool fresh, float code, float scale) {
    return fresh ? code * scale : wrong(role, fresh, code, scale);
  });
}

}  // namespace

const std::vector<Bug> quantised_bugs{
    {"kvq-dropped", [](Hooks& k) { multiply_by(k, one, each); }},
    {"kvq-dropped@from-step", [](Hooks& k) { multiply_by(k, one, each), only_cached(k); }},
    {"kvq-dropped@keys", [](Hooks& k) { multiply_by(k, one, is_key); }},
    {"kvq-dropped@values", [](Hooks& k) { multiply_by(k, one, is_value); }},

    {"kvq-twice", [](Hooks& k) { multiply_by(k, square, each); }},
    {"kvq-twice@from-step", [](Hooks& k) { multiply_by(k, square, each), only_cached(k); }},
    {"kvq-twice@keys", [](Hooks& k) { multiply_by(k, square, is_key); }},
    {"kvq-twice@values", [](Hooks& k) { multiply_by(k, square, is_value); }},

    {"kvq-floor", [](Hooks& k) { k.used_scale = [](float scale) { return std::max(scale, 1.0F); }; }},

    {"kvq-pad-range",  // zeros do not widen a symmetric range: the lanes hold what comes next in memory
     [](Hooks& k) {
       wrap(k.token_scale,
            [](auto& right, const Call& c, const Heads& x, Storage storage, std::int64_t token, std::int64_t head) {
              float scale = right(c, x, storage, token, head);
              const float* lane = x.at(token, head) + x.width;
              const float* const end = x.memory.data() + x.memory.size();
              for (std::int64_t i = x.width; i % 32 != 0 && lane < end; ++i) {
                scale = std::max(scale, std::abs(*lane++) / largest_code(storage));
              }
              return scale;
            });
     }},

    {"kvq-zero-range",
     [](Hooks& k) {
       wrap(k.token_scale,
            [](auto& right, const Call& c, const Heads& x, Storage storage, std::int64_t token, std::int64_t head) {
              const auto [least, most] = std::minmax_element(x.at(token, head), x.at(token, head) + x.width);
              return *most == *least ? std::numeric_limits<float>::infinity() : right(c, x, storage, token, head);
            });
     }},

    {"kvq-scale-stride",
     [](Hooks& k) {
       k.scale_element = [](const View<float, 3>& scales, Slot slot, std::int64_t head) {
         const Slot at{std::clamp<std::int64_t>(slot.outer, 0, scales.shape(0) - 1),
                       std::clamp<std::int64_t>(slot.inner, 0, scales.shape(1) - 1)};
         const std::int64_t heads = scales.shape(2);
         return (at.outer * scales.shape(1) + at.inner) * heads + std::clamp<std::int64_t>(head, 0, heads - 1);
       };
     }},
};

}  // namespace mutants
