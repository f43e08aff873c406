// SPDX-License-Identifier: Apache-2.0
// Faults of the projections and of QK-norm.
#include <algorithm>

#include "bugs.h"

namespace mutants {

const std::vector<Bug> projection_bugs{
    {"qkv-equal-split",
     [](Hooks& k) {
       k.first_row = [](const Kernel& kernel, Role role) {
         const std::int64_t rows = role == Role::query ? kernel.p.query_heads * kernel.p.qk_head_dim
                                   : role == Role::key ? kernel.p.kv_heads * kernel.p.qk_head_dim
                                                       : kernel.p.kv_heads * kernel.p.v_head_dim;
         return std::min(kernel.qkv.rows / 3 * static_cast<std::int64_t>(role), kernel.qkv.rows - rows);
       };
     }},

    {"wo-inplace", [](Hooks& k) { k.projected = [](float* input, float*) { return input; }; }},

    {"bias-shape",  // every head takes the first one's
     [](Hooks& k) { k.bias_row = [](std::int64_t row, std::int64_t width) { return row % width; }; }},

    {"gemm-transpose",
     [](Hooks& k) {
       k.weight_row = [](std::int64_t rows, std::int64_t, std::int64_t row) { return WeightRow{row, rows}; };
     }},

    {"rms-eps", [](Hooks& k) { k.epsilon = [](double given) { return given == 1e-5 ? 1e-6 : 1e-5; }; }},

    {"qknorm-skipped",
     [](Hooks& k) {
       wrap(k.normalises,
            [](auto& right, const Call& c, std::int64_t b) { return c.e.queries[b] != 1 && right(c, b); });
     }},

    {"qknorm-order",
     [](Hooks& k) {
       k.transform = [](const Call& c, Role role, std::int64_t b, std::int64_t t, float* head) {
         if (c.p.rope.style != ATTEST_ROPE_NONE) stage::turn(c, b, c.hooks.rope_position(c, role, b, t), head);
         stage::normalise(c, role, b, head);
       };
     }},
};

}  // namespace mutants
