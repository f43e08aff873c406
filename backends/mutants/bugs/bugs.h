// SPDX-License-Identifier: Apache-2.0
// The bugs of cases/bugs.json, each a small change to the hooks of a correct kernel.
//
// Adding one: an entry in the table of its area (scale.cpp, mask.cpp, …) with the id that bugs.json gives it. It
// replaces a hook, or wraps it:
//
//     {"causal-plus1", [](Hooks& k) { wrap(k.causal_end, [](auto& right, const auto&... at) { return right(at...) + 1;
//     }); }}
//
// Bugs that are asked for together change the hooks one after the other, so each wraps what the one before it left.
// A bug changes the hooks anew for each plan: what it captures is a plan's own state.
#pragma once

#include <string_view>
#include <utility>
#include <vector>

#include "../kernel.h"

namespace mutants {

struct Bug {
  std::string_view id;  ///< Of bugs.json: the bug's, or for another way in which it comes about `bug@realisation`.
  void (*put)(Hooks&);
};

/// Replaces a hook by `fault`, which gets what stood there before, and the hook's arguments.
template <class Hook, class Fault>
void wrap(Hook& hook, Fault fault) {
  hook = [before = std::move(hook), fault = std::move(fault)](auto&&... arguments) {
    return fault(before, std::forward<decltype(arguments)>(arguments)...);
  };
}

/// Tokens for which a sequence has memory, in the cache or on the padded axis; more than its length.
std::int64_t reserved(const Call& c, std::int64_t b);

/// New tokens are attended from the step, so that only old ones are read from the cache.
void attend_from_step(Hooks& k);

extern const std::vector<Bug> scale_bugs, mask_bugs, window_bugs, softmax_bugs, feature_bugs, merge_bugs, cache_bugs,
    engine_bugs, paged_bugs, layout_bugs, projection_bugs, rope_bugs, quantised_bugs, interface_bugs;

/// All of them.
std::vector<Bug> all_bugs();

}  // namespace mutants
