// SPDX-License-Identifier: Apache-2.0
#include "flash_decode.h"

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>

#include "convert.h"
#include "threads.h"

namespace attest::onednn {

namespace {

constexpr float minus_infinity = -std::numeric_limits<float>::infinity();

// Queries of a sequence times query heads of a group. With more, each row is multiplied so often that blocked matrix
// products win.
constexpr std::int64_t most_rows = 32;

// Keys of a chunk, the unit that threads share: its keys are read, then its values, for memory likes long runs. Where
// the heads of a token lie side by side, fewer keys are a long run. It does not depend on the number of threads, nor on
// the batch, so neither do the results.
constexpr std::int64_t least_chunk_keys = 128, most_chunk_keys = 4096, most_adjacent_keys = 256;
std::int64_t chunk_keys(std::int64_t keys, std::int64_t kv_heads, bool heads_adjacent) {
  const std::int64_t most = heads_adjacent ? most_adjacent_keys : most_chunk_keys;
  // Some chunks for each of many threads.
  const std::int64_t share = heads_adjacent ? keys / 8 : keys * kv_heads / 16;
  std::int64_t chunk = least_chunk_keys;
  while (2 * chunk <= std::min(share, most)) chunk *= 2;
  return chunk;
}

// Sums of a chunk's heads, which are added to for each token; they and what is fetched share the first-level cache.
constexpr std::int64_t most_sum_bytes = 32 * 1024;

void multiply(float* to, std::int64_t count, const float* factors) {
  for (std::int64_t i = 0; i < count; ++i) to[i] *= factors[i];
}

}  // namespace

FlashDecode::FlashDecode(const attest_problem& problem, int threads, const RowKernels& kernels)
    : problem_(problem),
      group_(problem.query_heads / problem.kv_heads),
      qk_dim_(problem.qk_head_dim),
      v_dim_(problem.v_head_dim),
      kernels_(kernels),
      logits_(problem),
      spaces_(static_cast<std::size_t>(threads)) {}

bool FlashDecode::takes(const AttentionStep& step, std::int64_t b) const {
  const std::int64_t queries = step.extents.queries[b];
  return queries <= most_queries && queries * group_ <= most_rows && step.key.rows_adjacent() &&
         step.value.rows_adjacent();
}

/// KV heads of a chunk with so many `rows` a head, where the step has `tasks` of one head; more than one if a token's
/// heads are `adjacent`. No result depends on it.
std::int64_t FlashDecode::heads_at_once(bool adjacent, std::int64_t tasks, std::int64_t rows) const {
  if (!adjacent) return 1;
  // Every thread shall have a few chunks.
  const std::int64_t some = tasks / (2 * static_cast<std::int64_t>(spaces_.size()));
  const std::int64_t near = most_sum_bytes / (rows * padded(v_dim_) * static_cast<std::int64_t>(sizeof(float)));
  return std::clamp<std::int64_t>(std::min(some, near), 1, problem_.kv_heads);
}

/// Lists the chunks, and answers how many rows their parts have.
std::int64_t FlashDecode::cut(const AttentionStep& step) {
  chunks_.clear();
  wholes_.clear();
  const bool adjacent = step.key.heads_adjacent() && step.value.heads_adjacent();
  std::int64_t place = 0, tasks = 0;
  for (std::int64_t b = 0; b < problem_.batch; ++b) {
    const std::int64_t queries = step.extents.queries[b], total = step.extents.total(b), rows = queries * group_;
    if (queries == 0 || !takes(step, b)) continue;
    // A sequence without visible keys has one empty chunk, so that its rows get a result.
    const abi::KeyRange seen = seen_by(problem_, {0, queries}, queries, total);
    const std::int64_t keys = chunk_keys(seen.end - seen.begin, problem_.kv_heads, adjacent);
    const std::int64_t count = std::max<std::int64_t>(1, (seen.end - seen.begin + keys - 1) / keys);
    for (std::int64_t h = 0; h < problem_.kv_heads; ++h) {
      wholes_.push_back({b, h, rows, place + h * rows, count, problem_.kv_heads * rows, count});
    }
    place += count * problem_.kv_heads * rows;
    tasks += count * problem_.kv_heads;
  }
  for (std::size_t i = 0; i < wholes_.size(); i += static_cast<std::size_t>(problem_.kv_heads)) {
    const Whole& whole = wholes_[i];
    const std::int64_t b = whole.sequence, at_once = heads_at_once(adjacent, tasks, whole.rows);
    const std::int64_t queries = step.extents.queries[b];
    const abi::KeyRange seen = seen_by(problem_, {0, queries}, queries, step.extents.total(b));
    const std::int64_t keys = chunk_keys(seen.end - seen.begin, problem_.kv_heads, adjacent);
    for (std::int64_t n = 0; n < whole.count; ++n) {
      const std::int64_t first = seen.begin + n * keys, end = std::min(first + keys, seen.end);
      for (std::int64_t h = 0; h < problem_.kv_heads; h += at_once) {
        chunks_.push_back({b, h, std::min(at_once, problem_.kv_heads - h), first, end, whole.rows,
                           whole.place + n * whole.apart + h * whole.rows, i + static_cast<std::size_t>(h)});
      }
    }
  }
  return place;
}

/// A chunk's rows from key `from` on, as many as lie evenly.
RowRun FlashDecode::run_at(const KvRows& of, const Chunk& chunk, std::int64_t from) {
  RowRun run = of.run(chunk.sequence, from, chunk.end);
  run.data += chunk.kv_head * run.head_bytes;
  return run;
}

/// Calls visit(rows, at) for blocks of a chunk's rows: of all its heads, from its key `at` on, of one storage. Memory
/// is fetched in its own order; then() is asked once, just before the last rows, for what comes behind them.
template <class Then, class Visit>
void FlashDecode::each_block(const KvRows& of, std::int64_t width, const Chunk& chunk, Then&& then, Visit&& visit) {
  RowRun next = run_at(of, chunk, chunk.first);
  for (std::int64_t from = chunk.first; from < chunk.end;) {
    const RowRun run = next;
    const std::int64_t bytes = width * static_cast<std::int64_t>(abi::bytes_of(run.storage));
    const std::int64_t unit = read_in_turn(run.storage, chunk.rows) ? 1 : most_beside(run.storage, chunk.rows);
    const std::int64_t units = std::max<std::int64_t>(1, bytes_ahead / (chunk.heads * bytes * unit));
    const std::int64_t last = std::min(run.count, units * unit);
    const auto visit_rows = [&](std::int64_t row, std::int64_t count, const RowRun& ahead, std::int64_t row_ahead) {
      if (count == 0) return;
      visit(RowBlock{run.storage, run.data + row * run.row_bytes, run.row_bytes, count, width, chunk.heads,
                     run.head_bytes, ahead.data + row_ahead * ahead.row_bytes, ahead.row_bytes, ahead.head_bytes},
            from + row - chunk.first);
    };
    // The last rows of a run fetch the first ones of the next.
    visit_rows(0, run.count - last, run, last);
    next = from + run.count < chunk.end ? run_at(of, chunk, from + run.count) : then();
    visit_rows(run.count - last, last, next, 0);
    from += run.count;
  }
}

void FlashDecode::run(const AttentionStep& step) {
  const std::int64_t rows = cut(step);
  if (rows == 0) return;
  late_scale_ = logits_.late_scale(step.mask);
  parts_.resize(static_cast<std::size_t>(rows));
  (void)blended_.get(rows * padded(v_dim_));
  std::int64_t multiply_adds = 0, floats = 0;
  for (const Chunk& chunk : chunks_) {
    multiply_adds += chunk.heads * chunk.rows * (chunk.end - chunk.first) * (qk_dim_ + v_dim_);
    const std::int64_t taken = chunk.heads * chunk.rows, leading = leading_of(chunk);
    floats = std::max(floats, taken * (padded(qk_dim_) + leading) + leading);
  }
  for (const Whole& whole : wholes_) floats = std::max(floats, padded(whole.count + 1) + padded(v_dim_));
  const auto chunks = static_cast<std::int64_t>(chunks_.size());
  const int threads =
      static_cast<int>(std::min<std::int64_t>(chunks, threads_for(multiply_adds, static_cast<int>(spaces_.size()))));
  // What may fail for lack of memory comes first: an exception must not leave a parallel region.
  for (int i = 0; i < threads; ++i) {
    (void)spaces_[static_cast<std::size_t>(i)].get(floats);
  }
  TaskQueue<Chunk> queue(chunks_, threads);
  // Parts are joined in the same region: waiting for each other twice would cost more than it saves where the step is
  // short.
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    Scratch& space = spaces_[static_cast<std::size_t>(omp_get_thread_num())];
    const Chunk* early = nullptr;
    while (const Chunk* const chunk = early != nullptr ? early : queue.take()) {
      early = attend(step, *chunk, queue, space);
      for (std::size_t i = chunk->whole; i < chunk->whole + static_cast<std::size_t>(chunk->heads); ++i) {
        const std::int64_t left = std::atomic_ref(wholes_[i].left).fetch_sub(1, std::memory_order_acq_rel);
        if (left == 1) join(step, wholes_[i], space);
      }
    }
  }
}

/// Row r of a head is query token r / group of the group's head r % group: the whole group shares each pass over its
/// keys. Answers the chunk that it has taken to follow, if any: its first keys, if it has any, are on their way then.
const FlashDecode::Chunk* FlashDecode::attend(const AttentionStep& step, const Chunk& chunk, TaskQueue<Chunk>& queue,
                                              Scratch& space) {
  const std::int64_t b = chunk.sequence, rows = chunk.rows, all = chunk.heads * rows, wide = padded(qk_dim_);
  const std::int64_t first = chunk.first, end = chunk.end, count = end - first, leading = leading_of(chunk);
  float* const query = space.get(0);
  float* const products = query + all * wide;
  float* const factors = products + all * leading;
  for (std::int64_t r = 0; r < all; ++r) {
    const std::int64_t head = (chunk.kv_head + r / rows) * group_ + r % rows % group_;
    const float* const from = step.query.floats(b, r % rows / group_, head);
    decode(Storage::f32, from, step.query.channel, qk_dim_, 1, query + r * wide);
    std::fill(query + r * wide + qk_dim_, query + (r + 1) * wide, 0.0f);
    parts_[static_cast<std::size_t>(chunk.place + r)] = {minus_infinity, 0};
  }
  float* const blended = blended_.get(0) + chunk.place * padded(v_dim_);
  std::fill(blended, blended + all * padded(v_dim_), 0.0f);
  if (count <= 0) return nullptr;

  const auto scale = [&](const KvRows& of) {
    if (!of.scaled()) return;
    for (std::int64_t h = 0; h < chunk.heads; ++h) {
      of.scales(b, chunk.kv_head + h, first, end, factors);
      for (std::int64_t r = h * rows; r < (h + 1) * rows; ++r) multiply(products + r * leading, count, factors);
    }
  };
  const Chunk* next = nullptr;
  const auto values = [&] { return run_at(step.value, chunk, first); };
  const auto take_next = [&] {
    next = queue.take_early();
    // Kernels that fetch nothing go another way; asking for its own keys again costs little.
    const Chunk& after = next != nullptr && next->first < next->end ? *next : chunk;
    return run_at(step.key, after, after.first);
  };
  each_block(step.key, qk_dim_, chunk, values, [&](const RowBlock& block, std::int64_t at) {
    kernels_.multiply(block, query, rows, products + at, leading);
  });
  scale(step.key);
  weigh(step, chunk, products, factors);
  scale(step.value);
  each_block(step.value, v_dim_, chunk, take_next, [&](const RowBlock& block, std::int64_t at) {
    kernels_.blend(block, products + at, leading, rows, blended);
  });
  return next;
}

/// Turns the products into weights relative to the row's largest logit.
void FlashDecode::weigh(const AttentionStep& step, const Chunk& chunk, float* products, float* space) {
  const std::int64_t b = chunk.sequence, queries = step.extents.queries[b], total = step.extents.total(b);
  const std::int64_t leading = leading_of(chunk);
  for (std::int64_t r = 0; r < chunk.heads * chunk.rows; ++r) {
    const std::int64_t i = r % chunk.rows / group_,
                       head = (chunk.kv_head + r / chunk.rows) * group_ + r % chunk.rows % group_;
    float* const row = products + r * leading;
    const abi::KeyRange range = abi::visible_keys(problem_, i, queries, total);
    const std::int64_t begin = std::clamp(range.begin, chunk.first, chunk.end);
    const std::int64_t end = std::clamp(range.end, begin, chunk.end), before = begin - chunk.first;
    std::fill(row, row + before, 0.0f);
    const LogitRow logits{b, head, i, total - queries + i, begin, end - begin};
    if (!late_scale_) logits_.finish(logits, step.mask, row + before, space);
    parts_[static_cast<std::size_t>(chunk.place + r)] =
        kernels_.exponentials(row + before, end - begin, late_scale_.value_or(1));
    std::fill(row + (end - chunk.first), row + (chunk.end - chunk.first), 0.0f);
  }
}

/// Joins the parts of a sequence and KV head (clause E2), in the order of their keys.
void FlashDecode::join(const AttentionStep& step, const Whole& whole, Scratch& space) {
  const float scale = late_scale_.value_or(1);
  float* const factors = space.get(0);
  float* const row = factors + padded(whole.count + 1);
  const auto part = [&](std::int64_t n, std::int64_t r) -> const RowSum& {
    return parts_[static_cast<std::size_t>(whole.place + n * whole.apart + r)];
  };
  for (std::int64_t r = 0; r < whole.rows; ++r) {
    const std::int64_t i = r / group_, head = whole.kv_head * group_ + r % group_;
    // A part counts as its largest score does, and a sink as a part whose sum is 1.
    for (std::int64_t n = 0; n < whole.count; ++n) factors[n] = part(n, r).largest;
    factors[whole.count] = logits_.sink(head) / scale;
    const float largest = kernels_.exponentials(factors, whole.count + 1, scale).largest;
    double sum = static_cast<double>(factors[whole.count]);
    for (std::int64_t n = 0; n < whole.count; ++n) sum += static_cast<double>(part(n, r).sum * factors[n]);
    std::fill(row, row + padded(v_dim_), 0.0f);
    if (sum != 0) {
      for (std::int64_t n = 0; n < whole.count; ++n) factors[n] /= static_cast<float>(sum);
      const float* const first = blended_.get(0) + (whole.place + r) * padded(v_dim_);
      const RowBlock parts{Storage::f32, reinterpret_cast<const char*>(first),
                           whole.apart * padded(v_dim_) * static_cast<std::int64_t>(sizeof(float)), whole.count,
                           v_dim_};
      kernels_.blend(parts, factors, whole.count, 1, row);
    }
    copy_elements(Storage::f32, row, 1, step.output.floats(whole.sequence, i, head), step.output.channel, v_dim_);
    if (step.lse) {
      step.lse->set(static_cast<float>(static_cast<double>(largest) * static_cast<double>(scale) + std::log(sum)),
                    whole.sequence, i, head, 0);
    }
  }
}

}  // namespace attest::onednn
