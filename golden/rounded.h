// SPDX-License-Identifier: Apache-2.0
// A ball rounded to a double, and what that proves.
#pragma once

#include "golden/ball.h"
#include "golden/golden.h"

namespace attest {

struct Rounded {
  double value = 0;
  Mark mark = Mark::proven;
  double radius = 0;     ///< |exact - value| is at most this.
  bool decided = true;   ///< Proven, or proven zero; else more bits are worth a try.
  bool adjacent = true;  ///< Its two candidates are neighbours: within one ulp, whichever is right.
};

/// `terms` bounds the magnitude of what was summed to get x: only against it can a zero be told from a small number.
Rounded round_ball(arb_srcptr x, double terms, slong precision);

}  // namespace attest
