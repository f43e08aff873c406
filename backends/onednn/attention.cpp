// SPDX-License-Identifier: Apache-2.0
#include "attention.h"

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <oneapi/dnnl/dnnl.hpp>
#include <stdexcept>

#include "softmax.h"
#include "threads.h"

namespace attest::onednn {

namespace {

// Rows of a block's score matrix. More share each pass over the keys; fewer waste less on the diagonal.
constexpr std::int64_t block_rows = 64;
// Most scores of a block, 2 MiB of them: longer contexts take fewer rows at a time.
constexpr std::int64_t block_scores = 512 * 1024;

/// Row-major matrix of rows `leading` elements apart.
struct Matrix {
  const float* data;
  std::int64_t leading;
};

/// `count` tokens of one head, from `first` on, as a matrix: in place where sgemm can read them so, else copied to
/// `space`.
Matrix head_matrix(const Tokens<const float>& tokens, std::int64_t b, std::int64_t head, std::int64_t first,
                   std::int64_t count, float* space) {
  const std::int64_t width = tokens.width;
  if (tokens.channels_adjacent() && (tokens.token >= width || count == 1)) {
    return {tokens.at(b, first, head), std::max(tokens.token, width)};
  }
  for (std::int64_t t = 0; t < count; ++t) {
    const float* const from = tokens.at(b, first + t, head);
    for (std::int64_t c = 0; c < width; ++c) space[t * width + c] = from[c * tokens.channel];
  }
  return {space, width};
}

bool in_place(const Tokens<const float>& tokens) {
  return tokens.channels_adjacent() && tokens.token >= tokens.width;
}

}  // namespace

struct Attention::Step {
  const Tokens<const float>&query, &key, &value;
  const Counts &queries, &total;
  const Tokens<float>& output;
  const abi::View<float, 3>* lse;
};

Attention::Attention(const attest_problem& problem, int threads)
    : kv_heads_(problem.kv_heads),
      group_(problem.query_heads / problem.kv_heads),
      qk_dim_(problem.qk_head_dim),
      v_dim_(problem.v_head_dim),
      problem_(problem),
      slopes_(abi::alibi_slopes(problem)),
      scale_(static_cast<float>(problem.scale != 0 ? problem.scale
                                                   : 1 / std::sqrt(static_cast<double>(problem.qk_head_dim)))),
      softcap_(static_cast<float>(problem.softcap)),
      scratch_(static_cast<std::size_t>(threads)) {
  if (problem.sinks != nullptr) sinks_.emplace(*problem.sinks);
}

void Attention::run(const Tokens<const float>& query, const Tokens<const float>& key, const Tokens<const float>& value,
                    const Counts& queries, const Counts& total, const Tokens<float>& output,
                    const abi::View<float, 3>* lse) {
  const Step step{query, key, value, queries, total, output, lse};
  std::vector<Task> tasks;
  std::int64_t space = 0, multiply_adds = 0;
  for (std::int64_t b = 0; b < queries.batch(); ++b) {
    const std::int64_t keys = std::max<std::int64_t>(total[b], 1);
    const std::int64_t rows = std::min(block_rows, block_scores / keys);
    const std::int64_t tokens = std::max<std::int64_t>(1, rows / group_);
    multiply_adds += queries[b] * total[b] * kv_heads_ * group_ * (qk_dim_ + v_dim_);
    for (std::int64_t h = 0; h < kv_heads_; ++h) {
      for (std::int64_t first = 0; first < queries[b]; first += tokens) {
        tasks.push_back({b, h, first, std::min(tokens, queries[b] - first)});
      }
    }
    // Scores (their rows up to 32 wider than the keys), queries, results, sums, and keys and values that need a copy.
    const std::int64_t copied = (in_place(key) ? 0 : qk_dim_) + (in_place(value) ? 0 : v_dim_);
    space = std::max(space, tokens * group_ * (keys + 32 + qk_dim_ + v_dim_ + 1) + keys * copied);
  }
  if (tasks.empty()) return;
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

/// In place, for the keys of one row: scaled, capped, and biased by their distance. `to_query` is the distance of the
/// first one to the query, in keys.
void Attention::cap_and_bias(float* logits, std::int64_t count, std::int64_t to_query, std::int64_t head) const {
  for (std::int64_t j = 0; j < count; ++j) {
    float logit = scale_ * logits[j];
    if (softcap_ > 0) logit = softcap_ * std::tanh(logit / softcap_);
    if (!slopes_.empty()) {
      logit -= slopes_[static_cast<std::size_t>(head)] * static_cast<float>(std::abs(to_query - j));
    }
    logits[j] = logit;
  }
}

/// False if a product failed.
bool Attention::attend(const Step& step, const Task& task, Scratch& scratch) const {
  const std::int64_t b = task.sequence, total = step.total[b], queries = step.queries[b];
  const std::int64_t rows = task.count * group_, first_head = task.kv_head * group_;
  // The block's products go over the keys that any of its queries sees: from the first one's to the last one's.
  const std::int64_t start = abi::visible_keys(problem_, task.first, queries, total).begin;
  const std::int64_t end = abi::visible_keys(problem_, task.first + task.count - 1, queries, total).end;
  const std::int64_t keys = std::max<std::int64_t>(end - start, 0);
  // A leading dimension of a power of two would put all rows into the same few cache sets.
  const std::int64_t leading = (keys + 15) / 16 * 16 + 16;
  float* const scores = scratch.get(0);
  float* const packed_query = scores + rows * leading;
  float* const blend = packed_query + rows * qk_dim_;
  float* const sums = blend + rows * v_dim_;
  float* const key_space = sums + rows;
  float* const value_space = key_space + (in_place(step.key) ? 0 : total * qk_dim_);

  // Row r is query token r / group of head r % group: the whole group shares each pass over its keys.
  const Tokens<const float>& q = step.query;
  Matrix query{q.at(b, task.first, first_head), group_ == 1 ? q.token : q.head};
  const bool even = group_ == 1 || task.count == 1 || q.token == group_ * q.head;
  if (rows == 1) query.leading = qk_dim_;
  if (!even || !q.channels_adjacent() || query.leading < qk_dim_) {
    for (std::int64_t r = 0; r < rows; ++r) {
      const float* const from = q.at(b, task.first + r / group_, first_head + r % group_);
      for (std::int64_t c = 0; c < qk_dim_; ++c) packed_query[r * qk_dim_ + c] = from[c * q.channel];
    }
    query = {packed_query, qk_dim_};
  }

  if (keys > 0) {
    const Matrix key = head_matrix(step.key, b, task.kv_head, start, keys, key_space);
    // The scale waits for the softmax: sgemm would round it into every element before the products.
    if (dnnl::sgemm('N', 'T', rows, keys, qk_dim_, 1.0f, query.data, query.leading, key.data, key.leading, 0.0f, scores,
                    leading) != dnnl::status::success) {
      return false;
    }
  }
  for (std::int64_t r = 0; r < rows; ++r) {
    const std::int64_t i = task.first + r / group_, h = first_head + r % group_;
    const abi::KeyRange seen = abi::visible_keys(problem_, i, queries, total);
    float* const logits = scores + r * leading;
    const std::int64_t before = std::min(seen.begin - start, keys), visible = seen.end - seen.begin;
    std::fill(logits, logits + before, 0.0f);
    float scale = scale_;
    if (softcap_ > 0 || !slopes_.empty()) {
      cap_and_bias(logits + before, visible, total - queries + i - seen.begin, h);
      scale = 1;
    }
    const float sink = sinks_ ? (*sinks_)(h) : -std::numeric_limits<float>::infinity();
    RowSum row = exponentials(logits + before, visible, keys - before, scale, sink);
    if (sinks_) row.sum += std::exp(static_cast<double>(sink) - static_cast<double>(row.largest));
    sums[r] = static_cast<float>(row.sum);
    if (step.lse != nullptr)
      (*step.lse)(b, h, i) = static_cast<float>(static_cast<double>(row.largest) + std::log(row.sum));
  }
  if (keys > 0) {
    const Matrix value = head_matrix(step.value, b, task.kv_head, start, keys, value_space);
    if (dnnl::sgemm('N', 'N', rows, v_dim_, keys, 1.0f, scores, leading, value.data, value.leading, 0.0f, blend,
                    v_dim_) != dnnl::status::success) {
      return false;
    }
  }
  for (std::int64_t r = 0; r < rows; ++r) {
    float* const to = step.output.at(b, task.first + r / group_, first_head + r % group_);
    // No visible key: the row of scores is all zeros, or there is none.
    const bool empty = keys == 0 || sums[r] == 0;
    for (std::int64_t c = 0; c < v_dim_; ++c) to[c * step.output.channel] = empty ? 0 : blend[r * v_dim_ + c] / sums[r];
  }
  return true;
}

}  // namespace attest::onednn
