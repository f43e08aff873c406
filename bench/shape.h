// SPDX-License-Identifier: Apache-2.0
// What is measured: one problem with the lengths of one step, and the built-in sets of them.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "cases/problem.h"

namespace attest::bench {

struct Shape {
  std::string set;   ///< decode, prefill, mixed or layer: what its numbers may be compared with.
  std::string name;  ///< "b8_h32-8_d128_c2048_f32": unique, and never changes its meaning.
  Problem problem;
  bool heads_first = false;      ///< The cache's order in memory: [B, Hk, C, D] instead of [B, C, Hk, D].
  int64_t context = 0;           ///< Longest sequence after the step, without the decode step's own token.
  std::vector<int64_t> before;   ///< Tokens per sequence in the cache before the step ...
  std::vector<int64_t> queries;  ///< ... and those that the step appends and attends with.

  /// Tokens that the step makes: what a user counts as throughput.
  [[nodiscard]] int64_t tokens() const;
  [[nodiscard]] bool is_decode() const { return set == "decode" || set == "layer"; }
};

/// What one step moves and computes: the least that any implementation must.
struct Cost {
  double kv_bytes = 0;  ///< Visible keys and values, with scales.
  double bytes = 0;     ///< And the block table, queries, outputs, what is appended, and a layer's weights.
  double flops = 0;     ///< Of the visible keys only: a masked half is nobody's work.
};
Cost cost_of(const Shape& shape);

/// Bytes of one cache, unused slots included.
int64_t cache_bytes(const Shape& shape);

/// "decode", "prefill", "mixed", "model:llama3-8b", or a file of shapes (spec/bench.md). Throws Error.
std::vector<Shape> find_shapes(const std::string& set_or_file);
/// The same from a file's text.
std::vector<Shape> shapes_from_json(std::string_view text, std::string_view place);

}  // namespace attest::bench
