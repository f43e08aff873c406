// SPDX-License-Identifier: Apache-2.0
#include "attend_16.cuh"

namespace attest::cuda {

void launch_attend_f16(int tile_rows, Grid grid, const AttendArguments& arguments, Stream stream) {
  launch_attend_16<Half>(tile_rows, grid, arguments, stream);
}

}  // namespace attest::cuda
