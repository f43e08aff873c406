// SPDX-License-Identifier: Apache-2.0
// Attention over heads in place: two sgemm calls and a softmax per block of queries.
#pragma once

#include <attest/backend.hpp>
#include <cstdint>
#include <optional>
#include <vector>

#include "tokens.h"

namespace attest::onednn {

class Attention {
 public:
  Attention(const attest_problem& problem, int threads);

  /// Query tokens [0, queries[b]) attend to key and value tokens [0, total[b]) of sequence b. Nothing beyond either is
  /// read or written, so it may be NaN. `lse` [B, Hq, Sq] or null. Throws if oneDNN refuses a product.
  void run(const Tokens<const float>& query, const Tokens<const float>& key, const Tokens<const float>& value,
           const Counts& queries, const Counts& total, const Tokens<float>& output, const abi::View<float, 3>* lse);

 private:
  /// `count` query tokens from `first` on, of the query heads that share a KV head.
  struct Task {
    std::int64_t sequence, kv_head, first, count;
  };
  struct Step;

  void cap_and_bias(float* logits, std::int64_t count, std::int64_t to_query, std::int64_t head) const;
  [[nodiscard]] bool attend(const Step& step, const Task& task, Scratch& scratch) const;

  std::int64_t kv_heads_, group_, qk_dim_, v_dim_;
  attest_problem problem_;
  std::vector<float> slopes_;  ///< ALiBi's; empty without.
  float scale_, softcap_;
  std::optional<abi::View<const float, 1>> sinks_;
  std::vector<Scratch> scratch_;  ///< One a thread.
};

}  // namespace attest::onednn
