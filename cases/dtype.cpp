// SPDX-License-Identifier: Apache-2.0
#include "cases/dtype.h"

#include <array>

namespace attest {

const DTypeInfo& info(DType dtype) {
  static constexpr std::array<DTypeInfo, kDTypeCount> table{{
      {"f32", "F32", {kDLFloat, 32, 1}, 4, 0x1p-24, 0x1p-150, 0x1.fffffep127},
      {"f64", "F64", {kDLFloat, 64, 1}, 8, 0x1p-53, 0x0p+0, 0x1.fffffffffffffp1023},
      {"f16", "F16", {kDLFloat, 16, 1}, 2, 0x1p-11, 0x1p-25, 65504},
      {"bf16", "BF16", {kDLBfloat, 16, 1}, 2, 0x1p-8, 0x1p-134, 0x1.fep127},
      {"i32", "I32", {kDLInt, 32, 1}, 4, 0, 0, 2147483647},
      {"u8", "U8", {kDLUInt, 8, 1}, 1, 0, 0, 255},
      {"i8", "I8", {kDLInt, 8, 1}, 1, 0, 0, 127},
      {"f8_e4m3", "F8_E4M3", {kDLUInt, 8, 1}, 1, 0x1p-4, 0x1p-10, 448},
      {"f8_e5m2", "F8_E5M2", {kDLUInt, 8, 1}, 1, 0x1p-3, 0x1p-17, 57344},
  }};
  return table[static_cast<size_t>(dtype)];
}

}  // namespace attest
