// SPDX-License-Identifier: Apache-2.0
// The emulation against the PTX ISA's own words, and against what a kernel must not do.
#include "emulator.h"

#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <csignal>
#include <cstdint>
#include <cstring>
#include <vector>

#include "device_host.h"

namespace attest::cuda {
namespace {

using emulator::Order;

/// Whether a process that does this ends by a signal.
template <class Work>
bool dies(Work work) {
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    ::close(STDERR_FILENO);
    ::signal(SIGABRT, SIG_DFL);  // Catch2's would report it as a failure.
    work();
    ::_exit(0);
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  return WIFSIGNALED(status);
}

TEST_CASE("every thread of every block runs once, in its place") {
  std::vector<int> seen(2 * 3 * 4 * 64, 0);
  emulator::launch({2, 3, 4}, 64, 16, Order::forward, [&](std::byte*) {
    const BlockIndex at = block_index();
    CHECK(grid_width() == 2);
    const int place = ((at.z * 3 + at.y) * 2 + at.x) * 64 + thread_index();
    ++seen[static_cast<std::size_t>(place)];
  });
  for (const int times : seen) CHECK(times == 1);
}

TEST_CASE("a barrier shows each thread what all have written, in either order") {
  for (const Order order : {Order::forward, Order::backward}) {
    std::vector<int> sums(96, 0);
    emulator::launch({1, 1, 1}, 96, 96 * sizeof(int), order, [&](std::byte* shared) {
      auto* const numbers = reinterpret_cast<int*>(shared);
      for (int round = 0; round < 3; ++round) {
        numbers[thread_index()] = thread_index() + round;
        barrier();
        int sum = 0;
        for (int t = 0; t < 96; ++t) sum += numbers[t];
        sums[static_cast<std::size_t>(thread_index())] += sum;
        barrier();
      }
    });
    for (const int sum : sums) CHECK(sum == 3 * 95 * 48 + 96 * 3);
  }
}

TEST_CASE("a race shows as a difference between the orders") {
  std::array<int, 2> last{};
  for (const Order order : {Order::forward, Order::backward}) {
    emulator::launch({1, 1, 1}, 32, 4, order, [&](std::byte* shared) {
      std::memcpy(shared, std::array{thread_index()}.data(), 4);
      barrier();
      std::memcpy(&last[order == Order::forward ? 0 : 1], shared, 4);
    });
  }
  CHECK(last[0] == 31);
  CHECK(last[1] == 0);
}

TEST_CASE("shuffles exchange lanes within their warp") {
  emulator::launch({1, 1, 1}, 64, 16, Order::forward, [](std::byte*) {
    const int t = thread_index();
    CHECK(shuffle_xor(t, 5) == (t ^ 5));
    CHECK(shuffle_xor(0.5 * t, 16) == 0.5 * (t ^ 16));
  });
}

TEST_CASE("a copy arrives at its wait, not before, and overwrites at once") {
  alignas(16) std::array<float, 8> source{1, 2, 3, 4, 5, 6, 7, 8};
  emulator::launch({1, 1, 1}, 32, 64, Order::forward, [&](std::byte* shared) {
    if (thread_index() != 0) return;
    auto* const to = reinterpret_cast<float*>(shared);
    std::memset(shared, 0, 64);
    copy_16(to, source.data(), true);
    copy_commit();
    copy_16(to + 4, source.data() + 4, true);
    copy_16(to + 8, source.data(), false);
    copy_commit();
    CHECK(std::isnan(to[0]));
    copy_wait<1>();
    CHECK(to[0] == 1);
    CHECK(std::isnan(to[4]));
    CHECK(std::isnan(to[11]));
    CHECK(to[12] == 0);
    to[8] = 9;
    copy_wait<0>();
    CHECK(to[7] == 8);
    CHECK(to[8] == 0);
  });
}

/// Row r, column c of a 16-bit matrix with distinct small integers.
float entry(int r, int c) {
  return static_cast<float>((r * 7 + c * 3) % 23 - 11);
}

TEST_CASE("matrices that are loaded and multiplied as fragments give the product") {
  std::array<float, 16 * 8> product{};
  // a [16 x 16] row by row, b given as [8 x 16] (read as it is) and as [16 x 8] (read transposed); rows 40 bytes apart.
  for (const bool transposed : {false, true}) {
    product.fill(0);
    emulator::launch({1, 1, 1}, 32, 3 * 16 * 48, Order::backward, [&](std::byte* shared) {
      auto* const a = reinterpret_cast<Half*>(shared);
      auto* const b = a + 16 * 24;
      for (int i = thread_index(); i < 256; i += 32) a[i / 16 * 24 + i % 16] = narrow<Half>(entry(i / 16, i % 16));
      for (int i = thread_index(); i < 128; i += 32) {
        const int k = i / 8, n = i % 8;
        b[transposed ? k * 24 + n : n * 24 + k] = narrow<Half>(entry(k + 5, n));
        b[transposed ? k * 24 + n + 8 : (n + 8) * 24 + k] = narrow<Half>(0);
      }
      barrier();
      const int lane = thread_index();
      std::uint32_t left[4], right[4];
      load_matrices(left, a + lane % 16 * 24 + lane / 16 * 8);
      if (transposed) {
        load_matrices_transposed(right, b + lane % 16 * 24 + lane / 16 * 8);
      } else {
        load_matrices(right, b + (lane / 16 * 8 + lane % 8) * 24 + lane / 8 % 2 * 8);
      }
      float sum[4] = {1, 1, 1, 1}, other[4] = {};
      multiply_add<Half>(sum, left, right[0], right[1]);
      multiply_add<Half>(other, left, right[2], right[3]);
      for (int i = 0; i < 4; ++i) {
        const int place = (lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2;
        product[static_cast<std::size_t>(place)] = sum[i];
        CHECK(other[i] == 0);
      }
    });
    for (int r = 0; r < 16; ++r) {
      for (int n = 0; n < 8; ++n) {
        float wanted = 1;
        for (int k = 0; k < 16; ++k) wanted += entry(r, k) * entry(k + 5, n);
        CHECK(product[static_cast<std::size_t>(r * 8 + n)] == wanted);
      }
    }
  }
}

/// Number c of row r of a tile of `rows` rows of lines of 64 numbers, by the layout of the PTX ISA's 128-byte swizzle:
/// bits 4 to 6 of an address are flipped by bits 7 to 9.
Half& swizzled_number(std::byte* tile, int rows, int r, int c) {
  const int plain = c / 64 * rows * 128 + r * 128 + c % 64 * 2;
  return *reinterpret_cast<Half*>(tile + (plain ^ (plain >> 7 & 7) << 4));
}

/// a [128 x 80], two warpgroups of 64 rows; b as [columns x 80] for a b^T, or c [80 x columns] for a c, from registers.
template <int columns>
void check_products(bool registers, bool add) {
  constexpr int depth = 80, lines = 2, a_bytes = lines * 128 * 128, b_bytes = columns / 64 * lines * 64 * 128;
  std::vector<float> product(128 * columns);
  emulator::launch({1, 1, 1}, 256, a_bytes + b_bytes, Order::backward, [&](std::byte* shared) {
    std::byte *const a = shared, *const b = shared + a_bytes;
    for (int i = thread_index(); i < 128 * depth; i += 256) {
      swizzled_number(a, 128, i / depth, i % depth) = narrow<Half>(entry(i / depth, i % depth));
    }
    for (int i = thread_index(); i < columns * depth; i += 256) {
      const int n = i / depth, k = i % depth;
      // The same numbers: b's rows along n, or along k.
      (registers ? swizzled_number(b, depth, k, n) : swizzled_number(b, columns, n, k)) = narrow<Half>(entry(k + 5, n));
    }
    publish_to_products();
    barrier();
    const int t = thread_index(), row = t / 32 * 16 + t % 32 / 4, group = t / 128;
    CHECK(swizzle_aligned(shared));
    CHECK_FALSE(swizzle_aligned(shared + 512));
    float sum[columns / 2];
    for (float& x : sum) x = 1;
    std::uint32_t left[depth / 16][4];
    for (int k = 0; k < depth; k += 16) {
      const auto pair = [&](int r, int c) {
        return pair_of<Half>(entry(row + r, k + t % 4 * 2 + c), entry(row + r, k + t % 4 * 2 + c + 1));
      };
      for (int i = 0; i < 4; ++i) left[k / 16][i] = pair(i % 2 * 8, i / 2 * 8);
    }
    warpgroup_fence();
    for (int k = 0; k < depth; k += 16) {
      if (registers) {
        multiply_add_64<Half>(sum, left[k / 16], matrix_descriptor(b + k * 128, depth * 128));
      } else {
        multiply_add_64<Half>(sum, matrix_descriptor(a + (k / 64 * 128 + group * 64) * 128 + k % 64 * 2),
                              matrix_descriptor(b + k / 64 * columns * 128 + k % 64 * 2), add || k > 0);
      }
    }
    warpgroup_commit();
    CHECK(std::isnan(sum[7]));  // It is not done before the wait.
    warpgroup_wait<0>();
    for (int i = 0; i < columns / 2; ++i) {
      const int r = row + i / 2 % 2 * 8, n = i / 4 * 8 + t % 4 * 2 + i % 2, place = r * columns + n;
      product[static_cast<std::size_t>(place)] = sum[i];
    }
  });
  for (int r = 0; r < 128; ++r) {
    for (int n = 0; n < columns; ++n) {
      float wanted = add ? 1 : 0;
      for (int k = 0; k < depth; ++k) wanted += entry(r, k) * entry(k + 5, n);
      REQUIRE(product[static_cast<std::size_t>(r * columns + n)] == wanted);
    }
  }
}

TEST_CASE("products of warpgroups, from shared memory and from registers, of 64 columns and of 128") {
  check_products<64>(false, true);
  check_products<64>(false, false);
  check_products<64>(true, true);
  check_products<128>(false, true);
  check_products<128>(false, false);
  check_products<128>(true, true);
}

TEST_CASE("a wait for all groups of products but the last leaves that one at work") {
  emulator::launch({1, 1, 1}, 128, 16384, Order::forward, [&](std::byte* shared) {
    for (int i = thread_index(); i < 64 * 16; i += 128) swizzled_number(shared, 64, i / 16, i % 16) = narrow<Half>(1);
    publish_to_products();
    barrier();
    float first[32], second[32] = {};
    warpgroup_fence();
    const std::uint64_t ones = matrix_descriptor(shared);
    multiply_add_64<Half>(first, ones, ones, false);
    warpgroup_commit();
    multiply_add_64<Half>(second, ones, ones, true);
    multiply_add_64<Half>(second, ones, ones, true);
    warpgroup_commit();
    warpgroup_wait<1>();
    CHECK(first[0] == 16);
    CHECK(std::isnan(second[0]));
    warpgroup_wait<0>();
    CHECK(second[0] == 32);
  });
}

TEST_CASE("what a product of a warpgroup must not meet ends the process") {
  alignas(16) static const std::array<std::byte, 16> source{};
  struct Slip {
    bool fence = true, publish = true, commit = true, wait = true, together = true, keep = true, aligned = true;
    bool registers = false, keep_registers = true;
    int threads = 128;
  };
  const auto run = [](const Slip& slip) {
    return dies([&] {
      emulator::launch({1, 1, 1}, slip.threads, 16384, Order::forward, [&](std::byte* shared) {
        copy_16(shared + 16 * thread_index(), source.data(), true);
        copy_commit();
        copy_wait<0>();
        if (slip.publish) publish_to_products();
        barrier();
        float sum[32] = {};
        std::uint32_t left[4] = {};
        if (slip.fence) warpgroup_fence();
        const std::uint64_t factor = matrix_descriptor(shared) & (slip.aligned ? ~std::uint64_t{0} : ~0ULL >> 2);
        multiply_add_64<Half>(sum, factor, factor, true);
        if (slip.registers) multiply_add_64<Half>(sum, left, factor);
        if (slip.commit) warpgroup_commit();
        if (!slip.keep && thread_index() == 0) shared[130] = std::byte{1};
        if (!slip.keep_registers && thread_index() == 0) left[2] = 1;
        const bool here = slip.together || thread_index() / 32 != 1;
        if (slip.wait && here) warpgroup_wait<0>();
        if (slip.wait && !here) warpgroup_wait<0>();
      });
    });
  };
  const auto with = [](auto change) {
    Slip slip;
    change(slip);
    return slip;
  };
  CHECK_FALSE(run({}));
  CHECK_FALSE(run(with([](Slip& s) { s.registers = true; })));
  CHECK(run(with([](Slip& s) { s.registers = true, s.keep_registers = false; })));
  CHECK(run(with([](Slip& s) { s.fence = false; })));
  CHECK(run(with([](Slip& s) { s.publish = false; })));
  CHECK(run(with([](Slip& s) { s.commit = false; })));
  CHECK(run(with([](Slip& s) { s.wait = false; })));
  CHECK(run(with([](Slip& s) { s.together = false; })));
  CHECK(run(with([](Slip& s) { s.keep = false; })));
  CHECK(run(with([](Slip& s) { s.aligned = false; })));
  CHECK(run(with([](Slip& s) { s.threads = 96; })));
}

TEST_CASE("what would hang or be undefined on a GPU ends the process") {
  const auto run = [](int threads, const std::function<void(std::byte*)>& kernel) {
    return dies([&] { emulator::launch({1, 1, 1}, threads, 16, Order::forward, kernel); });
  };
  CHECK_FALSE(run(64, [](std::byte*) { barrier(); }));
  CHECK(run(64, [](std::byte*) {
    if (thread_index() != 3) barrier();
  }));
  CHECK(run(64, [](std::byte*) {
    if (thread_index() % 2 == 0) shuffle_xor(1, 1);
  }));
  CHECK(run(32, [](std::byte*) {
    if (thread_index() < 16) {
      shuffle_xor(1, 1);
    } else {
      shuffle_xor(1.0, 1);
    }
  }));
  CHECK(run(32, [](std::byte* shared) { copy_16(shared + 4, shared, true); }));
  CHECK(run(32, [](std::byte* shared) { copy_16(shared, shared, true); }));
  CHECK(run(48, [](std::byte*) {}));
}

}  // namespace
}  // namespace attest::cuda
