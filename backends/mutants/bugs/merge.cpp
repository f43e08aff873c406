// SPDX-License-Identifier: Apache-2.0
// Faults of the LSE and of the merge of splits.
#include <limits>
#include <numeric>

#include "bugs.h"

namespace mutants {

const std::vector<Bug> merge_bugs{
    {"lse-base",
     [](Hooks& k) {
       wrap(k.partial_lse, [](auto& right, const auto&... at) { return right(at...) * 1.44269504088896341F; });
     }},

    {"lse-empty-inf", [](Hooks& k) { k.empty_lse = [] { return std::numeric_limits<float>::infinity(); }; }},

    {"merge-empty-nan", [](Hooks& k) { k.merge_reference = [](float largest, std::size_t) { return largest; }; }},

    {"split-empty-merged",
     [](Hooks& k) {
       k.merged_splits = [](const std::vector<std::int64_t>&, std::int64_t count) {
         std::vector<std::int64_t> all(static_cast<std::size_t>(count));
         std::iota(all.begin(), all.end(), 0);
         return all;
       };
     }},

    {"merge-stride",
     [](Hooks& k) { k.merge_stride = [](const Partials& partials, std::int64_t) { return partials.stride(0); }; }},
};

}  // namespace mutants
