// SPDX-License-Identifier: Apache-2.0
// Faults of the projections and of QK-norm.
#include <algorithm>
#include <cmath>

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
     [](Hooks& k) { k.bias_row = [](std::int64_t row, std::int64_t, std::int64_t width) { return row % width; }; }},
    {"bias-shape@axis",
     [](Hooks& k) {
       k.bias_row = [](std::int64_t row, std::int64_t rows, std::int64_t width) {
         return row % width * (rows / width) + row / width;
       };
     }},

    {"gemm-transpose",
     [](Hooks& k) {
       k.weight_row = [](std::int64_t rows, std::int64_t, std::int64_t row) { return WeightRow{row, rows}; };
     }},

    {"gemm-transpose@leading",  // the number of rows is taken for that of columns
     [](Hooks& k) {
       k.weight_row = [](std::int64_t rows, std::int64_t columns, std::int64_t row) {
         return WeightRow{std::min(row * rows, (rows - 1) * columns), 1};
       };
     }},

    {"rms-eps",
     [](Hooks& k) {
       wrap(k.norm_root,
            [](auto& right, float mean, double given) { return right(mean, given == 1e-5 ? 1e-6 : 1e-5); });
     }},
    {"rms-eps@1e-6",
     [](Hooks& k) { wrap(k.norm_root, [](auto& right, float mean, double) { return right(mean, 1e-6); }); }},
    {"rms-eps@1e-5",
     [](Hooks& k) { wrap(k.norm_root, [](auto& right, float mean, double) { return right(mean, 1e-5); }); }},
    {"rms-eps@outside",
     [](Hooks& k) {
       k.norm_root = [](float mean, double given) { return std::sqrt(mean) + static_cast<float>(given); };
     }},

    {"qknorm-skipped",
     [](Hooks& k) {
       wrap(k.normalises,
            [](auto& right, const Call& c, std::int64_t b) { return c.e.queries[b] != 1 && right(c, b); });
     }},
    {"qknorm-skipped@everywhere", [](Hooks& k) { k.normalises = [](const Call&, std::int64_t) { return false; }; }},

    {"qknorm-order",
     [](Hooks& k) {
       k.transform = [](const Call& c, Role role, std::int64_t b, std::int64_t t, float* head) {
         if (c.p.rope.style != ATTEST_ROPE_NONE) stage::turn(c, b, c.hooks.rope_position(c, role, b, t), head);
         stage::normalise(c, role, b, head);
       };
     }},
};

}  // namespace mutants
