// SPDX-License-Identifier: Apache-2.0
// The exponentials of one row of logits.
#pragma once

#include <cstdint>

namespace attest::onednn {

struct RowSum {
  float largest;  ///< The largest scaled logit or `at_least`; -infinity for a row that sees nothing, without that.
  double sum;     ///< Of the exponentials.
};

/// In place: row[j] = exp(scale * row[j] - largest) for j < visible, and 0 for visible <= j < columns. A logit of
/// -infinity is masked: its exponential is 0.
/// The exponentials are within 2 units in the last place of the true ones, subnormals included.
RowSum exponentials(float* row, std::int64_t visible, std::int64_t columns, float scale, float at_least);

}  // namespace attest::onednn
