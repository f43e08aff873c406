// SPDX-License-Identifier: Apache-2.0
// The storage formats against their definition and against known values; RoPE's frequencies and ALiBi's slopes.
#include <catch2/catch_approx.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "attest/backend_math.hpp"

namespace {

using namespace attest::abi;
using Catch::Approx;

constexpr float infinity = std::numeric_limits<float>::infinity();

/// What a code stands for by IEEE 754, without infinities and NaN: sign, exponent, mantissa.
double by_definition(std::uint32_t code, int exponent_bits, int mantissa_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const int exponent = static_cast<int>(code >> mantissa_bits) & ((1 << exponent_bits) - 1);
  const double mantissa = std::ldexp(static_cast<double>(code & ((1u << mantissa_bits) - 1)), -mantissa_bits);
  const double size = exponent == 0 ? std::ldexp(mantissa, 1 - bias) : std::ldexp(1 + mantissa, exponent - bias);
  return (code >> (exponent_bits + mantissa_bits)) != 0 ? -size : size;
}

/// Checks all codes of a format, the midpoints between neighbours, and the floats beside those.
template <class Format>
void check_format(int exponent_bits, int mantissa_bits, std::uint32_t largest) {
  for (std::uint32_t code = 0; code <= largest; ++code) {
    const float value = Format::decode(code);
    if (value != by_definition(code, exponent_bits, mantissa_bits) || Format::encode(value) != code ||
        Format::encode(-value) != (code | Format::sign_bit) || Format::decode(code | Format::sign_bit) != -value) {
      FAIL("code " << code << " is " << value);
    }
    if (code == largest) break;
    const double next = by_definition(code + 1, exponent_bits, mantissa_bits);
    const auto middle = static_cast<float>((value + next) / 2);  // exact: one bit more than the format has
    const std::uint32_t even = code % 2 == 0 ? code : code + 1;
    if (Format::encode(middle) != even || Format::encode(std::nextafter(middle, 0.0f)) != code ||
        Format::encode(std::nextafter(middle, infinity)) != code + 1) {
      FAIL("above code " << code << " around " << middle);
    }
  }
  CHECK(std::isnan(Format::decode(Format::encode(std::numeric_limits<float>::quiet_NaN()))));
  CHECK(std::isnan(Format::decode(Format::encode(-std::numeric_limits<float>::quiet_NaN()))));
  CHECK(Format::encode(std::numeric_limits<float>::denorm_min()) == 0);
  CHECK(std::signbit(Format::decode(Format::encode(-0.0f))));
}

}  // namespace

TEST_CASE("Every code of f16, bf16 and fp8, and what rounds to it") {
  check_format<F16>(5, 10, 0x7BFF);
  check_format<Bf16>(8, 7, 0x7F7F);
  check_format<F8e4m3>(4, 3, 0x7E);
  check_format<F8e5m2>(5, 2, 0x7B);
}

TEST_CASE("Beyond the largest number f16 and bf16 are infinite and fp8 saturates") {
  CHECK(F16::decode(F16::encode(65519.996f)) == 65504);
  CHECK(F16::decode(F16::encode(65520)) == infinity);
  CHECK(F16::decode(F16::encode(-infinity)) == -infinity);
  CHECK(Bf16::decode(Bf16::encode(std::numeric_limits<float>::max())) == infinity);
  CHECK(Bf16::decode(Bf16::encode(-infinity)) == -infinity);
  for (const float large : {449.0f, 464.0f, 480.0f, 1e30f, infinity}) {
    CHECK(F8e4m3::decode(F8e4m3::encode(large)) == 448);
    CHECK(F8e4m3::decode(F8e4m3::encode(-large)) == -448);
  }
  CHECK(F8e5m2::decode(F8e5m2::encode(61440)) == 57344);
  CHECK(F8e5m2::decode(F8e5m2::encode(-infinity)) == -57344);
  CHECK(F8e5m2::decode(0x7C) == infinity);
  CHECK(std::isnan(F8e5m2::decode(0x7D)));
  CHECK(std::isnan(F8e4m3::decode(0xFF)));
  CHECK(std::isnan(F16::decode(0x7C01)));
}

TEST_CASE("int8 codes tie to even and stay within +-127") {
  CHECK(rounded(Storage::i8, 0.5f) == 0);
  CHECK(rounded(Storage::i8, 1.5f) == 2);
  CHECK(rounded(Storage::i8, -2.5f) == -2);
  CHECK(rounded(Storage::i8, 1e9f) == 127);
  CHECK(rounded(Storage::i8, -infinity) == -127);
  CHECK(rounded(Storage::i8, std::numeric_limits<float>::quiet_NaN()) == 0);
  const std::int8_t lowest = -128;
  CHECK(load(Storage::i8, &lowest) == -128);
}

TEST_CASE("Storage by dtype") {
  CHECK(storage_of({kDLFloat, 32, 1}) == Storage::f32);
  CHECK(storage_of({kDLFloat, 16, 1}) == Storage::f16);
  CHECK(storage_of({kDLBfloat, 16, 1}) == Storage::bf16);
  CHECK(storage_of({kDLInt, 8, 1}) == Storage::i8);
  CHECK(storage_of({kDLUInt, 8, 1}, ATTEST_FP8_E4M3) == Storage::f8_e4m3);
  CHECK(storage_of({kDLUInt, 8, 1}, ATTEST_FP8_E5M2) == Storage::f8_e5m2);
  CHECK_THROWS_AS(storage_of({kDLUInt, 8, 1}), std::logic_error);
  CHECK(rounded(Storage::f32, 0.1f) == 0.1f);
  CHECK(rounded(Storage::f16, 0.1f) == 0.0999755859375f);
  CHECK(rounded(Storage::bf16, 0.1f) == 0.10009765625f);
  CHECK(rounded(Storage::f8_e4m3, 0.1f) == 0.1015625f);
  CHECK(rounded(Storage::f8_e5m2, 0.1f) == 0.09375f);
  CHECK(bytes_of(Storage::bf16) == 2);
  CHECK(largest_code(Storage::f8_e5m2) == 57344);
}

TEST_CASE("RoPE's frequencies") {
  attest_rope rope{};
  CHECK(rope_frequencies(rope).frequency.empty());
  rope.style = ATTEST_ROPE_HALF;
  rope.rotary_dim = 8;
  rope.base = 10000;
  CHECK(rope_frequencies(rope).magnitude == 1);
  const std::vector<double> plain = rope_frequencies(rope).frequency;
  REQUIRE(plain.size() == 4);
  CHECK(plain[0] == 1);
  CHECK(plain[1] == Approx(0.1));
  CHECK(plain[3] == Approx(0.001));

  rope.factor = 4;
  SECTION("linear") {
    rope.scaling = ATTEST_ROPE_SCALING_LINEAR;
    CHECK(rope_frequencies(rope).frequency[0] == 0.25);
    CHECK(rope_frequencies(rope).frequency[3] == Approx(0.00025));
  }
  SECTION("NTK slows the last pair by the factor and the first not at all") {
    rope.scaling = ATTEST_ROPE_SCALING_NTK;
    CHECK(rope_frequencies(rope).frequency[0] == 1);
    CHECK(rope_frequencies(rope).frequency[3] == Approx(0.001 / 4));
  }
  SECTION("Llama 3 keeps fast pairs, divides slow ones, and mixes in between") {
    rope.scaling = ATTEST_ROPE_SCALING_LLAMA3;
    rope.original_length = 200 * 3.14159265358979323846;  // pair c turns 100 * 10^-c times
    rope.low_frequency = 1;
    rope.high_frequency = 16;
    const std::vector<double> f = rope_frequencies(rope).frequency;
    CHECK(f[0] == 1);
    CHECK(f[1] == Approx(0.1 * (0.6 + 0.4 / 4)));  // 10 turns are 0.6 of the way from 1 to 16
    CHECK(f[2] == Approx(0.01 / 4));
    CHECK(f[3] == Approx(0.001 / 4));
  }
  SECTION("YaRN ramps between the pairs of the two frequencies") {
    rope.scaling = ATTEST_ROPE_SCALING_YARN;
    rope.original_length = 200 * 3.14159265358979323846;
    rope.low_frequency = 0.2;  // pair 2.7, rounded up
    rope.high_frequency = 50;  // pair 0.3, rounded down
    const RopeFrequencies yarn = rope_frequencies(rope);
    CHECK(yarn.frequency[0] == 1);
    CHECK(yarn.frequency[1] == Approx(0.1 * (2.0 / 3 + 1.0 / 3 / 4)));
    CHECK(yarn.frequency[2] == Approx(0.01 * (1.0 / 3 + 2.0 / 3 / 4)));
    CHECK(yarn.frequency[3] == Approx(0.001 / 4));
    CHECK(yarn.magnitude == Approx(0.1 * std::log(4) + 1));
    rope.attention_factor = 1.5;
    CHECK(rope_frequencies(rope).magnitude == 1.5);
    rope.low_frequency = 150;  // both ends at pair 0
    rope.high_frequency = 200;
    CHECK(rope_frequencies(rope).frequency[0] == 1);
    CHECK(rope_frequencies(rope).frequency[1] == Approx(0.1 / 4));
  }
}

TEST_CASE("Standard ALiBi slopes, also for a head count that is no power of two") {
  CHECK(standard_alibi_slope(0, 8) == 0.5);
  CHECK(standard_alibi_slope(7, 8) == 1 / 256.0);
  CHECK(standard_alibi_slope(0, 6) == 0.25);
  CHECK(standard_alibi_slope(4, 6) == 0.5);
  CHECK(standard_alibi_slope(5, 6) == 0.125);
}
