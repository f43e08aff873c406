// SPDX-License-Identifier: Apache-2.0
// The machine as kernels see it (device.cuh), on a GPU. Instructions of sm_80; all later ones have them.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <attest/backend_math.hpp>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "qualifiers.h"

namespace attest::cuda {

using Half = __half;
using Bfloat = __nv_bfloat16;
using abi::Storage;

struct BlockIndex {
  int x, y, z;
};

ATTEST_DEVICE int thread_index() {
  return static_cast<int>(threadIdx.x);
}
ATTEST_DEVICE BlockIndex block_index() {
  return {static_cast<int>(blockIdx.x), static_cast<int>(blockIdx.y), static_cast<int>(blockIdx.z)};
}
/// Blocks along x.
ATTEST_DEVICE int grid_width() {
  return static_cast<int>(gridDim.x);
}

/// All threads of the block meet here, and see what each has written to shared and global memory before.
ATTEST_DEVICE void barrier() {
  __syncthreads();
}

/// The other lane's number: that of lane ^ mask. All lanes of the warp take part.
template <class T>
ATTEST_DEVICE T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(0xFFFFFFFFu, value, mask);
}

ATTEST_DEVICE bool any_in_warp(bool condition) {
  return __any_sync(0xFFFFFFFFu, condition) != 0;
}
/// A number that all lanes of the warp have, so that the compiler knows it too: it will not have products in flight
/// where it thinks that lanes may part.
ATTEST_DEVICE int same_in_warp(int value) {
  return __shfl_sync(0xFFFFFFFFu, value, 0);
}

/// 16 bytes from global to shared memory, both aligned to 16, in the background; zeros if the source is not there.
ATTEST_DEVICE void copy_16(void* shared, const void* global, bool there) {
  const auto to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(to), "l"(global), "r"(there ? 16 : 0)
               : "memory");
}
/// Ends a group of copies.
ATTEST_DEVICE void copy_commit() {
  asm volatile("cp.async.commit_group;\n" ::: "memory");
}
/// Until all but the last `pending` groups of this thread have arrived.
template <int pending>
ATTEST_DEVICE void copy_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(pending) : "memory");
}

/// Four 8 x 8 matrices of 16-bit numbers: lane l names row l % 8 of matrix l / 8, and gets of each matrix the two
/// numbers of row l / 4 from column 2 (l % 4) on.
ATTEST_DEVICE void load_matrices(std::uint32_t (&to)[4], const void* row) {
  const auto from = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(from)
               : "memory");
}
/// The same of the transposed matrices: the numbers of column l / 4 in rows 2 (l % 4) and the next.
ATTEST_DEVICE void load_matrices_transposed(std::uint32_t (&to)[4], const void* row) {
  const auto from = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(from)
               : "memory");
}

/// c += a b for a 16 x 16 (row by row), b 16 x 8 (column by column), c 16 x 8 in f32, in the fragments of
/// mma.m16n8k16.
template <class T>
ATTEST_DEVICE void multiply_add(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  static_assert(std::is_same_v<T, Half> || std::is_same_v<T, Bfloat>);
  if constexpr (std::is_same_v<T, Half>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};\n"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};\n"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

// --- Products of a warpgroup: 128 threads, the first of them a multiple of 128. Compute capability 9.0a only;
// elsewhere they end the kernel, and the host launches none that would call them.
//
// A product runs in the background: between warpgroup_fence() and the warpgroup_wait() that covers it, the threads
// leave its sums and factors in registers alone, and nobody writes to its factors in shared memory.

/// Keeps the compiler from moving what is done to these registers past this place: a fence's rule is about them, and it
/// does not know.
template <int count>
ATTEST_DEVICE void hold(float (&registers)[count]) {
  ATTEST_UNROLL
  for (int i = 0; i < count; ++i) asm volatile("" : "+f"(registers[i])::"memory");
}
template <int count>
ATTEST_DEVICE void hold(std::uint32_t (&registers)[count]) {
  ATTEST_UNROLL
  for (int i = 0; i < count; ++i) asm volatile("" : "+r"(registers[i])::"memory");
}
/// Has what `condition`, which all lanes of the warp have, hangs on computed before what comes after: ptxas moves a
/// wait for products up past all that does not touch them, but not past a meeting of the warp that hangs on it.
ATTEST_DEVICE void settle(bool condition) {
  if (condition) asm volatile("bar.warp.sync 0xffffffff;\n" ::: "memory");
}
/// Ends the kernel with an error that the host will see.
ATTEST_DEVICE void fail() {
  __trap();
}
/// Whether what the kernel calls its shared memory begins where swizzled tiles may begin.
ATTEST_DEVICE bool swizzle_aligned(const void* shared) {
  return __cvta_generic_to_shared(shared) % 1024 == 0;
}
/// Names a factor in shared memory, 64 numbers of 16 bits a row of 128 bytes, in groups of 8 rows one after the other,
/// the 16-byte pieces of row r swapped by r % 8 (128-byte swizzle). `at`: the first row, plus 32 bytes for each 16
/// numbers along the row. `next_columns`: where rows lie along k and have more than 64 numbers, bytes from the rows of
/// the first 64 numbers to those of the next. PTX ISA, "Matrix Descriptor Format" of wgmma.
ATTEST_DEVICE std::uint64_t matrix_descriptor(const void* at, int next_columns = 0) {
  constexpr std::uint64_t group_bytes = 1024, swizzle_128 = 1;
  const std::uint64_t start = __cvta_generic_to_shared(at);
  // The leading dimension's offset counts only for matrices that are wider than the swizzle.
  const std::uint64_t leading = next_columns == 0 ? 1 : static_cast<unsigned>(next_columns) >> 4;
  return (start & 0x3FFFF) >> 4 | leading << 16 | group_bytes >> 4 << 32 | swizzle_128 << 62;
}
/// The factor that lies so many bytes, a multiple of 16, behind another one, in the same shared memory.
ATTEST_DEVICE std::uint64_t further(std::uint64_t descriptor, int bytes) {
  return descriptor + static_cast<unsigned>(bytes) / 16;
}
/// What this thread has written to shared memory, copies included, is seen by products that begin after a barrier.
ATTEST_DEVICE void publish_to_products() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
#endif
}
ATTEST_DEVICE void warpgroup_fence() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory");
#else
  __trap();
#endif
}
/// Ends a group of products.
ATTEST_DEVICE void warpgroup_commit() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
#endif
}
/// Until all groups but the last `pending` are done.
template <int pending>
ATTEST_DEVICE void warpgroup_wait() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(pending) : "memory");
#endif
}

// Thread t has of d (64 x 64 or 64 x 128) in number 4 j + 2 i + k: row 16 (t / 32) + t % 32 / 4 + 8 i, column
// 8 j + 2 (t % 4) + k. Operands of an instruction: the sums, the factors, then (SS: both in shared memory) whether to
// add.
#define ATTEST_WGMMA(shape, sums, factors, add, transposed)                                                       \
  "{\n.reg .pred add;\nsetp.ne.b32 add, " add ", 0;\nwgmma.mma_async.sync.aligned." shape " {" sums "}, " factors \
  ", add, 1, 1, " transposed ";\n}\n"
#define ATTEST_WGMMA_SS_64(types) ATTEST_WGMMA("m64n64k16.f32." types, ATTEST_WGMMA_32, "%32, %33", "%34", "0, 0")
#define ATTEST_WGMMA_SS_128(types) \
  ATTEST_WGMMA("m64n128k16.f32." types, ATTEST_WGMMA_32 ", " ATTEST_WGMMA_64, "%64, %65", "%66", "0, 0")
#define ATTEST_WGMMA_RS_64(types) \
  ATTEST_WGMMA("m64n64k16.f32." types, ATTEST_WGMMA_32, "{%32, %33, %34, %35}, %36", "1", "1")
#define ATTEST_WGMMA_RS_128(types) \
  ATTEST_WGMMA("m64n128k16.f32." types, ATTEST_WGMMA_32 ", " ATTEST_WGMMA_64, "{%64, %65, %66, %67}, %68", "1", "1")
#define ATTEST_WGMMA_32                                                                                            \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, " \
  "%24, %25, %26, %27, %28, %29, %30, %31"
#define ATTEST_WGMMA_64                                                                                            \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, " \
  "%54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define ATTEST_WGMMA_SUMS_32(d)                                                                               \
  "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), \
      "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]),  \
      "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), \
      "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
#define ATTEST_WGMMA_SUMS_64(d)                                                                                       \
  ATTEST_WGMMA_SUMS_32(d), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), \
      "+f"(d[39]), "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]),         \
      "+f"(d[47]), "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]),         \
      "+f"(d[55]), "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]),         \
      "+f"(d[63])

/// d = a b^T, or with `add` d += a b^T, for a of 64 rows, b of 64 or 128 rows, and 16 numbers in each, both in shared
/// memory.
template <class T, int count>
ATTEST_DEVICE void multiply_add_64(float (&d)[count], std::uint64_t a, std::uint64_t b, bool add) {
  static_assert(count == 32 || count == 64);
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  const int adds = add ? 1 : 0;
  if constexpr (std::is_same_v<T, Half> && count == 32) {
    asm volatile(ATTEST_WGMMA_SS_64("f16.f16") : ATTEST_WGMMA_SUMS_32(d) : "l"(a), "l"(b), "r"(adds));
  } else if constexpr (std::is_same_v<T, Half>) {
    asm volatile(ATTEST_WGMMA_SS_128("f16.f16") : ATTEST_WGMMA_SUMS_64(d) : "l"(a), "l"(b), "r"(adds));
  } else if constexpr (count == 32) {
    asm volatile(ATTEST_WGMMA_SS_64("bf16.bf16") : ATTEST_WGMMA_SUMS_32(d) : "l"(a), "l"(b), "r"(adds));
  } else {
    asm volatile(ATTEST_WGMMA_SS_128("bf16.bf16") : ATTEST_WGMMA_SUMS_64(d) : "l"(a), "l"(b), "r"(adds));
  }
#endif
}
/// d += a b for a of 64 rows and 16 numbers, each warp's 16 rows in the fragments of mma.m16n8k16, and b of 16 rows and
/// 64 or 128 numbers in shared memory.
template <class T, int count>
ATTEST_DEVICE void multiply_add_64(float (&d)[count], const std::uint32_t (&a)[4], std::uint64_t b) {
  static_assert(count == 32 || count == 64);
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define ATTEST_WGMMA_FACTORS "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b)
  if constexpr (std::is_same_v<T, Half> && count == 32) {
    asm volatile(ATTEST_WGMMA_RS_64("f16.f16") : ATTEST_WGMMA_SUMS_32(d) : ATTEST_WGMMA_FACTORS);
  } else if constexpr (std::is_same_v<T, Half>) {
    asm volatile(ATTEST_WGMMA_RS_128("f16.f16") : ATTEST_WGMMA_SUMS_64(d) : ATTEST_WGMMA_FACTORS);
  } else if constexpr (count == 32) {
    asm volatile(ATTEST_WGMMA_RS_64("bf16.bf16") : ATTEST_WGMMA_SUMS_32(d) : ATTEST_WGMMA_FACTORS);
  } else {
    asm volatile(ATTEST_WGMMA_RS_128("bf16.bf16") : ATTEST_WGMMA_SUMS_64(d) : ATTEST_WGMMA_FACTORS);
  }
#undef ATTEST_WGMMA_FACTORS
#endif
}
#undef ATTEST_WGMMA
#undef ATTEST_WGMMA_SS_64
#undef ATTEST_WGMMA_SS_128
#undef ATTEST_WGMMA_RS_64
#undef ATTEST_WGMMA_RS_128
#undef ATTEST_WGMMA_32
#undef ATTEST_WGMMA_64
#undef ATTEST_WGMMA_SUMS_32
#undef ATTEST_WGMMA_SUMS_64

/// Two numbers side by side, as fragments have them; the first in the lower half.
template <class T>
ATTEST_DEVICE std::uint32_t pair_of(float first, float second) {
  if constexpr (std::is_same_v<T, Half>) {
    const __half2 pair = __floats2half2_rn(first, second);
    return *reinterpret_cast<const std::uint32_t*>(&pair);
  } else {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
    return *reinterpret_cast<const std::uint32_t*>(&pair);
  }
}

/// 2^x within 2 units in the last place; 0 where that is no normal number.
ATTEST_DEVICE float power_of_two(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(result) : "f"(x));
  return result;
}

/// x y + z, rounded once.
ATTEST_DEVICE float fused(float x, float y, float z) {
  return fmaf(x, y, z);
}

template <class T>
ATTEST_DEVICE T narrow(float value) {
  if constexpr (std::is_same_v<T, Half>) return __float2half_rn(value);
  if constexpr (std::is_same_v<T, Bfloat>) return __float2bfloat16_rn(value);
  if constexpr (std::is_same_v<T, float>) return value;
}

/// The number of an int8 or fp8 code, without its scale.
ATTEST_DEVICE float number_of_code(Storage storage, std::uint8_t code) {
  if (storage == Storage::i8) return static_cast<float>(static_cast<std::int8_t>(code));
  return __half2float(__nv_cvt_fp8_to_halfraw(code, storage == Storage::f8_e4m3 ? __NV_E4M3 : __NV_E5M2));
}

/// The element at `from`; of int8 and fp8 the code's number, without its scale.
ATTEST_DEVICE float load_number(Storage storage, const void* from) {
  switch (storage) {
    case Storage::f16:
      return __half2float(*static_cast<const __half*>(from));
    case Storage::bf16:
      return __bfloat162float(*static_cast<const __nv_bfloat16*>(from));
    case Storage::f32:
      return *static_cast<const float*>(from);
    default:
      return number_of_code(storage, *static_cast<const std::uint8_t*>(from));
  }
}

/// Writes the number nearest to `value`, ties to even; int8 and fp8 are clamped to the largest code.
ATTEST_DEVICE void store_number(Storage storage, float value, void* to) {
  switch (storage) {
    case Storage::f16:
      *static_cast<__half*>(to) = __float2half_rn(value);
      return;
    case Storage::bf16:
      *static_cast<__nv_bfloat16*>(to) = __float2bfloat16_rn(value);
      return;
    case Storage::i8:
      *static_cast<std::int8_t*>(to) = static_cast<std::int8_t>(__float2int_rn(fminf(fmaxf(value, -127.0f), 127.0f)));
      return;
    case Storage::f8_e4m3:
      *static_cast<__nv_fp8_storage_t*>(to) = __nv_cvt_float_to_fp8(value, __NV_SATFINITE, __NV_E4M3);
      return;
    case Storage::f8_e5m2:
      *static_cast<__nv_fp8_storage_t*>(to) = __nv_cvt_float_to_fp8(value, __NV_SATFINITE, __NV_E5M2);
      return;
    default:
      *static_cast<float*>(to) = value;
  }
}

}  // namespace attest::cuda
