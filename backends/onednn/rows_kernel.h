// SPDX-License-Identifier: Apache-2.0
// The kernels of rows.h for vectors of ATTEST_ROW_LANES floats. Included once by each rows_*.cpp, all of it in an
// unnamed namespace: no function of one instruction set may stand in for another's when the library is linked. For the
// same reason nothing of the standard library is called that would not vanish.
#pragma once

#include <cstdint>
#include <cstring>

#include "rows.h"

#if ATTEST_ROW_LANES > 4
#include <immintrin.h>
#endif

namespace attest::onednn {

namespace {

using abi::Storage;

constexpr std::int64_t lanes = ATTEST_ROW_LANES;
// GCC's vectors: arithmetic on them is the machine's, and a * b + c is fused where it can be.
typedef float Floats __attribute__((vector_size(lanes * 4)));
typedef std::uint32_t Words __attribute__((vector_size(lanes * 4)));
typedef float FloatsInMemory __attribute__((vector_size(lanes * 4), aligned(4), may_alias));

// ---------------------------------------------------------------------------------------------------------------------
// Elements to floats

inline Floats as_floats(Words bits) {
  return reinterpret_cast<Floats>(bits);
}

inline Floats load_floats(const void* from) {
  return *static_cast<const FloatsInMemory*>(from);
}

inline void store_floats(Floats value, float* to) {
  *reinterpret_cast<FloatsInMemory*>(to) = value;
}

#if ATTEST_ROW_LANES == 16
inline Words words_of_16(const void* from) {
  return reinterpret_cast<Words>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(static_cast<const __m256i*>(from))));
}
inline Floats floats_of_half(const void* from) {
  return reinterpret_cast<Floats>(_mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(from))));
}
inline Floats floats_of_i8(const void* from) {
  const __m128i codes = _mm_loadu_si128(static_cast<const __m128i*>(from));
  return reinterpret_cast<Floats>(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes)));
}
/// fp8 of 5 exponent bits is the upper half of fp16.
inline Floats floats_of_e5m2(const void* from) {
  const __m256i codes = _mm256_cvtepu8_epi16(_mm_loadu_si128(static_cast<const __m128i*>(from)));
  return reinterpret_cast<Floats>(_mm512_cvtph_ps(_mm256_slli_epi16(codes, 8)));
}
/// Moved into fp16's places it is fp16 but for the bias of the exponent.
inline Floats floats_of_e4m3(const void* from) {
  const __m256i codes = _mm256_cvtepi8_epi16(_mm_loadu_si128(static_cast<const __m128i*>(from)));
  const __m256i half = _mm256_and_si256(_mm256_slli_epi16(codes, 7), _mm256_set1_epi16(static_cast<short>(0xBF80)));
  return reinterpret_cast<Floats>(_mm512_cvtph_ps(half)) * 256.0f;
}
#elif ATTEST_ROW_LANES == 8
inline Words words_of_16(const void* from) {
  return reinterpret_cast<Words>(_mm256_cvtepu16_epi32(_mm_loadu_si128(static_cast<const __m128i*>(from))));
}
inline Floats floats_of_half(const void* from) {
  return reinterpret_cast<Floats>(_mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i*>(from))));
}
inline Floats floats_of_i8(const void* from) {
  const __m128i codes = _mm_loadl_epi64(static_cast<const __m128i*>(from));
  return reinterpret_cast<Floats>(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes)));
}
/// fp8 of 5 exponent bits is the upper half of fp16.
inline Floats floats_of_e5m2(const void* from) {
  const __m128i codes = _mm_cvtepu8_epi16(_mm_loadl_epi64(static_cast<const __m128i*>(from)));
  return reinterpret_cast<Floats>(_mm256_cvtph_ps(_mm_slli_epi16(codes, 8)));
}
/// Moved into fp16's places it is fp16 but for the bias of the exponent.
inline Floats floats_of_e4m3(const void* from) {
  const __m128i codes = _mm_cvtepi8_epi16(_mm_loadl_epi64(static_cast<const __m128i*>(from)));
  const __m128i half = _mm_and_si128(_mm_slli_epi16(codes, 7), _mm_set1_epi16(static_cast<short>(0xBF80)));
  return reinterpret_cast<Floats>(_mm256_cvtph_ps(half)) * 256.0f;
}
#else
template <class Code>
inline Words words_of(const void* from) {
  Code codes[lanes];
  std::memcpy(codes, from, sizeof codes);
  Words words;
  for (int i = 0; i < lanes; ++i) words[i] = static_cast<std::uint32_t>(codes[i]);
  return words;
}
inline Words words_of_16(const void* from) {
  return words_of<std::uint16_t>(from);
}
/// fp16 from its bits: as a float it has too small a bias, which one exact product mends.
inline Floats floats_of_half_bits(Words half) {
  constexpr float factor = 0x1p112f;
  const Floats magnitude = as_floats((half & 0x7FFFu) << 13) * factor;
  return as_floats(reinterpret_cast<Words>(magnitude) | (half & 0x8000u) << 16);
}
inline Floats floats_of_half(const void* from) {
  return floats_of_half_bits(words_of_16(from));
}
inline Floats floats_of_i8(const void* from) {
  std::int8_t codes[lanes];
  std::memcpy(codes, from, sizeof codes);
  Floats floats;
  for (int i = 0; i < lanes; ++i) floats[i] = static_cast<float>(codes[i]);
  return floats;
}
/// fp8 of 5 exponent bits is the upper half of fp16.
inline Floats floats_of_e5m2(const void* from) {
  return floats_of_half_bits(words_of<std::uint8_t>(from) << 8);
}
/// Moved into fp16's places it is fp16 but for the bias of the exponent.
inline Floats floats_of_e4m3(const void* from) {
  const Words code = words_of<std::uint8_t>(from);
  return floats_of_half_bits((code & 0x7Fu) << 7 | (code & 0x80u) << 8) * 256.0f;
}
#endif

template <Storage storage>
constexpr std::int64_t element_bytes = storage == Storage::f32                               ? 4
                                       : storage == Storage::f16 || storage == Storage::bf16 ? 2
                                                                                             : 1;

/// A vector of elements. An fp8 code that is no number comes out as one: a cache has none of those.
template <Storage storage>
inline Floats load(const char* from) {
  if constexpr (storage == Storage::f32) return load_floats(from);
  if constexpr (storage == Storage::f16) return floats_of_half(from);
  if constexpr (storage == Storage::bf16) return as_floats(words_of_16(from) << 16);
  if constexpr (storage == Storage::i8) return floats_of_i8(from);
  if constexpr (storage == Storage::f8_e4m3) return floats_of_e4m3(from);
  if constexpr (storage == Storage::f8_e5m2) return floats_of_e5m2(from);
}

/// The first `count` of them, then zeros: nothing behind a row's end is read.
template <Storage storage>
inline Floats load_some(const char* from, std::int64_t count) {
  alignas(4) char elements[lanes * element_bytes<storage>] = {};
  for (std::int64_t i = 0; i < count * element_bytes<storage>; ++i) elements[i] = from[i];
  return load<storage>(elements);
}

// ---------------------------------------------------------------------------------------------------------------------
// Sums across lanes

/// Sums of neighbours: one step of the tree that turns `lanes` vectors into the vector of their sums.
inline Floats add_neighbours(Floats a, Floats b) {
#if ATTEST_ROW_LANES == 16
  return __builtin_shufflevector(a, b, 0, 2, 16, 18, 4, 6, 20, 22, 8, 10, 24, 26, 12, 14, 28, 30) +
         __builtin_shufflevector(a, b, 1, 3, 17, 19, 5, 7, 21, 23, 9, 11, 25, 27, 13, 15, 29, 31);
#elif ATTEST_ROW_LANES == 8
  return __builtin_shufflevector(a, b, 0, 2, 8, 10, 4, 6, 12, 14) +
         __builtin_shufflevector(a, b, 1, 3, 9, 11, 5, 7, 13, 15);
#else
  return __builtin_shufflevector(a, b, 0, 2, 4, 6) + __builtin_shufflevector(a, b, 1, 3, 5, 7);
#endif
}

#if ATTEST_ROW_LANES > 4
/// The same for neighbouring quarters of 4 lanes.
inline Floats add_quarters(Floats a, Floats b) {
#if ATTEST_ROW_LANES == 16
  return __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
         __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
#else
  return __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11) +
         __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15);
#endif
}
#endif

/// Lane k of the result is the sum of vector k.
inline Floats sums_of(const Floats* vectors) {
  Floats fours[lanes / 4];
  for (int i = 0; i < lanes / 4; ++i) {
    const Floats* const v = vectors + 4 * i;
    fours[i] = add_neighbours(add_neighbours(v[0], v[1]), add_neighbours(v[2], v[3]));
  }
#if ATTEST_ROW_LANES == 16
  return add_quarters(add_quarters(fours[0], fours[1]), add_quarters(fours[2], fours[3]));
#elif ATTEST_ROW_LANES == 8
  return add_quarters(fours[0], fours[1]);
#else
  return fours[0];
#endif
}

// ---------------------------------------------------------------------------------------------------------------------
// The products

/// Into the second-level cache: rows a multiple of 4 KiB apart share so few sets of the first that they would push each
/// other out.
inline void fetch(const char* from, std::int64_t bytes) {
  for (std::int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(from + at, 0, 2);
}

/// Where the rows of a pass come from: memory, while the next ones are fetched; memory, as a stream that the machine
/// fetches; or the cache, where an earlier pass has left them.
enum class Origin { fetched, stream, near };

/// How rows come to the first of some passes over them, and to the others.
template <int queries>
inline Origin origin_of(const RowBlock& block, std::int64_t query) {
  if (query != 0) return Origin::near;
  return block.ahead != nullptr ? Origin::fetched : queries == 1 ? Origin::stream : Origin::near;
}

/// Lane r * keys + k: query row r times key row k. Each load of a key serves all the queries, and the sums leave the
/// registers as results. `even`: the width is a number of vectors. The loops over registers are unrolled before
/// anything else sees them, and those over channels run at least once: else GCC keeps the sums in memory.
template <Storage storage, int queries, int keys, bool even, Origin origin>
inline Floats multiply_rows(const char* first, std::int64_t stride, std::int64_t width, const float* query,
                            const char* ahead, std::int64_t ahead_stride) {
  // A stream is read row by row, or it is none. So are rows of floats for a folded group of four: their reading is what
  // takes the time. Narrower ones, and those of more queries, share each load of a query; and with one or two queries
  // the sums of one row would wait for each other.
  constexpr int rows = origin == Origin::stream ? 1 : element_bytes<storage> == 4 && queries <= 4 ? 4 / queries : 4;
  constexpr int together = keys < rows ? keys : rows;
  const std::int64_t apart = padded(width);
  Floats sums[lanes];
#pragma GCC unroll 16
  for (int i = 0; i < lanes; ++i) sums[i] = Floats{};
#pragma GCC unroll 16
  for (int k0 = 0; k0 < keys; k0 += together) {
    const char* const row = first + k0 * stride;
    const auto take = [&](std::int64_t c, const auto& key_of) __attribute__((always_inline)) {
      Floats key[together];
#pragma GCC unroll 4
      for (int k = 0; k < together; ++k) {
        if constexpr (origin == Origin::fetched) {
          __builtin_prefetch(ahead + (k0 + k) * ahead_stride + c * element_bytes<storage>, 0, 2);
        }
        key[k] = key_of(row + k * stride + c * element_bytes<storage>);
      }
#pragma GCC unroll 8
      for (int r = 0; r < queries; ++r) {
        const Floats q = load_floats(query + r * apart + c);
#pragma GCC unroll 4
        for (int k = 0; k < together; ++k) sums[r * keys + k0 + k] += key[k] * q;
      }
    };
    std::int64_t c = 0;
    if constexpr (even) {
      do {
        take(c, [](const char* from) { return load<storage>(from); });
        c += lanes;
      } while (c < width);
    } else {
      for (; c + lanes <= width; c += lanes) take(c, [](const char* from) { return load<storage>(from); });
      take(c, [&](const char* from) { return load_some<storage>(from, width - c); });
    }
  }
  return sums_of(sums);
}

/// Keys [j, end) of a block, as many at a time as make one vector of products.
template <Storage storage, int queries, bool even, Origin origin>
inline void multiply_tile(const RowBlock& block, std::int64_t j, std::int64_t end, const float* query, float* products,
                          std::int64_t leading) {
  const auto take = [&]<int keys>() {
    for (; j + keys <= end; j += keys) {
      const Floats all = multiply_rows<storage, queries, keys, even, origin>(
          block.first + j * block.stride, block.stride, block.width, query, block.ahead + j * block.ahead_stride,
          block.ahead_stride);
      for (int r = 0; r < queries; ++r) {
        std::memcpy(products + r * leading + j, reinterpret_cast<const float*>(&all) + r * keys, sizeof(float) * keys);
      }
    }
  };
  constexpr int most = lanes / queries;
  take.template operator()<most>();
  if constexpr (most > 4) take.template operator()<4>();
  if constexpr (most > 1) take.template operator()<1>();
}

template <Storage storage>
void multiply_all(const RowBlock& keys, const float* query, std::int64_t queries, float* products,
                  std::int64_t leading) {
  const std::int64_t apart = padded(keys.width);
  // As many keys at a time as the longest of the vectors have, so that they are still near for the next queries.
  for (std::int64_t j = 0; j < keys.count; j += lanes) {
    const std::int64_t end = keys.count - j < lanes ? keys.count : j + lanes;
    std::int64_t r = 0;
    const auto take = [&]<int taken>() {
      for (; r + taken <= queries; r += taken) {
        const Origin origin = origin_of<taken>(keys, r);
        const auto tile = keys.width % lanes != 0     ? multiply_tile<storage, taken, false, Origin::near>
                          : origin == Origin::fetched ? multiply_tile<storage, taken, true, Origin::fetched>
                          : origin == Origin::stream  ? multiply_tile<storage, taken, true, Origin::stream>
                                                      : multiply_tile<storage, taken, true, Origin::near>;
        tile(keys, j, end, query + r * apart, products + r * leading, leading);
      }
    };
    if constexpr (lanes >= 8) take.template operator()<8>();
    take.template operator()<4>();
    take.template operator()<2>();
    take.template operator()<1>();
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// The blend

// Value rows whose part of a column of vectors is added before the sums go back to memory.
constexpr std::int64_t blend_tile = 16;

/// `vectors` vectors from column c on of `queries` rows.
template <Storage storage, int queries, int vectors, bool partial, Origin origin>
inline void blend_columns(const RowBlock& block, std::int64_t c, const float* weights, std::int64_t leading,
                          float* blended) {
  const std::int64_t width = block.width, apart = padded(width);
  Floats sum[queries][vectors];
  for (int r = 0; r < queries; ++r) {
    for (int v = 0; v < vectors; ++v) sum[r][v] = load_floats(blended + r * apart + c + v * lanes);
  }
  for (std::int64_t j = 0; j < block.count; ++j) {
    const char* const from = block.first + j * block.stride + c * element_bytes<storage>;
    if constexpr (origin == Origin::fetched) {
      fetch(block.ahead + j * block.ahead_stride + c * element_bytes<storage>,
            vectors * lanes * element_bytes<storage>);
    }
    Floats value[vectors];
    for (int v = 0; v < vectors; ++v) {
      value[v] =
          partial ? load_some<storage>(from, width - c) : load<storage>(from + v * lanes * element_bytes<storage>);
      // The compiler shall leave a stream in its order.
      if constexpr (queries == 1 && origin != Origin::near) asm volatile("" ::: "memory");
    }
    for (int r = 0; r < queries; ++r) {
      const float weight = weights[r * leading + j];
      for (int v = 0; v < vectors; ++v) sum[r][v] += weight * value[v];
    }
  }
  for (int r = 0; r < queries; ++r) {
    for (int v = 0; v < vectors; ++v) store_floats(sum[r][v], blended + r * apart + c + v * lanes);
  }
}

/// As many vectors at a time as leave registers for the values. For a folded group no more than two cache lines of a
/// row: its rows lie apart, and what the machine fetches by itself from more of each would push the others out. For a
/// stream whole rows of usual width, though the sums outgrow the registers: half a row at a time is no stream.
template <Storage storage, int queries, Origin origin>
inline void blend_rows(const RowBlock& block, const float* weights, std::int64_t leading, float* blended) {
  constexpr int registers = ATTEST_ROW_LANES == 16 ? 16 : 8, each = registers / queries < 8 ? registers / queries : 8;
  constexpr int of_lines = 128 / (lanes * element_bytes<storage>), folded = of_lines < each ? of_lines : each;
  constexpr int vectors = origin == Origin::stream ? 128 / lanes : queries == 4 ? folded : each;
  std::int64_t c = 0;
  for (; c + vectors * lanes <= block.width; c += vectors * lanes) {
    blend_columns<storage, queries, vectors, false, origin>(block, c, weights, leading, blended);
  }
  for (; c + lanes <= block.width; c += lanes) {
    blend_columns<storage, queries, 1, false, origin>(block, c, weights, leading, blended);
  }
  if (c < block.width) blend_columns<storage, queries, 1, true, origin>(block, c, weights, leading, blended);
}

template <Storage storage>
void blend_all(const RowBlock& values, const float* weights, std::int64_t leading, std::int64_t queries,
               float* blended) {
  const std::int64_t apart = padded(values.width);
  for (std::int64_t j = 0; j < values.count; j += blend_tile) {
    const std::int64_t tile = values.count - j < blend_tile ? values.count - j : blend_tile;
    RowBlock block = values;
    block.first += j * values.stride, block.count = tile, block.ahead += j * values.ahead_stride;
    std::int64_t r = 0;
    const auto take = [&]<int taken>() {
      for (; r + taken <= queries; r += taken) {
        const Origin origin = origin_of<taken>(values, r);
        const auto rows = origin == Origin::fetched  ? blend_rows<storage, taken, Origin::fetched>
                          : origin == Origin::stream ? blend_rows<storage, taken, Origin::stream>
                                                     : blend_rows<storage, taken, Origin::near>;
        rows(block, weights + r * leading + j, leading, blended + r * apart);
      }
    };
    take.template operator()<4>();
    take.template operator()<2>();
    take.template operator()<1>();
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// The exponentials

typedef std::int32_t Whole __attribute__((vector_size(lanes * 4)));

inline Floats larger(Floats a, Floats b) {
  return a > b ? a : b;
}

/// p * 2^n for whole numbers n, also where the result is a subnormal number; `shifted` is n + 1.5 * 2^23, whose last
/// bits are n's.
inline Floats scaled_by_power(Floats p, [[maybe_unused]] Floats n, [[maybe_unused]] Floats shifted) {
#if ATTEST_ROW_LANES == 16
  return _mm512_mask_scalef_ps(p, 0xFFFF, p, n);
#else
  // In two factors, because below n = -126 one float cannot hold 2^n.
  const Whole whole = reinterpret_cast<Whole>(shifted) - 0x4B400000, half = whole >> 1;
  return p * reinterpret_cast<Floats>((half + 127) << 23) * reinterpret_cast<Floats>((whole - half + 127) << 23);
#endif
}

/// exp(x) for x <= 0, and for rounding errors above. x = n ln 2 + r with |r| <= ln 2 / 2; ln 2 is split so that n times
/// its first part is exact, and the polynomial's error (minimax, by Remez) is a twentieth of a rounding.
inline Floats exponential(Floats x) {
  x = larger(Floats{} - 104.0f, x);          // exp(-104) rounds to 0. A NaN stays one.
  constexpr float to_integer = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number.
  const Floats shifted = x * 1.44269504088896341f + to_integer, n = shifted - to_integer;
  const Floats r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  Floats p = r * 1.381454018e-3f + 8.368745109e-3f;
  p = p * r + 4.166839078e-2f;
  p = p * r + 1.666652040e-1f;
  p = p * r + 4.999999343e-1f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  return scaled_by_power(p, n, shifted);
}

/// In two chains, so that one step need not wait for the one before.
RowSum exponentials(float* row, std::int64_t count, float scale, float at_least) {
  constexpr float minus_infinity = -__builtin_inff();
  const std::int64_t full = count / lanes * lanes, end = (count + lanes - 1) / lanes * lanes;
  for (std::int64_t i = full; i < count; ++i) row[i] *= scale;
  for (std::int64_t i = count; i < end; ++i) row[i] = minus_infinity;
  Floats most[2] = {Floats{} + at_least, Floats{} + at_least};
  const auto take = [&](std::int64_t j, Floats& into) {
    const Floats logits = load_floats(row + j) * scale;
    store_floats(logits, row + j);
    into = larger(into, logits);
  };
  std::int64_t j = 0;
  for (; j + 2 * lanes <= full; j += 2 * lanes) take(j, most[0]), take(j + lanes, most[1]);
  if (j < full) take(j, most[0]);
  if (full < end) most[0] = larger(most[0], load_floats(row + full));
  most[0] = larger(most[0], most[1]);
  float largest = at_least;
  for (int i = 0; i < lanes; ++i) largest = most[0][i] > largest ? most[0][i] : largest;
  if (largest == minus_infinity) {  // All are masked, and the difference of two would be NaN; or they are NaN already.
    double sum = 0;
    for (std::int64_t i = 0; i < end; ++i) {
      row[i] = row[i] != row[i] ? row[i] : 0;
      sum += static_cast<double>(row[i]);
    }
    return {largest, sum};
  }
  Floats sums[2] = {};
  for (j = 0; j + 2 * lanes <= end; j += 2 * lanes) {
    for (int u = 0; u < 2; ++u) {
      const Floats weights = exponential(load_floats(row + j + u * lanes) - largest);
      store_floats(weights, row + j + u * lanes);
      sums[u] += weights;
    }
  }
  if (j < end) {
    const Floats weights = exponential(load_floats(row + j) - largest);
    store_floats(weights, row + j);
    sums[0] += weights;
  }
  double sum = 0;
  for (int i = 0; i < lanes; ++i) sum += static_cast<double>(sums[0][i] + sums[1][i]);
  return {largest, sum};
}

// ---------------------------------------------------------------------------------------------------------------------
// By storage

/// Calls visit.template operator()<storage>().
template <class Visit>
inline void by_storage(Storage storage, const Visit& visit) {
  switch (storage) {
    case Storage::f32:
      return visit.template operator()<Storage::f32>();
    case Storage::f16:
      return visit.template operator()<Storage::f16>();
    case Storage::bf16:
      return visit.template operator()<Storage::bf16>();
    case Storage::i8:
      return visit.template operator()<Storage::i8>();
    case Storage::f8_e4m3:
      return visit.template operator()<Storage::f8_e4m3>();
    case Storage::f8_e5m2:
      return visit.template operator()<Storage::f8_e5m2>();
  }
}

// Reading floats takes longer than their arithmetic with up to four queries, and vectors of 8 get more of them out of
// memory than those of 16: on Zen 4 by a tenth, but for the sums of a folded group's values, which leave them too few
// registers. Whoever has the longer ones has these too.

void multiply(const RowBlock& keys, const float* query, std::int64_t queries, float* products, std::int64_t leading) {
  const auto with = [&]<Storage storage>() {
    if (lanes == 16 && storage == Storage::f32 && queries < 8) {
      row_kernels_avx2()->multiply(keys, query, queries, products, leading);
    } else {
      multiply_all<storage>(keys, query, queries, products, leading);
    }
  };
  by_storage(keys.storage, with);
}

void blend(const RowBlock& values, const float* weights, std::int64_t leading, std::int64_t queries, float* blended) {
  const auto with = [&]<Storage storage>() {
    if (lanes == 16 && storage == Storage::f32 && queries == 1) {
      row_kernels_avx2()->blend(values, weights, leading, queries, blended);
    } else {
      blend_all<storage>(values, weights, leading, queries, blended);
    }
  };
  by_storage(values.storage, with);
}

}  // namespace

}  // namespace attest::onednn
