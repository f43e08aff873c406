// SPDX-License-Identifier: Apache-2.0
// The input tensors of a case, generated from its recipe. Pure: the same case gives the same bits in any language.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "cases/timeline.h"

namespace attest {

/// A dense row-major array with its shape. Inputs are f32 values that the problem's dtype holds exactly.
template <typename T>
struct Dense {
  std::vector<int64_t> shape;
  std::vector<T> data;
};

/// Inputs of one attend or load step. Padding beyond a sequence's tokens is 0 here; the runner poisons it.
struct StepInputs {
  Dense<float> query;  ///< Core [B, Sq, Hq, Dk]; layer [B, Sq, d_model]. A load has none.
  Dense<float> key;    ///< Core [B, Sk, Hk, Dk]; layer [B, Sk, d_model]. A load's are those of the core at both.
  Dense<float> value;  ///< Core [B, Sk, Hk, Dv]; layer [B, Sk, d_model]; likewise.
  Dense<float> mask;   ///< [B or 1, Hq or 1, Sq or 1, keys after the step]; boolean: 1 and 0. Empty without a mask.
};

/// Tensors of the problem, empty where it has none. Layer level: weights [out, in] and biases [out].
struct Weights {
  Dense<float> q, k, v, out;
  Dense<float> q_bias, k_bias, v_bias, out_bias;
  Dense<float> sinks, alibi_slopes;  ///< [Hq]
  Dense<float> q_norm, k_norm;       ///< [Dk]
};

/// Whether a tensor of the problem, by its name in the ABI, is f32 whatever the problem's dtype.
bool is_always_f32(std::string_view name);

/// Every tensor of the problem with its name in the ABI; those that are empty too.
std::vector<std::pair<const char*, const Dense<float>*>> named(const Weights& weights);

struct Inputs {
  std::vector<StepInputs> steps;  ///< One per moment; empty tensors for those that are no attend or load.
  Weights weights;
  Dense<float> key_scale, value_scale;  ///< Quantised cache with scales of its tensor or heads: f32 [1] or [Hk].
};

/// Throws Error if the case's inputs come with it (InputSpec::given).
Inputs generate_inputs(const Case& c, const Timeline& timeline);
/// SHA-256 over shapes and bytes of every tensor, in a fixed order.
std::string hash(const Inputs& inputs);

}  // namespace attest
