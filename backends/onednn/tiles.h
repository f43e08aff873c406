// SPDX-License-Identifier: Apache-2.0
// The small matrix products of attention over many queries, and the softmax between them: an online softmax's step for
// one strip of query rows and one tile of keys.
//
// Compiled once for each instruction set, like rows.h's, from tile_kernel.h. Keys and values come in panels: of each of
// a matrix's rows one vector of `lanes` floats, one after the other, so that a product reads memory in order. Of
// queries and weights one element at a time goes into every lane; they stay in rows.
#pragma once

#include <cstdint>

#include "rows.h"

namespace attest::onednn {

/// Keys of a tile, at positions from a multiple of it on: where tiles begin does not depend on who attends to them.
constexpr std::int64_t tile_keys = 128;

/// Most query rows of a strip, and most lanes.
constexpr std::int64_t most_strip_rows = row_padding;

/// Rows of `width` adjacent elements anywhere in memory.
struct RowList {
  abi::Storage storage;
  const char* const* row;
  std::int64_t count, width;
};

/// `count` rows of so many bytes that will be read soon.
struct RowsAhead {
  const char* const* row = nullptr;
  std::int64_t count = 0, bytes = 0;
};

/// What a product asks memory for on its way, line by line: asked for at once, they would have to wait for each other,
/// and the product for them. They are not read.
struct Ahead {
  RowsAhead rows, more;
};

/// Floats from one of a strip's query rows to the next. Wider ones are cut: so many channels of all rows, then as many
/// more.
constexpr std::int64_t query_part = tile_keys;

/// Keys [begin, end) of a tile, one at least.
struct TileRange {
  std::int64_t begin, end;
};

/// The state of a strip's online softmax, by row. Scores may lack the factor `scale`, which is the same for all tiles,
/// so that the largest one's weight is 1 however a product is rounded.
struct StripSoftmax {
  alignas(64) float largest[most_strip_rows];  ///< Score so far, or the sink's; -infinity: none.
  alignas(64) float sum[most_strip_rows];      ///< Of exp(scale * (score - largest)), the sink's 1 included.
  alignas(64) float factor[most_strip_rows];   ///< What was blended before is to be multiplied by.
  bool begun = false;                          ///< Its strip's: whether anything was blended. The caller's.
};

/// What a strip makes of a tile of keys: scores by multiply(), begin_weights(), the exponentials, at once or beside
/// another strip's blend(), end_weights(), and now they are weights.
struct StripScores {
  alignas(64) float values[most_strip_rows * tile_keys];  ///< Of row r and key j: [r * tile_keys + j].
  // Of row r, lane by lane: [r * lanes + lane].
  alignas(64) float largest[most_strip_rows * row_padding];  ///< Of the scores.
  alignas(64) float sum[most_strip_rows * row_padding];      ///< Of the weights that there are.
  // The exponentials that are left: of values [begin, end) of the rows from `row` on, of that one from value `at` on.
  // The weight is 2^((score - base[r]) * scale).
  alignas(64) float base[most_strip_rows];
  float scale;
  std::int64_t begin, end, row, at;
};

/// A row's result does not depend on the other rows of its strip, and not on the keys that it does not see.
struct TileKernels {
  std::int64_t lanes, strip;  ///< Floats of a vector, and query rows of a strip.

  /// Rows as floats, times scales[j] unless that is null, to panels of their channels, `panel_rows` rows each: channels
  /// [v * lanes, ...) of row j to panels + (v * panel_rows + first + j) * lanes. Zeros fill up to padded(width).
  void (*pack)(const RowList& rows, const float* scales, std::int64_t first, std::int64_t panel_rows, float* panels);

  /// At most `lanes` rows as floats, times scales[j] unless that is null, to a panel of rows: channel c of row j to
  /// `to` + c * lanes + first + j. Where the panel has other rows there is no telling what becomes of them.
  void (*transpose)(const RowList& rows, const float* scales, std::int64_t first, float* to);

  /// Score of query row r and key j = row times key, for all rows of a strip. Channel c of query row r lies at
  /// queries + (c / query_part * strip + r) * query_part + c % query_part; the keys are transposed, to a panel for each
  /// vector of them. It writes whole vectors of keys.
  void (*multiply)(const float* queries, const float* keys, std::int64_t width, TileRange range, const Ahead& ahead,
                   StripScores& scores);

  /// Begins to turn scores into weights: exp(scale * (score - largest)) where seen[r] holds the key, 0 elsewhere in
  /// `range` and in the vectors at its ends. Null: all rows see all of it, and the scores are what multiply() left, for
  /// this very range. -infinity is masked. `scale` is 1, or so far from 0 and from infinity that neither it times 2 nor
  /// a difference of scores overflows. A weight of exp(x) is within 2 + 4 |x| units in the last place of the true one:
  /// two for the exponential, and what the roundings of x make of it. The softmax lacks nothing but the sum then.
  void (*begin_weights)(StripScores& scores, const TileRange* seen, TileRange range, float scale,
                        StripSoftmax& softmax);

  /// Takes the exponentials that are left, and adds the weights to the sums.
  void (*end_weights)(StripScores& scores, StripSoftmax& softmax);

  /// blended row r = factor[r] * itself + sum over keys j in `range` of the weight of row r and key j, times value j.
  /// Null `factor`: nothing is there yet, and `blended` is not read. Blended rows are padded(width) apart. Between its
  /// products it takes exponentials of another strip, `beside`, which has begun; null: there is none.
  void (*blend)(const StripScores& weights, const float* factor, const float* values, std::int64_t width,
                TileRange range, const Ahead& ahead, StripScores* beside, float* blended);

  /// Copies a row to where nobody reads it soon, past the caches if it begins at a multiple of a vector's bytes there.
  /// Other threads see it after settle_streams().
  void (*stream)(const float* row, std::int64_t width, float* to);

  /// Likewise of row[c] / divisor.
  void (*stream_divided)(const float* row, std::int64_t width, float divisor, float* to);
};

/// Puts this thread's streamed rows before whatever it writes next.
inline void settle_streams() {
#ifdef __SSE__
  __builtin_ia32_sfence();
#endif
}

/// Asks for a row that will be read soon, into the first-level cache.
inline void fetch_row(const void* row, std::int64_t bytes) {
  for (std::int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(static_cast<const char*>(row) + i, 0, 3);
}

}  // namespace attest::onednn
