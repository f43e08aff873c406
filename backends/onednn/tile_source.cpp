// SPDX-License-Identifier: Apache-2.0
#include "tile_source.h"

#include <algorithm>

#include "convert.h"

namespace attest::onednn {

TileSource::TileSource(const TileKernels& kernels, Panels kind, std::int64_t width)
    : kernels_(kernels),
      kind_(kind),
      width_(width),
      rows_(static_cast<std::size_t>(tile_keys)),
      scales_(static_cast<std::size_t>(tile_keys)) {
  (void)copied_.get(tile_keys * width);
  (void)staged_.get(kernels.lanes * width);
}

void TileSource::list(const KvRows& of, std::int64_t b, std::int64_t head, std::int64_t first, std::int64_t end) {
  first_ = first, end_ = end, cached_end_ = first, scaled_ = false;
  fetched_ = arrived_ = packed_ = first;
  if (of.rows_adjacent()) {
    cached_end_ = std::clamp(of.past(b), first, end);
    const char** row = rows_.data();
    for (std::int64_t position = first; position < end;) {
      const RowRun run = of.run(b, position, end);
      if (position < cached_end_) cached_ = run.storage;
      for (std::int64_t i = 0; i < run.count; ++i) *row++ = run.data + head * run.head_bytes + i * run.row_bytes;
      position += run.count;
    }
    scaled_ = of.scaled() && cached_end_ > first;
    if (scaled_) of.scales(b, head, first, cached_end_, scales_.data());
    return;
  }
  float* row = copied_.get(0);
  of.copy(b, head, first, end, row);
  for (std::int64_t j = 0; j < end - first; ++j, row += width_) {
    rows_[static_cast<std::size_t>(j)] = reinterpret_cast<const char*>(row);
  }
}

RowsAhead TileSource::fetch(std::int64_t rows) {
  const std::int64_t from = fetched_;
  fetched_ = std::min(fetched_ + rows, end_);
  // New rows come behind the cached ones and have the wider elements.
  const Storage widest = fetched_ <= cached_end_ ? cached_ : Storage::f32;
  return {rows_.data() + (from - first_), fetched_ - from, width_ * static_cast<std::int64_t>(abi::bytes_of(widest))};
}

abi::KeyRange TileSource::pack(float* panels) {
  const std::int64_t begin = arrived_, lanes = kernels_.lanes;
  arrived_ = fetched_;
  if (kind_ == Panels::channels) {
    pack_channels(panels);
    packed_ = fetched_;
    return {begin, arrived_};
  }
  while (packed_ < fetched_) {
    const std::int64_t group = packed_ / lanes * lanes, stop = std::min(group + lanes, end_);
    if (stop > fetched_) break;
    pack_keys(stop, panels + group % tile_keys * width_);
    packed_ = stop;
  }
  return {begin, arrived_};
}

/// Positions [first, end), all cached or none.
RowList TileSource::rows_of(std::int64_t first, std::int64_t end) const {
  return {first < cached_end_ ? cached_ : Storage::f32, rows_.data() + (first - first_), end - first, width_};
}

/// Of cached positions from `first` on.
const float* TileSource::scales_from(std::int64_t first) const {
  return scaled_ && first < cached_end_ ? scales_.data() + (first - first_) : nullptr;
}

/// Positions up to those asked for.
void TileSource::pack_channels(float* panels) const {
  const std::int64_t middle = std::clamp(cached_end_, packed_, fetched_);
  const auto some = [&](std::int64_t first, std::int64_t end) {
    if (first == end) return;
    kernels_.pack(rows_of(first, end), scales_from(first), first % tile_keys, tile_keys, panels);
  };
  some(packed_, middle);
  some(middle, fetched_);
}

/// Positions up to `stop`, to their panel.
void TileSource::pack_keys(std::int64_t stop, float* panel) {
  const std::int64_t place = packed_ % kernels_.lanes;
  if (cached_end_ <= packed_ || cached_end_ >= stop) {
    kernels_.transpose(rows_of(packed_, stop), scales_from(packed_), place, panel);
    return;
  }
  // Some are cached and some are new: as floats first.
  const char* rows[row_padding];
  float* copy = staged_.get(0);
  for (std::int64_t position = packed_; position < stop; ++position, copy += width_) {
    const RowList row = rows_of(position, position + 1);
    const float* const scale = scales_from(position);
    decode(row.storage, row.row[0], 1, width_, scale != nullptr ? *scale : 1, copy);
    rows[position - packed_] = reinterpret_cast<const char*>(copy);
  }
  kernels_.transpose({Storage::f32, rows, stop - packed_, width_}, nullptr, place, panel);
}

}  // namespace attest::onednn
