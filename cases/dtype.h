// SPDX-License-Identifier: Apache-2.0
// Element types: their names, sizes and unit roundoffs. One table; everything else asks it.
#pragma once

#include <dlpack/dlpack.h>

#include <cstdint>
#include <string_view>

namespace attest {

enum class DType : int { f32, f64, f16, bf16, i32, u8, i8, f8_e4m3, f8_e5m2 };

/// All of them, in the order of the enumeration.
inline constexpr int kDTypeCount = 9;

struct DTypeInfo {
  std::string_view name;         ///< As in cases: "f32".
  std::string_view safetensors;  ///< As in a safetensors header: "F32".
  DLDataType dlpack;             ///< fp8 travels as u8: DLPack 0.6 has no code for it.
  int64_t size;                  ///< Bytes.
  double unit_roundoff;          ///< Half an ulp of 1: 2^-24 for f32. 0 for integers.
  double half_subnormal;         ///< Half the smallest subnormal: 2^-150 for f32.
  double largest;                ///< Largest finite number; of i8 the largest code, 127.
};

const DTypeInfo& info(DType dtype);

/// Storage of 16 bits, in which softmax weights may be kept (clause D1).
inline bool is_half(DType dtype) {
  return dtype == DType::f16 || dtype == DType::bf16;
}
/// A type of quantised caches, whose elements are codes (clause Q1).
inline bool is_code(DType dtype) {
  return dtype == DType::i8 || dtype == DType::f8_e4m3 || dtype == DType::f8_e5m2;
}

}  // namespace attest
