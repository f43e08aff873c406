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

/// Where one key and its value come from; null: not there.
struct RowSource {
  const std::byte *key, *value;
  float key_scale, value_scale;
};

/// `tile`: which tile of `rows` rows is this block's. Keys come in tiles of layout.keys, which are no more than a block
/// has threads.
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

  /// What the block table says of a row of a tile of keys, each thread one of them.
  [[nodiscard]] ATTEST_DEVICE Slots::Entry look_up(std::int32_t tile) const {
    const std::int32_t j = tile * a.layout.keys + thread_index();
    const bool cached = thread_index() < a.layout.keys && j >= keys.begin && j < keys.end && j < s.cached;
    return cached ? a.slots.look_up(b, j) : Slots::Entry{};
  }
  /// Finds where it lies; null: nobody sees it. What a wrong page number leads to is not read either, but nobody will
  /// see what is: the step is refused. `entry`: of look_up. `scales`: with its scales, keys and values being codes.
  [[nodiscard]] ATTEST_DEVICE RowSource find(std::int32_t tile, const Slots::Entry& entry, bool scales) const {
    RowSource found{nullptr, nullptr, 0, 0};
    const std::int32_t j = tile * a.layout.keys + thread_index();
    if (thread_index() >= a.layout.keys || j < keys.begin || j >= keys.end) return found;
    if (j < s.cached) {
      const Slots::Slot slot = a.slots.slot_of(b, entry);
      if (!slot.there) return a.slots.pages > 0 ? RowSource{anywhere_of(a.key), anywhere_of(a.value), 0, 0} : found;
      found.key = a.key.cache.at(slot, head);
      found.value = a.value.cache.at(slot, head);
      if (scales) {
        found.key_scale = *a.key.cache.scale(slot, head);
        found.value_scale = *a.value.cache.scale(slot, head);
      }
      return found;
    }
    const std::int32_t t = s.key_start + j - s.past;
    found.key = a.key.fresh.at(b, t, head);
    found.value = a.value.fresh.at(b, t, head);
    if (scales) {
      found.key_scale = a.key.fresh_scale(b, t, head);
      found.value_scale = a.value.fresh_scale(b, t, head);
    }
    return found;
  }
  /// Tells all threads.
  template <class Source>
  ATTEST_DEVICE void put(Source& to, const RowSource& found, bool scales) const {
    const std::int32_t n = thread_index();
    if (n >= a.layout.keys) return;
    to.key[n] = found.key;
    to.value[n] = found.value;
    if constexpr (requires { to.key_scale; }) {
      if (!scales) return;
      to.key_scale[n] = found.key_scale;
      to.value_scale[n] = found.value_scale;
    }
  }

  /// Brings the rows of a tile, zeros for those that are not there; in the background where they can be read 16 bytes
  /// at a time. `place(n, byte)`: where that byte of row n belongs; 16 bytes from a multiple of 16 on lie together.
  /// `most_keys`: of a tile; with so many, or half of them, rows of usual sizes come by fetch_rows. 0: none do.
  template <int threads, int most_keys, class Place>
  ATTEST_DEVICE void fetch(const KvSide& side, std::int32_t tile, const std::byte* const* from, Place place) const {
    const std::int32_t size = element_bytes(side.cache.storage);
    if constexpr (most_keys > 0) {
      const std::int32_t bytes = side.width * size;
      const auto rows_of = [&]<int tile_keys>(std::integral_constant<int, tile_keys>) {
        if (bytes == 128) return fetch_rows<threads, tile_keys, 8>(side, tile, from, place);
        if (bytes == 256) return fetch_rows<threads, tile_keys, 16>(side, tile, from, place);
        fetch_rows<threads, tile_keys, 32>(side, tile, from, place);
      };
      if (side.vectors != 0 && (bytes == 128 || bytes == 256 || bytes == 512)) {
        if (a.layout.keys == most_keys) return rows_of(std::integral_constant<int, most_keys>());
        if (a.layout.keys == most_keys / 2) return rows_of(std::integral_constant<int, most_keys / 2>());
      }
    }
    if (side.vectors != 0) {
      // As many threads a row as it has pieces, up to a warp, so that neighbours read neighbouring addresses.
      const std::int32_t pieces = side.width * size / 16;
      std::int32_t per_row = 1;
      while (2 * per_row <= smaller(pieces, 32)) per_row *= 2;
      const std::byte* const anywhere = anywhere_of(side);
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

  /// The same where all is known: tiles of `tile_keys` rows of so many pieces of 16 bytes.
  template <int threads, int tile_keys, int pieces, class Place>
  ATTEST_DEVICE void fetch_rows(const KvSide& side, std::int32_t tile, const std::byte* const* from,
                                Place place) const {
    constexpr int at_once = threads / pieces;
    const std::int32_t row = thread_index() / pieces, byte = 16 * (thread_index() % pieces), first = tile * tile_keys;
    if (first >= keys.begin && first + tile_keys <= keys.end) {
      ATTEST_UNROLL
      for (int n = 0; n < tile_keys; n += at_once) copy_16(place(row + n, byte), from[row + n] + byte, true);
      return;
    }
    const std::byte* const anywhere = anywhere_of(side);
    for (int n = row; n < tile_keys; n += at_once) {
      const bool there = from[n] != nullptr;
      copy_16(place(n, byte), there ? from[n] + byte : anywhere, there);
    }
  }
  /// An address for copies that read nothing.
  ATTEST_DEVICE static const std::byte* anywhere_of(const KvSide& side) {
    return side.cache.data != nullptr ? side.cache.data : side.fresh.data;
  }

  /// Brings a tile of queries, as `fetch` does; `width`: with zeros up to there.
  template <class Number, int threads, class Place>
  ATTEST_DEVICE void fetch_queries(std::int32_t rows, std::int32_t width, Place place) const {
    if (a.query_vectors != 0) {
      const std::int32_t pieces = a.key.width / 8;
      for (std::int32_t i = thread_index(); i < rows * pieces; i += threads) {
        const std::int32_t r = i / pieces, piece = i - r * pieces;
        const bool there = r < used_rows;
        copy_16(place(r, 16 * piece), there ? query_at(r) + 16 * piece : a.query.data, there);
      }
    }
    const std::int32_t first = a.query_vectors != 0 ? a.key.width : 0, count = width - first;
    for (std::int32_t i = thread_index(); i < rows * count; i += threads) {
      const std::int32_t r = i / count, c = first + i - r * count;
      *reinterpret_cast<Number*>(place(r, static_cast<int>(sizeof(Number)) * c)) = query<Number>(r, c);
    }
  }
  /// Row of queries `row`, which is used.
  [[nodiscard]] ATTEST_DEVICE const std::byte* query_at(std::int32_t row) const {
    return a.query.at(b, s.query_start + query_of(row), head_of(row));
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
  /// Two of its sums, so multiplied, from an even channel on.
  template <class Number>
  ATTEST_DEVICE void end_sums(std::int32_t row, std::int32_t channel, float first, float second) const {
    if (a.splits == 1 && a.output_vectors != 0) {
      const Row place = row_of(b, head, a.group, first_row + row);
      std::byte* const to = a.results.output.at(b, s.query_start + place.query, place.query_head, channel);
      *reinterpret_cast<std::uint32_t*>(to) = pair_of<Number>(first, second);
      return;
    }
    end_sum(row, channel, first);
    if (channel + 1 < a.value.width) end_sum(row, channel + 1, second);
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
