// SPDX-License-Identifier: Apache-2.0
#include "rows.h"

namespace attest::onednn {

std::vector<const RowKernels*> row_kernels() {
  std::vector<const RowKernels*> found;
#if defined(__x86_64__) && defined(__GNUC__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx512 && row_kernels_avx512() != nullptr) found.push_back(row_kernels_avx512());
  if (avx2 && row_kernels_avx2() != nullptr) found.push_back(row_kernels_avx2());
#endif
  found.push_back(row_kernels_generic());
  return found;
}

}  // namespace attest::onednn
