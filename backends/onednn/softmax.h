// SPDX-License-Identifier: Apache-2.0
// The exponentials of one row of logits.
#pragma once

#include <cstdint>

namespace attest::onednn {

struct RowSum {
  float largest;  ///< The largest scaled logit; -infinity for an empty row.
  double sum;     ///< Of the exponentials; at least 1 unless the row is empty.
};

/// In place: row[j] = exp(scale * row[j] - largest) for j < visible, and 0 for visible <= j < columns.
/// The exponentials are within 2 units in the last place of the true ones, subnormals included.
RowSum exponentials(float* row, std::int64_t visible, std::int64_t columns, float scale);

}  // namespace attest::onednn
