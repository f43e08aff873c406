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
#include "tile_source.h"
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
    abi::KeyRange appended;  ///< New tokens that it brings into the cache, if that is attention's to do.
  };
  struct Row {
    std::int64_t query, head;
    abi::KeyRange seen;
  };
  /// What a thread works in.
  struct Workspace {
    Scratch floats;
    float *queries, *keys, *values, *scores, *staged, *blended, *extra;  ///< Parts of it, at multiples of 64 bytes.
    std::vector<Row> rows;
    std::vector<StripSoftmax> softmax;
    std::optional<TileSource> next_keys, next_values;
  };

  [[nodiscard]] std::int64_t cut(const Step& step, std::vector<Task>& tasks) const;
  void lay_out(Workspace& space, std::int64_t rows) const;
  void attend(const Step& step, const Task& task, Workspace& space) const;
  void take_queries(const Step& step, const Task& task, Workspace& space) const;
  void attend_tile(const Step& step, const Task& task, std::int64_t tile, Workspace& space) const;
  void weigh(const Step& step, const Task& task, std::int64_t tile, const Row* rows, std::int64_t count,
             TileRange range, Workspace& space, StripSoftmax& softmax) const;
  void append(const Step& step, const Task& task, std::int64_t first, std::int64_t end) const;
  void finish(const Step& step, const Task& task, Workspace& space) const;
  void put(const float* row, std::int64_t from_channel, std::int64_t width, float* to, std::int64_t to_channel) const;

  std::int64_t kv_heads_, group_, qk_dim_, v_dim_;
  attest_problem problem_;
  const TileKernels& kernels_;
  Logits logits_;
  FlashDecode decode_;
  std::optional<abi::View<const float, 1>> sinks_;
  std::vector<Workspace> spaces_;  ///< One a thread.
};

}  // namespace attest::onednn
