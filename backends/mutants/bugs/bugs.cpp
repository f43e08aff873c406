// SPDX-License-Identifier: Apache-2.0
#include "bugs.h"

#include <algorithm>

namespace mutants {

std::int64_t reserved(const Call& c, std::int64_t b) {
  const std::int64_t total = c.e.total(b);
  switch (c.p.cache) {
    case ATTEST_CACHE_NONE:
      return c.p.packed != 0 ? total : c.step.key->shape[1];
    case ATTEST_CACHE_PAGED:
      return (total + c.p.page_size - 1) / c.p.page_size * c.p.page_size;
    default:
      return std::max(total, c.p.capacity);
  }
}

void attend_from_step(Hooks& k) {
  k.fresh = [](const Call& c, std::int64_t b, std::int64_t j) { return c.step.cache == nullptr || j >= c.past[b]; };
}

std::vector<Bug> all_bugs() {
  std::vector<Bug> all;
  for (const auto* area :
       {&scale_bugs, &mask_bugs, &window_bugs, &softmax_bugs, &feature_bugs, &merge_bugs, &cache_bugs, &engine_bugs,
        &paged_bugs, &layout_bugs, &projection_bugs, &rope_bugs, &quantised_bugs, &interface_bugs}) {
    all.insert(all.end(), area->begin(), area->end());
  }
  return all;
}

}  // namespace mutants
