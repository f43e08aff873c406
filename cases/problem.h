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
enum class CacheKind : int { none, contiguous, paged, ring };
enum class Alibi : int { none, standard, slopes };
enum class MaskKind : int { none, boolean, additive };
enum class RopeStyle : int { none, half, interleaved };
enum class RopeScaling : int { none, linear, ntk, yarn, llama3, yarn_unrounded };
/// Over what one scale of a quantised cache spans.
enum class KvScale : int { none, tensor, head, token };

/// Rotary position embedding (clauses R1 to R3), with the parameters of `attest_rope`.
struct Rope {
  RopeStyle style = RopeStyle::none;
  RopeScaling scaling = RopeScaling::none;
  int64_t dim = 0;  ///< Channels that turn, from the first on.
  double base = 10000;
  double factor = 0, original_length = 0, low_frequency = 0, high_frequency = 0;
  double attention_factor = 0;  ///< YaRN; 0: 0.1 ln(factor) + 1.
  explicit operator bool() const { return style != RopeStyle::none; }
  [[nodiscard]] bool is_yarn() const { return scaling == RopeScaling::yarn || scaling == RopeScaling::yarn_unrounded; }
};

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
  MaskKind mask = MaskKind::none;
  Rope rope;
  double norm_epsilon = 0;  ///< QK-norm's (clause N1); 0: no norm.
  CacheKind cache = CacheKind::none;
  int64_t capacity = 0;            ///< Tokens a sequence's cache holds.
  int64_t page_size = 0;           ///< Tokens of a page; 0 unless paged.
  DType cache_dtype = DType::f32;  ///< The problem's dtype, or a type of codes.
  KvScale kv_scale = KvScale::none;
  bool packed = false;  ///< Token axes are packed, see clause G2.
  Biases bias;
  bool lse = false;

  [[nodiscard]] int64_t group() const { return query_heads / kv_heads; }
  [[nodiscard]] bool quantised() const { return kv_scale != KvScale::none; }
  /// Whether the cache holds something else than copies of the keys (values) that a step is given.
  [[nodiscard]] bool transforms_keys() const {
    return level == Level::layer || rope || norm_epsilon > 0 || quantised();
  }
  [[nodiscard]] bool transforms_values() const { return level == Level::layer || quantised(); }
};

/// Names of the optional features that a problem uses: what a case must show to matter (check_binding of
/// golden/oracle.h).
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
