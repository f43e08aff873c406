// SPDX-License-Identifier: Apache-2.0
// AVX2: Haswell and Zen, and what came after. CMakeLists.txt has the compiler's options.
#include "rows.h"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define ATTEST_ROW_LANES 8
#include "rows_kernel.h"
#include "tile_kernel.h"

namespace attest::onednn {

const RowKernels* row_kernels_avx2() {
  static constexpr RowKernels kernels{"AVX2", multiply, blend, exponentials, &tile_kernels};
  return &kernels;
}

}  // namespace attest::onednn
#else
namespace attest::onednn {

const RowKernels* row_kernels_avx2() {
  return nullptr;
}

}  // namespace attest::onednn
#endif
