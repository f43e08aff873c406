// SPDX-License-Identifier: Apache-2.0
// What a block of attention has to do, whichever way it multiplies: its rows (queries of one KV head's group, and for
// each the heads of the group, so that keys and values are read once a group), one split of the keys that these see,
// and the way of tiles of keys and values into shared memory.
//
// Nothing here depends on what the host knows of lengths: the grid has room for the longest, and blocks without work
// end. So a launch may be captured in a graph and replayed as the sequences grow.
#pragma once

#include "arguments.h"
#include "device.cuh"
#include "finish.cuh"

namespace attest::cuda {

/// One row: which keys it sees, and what becomes of its dot products.
struct AttendRow {
  Visibility::Keys seen{0, 0};
  std::int32_t position = 0;
  float slope = 0;
  const std::byte* mask = nullptr;

  /// Scale, cap, position bias, mask, in this order (clauses A2, A5, B1, M6). `j` is a key that the row sees.
  [[nodiscard]] ATTEST_DEVICE float logit(const AttendArguments& a, float dot, std::int32_t j) const {
    float x = dot * a.scale;
    if (a.softcap > 0) x = a.softcap * tanhf(x / a.softcap);
    if (a.slopes != nullptr) x -= slope * fabsf(static_cast<float>(position - j));
    if (a.mask != nullptr) {
      const std::byte* const at = mask + j * a.mask_key * mask_bytes(a);
      if (a.mask_boolean != 0) {
        if (*at == std::byte{0}) x = -INFINITY;
      } else {
        const float added = load_number(a.mask_storage, at);
        x = added == -INFINITY ? added : x + added;  // Of a masked key not even the logit counts: it may be NaN.
      }
    }
    return x;
  }
  [[nodiscard]] ATTEST_DEVICE static int mask_bytes(const AttendArguments& a) {
    return a.mask_boolean != 0 ? 1 : element_bytes(a.mask_storage);
  }
};

/// `tile`: which tile of `rows` rows is this block's. Keys come in tiles of layout.keys, and `threads` threads bring
/// them.
struct AttendBlock {
  const AttendArguments& a;
  std::int32_t b, head, split, first_row;
  Sequence s;
  std::int32_t used_rows;       ///< 0 or less: there is nothing to do.
  Visibility::Keys keys{0, 0};  ///< That this block reads.

  ATTEST_DEVICE AttendBlock(const AttendArguments& arguments, std::int32_t tile, std::int32_t rows)
      : a(arguments),
        b(block_index().z),
        head(block_index().y),
        split(block_index().x % arguments.splits),
        first_row(tile * rows),
        s(arguments.sequences[b]),
        used_rows(smaller(rows, s.queries * arguments.group - first_row)) {
    if (used_rows <= 0) return;
    // Keys that no row sees are not read: beyond the length may be NaN, and a ring has lost the earliest.
    const std::int32_t first_query = first_row / a.group, last_query = (first_row + used_rows - 1) / a.group;
    keys = {a.visibility.of(s, first_query).begin, a.visibility.of(s, last_query).end};
    if (a.splits > 1) {
      const std::int64_t begin = static_cast<std::int64_t>(keys.begin / a.split_keys + split) * a.split_keys;
      keys = {static_cast<std::int32_t>(larger<std::int64_t>(keys.begin, smaller<std::int64_t>(begin, keys.end))),
              static_cast<std::int32_t>(smaller<std::int64_t>(keys.end, begin + a.split_keys))};
    }
  }

  /// A split that has no keys writes nothing, and nobody will ask.
  [[nodiscard]] ATTEST_DEVICE bool idle() const { return used_rows <= 0 || (a.splits > 1 && keys.begin >= keys.end); }
  [[nodiscard]] ATTEST_DEVICE std::int32_t first_tile() const { return keys.begin / a.layout.keys; }
  [[nodiscard]] ATTEST_DEVICE std::int32_t tiles() const {
    return keys.begin < keys.end ? (keys.end - 1) / a.layout.keys + 1 - first_tile() : 0;
  }
  [[nodiscard]] ATTEST_DEVICE std::int32_t query_of(std::int32_t row) const { return (first_row + row) / a.group; }
  [[nodiscard]] ATTEST_DEVICE std::int32_t head_of(std::int32_t row) const {
    return head * a.group + (first_row + row) % a.group;
  }
  /// `row` of the tile; one that is not used sees nothing.
  [[nodiscard]] ATTEST_DEVICE AttendRow row(std::int32_t row) const {
    AttendRow to;
    if (row >= used_rows) return to;
    const std::int32_t query = query_of(row), query_head = head_of(row);
    const Visibility::Keys seen = a.visibility.of(s, query);
    to.seen = {larger(seen.begin, keys.begin), smaller(seen.end, keys.end)};
    to.position = static_cast<std::int32_t>(s.total()) - s.queries + query;
    if (a.slopes != nullptr) to.slope = a.slopes[query_head * a.slopes_stride];
    if (a.mask != nullptr) {
      to.mask =
          a.mask + (b * a.mask_sequence + query_head * a.mask_head + query * a.mask_query) * AttendRow::mask_bytes(a);
    }
    return to;
  }

  /// Finds where the rows of a tile of keys lie; null: not there. Scales too where keys and values are codes.
  template <int threads>
  ATTEST_DEVICE void locate(TileSource& to, std::int32_t tile, bool scales) const {
    for (std::int32_t n = thread_index(); n < a.layout.keys; n += threads) {
      const std::int32_t j = tile * a.layout.keys + n;
      if (j < keys.begin || j >= keys.end) {
        to.key[n] = nullptr;
        to.value[n] = nullptr;
      } else if (j < s.cached) {
        const Slots::Slot slot = a.slots(b, j);
        to.key[n] = slot.there ? a.key.cache.at(slot, head) : nullptr;
        to.value[n] = slot.there ? a.value.cache.at(slot, head) : nullptr;
        if (scales && slot.there) {
          to.key_scale[n] = *a.key.cache.scale(slot, head);
          to.value_scale[n] = *a.value.cache.scale(slot, head);
        }
      } else {
        const std::int32_t t = s.key_start + j - s.past;
        to.key[n] = a.key.fresh.at(b, t, head);
        to.value[n] = a.value.fresh.at(b, t, head);
        if (scales) {
          to.key_scale[n] = a.key.fresh_scale(b, t, head);
          to.value_scale[n] = a.value.fresh_scale(b, t, head);
        }
      }
    }
  }

  /// Brings the rows of a tile, zeros for those that are not there; in the background where they can be read 16 bytes
  /// at a time. `place(n, byte)`: where that byte of row n belongs; 16 bytes from a multiple of 16 on lie together.
  template <int threads, class Place>
  ATTEST_DEVICE void fetch(const KvSide& side, std::int32_t tile, const std::byte* const* from, Place place) const {
    const std::int32_t size = element_bytes(side.cache.storage);
    if (side.vectors != 0) {
      // As many threads a row as it has pieces, up to a warp, so that neighbours read neighbouring addresses.
      const std::int32_t pieces = side.width * size / 16;
      std::int32_t per_row = 1;
      while (2 * per_row <= smaller(pieces, 32)) per_row *= 2;
      const std::byte* const anywhere = side.cache.data != nullptr ? side.cache.data : side.fresh.data;
      for (std::int32_t n = thread_index() / per_row; n < a.layout.keys; n += threads / per_row) {
        const bool there = from[n] != nullptr;
        for (std::int32_t piece = thread_index() % per_row; piece < pieces; piece += per_row) {
          copy_16(place(n, 16 * piece), there ? from[n] + 16 * piece : anywhere, there);
        }
      }
      return;
    }
    for (std::int32_t n = thread_index() / 32; n < a.layout.keys; n += threads / 32) {
      const bool there = from[n] != nullptr;
      const std::int64_t step = tile * a.layout.keys + n < s.cached ? side.cache.channel : side.fresh.channel;
      for (std::int32_t c = thread_index() % 32; c < side.width; c += 32) {
        for (std::int32_t k = 0; k < size; ++k) {
          *place(n, c * size + k) = there ? from[n][c * step * size + k] : std::byte{0};
        }
      }
    }
  }

  /// Element c of a row of queries; zero where there is none.
  template <class Number>
  [[nodiscard]] ATTEST_DEVICE Number query(std::int32_t row, std::int32_t c) const {
    const bool there = row < used_rows && c < a.key.width;
    return narrow<Number>(
        there ? load_number(a.query.storage, a.query.at(b, s.query_start + query_of(row), head_of(row), c)) : 0.0f);
  }

  /// The end of a row: its largest logit and sum of weights, kept between splits or closed. Answers what its sums are
  /// to be multiplied by.
  ATTEST_DEVICE float end_row(std::int32_t row, float largest, float sum) const {
    const Row place = row_of(b, head, a.group, first_row + row);
    if (a.splits > 1) {
      keep(a.results, place, split, largest, sum);
      return 1;
    }
    const Closed closed = close(a.results, place, largest, sum);
    write_lse(a.results, s, place, closed.lse);
    return closed.factor;
  }
  /// One of its sums, so multiplied.
  ATTEST_DEVICE void end_sum(std::int32_t row, std::int32_t channel, float value) const {
    const Row place = row_of(b, head, a.group, first_row + row);
    if (a.splits > 1) {
      keep(a.results, place, split, channel, value);
    } else {
      write(a.results, s, place, channel, value);
    }
  }
};

}  // namespace attest::cuda
