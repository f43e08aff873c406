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
  /// Rows of a task that go through a tile together, and their part of a workspace.
  struct Strip {
    const Row* rows;
    std::int64_t count, left;  ///< Its rows, and those of the task behind them.
    float *queries, *blended;
    StripSoftmax* softmax;
  };
  /// What a thread works in.
  struct Workspace {
    Scratch floats;
    // Parts of it, at multiples of 64 bytes.
    float *queries, *keys, *values, *next_keys, *next_values, *scores, *staged, *blended, *extra;
    std::vector<Row> rows;
    std::vector<StripSoftmax> softmax;
    std::optional<TileSource> key_source, value_source;  ///< Of the next tile.
  };

  [[nodiscard]] std::int64_t cut(const Step& step, std::vector<Task>& tasks) const;
  void lay_out(Workspace& space, std::int64_t rows) const;
  void attend(const Step& step, const Task& task, Workspace& space) const;
  [[nodiscard]] Strip strip_of(const Task& task, std::int64_t from, Workspace& space) const;
  void take_queries(const Step& step, const Task& task, const Strip& strip, Workspace& space) const;
  void attend_tile(const Step& step, const Task& task, std::int64_t tile, const Strip& strip, Workspace& space) const;
  void weigh(const Step& step, const Task& task, std::int64_t tile, const Strip& strip, TileRange range,
             Workspace& space) const;
  void bring(const KvRows& of, const Task& task, TileSource& source, std::int64_t rows, float* panels) const;
  void append(const KvRows& of, const Task& task, std::int64_t first, std::int64_t end) const;
  void finish(const Step& step, const Task& task, const Strip& strip) const;
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
