// SPDX-License-Identifier: Apache-2.0
// Attention of a few queries over many keys, where reading the cache is the work: keys and values are read once, where
// they lie and as they are stored, for all query heads that share them, with an online softmax.
#pragma once

#include <algorithm>
#include <attest/backend.hpp>
#include <cstdint>
#include <optional>
#include <vector>

#include "attention_step.h"
#include "logits.h"
#include "rows.h"
#include "task_queue.h"

namespace attest::onednn {

class FlashDecode {
 public:
  FlashDecode(const attest_problem& problem, int threads, const RowKernels& kernels);

  /// A sequence with more query tokens in a step is not taken.
  static constexpr std::int64_t most_queries = 8;
  /// Whether this is the way for a sequence; any other takes blocks of queries (attention.h). Its neighbours have no
  /// say in that, so that its bits do not depend on them.
  [[nodiscard]] bool takes(const AttentionStep& step, std::int64_t b) const;
  /// Attends for the sequences that it takes.
  void run(const AttentionStep& step);

 private:
  /// Keys [first, end) of a sequence, for KV heads [kv_head, kv_head + heads) and all queries of their groups: `rows`
  /// rows a head. Their results are rows of the parts, from `place` on, head by head.
  struct Chunk {
    std::int64_t sequence, kv_head, heads, first, end, rows, place;
    std::size_t whole;  ///< Of its first head; the others' follow.
  };
  /// The parts of a sequence and KV head: `count` times `rows` rows, from `place` on, `apart` apart.
  struct Whole {
    std::int64_t sequence, kv_head, rows, place, count, apart;
    std::int64_t left;  ///< Parts still to come: who brings the last one joins them.
  };
  std::int64_t cut(const AttentionStep& step);
  [[nodiscard]] std::int64_t heads_at_once(bool adjacent, std::int64_t tasks, std::int64_t rows) const;
  /// Floats from one row of a chunk's products to the next.
  static std::int64_t leading_of(const Chunk& chunk) {
    return padded(std::max<std::int64_t>(chunk.end - chunk.first, 0)) + row_padding;
  }
  static RowRun run_at(const KvRows& of, const Chunk& chunk, std::int64_t from);
  template <class Then, class Visit>
  static void each_block(const KvRows& of, std::int64_t width, const Chunk& chunk, Then&& then, Visit&& visit);
  const Chunk* attend(const AttentionStep& step, const Chunk& chunk, TaskQueue<Chunk>& queue, Scratch& space);
  void weigh(const AttentionStep& step, const Chunk& chunk, float* products, float* space);
  void join(const AttentionStep& step, const Whole& whole, Scratch& space);

  attest_problem problem_;
  std::int64_t group_, qk_dim_, v_dim_;
  const RowKernels& kernels_;
  Logits logits_;
  std::optional<float> late_scale_;  ///< Of the step that runs.
  std::vector<Chunk> chunks_;
  std::vector<Whole> wholes_;
  std::vector<RowSum> parts_;    ///< One row's result over one chunk, but for its blend.
  Scratch blended_;              ///< The parts' sums of weighted values, padded(v_dim_) floats each.
  std::vector<Scratch> spaces_;  ///< One a thread.
};

}  // namespace attest::onednn
