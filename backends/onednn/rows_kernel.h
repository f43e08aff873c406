// SPDX-License-Identifier: Apache-2.0
// The kernels of rows.h for vectors of ATTEST_ROW_LANES floats. Included once by each rows_*.cpp, all of it in an
// unnamed namespace: no function of one instruction set may stand in for another's when the library is linked. For the
// same reason nothing of the standard library is called that would not vanish.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "rows.h"

#if ATTEST_ROW_LANES > 4
#include <immintrin.h>
#endif

#define ATTEST_INLINE __attribute__((always_inline))

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

/// The float in every lane. Floats{} + value would be a sum before it.
ATTEST_INLINE inline Floats in_all_lanes(const float& value) {
#if ATTEST_ROW_LANES == 16
  return reinterpret_cast<Floats>(_mm512_set1_ps(value));
#elif ATTEST_ROW_LANES == 8
  return reinterpret_cast<Floats>(_mm256_set1_ps(value));
#else
  return Floats{} + value;
#endif
}

/// a * b + sum, fused wherever the vectors can: left to the compiler, one loop's may be and another's not, and a
/// result's bits would depend on how many rows are side by side.
ATTEST_INLINE inline Floats add_product(Floats sum, Floats a, Floats b) {
#if ATTEST_ROW_LANES == 16
  return reinterpret_cast<Floats>(
      _mm512_fmadd_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b), reinterpret_cast<__m512>(sum)));
#elif ATTEST_ROW_LANES == 8
  return reinterpret_cast<Floats>(
      _mm256_fmadd_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b), reinterpret_cast<__m256>(sum)));
#else
  return a * b + sum;
#endif
}

// ---------------------------------------------------------------------------------------------------------------------
// Sums across lanes

/// Sums of neighbours: one step of the tree that turns four vectors into their sums.
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

typedef float Four __attribute__((vector_size(16)));

/// Lane k of the result is the sum of vector k.
ATTEST_INLINE inline Four sums_of(const Floats (&vectors)[4]) {
  const Floats fours = add_neighbours(add_neighbours(vectors[0], vectors[1]), add_neighbours(vectors[2], vectors[3]));
#if ATTEST_ROW_LANES == 16
  return (__builtin_shufflevector(fours, fours, 0, 1, 2, 3) + __builtin_shufflevector(fours, fours, 4, 5, 6, 7)) +
         (__builtin_shufflevector(fours, fours, 8, 9, 10, 11) + __builtin_shufflevector(fours, fours, 12, 13, 14, 15));
#elif ATTEST_ROW_LANES == 8
  return __builtin_shufflevector(fours, fours, 0, 1, 2, 3) + __builtin_shufflevector(fours, fours, 4, 5, 6, 7);
#else
  return fours;
#endif
}

#if ATTEST_ROW_LANES == 16
/// Lane n of the result is the sum of vector n, by the very tree above: a row that is left over has the bits of one
/// that was read beside others.
ATTEST_INLINE inline Floats sums_of(const Floats (&vectors)[16]) {
  Floats fours[4];
#pragma GCC unroll 4
  for (int k = 0; k < 4; ++k) {
    fours[k] = add_neighbours(add_neighbours(vectors[4 * k], vectors[4 * k + 1]),
                              add_neighbours(vectors[4 * k + 2], vectors[4 * k + 3]));
  }
  const auto add_quarters = [](Floats a, Floats b) ATTEST_INLINE {
    const __m512 first = reinterpret_cast<__m512>(a), second = reinterpret_cast<__m512>(b);
    return reinterpret_cast<Floats>(_mm512_shuffle_f32x4(first, second, 0x88)) +
           reinterpret_cast<Floats>(_mm512_shuffle_f32x4(first, second, 0xDD));
  };
  return add_quarters(add_quarters(fours[0], fours[1]), add_quarters(fours[2], fours[3]));
}
#endif

/// Lane i of the result is lane i ^ distance.
template <int distance, int... lane>
inline Floats swapped(Floats v, std::integer_sequence<int, lane...>) {
  return __builtin_shufflevector(v, v, (lane ^ distance)...);
}

/// What `operation` makes of all lanes.
template <int distance = lanes / 2, class Operation>
inline float across(Floats v, const Operation& operation) {
  if constexpr (distance > 0) {
    const Floats other = swapped<distance>(v, std::make_integer_sequence<int, lanes>());
    return across<distance / 2>(operation(v, other), operation);
  } else {
    return v[0];
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// The order of reading
//
// In turn (read_in_turn): memory is at its quickest where rows are read one after the other as they lie, and the sums
// of values wait in the first-level cache meanwhile; but with more queries loading and storing these is what takes the
// time. Beside: some tokens' rows of a head share each load of a query and of a sum.

template <int n>
using Known = std::integral_constant<int, n>;

/// How what comes later is fetched while rows side by side are multiplied.
enum class Fetched {
  at_once,       ///< All when the rows' turn begins. Also where nothing is.
  by_one_group,  ///< Little by little, between the products of the first group of queries.
  by_two_groups  ///< Between those of the first two groups of queries, a half for each.
};

/// Rows side by side: not more than leave registers for the sums of four queries.
template <Storage storage, Fetched fetched>
constexpr int side_by_side = lanes == 16 ? most_beside(storage, fetched == Fetched::by_one_group ? queries_at_once
                                                                                                 : queries_at_once + 1)
                                         : 2;

/// Where floats are read in turn, vectors of 8 get more of them out of memory than those of 16: on Zen 4 and Zen 5 by a
/// tenth. Whoever has the longer ones has these too.
constexpr bool shorter_ones(Storage storage, std::int64_t queries) {
  return lanes == 16 && storage == Storage::f32 && read_in_turn(storage, queries);
}

/// Calls visit(known), a constant that is the number of queries, and answers true; false if rows are not to be read in
/// turn for so many.
template <Storage storage, class Visit>
inline bool in_turn(std::int64_t queries, const Visit& visit) {
  constexpr int most = shorter_ones(storage, 1) ? 0 : most_in_turn(storage);
  return [&]<int... n>(std::integer_sequence<int, n...>) {
    return ((queries == n + 1 && (visit(Known<n + 1>{}), true)) || ...);
  }
  (std::make_integer_sequence<int, most>{});
}

template <Fetched fetched>
using How = std::integral_constant<Fetched, fetched>;

/// Calls visit(fetched), a constant, for rows that are not read in turn. Many lines at once have to wait for each
/// other, and the rows behind them; but narrow elements take more arithmetic than memory, and there, as with five to
/// seven queries, that was measured to be quicker.
template <Storage storage, class Visit>
inline void beside(const RowBlock& block, std::int64_t queries, const Visit& visit) {
  if constexpr (1 < element_bytes<storage>) {
    if (queries <= queries_at_once && block.ahead != nullptr) return visit(How<Fetched::by_one_group>{});
    if (queries >= 2 * queries_at_once && block.ahead != nullptr) return visit(How<Fetched::by_two_groups>{});
  }
  visit(How<Fetched::at_once>{});
}

ATTEST_INLINE inline void fetch(const char* from, std::int64_t bytes) {
#pragma GCC unroll 8
  for (std::int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(from + at, 0, 3);
}

/// Whether the rows ahead lie without gaps: then they come in their order, though of `tokens` rows side by side one
/// head's come after the other's.
ATTEST_INLINE inline bool dense_ahead(const RowBlock& block, std::int64_t bytes) {
  return (block.heads == 1 || block.ahead_head_stride == bytes) && block.ahead_stride == block.heads * bytes;
}

/// What comes with `tokens` rows of head h side by side, whose own place ahead is `ahead`: all at once.
template <int tokens>
ATTEST_INLINE inline void fetch_beside(const RowBlock& block, const char* ahead, std::int64_t h, std::int64_t bytes) {
  if (block.ahead == nullptr) return;
  const bool dense = dense_ahead(block, bytes);
  if (dense) ahead += h * (tokens - 1) * bytes;
  for (int i = 0; i < tokens; ++i) fetch(ahead + i * (dense ? bytes : block.ahead_stride), bytes);
}

/// Little by little, `share` of the `tokens` rows ahead, from row `first` on.
template <int share>
class Fetching {
 public:
  ATTEST_INLINE Fetching(const RowBlock& block, const char* ahead, std::int64_t h, std::int64_t bytes, int tokens,
                         int first)
      : at_(ahead), apart_(block.ahead_stride) {
    if (dense_ahead(block, bytes)) {
      at_ += h * (tokens - 1) * bytes + first * bytes, apart_ = 64, step_ = share * 64;
    } else {
      at_ += first * apart_;
    }
  }
  /// As many lines as lie in 64 bytes of each row.
  ATTEST_INLINE void next() {
#pragma GCC unroll 4
    for (int i = 0; i < share; ++i) __builtin_prefetch(at_ + i * apart_, 0, 3);
    at_ += step_;
  }

 private:
  const char* at_;
  std::int64_t apart_, step_ = 64;
};

/// Calls visit(tokens, row, ahead, j, h) for so many rows of head h at a time, from row j on: a constant that is the
/// given one or, for what is left over, 1. All heads of a token come before the next token.
template <int tokens, class Visit>
ATTEST_INLINE inline void each_row(const RowBlock& block, const Visit& visit) {
  const auto all_heads = [&](auto t, std::int64_t j) ATTEST_INLINE {
    const char* row = block.first + j * block.stride;
    const char* ahead = block.ahead + j * block.ahead_stride;
    for (std::int64_t h = 0; h < block.heads; ++h, row += block.head_stride, ahead += block.ahead_head_stride) {
      visit(t, row, ahead, j, h);
    }
  };
  std::int64_t j = 0;
  for (; j + tokens <= block.count; j += tokens) all_heads(Known<tokens>{}, j);
  if constexpr (tokens > 1) {
    for (; j < block.count; ++j) all_heads(Known<1>{}, j);
  }
}

/// Calls visit(c, odd, load) for the vectors of a row of `width` elements: load(row) is the one from channel c on, and
/// `odd`, a constant 0 or 1, says which of two sums it goes to. A known width (0: it is not) is unrolled.
template <Storage storage, int known_width, class Visit>
ATTEST_INLINE inline void each_vector(std::int64_t width, const Visit& visit) {
  const auto whole = [&](std::int64_t c, auto odd) ATTEST_INLINE {
    visit(c, odd, [=](const char* row) ATTEST_INLINE { return load<storage>(row + c * element_bytes<storage>); });
  };
  constexpr Known<0> even{};
  constexpr Known<1> odd{};
  std::int64_t c = 0;
  if constexpr (known_width != 0) {
    static_assert(known_width % (2 * lanes) == 0);
#pragma GCC unroll 16
    for (; c < known_width; c += 2 * lanes) whole(c, even), whole(c + lanes, odd);
  } else {
    for (; c + 2 * lanes <= width; c += 2 * lanes) whole(c, even), whole(c + lanes, odd);
    if (c + lanes <= width) {
      whole(c, even);
      c += lanes;
    }
    if (c < width) {
      visit(c, odd, [=](const char* row) ATTEST_INLINE {
        return load_some<storage>(row + c * element_bytes<storage>, width - c);
      });
    }
  }
}

/// Calls visit(known) with a constant that is the width, if that is a usual one, or 0. Sanitised, the kernels of known
/// widths would take minutes to be compiled; those of any width are the same but for their loop.
template <class Visit>
inline void by_width([[maybe_unused]] std::int64_t width, const Visit& visit) {
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  if (width == 128) return visit(Known<128>{});
  if (width == 64) return visit(Known<64>{});
#endif
  visit(Known<0>{});
}

/// Calls visit(taken, r) for groups of queries that are as large as can be, from query r on: a constant, of
/// queries_at_once, 2 or 1.
template <class Visit>
ATTEST_INLINE inline void in_groups(std::int64_t queries, const Visit& visit) {
  std::int64_t r = 0;
  for (; r + queries_at_once <= queries; r += queries_at_once) visit(Known<queries_at_once>{}, r);
  if (r + 2 <= queries) visit(Known<2>{}, r), r += 2;
  if (r < queries) visit(Known<1>{}, r);
}

/// What comes from a pointer after this is found by constant offsets from it: GCC would keep every one of them in a
/// register of its own, and the pointers of a row in its vectors.
template <class Element>
ATTEST_INLINE inline void anchor(Element*& pointer) {
  asm("" : "+r"(pointer));
}

// ---------------------------------------------------------------------------------------------------------------------
// The products

/// products[n / queries + n % queries * leading] = the sum of vector n.
template <int queries, int count>
ATTEST_INLINE inline void write_sums(const Floats (&sums)[count], float* products, std::int64_t leading) {
#pragma GCC unroll 4
  for (int n = 0; n < count; n += 4) {
    Floats four[4] = {};
    for (int k = 0; k < 4 && n + k < count; ++k) four[k] = sums[n + k];
    const Four totals = sums_of(four);
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
      if (n + k < count) products[(n + k) / queries + (n + k) % queries * leading] = totals[k];
    }
  }
}

/// products[k * leading + i] = the sum of vector i * queries + k.
template <int tokens, int queries>
ATTEST_INLINE inline void write_beside(const Floats (&sums)[tokens * queries], float* products, std::int64_t leading) {
#if ATTEST_ROW_LANES == 16
  if constexpr (queries == 4 && tokens == 4) {
    Floats by_query[16];
#pragma GCC unroll 16
    for (int n = 0; n < 16; ++n) by_query[n] = sums[n % 4 * 4 + n / 4];
    const Floats totals = sums_of(by_query);
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
      const Four its = {totals[4 * k], totals[4 * k + 1], totals[4 * k + 2], totals[4 * k + 3]};
      std::memcpy(products + k * leading, &its, sizeof its);
    }
    return;
  }
#endif
  write_sums<queries>(sums, products, leading);
}

template <Storage storage, int queries, int known_width>
void multiply_in_turn(const RowBlock& keys, const float* query, float* products, std::int64_t leading) {
  const std::int64_t width = known_width != 0 ? known_width : keys.width, apart = padded(width);
  const auto take = [&](auto, const char* row, const char* ahead, std::int64_t j, std::int64_t h) ATTEST_INLINE {
    const float* own = query + h * queries * apart;
    anchor(row);
    anchor(own);
    // In two sums: else each product would wait for the one before.
    Floats sum[2][queries] = {}, sums[queries];
    each_vector<storage, known_width>(width, [&](std::int64_t c, auto odd, const auto& key_of) ATTEST_INLINE {
      if (keys.ahead != nullptr && c * element_bytes<storage> % 64 == 0) {
        __builtin_prefetch(ahead + c * element_bytes<storage>, 0, 3);
      }
      const Floats key = key_of(row);
#pragma GCC unroll 4
      for (int r = 0; r < queries; ++r) {
        sum[odd][r] = add_product(sum[odd][r], key, load_floats(own + r * apart + c));
      }
    });
#pragma GCC unroll 4
    for (int r = 0; r < queries; ++r) sums[r] = sum[0][r] + sum[1][r];
    write_sums<queries>(sums, products + h * queries * leading + j, leading);
  };
  each_row<1>(keys, take);
}

template <Storage storage, int known_width, Fetched fetched>
void multiply_beside(const RowBlock& keys, const float* query, std::int64_t queries, float* products,
                     std::int64_t leading) {
  const std::int64_t width = known_width != 0 ? known_width : keys.width, apart = padded(width);
  // A row of unknown width may be long: then not at once even where that is said.
  constexpr bool little_by_little = fetched != Fetched::at_once || known_width == 0;
  const auto take = [&](auto some, const char* row, const char* ahead, std::int64_t j, std::int64_t h) ATTEST_INLINE {
    constexpr int share = fetched == Fetched::by_two_groups && some % 2 == 0 ? some / 2 : some;
    Fetching<share> fetching(keys, ahead, h, width * element_bytes<storage>, some, 0);
    if (!little_by_little) fetch_beside<some>(keys, ahead, h, width * element_bytes<storage>);
    in_groups(queries, [&](auto group, std::int64_t r) ATTEST_INLINE {
      constexpr int tokens = some, taken = group;
      const char* from[tokens];
      for (int i = 0; i < tokens; ++i) from[i] = row + i * keys.stride;
      const float* own = query + (h * queries + r) * apart;
      anchor(own);
      Floats sums[tokens * taken] = {};
      if (share != some && r == queries_at_once) {
        fetching = Fetching<share>(keys, ahead, h, width * element_bytes<storage>, some, share);
      }
      each_vector<storage, known_width>(width, [&](std::int64_t c, auto, const auto& key_of) ATTEST_INLINE {
        if (little_by_little && (r == 0 || (share != some && r == queries_at_once)) &&
            (fetched != Fetched::at_once || keys.ahead != nullptr) && c * element_bytes<storage> % 64 == 0) {
          fetching.next();
        }
        Floats key[tokens];
#pragma GCC unroll 4
        for (int i = 0; i < tokens; ++i) key[i] = key_of(from[i]);
#pragma GCC unroll 4
        for (int k = 0; k < taken; ++k) {
          const Floats q = load_floats(own + k * apart + c);
#pragma GCC unroll 4
          for (int i = 0; i < tokens; ++i) {
            sums[i * taken + k] = add_product(sums[i * taken + k], key[i], q);
          }
        }
      });
      write_beside<tokens, taken>(sums, products + (h * queries + r) * leading + j, leading);
    });
  };
  each_row<side_by_side<storage, fetched>>(keys, take);
}

template <Storage storage>
void multiply_all(const RowBlock& keys, const float* query, std::int64_t queries, float* products,
                  std::int64_t leading) {
  by_width(keys.width, [&](auto width) {
    const auto few = [&](auto known) { multiply_in_turn<storage, known, width>(keys, query, products, leading); };
    if (in_turn<storage>(queries, few)) return;
    beside<storage>(keys, queries, [&](auto fetched) {
      multiply_beside<storage, width, fetched>(keys, query, queries, products, leading);
    });
  });
}

// ---------------------------------------------------------------------------------------------------------------------
// The blend

template <Storage storage, int queries, int known_width>
void blend_in_turn(const RowBlock& values, const float* weights, std::int64_t leading, float* blended) {
  const std::int64_t width = known_width != 0 ? known_width : values.width, apart = padded(width);
  const auto take = [&](auto, const char* row, const char* ahead, std::int64_t j, std::int64_t h) ATTEST_INLINE {
    const float* const own_weights = weights + h * queries * leading + j;
    float* own = blended + h * queries * apart;
    anchor(row);
    anchor(own);
    Floats weight[queries];
#pragma GCC unroll 4
    for (int r = 0; r < queries; ++r) weight[r] = in_all_lanes(own_weights[r * leading]);
    each_vector<storage, known_width>(width, [&](std::int64_t c, auto, const auto& value_of) ATTEST_INLINE {
      if (values.ahead != nullptr && c * element_bytes<storage> % 64 == 0) {
        __builtin_prefetch(ahead + c * element_bytes<storage>, 0, 3);
      }
      const Floats value = value_of(row);
#pragma GCC unroll 4
      for (int r = 0; r < queries; ++r) {
        float* const sum = own + r * apart + c;
        store_floats(add_product(load_floats(sum), weight[r], value), sum);
      }
    });
  };
  each_row<1>(values, take);
}

template <Storage storage, int known_width, Fetched fetched>
void blend_beside(const RowBlock& values, const float* weights, std::int64_t leading, std::int64_t queries,
                  float* blended) {
  const std::int64_t width = known_width != 0 ? known_width : values.width, apart = padded(width);
  const auto take = [&](auto some, const char* row, const char* ahead, std::int64_t j, std::int64_t h) ATTEST_INLINE {
    constexpr int share = fetched == Fetched::by_two_groups && some % 2 == 0 ? some / 2 : some;
    Fetching<share> fetching(values, ahead, h, width * element_bytes<storage>, some, 0);
    if (fetched == Fetched::at_once) fetch_beside<some>(values, ahead, h, width * element_bytes<storage>);
    in_groups(queries, [&](auto group, std::int64_t r) ATTEST_INLINE {
      constexpr int tokens = some, taken = group;
      const char* from[tokens];
      for (int i = 0; i < tokens; ++i) from[i] = row + i * values.stride;
      const float* const own_weights = weights + (h * queries + r) * leading + j;
      float* own = blended + (h * queries + r) * apart;
      anchor(own);
      Floats weight[taken][tokens];
#pragma GCC unroll 4
      for (int k = 0; k < taken; ++k) {
#pragma GCC unroll 4
        for (int i = 0; i < tokens; ++i) weight[k][i] = in_all_lanes(own_weights[k * leading + i]);
      }
      if (share != some && r == queries_at_once) {
        fetching = Fetching<share>(values, ahead, h, width * element_bytes<storage>, some, share);
      }
      each_vector<storage, known_width>(width, [&](std::int64_t c, auto, const auto& value_of) ATTEST_INLINE {
        if (fetched != Fetched::at_once && (r == 0 || (share != some && r == queries_at_once)) &&
            c * element_bytes<storage> % 64 == 0) {
          fetching.next();
        }
        Floats value[tokens];
#pragma GCC unroll 4
        for (int i = 0; i < tokens; ++i) value[i] = value_of(from[i]);
#pragma GCC unroll 4
        for (int k = 0; k < taken; ++k) {
          Floats sum = load_floats(own + k * apart + c);
#pragma GCC unroll 4
          for (int i = 0; i < tokens; ++i) sum = add_product(sum, weight[k][i], value[i]);
          store_floats(sum, own + k * apart + c);
        }
      });
    });
  };
  each_row<side_by_side<storage, fetched>>(values, take);
}

template <Storage storage>
void blend_all(const RowBlock& values, const float* weights, std::int64_t leading, std::int64_t queries,
               float* blended) {
  by_width(values.width, [&](auto width) {
    const auto few = [&](auto known) { blend_in_turn<storage, known, width>(values, weights, leading, blended); };
    if (in_turn<storage>(queries, few)) return;
    beside<storage>(values, queries, [&](auto fetched) {
      blend_beside<storage, width, fetched>(values, weights, leading, queries, blended);
    });
  });
}

// ---------------------------------------------------------------------------------------------------------------------
// The exponentials

typedef std::int32_t Whole __attribute__((vector_size(lanes * 4)));

/// a > b ? a : b, of which compilers make a comparison and a choice where one is a constant.
inline Floats larger(Floats a, Floats b) {
#if ATTEST_ROW_LANES == 16
  return _mm512_max_ps(a, b);
#elif ATTEST_ROW_LANES == 8
  return _mm256_max_ps(a, b);
#else
  return a > b ? a : b;
#endif
}

constexpr float minus_infinity = -__builtin_inff(), log2_of_e = 1.44269504088896341f;

// Exponents are split into a multiple of 1 / steps and a rest. As many powers of two lie between 1 and 2 in the table
// 2^(i / steps) that one instruction looks up; with one step there is nothing to look up.
constexpr int step_bits = ATTEST_ROW_LANES == 16 ? 4 : ATTEST_ROW_LANES == 8 ? 3 : 0, steps = 1 << step_bits;
constexpr float to_multiple = 12582912.0f / steps;  // 1.5 * 2^23 / steps: adding it rounds to a multiple of 1 / steps.

/// 2^x for x <= 0, also where that is a subnormal number. The polynomial is (2^r - 1) / r (minimax, relative to 2^r):
/// half a rounding off at most, with 16 steps a thirtieth.
inline Floats exponential_of_two(Floats x) {
  x = larger(Floats{} - 150.0f, x);  // 2^-150 rounds to 0. A NaN stays one.
  // The last bits of `shifted` count the steps; what is left is at most half a step, of either sign.
  const Floats shifted = x + to_multiple, r = x - (shifted - to_multiple);
#if ATTEST_ROW_LANES == 16
  const Floats curve = (r * 5.550213531e-2f + 2.402342856e-1f) * r + 6.931471825e-1f;
  const Floats table = {1.0f,         1.044273782f, 1.090507733f, 1.138788635f, 1.189207115f, 1.241857812f,
                        1.296839555f, 1.354255547f, 1.414213562f, 1.476826146f, 1.542210825f, 1.610490332f,
                        1.681792831f, 1.756252160f, 1.834008086f, 1.915206561f};
  const Floats step = _mm512_permutexvar_ps(reinterpret_cast<__m512i>(shifted), table);
  // It multiplies by the power of the next whole number below; the step is what lies between.
  return _mm512_mask_scalef_ps(r, 0xFFFF, r * step * curve + step, shifted - to_multiple);
#else
#if ATTEST_ROW_LANES == 8
  const Floats curve = (r * 5.549622327e-2f + 2.402576357e-1f) * r + 6.931472421e-1f;
  const Floats table = {1.0f,         1.090507733f, 1.189207115f, 1.296839555f,
                        1.414213562f, 1.542210825f, 1.681792831f, 1.834008086f};
  const Floats step = _mm256_permutevar8x32_ps(table, reinterpret_cast<__m256i>(shifted));
#else
  Floats curve = r * 1.535336196e-4f + 1.339887385e-3f;
  curve = curve * r + 9.618436918e-3f;
  curve = curve * r + 5.550332367e-2f;
  curve = curve * r + 2.402264774e-1f;
  curve = curve * r + 6.931471825e-1f;
  const Floats step = Floats{} + 1.0f;
#endif
  // In two factors, because below 2^-126 one float cannot hold the power.
  const Whole count = reinterpret_cast<Whole>(shifted) - (0x4B400000 - (step_bits << 23));
  const Whole whole = count >> step_bits, half = whole >> 1;
  return (r * step * curve + step) * reinterpret_cast<Floats>((half + 127) << 23) *
         reinterpret_cast<Floats>((whole - half + 127) << 23);
#endif
}

/// In two chains each, so that one step need not wait for the one before.
RowSum exponentials(float* row, std::int64_t count, float scale) {
  const std::int64_t end = (count + lanes - 1) / lanes * lanes;
  for (std::int64_t i = count; i < end; ++i) row[i] = minus_infinity;
  Floats most[2] = {Floats{} + minus_infinity, Floats{} + minus_infinity};
  std::int64_t j = 0;
  for (; j + 2 * lanes <= end; j += 2 * lanes) {
    for (int u = 0; u < 2; ++u) most[u] = larger(most[u], load_floats(row + j + u * lanes));
  }
  if (j < end) most[0] = larger(most[0], load_floats(row + j));
  const float largest = across(larger(most[0], most[1]), larger);
  // While all is masked, the difference of two infinities would be NaN.
  const float base = largest == minus_infinity ? 0 : largest, factor = scale * log2_of_e;
  Floats sums[2] = {};
  const auto weigh = [&](std::int64_t at, Floats& sum) {
    const Floats weights = exponential_of_two((load_floats(row + at) - base) * factor);
    store_floats(weights, row + at);
    sum += weights;
  };
  for (j = 0; j + 2 * lanes <= end; j += 2 * lanes) weigh(j, sums[0]), weigh(j + lanes, sums[1]);
  if (j < end) weigh(j, sums[0]);
  return {largest, across(sums[0] + sums[1], [](Floats a, Floats b) { return a + b; })};
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

void multiply(const RowBlock& keys, const float* query, std::int64_t queries, float* products, std::int64_t leading) {
  if (shorter_ones(keys.storage, queries)) {
    return row_kernels_avx2()->multiply(keys, query, queries, products, leading);
  }
  by_storage(keys.storage, [&]<Storage storage>() { multiply_all<storage>(keys, query, queries, products, leading); });
}

void blend(const RowBlock& values, const float* weights, std::int64_t leading, std::int64_t queries, float* blended) {
  if (shorter_ones(values.storage, queries)) {
    return row_kernels_avx2()->blend(values, weights, leading, queries, blended);
  }
  by_storage(values.storage,
             [&]<Storage storage>() { blend_all<storage>(values, weights, leading, queries, blended); });
}

}  // namespace

}  // namespace attest::onednn
