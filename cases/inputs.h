// SPDX-License-Identifier: Apache-2.0
// The input tensors of a case, generated from its recipe. Pure: the same case gives the same bits in any language.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
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

/// Tensors of the problem, empty where it has none. Layer level: weights [out, in] and biases [out].
struct Weights {
  Dense<float> q, k, v, out;
  Dense<float> q_bias, k_bias, v_bias, out_bias;
  Dense<float> sinks, alibi_slopes;  ///< [Hq]
};

/// Every tensor of the problem with its name in the ABI; those that are empty too.
std::vector<std::pair<const char*, const Dense<float>*>> named(const Weights& weights);

struct Inputs {
  std::vector<StepInputs> steps;  ///< One per moment; empty tensors for those that are no attend.
  Weights weights;
};

Inputs generate_inputs(const Case& c, const Timeline& timeline);
/// SHA-256 over shapes and bytes of every tensor, in a fixed order.
std::string hash(const Inputs& inputs);

}  // namespace attest
