// SPDX-License-Identifier: Apache-2.0
// Attention of f32 problems, by channels of values.
#include "attend.cuh"
#include "launch.cuh"

namespace attest::cuda {

void launch_attend_f32(Grid grid, const AttendArguments& arguments, Stream stream) {
  const auto shared = static_cast<std::size_t>(arguments.layout.bytes);
  const auto play = [&]<class Engine>(Engine) { launch<Attend<Engine>>(grid, shared, stream, arguments); };
  if (arguments.value.width <= FusedEngine<1>::most_value_channels) {
    play(FusedEngine<1>());
  } else if (arguments.value.width <= FusedEngine<2>::most_value_channels) {
    play(FusedEngine<2>());
  } else {
    play(FusedEngine<4>());
  }
}

}  // namespace attest::cuda
