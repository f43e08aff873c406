// SPDX-License-Identifier: Apache-2.0
// The keys of a tile, or its values: from where they lie to the panels that the kernels of tiles.h take.
#pragma once

#include <cstdint>
#include <vector>

#include "heads.h"
#include "kv.h"
#include "tiles.h"

namespace attest::onednn {

class TileSource {
 public:
  TileSource(const TileKernels& kernels, std::int64_t width);

  /// Takes positions [first, end) of one tile. `of` must stay until they are packed. It does not throw.
  void list(const KvRows& of, std::int64_t b, std::int64_t head, std::int64_t first, std::int64_t end);

  /// Asks for row i of those listed, which are to be packed soon.
  void fetch(std::int64_t i) const;
  /// As panels of channels, for `blend`: tile_keys * padded(width) floats.
  void pack(float* panels) const { pack(first_, end_, tile_keys, panels); }
  /// As panels of keys, for `multiply`: tile_keys * width floats.
  void pack_transposed(float* panels);

 private:
  void pack(std::int64_t first, std::int64_t end, std::int64_t panel_rows, float* panels) const;

  const TileKernels& kernels_;
  std::int64_t width_;
  Storage cached_ = Storage::f32;
  std::int64_t first_ = 0, cached_end_ = 0, end_ = 0;  ///< Positions from cached_end_ on are f32.
  bool scaled_ = false;
  std::vector<const char*> rows_;
  std::vector<float> scales_;
  Scratch copied_;  ///< Rows whose channels lie apart.
  Scratch staged_;  ///< Packed rows, to be transposed.
};

}  // namespace attest::onednn
