// SPDX-License-Identifier: Apache-2.0
#include "intake.h"

#include <utility>

namespace attest::onednn {

Intake::Intake(std::int64_t heads, std::int64_t width, std::optional<Projection> projection,
               std::optional<RopeNorm> rope_norm)
    : heads_(heads), width_(width), projection_(std::move(projection)) {
  if (rope_norm && rope_norm->does_anything()) rope_norm_ = std::move(rope_norm);
}

Heads Intake::given(const abi::Tokens& tensor, const Counts& counts) const {
  return projection_ ? heads_of(tensor, counts, 1, projection_->in()) : heads_of(tensor, counts, heads_, width_);
}

/// A copy of the tokens.
Heads Intake::to_floats(const Heads& given, const Counts& counts) {
  const Counts from_zero(counts.batch(), 0);
  Heads floats = packed_heads(floats_.get(sum(counts) * given.row()), counts, given.heads, given.width);
  copy_rows(given, rows_of(given, from_zero, counts), floats, rows_of(floats, from_zero, counts));
  return floats;
}

Heads Intake::take(const abi::Tokens& tensor, const Counts& counts, const std::vector<std::int64_t>& positions) {
  Heads heads = given(tensor, counts);
  // RoPE and norm work in place, but not on an input.
  if (heads.storage != Storage::f32 || (rope_norm_ && !projection_)) heads = to_floats(heads, counts);
  const std::int64_t tokens = sum(counts);
  if (projection_) {
    const Heads made = packed_heads(made_.get(tokens * heads_ * width_), counts, heads_, width_);
    projection_->apply(heads, counts, made, Counts(counts.batch(), 0));
    heads = made;
  }
  if (rope_norm_) rope_norm_->apply(projection_ ? made_.get(0) : floats_.get(0), tokens, heads_, positions);
  return heads;
}

void Intake::take_into(const abi::Tokens& tensor, const Counts& counts, const std::vector<std::int64_t>& positions,
                       const Heads& to, const Counts& first) {
  Heads heads = given(tensor, counts);
  if (makes_in_place(heads.storage)) {
    projection_->apply(heads, counts, to, first);
    return;
  }
  if (projection_ || rope_norm_) heads = take(tensor, counts, positions);
  copy_rows(heads, rows_of(heads, Counts(counts.batch(), 0), counts), to, rows_of(to, first, counts));
}

}  // namespace attest::onednn
