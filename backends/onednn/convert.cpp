// SPDX-License-Identifier: Apache-2.0
#include "convert.h"

#include <bit>
#include <cstring>
#include <type_traits>

#include "clones.h"

namespace attest::onednn {

namespace {

using abi::Storage;

/// decode() of attest/backend_math.hpp without branches, so that a loop of it becomes vector code.
template <int Exponent, int Mantissa, std::uint32_t largest>
inline float widen(std::uint32_t code) {
  constexpr std::uint32_t sign_bit = 1u << (Exponent + Mantissa);
  // As a float it has too small a bias, which one exact product mends. Subnormal codes are then subnormal floats.
  constexpr int bias = (1 << (Exponent - 1)) - 1;
  constexpr float factor = std::bit_cast<float>(static_cast<std::uint32_t>(127 + 127 - bias) << 23);
  const std::uint32_t magnitude = code & (sign_bit - 1), sign = (code & sign_bit) << (31 - Exponent - Mantissa);
  const auto bits = std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude << (23 - Mantissa)) * factor);
  return std::bit_cast<float>(bits | sign | (magnitude > largest ? 0x7F800000u : 0u));
}

/// encode() of attest/backend_math.hpp, likewise.
template <int Exponent, int Mantissa, std::uint32_t largest, std::uint32_t beyond>
inline std::uint32_t narrow(float value) {
  constexpr std::uint32_t sign_bit = 1u << (Exponent + Mantissa), nan = sign_bit - 1;
  constexpr int bias = (1 << (Exponent - 1)) - 1, dropped = 23 - Mantissa;
  const auto bits = std::bit_cast<std::uint32_t>(value), magnitude = bits & 0x7FFFFFFFu;
  // Half of the last bit that is kept, less one unless that bit is odd. A carry goes on into the exponent.
  const std::uint32_t half = (1u << (dropped - 1)) - 1 + ((magnitude >> dropped) & 1u);
  std::uint32_t code = (magnitude - (static_cast<std::uint32_t>(127 - bias) << 23) + half) >> dropped;
  if constexpr (bias != 127) {
    // Subnormal: the sum's last bit is the code's, so that the addition rounds.
    constexpr std::uint32_t smallest_normal = static_cast<std::uint32_t>(128 - bias) << 23;
    constexpr std::uint32_t shift = static_cast<std::uint32_t>(128 - bias + dropped) << 23;
    const float sum = std::bit_cast<float>(magnitude) + std::bit_cast<float>(shift);
    code = magnitude < smallest_normal ? std::bit_cast<std::uint32_t>(sum) - shift : code;
  }
  code = code > largest ? beyond : code;
  code = magnitude > 0x7F800000u ? nan : code;
  return code | (bits >> 31) * sign_bit;
}

template <class Code, class Number>
inline void decode_all(const void* from, std::int64_t stride, std::int64_t count, float* to, Number number) {
  const Code* const codes = static_cast<const Code*>(from);
  if (stride == 1) {
    for (std::int64_t c = 0; c < count; ++c) to[c] = number(codes[c]);
  } else {
    for (std::int64_t c = 0; c < count; ++c) to[c] = number(codes[c * stride]);
  }
}

template <class Code, class Encode>
inline void encode_all(const float* from, std::int64_t count, void* to, std::int64_t stride, Encode code) {
  Code* const codes = static_cast<Code*>(to);
  if (stride == 1) {
    for (std::int64_t c = 0; c < count; ++c) codes[c] = static_cast<Code>(code(from[c]));
  } else {
    for (std::int64_t c = 0; c < count; ++c) codes[c * stride] = static_cast<Code>(code(from[c]));
  }
}

template <class Element>
inline void copy_all(const void* from, std::int64_t from_stride, void* to, std::int64_t to_stride, std::int64_t count) {
  const Element* const source = static_cast<const Element*>(from);
  Element* const target = static_cast<Element*>(to);
  for (std::int64_t c = 0; c < count; ++c) target[c * to_stride] = source[c * from_stride];
}

}  // namespace

ATTEST_ONEDNN_CLONES
void decode(Storage storage, const void* from, std::int64_t stride, std::int64_t count, float scale, float* to) {
  switch (storage) {
    case Storage::f32:
      return decode_all<float>(from, stride, count, to, [](float value) { return value; });
    case Storage::f16:
      return decode_all<std::uint16_t>(from, stride, count, to,
                                       [](std::uint16_t code) { return widen<5, 10, 0x7BFF>(code); });
    case Storage::bf16:
      return decode_all<std::uint16_t>(from, stride, count, to, [](std::uint16_t code) {
        return std::bit_cast<float>(static_cast<std::uint32_t>(code) << 16);
      });
    case Storage::i8:
      return decode_all<std::int8_t>(from, stride, count, to,
                                     [scale](std::int8_t code) { return static_cast<float>(code) * scale; });
    case Storage::f8_e4m3:
      return decode_all<std::uint8_t>(from, stride, count, to,
                                      [scale](std::uint8_t code) { return widen<4, 3, 0x7E>(code) * scale; });
    case Storage::f8_e5m2:
      return decode_all<std::uint8_t>(from, stride, count, to,
                                      [scale](std::uint8_t code) { return widen<5, 2, 0x7B>(code) * scale; });
  }
}

ATTEST_ONEDNN_CLONES
void encode(Storage storage, const float* from, std::int64_t count, float scale, void* to, std::int64_t stride) {
  switch (storage) {
    case Storage::f32:
      return encode_all<float>(from, count, to, stride, [](float value) { return value; });
    case Storage::f16:
      return encode_all<std::uint16_t>(from, count, to, stride, narrow<5, 10, 0x7BFF, 0x7C00>);
    case Storage::bf16:
      return encode_all<std::uint16_t>(from, count, to, stride, narrow<8, 7, 0x7F7F, 0x7F80>);
    case Storage::i8:
      return encode_all<std::int8_t>(from, count, to, stride,
                                     [scale](float value) { return abi::to_i8(value / scale); });
    case Storage::f8_e4m3:
      return encode_all<std::uint8_t>(from, count, to, stride,
                                      [scale](float value) { return narrow<4, 3, 0x7E, 0x7E>(value / scale); });
    case Storage::f8_e5m2:
      return encode_all<std::uint8_t>(from, count, to, stride,
                                      [scale](float value) { return narrow<5, 2, 0x7B, 0x7B>(value / scale); });
  }
}

void copy_elements(Storage storage, const void* from, std::int64_t from_stride, void* to, std::int64_t to_stride,
                   std::int64_t count) {
  const std::size_t bytes = abi::bytes_of(storage);
  if (from_stride == 1 && to_stride == 1) {
    std::memcpy(to, from, static_cast<std::size_t>(count) * bytes);
  } else if (bytes == 4) {
    copy_all<float>(from, from_stride, to, to_stride, count);
  } else if (bytes == 2) {
    copy_all<std::uint16_t>(from, from_stride, to, to_stride, count);
  } else {
    copy_all<std::uint8_t>(from, from_stride, to, to_stride, count);
  }
}

}  // namespace attest::onednn
