// SPDX-License-Identifier: Apache-2.0
#include "kv.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "convert.h"
#include "flash_decode.h"

namespace attest::onednn {

namespace {

/// What one scale a token comes to for this vector (clause Q2).
float fitting_scale(const float* vector, std::int64_t count, Storage storage) {
  float largest = 0;
  for (std::int64_t c = 0; c < count; ++c) largest = std::max(largest, std::abs(vector[c]));
  const float scale = largest / abi::largest_code(storage);
  return scale > 0 ? scale : 1;
}

}  // namespace

CachedHeads::CachedHeads(const attest_problem& problem, const attest_cache& cache, const DLTensor& tensor,
                         const DLTensor* scale)
    : slots_(problem, cache),
      codes_(tensor, problem.cache_fp8),
      scaled_(scale != nullptr),
      scale_per_token_(problem.kv_scale == ATTEST_KV_SCALE_PER_TOKEN),
      even_(problem.cache == ATTEST_CACHE_PAGED ? problem.page_size : problem.capacity) {
  if (scale != nullptr) scales_ = abi::scale_view(problem, *scale);
}

KvRows::KvRows(Heads fresh, Counts past, std::optional<CachedHeads> cache, std::optional<Heads> slots)
    : fresh_(std::move(fresh)), past_(std::move(past)), cache_(std::move(cache)), slots_(std::move(slots)) {}

void KvRows::copy(std::int64_t b, std::int64_t head, std::int64_t first, std::int64_t end, float* to) const {
  const std::int64_t past = past_[b], width = fresh_.width;
  for (std::int64_t position = first; position < end; ++position, to += width) {
    if (position < past) {
      const abi::Slot slot = cache_->slot(b, position);
      decode(cache_->storage(), cache_->at(slot, head), cache_->channel_stride(), width, cache_->scale(slot, head), to);
    } else {
      decode(fresh_.storage, fresh_.at(b, position - past, head), fresh_.channel, width, 1, to);
    }
  }
}

RowRun KvRows::run(std::int64_t b, std::int64_t first, std::int64_t end) const {
  const std::int64_t past = past_[b];
  if (first < past) {
    return {cache_->storage(), static_cast<const char*>(cache_->at(cache_->slot(b, first), 0)), cache_->slot_bytes(),
            cache_->head_bytes(), std::min({end, past, first + cache_->run(first)}) - first};
  }
  return {fresh_.storage, static_cast<const char*>(fresh_.at(b, first - past, 0)), fresh_.token * fresh_.element(),
          fresh_.head * fresh_.element(), end - first};
}

void KvRows::scales(std::int64_t b, std::int64_t head, std::int64_t first, std::int64_t end, float* to) const {
  const std::int64_t codes_end = scaled() ? std::min(end, past_[b]) : first;
  for (std::int64_t count = 0; first < codes_end; first += count, to += count) {
    count = std::min(codes_end, first + cache_->run(first)) - first;
    cache_->scales(cache_->slot(b, first), head, count, to);
  }
  std::fill_n(to, end - first, 1.0f);
}

KvSide::KvSide(const attest_problem& problem, Intake intake) : problem_(problem), intake_(std::move(intake)) {}

KvRows KvSide::take(const attest_step& step, const abi::Extents& extents, const DLTensor* given, const DLTensor* tensor,
                    const DLTensor* scale, const std::vector<std::int64_t>& positions) {
  const Counts none(problem_.batch, 0);
  cache_.reset();
  std::optional<abi::Tokens> tokens;
  if (given != nullptr) tokens = abi::Tokens::of_keys(problem_, extents, *given);
  if (tensor != nullptr && problem_.cache == ATTEST_CACHE_CONTIGUOUS && abi::same(problem_.cache_dtype, abi::f32)) {
    Heads cached = heads_of_cache(*tensor);
    Counts past = extents.past, few = extents.keys;
    bool all_few = true;
    for (std::int64_t b = 0; b < problem_.batch; ++b) {
      if (extents.queries[b] > FlashDecode::most_queries) {
        few[b] = 0, all_few = false;
      } else {
        past[b] += few[b];
      }
    }
    if (all_few || !tokens || intake_.makes_in_place(tokens->storage())) {
      if (tokens) intake_.take_into(*tokens, extents.keys, positions, cached, extents.past);
      return {cached, none, std::nullopt};
    }
    Heads fresh = intake_.take(*tokens, extents.keys, positions);
    copy_rows(fresh, rows_of(fresh, none, few), cached, rows_of(cached, extents.past, few));
    return {std::move(fresh), std::move(past), CachedHeads(problem_, *step.cache, *tensor, scale), std::move(cached)};
  }
  const Heads fresh = tokens ? intake_.take(*tokens, extents.keys, positions)
                             : packed_heads(nullptr, none, intake_.heads(), intake_.width());
  if (tensor == nullptr) return {fresh, none, std::nullopt};
  cache_.emplace(problem_, *step.cache, *tensor, scale);
  return {stage(fresh, extents.keys), extents.past, cache_};
}

/// Encodes the tokens, and answers what will be read from the cache when they are there.
Heads KvSide::stage(const Heads& fresh, const Counts& counts) {
  const Storage storage = cache_->storage();
  const std::int64_t tokens = sum(counts), bytes = fresh.width * static_cast<std::int64_t>(abi::bytes_of(storage));
  codes_.resize(static_cast<std::size_t>(tokens * fresh.heads * bytes));
  scales_.resize(static_cast<std::size_t>(tokens * fresh.heads));
  Heads numbers = packed_heads(numbers_.get(tokens * fresh.row()), counts, fresh.heads, fresh.width);
  const std::vector<char*> from = rows_of(fresh, Counts(counts.batch(), 0), counts);
#pragma omp parallel for schedule(static) if (tokens * fresh.row() > 65536)
  for (std::int64_t i = 0; i < tokens * fresh.heads; ++i) {
    const std::int64_t head = i % fresh.heads;
    float* const number = numbers_.get(0) + i * fresh.width;
    std::byte* const code = codes_.data() + i * bytes;
    const char* const source = from[static_cast<std::size_t>(i / fresh.heads)] + head * fresh.head * fresh.element();
    decode(Storage::f32, source, fresh.channel, fresh.width, 1, number);
    const float scale =
        cache_->scale_per_token() ? fitting_scale(number, fresh.width, storage) : cache_->scale({0, 0}, head);
    encode(storage, number, fresh.width, scale, code, 1);
    decode(storage, code, 1, fresh.width, scale, number);
    scales_[static_cast<std::size_t>(i)] = scale;
  }
  return numbers;
}

void KvSide::append(const abi::Extents& extents) const {
  if (!cache_) return;
  const std::int64_t heads = intake_.heads(), width = intake_.width();
  const std::int64_t bytes = width * static_cast<std::int64_t>(abi::bytes_of(cache_->storage()));
  std::int64_t before = 0;  // tokens of earlier sequences
  for (std::int64_t b = 0; b < problem_.batch; ++b) {
    const std::int64_t keys = extents.keys[b];
    // Of a step longer than a ring the last tokens stay.
    const std::int64_t first =
        problem_.cache == ATTEST_CACHE_RING ? std::max<std::int64_t>(0, keys - problem_.capacity) : 0;
#pragma omp parallel for schedule(static) if ((keys - first) * heads * width > 65536)
    for (std::int64_t n = first; n < keys; ++n) {
      const abi::Slot slot = cache_->slot(b, extents.past[b] + n);
      for (std::int64_t h = 0; h < heads; ++h) {
        const std::int64_t i = (before + n) * heads + h;
        copy_elements(cache_->storage(), codes_.data() + i * bytes, 1, cache_->at(slot, h), cache_->channel_stride(),
                      width);
        if (cache_->scale_per_token()) cache_->set_scale(slot, h, scales_[static_cast<std::size_t>(i)]);
      }
    }
    before += keys;
  }
}

}  // namespace attest::onednn
