// SPDX-License-Identifier: Apache-2.0
// The kernels of tiles.h for vectors of ATTEST_ROW_LANES floats, in the way of rows_kernel.h, which comes first.
#pragma once

#include <utility>

#include "rows_kernel.h"
#include "tiles.h"

namespace attest::onednn {

namespace {

// Rows and vectors of the sums that a product keeps in registers. Each of the two loads of a step serves `strip` rows,
// and each element of a row two vectors.
constexpr std::int64_t strip = ATTEST_ROW_LANES == 16 ? 14 : ATTEST_ROW_LANES == 8 ? 6 : 4;
constexpr std::int64_t strip_vectors = 2;

// ---------------------------------------------------------------------------------------------------------------------
// Across lanes

/// Lanes with the bit `distance` from b, the others from a: each pair of vectors swaps a quarter of its elements.
template <int distance, int... lane>
inline void exchange(Floats& a, Floats& b, std::integer_sequence<int, lane...>) {
  const Floats lower = __builtin_shufflevector(a, b, ((lane & distance) ? lanes + lane - distance : lane)...);
  b = __builtin_shufflevector(a, b, ((lane & distance) ? lanes + lane : lane + distance)...);
  a = lower;
}
template <int distance>
inline void exchange(Floats& a, Floats& b) {
  exchange<distance>(a, b, std::make_integer_sequence<int, lanes>());
}

/// Of `lanes` vectors, in place.
template <int distance = 1>
inline void transpose_vectors(Floats* vectors) {
  if constexpr (distance < lanes) {
#pragma GCC unroll 16
    for (int i = 0; i < lanes; ++i) {
      if ((i & distance) == 0) exchange<distance>(vectors[i], vectors[i + distance]);
    }
    transpose_vectors<2 * distance>(vectors);
  }
}

/// Lane k of the result is what `operation` makes of all lanes of vector k. It spoils the vectors.
template <int distance = 1, class Operation>
inline Floats reduce(Floats* vectors, Operation&& operation) {
  if constexpr (distance < lanes) {
#pragma GCC unroll 16
    for (int i = 0; i < lanes / (2 * distance); ++i) {
      Floats a = vectors[2 * i], b = vectors[2 * i + 1];
      exchange<distance>(a, b);
      vectors[i] = operation(a, b);
    }
    return reduce<2 * distance>(vectors, operation);
  } else {
    return vectors[0];
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Panels

template <Storage storage>
void pack_all(const RowList& rows, const float* scales, std::int64_t first, std::int64_t panel_rows, float* panels) {
  for (std::int64_t j = 0; j < rows.count; ++j) {
    const float scale = scales != nullptr ? scales[j] : 1;
    float* to = panels + (first + j) * lanes;
    std::int64_t c = 0;
    for (; c + lanes <= rows.width; c += lanes, to += panel_rows * lanes) {
      store_floats(load<storage>(rows.row[j] + c * element_bytes<storage>) * scale, to);
    }
    for (; c < padded(rows.width); c += lanes, to += panel_rows * lanes) {
      const std::int64_t left = rows.width - c;
      const Floats some = left > 0 ? load_some<storage>(rows.row[j] + c * element_bytes<storage>, left) : Floats{};
      store_floats(some * scale, to);
    }
  }
}

void pack(const RowList& rows, const float* scales, std::int64_t first, std::int64_t panel_rows, float* panels) {
  const auto with = [&]<Storage storage>() { pack_all<storage>(rows, scales, first, panel_rows, panels); };
  by_storage(rows.storage, with);
}

template <Storage storage>
void transpose_all(const RowList& rows, const float* scales, std::int64_t first, float* to) {
  for (std::int64_t c = 0; c < rows.width; c += lanes, to += lanes * lanes) {
    const std::int64_t left = rows.width - c, offset = c * element_bytes<storage>;
    Floats vectors[lanes];
    if (rows.count == lanes && left >= lanes) {
#pragma GCC unroll 16
      for (int i = 0; i < lanes; ++i) vectors[i] = load<storage>(rows.row[i] + offset);
    } else {
      for (std::int64_t i = 0; i < lanes; ++i) vectors[i] = Floats{};
      for (std::int64_t j = 0; j < rows.count; ++j) {
        vectors[first + j] =
            left >= lanes ? load<storage>(rows.row[j] + offset) : load_some<storage>(rows.row[j] + offset, left);
      }
    }
    if (scales != nullptr) {
      for (std::int64_t j = 0; j < rows.count; ++j) vectors[first + j] *= scales[j];
    }
    transpose_vectors(vectors);
    if (left >= lanes) {
#pragma GCC unroll 16
      for (int i = 0; i < lanes; ++i) store_floats(vectors[i], to + i * lanes);
    } else {
      for (std::int64_t i = 0; i < left; ++i) store_floats(vectors[i], to + i * lanes);
    }
  }
}

void transpose(const RowList& rows, const float* scales, std::int64_t first, float* to) {
  const auto with = [&]<Storage storage>() { transpose_all<storage>(rows, scales, first, to); };
  by_storage(rows.storage, with);
}

// ---------------------------------------------------------------------------------------------------------------------
// Products

static_assert(query_part == tile_keys, "both products step through their rows in the same way");

// What is done meanwhile gets a turn for each `every` elements of a product's depth. It is forced inline, or its state
// would go through memory at each turn.
constexpr std::int64_t turns_of(std::int64_t blocks, std::int64_t depth, std::int64_t every) {
  return blocks * ((depth + every - 1) / every);
}

/// Spreads a product's fetches evenly over its turns.
class Fetches {
 public:
  static constexpr std::int64_t every = 16;

  Fetches(const Ahead& ahead, std::int64_t turns) : now_(ahead.rows), then_(ahead.more) {
    const auto lines = [](const RowsAhead& rows) { return rows.count * ((rows.bytes + 63) / 64); };
    pace_ = (lines(now_) + lines(then_) + turns - 1) / turns;
    if (now_.count == 0) now_ = then_, then_ = {};
  }
  void some() {
    for (std::int64_t i = 0; i < pace_ && now_.count > 0; ++i) {
      // As a number: a row may be shorter than it says.
      const std::uintptr_t line = reinterpret_cast<std::uintptr_t>(*now_.row) + static_cast<std::uintptr_t>(at_);
      __builtin_prefetch(reinterpret_cast<const void*>(line), 0, 3);
      at_ += 64;
      if (at_ < now_.bytes) continue;
      ++now_.row, --now_.count, at_ = 0;
      if (now_.count == 0) now_ = then_, then_ = {};
    }
  }

 private:
  RowsAhead now_, then_;
  std::int64_t pace_, at_ = 0;
};

/// sum[r][v] += row r times column v's vectors, over `depth` elements. Element k of row r lies at
/// rows[r * tile_keys + k].
template <std::int64_t vectors, class Meanwhile>
ATTEST_INLINE inline void multiply_add(const float* rows, const float* panels, std::int64_t apart, std::int64_t depth,
                                       Meanwhile& meanwhile, Floats (&sum)[strip][vectors]) {
  for (std::int64_t left = depth; left > 0; left -= Meanwhile::every) {
    meanwhile.some();
    for (std::int64_t k = left < Meanwhile::every ? left : Meanwhile::every; k > 0; --k, ++rows, panels += lanes) {
      Floats column[vectors];
#pragma GCC unroll 2
      for (std::int64_t v = 0; v < vectors; ++v) column[v] = load_floats(panels + v * apart);
#pragma GCC unroll 16
      for (std::int64_t r = 0; r < strip; ++r) {
#pragma GCC unroll 2
        for (std::int64_t v = 0; v < vectors; ++v) sum[r][v] += rows[r * tile_keys] * column[v];
      }
    }
  }
}

/// Keys [j, j + vectors * lanes).
template <std::int64_t vectors>
inline void multiply_columns(const float* queries, const float* keys, std::int64_t width, std::int64_t j,
                             Fetches& fetches, StripScores& scores) {
  Floats sum[strip][vectors];
#pragma GCC unroll 16
  for (std::int64_t r = 0; r < strip; ++r) {
#pragma GCC unroll 2
    for (std::int64_t v = 0; v < vectors; ++v) sum[r][v] = Floats{};
  }
  for (std::int64_t c = 0; c < width; c += query_part) {
    multiply_add<vectors>(queries + c * strip, keys + j * width + c * lanes, width * lanes,
                          width - c < query_part ? width - c : query_part, fetches, sum);
  }
#pragma GCC unroll 16
  for (std::int64_t r = 0; r < strip; ++r) {
#pragma GCC unroll 2
    for (std::int64_t v = 0; v < vectors; ++v) store_floats(sum[r][v], scores.values + r * tile_keys + j + v * lanes);
    // Here while they are still in registers.
    float* const largest = scores.largest + r * lanes;
    store_floats(larger(load_floats(largest), larger(sum[r][0], sum[r][vectors - 1])), largest);
  }
}

/// Blocks of strip_vectors * lanes columns in so many.
constexpr std::int64_t blocks_of(std::int64_t columns) {
  return (columns + strip_vectors * lanes - 1) / (strip_vectors * lanes);
}

void multiply_strip(const float* queries, const float* keys, std::int64_t width, TileRange range, const Ahead& ahead,
                    StripScores& scores) {
  for (std::int64_t r = 0; r < strip; ++r) store_floats(Floats{} + minus_infinity, scores.largest + r * lanes);
  std::int64_t j = range.begin / lanes * lanes;
  Fetches fetches(ahead, turns_of(blocks_of(range.end - j), width, Fetches::every));
  for (; j + lanes < range.end; j += strip_vectors * lanes) {
    multiply_columns<strip_vectors>(queries, keys, width, j, fetches, scores);
  }
  if (j < range.end) multiply_columns<1>(queries, keys, width, j, fetches, scores);
}

// ---------------------------------------------------------------------------------------------------------------------
// The softmax

/// Lane r of the result is what `operation` makes of row r's lanes.
template <class Operation>
inline Floats across_rows(const float* by_lane, Operation&& operation) {
  Floats row[lanes] = {};
  for (std::int64_t r = 0; r < strip; ++r) row[r] = load_floats(by_lane + r * lanes);
  return reduce(row, operation);
}

void begin_weights(StripScores& scores, const TileRange* seen, TileRange range, float scale, StripSoftmax& softmax) {
  const std::int64_t begin = range.begin / lanes * lanes, end = (range.end + lanes - 1) / lanes * lanes;
  const bool as_multiplied = seen == nullptr && begin == range.begin && end == range.end;
  for (std::int64_t r = 0; r < strip && !as_multiplied; ++r) {
    const TileRange its = seen != nullptr ? seen[r] : range;
    float* const row = scores.values + r * tile_keys;
    for (std::int64_t j = begin; j < its.begin; ++j) row[j] = minus_infinity;
    for (std::int64_t j = its.end; j < end; ++j) row[j] = minus_infinity;
    Floats largest = load_floats(row + begin);
    for (std::int64_t j = begin + lanes; j < end; j += lanes) largest = larger(largest, load_floats(row + j));
    store_floats(largest, scores.largest + r * lanes);
  }
  const Floats before = load_floats(softmax.largest);
  const Floats largest = larger(across_rows(scores.largest, larger), before);
  // While all is masked, the difference of two infinities would be NaN.
  const Floats base = largest == minus_infinity ? Floats{} : largest;
  scores.scale = scale * log2_of_e;
  store_floats(base, scores.base);
  store_floats(largest, softmax.largest);
  store_floats(exponential_of_two((before - base) * scores.scale), softmax.factor);
  for (std::int64_t r = 0; r < strip; ++r) store_floats(Floats{}, scores.sum + r * lanes);
  scores.begin = scores.at = begin;
  scores.end = end;
  scores.row = 0;
}

/// Turns a strip's scores into weights, one vector after the other.
class Exponentials {
 public:
  explicit Exponentials(StripScores& scores)
      : scores_(scores),
        scale_(scores.scale),
        begin_(scores.begin),
        end_(scores.end),
        row_(scores.row),
        at_(scores.at) {}
  Exponentials(const Exponentials&) = delete;
  Exponentials& operator=(const Exponentials&) = delete;
  ~Exponentials() { scores_.row = row_, scores_.at = at_; }

  [[nodiscard]] bool done() const { return row_ == strip; }
  ATTEST_INLINE void next() {
    float* const at = scores_.values + row_ * tile_keys + at_;
    float* const sum = scores_.sum + row_ * lanes;
    const Floats weights = exponential_of_two((load_floats(at) - scores_.base[row_]) * scale_);
    store_floats(weights, at);
    store_floats(load_floats(sum) + weights, sum);
    at_ += lanes;
    if (at_ == end_) ++row_, at_ = begin_;
  }

 private:
  StripScores& scores_;
  // Copies, because a compiler has to assume that any vector that is stored changes what lies in memory.
  const float scale_;
  const std::int64_t begin_, end_;
  std::int64_t row_, at_;
};

void end_weights(StripScores& scores, StripSoftmax& softmax) {
  for (Exponentials left(scores); !left.done();) left.next();
  const Floats sums = across_rows(scores.sum, [](Floats a, Floats b) { return a + b; });
  store_floats(load_floats(softmax.sum) * load_floats(softmax.factor) + sums, softmax.sum);
}

// ---------------------------------------------------------------------------------------------------------------------
// The products with values

/// Fetches, and exponentials, which alone would wait for each other's results, and the multipliers with them.
class FetchesAndExponentials {
 public:
  // So that a strip's exponentials are done after 64 channels of as many keys.
  static constexpr std::int64_t every = ATTEST_ROW_LANES == 16 ? 2 : 4;

  FetchesAndExponentials(const Ahead& ahead, std::int64_t turns, StripScores& scores)
      : fetches_(ahead, (turns + fetch_turn - 1) / fetch_turn), exponentials_(scores) {}
  ATTEST_INLINE void some() {
    if (turn_++ % fetch_turn == 0) fetches_.some();
    if (!exponentials_.done()) exponentials_.next();
  }

 private:
  static_assert(Fetches::every % every == 0);
  static constexpr std::int64_t fetch_turn = Fetches::every / every;
  Fetches fetches_;
  Exponentials exponentials_;
  std::int64_t turn_ = 0;
};

/// Channels [c, c + vectors * lanes).
template <std::int64_t vectors, class Meanwhile>
ATTEST_INLINE inline void blend_channels(const float* weights, const float* factor, const float* values,
                                         std::int64_t apart, std::int64_t c, TileRange range, Meanwhile& meanwhile,
                                         float* blended) {
  Floats sum[strip][vectors];
  if (factor == nullptr) {
#pragma GCC unroll 16
    for (std::int64_t r = 0; r < strip; ++r) {
#pragma GCC unroll 2
      for (std::int64_t v = 0; v < vectors; ++v) sum[r][v] = Floats{};
    }
  } else {
#pragma GCC unroll 16
    for (std::int64_t r = 0; r < strip; ++r) {
#pragma GCC unroll 2
      for (std::int64_t v = 0; v < vectors; ++v) {
        sum[r][v] = factor[r] * load_floats(blended + r * apart + c + v * lanes);
      }
    }
  }
  multiply_add<vectors>(weights + range.begin, values + c * tile_keys + range.begin * lanes, tile_keys * lanes,
                        range.end - range.begin, meanwhile, sum);
#pragma GCC unroll 16
  for (std::int64_t r = 0; r < strip; ++r) {
#pragma GCC unroll 2
    for (std::int64_t v = 0; v < vectors; ++v) store_floats(sum[r][v], blended + r * apart + c + v * lanes);
  }
}

template <class Meanwhile>
ATTEST_INLINE inline void blend_panels(const float* weights, const float* factor, const float* values,
                                       std::int64_t width, TileRange range, Meanwhile& meanwhile, float* blended) {
  const std::int64_t apart = padded(width);
  std::int64_t c = 0;
  for (; c + lanes < width; c += strip_vectors * lanes) {
    blend_channels<strip_vectors>(weights, factor, values, apart, c, range, meanwhile, blended);
  }
  if (c < width) blend_channels<1>(weights, factor, values, apart, c, range, meanwhile, blended);
}

void blend_strip(const StripScores& weights, const float* factor, const float* values, std::int64_t width,
                 TileRange range, const Ahead& ahead, StripScores* beside, float* blended) {
  // Which of the two a strip gets depends on what comes after it. Their bits are the same as long as the compiler
  // contracts both alike, which a test sees; add_product() would cost half a percent of prefill.
  const auto turns = [&](std::int64_t every) { return turns_of(blocks_of(width), range.end - range.begin, every); };
  if (beside == nullptr) {
    Fetches fetches(ahead, turns(Fetches::every));
    blend_panels(weights.values, factor, values, width, range, fetches, blended);
  } else {
    FetchesAndExponentials both(ahead, turns(FetchesAndExponentials::every), *beside);
    blend_panels(weights.values, factor, values, width, range, both, blended);
  }
}

inline void stream_floats(Floats value, float* to) {
#if ATTEST_ROW_LANES == 16
  _mm512_stream_ps(to, value);
#elif ATTEST_ROW_LANES == 8
  _mm256_stream_ps(to, value);
#else
  store_floats(value, to);
#endif
}

/// Streams what `operation` makes of the row's elements, if vectors of them begin at multiples of their size.
template <class Operation>
inline void stream_some(const float* row, std::int64_t width, Operation&& operation, float* to) {
  std::int64_t c = 0;
  if (reinterpret_cast<std::uintptr_t>(to) % sizeof(Floats) == 0) {
    for (; c + lanes <= width; c += lanes) stream_floats(operation(load_floats(row + c)), to + c);
  }
  for (; c < width; ++c) to[c] = operation(row[c]);
}

void stream(const float* row, std::int64_t width, float* to) {
  stream_some(
      row, width, [](auto value) { return value; }, to);
}

void stream_divided(const float* row, std::int64_t width, float divisor, float* to) {
  stream_some(
      row, width, [divisor](auto value) { return value / divisor; }, to);
}

constexpr TileKernels tile_kernels{lanes,         strip,       pack,        transpose, multiply_strip,
                                   begin_weights, end_weights, blend_strip, stream,    stream_divided};

}  // namespace

}  // namespace attest::onednn
