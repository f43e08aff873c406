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

void fetch(const RowsAhead& ahead) {
  for (std::int64_t i = 0; i < ahead.count; ++i) fetch_row(ahead.row[i], ahead.bytes);
}

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
      spaces_(static_cast<std::size_t>(threads)) {}

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
        const abi::KeyRange seen =
            seen_by(problem_, {first / group_, (end - 1) / group_ + 1}, step.extents.queries[b], step.extents.total(b));
        tasks.push_back({b, h, first, end - first, seen, {position(first), position(end)}});
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
  late_scale_ = logits_.late_scale(step.mask);
  TaskQueue<Task> queue(tasks, threads);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    Workspace& space = spaces_[static_cast<std::size_t>(omp_get_thread_num())];
    while (const Task* task = queue.take()) {
      list(step, *task, task->seen.begin, space);
      bring_rest(step, *task, space);
      while (task != nullptr) task = attend(step, *task, queue, space);
    }
    settle_streams();
  }
}

/// For tasks of so many rows.
void Attention::lay_out(Workspace& space, std::int64_t rows) const {
  const std::int64_t strips = parts_of(rows, kernels_.strip);
  const std::pair<float**, std::int64_t> parts[] = {{&space.queries, strips * strip_queries()},
                                                    {&space.keys, tile_keys * qk_dim_},
                                                    {&space.values, tile_keys * padded(v_dim_)},
                                                    {&space.next_keys, tile_keys * qk_dim_},
                                                    {&space.next_values, tile_keys * padded(v_dim_)},
                                                    {&space.blended, strips * kernels_.strip * padded(v_dim_)},
                                                    {&space.extra, tile_keys}};
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

/// The keys and values of the tile with position `at`, of those that the task sees.
void Attention::list(const Step& step, const Task& task, std::int64_t at, Workspace& space) const {
  const std::int64_t first = std::max(at / tile_keys * tile_keys, task.seen.begin);
  const std::int64_t end = std::max(first, std::min((at / tile_keys + 1) * tile_keys, task.seen.end));
  space.key_source->list(step.key, task.sequence, task.kv_head, first, end);
  space.value_source->list(step.value, task.sequence, task.kv_head, first, end);
}

/// Attends to a task whose first tile is there as the next one, and answers the task that it has taken to follow, if
/// any: its first tile is there then.
const Attention::Task* Attention::attend(const Step& step, const Task& task, TaskQueue<Task>& queue,
                                         Workspace& space) const {
  list_rows(step, task, 0, task.count, space.rows.data());
  for (const KvRows* const of : {&step.key, &step.value}) {  // What it does not see.
    append(*of, task, task.appended.begin, task.seen.begin);
    append(*of, task, task.seen.end, task.appended.end);
  }
  // A strip goes through the tiles from its first row's first key on to its last row's last one; without any key
  // through one that it does not see, for its results are zeros. No strip begins or ends before the one before it.
  const std::int64_t strips = parts_of(task.count, kernels_.strip);
  const Row* const rows = space.rows.data();
  const auto first_tile = [&](std::int64_t s) { return rows[s * kernels_.strip].seen.begin / tile_keys * tile_keys; };
  const auto last_tile = [&](std::int64_t s) {
    const Row& row = rows[std::min((s + 1) * kernels_.strip, task.count) - 1];
    return std::max(first_tile(s), (row.seen.end - 1) / tile_keys * tile_keys);
  };
  const Task* coming = &task;  // Whose tile comes in.
  std::int64_t begun = 0, done = 0;
  for (std::int64_t tile = task.seen.begin / tile_keys * tile_keys; done < strips; tile += tile_keys) {
    std::swap(space.keys, space.next_keys), std::swap(space.values, space.next_values);
    const bool last = tile == last_tile(strips - 1);
    if (last) coming = queue.take_early();
    if (coming != nullptr) list(step, *coming, last ? coming->seen.begin : tile + tile_keys, space);
    const std::int64_t taken = begun;
    while (begun < strips && first_tile(begun) == tile) ++begun;
    // The last strip packs what the one before has asked for.
    const std::int64_t from = done, portion = parts_of(tile_keys, std::max<std::int64_t>(1, begun - from - 1));
    const Coming arriving{coming, portion};
    const auto taken_after = [&](std::int64_t s) -> RowsAhead {  // Queries.
      if (s + 1 >= taken && s + 1 < begun) return queries_of(step, task, strip_of(task, s + 1, tile, space), space);
      if (!last || s + 1 < strips || coming == nullptr) return {};
      Row first[most_strip_rows];
      Strip strip{};
      strip.rows = first, strip.count = std::min(kernels_.strip, coming->count);
      list_rows(step, *coming, 0, strip.count, first);
      return queries_of(step, *coming, strip, space);
    };
    // A strip's exponentials are taken beside the products of the one before, which waits for them.
    Strip before{};
    for (std::int64_t s = from; s <= begun; ++s) {
      Strip strip{};
      if (s < begun) {
        strip = strip_of(task, s, tile, space);
        if (s >= taken) take_queries(step, task, strip);
        score(step, task, tile, strip, arriving, taken_after(s), space);
      }
      if (s > from) {
        blend(step, before, arriving, strip.sees() ? strip.scores : nullptr, space);
        if (last_tile(s - 1) == tile) finish(step, task, before), ++done;
      }
      if (strip.sees()) kernels_.end_weights(*strip.scores, *strip.softmax);
      before = strip;
    }
    if (coming != nullptr) bring_rest(step, *coming, space);
  }
  return coming;
}

/// A task's rows [first, first + count).
void Attention::list_rows(const Step& step, const Task& task, std::int64_t first, std::int64_t count, Row* rows) const {
  const std::int64_t b = task.sequence;
  std::int64_t query = (task.first + first) / group_, member = (task.first + first) % group_;
  for (std::int64_t r = 0; r < count; ++r) {
    const bool same_query = r > 0 && member > 0;
    rows[r] = {query, task.kv_head * group_ + member,
               same_query ? rows[r - 1].seen
                          : abi::visible_keys(problem_, query, step.extents.queries[b], step.extents.total(b))};
    if (++member == group_) ++query, member = 0;
  }
}

/// A task's strip number s, at a tile.
Attention::Strip Attention::strip_of(const Task& task, std::int64_t s, std::int64_t tile, Workspace& space) const {
  const std::int64_t from = s * kernels_.strip, count = std::min(kernels_.strip, task.count - from);
  const auto in_tile = [&](std::int64_t position) { return std::clamp<std::int64_t>(position - tile, 0, tile_keys); };
  const Row* const rows = space.rows.data() + from;
  return {rows,
          count,
          {in_tile(rows[0].seen.begin), in_tile(rows[count - 1].seen.end)},
          space.queries + s * strip_queries(),
          space.blended + from * padded(v_dim_),
          &space.softmax[static_cast<std::size_t>(s)],
          &space.scores[s % 2]};
}

/// A strip's queries.
RowsAhead Attention::queries_of(const Step& step, const Task& task, const Strip& strip, Workspace& space) const {
  for (std::int64_t r = 0; r < strip.count; ++r) {
    const Row& row = strip.rows[r];
    space.soon[r] = reinterpret_cast<const char*>(step.query.floats(task.sequence, row.query, row.head));
  }
  return {space.soon, strip.count, qk_dim_ * std::int64_t{sizeof(float)}};
}

/// Floats of a strip's queries.
std::int64_t Attention::strip_queries() const {
  return kernels_.strip * parts_of(qk_dim_, query_part) * query_part;
}

/// The queries, and the softmax before any key.
void Attention::take_queries(const Step& step, const Task& task, const Strip& strip) const {
  StripSoftmax& softmax = *strip.softmax;
  std::fill(std::begin(softmax.largest), std::end(softmax.largest), minus_infinity);
  std::fill(std::begin(softmax.sum), std::end(softmax.sum), 0.0f);
  for (std::int64_t r = 0; r < strip.count; ++r) {
    const Row& row = strip.rows[r];
    // A sink counts as a key that is already there.
    softmax.largest[r] = logits_.sink(row.head) / late_scale_.value_or(1);
    if (softmax.largest[r] != minus_infinity) softmax.sum[r] = 1;
    const float* const query = step.query.floats(task.sequence, row.query, row.head);
    float* to = strip.queries + r * query_part;
    for (std::int64_t c = 0; c < qk_dim_; c += query_part, to += kernels_.strip * query_part) {
      copy_elements(Storage::f32, query + c * step.query.channel, step.query.channel, to, 1,
                    std::min(query_part, qk_dim_ - c));
    }
  }
  softmax.begun = false;
}

/// The way to a strip's weights up to the exponentials. Its scores stay as they are if it sees nothing of the tile.
void Attention::score(const Step& step, const Task& task, std::int64_t tile, const Strip& strip, const Coming& coming,
                      const RowsAhead& queries, Workspace& space) const {
  Ahead ahead{{}, queries};
  if (coming.task != nullptr) {
    bring(step.key, *coming.task, *space.key_source, space.next_keys);
    ahead.rows = space.key_source->fetch(coming.portion);
  }
  if (!strip.sees()) {
    fetch(ahead.rows), fetch(ahead.more);
    return;
  }
  StripScores& scores = *strip.scores;
  const TileRange range = strip.range;
  kernels_.multiply(strip.queries, space.keys, qk_dim_, range, ahead, scores);
  const Row* const rows = strip.rows;
  // What a row sees begins and ends no earlier than the row's before it.
  const bool all_seen = rows[strip.count - 1].seen.begin <= tile + range.begin && rows[0].seen.end >= tile + range.end;
  if (all_seen && strip.count == kernels_.strip && late_scale_) {
    kernels_.begin_weights(scores, nullptr, range, *late_scale_, *strip.softmax);
    return;
  }
  const std::int64_t to_position = step.extents.total(task.sequence) - step.extents.queries[task.sequence];
  TileRange seen[most_strip_rows];
  std::fill(std::begin(seen), std::end(seen), TileRange{range.begin, range.begin});
  for (std::int64_t r = 0; r < strip.count; ++r) {
    const std::int64_t begin = std::clamp(rows[r].seen.begin - tile, range.begin, range.end);
    const std::int64_t end = std::clamp(rows[r].seen.end - tile, begin, range.end);
    seen[r] = {begin, end};
    if (late_scale_) continue;
    const LogitRow row{task.sequence, rows[r].head, rows[r].query, to_position + rows[r].query,
                       tile + begin,  end - begin};
    logits_.finish(row, step.mask, scores.values + r * tile_keys + begin, space.extra);
  }
  kernels_.begin_weights(scores, seen, range, late_scale_.value_or(1), *strip.softmax);
}

/// Adds the values by a strip's weights, and meanwhile takes the exponentials of the strip after, if it has any.
void Attention::blend(const Step& step, const Strip& strip, const Coming& coming, StripScores* beside,
                      Workspace& space) const {
  Ahead ahead;
  if (coming.task != nullptr) {
    bring(step.value, *coming.task, *space.value_source, space.next_values);
    ahead.rows = space.value_source->fetch(coming.portion);
  }
  if (!strip.sees()) {
    fetch(ahead.rows);
    return;
  }
  const float* const factor = strip.softmax->begun ? strip.softmax->factor : nullptr;
  kernels_.blend(*strip.scores, factor, space.values, v_dim_, strip.range, ahead, beside, strip.blended);
  strip.softmax->begun = true;
}

/// What is left of a tile.
void Attention::bring_rest(const Step& step, const Task& task, Workspace& space) const {
  fetch(space.key_source->fetch(tile_keys)), fetch(space.value_source->fetch(tile_keys));
  bring(step.key, task, *space.key_source, space.next_keys);
  bring(step.value, task, *space.value_source, space.next_values);
}

/// Packs what it can of the rows asked for, and appends those that have come since the last time.
void Attention::bring(const KvRows& of, const Task& task, TileSource& source, float* panels) const {
  const abi::KeyRange arrived = source.pack(panels);
  append(of, task, arrived.begin, arrived.end);
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

/// Likewise of a result, divided.
void Attention::put_result(const float* row, float divisor, float* to, std::int64_t to_channel) const {
  if (v_dim_ == 1 || to_channel == 1) {
    kernels_.stream_divided(row, v_dim_, divisor, to);
  } else {
    for (std::int64_t c = 0; c < v_dim_; ++c) to[c * to_channel] = row[c] / divisor;
  }
}

void Attention::finish(const Step& step, const Task& task, const Strip& strip) const {
  // The results are zeros where a strip has seen nothing, and where a row of it has: its weights were.
  if (!strip.softmax->begun) std::fill_n(strip.blended, kernels_.strip * padded(v_dim_), 0.0f);
  for (std::int64_t r = 0; r < strip.count; ++r) {
    const Row& row = strip.rows[r];
    const float largest = strip.softmax->largest[r], sum = strip.softmax->sum[r];
    put_result(strip.blended + r * padded(v_dim_), sum > 0 ? sum : 1,
               step.output.floats(task.sequence, row.query, row.head), step.output.channel);
    if (step.lse) {
      const double logit = static_cast<double>(largest) * static_cast<double>(late_scale_.value_or(1));
      const double lse = logit + std::log(static_cast<double>(sum));
      step.lse->set(static_cast<float>(lse), task.sequence, row.query, row.head, 0);
    }
  }
}

}  // namespace attest::onednn
