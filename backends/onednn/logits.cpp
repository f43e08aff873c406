// SPDX-License-Identifier: Apache-2.0
#include "logits.h"

#include <cmath>
#include <limits>

#include "clones.h"
#include "convert.h"

namespace attest::onednn {

namespace {

ATTEST_ONEDNN_CLONES
void multiply(float* logits, std::int64_t count, float scale) {
  for (std::int64_t j = 0; j < count; ++j) logits[j] *= scale;
}

void cap(float* logits, std::int64_t count, float softcap) {
  for (std::int64_t j = 0; j < count; ++j) logits[j] = softcap * std::tanh(logits[j] / softcap);
}

/// `to_query`: from the first key to the query, in keys.
ATTEST_ONEDNN_CLONES
void bias_by_distance(float* logits, std::int64_t count, std::int64_t to_query, float slope) {
  // Lengths fit in an int, which has vector conversions.
  const auto distance = static_cast<int>(to_query);
  for (int j = 0; j < static_cast<int>(count); ++j) {
    logits[j] -= slope * static_cast<float>(std::abs(distance - j));
  }
}

ATTEST_ONEDNN_CLONES
void mask_where_zero(float* logits, std::int64_t count, const std::uint8_t* mask, std::int64_t stride) {
  constexpr float masked = -std::numeric_limits<float>::infinity();
  if (stride == 1) {
    for (std::int64_t j = 0; j < count; ++j) logits[j] = mask[j] != 0 ? logits[j] : masked;
  } else {
    for (std::int64_t j = 0; j < count; ++j) logits[j] = mask[j * stride] != 0 ? logits[j] : masked;
  }
}

ATTEST_ONEDNN_CLONES
void add(float* logits, std::int64_t count, const float* terms) {
  // Clause M6: -infinity masks whatever the product came to, also where that is no longer finite.
  constexpr float masked = -std::numeric_limits<float>::infinity();
  for (std::int64_t j = 0; j < count; ++j) logits[j] = terms[j] == masked ? masked : logits[j] + terms[j];
}

}  // namespace

Mask::Mask(const attest_problem& problem, const DLTensor* mask) {
  if (problem.mask == ATTEST_MASK_BOOLEAN) boolean_.emplace(*mask);
  if (problem.mask == ATTEST_MASK_ADDITIVE) additive_.emplace(*mask);
}

void Mask::add(const LogitRow& row, float* logits, float* space) const {
  if (row.count == 0) return;
  if (boolean_) {
    const std::uint8_t* const from = &(*boolean_)(row.sequence, row.head, row.query, row.first);
    mask_where_zero(logits, row.count, from, boolean_->stride(3));
  }
  if (additive_) {
    const void* const from = additive_->address(row.sequence, row.head, row.query, row.first);
    decode(additive_->storage(), from, additive_->stride(3), row.count, 1, space);
    onednn::add(logits, row.count, space);
  }
}

Logits::Logits(const attest_problem& problem)
    : query_heads_(problem.query_heads),
      scale_(static_cast<float>(problem.scale != 0 ? problem.scale
                                                   : 1 / std::sqrt(static_cast<double>(problem.qk_head_dim)))),
      softcap_(static_cast<float>(problem.softcap)),
      slopes_(abi::alibi_slopes(problem)) {
  if (problem.sinks != nullptr) sinks_.emplace(*problem.sinks);
}

std::optional<float> Logits::late_scale(const Mask& mask) const {
  constexpr float most = 0x1p40f;
  if (softcap_ != 0 || !slopes_.empty() || !mask.none()) return std::nullopt;
  if (!(scale_ >= 1 / most && scale_ <= most)) return std::nullopt;
  for (std::int64_t h = 0; sinks_ && h < query_heads_; ++h) {
    const float logit = sink(h);
    if (logit != -std::numeric_limits<float>::infinity() && !(std::abs(logit) <= most)) return std::nullopt;
  }
  return scale_;
}

void Logits::finish(const LogitRow& row, const Mask& mask, float* logits, float* space) const {
  multiply(logits, row.count, scale_);
  if (softcap_ > 0) cap(logits, row.count, softcap_);
  if (!slopes_.empty()) {
    bias_by_distance(logits, row.count, row.position - row.first, slopes_[static_cast<std::size_t>(row.head)]);
  }
  mask.add(row, logits, space);
}

}  // namespace attest::onednn
