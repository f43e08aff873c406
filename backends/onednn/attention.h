// SPDX-License-Identifier: Apache-2.0
// Attention over f32 heads: two sgemm calls and a softmax per block of queries, or flash_decode.h's way for few of
// them.
#pragma once

#include <attest/backend.hpp>
#include <cstdint>
#include <optional>
#include <vector>

#include "attention_step.h"
#include "flash_decode.h"
#include "heads.h"
#include "logits.h"

namespace attest::onednn {

class Attention {
 public:
  Attention(const attest_problem& problem, int threads, const RowKernels& kernels);

  using Step = AttentionStep;
  /// Throws if oneDNN refuses a product.
  void run(const Step& step);

 private:
  /// `count` query tokens from `first` on, of the query heads that share a KV head.
  struct Task {
    std::int64_t sequence, kv_head, first, count;
  };

  [[nodiscard]] bool attend(const Step& step, const Task& task, Scratch& scratch) const;
  [[nodiscard]] double weigh(const Step& step, const LogitRow& row, std::int64_t columns, float* logits,
                             float* space) const;

  std::int64_t kv_heads_, group_, qk_dim_, v_dim_;
  attest_problem problem_;
  Logits logits_;
  FlashDecode decode_;
  std::optional<abi::View<const float, 1>> sinks_;
  std::vector<Scratch> scratch_;  ///< One a thread.
};

}  // namespace attest::onednn
