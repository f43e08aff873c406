// SPDX-License-Identifier: Apache-2.0
// Element types: their names, sizes and unit roundoffs. One table; everything else asks it.
#pragma once

#include <dlpack/dlpack.h>

#include <cstdint>
#include <string_view>

namespace attest {

enum class DType : int { f32, f64, f16, bf16, i32, u8 };

struct DTypeInfo {
  std::string_view name;         ///< As in cases: "f32".
  std::string_view safetensors;  ///< As in a safetensors header: "F32".
  DLDataType dlpack;
  int64_t size;           ///< Bytes.
  double unit_roundoff;   ///< Half an ulp of 1: 2^-24 for f32. 0 for integers.
  double half_subnormal;  ///< Half the smallest subnormal: 2^-150 for f32.
};

const DTypeInfo& info(DType dtype);

}  // namespace attest
