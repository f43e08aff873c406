// SPDX-License-Identifier: Apache-2.0
#include "shape.h"

#include <algorithm>
#include <attest/backend.hpp>
#include <limits>
#include <string>

namespace attest::cuda {

namespace {

/// Of a block's shared memory, from its beginning.
class Room {
 public:
  explicit Room(int alignment) : alignment_(alignment) {}
  int place(int bytes) {
    const int at = end_;
    end_ += rounded_up(bytes, alignment_);
    return at;
  }
  [[nodiscard]] int end() const { return end_; }

 private:
  int alignment_, end_ = 0;
};

/// Products of warpgroups read lines of 64 channels in groups of 8 rows: 1024 bytes, at multiples of that.
AttendLayout prefill_layout(const Heads& heads, int keys) {
  constexpr int line = 128;
  const int key_lines = lines_of(heads.key_channels),
            value_lines = prefill_lines(heads.key_channels, heads.value_channels);
  Room room(1024);
  AttendLayout l{};
  l.keys = keys;
  l.query = room.place(key_lines * prefill_rows * line);
  l.value = key_lines * l.keys * line;
  l.stage_bytes = l.value + value_lines * l.keys * line;
  l.stage = room.place(prefill_stages * l.stage_bytes);
  l.source = room.place(prefill_sources * 2 * l.keys * static_cast<int>(sizeof(const std::byte*)));
  l.bytes = room.end();
  return l;
}

/// Blocks that a multiprocessor's shared memory has room for. It has as much as the largest block may use, and the part
/// of each block that CUDA keeps for itself.
int blocks_by_memory(const AttendLayout& layout, const Machine& machine) {
  constexpr std::size_t kept = 1 << 10;
  return static_cast<int>((machine.shared_bytes + kept) / (static_cast<std::size_t>(layout.bytes) + kept));
}

}  // namespace

EngineFacts engine_for(const Heads& heads, std::int64_t rows, bool usual, const Machine& machine) {
  if (heads.dtype == Storage::f32) return {16, 2, 4, 4, most_fused_keys};
  constexpr int most_channels = 64 * most_prefill_lines;
  const bool warpgroups = machine.warpgroup_rows > 0 && rows >= machine.warpgroup_rows && heads.cache == heads.dtype &&
                          heads.key_channels <= most_channels && heads.value_channels <= most_channels;
  const int keys = prefill_keys(prefill_lines(heads.key_channels, heads.value_channels), usual);
  if (warpgroups && static_cast<std::size_t>(prefill_layout(heads, keys).bytes) <= machine.shared_bytes) {
    return {prefill_rows, prefill_stages, 16, 2, keys};
  }
  const bool tall = rows > 16 && heads.value_channels <= 128;
  return {tall ? 64 : 16, 3, 16, 2, most_matrix_keys};
}

AttendLayout layout_of(const EngineFacts& engine, const Heads& heads, const Machine& machine) {
  if (engine.tile_rows == prefill_rows) return prefill_layout(heads, engine.most_keys);
  const auto [dtype, cache, key_channels, value_channels] = heads;
  const bool coded = cache != dtype;
  const int raw_bytes = element_bytes(cache), number = engine.number_bytes;
  // 16 bytes more than a row has: neighbouring rows then begin in different banks.
  const auto pitch = [&](int channels, int unit, int bytes) {
    return rounded_up(rounded_up(channels, unit) * bytes, 16) + 16;
  };
  for (int keys = engine.most_keys; keys >= 16; keys /= 2) {
    AttendLayout l{};
    Room room(128);
    const auto place = [&](int bytes) { return room.place(bytes); };
    l.keys = keys;
    l.query_pitch = pitch(key_channels, engine.channel_unit, number);
    l.query = place(engine.tile_rows * l.query_pitch);
    l.logit_pitch = 4 * keys + 16;
    l.logit = place(engine.tile_rows * l.logit_pitch);
    l.weight_pitch = number * keys + 16;
    l.weight = place(engine.tile_rows * l.weight_pitch);
    l.row_state = place(4 * engine.tile_rows);
    l.source = place(engine.stages * tile_source_bytes);
    const int unit = coded ? 1 : engine.channel_unit;
    l.key_pitch = pitch(key_channels, unit, raw_bytes);
    l.value_pitch = pitch(value_channels, unit, raw_bytes);
    l.value = keys * l.key_pitch;
    l.stage_bytes = rounded_up(l.value + keys * l.value_pitch, 128);
    l.stage = place(engine.stages * l.stage_bytes);
    if (coded) {
      l.decoded_key_pitch = pitch(key_channels, engine.channel_unit, number);
      l.decoded_value_pitch = pitch(value_channels, engine.channel_unit, number);
      l.decoded = place(keys * l.decoded_key_pitch);
      l.decoded_value = place(keys * l.decoded_value_pitch);
    }
    l.bytes = room.end();
    // Two blocks a multiprocessor, so that one computes while the other waits; if need be, one.
    if (static_cast<std::size_t>(l.bytes) <= machine.shared_bytes && (keys <= 16 || blocks_by_memory(l, machine) >= 2))
      return l;
  }
  throw abi::Unsupported("not implemented: heads of " + std::to_string(key_channels) + " and " +
                         std::to_string(value_channels) + " channels in " + std::to_string(machine.shared_bytes) +
                         " bytes of shared memory");
}

int resident_blocks(const EngineFacts& engine, const AttendLayout& layout, const Machine& machine) {
  const int by_registers = engine.tile_rows == prefill_rows ? 1 : attend_blocks(engine.tile_rows);
  return std::clamp(blocks_by_memory(layout, machine), 1, by_registers);
}

Splits splits_for(const Unsplit& launch, int resident, int wanted, const Machine& machine) {
  const Splits whole{1, std::numeric_limits<std::int32_t>::max()};
  const std::int64_t blocks = launch.blocks, keys = launch.keys, tile_keys = launch.tile_keys;
  if (blocks <= 0 || keys <= 0) return whole;
  std::int64_t each = wanted;
  if (each == 0) {
    const std::int64_t places = static_cast<std::int64_t>(machine.multiprocessors) * resident;
    // Blocks that all have as much to do begin and end together: no more of them than there are places, or all would
    // wait for their first keys again (but for one more where the first and the last share one's work). Else twice as
    // many, so that the end is not ragged.
    const bool together = launch.even && launch.one_tile;
    const std::int64_t parts =
        together ? std::max<std::int64_t>(1, places / blocks) : (2 * places + blocks - 1) / blocks;
    if (parts == 1 && !launch.one_tile) return whole;
    each = std::max(4 * tile_keys, rounded_up((keys + parts - 1) / parts, tile_keys));
    // Decoding is split even if there are as many blocks: lengths may be skewed, and a long sequence must not be alone
    // at the end; and what a captured step was told of lengths may be far above what they are.
    constexpr std::int64_t most_keys = 2048;
    if (launch.one_tile) each = std::min(each, most_keys);
  }
  // Splits begin at multiples of their size, wherever the keys begin.
  const std::int64_t count = (keys + each - 1) / each + (launch.from_start ? 0 : 1);
  if (count <= 1) return whole;
  return {static_cast<int>(count), static_cast<int>(each)};
}

}  // namespace attest::cuda
