// SPDX-License-Identifier: Apache-2.0
// From dot products to logits: scale, softcap, ALiBi, mask, and the sinks' (clauses A2, A5, B1, M6, S1).
#pragma once

#include <attest/backend.hpp>
#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

namespace attest::onednn {

/// Of one query and head, and the keys [first, first + count).
struct LogitRow {
  std::int64_t sequence, head, query;
  std::int64_t position;  ///< The query's.
  std::int64_t first, count;
};

/// A step's mask, or none. It borrows the tensor.
class Mask {
 public:
  Mask(const attest_problem& problem, const DLTensor* mask);
  [[nodiscard]] bool none() const { return !boolean_ && !additive_; }
  /// Adds the mask to the logits; -infinity masks. `space`: row.count floats.
  void add(const LogitRow& row, float* logits, float* space) const;

 private:
  std::optional<abi::View<const std::uint8_t, 4>> boolean_;
  std::optional<abi::NumberView<4>> additive_;
};

class Logits {
 public:
  explicit Logits(const attest_problem& problem);

  /// The factor that dot products may lack until the softmax, where it alone makes logits of them. Not one so small or
  /// large that they, their differences or sinks, brought to their measure, could overflow where logits do not.
  [[nodiscard]] std::optional<float> late_scale(const Mask& mask) const;

  /// A query head's; -infinity: it has none.
  [[nodiscard]] float sink(std::int64_t head) const {
    return sinks_ ? (*sinks_)(head) : -std::numeric_limits<float>::infinity();
  }

  /// Turns the row's dot products into logits. `space`: row.count floats.
  void finish(const LogitRow& row, const Mask& mask, float* logits, float* space) const;

 private:
  std::int64_t query_heads_;
  float scale_, softcap_;
  std::vector<float> slopes_;  ///< ALiBi's; empty without.
  std::optional<abi::View<const float, 1>> sinks_;
};

}  // namespace attest::onednn
