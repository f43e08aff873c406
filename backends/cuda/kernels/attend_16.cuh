// SPDX-License-Identifier: Apache-2.0
// Attention of problems of a 16-bit dtype, by rows of a tile and channels of values; one file a dtype, so that they are
// compiled side by side.
#pragma once

#include "attend.cuh"
#include "launch.cuh"

namespace attest::cuda {

/// `tile_rows`: 16, or 64 for values of up to 128 channels.
template <class T>
void launch_attend_16(int tile_rows, Grid grid, const AttendArguments& arguments, Stream stream) {
  const auto shared = static_cast<std::size_t>(arguments.layout.bytes);
  const auto play = [&]<class Engine>(Engine) { launch<Attend<Engine>>(grid, shared, stream, arguments); };
  if (tile_rows == 64) {
    play(MatrixEngine<T, 4, 8>());
  } else if (arguments.value.width <= MatrixEngine<T, 1, 2>::most_value_channels) {
    play(MatrixEngine<T, 1, 2>());
  } else if (arguments.value.width <= MatrixEngine<T, 1, 4>::most_value_channels) {
    play(MatrixEngine<T, 1, 4>());
  } else {
    play(MatrixEngine<T, 1, 8>());
  }
}

}  // namespace attest::cuda
