// SPDX-License-Identifier: Apache-2.0
// From dot products to logits: scale, softcap, ALiBi, mask (clauses A2, A5, B1, M6).
#pragma once

#include <attest/backend.hpp>
#include <cstdint>
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

  /// The factor, above 0, that alone makes logits of dot products; none, where that takes more.
  [[nodiscard]] std::optional<float> only_factor(const Mask& mask) const {
    if (softcap_ != 0 || !slopes_.empty() || !mask.none() || !(scale_ > 0)) return std::nullopt;
    return scale_;
  }

  /// Turns the row's dot products into logits. `space`: row.count floats.
  void finish(const LogitRow& row, const Mask& mask, float* logits, float* space) const;

 private:
  float scale_, softcap_;
  std::vector<float> slopes_;  ///< ALiBi's; empty without.
};

}  // namespace attest::onednn
