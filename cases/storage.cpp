// SPDX-License-Identifier: Apache-2.0
#include "cases/storage.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

namespace attest {
namespace {

/// A binary floating-point format with a sign bit, narrower than f32.
struct Format {
  int exponent_bits, mantissa_bits;
  bool infinities;  ///< Its highest exponent means infinity and NaN; else only all ones is NaN (E4M3).
  [[nodiscard]] constexpr int bias() const { return (1 << (exponent_bits - 1)) - 1; }
  [[nodiscard]] constexpr uint32_t sign() const { return 1U << (exponent_bits + mantissa_bits); }
};

constexpr Format kF16{5, 10, true}, kBf16{8, 7, true}, kE4M3{4, 3, false}, kE5M2{5, 2, true};
constexpr uint32_t kSign = 0x80000000U, kInfinity = 0x7f800000U;

const Format& format_of(DType dtype) {
  switch (dtype) {
    case DType::f16:
      return kF16;
    case DType::bf16:
      return kBf16;
    case DType::f8_e4m3:
      return kE4M3;
    default:
      return kE5M2;
  }
}

uint32_t encode_float(const Format& f, float value, double largest, bool saturates) {
  const auto bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = (bits & kSign) != 0 ? f.sign() : 0;
  if (std::isnan(value)) {
    const uint32_t payload = (bits & 0x7fffffU) >> (23 - f.mantissa_bits);
    const uint32_t top = ((1U << f.exponent_bits) - 1) << f.mantissa_bits;
    return sign | top | (f.infinities ? std::max(payload, 1U) : (1U << f.mantissa_bits) - 1);
  }
  // In units of the format's last place at this magnitude, which is a power of two: scaling is exact, and so is a
  // double's rounding to a whole number.
  const double magnitude = std::fabs(static_cast<double>(value));
  if (magnitude == 0) return sign;
  if (saturates && magnitude > largest) return sign | encode_float(f, static_cast<float>(largest), largest, false);
  const int exponent = std::max(std::ilogb(magnitude), 1 - f.bias());
  const uint32_t infinity = ((1U << f.exponent_bits) - 1) << f.mantissa_bits;
  if (exponent > f.bias() + 1) return sign | infinity;
  const auto steps = static_cast<uint32_t>(std::nearbyint(std::ldexp(magnitude, f.mantissa_bits - exponent)));
  // A carry out of the mantissa runs into the exponent, as it should; a subnormal number has exponent field 0.
  const uint32_t nearest = (static_cast<uint32_t>(exponent + f.bias() - 1) << f.mantissa_bits) + steps;
  return sign | (f.infinities ? std::min(nearest, infinity) : nearest);
}

float decode_float(const Format& f, uint32_t bits) {
  const uint32_t sign = (bits & f.sign()) != 0 ? kSign : 0;
  const uint32_t top = (1U << f.exponent_bits) - 1;
  const uint32_t field = (bits >> f.mantissa_bits) & top;
  const uint32_t mantissa = bits & ((1U << f.mantissa_bits) - 1);
  const bool special = f.infinities ? field == top : field == top && mantissa == (1U << f.mantissa_bits) - 1;
  if (special) return std::bit_cast<float>(sign | kInfinity | mantissa << (23 - f.mantissa_bits));
  const double steps = static_cast<double>(field == 0 ? mantissa : mantissa | 1U << f.mantissa_bits);
  const auto magnitude =
      static_cast<float>(std::ldexp(steps, std::max(static_cast<int>(field), 1) - f.bias() - f.mantissa_bits));
  return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(magnitude));
}

float clamp_code(float value, float low, float high) {
  return std::isnan(value) ? 0.0F : std::clamp(std::nearbyint(value), low, high);
}

}  // namespace

uint32_t encode(DType dtype, float value) {
  switch (dtype) {
    case DType::f16:
    case DType::bf16:
      return encode_float(format_of(dtype), value, info(dtype).largest, false);
    case DType::f8_e4m3:
    case DType::f8_e5m2:
      return encode_float(format_of(dtype), value, info(dtype).largest, true);
    case DType::i8:
      return static_cast<uint8_t>(static_cast<int8_t>(clamp_code(value, -128, 127)));
    case DType::u8:
      return static_cast<uint8_t>(clamp_code(value, 0, 255));
    default:
      return std::bit_cast<uint32_t>(value);
  }
}

float decode(DType dtype, uint32_t bits) {
  switch (dtype) {
    case DType::f16:
    case DType::bf16:
    case DType::f8_e4m3:
    case DType::f8_e5m2:
      return decode_float(format_of(dtype), bits);
    case DType::i8:
      return static_cast<float>(static_cast<int8_t>(bits));
    case DType::u8:
      return static_cast<float>(bits);
    default:
      return std::bit_cast<float>(bits);
  }
}

std::vector<uint8_t> encode_all(DType dtype, const std::vector<float>& values) {
  const auto size = static_cast<size_t>(info(dtype).size);
  std::vector<uint8_t> bytes(values.size() * size);
  if (dtype == DType::f32) {
    std::memcpy(bytes.data(), values.data(), bytes.size());
    return bytes;
  }
  for (size_t i = 0; i < values.size(); ++i) {
    const uint32_t bits = encode(dtype, values[i]);
    std::memcpy(bytes.data() + i * size, &bits, size);
  }
  return bytes;
}

std::vector<float> decode_all(DType dtype, const std::vector<uint8_t>& bytes) {
  const auto size = static_cast<size_t>(info(dtype).size);
  std::vector<float> values(bytes.size() / size);
  if (dtype == DType::f32) {
    std::memcpy(values.data(), bytes.data(), bytes.size());
    return values;
  }
  for (size_t i = 0; i < values.size(); ++i) {
    uint32_t bits = 0;
    std::memcpy(&bits, bytes.data() + i * size, size);
    values[i] = decode(dtype, bits);
  }
  return values;
}

}  // namespace attest
