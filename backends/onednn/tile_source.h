// SPDX-License-Identifier: Apache-2.0
// The keys of a tile, or its values: from where they lie to the panels that the kernels of tiles.h take.
#pragma once

#include <cstdint>
#include <vector>

#include "heads.h"
#include "kv.h"
#include "tiles.h"

namespace attest::onednn {

/// A tile comes in row by row, while the one before is worked on: its rows lie anywhere, often so that they share a few
/// sets of a cache, and would be gone again if all were asked for before any is packed.
class TileSource {
 public:
  /// What the panels are of: channels, tile_keys * padded(width) floats for `blend`, or keys, tile_keys * width floats
  /// for `multiply`.
  enum class Panels { channels, keys };

  TileSource(const TileKernels& kernels, Panels kind, std::int64_t width);

  /// Takes positions [first, end) of one tile. `of` must stay until they are packed. It does not throw.
  void list(const KvRows& of, std::int64_t b, std::int64_t head, std::int64_t first, std::int64_t end);

  /// The next `rows` of them, as far as there are so many, for somebody to ask memory for before the next list().
  RowsAhead fetch(std::int64_t rows);
  /// Packs those asked for, of keys whole vectors until all are asked for; answers which were asked for since the last
  /// time.
  abi::KeyRange pack(float* panels);

 private:
  [[nodiscard]] RowList rows_of(std::int64_t first, std::int64_t end) const;
  [[nodiscard]] const float* scales_from(std::int64_t first) const;
  void pack_channels(float* panels) const;
  void pack_keys(std::int64_t stop, float* panel);

  const TileKernels& kernels_;
  Panels kind_;
  std::int64_t width_;
  Storage cached_ = Storage::f32;
  std::int64_t first_ = 0, cached_end_ = 0, end_ = 0;    ///< Positions from cached_end_ on are f32.
  std::int64_t fetched_ = 0, arrived_ = 0, packed_ = 0;  ///< Positions before these are. Keys may come and wait.
  bool scaled_ = false;
  std::vector<const char*> rows_;
  std::vector<float> scales_;
  Scratch copied_;  ///< Rows whose channels lie apart.
  Scratch staged_;  ///< Keys as floats, to be transposed.
};

}  // namespace attest::onednn
