// SPDX-License-Identifier: Apache-2.0
// Any machine: four lanes, which the compiler maps to what there is (SSE2, NEON).
#include "rows.h"

#define ATTEST_ROW_LANES 4
#include "rows_kernel.h"
#include "tile_kernel.h"

namespace attest::onednn {

const RowKernels* row_kernels_generic() {
  static constexpr RowKernels kernels{"generic", multiply, blend, exponentials, &tile_kernels};
  return &kernels;
}

}  // namespace attest::onednn
