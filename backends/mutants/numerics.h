// SPDX-License-Identifier: Apache-2.0
// The choices that a correct kernel is free to make: tiles, splits, orders, roundings. The default is one of them, each
// variant another; a conformance suite has to accept them all.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace mutants {

constexpr float log2_e = 1.44269504088896341F;

/// How a sum over many terms is formed.
enum class Summing : std::uint8_t { plain, wide, compensated };
/// How the terms of a dot product are added.
enum class Dot : std::uint8_t { lanes, sequential, pairwise, fused, wide };
/// Where the scale enters the logits.
enum class Scaling : std::uint8_t { logit, query, both_roots };

struct Numerics {
  // Shape of the work. Splits and tiles are counted from key 0, so that a row is computed in the same way in a prefill,
  // a chunk or a decode step.
  std::int64_t key_tile = 16, query_tile = 64;
  std::int64_t split_tiles = 4;  ///< Neighbouring tiles that belong to one split.
  std::int64_t splits = 0;       ///< If not 0, blocks of tiles are dealt to this many splits in turn.
  bool extra_tiles = false;      ///< Also goes through tiles in which all is masked.
  bool fresh_from_step = false;  ///< Attends to new tokens as the step brings them, not as they lie in the cache.
  bool reversed = false;         ///< The last key first.

  // Softmax.
  bool exp2 = false;              ///< Logits in units of ln 2.
  bool two_passes = false;        ///< The maximum of a split first, then its weights.
  float lazy_rescale = 0;         ///< Rescales only when the maximum has grown by more.
  bool sink_last = false;         ///< The sink joins when all keys have been summed.
  bool tanh_through_exp = false;  ///< 1 - 2 / (exp(2x) + 1).

  // Sums and products.
  Summing sums = Summing::plain;
  Dot dot = Dot::lanes;
  Scaling scaling = Scaling::logit;

  // Roundings that 16-bit kernels make (clause D1); nothing in a problem of f32.
  bool round_weights = false, round_kv = false, round_query = false, round_heads = false;

  // What another convention wants (spec/conformance.md): of an empty row NaN and +inf, the LSE to base 2. Only of a
  // library that declares it.
  bool other_conventions = false;

  // Rotation and norm.
  bool angles_in_float = false, reciprocal_root = false;

  [[nodiscard]] std::int64_t split_of(std::int64_t tile) const {
    return splits == 0 ? tile / split_tiles : tile / split_tiles % splits;
  }
  /// exp of a difference of logits.
  [[nodiscard]] float power(float x) const { return exp2 ? std::exp2(x) : std::exp(x); }
  /// Units of a logit in a nat: what all parts of a logit are multiplied by.
  [[nodiscard]] float units() const { return exp2 ? log2_e : 1.0F; }
};

struct Variant {
  std::string_view name, about;
  Numerics numerics;
};

/// All of them but the default.
const std::vector<Variant>& variants();

/// A sum, or several at once, kept as `Summing` says.
class Sums {
 public:
  Sums(std::size_t count, Summing how_)
      : how(how_),
        sum(count),
        low(how == Summing::compensated ? count : 0),
        wide_sum(how == Summing::wide ? count : 0) {}

  void clear();
  /// sum[i] += weight * terms[i].
  void add(float weight, const float* terms);
  /// sum[0] += term.
  void add(float term) {
    const float one = 1;
    add(term, &one);
  }
  void scale(float factor);
  /// For a fault that sums in its own way.
  void set(std::size_t i, float value);
  [[nodiscard]] float operator[](std::size_t i) const {
    return how == Summing::wide ? static_cast<float>(wide_sum[i]) : sum[i];
  }
  [[nodiscard]] std::size_t size() const { return sum.size(); }

 private:
  Summing how;
  std::vector<float> sum, low;
  std::vector<double> wide_sum;
};

float dot_product(Dot how, const float* a, const float* b, std::int64_t n);

}  // namespace mutants
