// SPDX-License-Identifier: Apache-2.0
// How kernels see a problem and a step: plain structs that travel as launch arguments, with the few formulas that both
// sides need. Strides are in elements; counts are tokens unless said otherwise.
#pragma once

#include <attest/backend_math.hpp>
#include <cstddef>
#include <cstdint>

#include "qualifiers.h"

namespace attest::cuda {

using abi::Storage;

ATTEST_BOTH int element_bytes(Storage storage) {
  return storage == Storage::f32 ? 4 : storage == Storage::f16 || storage == Storage::bf16 ? 2 : 1;
}

template <class T>
ATTEST_BOTH T smaller(T a, T b) {
  return b < a ? b : a;
}
template <class T>
ATTEST_BOTH T larger(T a, T b) {
  return a < b ? b : a;
}
template <class T>
ATTEST_BOTH T rounded_up(T count, T unit) {
  return (count + unit - 1) / unit * unit;
}

/// What was wrong; the host has the words for it (refusal.h).
enum class Fault : std::int32_t {
  none,
  query_length,
  key_length,
  query_start,
  key_start,
  length,
  overflow,
  position_count,
  page,
  mask_extent,
  longest_query,
  longest_total
};

/// The first fault of a step: got, and the range that was wanted. Of an overflow: the capacity, the
/// tokens before, the new ones.
struct Report {
  Fault fault;
  std::int32_t sequence, index;
  std::int64_t got, low, high;
};

/// One sequence in one step, as survey.cuh has found it to be.
struct Sequence {
  std::int32_t past, keys, queries;     ///< past: tokens in the cache before the step.
  std::int32_t query_start, key_start;  ///< Packed: first token on the axis; padded: 0.
  std::int32_t cached;                  ///< Keys before this position are read from the cache, the others are fresh.

  [[nodiscard]] ATTEST_BOTH std::int32_t total() const { return past + keys; }
};

/// A tensor with a token axis. In the packed form `sequence` is 0, and a sequence's first token is at its start.
struct Tokens {
  std::byte* data;
  std::int64_t sequence, token, head, channel;
  Storage storage;

  /// Of token t (start included), in bytes.
  [[nodiscard]] ATTEST_BOTH std::byte* at(std::int64_t b, std::int64_t t, std::int64_t h, std::int64_t c = 0) const {
    return data + (b * sequence + t * token + h * head + c * channel) * element_bytes(storage);
  }
};

/// How a position finds its slot (clauses C6 to C8).
struct Slots {
  std::int32_t divisor;       ///< Page size, or capacity.
  const std::int32_t* table;  ///< Paged; else null.
  std::int64_t table_sequence, table_page;
  std::int32_t pages;  ///< That the cache has.
  Report* report;      ///< Gets page numbers that are none.

  /// What the table says of a position; who asks early need not wait for memory later.
  struct Entry {
    std::int32_t quotient, rest, page;
  };
  [[nodiscard]] ATTEST_BOTH Entry look_up(std::int32_t b, std::int32_t position) const {
    const std::int32_t quotient = position / divisor, rest = position - quotient * divisor;
    return {quotient, rest, table == nullptr ? 0 : table[b * table_sequence + quotient * table_page]};
  }

  struct Slot {
    std::int64_t outer, inner;
    bool there;  ///< False: the table has no page of the cache. Neither read nor write.
  };
  [[nodiscard]] ATTEST_BOTH Slot slot_of(std::int32_t b, const Entry& entry) const {
    if (table == nullptr) return {b, entry.rest, true};
    const bool there = entry.page >= 0 && entry.page < pages;
    if (!there && report->fault == Fault::none) {
      *report = {Fault::page, b, entry.quotient, entry.page, 0, pages - 1};
    }
    return {entry.page, entry.rest, there};
  }
  [[nodiscard]] ATTEST_BOTH Slot operator()(std::int32_t b, std::int32_t position) const {
    return slot_of(b, look_up(b, position));
  }
};

/// One tensor of the cache, with its scales.
struct CacheTensor {
  std::byte* data;
  std::int64_t outer, inner, head, channel;
  Storage storage;
  float* scales;  ///< Null unless quantised; strides 0 along what one scale spans.
  std::int64_t scale_outer, scale_inner, scale_head;
  std::int32_t scale_per_token;  ///< 1: written at each append.

  [[nodiscard]] ATTEST_BOTH std::byte* at(Slots::Slot slot, std::int64_t h, std::int64_t c = 0) const {
    return data + (slot.outer * outer + slot.inner * inner + h * head + c * channel) * element_bytes(storage);
  }
  [[nodiscard]] ATTEST_BOTH float* scale(Slots::Slot slot, std::int64_t h) const {
    return scales + slot.outer * scale_outer + slot.inner * scale_inner + h * scale_head;
  }
};

/// Where the keys of a step are read, or its values: positions before Sequence::cached in the cache, the others among
/// the step's tokens, in the cache's storage.
struct KvSide {
  CacheTensor cache;
  Tokens fresh;
  float* fresh_scales;  ///< Scales per token of fresh tokens, compact: [sequence][token][head], as `fresh` counts them.
  std::int64_t fresh_scale_sequence, fresh_scale_token;
  std::int32_t width;    ///< Channels.
  std::int32_t vectors;  ///< 1: all rows can be read 16 bytes at a time.

  [[nodiscard]] ATTEST_BOTH float fresh_scale(std::int64_t b, std::int64_t t, std::int64_t h) const {
    if (cache.scale_per_token != 0) return fresh_scales[b * fresh_scale_sequence + t * fresh_scale_token + h];
    return cache.scales == nullptr ? 1 : *cache.scale({0, 0, true}, h);
  }
};

/// Clauses M1 to M5; window limits below 0 are none.
struct Visibility {
  std::int32_t causal;  ///< attest_causal.
  std::int64_t left, right;

  struct Keys {
    std::int32_t begin, end;
  };
  [[nodiscard]] ATTEST_BOTH Keys of(const Sequence& s, std::int32_t query) const {
    const std::int64_t total = s.total();
    const std::int64_t at = causal == ATTEST_CAUSAL_TOP_LEFT ? query : total - s.queries + query;
    std::int64_t begin = left >= 0 ? at - left : 0;
    std::int64_t end = causal == ATTEST_CAUSAL_NONE ? total : at + 1;
    if (right >= 0) end = smaller(end, at + right + 1);
    begin = smaller(larger<std::int64_t>(begin, 0), total);
    end = smaller(larger(end, begin), total);
    return {static_cast<std::int32_t>(begin), static_cast<std::int32_t>(end)};
  }
};

}  // namespace attest::cuda
