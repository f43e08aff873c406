// SPDX-License-Identifier: Apache-2.0
#include "cases/storage.h"

#include <bit>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <limits>

#include "cases/quantise.h"

using namespace attest;

TEST_CASE("every bit pattern of a narrow format survives the way to f32 and back") {
  for (const DType dtype : {DType::f16, DType::bf16, DType::i8, DType::u8, DType::f8_e4m3, DType::f8_e5m2}) {
    INFO(info(dtype).name);
    const uint32_t patterns = 1U << (8 * info(dtype).size);
    for (uint32_t bits = 0; bits < patterns; ++bits) {
      const float value = decode(dtype, bits);
      // fp8 of 5 exponent bits has infinities, which encode never gives.
      if (std::isinf(value) && dtype == DType::f8_e5m2) continue;
      REQUIRE(encode(dtype, value) == bits);
    }
  }
}

TEST_CASE("known numbers") {
  CHECK(decode(DType::f16, 0x3c00) == 1.0F);
  CHECK(decode(DType::f16, 0x0001) == 0x1p-24F);
  CHECK(decode(DType::f16, 0x7bff) == 65504.0F);
  CHECK(decode(DType::bf16, 0x3f80) == 1.0F);
  CHECK(decode(DType::bf16, 0xc2f6) == -123.0F);
  CHECK(decode(DType::f8_e4m3, 0x38) == 1.0F);
  CHECK(decode(DType::f8_e4m3, 0x7e) == 448.0F);
  CHECK(decode(DType::f8_e4m3, 0x01) == 0x1p-9F);
  CHECK(std::isnan(decode(DType::f8_e4m3, 0x7f)));
  CHECK(decode(DType::f8_e5m2, 0x3c) == 1.0F);
  CHECK(decode(DType::f8_e5m2, 0x7b) == 57344.0F);
  CHECK(decode(DType::i8, 0x81) == -127.0F);
}

TEST_CASE("encode rounds to the nearest, ties to even") {
  for (const DType dtype : {DType::f16, DType::bf16, DType::f8_e4m3, DType::f8_e5m2}) {
    INFO(info(dtype).name);
    const uint32_t sign = 1U << (8 * info(dtype).size - 1);
    for (uint32_t bits = 0; bits + 1 < sign; ++bits) {
      const float low = decode(dtype, bits), high = decode(dtype, bits + 1);
      if (!std::isfinite(high)) break;
      const float middle = low / 2 + high / 2;  // exact: both are narrow
      REQUIRE(encode(dtype, middle) == (bits % 2 == 0 ? bits : bits + 1));
      REQUIRE(encode(dtype, std::nextafter(middle, low)) == bits);
      REQUIRE(encode(dtype, std::nextafter(middle, high)) == bits + 1);
      REQUIRE(encode(dtype, -middle) == (sign | (bits % 2 == 0 ? bits : bits + 1)));
    }
  }
}

TEST_CASE("beyond the range: infinity in 16 bits, the largest number in fp8 and integers") {
  const float huge = 3e38F, infinity = std::numeric_limits<float>::infinity();
  CHECK(encode(DType::f16, 65519.0F) == 0x7bff);
  CHECK(encode(DType::f16, 65520.0F) == 0x7c00);
  CHECK(encode(DType::f16, -huge) == 0xfc00);
  CHECK(encode(DType::bf16, std::numeric_limits<float>::max()) == 0x7f80);
  CHECK(encode(DType::bf16, infinity) == 0x7f80);
  for (const float x : {460.0F, huge, infinity}) CHECK(encode(DType::f8_e4m3, x) == 0x7e);
  for (const float x : {61440.0F, huge, infinity}) CHECK(encode(DType::f8_e5m2, x) == 0x7b);
  CHECK(encode(DType::f8_e4m3, -infinity) == 0xfe);
  CHECK(encode(DType::i8, 1000.0F) == 127);
  CHECK(std::isnan(decode(DType::f16, encode(DType::f16, std::nanf("")))));
}

TEST_CASE("codes are the nearest numbers, and the margin says how surely") {
  for (const DType codes : {DType::i8, DType::f8_e4m3, DType::f8_e5m2}) {
    INFO(info(codes).name);
    for (int i = -3000; i <= 3000; ++i) {
      const double x = i * 0.0371, scale = 0.0137;
      const auto exact = static_cast<float>(x / scale);
      const float most = static_cast<float>(info(codes).largest);
      const float wanted = decode(codes, encode(codes, std::clamp(exact, -most, most)));
      if (code_margin(codes, x, scale) > 1e-5) REQUIRE(code_of(codes, x, scale) == static_cast<double>(wanted));
    }
  }
  CHECK(code_margin(DType::i8, 2.5, 1) == 0);
  CHECK(code_margin(DType::i8, 2, 1) == 0.5);
  CHECK(code_margin(DType::f8_e4m3, 17, 1) == 0);  // between 16 and 18
  CHECK(std::isinf(code_margin(DType::f8_e4m3, 500, 1)));
}
