// SPDX-License-Identifier: Apache-2.0
// How numbers lie in memory: between the values that cases, goldens and judgement are about, as f32, and the bits of
// f16, bf16, i8, u8 and fp8 tensors. The only place that knows these formats.
#pragma once

#include <cstdint>
#include <vector>

#include "cases/dtype.h"

namespace attest {

/// The bits, in the low end, of the number of `dtype` (f32, f16, bf16, i8, u8 or fp8) nearest to `value`, ties to even.
/// Beyond the range: infinity for f16 and bf16; the largest finite number for fp8 and the integers. NaN stays NaN, and
/// is 0 in an integer.
uint32_t encode(DType dtype, float value);
/// The number that these bits stand for. Exact, and different for different bits: NaNs keep theirs.
float decode(DType dtype, uint32_t bits);

/// `value` rounded to a number of `dtype`.
inline float round_to(DType dtype, float value) {
  return dtype == DType::f32 ? value : decode(dtype, encode(dtype, value));
}

/// Whole tensors, as the little-endian bytes of their elements.
std::vector<uint8_t> encode_all(DType dtype, const std::vector<float>& values);
std::vector<float> decode_all(DType dtype, const std::vector<uint8_t>& bytes);

}  // namespace attest
