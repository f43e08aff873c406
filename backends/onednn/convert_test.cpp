// SPDX-License-Identifier: Apache-2.0
// The vectorised conversions against those of attest/backend_math.hpp, bit for bit.
#include "convert.h"

#include <attest/backend_math.hpp>
#include <bit>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

namespace attest::onednn {
namespace {

using abi::Storage;

constexpr std::int64_t stride = 3;

/// Of codes that have one. Not a power of two, and not its own inverse.
float scale_of(Storage storage) {
  return abi::bytes_of(storage) == 1 ? 0.75f : 1;
}

/// Of a format with one byte or two.
std::uint32_t codes_of(Storage storage) {
  return abi::bytes_of(storage) == 1 ? 1u << 8 : 1u << 16;
}

float number_of(Storage storage, std::uint32_t code) {
  return abi::load(storage, &code);
}

std::uint32_t code_of(Storage storage, float number) {
  std::uint32_t code = 0;
  abi::store(storage, number, &code);
  return code;
}

/// Every number that a format has, what lies halfway to the next one, and both neighbours of each; and any floats.
std::vector<float> numbers_around(Storage storage) {
  std::vector<float> numbers;
  const auto add = [&](float number) {
    numbers.insert(numbers.end(), {std::nextafter(number, -INFINITY), number, std::nextafter(number, INFINITY)});
  };
  for (std::uint32_t code = 0; code < codes_of(storage); ++code) {
    const float number = number_of(storage, code), next = number_of(storage, (code + 1) % codes_of(storage));
    add(number);
    add(static_cast<float>((static_cast<double>(number) + next) / 2));
  }
  for (const float number : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::max(),
                             std::numeric_limits<float>::min(), std::numeric_limits<float>::denorm_min()}) {
    add(number);
    add(-number);
  }
  std::mt19937 random(1);
  for (int i = 0; i < 1 << 20; ++i) numbers.push_back(std::bit_cast<float>(static_cast<std::uint32_t>(random())));
  return numbers;
}

TEST_CASE("Numbers become the codes that the contract says") {
  for (const Storage storage :
       {Storage::f16, Storage::bf16, Storage::i8, Storage::f8_e4m3, Storage::f8_e5m2, Storage::f32}) {
    const std::int64_t bytes = static_cast<std::int64_t>(abi::bytes_of(storage));
    const std::vector<float> numbers = numbers_around(storage == Storage::f32 ? Storage::f16 : storage);
    const auto count = static_cast<std::int64_t>(numbers.size());
    for (const std::int64_t step : {std::int64_t{1}, stride}) {
      std::vector<std::byte> codes(numbers.size() * static_cast<std::size_t>(bytes * step));
      encode(storage, numbers.data(), count, scale_of(storage), codes.data(), step);
      std::int64_t wrong = 0;
      for (std::int64_t i = 0; i < count; ++i) {
        std::uint32_t code = 0;
        std::memcpy(&code, codes.data() + i * step * bytes, static_cast<std::size_t>(bytes));
        const float number = numbers[static_cast<std::size_t>(i)];
        const std::uint32_t right = code_of(storage, number / scale_of(storage));
        if (code == right || wrong++ > 0) continue;
        FAIL_CHECK("storage " << static_cast<int>(storage) << ", stride " << step << ": " << number << " became code "
                              << code << ", wanted " << right);
      }
      CHECK(wrong == 0);
    }
  }
}

TEST_CASE("Codes become the numbers that the contract says") {
  for (const Storage storage : {Storage::f16, Storage::bf16, Storage::i8, Storage::f8_e4m3, Storage::f8_e5m2}) {
    const std::int64_t bytes = static_cast<std::int64_t>(abi::bytes_of(storage)), count = codes_of(storage);
    for (const std::int64_t step : {std::int64_t{1}, stride}) {
      std::vector<std::byte> codes(static_cast<std::size_t>(count * bytes * step));
      for (std::int64_t code = 0; code < count; ++code) {
        std::memcpy(codes.data() + code * step * bytes, &code, static_cast<std::size_t>(bytes));
      }
      std::vector<float> numbers(static_cast<std::size_t>(count));
      decode(storage, codes.data(), step, count, scale_of(storage), numbers.data());
      std::int64_t wrong = 0;
      for (std::int64_t code = 0; code < count; ++code) {
        const float number = numbers[static_cast<std::size_t>(code)],
                    right = number_of(storage, static_cast<std::uint32_t>(code)) * scale_of(storage);
        const bool same = std::bit_cast<std::uint32_t>(number) == std::bit_cast<std::uint32_t>(right);
        if (same || (std::isnan(number) && std::isnan(right)) || wrong++ > 0) continue;
        FAIL_CHECK("storage " << static_cast<int>(storage) << ", stride " << step << ": code " << code << " became "
                              << number << ", wanted " << right);
      }
      CHECK(wrong == 0);
    }
  }
}

}  // namespace
}  // namespace attest::onednn
