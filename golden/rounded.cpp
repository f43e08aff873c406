// SPDX-License-Identifier: Apache-2.0
#include "golden/rounded.h"

#include <algorithm>
#include <cmath>

namespace attest {

Rounded round_ball(arb_srcptr x, double terms, slong precision) {
  arf_t low, high;
  arf_init(low);
  arf_init(high);
  arb_get_lbound_arf(low, x, precision);
  arb_get_ubound_arf(high, x, precision);
  const double below = arf_get_d(low, ARF_RND_NEAR);
  const double above = arf_get_d(high, ARF_RND_NEAR);
  arf_clear(low);
  arf_clear(high);
  Rounded rounded;
  if (below == above) {
    rounded.value = below == 0 ? 0.0 : below;  // no negative zero
    // A copy, or a sum without rounding, is the double itself.
    const bool exact = arb_is_exact(x) != 0 && arf_cmp_d(arb_midref(x), below) == 0;
    rounded.radius = exact ? 0 : std::fabs(below) * 0x1p-53;
  } else if (below <= 0 && above >= 0 && std::max(-below, above) < terms * 0x1p-100) {
    rounded.mark = Mark::zero;
    rounded.radius = terms * 0x1p-100;
  } else {
    // Undecided: the ball straddles the middle between two doubles, or it is still too wide.
    rounded.value = std::clamp(middle(x), below, above);
    rounded.mark = Mark::tie;
    rounded.radius = std::max(above - rounded.value, rounded.value - below) + std::fabs(rounded.value) * 0x1p-53;
    rounded.decided = false;
    rounded.adjacent = std::nextafter(below, above) == above;
  }
  return rounded;
}

}  // namespace attest
