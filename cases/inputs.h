// SPDX-License-Identifier: Apache-2.0
// The input tensors of a case, generated from its recipe. Pure: the same case gives the same bits in any language.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cases/timeline.h"

namespace attest {

/// A dense row-major array with its shape.
template <typename T>
struct Dense {
  std::vector<int64_t> shape;
  std::vector<T> data;
};

/// Inputs of one attend step. Padding beyond a sequence's tokens is 0 here; the runner poisons it.
struct StepInputs {
  Dense<float> query;  ///< Core [B, Sq, Hq, Dk]; layer [B, Sq, d_model].
  Dense<float> key;    ///< Core [B, Sk, Hk, Dk]; layer [B, Sk, d_model].
  Dense<float> value;  ///< Core [B, Sk, Hk, Dv]; layer [B, Sk, d_model].
};

/// Layer level: weights [out, in] and biases [out] (empty without bias).
struct Weights {
  Dense<float> q, k, v, out;
  Dense<float> q_bias, k_bias, v_bias, out_bias;
};

struct Inputs {
  std::vector<StepInputs> steps;  ///< One per moment; empty tensors for those that are no attend.
  Weights weights;                ///< Layer level.
};

Inputs generate_inputs(const Case& c, const Timeline& timeline);
/// SHA-256 over shapes and bytes of every tensor, in a fixed order.
std::string hash(const Inputs& inputs);

}  // namespace attest
