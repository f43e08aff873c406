// SPDX-License-Identifier: Apache-2.0
// The two products of a decode step over rows of keys and of values as they are stored, converted in registers.
//
// Compiled once for each instruction set that counts (rows_avx2.cpp, rows_avx512.cpp, rows_generic.cpp), from the one
// text in rows_kernel.h; which one runs is decided when the library is used.
#pragma once

#include <attest/backend_math.hpp>
#include <cstdint>
#include <string>
#include <vector>

namespace attest::onednn {

struct TileKernels;

/// Rows of `width` adjacent elements: row j of head h at first + j * stride + h * head_stride (in bytes). While it is
/// worked on, as many bytes from ahead + j * ahead_stride + h * ahead_head_stride on are fetched into the cache: what
/// will be read soon. They are not read, so `ahead` may point anywhere. Null, and its strides 0: nothing is fetched.
struct RowBlock {
  abi::Storage storage;
  const char* first;
  std::int64_t stride, count, width;
  std::int64_t heads = 1, head_stride = 0;
  const char* ahead = nullptr;
  std::int64_t ahead_stride = 0, ahead_head_stride = 0;
};

/// For how many queries the kernels read a block's rows one after the other, all heads of row 0, of row 1 and so on:
/// reading them is all that takes time then. For more queries, or narrower elements, arithmetic does too, and some rows
/// of a head are read side by side.
constexpr int most_in_turn(abi::Storage storage) {
  const bool halves = storage == abi::Storage::f16 || storage == abi::Storage::bf16;
  return storage == abi::Storage::f32 ? 3 : halves ? 2 : 0;
}
constexpr bool read_in_turn(abi::Storage storage, std::int64_t queries) {
  return queries <= most_in_turn(storage);
}
/// Queries that share each load of a row, at most.
constexpr int queries_at_once = 4;
/// How many rows of a head the kernels read side by side at most, where they do and fetch others meanwhile: of floats
/// only two while all queries share a load, for memory takes longer than arithmetic then.
constexpr int most_beside(abi::Storage storage, std::int64_t queries) {
  return storage == abi::Storage::f32 && queries <= queries_at_once ? 2 : 4;
}

/// How far before they are read rows are best fetched: at most that, in whole numbers of rows that are read side by
/// side, but of these one number at least.
constexpr std::int64_t bytes_ahead = 8192;

/// Floats of a padded row, of any width; most lanes that a kernel has.
constexpr std::int64_t row_padding = 16;
constexpr std::int64_t padded(std::int64_t width) {
  return (width + row_padding - 1) / row_padding * row_padding;
}

struct RowSum {
  float largest;  ///< Score; -infinity for a row that sees nothing.
  float sum;      ///< Of the weights.
};

/// Each head of a block has `queries` query rows, products and blends of its own, one head's behind the other's. A
/// result's bits depend on the rows' contents and on the number of query rows, not on where rows lie or how they are
/// divided into blocks. A quantised element counts as its code.
struct RowKernels {
  const char* name;  ///< Of the instruction set.

  /// products[r * leading + j] = query row r times row j. Query rows are padded(width) apart, the padding 0.
  void (*multiply)(const RowBlock& keys, const float* query, std::int64_t queries, float* products,
                   std::int64_t leading);

  /// blend row r += sum over j of weights[r * leading + j] * row j. Blended rows are padded(width) apart.
  void (*blend)(const RowBlock& values, const float* weights, std::int64_t leading, std::int64_t queries,
                float* blended);

  /// Turns scores into weights: row[j] = exp(scale * (row[j] - largest)). A score of -infinity is masked: its weight is
  /// 0. `scale` and how good a weight is: as for begin_weights() of tiles.h. May write up to row_padding - 1 more
  /// floats.
  RowSum (*exponentials)(float* row, std::int64_t count, float scale);

  const TileKernels* tiles;  ///< For many queries.
};

/// Those that this machine can run, the best one first; the last one runs anywhere.
std::vector<const RowKernels*> row_kernels();

// One for each file; null where the compiler does not aim at such machines.
const RowKernels* row_kernels_avx512();
const RowKernels* row_kernels_avx2();
const RowKernels* row_kernels_generic();

}  // namespace attest::onednn
