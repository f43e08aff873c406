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

/// The element at `from`; of int8 and fp8 the code's number, without its scale.
ATTEST_DEVICE float load_number(Storage storage, const void* from) {
  switch (storage) {
    case Storage::f16:
      return __half2float(*static_cast<const __half*>(from));
    case Storage::bf16:
      return __bfloat162float(*static_cast<const __nv_bfloat16*>(from));
    case Storage::i8:
      return static_cast<float>(*static_cast<const std::int8_t*>(from));
    case Storage::f8_e4m3:
      return static_cast<float>(*static_cast<const __nv_fp8_e4m3*>(from));
    case Storage::f8_e5m2:
      return static_cast<float>(*static_cast<const __nv_fp8_e5m2*>(from));
    default:
      return *static_cast<const float*>(from);
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
