// SPDX-License-Identifier: Apache-2.0
#include "rope_norm.h"

#include <omp.h>

#include <cmath>

#include "convert.h"

namespace attest::onednn {

RopeNorm::RopeNorm(const attest_problem& problem, const DLTensor* norm_weight)
    : width_(problem.qk_head_dim), epsilon_(problem.norm_epsilon), style_(problem.rope.style) {
  if (norm_weight != nullptr) {
    const abi::NumberView<1> view(*norm_weight);
    weight_.resize(static_cast<std::size_t>(width_));
    decode(view.storage(), view.address(0), view.stride(0), width_, 1, weight_.data());
  }
  abi::RopeFrequencies rope = abi::rope_frequencies(problem.rope);
  frequency_ = std::move(rope.frequency);
  magnitude_ = rope.magnitude;
}

void RopeNorm::apply(float* data, std::int64_t tokens, std::int64_t heads, const std::vector<std::int64_t>& positions) {
  const auto pairs = static_cast<std::int64_t>(frequency_.size());
  const bool several = tokens * heads * width_ > 65536;
  const int threads = several ? omp_get_max_threads() : 1;
  float* const space = angles_.get(threads * 2 * pairs);
#pragma omp parallel for schedule(static) num_threads(threads) if (several)
  for (std::int64_t t = 0; t < tokens; ++t) {
    float* const cosines = space + omp_get_thread_num() * 2 * pairs;
    float* const sines = cosines + pairs;
    if (pairs > 0) angles(positions[static_cast<std::size_t>(t)], cosines, sines);
    for (std::int64_t h = 0; h < heads; ++h) {
      float* const head = data + (t * heads + h) * width_;
      if (!weight_.empty()) normalise(head);
      if (pairs > 0) rotate(head, cosines, sines);
    }
  }
}

/// In double: the squares of legal floats may overflow.
void RopeNorm::normalise(float* head) const {
  double squares = 0;
#pragma omp simd reduction(+ : squares)
  for (std::int64_t c = 0; c < width_; ++c) squares += static_cast<double>(head[c]) * static_cast<double>(head[c]);
  const double factor = 1 / std::sqrt(squares / static_cast<double>(width_) + epsilon_);
  const float* const weight = weight_.data();
#pragma omp simd
  for (std::int64_t c = 0; c < width_; ++c) {
    head[c] = static_cast<float>(static_cast<double>(weight[c]) * static_cast<double>(head[c]) * factor);
  }
}

/// In double: an f32 angle at position 100,000 would be wrong by 0.004.
void RopeNorm::angles(std::int64_t position, float* cosines, float* sines) const {
  for (const double frequency : frequency_) {
    const double angle = static_cast<double>(position) * frequency;
    *cosines++ = static_cast<float>(magnitude_ * std::cos(angle));
    *sines++ = static_cast<float>(magnitude_ * std::sin(angle));
  }
}

void RopeNorm::rotate(float* head, const float* cosines, const float* sines) const {
  const auto pairs = static_cast<std::int64_t>(frequency_.size());
  const bool half = style_ == ATTEST_ROPE_HALF;
  const std::int64_t next = half ? 1 : 2, partner = half ? pairs : 1;
  for (std::int64_t pair = 0; pair < pairs; ++pair) {
    float* const x = head + pair * next;
    float* const y = x + partner;
    const float turned = *x * cosines[pair] - *y * sines[pair];
    *y = *x * sines[pair] + *y * cosines[pair];
    *x = turned;
  }
}

}  // namespace attest::onednn
