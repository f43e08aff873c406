// SPDX-License-Identifier: Apache-2.0
#include "attention.h"

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <oneapi/dnnl/dnnl.hpp>
#include <stdexcept>

#include "convert.h"
#include "softmax.h"
#include "threads.h"

namespace attest::onednn {

namespace {

// Rows of a block's score matrix. More share each pass over the keys; fewer waste less on the diagonal.
constexpr std::int64_t block_rows = 64;
// Most scores of a block, 2 MiB of them: longer contexts take fewer rows at a time.
constexpr std::int64_t block_scores = 512 * 1024;

}  // namespace

Attention::Attention(const attest_problem& problem, int threads, const RowKernels& kernels)
    : kv_heads_(problem.kv_heads),
      group_(problem.query_heads / problem.kv_heads),
      qk_dim_(problem.qk_head_dim),
      v_dim_(problem.v_head_dim),
      problem_(problem),
      logits_(problem),
      decode_(problem, threads, kernels),
      scratch_(static_cast<std::size_t>(threads)) {
  if (problem.sinks != nullptr) sinks_.emplace(*problem.sinks);
}

void Attention::run(const Step& step) {
  decode_.run(step);
  std::vector<Task> tasks;
  std::int64_t space = 0, multiply_adds = 0;
  for (std::int64_t b = 0; b < problem_.batch; ++b) {
    if (decode_.takes(step, b)) continue;
    const std::int64_t queries = step.extents.queries[b], keys = std::max<std::int64_t>(step.extents.total(b), 1);
    const std::int64_t rows = std::min(block_rows, block_scores / keys);
    const std::int64_t tokens = std::max<std::int64_t>(1, rows / group_);
    multiply_adds += queries * step.extents.total(b) * kv_heads_ * group_ * (qk_dim_ + v_dim_);
    for (std::int64_t h = 0; h < kv_heads_; ++h) {
      for (std::int64_t first = 0; first < queries; first += tokens) {
        tasks.push_back({b, h, first, std::min(tokens, queries - first)});
      }
    }
    // Scores (their rows up to 32 wider than the keys), queries, results, sums, and a row of the mask.
    space = std::max(space, tokens * group_ * (keys + 32 + qk_dim_ + v_dim_ + 1) + keys);
  }
  if (tasks.empty()) return;
  space += std::max(step.key.space(), step.value.space());
  // Causal: the last queries see the most keys. Starting with them leaves the short tasks for the end.
  if (problem_.causal != ATTEST_CAUSAL_NONE) {
    std::stable_sort(tasks.begin(), tasks.end(), [](const Task& a, const Task& b) { return a.first > b.first; });
  }
  const auto count = static_cast<std::int64_t>(tasks.size());
  const int most = threads_for(multiply_adds, static_cast<int>(scratch_.size()));
  const ThreadScope scope(most);
  const int threads = static_cast<int>(std::min<std::int64_t>(count, most));
  for (int i = 0; i < threads; ++i) (void)scratch_[static_cast<std::size_t>(i)].get(space);

  // An exception must not leave a parallel region, so failure comes out as a flag. In a region sgemm keeps to its
  // thread; a single task is run outside of one and gets them all.
  std::atomic<bool> failed{false};
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1)
  for (std::int64_t i = 0; i < count; ++i) {
    Scratch& scratch = scratch_[static_cast<std::size_t>(omp_get_thread_num())];
    if (!attend(step, tasks[static_cast<std::size_t>(i)], scratch)) failed = true;
  }
  if (failed) throw std::runtime_error("dnnl_sgemm refused a product");
}

/// Turns the dot products of a row into its softmax weights, times their sum, which it answers; 0 if nothing is visible
/// and there is no sink. Writes the LSE. The row's keys are followed by `columns - row.count` that it does not see.
double Attention::weigh(const Step& step, const LogitRow& row, std::int64_t columns, float* logits,
                        float* space) const {
  const float scale = logits_.finish(row, step.mask, logits, space);
  const float sink = sinks_ ? (*sinks_)(row.head) : -std::numeric_limits<float>::infinity();
  RowSum result = exponentials(logits, row.count, columns, scale, sink);
  if (sinks_) result.sum += std::exp(static_cast<double>(sink) - static_cast<double>(result.largest));
  if (step.lse) {
    const double lse = static_cast<double>(result.largest) + std::log(result.sum);
    step.lse->set(static_cast<float>(lse), row.sequence, row.query, row.head, 0);
  }
  return result.sum;
}

/// False if a product failed.
bool Attention::attend(const Step& step, const Task& task, Scratch& scratch) const {
  const std::int64_t b = task.sequence, total = step.extents.total(b), queries = step.extents.queries[b];
  const std::int64_t rows = task.count * group_, first_head = task.kv_head * group_;
  // The block's products go over the keys that any of its queries sees: from the first one's to the last one's.
  const std::int64_t start = abi::visible_keys(problem_, task.first, queries, total).begin;
  const std::int64_t end = abi::visible_keys(problem_, task.first + task.count - 1, queries, total).end;
  const std::int64_t keys = std::max<std::int64_t>(end - start, 0);
  // A leading dimension of a power of two would put all rows into the same few cache sets.
  const std::int64_t leading = (keys + 15) / 16 * 16 + 16;
  float* const scores = scratch.get(0);
  float* const query = scores + rows * leading;
  float* const blend = query + rows * qk_dim_;
  float* const sums = blend + rows * v_dim_;
  float* const row_space = sums + rows;
  float* const tile = row_space + keys;

  // Row r is query token r / group of head r % group: the whole group shares each pass over its keys.
  for (std::int64_t r = 0; r < rows; ++r) {
    const float* const from = step.query.floats(b, task.first + r / group_, first_head + r % group_);
    decode(Storage::f32, from, step.query.channel, qk_dim_, 1, query + r * qk_dim_);
  }
  for (std::int64_t at = start; at < end;) {
    const Matrix key = step.key.matrix(b, task.kv_head, at, end, tile);
    // The scale waits for the softmax: sgemm would round it into every element before the products.
    if (dnnl::sgemm('N', 'T', rows, key.rows, qk_dim_, 1.0f, query, qk_dim_, key.data, key.leading, 0.0f,
                    scores + (at - start), leading) != dnnl::status::success) {
      return false;
    }
    at += key.rows;
  }
  for (std::int64_t r = 0; r < rows; ++r) {
    const std::int64_t i = task.first + r / group_;
    const abi::KeyRange seen = abi::visible_keys(problem_, i, queries, total);
    float* const row = scores + r * leading;
    const std::int64_t before = std::min(seen.begin - start, keys);
    std::fill(row, row + before, 0.0f);
    const LogitRow logits{b, first_head + r % group_, i, total - queries + i, seen.begin, seen.end - seen.begin};
    sums[r] = static_cast<float>(weigh(step, logits, keys - before, row + before, row_space));
  }
  float beta = 0;
  for (std::int64_t at = start; at < end;) {
    const Matrix value = step.value.matrix(b, task.kv_head, at, end, tile);
    if (dnnl::sgemm('N', 'N', rows, v_dim_, value.rows, 1.0f, scores + (at - start), leading, value.data, value.leading,
                    beta, blend, v_dim_) != dnnl::status::success) {
      return false;
    }
    at += value.rows;
    beta = 1;
  }
  for (std::int64_t r = 0; r < rows; ++r) {
    float* const to = step.output.floats(b, task.first + r / group_, first_head + r % group_);
    // No visible key: the row of scores is all zeros, or there is none.
    const bool empty = keys == 0 || sums[r] == 0;
    for (std::int64_t c = 0; c < v_dim_; ++c) to[c * step.output.channel] = empty ? 0 : blend[r * v_dim_ + c] / sums[r];
  }
  return true;
}

}  // namespace attest::onednn
