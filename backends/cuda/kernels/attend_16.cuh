// SPDX-License-Identifier: Apache-2.0
// Attention of problems of a 16-bit dtype, by rows of a tile and channels of values; one file a dtype, so that they are
// compiled side by side.
#pragma once

#include <type_traits>

#include "attend.cuh"
#include "launch.cuh"
#include "prefill.cuh"

namespace attest::cuda {

/// `tile_rows`: 16, 64 for values of up to 128 channels, or prefill_rows for up to 256.
template <class T>
void launch_attend_16(int tile_rows, Grid grid, const AttendArguments& arguments, Stream stream) {
  const auto shared = static_cast<std::size_t>(arguments.layout.bytes);
  const auto play = [&]<class Engine>(Engine) { launch<Attend<Engine>>(grid, shared, stream, arguments); };
  if (tile_rows == prefill_rows) {
    const int lines = prefill_lines(arguments.key.width, arguments.value.width);
    const bool usual = usual_prefill(arguments);
    const auto prefill = [&]<int known_lines>(std::integral_constant<int, known_lines>) {
      if (usual) return launch<Prefill<T, known_lines, true>>(grid, shared, stream, arguments);
      launch<Prefill<T, known_lines, false>>(grid, shared, stream, arguments);
    };
    if (lines == 1) return prefill(std::integral_constant<int, 1>());
    if (lines == 2) return prefill(std::integral_constant<int, 2>());
    return prefill(std::integral_constant<int, most_prefill_lines>());
  }
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
