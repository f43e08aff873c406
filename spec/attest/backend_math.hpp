// SPDX-License-Identifier: Apache-2.0
// attest/backend_math.hpp: the small formulas of spec/attention.md that a backend would otherwise write again.
//
// Who includes it: attest/backend.hpp does; a backend that fills the C table by itself may take this header alone. It
// has the storage formats f16, bf16 and fp8, RoPE's frequencies (R3) and ALiBi's slopes (B1), and keeps no state.
// A backend need not use it: it is plain code without tables or SIMD, made to be right and read.
#ifndef ATTEST_BACKEND_MATH_HPP
#define ATTEST_BACKEND_MATH_HPP

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <numbers>
#include <stdexcept>
#include <vector>

#include "attest/backend.h"

#if defined(__GNUC__)
#pragma GCC visibility push(hidden)
#endif

namespace attest::abi {

// ---------------------------------------------------------------------------------------------------------------------
// Storage formats

/// A float of sign, `Exponent` and `Mantissa` bits. A number that rounds to beyond the code `largest` becomes the code
/// `beyond`: infinity, or `largest` again where the format saturates.
template <int Exponent, int Mantissa, std::uint32_t largest, std::uint32_t beyond>
struct SmallFloat {
  static constexpr std::uint32_t sign_bit = 1u << (Exponent + Mantissa);
  static constexpr std::uint32_t nan = sign_bit - 1;
  static constexpr int bias = (1 << (Exponent - 1)) - 1;

  [[nodiscard]] static float decode(std::uint32_t code) {
    const std::uint32_t magnitude = code & (sign_bit - 1), mantissa = magnitude & ((1u << Mantissa) - 1);
    std::uint32_t bits = 0;
    if (magnitude > largest) {
      bits = mantissa == 0 ? 0x7F800000u : 0x7FC00000u;
    } else if (magnitude >> Mantissa != 0 || bias == 127) {
      bits = (magnitude << (23 - Mantissa)) + (static_cast<std::uint32_t>(127 - bias) << 23);
    } else {
      const float subnormal = std::ldexp(static_cast<float>(mantissa), 1 - bias - Mantissa);
      std::memcpy(&bits, &subnormal, sizeof bits);
    }
    if ((code & sign_bit) != 0) bits |= 0x80000000u;
    float value = 0;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  }

  /// To nearest, ties to even; a NaN stays one.
  [[nodiscard]] static std::uint32_t encode(float value) {
    std::uint32_t bits = 0;
    std::memcpy(&bits, &value, sizeof bits);
    const std::uint32_t sign = bits >> 31 != 0 ? sign_bit : 0;
    bits &= 0x7FFFFFFFu;
    if (bits > 0x7F800000u) return sign | nan;
    // In units of the last bit that is kept, below which `dropped` bits go. A subnormal result keeps fewer.
    constexpr std::uint32_t smallest_normal = static_cast<std::uint32_t>(128 - bias) << 23;
    std::uint32_t kept = bits;
    int dropped = 23 - Mantissa;
    if (bias != 127 && bits < smallest_normal) {
      dropped += 128 - bias - static_cast<int>(bits >> 23);
      if (dropped > 24) return sign;  // less than half of the smallest number; so are all subnormal floats
      kept = (bits & 0x7FFFFFu) | 0x800000u;
    } else if (bias != 127) {
      kept -= static_cast<std::uint32_t>(127 - bias) << 23;
    }
    kept += (1u << (dropped - 1)) - 1 + ((kept >> dropped) & 1u);
    const std::uint32_t code = kept >> dropped;
    return sign | (code > largest ? beyond : code);
  }
};

using F16 = SmallFloat<5, 10, 0x7BFF, 0x7C00>;
using Bf16 = SmallFloat<8, 7, 0x7F7F, 0x7F80>;
/// OCP fp8. They saturate, as a quantised cache does (clause Q1).
using F8e4m3 = SmallFloat<4, 3, 0x7E, 0x7E>;
using F8e5m2 = SmallFloat<5, 2, 0x7B, 0x7B>;

/// How the elements of a tensor are stored.
enum class Storage : std::uint8_t { f32, f16, bf16, i8, f8_e4m3, f8_e5m2 };

/// Of a tensor with this dtype; `fp8` (an attest_fp8) says what uint8 stands for. Throws std::logic_error for another.
inline Storage storage_of(DLDataType type, int fp8 = ATTEST_FP8_NONE) {
  if (type.code == kDLFloat && type.bits == 32) return Storage::f32;
  if (type.code == kDLFloat && type.bits == 16) return Storage::f16;
  if (type.code == kDLBfloat && type.bits == 16) return Storage::bf16;
  if (type.code == kDLInt && type.bits == 8) return Storage::i8;
  if (type.code == kDLUInt && type.bits == 8 && fp8 == ATTEST_FP8_E4M3) return Storage::f8_e4m3;
  if (type.code == kDLUInt && type.bits == 8 && fp8 == ATTEST_FP8_E5M2) return Storage::f8_e5m2;
  throw std::logic_error("a dtype that stores no numbers of this operator");
}

inline std::size_t bytes_of(Storage storage) {
  return storage == Storage::f32 ? 4 : storage == Storage::f16 || storage == Storage::bf16 ? 2 : 1;
}

/// The largest code of a quantised cache (clause Q2); 0 for the formats that are no codes.
inline float largest_code(Storage storage) {
  switch (storage) {
    case Storage::i8:
      return 127;
    case Storage::f8_e4m3:
      return 448;
    case Storage::f8_e5m2:
      return 57344;
    default:
      return 0;
  }
}

/// The element at `from`; of int8 and fp8 the code's number, without its scale.
inline float load(Storage storage, const void* from) {
  std::uint16_t half = 0;
  std::uint8_t byte = 0;
  float value = 0;
  switch (storage) {
    case Storage::f16:
      std::memcpy(&half, from, sizeof half);
      return F16::decode(half);
    case Storage::bf16:
      std::memcpy(&half, from, sizeof half);
      return Bf16::decode(half);
    case Storage::i8:
      std::memcpy(&byte, from, sizeof byte);
      return static_cast<float>(static_cast<std::int8_t>(byte));
    case Storage::f8_e4m3:
      std::memcpy(&byte, from, sizeof byte);
      return F8e4m3::decode(byte);
    case Storage::f8_e5m2:
      std::memcpy(&byte, from, sizeof byte);
      return F8e5m2::decode(byte);
    case Storage::f32:
      break;
  }
  std::memcpy(&value, from, sizeof value);
  return value;
}

/// The nearest int8 code, ties to even, clamped to +-127; of NaN 0.
inline std::int8_t to_i8(float value) {
  if (std::isnan(value)) return 0;
  return static_cast<std::int8_t>(std::nearbyint(std::clamp(value, -127.0f, 127.0f)));
}

/// Writes the value nearest to `value` (ties to even) to `to`: int8 and fp8 are clamped to the largest code, f16 and
/// bf16 go to infinity.
inline void store(Storage storage, float value, void* to) {
  const auto put = [to](auto code) { std::memcpy(to, &code, sizeof code); };
  switch (storage) {
    case Storage::f32:
      return put(value);
    case Storage::f16:
      return put(static_cast<std::uint16_t>(F16::encode(value)));
    case Storage::bf16:
      return put(static_cast<std::uint16_t>(Bf16::encode(value)));
    case Storage::i8:
      return put(to_i8(value));
    case Storage::f8_e4m3:
      return put(static_cast<std::uint8_t>(F8e4m3::encode(value)));
    case Storage::f8_e5m2:
      return put(static_cast<std::uint8_t>(F8e5m2::encode(value)));
  }
}

/// What `store` and `load` make of a value.
inline float rounded(Storage storage, float value) {
  unsigned char element[4];
  store(storage, value, element);
  return load(storage, element);
}

// ---------------------------------------------------------------------------------------------------------------------
// Positions

/// RoPE's angle at position t is `t * frequency[c]` for pair c; cos and sin are multiplied by `magnitude`.
struct RopeFrequencies {
  std::vector<double> frequency;
  double magnitude = 1;
};

/// YaRN in either form.
inline bool is_yarn(const attest_rope& rope) {
  return rope.scaling == ATTEST_ROPE_SCALING_YARN || rope.scaling == ATTEST_ROPE_SCALING_YARN_UNROUNDED;
}

/// Of a checked problem (clauses R2 and R3); none without RoPE.
inline RopeFrequencies rope_frequencies(const attest_rope& rope) {
  RopeFrequencies result;
  if (rope.style == ATTEST_ROPE_NONE) return result;
  const double two_pi = 2 * std::numbers::pi;
  const auto r = static_cast<double>(rope.rotary_dim);
  const double base =
      rope.scaling == ATTEST_ROPE_SCALING_NTK ? rope.base * std::pow(rope.factor, r / (r - 2)) : rope.base;
  // YaRN: the pairs up to `low` keep their frequency, those from `high` on are stretched, in between both are mixed.
  double low = 0, high = 0;
  if (is_yarn(rope)) {
    const auto pair_turning = [&](double turns) {
      return r * std::log(rope.original_length / (two_pi * turns)) / (2 * std::log(base));
    };
    low = pair_turning(rope.high_frequency);
    high = pair_turning(rope.low_frequency);
    if (rope.scaling == ATTEST_ROPE_SCALING_YARN) low = std::floor(low), high = std::ceil(high);
    low = std::max(low, 0.0);
    high = std::min(high, r - 1);
    if (low == high) high += 0.001;
    result.magnitude = rope.attention_factor != 0 ? rope.attention_factor : 0.1 * std::log(rope.factor) + 1;
  }
  for (std::int64_t pair = 0; pair < rope.rotary_dim / 2; ++pair) {
    const auto c = static_cast<double>(pair);
    const double f = std::pow(base, -2 * c / r);
    double stretched = 0;  // the share of the frequency that is divided by the factor
    if (rope.scaling == ATTEST_ROPE_SCALING_LINEAR) {
      stretched = 1;
    } else if (is_yarn(rope)) {
      stretched = std::clamp((c - low) / (high - low), 0.0, 1.0);
    } else if (rope.scaling == ATTEST_ROPE_SCALING_LLAMA3) {
      const double turns = rope.original_length * f / two_pi;
      stretched = 1 - std::clamp((turns - rope.low_frequency) / (rope.high_frequency - rope.low_frequency), 0.0, 1.0);
    }
    result.frequency.push_back(stretched == 0 ? f : stretched * f / rope.factor + (1 - stretched) * f);
  }
  return result;
}

/// The standard ALiBi slope of query head h (clause B1).
inline double standard_alibi_slope(std::int64_t h, std::int64_t query_heads) {
  std::int64_t n = 1;  // the largest power of two up to Hq
  while (2 * n <= query_heads) n *= 2;
  const double exponent = h < n ? -8.0 * static_cast<double>(h + 1) : -4.0 * static_cast<double>(2 * (h - n) + 1);
  return std::exp2(exponent / static_cast<double>(n));
}

}  // namespace attest::abi

#if defined(__GNUC__)
#pragma GCC visibility pop
#endif

#endif  // ATTEST_BACKEND_MATH_HPP
