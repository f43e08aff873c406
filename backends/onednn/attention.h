// SPDX-License-Identifier: Apache-2.0
// Attention over f32 heads. Many query tokens go through keys and values tile by tile with an online softmax; few of
// them go flash_decode.h's way.
#pragma once

#include <attest/backend.hpp>
#include <cstdint>
#include <optional>
#include <vector>

#include "attention_step.h"
#include "flash_decode.h"
#include "heads.h"
#include "logits.h"
#include "tiles.h"

namespace attest::onednn {

class Attention {
 public:
  Attention(const attest_problem& problem, int threads, const RowKernels& kernels);

  using Step = AttentionStep;
  void run(const Step& step);

 private:
  /// Query rows [first, first + count) of a KV head: row r is query token r / group of the group's head r % group, so
  /// that the whole group shares each tile.
  struct Task {
    std::int64_t sequence, kv_head, first, count;
  };
  struct Row {
    std::int64_t query, head;
    abi::KeyRange seen;
  };
  /// What a thread works in.
  struct Workspace {
    Scratch floats;
    std::vector<Row> rows;
    std::vector<const char*> pointers;
    std::vector<StripSoftmax> softmax;
    std::vector<std::pair<const char*, std::int64_t>> ahead;

    // Parts of `floats`, at multiples of 64 bytes.
    float *queries, *keys, *values, *staged, *scores, *blended, *extra;
  };

  [[nodiscard]] std::int64_t cut(const Step& step, std::vector<Task>& tasks) const;
  void lay_out(Workspace& space, std::int64_t rows) const;
  void attend(const Step& step, const Task& task, Workspace& space) const;
  void take_queries(const Step& step, const Task& task, Workspace& space) const;
  void pack(const KvRows& of, const Task& task, std::int64_t first, std::int64_t end, std::int64_t width,
            Workspace& space, float* panels) const;
  void look_ahead(const Step& step, const Task& task, std::int64_t first, std::int64_t end, Workspace& space) const;
  void attend_tile(const Step& step, const Task& task, std::int64_t tile, Workspace& space) const;
  void finish(const Step& step, const Task& task, Workspace& space) const;

  std::int64_t kv_heads_, group_, qk_dim_, v_dim_;
  attest_problem problem_;
  const TileKernels& kernels_;
  Logits logits_;
  FlashDecode decode_;
  std::optional<abi::View<const float, 1>> sinks_;
  std::vector<Workspace> spaces_;  ///< One a thread.
};

}  // namespace attest::onednn
