// SPDX-License-Identifier: Apache-2.0
// What a kernel asks of the machine: its place in the grid, barriers, shuffles, matrix instructions, asynchronous
// copies, number formats. device_gpu.cuh answers with CUDA's intrinsics and PTX; ../host/device_host.h with an
// emulation of the same functions, word for word. Kernels use nothing else of CUDA.
#pragma once

#include "qualifiers.h"

#if defined(__CUDACC__)
#include "device_gpu.cuh"
#else
#include "../host/device_host.h"
#endif
