// SPDX-License-Identifier: Apache-2.0
#include "attention.h"

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "convert.h"
#include "threads.h"

namespace attest::onednn {

namespace {

constexpr float minus_infinity = -std::numeric_limits<float>::infinity();

// Query rows of a task: a tile of keys and values is converted and packed for each task anew, and that many rows make
// it cheap. Their queries and results, this tile and the next one fit into a second-level cache of 1 MiB. No result
// depends on it.
constexpr std::int64_t task_rows = 630;
// Where that leaves a thread fewer tasks than this, they are made smaller.
constexpr std::int64_t tasks_per_thread = 4;

std::int64_t parts_of(std::int64_t whole, std::int64_t part) {
  return (whole + part - 1) / part;
}

}  // namespace

Attention::Attention(const attest_problem& problem, int threads, const RowKernels& kernels)
    : kv_heads_(problem.kv_heads),
      group_(problem.query_heads / problem.kv_heads),
      qk_dim_(problem.qk_head_dim),
      v_dim_(problem.v_head_dim),
      problem_(problem),
      kernels_(*kernels.tiles),
      logits_(problem),
      decode_(problem, threads, kernels),
      spaces_(static_cast<std::size_t>(threads)) {
  if (problem.sinks != nullptr) sinks_.emplace(*problem.sinks);
}

/// Lists the tasks, and answers the most rows of one.
std::int64_t Attention::cut(const Step& step, std::vector<Task>& tasks) const {
  std::int64_t all = 0, most = 0;
  for (std::int64_t b = 0; b < problem_.batch; ++b) {
    if (!decode_.takes(step, b)) all += step.extents.queries[b] * group_ * kv_heads_;
  }
  const std::int64_t share = all / (tasks_per_thread * static_cast<std::int64_t>(spaces_.size()));
  const std::int64_t wanted = std::clamp(share, kernels_.strip, task_rows);
  for (std::int64_t b = 0; b < problem_.batch; ++b) {
    const std::int64_t rows = step.extents.queries[b] * group_;
    const auto position = [&](std::int64_t r) { return step.extents.past[b] + step.extents.keys[b] * r / rows; };
    if (rows == 0 || decode_.takes(step, b)) continue;
    // About as many as wanted, in whole strips.
    const std::int64_t parts = std::max<std::int64_t>(1, (rows + wanted / 2) / wanted);
    const std::int64_t count = parts_of(parts_of(rows, parts), kernels_.strip) * kernels_.strip;
    most = std::max(most, count);
    // A head's tasks follow each other, so that its keys and values are still in a cache that the threads share.
    // Causal: the last queries see the most keys; starting with them leaves the short tasks for the end.
    for (std::int64_t h = 0; h < kv_heads_; ++h) {
      for (std::int64_t first = (rows - 1) / count * count; first >= 0; first -= count) {
        const std::int64_t end = std::min(first + count, rows);
        tasks.push_back({b, h, first, end - first, {position(first), position(end)}});
      }
    }
  }
  return most;
}

void Attention::run(const Step& step) {
  decode_.run(step);
  std::vector<Task> tasks;
  const std::int64_t most_rows = cut(step, tasks);
  if (tasks.empty()) return;
  std::int64_t multiply_adds = 0;
  for (const Task& task : tasks) multiply_adds += task.count * step.extents.total(task.sequence) * (qk_dim_ + v_dim_);
  const auto count = static_cast<std::int64_t>(tasks.size());
  const int threads =
      static_cast<int>(std::min<std::int64_t>(count, threads_for(multiply_adds, static_cast<int>(spaces_.size()))));
  // Memory is taken here, because an exception must not leave a parallel region.
  for (int i = 0; i < threads; ++i) lay_out(spaces_[static_cast<std::size_t>(i)], most_rows);
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1)
  for (std::int64_t i = 0; i < count; ++i) {
    attend(step, tasks[static_cast<std::size_t>(i)], spaces_[static_cast<std::size_t>(omp_get_thread_num())]);
  }
}

/// For tasks of so many rows.
void Attention::lay_out(Workspace& space, std::int64_t rows) const {
  const std::int64_t strips = parts_of(rows, kernels_.strip);
  const std::pair<float**, std::int64_t> parts[] = {{&space.queries, strips * kernels_.lanes * qk_dim_},
                                                    {&space.keys, tile_keys * qk_dim_},
                                                    {&space.values, tile_keys * padded(v_dim_)},
                                                    {&space.next_keys, tile_keys * qk_dim_},
                                                    {&space.next_values, tile_keys * padded(v_dim_)},
                                                    {&space.scores, kernels_.strip * tile_keys},
                                                    {&space.staged, kernels_.lanes * padded(qk_dim_)},
                                                    {&space.blended, strips * kernels_.strip * padded(v_dim_)},
                                                    {&space.extra, std::max(tile_keys, kernels_.strip * qk_dim_)}};
  // Each begins at a cache line, as the scratch does.
  std::int64_t all = 0;
  for (const auto& [part, count] : parts) all += padded(count);
  float* at = space.floats.get(all);
  for (const auto& [part, count] : parts) {
    *part = at;
    at += padded(count);
  }
  space.rows.resize(static_cast<std::size_t>(rows));
  space.softmax.resize(static_cast<std::size_t>(strips));
  if (!space.key_source) {
    space.key_source.emplace(kernels_, TileSource::Panels::keys, qk_dim_);
    space.value_source.emplace(kernels_, TileSource::Panels::channels, v_dim_);
  }
}

void Attention::attend(const Step& step, const Task& task, Workspace& space) const {
  const std::int64_t b = task.sequence, queries = step.extents.queries[b], total = step.extents.total(b);
  for (std::int64_t r = 0; r < task.count; ++r) {
    const std::int64_t query = (task.first + r) / group_, head = task.kv_head * group_ + (task.first + r) % group_;
    space.rows[static_cast<std::size_t>(r)] = {query, head, abi::visible_keys(problem_, query, queries, total)};
  }
  // The keys that any of the rows sees: from the first one's to the last one's.
  const std::int64_t start = space.rows[0].seen.begin;
  const std::int64_t end = space.rows[static_cast<std::size_t>(task.count - 1)].seen.end;
  const auto list = [&](std::int64_t tile) {
    const std::int64_t first = std::max(tile, start), last = std::max(first, std::min(tile + tile_keys, end));
    space.key_source->list(step.key, b, task.kv_head, first, last);
    space.value_source->list(step.value, b, task.kv_head, first, last);
  };
  const auto bring_rest = [&] {
    space.key_source->fetch(tile_keys), space.value_source->fetch(tile_keys);
    bring(step.key, task, *space.key_source, 0, space.next_keys);
    bring(step.value, task, *space.value_source, 0, space.next_values);
  };
  for (const KvRows* const of : {&step.key, &step.value}) {  // What it does not see.
    append(*of, task, task.appended.begin, start);
    append(*of, task, end, task.appended.end);
  }
  std::int64_t tile = start / tile_keys * tile_keys;
  list(tile);
  bring_rest();
  // Once even if nobody sees anything: the results are zeros then.
  for (bool first = true, last = false; !last; first = false, tile += tile_keys) {
    last = tile + tile_keys >= end;
    std::swap(space.keys, space.next_keys), std::swap(space.values, space.next_values);
    list(tile + tile_keys);
    for (std::int64_t from = 0; from < task.count; from += kernels_.strip) {
      const Strip strip = strip_of(task, from, space);
      if (first) take_queries(step, task, strip, space);
      attend_tile(step, task, tile, strip, space);
      if (last) finish(step, task, strip);
    }
    bring_rest();
  }
  settle_streams();
}

/// The strip that begins with a task's row `from`.
Attention::Strip Attention::strip_of(const Task& task, std::int64_t from, Workspace& space) const {
  const std::int64_t place = from / kernels_.strip, count = task.count - from;
  return {space.rows.data() + from,
          std::min(kernels_.strip, count),
          std::max<std::int64_t>(count - kernels_.strip, 0),
          space.queries + place * kernels_.lanes * qk_dim_,
          space.blended + from * padded(v_dim_),
          &space.softmax[static_cast<std::size_t>(place)]};
}

/// Transposed queries, and the state before any key. It asks for the next strip's.
void Attention::take_queries(const Step& step, const Task& task, const Strip& strip, Workspace& space) const {
  const auto query = [&](std::int64_t r) {
    return step.query.floats(task.sequence, strip.rows[r].query, strip.rows[r].head);
  };
  StripSoftmax& softmax = *strip.softmax;
  std::fill(std::begin(softmax.largest), std::end(softmax.largest), minus_infinity);
  std::fill(std::begin(softmax.sum), std::end(softmax.sum), 0.0f);
  const char* pointers[most_strip_rows];
  for (std::int64_t r = 0; r < strip.count; ++r) {
    if (r < strip.left) fetch_row(query(kernels_.strip + r), qk_dim_ * std::int64_t{sizeof(float)});
    if (sinks_) {
      softmax.largest[r] = (*sinks_)(strip.rows[r].head);
      softmax.sum[r] = 1;
    }
    const float* row = query(r);
    if (!step.query.channels_adjacent()) {
      float* const copy = space.extra + r * qk_dim_;
      copy_elements(Storage::f32, row, step.query.channel, copy, 1, qk_dim_);
      row = copy;
    }
    pointers[r] = reinterpret_cast<const char*>(row);
  }
  kernels_.pack({Storage::f32, pointers, strip.count, qk_dim_}, nullptr, 0, kernels_.lanes, space.staged);
  kernels_.transpose(space.staged, qk_dim_, strip.queries);
  std::fill_n(strip.blended, kernels_.strip * padded(v_dim_), 0.0f);
}

/// Attends to one tile, while a portion of the next one comes in: many rows asked for at once would have to wait for
/// each other.
void Attention::attend_tile(const Step& step, const Task& task, std::int64_t tile, const Strip& strip,
                            Workspace& space) const {
  const std::int64_t portion = parts_of(tile_keys, parts_of(task.count, kernels_.strip));
  const auto in_tile = [&](std::int64_t position) { return std::clamp<std::int64_t>(position - tile, 0, tile_keys); };
  const TileRange range{in_tile(strip.rows[0].seen.begin), in_tile(strip.rows[strip.count - 1].seen.end)};
  const bool any = range.begin < range.end;  // Else nobody sees any of it.
  bring(step.key, task, *space.key_source, portion, space.next_keys);
  if (any) {
    kernels_.multiply(strip.queries, space.keys, qk_dim_, range, space.scores);
    weigh(step, task, tile, strip, range, space);
  }
  bring(step.value, task, *space.value_source, portion, space.next_values);
  if (any) kernels_.blend(space.scores, strip.softmax->factor, space.values, v_dim_, range, strip.blended);
}

/// Turns the scores of a strip into weights.
void Attention::weigh(const Step& step, const Task& task, std::int64_t tile, const Strip& strip, TileRange range,
                      Workspace& space) const {
  const Row* const rows = strip.rows;
  // What a row sees begins and ends no earlier than the row's before it.
  const bool all_seen = rows[strip.count - 1].seen.begin <= tile + range.begin && rows[0].seen.end >= tile + range.end;
  if (all_seen && strip.count == kernels_.strip && logits_.only_scales(step.mask)) {
    kernels_.weigh(space.scores, nullptr, range, logits_.scale(), *strip.softmax);
    return;
  }
  const std::int64_t to_position = step.extents.total(task.sequence) - step.extents.queries[task.sequence];
  float scale = 1;
  TileRange seen[most_strip_rows];
  std::fill(std::begin(seen), std::end(seen), TileRange{range.begin, range.begin});
  for (std::int64_t r = 0; r < strip.count; ++r) {
    const std::int64_t begin = std::clamp(rows[r].seen.begin - tile, range.begin, range.end);
    const std::int64_t end = std::clamp(rows[r].seen.end - tile, begin, range.end);
    seen[r] = {begin, end};
    const LogitRow row{task.sequence, rows[r].head, rows[r].query, to_position + rows[r].query,
                       tile + begin,  end - begin};
    scale = logits_.finish(row, step.mask, space.scores + r * tile_keys + begin, space.extra);
  }
  kernels_.weigh(space.scores, seen, range, scale, *strip.softmax);
}

/// Packs and appends the rows asked for, and asks for the next ones.
void Attention::bring(const KvRows& of, const Task& task, TileSource& source, std::int64_t rows, float* panels) const {
  const abi::KeyRange packed = source.pack(panels);
  append(of, task, packed.begin, packed.end);
  source.fetch(rows);
}

/// Of positions [first, end) those that are the task's to append.
void Attention::append(const KvRows& of, const Task& task, std::int64_t first, std::int64_t end) const {
  if (of.slots() == nullptr) return;
  first = std::max(first, task.appended.begin), end = std::min(end, task.appended.end);
  const Heads &from = of.fresh(), &to = *of.slots();
  const std::int64_t past = of.past(task.sequence);  // All of it, where few queries are not few enough to decode.
  for (std::int64_t position = std::max(first, past); position < end; ++position) {
    put(from.floats(task.sequence, position - past, task.kv_head), from.channel, from.width,
        to.floats(task.sequence, position, task.kv_head), to.channel);
  }
}

/// Copies a row that this step does not read again.
void Attention::put(const float* row, std::int64_t from_channel, std::int64_t width, float* to,
                    std::int64_t to_channel) const {
  if (width == 1 || (from_channel == 1 && to_channel == 1)) {
    kernels_.stream(row, width, to);
  } else {
    copy_elements(Storage::f32, row, from_channel, to, to_channel, width);
  }
}

void Attention::finish(const Step& step, const Task& task, const Strip& strip) const {
  for (std::int64_t r = 0; r < strip.count; ++r) {
    const Row& row = strip.rows[r];
    const float largest = strip.softmax->largest[r], sum = strip.softmax->sum[r];
    float* const blended = strip.blended + r * padded(v_dim_);
    if (sum > 0) kernels_.divide(blended, v_dim_, sum);  // Else it has seen nothing, and they are zeros.
    put(blended, 1, v_dim_, step.output.floats(task.sequence, row.query, row.head), step.output.channel);
    if (step.lse) {
      const double lse = static_cast<double>(largest) + std::log(static_cast<double>(sum));
      step.lse->set(static_cast<float>(lse), task.sequence, row.query, row.head, 0);
    }
  }
}

}  // namespace attest::onednn
