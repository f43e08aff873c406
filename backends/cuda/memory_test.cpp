// SPDX-License-Identifier: Apache-2.0
#include "memory.h"

#include <catch2/catch_test_macros.hpp>
#include <cstddef>
#include <limits>

namespace attest::cuda {
namespace {

TEST_CASE("what a captured step uses stays where it is, whatever comes after it") {
  Scratch scratch;
  auto* const first = scratch.get<int>(10);
  first[9] = 42;
  CHECK(scratch.get<int>(10) == first);
  CHECK(scratch.get<int>(3) == first);
  auto* const second = scratch.get<int>(11);
  CHECK(second != first);
  CHECK(scratch.get<int>(20) == second);  // It has doubled.
  CHECK(scratch.get<int>(21) != second);
  CHECK(first[9] == 42);  // Not given back; the address sanitizer would see it.
}

TEST_CASE("nothing asked for is nothing, and what there is no room for is an error that changes nothing") {
  Scratch scratch;
  CHECK(scratch.get(0) == nullptr);
  std::byte* const some = scratch.get(100);
  CHECK_THROWS(scratch.get(std::numeric_limits<std::int64_t>::max() / 4));
  CHECK(scratch.get(100) == some);
}

TEST_CASE("scratch for products over rows that nobody writes is zeros at first, each time it grows") {
  Scratch scratch(Scratch::First::zeros);
  for (const int bytes : {100, 5000}) {
    const std::byte* const memory = scratch.get(bytes);
    for (int i = 0; i < bytes; ++i) REQUIRE(memory[i] == std::byte{0});
  }
}

}  // namespace
}  // namespace attest::cuda
