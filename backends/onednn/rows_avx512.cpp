// SPDX-License-Identifier: Apache-2.0
// AVX-512: Skylake-SP and Zen 4, and what came after. CMakeLists.txt has the compiler's options.
#include "rows.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define ATTEST_ROW_LANES 16
#include "rows_kernel.h"
#include "tile_kernel.h"

namespace attest::onednn {

const RowKernels* row_kernels_avx512() {
  static constexpr RowKernels kernels{"AVX-512", multiply, blend, exponentials, &tile_kernels};
  return &kernels;
}

}  // namespace attest::onednn
#else
namespace attest::onednn {

const RowKernels* row_kernels_avx512() {
  return nullptr;
}

}  // namespace attest::onednn
#endif
