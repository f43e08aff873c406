// SPDX-License-Identifier: Apache-2.0
// What each kernel is launched with.
#pragma once

#include "step.h"

namespace attest::cuda {

// ---------------------------------------------------------------------------------------------------------------------
// survey.cuh

struct SurveyArguments {
  std::int32_t batch, packed, cached, ring, positions;  ///< The last four: 0 or 1.
  std::int32_t limit;                                   ///< Most tokens of a sequence.
  std::int32_t query_axis, key_axis;                    ///< Tokens on the axes: a sequence's, or packed all.
  std::int32_t grid_queries, grid_keys;                 ///< That the grids have room for, of each sequence.
  std::int64_t mask_extent;                             ///< -1: no mask.
  const std::int32_t *query_lengths, *key_lengths, *query_start, *key_start;  ///< Each may be null.
  std::int64_t query_lengths_stride, key_lengths_stride, query_start_stride, key_start_stride;
  std::int32_t* lengths;
  std::int64_t lengths_stride;
  Sequence* sequences;  ///< Out.
  std::int32_t* go;     ///< Out: 1 if the step is played.
  Report* report;       ///< Out, in memory that the host sees; kept if it has a fault already.
};

// ---------------------------------------------------------------------------------------------------------------------
// intake.cuh

/// RoPE for one problem (clauses R1 to R3); no pairs without it.
struct Rope {
  std::int32_t pairs, interleaved;  ///< interleaved: 0 or 1.
  const double* frequency;          ///< [pairs].
  double magnitude;
  const std::int32_t* positions;  ///< Null: places in the sequence.
  std::int64_t position_sequence, position_token;
};

/// One of the three, and what becomes of it.
struct IntakeSide {
  std::int32_t active;  ///< 0: nothing is to be done.
  std::int32_t is_query;
  std::int32_t heads, width;
  std::int32_t turns;  ///< 1: norm and RoPE are for this side.
  Tokens from;
  const std::byte* norm;  ///< Null without QK-norm.
  std::int64_t norm_stride;
  Storage norm_storage;
  std::int32_t to_cache;  ///< 1: to the slots of `kv.cache`; 0: to `to`.
  Tokens to;
  KvSide kv;  ///< Keys and values.
};

struct IntakeArguments {
  IntakeSide sides[3];
  Rope rope;
  double norm_epsilon;
  Slots slots;
  const Sequence* sequences;
  const std::int32_t* go;
};

struct StoreArguments {
  KvSide sides[2];
  std::int32_t heads;
  Slots slots;
  const Sequence* sequences;
  const std::int32_t* go;
};

// ---------------------------------------------------------------------------------------------------------------------
// attend.cuh and combine.cuh

/// Where things lie in a block's shared memory, in bytes; made by the host (layout_of). Of Prefill only keys, query,
/// stage, stage_bytes, value, source and bytes.
struct AttendLayout {
  std::int32_t keys;                ///< Of a tile: 16, 32 or 64; of Prefill's 64 or 128.
  std::int32_t query, query_pitch;  ///< Pitches in bytes, multiples of 16.
  std::int32_t logit, logit_pitch, weight, weight_pitch;
  std::int32_t row_state;                      ///< Three floats a row: factor, and at the end the row's results.
  std::int32_t stage, stage_bytes;             ///< Raw tiles as they come from memory.
  std::int32_t key_pitch, value, value_pitch;  ///< Of a raw tile, `value` from its beginning.
  std::int32_t source;                         ///< Of each stage: where its rows come from (TileSource).
  std::int32_t decoded, decoded_key_pitch, decoded_value, decoded_value_pitch;  ///< Quantised: the tile as numbers.
  std::int32_t bytes;
};

/// Where the rows of a step go; finish.cuh writes them.
struct Results {
  Tokens output;
  float* lse;  ///< Null: not wanted.
  std::int64_t lse_sequence, lse_head, lse_token;
  const float* sinks;  ///< Null: none.
  std::int64_t sinks_stride;
  // Between splits, compact: [sequence][KV head][row][split] of `width` sums, and of largest logit and sum of weights.
  float *sums, *weights;
  std::int32_t kv_heads, rows, splits, width;

  [[nodiscard]] ATTEST_BOTH std::int64_t part(std::int32_t b, std::int32_t kv_head, std::int32_t row,
                                              std::int32_t split) const {
    return ((static_cast<std::int64_t>(b) * kv_heads + kv_head) * rows + row) * splits + split;
  }
};

/// Blocks of Attend that a multiprocessor has registers for, by the rows of a tile: what they are compiled for.
ATTEST_BOTH constexpr int attend_blocks(int tile_rows) {
  return tile_rows == 16 ? 3 : 2;
}

/// Most keys of a tile of Attend: as many as its softmax has registers for. In f32, and in f16 and bf16.
inline constexpr int most_fused_keys = 32, most_matrix_keys = 64;

/// Where the rows of one tile come from; null: not there.
struct TileSource {
  static constexpr int most = most_matrix_keys;
  const std::byte* key[most];
  const std::byte* value[most];
  float key_scale[most], value_scale[most];
};
inline constexpr int tile_source_bytes = sizeof(TileSource);

/// Rows of a block of Prefill, how many tiles of keys and of values it has room for, and of how many it knows the
/// source.
inline constexpr int prefill_rows = 128, prefill_stages = 2, prefill_sources = 3;
/// The widest heads that it takes, in lines of 64 channels.
inline constexpr int most_prefill_lines = 4;
ATTEST_BOTH constexpr int lines_of(int channels) {
  return (channels + 63) / 64;
}
/// Lines of values that it is compiled for: 1, 2 or 4. Keys of many channels leave room for small tiles only.
ATTEST_BOTH constexpr int prefill_lines(int key_channels, int value_channels) {
  const int lines = lines_of(value_channels);
  return lines > 2 || lines_of(key_channels) > 3 ? most_prefill_lines : lines;
}
/// Keys of a tile: as many as registers have room for logits beside the sums, and beside all that usual_prefill spares.
ATTEST_BOTH constexpr int prefill_keys(int lines, bool usual) {
  return usual && lines <= 2 ? 128 : 64;
}
/// Where the rows of one of its tiles come from; null: not there.
template <int keys>
struct PrefillSource {
  const std::byte* key[keys];
  const std::byte* value[keys];
};

struct AttendArguments {
  Tokens query;
  KvSide key, value;
  Slots slots;
  Visibility visibility;
  std::int32_t group, splits;  ///< Query heads of a KV head.
  std::int32_t split_keys;     ///< Keys of a split; splits begin at multiples of it.
  float scale, softcap;        ///< softcap 0: none.
  const float* slopes;         ///< ALiBi; null: none.
  std::int64_t slopes_stride;
  const std::byte* mask;  ///< Null: none.
  std::int64_t mask_sequence, mask_head, mask_query, mask_key;
  std::int32_t mask_boolean;
  Storage mask_storage;
  std::int32_t query_vectors, output_vectors;  ///< 1: in the problem's dtype, and each row in pieces of 16 bytes.
  Results results;
  const Sequence* sequences;
  const std::int32_t* go;
  AttendLayout layout;
};

/// What most models ask for, so that Prefill finds out nothing of it at run time: keys and values of exactly as many
/// channels as it is compiled for, whose rows can be read 16 bytes at a time, and logits that are products times a
/// scale above 0 (the largest product is the largest logit then) and no more.
ATTEST_BOTH bool usual_prefill(const AttendArguments& a) {
  const int channels = 64 * prefill_lines(a.key.width, a.value.width);
  return a.key.width == channels && a.value.width == channels && a.key.vectors != 0 && a.value.vectors != 0 &&
         a.softcap == 0 && a.slopes == nullptr && a.mask == nullptr && a.scale > 0;
}

struct CombineArguments {
  Results results;
  Visibility visibility;
  std::int32_t group, split_keys, tile_rows;  ///< tile_rows: rows of a block of Attend.
  const Sequence* sequences;
  const std::int32_t* go;
};

}  // namespace attest::cuda
