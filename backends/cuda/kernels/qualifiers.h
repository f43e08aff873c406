// SPDX-License-Identifier: Apache-2.0
// Marks functions that run on the device. The same sources are read by nvcc, by the C++ compiler for the backend's host
// side, and by the C++ compiler again for the emulation (../host), where a kernel is an ordinary function.
#pragma once

#if defined(__CUDACC__)
#define ATTEST_DEVICE __device__ __forceinline__
#define ATTEST_BOTH __host__ __device__ __forceinline__
#define ATTEST_UNROLL _Pragma("unroll")
#define ATTEST_UNROLL_BY(count) _Pragma(ATTEST_TEXT(unroll count))
#define ATTEST_TEXT(text) #text
#else
#define ATTEST_DEVICE inline
#define ATTEST_BOTH inline
#define ATTEST_UNROLL
#define ATTEST_UNROLL_BY(count)
#endif
