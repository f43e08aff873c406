// SPDX-License-Identifier: Apache-2.0
// The border at which a step's queries, keys or values become f32 heads: converted, projected, normed, rotated.
#pragma once

#include <attest/backend.hpp>
#include <cstdint>
#include <oneapi/dnnl/dnnl.hpp>
#include <optional>
#include <vector>

#include "heads.h"
#include "projection.h"
#include "rope_norm.h"

namespace attest::onednn {

class Intake {
 public:
  /// Of `heads` heads `width` wide. Core level: no projection. Values: no `rope_norm`.
  Intake(std::int64_t heads, std::int64_t width, std::optional<Projection> projection,
         std::optional<RopeNorm> rope_norm);

  /// The f32 heads of a step's tokens: the tensor itself where nothing is to be done, else scratch that is valid until
  /// the next call. `positions` has one entry a token if there is RoPE.
  Heads take(const abi::Tokens& tensor, const Counts& counts, const std::vector<std::int64_t>& positions);

  /// The same into f32 heads of this shape, tokens [first[b], first[b] + counts[b]) of them.
  void take_into(const abi::Tokens& tensor, const Counts& counts, const std::vector<std::int64_t>& positions,
                 const Heads& to, const Counts& first);

  /// Whether what it is asked to make comes into being where it is asked for, without a copy.
  [[nodiscard]] bool makes_in_place(Storage given) const { return projection_ && !rope_norm_ && given == Storage::f32; }

  [[nodiscard]] std::int64_t heads() const { return heads_; }
  [[nodiscard]] std::int64_t width() const { return width_; }

 private:
  [[nodiscard]] Heads given(const abi::Tokens& tensor, const Counts& counts) const;
  [[nodiscard]] Heads to_floats(const Heads& given, const Counts& counts);

  std::int64_t heads_, width_;
  std::optional<Projection> projection_;
  std::optional<RopeNorm> rope_norm_;  ///< Only if it does anything.
  Scratch floats_, made_;
};

}  // namespace attest::onednn
