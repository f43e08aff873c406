// SPDX-License-Identifier: Apache-2.0
// The shape of an attention launch: which tile, what lies where in shared memory, how many splits.
#pragma once

#include <cstdint>

#include "kernels/arguments.h"
#include "machine.h"

namespace attest::cuda {

/// What the host must know of an engine of kernels/engines.cuh.
struct EngineFacts {
  int tile_rows, stages, channel_unit, number_bytes;
  int most_keys;  ///< Of a tile.
};

/// Channels of a key and of a value that there is an engine for.
inline constexpr std::int64_t most_key_channels = 576, most_value_channels = 512;

/// Numbers and channels of a problem.
struct Heads {
  Storage dtype, cache;  ///< `cache`: of keys and values; codes if it is not `dtype`.
  int key_channels, value_channels;
};

/// The engine for `rows`: those of the longest sequence's queries and a group's heads. `usual`: usual_prefill.
EngineFacts engine_for(const Heads& heads, std::int64_t rows, bool usual, const Machine& machine);

/// Throws abi::Unsupported if it does not fit into the machine's shared memory.
AttendLayout layout_of(const EngineFacts& engine, const Heads& heads, const Machine& machine);

/// Blocks that a multiprocessor has room for at a time.
int resident_blocks(const EngineFacts& engine, const AttendLayout& layout, const Machine& machine);

/// A launch whose keys may be split.
struct Unsplit {
  std::int64_t blocks;  ///< With one split.
  bool one_tile;        ///< Of rows, for each sequence and KV head: all that read the same keys are in one block.
  bool even;            ///< All blocks see as many keys.
  std::int64_t keys;    ///< Most that a block can see.
  bool from_start;      ///< All blocks see keys from the first on.
  int tile_keys;
};
struct Splits {
  int count, keys;
};
/// `resident`: resident_blocks; `wanted`: keys of a split, 0: as is best for the machine.
Splits splits_for(const Unsplit& launch, int resident, int wanted, const Machine& machine);

}  // namespace attest::cuda
