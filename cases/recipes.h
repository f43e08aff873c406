// SPDX-License-Identifier: Apache-2.0
// Recipes: how the Q, K and V of a case are made so that bugs cannot hide. Gaussian data alone misses most of them;
// each recipe says which it makes visible. All values but those of `gaussian`, `sharp` and `bits` are exact in bf16.
#pragma once

#include <memory>
#include <span>
#include <string>

#include "cases/timeline.h"

namespace attest {

/// Makes the head-level tensors token by token; what a token holds depends on its identity, not on how steps cut it.
class Recipe {
 public:
  virtual ~Recipe() = default;
  virtual void query(const Row& row, int64_t head, std::span<float> out) const = 0;
  virtual void key(const Token& token, int64_t kv_head, std::span<float> out) const = 0;
  virtual void value(const Token& token, int64_t kv_head, std::span<float> out) const = 0;
  /// A sink logit that weighs about as much as the keys.
  [[nodiscard]] virtual float sink(int64_t head) const = 0;
};

bool has_recipe(const std::string& name);
/// All names, comma-separated.
std::string recipe_names();
/// The recipe of a case; throws if the case does not suit it (head_dim too small for the needle's position code,
/// no left padding for the recipe of overflows).
std::unique_ptr<Recipe> make_recipe(const Case& c, const Timeline& timeline);

/// Tensor ids of the Philox streams; the sequence slot is added in bits 8 and up.
enum class Role : uint32_t {
  query = 0,
  key = 1,
  value = 2,
  hash = 3,
  q_weight = 16,
  k_weight = 17,
  v_weight = 18,
  out_weight = 19,
  q_bias = 20,
  k_bias = 21,
  v_bias = 22,
  out_bias = 23,
  sinks = 24,
  alibi_slopes = 25,
  q_norm_weight = 26,
  k_norm_weight = 27,
  mask = 28,
  key_scale = 29,
  value_scale = 30,
};

}  // namespace attest
