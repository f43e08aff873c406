// SPDX-License-Identifier: Apache-2.0
#include "cases/dtype.h"

#include <array>

namespace attest {

const DTypeInfo& info(DType dtype) {
  static constexpr std::array<DTypeInfo, 6> table{{
      {"f32", "F32", {kDLFloat, 32, 1}, 4, 0x1p-24, 0x1p-150},
      {"f64", "F64", {kDLFloat, 64, 1}, 8, 0x1p-53, 0x0p+0},
      {"f16", "F16", {kDLFloat, 16, 1}, 2, 0x1p-11, 0x1p-25},
      {"bf16", "BF16", {kDLBfloat, 16, 1}, 2, 0x1p-8, 0x1p-134},
      {"i32", "I32", {kDLInt, 32, 1}, 4, 0, 0},
      {"u8", "U8", {kDLUInt, 8, 1}, 1, 0, 0},
  }};
  return table[static_cast<size_t>(dtype)];
}

}  // namespace attest
