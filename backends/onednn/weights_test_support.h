// SPDX-License-Identifier: Apache-2.0
// What a weight of either softmax, of rows.h or of tiles.h, may be off by: for their tests.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

namespace attest::onednn {

/// How far a weight is from exp(logit), logit <= 0, as a part of what is allowed (TileKernels::begin_weights). Below
/// the least float it has to be 0. Infinity for NaN, which the largest of some numbers would not show.
inline double off_by(float weight, double logit) {
  if (std::isnan(weight) || (logit < -105 && weight != 0)) return std::numeric_limits<double>::infinity();
  if (logit < -105) return 0;
  const double wanted = std::exp(logit), unit = std::max(std::ldexp(1.0, std::ilogb(wanted) - 23), 0x1p-149);
  return std::abs(static_cast<double>(weight) - wanted) / unit / (2 - 4 * logit);
}

}  // namespace attest::onednn
