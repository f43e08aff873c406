// SPDX-License-Identifier: Apache-2.0
// The allowed error at the layer level, by Monte Carlo arithmetic (Parker 1997): the layer is run many times in double
// precision with random relative noise of one f32 rounding at every place where an f32 backend rounds; the spread of
// the results is the error that correct backends show (spec/tolerance.md).
#pragma once

#include "cases/inputs.h"

namespace attest {

/// Standard deviation of every checked element under f32 rounding noise.
struct LayerSpread {
  struct Step {
    std::vector<double> output;  ///< [R, d_model]
    std::vector<double> lse;     ///< [R, Hq]
  };
  std::vector<Step> steps;
};

LayerSpread layer_spread(const Case& c, const Timeline& timeline, const Inputs& inputs);

}  // namespace attest
