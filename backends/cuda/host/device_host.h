// SPDX-License-Identifier: Apache-2.0
// The machine as kernels see it (../kernels/device.cuh), emulated on the CPU by emulator.h. It proves which element
// goes where: indices, masks, fragments, barriers that all threads reach. It says nothing of a GPU's memory model or
// speed.
#pragma once

#include <attest/backend_math.hpp>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "emulator.h"

namespace attest::cuda {

using abi::Storage;

struct Half {
  std::uint16_t bits;
};
struct Bfloat {
  std::uint16_t bits;
};

struct BlockIndex {
  int x, y, z;
};

inline int thread_index() {
  return emulator::current().thread;
}
inline BlockIndex block_index() {
  const emulator::Place& place = emulator::current();
  return {place.x, place.y, place.z};
}
inline int grid_width() {
  return emulator::current().width;
}

inline void barrier() {
  emulator::barrier();
}

template <class T>
T shuffle_xor(T value, int mask) {
  struct Lane {
    T mine, got;
    int mask;
  } lane{value, value, mask};
  emulator::collective(&lane, [](void* const* lanes) {
    for (int l = 0; l < emulator::warp; ++l) {
      auto& to = *static_cast<Lane*>(lanes[l]);
      to.got = static_cast<Lane*>(lanes[(l ^ to.mask) % emulator::warp])->mine;
    }
  });
  return lane.got;
}

inline bool any_in_warp(bool condition) {
  int any = condition ? 1 : 0;
  for (int mask = 1; mask < emulator::warp; mask *= 2) any |= shuffle_xor(any, mask);
  return any != 0;
}
inline int same_in_warp(int value) {
  if (any_in_warp(shuffle_xor(value, 1) != value || shuffle_xor(value, 2) != value || shuffle_xor(value, 4) != value ||
                  shuffle_xor(value, 8) != value || shuffle_xor(value, 16) != value)) {
    emulator::fail("lanes of one warp differ where they must not");
  }
  return value;
}

// A copy in the background may arrive as late as its wait: it is made there, so that whoever reads earlier, or
// overwrites the source's address, is found out.
inline void copy_16(void* shared, const void* global, bool there) {
  emulator::copy_later(shared, there ? global : nullptr);
}
inline void copy_commit() {
  emulator::copy_commit();
}
template <int pending>
void copy_wait() {
  emulator::copy_wait(pending);
}

inline void load_matrices(std::uint32_t (&to)[4], const void* row) {
  emulator::load_matrices(to, row, false);
}
inline void load_matrices_transposed(std::uint32_t (&to)[4], const void* row) {
  emulator::load_matrices(to, row, true);
}

template <class T>
void multiply_add(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  static_assert(std::is_same_v<T, Half> || std::is_same_v<T, Bfloat>);
  emulator::multiply_add(c, a, b0, b1, std::is_same_v<T, Half> ? Storage::f16 : Storage::bf16);
}

template <int count, class Register>
void hold(Register (&)[count]) {}
inline void settle(bool) {}
inline void fail() {
  emulator::fail("a kernel has ended itself");
}
inline bool swizzle_aligned(const void* shared) {
  return emulator::shared_address(shared) % 1024 == 0;
}
inline std::uint64_t matrix_descriptor(const void* at, int next_columns = 0) {
  const std::uint64_t leading = next_columns == 0 ? 1 : static_cast<std::uint64_t>(next_columns) >> 4;
  return (emulator::shared_address(at) & 0x3FFFF) >> 4 | leading << 16 | std::uint64_t{64} << 32 |
         std::uint64_t{1} << 62;
}
inline std::uint64_t further(std::uint64_t descriptor, int bytes) {
  return descriptor + static_cast<unsigned>(bytes) / 16;
}
inline void publish_to_products() {
  emulator::publish_to_products();
}
// Where a kernel calls one of these: the default arguments are the caller's.
using emulator::Where;
inline void warpgroup_fence(Where where = Where::current()) {
  emulator::warpgroup_fence(where);
}
inline void warpgroup_commit(Where where = Where::current()) {
  emulator::warpgroup_commit(where);
}
template <int pending>
void warpgroup_wait(Where where = Where::current()) {
  emulator::warpgroup_wait(pending, where);
}
template <class T, int count>
void multiply_add_64(float (&d)[count], std::uint64_t a, std::uint64_t b, bool add, Where where = Where::current()) {
  constexpr Storage storage = std::is_same_v<T, Half> ? Storage::f16 : Storage::bf16;
  emulator::multiply_add_64(d, 2 * count, add, nullptr, a, b, storage, where);
}
template <class T, int count>
void multiply_add_64(float (&d)[count], const std::uint32_t (&a)[4], std::uint64_t b, Where where = Where::current()) {
  constexpr Storage storage = std::is_same_v<T, Half> ? Storage::f16 : Storage::bf16;
  emulator::multiply_add_64(d, 2 * count, true, a, 0, b, storage, where);
}

template <class T>
std::uint32_t pair_of(float first, float second) {
  const auto code = [](float value) {
    return std::is_same_v<T, Half> ? abi::F16::encode(value) : abi::Bf16::encode(value);
  };
  return static_cast<std::uint32_t>(code(first)) | static_cast<std::uint32_t>(code(second)) << 16;
}

inline float power_of_two(float x) {
  return std::exp2(x);
}

// The product is exact; without the instruction std::fma is slow.
inline float fused(float x, float y, float z) {
  return static_cast<float>(static_cast<double>(x) * y + z);
}

template <class T>
T narrow(float value) {
  if constexpr (std::is_same_v<T, Half>) return {static_cast<std::uint16_t>(abi::F16::encode(value))};
  if constexpr (std::is_same_v<T, Bfloat>) return {static_cast<std::uint16_t>(abi::Bf16::encode(value))};
  if constexpr (std::is_same_v<T, float>) return value;
}

inline float number_of_code(Storage storage, std::uint8_t code) {
  return abi::load(storage, &code);
}
inline float load_number(Storage storage, const void* from) {
  return abi::load(storage, from);
}
inline void store_number(Storage storage, float value, void* to) {
  abi::store(storage, value, to);
}

}  // namespace attest::cuda
