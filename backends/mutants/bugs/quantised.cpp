// SPDX-License-Identifier: Apache-2.0
// Faults of quantised caches.
#include <algorithm>
#include <cmath>
#include <limits>

#include "bugs.h"

namespace mutants {

const std::vector<Bug> quantised_bugs{
    {"kvq-dropped", [](Hooks& k) { k.dequantise = [](float code, float) { return code; }; }},

    {"kvq-twice", [](Hooks& k) { k.dequantise = [](float code, float scale) { return code * scale * scale; }; }},

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
         return (at.outer * scales.shape(1) + at.inner) * scales.shape(2) + head;
       };
     }},
};

}  // namespace mutants
