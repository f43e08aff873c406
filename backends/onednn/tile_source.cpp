// SPDX-License-Identifier: Apache-2.0
#include "tile_source.h"

#include <algorithm>

namespace attest::onednn {

TileSource::TileSource(const TileKernels& kernels, Panels kind, std::int64_t width)
    : kernels_(kernels),
      kind_(kind),
      width_(width),
      rows_(static_cast<std::size_t>(tile_keys)),
      scales_(static_cast<std::size_t>(tile_keys)) {
  (void)copied_.get(tile_keys * width);
  (void)staged_.get(kernels.lanes * padded(width));
}

void TileSource::list(const KvRows& of, std::int64_t b, std::int64_t head, std::int64_t first, std::int64_t end) {
  first_ = first, end_ = end, cached_end_ = first, scaled_ = false;
  fetched_ = packed_ = first;
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

void TileSource::fetch(std::int64_t rows) {
  for (const std::int64_t stop = std::min(fetched_ + rows, end_); fetched_ < stop; ++fetched_) {
    const Storage storage = fetched_ < cached_end_ ? cached_ : Storage::f32;
    fetch_row(rows_[static_cast<std::size_t>(fetched_ - first_)],
              width_ * static_cast<std::int64_t>(abi::bytes_of(storage)));
  }
}

abi::KeyRange TileSource::pack(float* panels) {
  const std::int64_t begin = packed_;
  if (kind_ == Panels::channels) {
    pack(begin, fetched_, tile_keys, panels);
    packed_ = fetched_;
    return {begin, packed_};
  }
  const std::int64_t lanes = kernels_.lanes;
  while (packed_ < fetched_) {
    const std::int64_t group = packed_ / lanes * lanes, stop = std::min(group + lanes, end_);
    if (stop > fetched_) break;
    pack(packed_, stop, lanes, staged_.get(0));
    kernels_.transpose(staged_.get(0), width_, panels + group % tile_keys * width_);
    packed_ = stop;
  }
  return {begin, packed_};
}

/// Positions [first, end) to panels of so many rows, of which they become those that they are in the tile, counted
/// modulo the panels' rows.
void TileSource::pack(std::int64_t first, std::int64_t end, std::int64_t panel_rows, float* panels) const {
  const std::int64_t middle = std::clamp(cached_end_, first, end);
  const auto rows_from = [&](std::int64_t position) { return rows_.data() + (position - first_); };
  if (first < middle) {
    const float* const scales = scaled_ ? scales_.data() + (first - first_) : nullptr;
    kernels_.pack({cached_, rows_from(first), middle - first, width_}, scales, first % panel_rows, panel_rows, panels);
  }
  if (middle < end) {
    kernels_.pack({Storage::f32, rows_from(middle), end - middle, width_}, nullptr, middle % panel_rows, panel_rows,
                  panels);
  }
}

}  // namespace attest::onednn
