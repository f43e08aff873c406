// SPDX-License-Identifier: Apache-2.0
// The kernels themselves, as ordinary C++.
#include "../kernels/attend_bf16.cu"
#include "../kernels/attend_f16.cu"
#include "../kernels/attend_f32.cu"
#include "../kernels/step.cu"
