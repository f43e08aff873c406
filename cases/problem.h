// SPDX-License-Identifier: Apache-2.0
// The problem of a case: everything that stays the same over its steps, as in `attest_problem` of
// spec/attest/backend.h. The same JSON form stands in a case file and travels to a worker.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "cases/dtype.h"
#include "cases/json.h"

namespace attest {

enum class Level : int { core, layer };
enum class Causal : int { none, bottom_right, top_left };
enum class CacheKind : int { none, contiguous };
enum class Alibi : int { none, standard, slopes };

/// Layer level: which of the four projections have a bias.
struct Biases {
  bool q = false, k = false, v = false, out = false;
  [[nodiscard]] bool any() const { return q || k || v || out; }
  [[nodiscard]] bool all() const { return q && k && v && out; }
};

struct Problem {
  Level level = Level::core;
  DType dtype = DType::f32;
  int64_t batch = 1;
  int64_t query_heads = 1;
  int64_t kv_heads = 1;
  int64_t qk_head_dim = 0;
  int64_t v_head_dim = 0;
  int64_t d_model = 0;          ///< Layer level only.
  std::optional<double> scale;  ///< Absent: the real 1 / sqrt(qk_head_dim).
  Causal causal = Causal::none;
  std::optional<int64_t> window_left, window_right;  ///< Keys further from the query's position are masked (clause M5).
  double softcap = 0;                                ///< 0: none.
  Alibi alibi = Alibi::none;
  bool sinks = false;
  CacheKind cache = CacheKind::none;
  int64_t capacity = 0;  ///< Tokens a sequence's cache holds.
  Biases bias;
  bool lse = false;

  [[nodiscard]] int64_t group() const { return query_heads / kv_heads; }
};

/// Names of the optional features that a problem uses: what a case must show to matter (golden/binding.h).
std::vector<std::string> features(const Problem& problem);
/// The same problem without one of its features.
Problem without(Problem problem, const std::string& feature);

/// Reads a problem; throws on anything that is not a legal one.
Problem problem_from_json(const Json& json, const std::string& place);
/// The canonical form: fields at their default are left out.
Json to_json(const Problem& problem);
/// One line a person can filter by: "core f32 B2 H4/2 D16 causal cache32".
std::string identity(const Problem& problem);

}  // namespace attest
