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
#include "task_queue.h"
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
    abi::KeyRange seen;      ///< From its first row's first key to its last row's last one.
    abi::KeyRange appended;  ///< New tokens that it brings into the cache, if that is attention's to do.
  };
  struct Row {
    std::int64_t query, head;
    abi::KeyRange seen;
  };
  /// Rows of a task that go through a tile together, and their part of a workspace.
  struct Strip {
    const Row* rows;
    std::int64_t count;
    TileRange range;  ///< What they see of the tile, from the first row's first key to the last row's last one.
    float *queries, *blended;
    StripSoftmax* softmax;
    StripScores* scores;

    [[nodiscard]] bool sees() const { return range.begin < range.end; }
  };
  /// What comes in while a strip attends to a tile.
  struct Coming {
    const Task* task;      ///< Whose tile comes next; null: none does.
    std::int64_t portion;  ///< Rows of it, of keys and of values.
  };
  /// What a thread works in.
  struct Workspace {
    Scratch floats;
    // Parts of it, at multiples of 64 bytes.
    float *queries, *keys, *values, *next_keys, *next_values, *blended, *extra;
    StripScores scores[2];  ///< Of strip s: [s % 2].
    std::vector<Row> rows;
    std::vector<StripSoftmax> softmax;
    const char* soon[most_strip_rows];                   ///< Queries that are asked for.
    std::optional<TileSource> key_source, value_source;  ///< Of the next tile.
  };

  [[nodiscard]] std::int64_t cut(const Step& step, std::vector<Task>& tasks) const;
  void lay_out(Workspace& space, std::int64_t rows) const;
  void list(const Step& step, const Task& task, std::int64_t at, Workspace& space) const;
  const Task* attend(const Step& step, const Task& task, TaskQueue<Task>& queue, Workspace& space) const;
  void list_rows(const Step& step, const Task& task, std::int64_t first, std::int64_t count, Row* rows) const;
  [[nodiscard]] Strip strip_of(const Task& task, std::int64_t s, std::int64_t tile, Workspace& space) const;
  [[nodiscard]] std::int64_t strip_queries() const;
  RowsAhead queries_of(const Step& step, const Task& task, const Strip& strip, Workspace& space) const;
  void take_queries(const Step& step, const Task& task, const Strip& strip) const;
  void score(const Step& step, const Task& task, std::int64_t tile, const Strip& strip, const Coming& coming,
             const RowsAhead& queries, Workspace& space) const;
  void blend(const Step& step, const Strip& strip, const Coming& coming, StripScores* beside, Workspace& space) const;
  void bring_rest(const Step& step, const Task& task, Workspace& space) const;
  void bring(const KvRows& of, const Task& task, TileSource& source, float* panels) const;
  void append(const KvRows& of, const Task& task, std::int64_t first, std::int64_t end) const;
  void finish(const Step& step, const Task& task, const Strip& strip) const;
  void put_result(const float* row, float divisor, float* to, std::int64_t to_channel) const;
  void put(const float* row, std::int64_t from_channel, std::int64_t width, float* to, std::int64_t to_channel) const;

  std::int64_t kv_heads_, group_, qk_dim_, v_dim_;
  attest_problem problem_;
  const TileKernels& kernels_;
  Logits logits_;
  FlashDecode decode_;
  std::optional<float> late_scale_;  ///< Of the step that runs.
  std::vector<Workspace> spaces_;    ///< One a thread.
};

}  // namespace attest::onednn
