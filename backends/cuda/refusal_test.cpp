// SPDX-License-Identifier: Apache-2.0
#include "refusal.h"

#include <attest/backend.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers.hpp>
#include <catch2/matchers/catch_matchers_exception.hpp>

namespace attest::cuda {
namespace {

using Catch::Matchers::Message;

TEST_CASE("a refusal names the argument, what was got and what was wanted") {
  CHECK_NOTHROW(refuse({}));
  CHECK_THROWS_MATCHES(refuse({Fault::overflow, 2, 2, 9, 7, 3}), abi::Overflow,
                       Message("cache.lengths[2]: 7 cached + 3 new tokens = 10, capacity is 9"));
  CHECK_THROWS_MATCHES(refuse({Fault::query_length, 1, 1, 9, 0, 5}), abi::Invalid,
                       Message("query_lengths[1]: got 9, wanted 0..5"));
  CHECK_THROWS_MATCHES(refuse({Fault::page, 1, 4, -1, 0, 7}), abi::Invalid,
                       Message("cache.block_table[1, 4]: got -1, wanted 0..7"));
  CHECK_THROWS_MATCHES(refuse({Fault::position_count, 1, 1, 4, 0, 3}), abi::Invalid,
                       Message("positions: got 3 of sequence 1, wanted one for each of its 4 keys"));
  CHECK_THROWS_MATCHES(refuse({Fault::mask_extent, 0, 0, 9, 8, 8}), abi::Invalid,
                       Message("mask: got 9 keys on its last axis, wanted 8"));
}

}  // namespace
}  // namespace attest::cuda
