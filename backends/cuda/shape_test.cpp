// SPDX-License-Identifier: Apache-2.0
#include "shape.h"

#include <attest/backend.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <cstdint>
#include <vector>

namespace attest::cuda {
namespace {

const Machine hopper{"9.0", 132, 227 << 10, least_warpgroup_rows};
const Machine small{"12.0", 170, 99 << 10};

TEST_CASE("every head that is claimed fits into a Hopper's shared memory, and no two parts overlap") {
  for (const Storage dtype : {Storage::f32, Storage::f16, Storage::bf16}) {
    for (const Storage cache : {dtype, Storage::i8, Storage::f8_e4m3}) {
      for (const int keys : {1, 8, 33, 64, 128, 192, 256, 576}) {
        for (const int values : {1, 10, 64, 128, 129, 512}) {
          for (const std::int64_t rows : {1, 17}) {
            const Heads heads{dtype, cache, keys, values};
            const EngineFacts engine = engine_for(heads, rows, false, hopper);
            const AttendLayout l = layout_of(engine, heads, hopper);
            INFO(keys << " and " << values << " channels, " << l.bytes << " bytes");
            CHECK(static_cast<std::size_t>(l.bytes) <= hopper.shared_bytes);
            CHECK(l.keys <= TileSource::most);
            CHECK(l.query_pitch >= keys * engine.number_bytes);
            CHECK(l.key_pitch >= keys * element_bytes(cache));
            CHECK(l.value_pitch >= values * element_bytes(cache));
            CHECK(l.stage_bytes >= l.value + l.keys * l.value_pitch);
            CHECK((l.decoded != 0) == (cache != dtype));
            // In the order in which they are placed: each ends before the next begins.
            std::vector<std::pair<int, int>> parts{
                {l.query, engine.tile_rows * l.query_pitch},   {l.logit, engine.tile_rows * l.logit_pitch},
                {l.weight, engine.tile_rows * l.weight_pitch}, {l.row_state, 4 * engine.tile_rows},
                {l.source, engine.stages * tile_source_bytes}, {l.stage, engine.stages * l.stage_bytes}};
            if (l.decoded != 0) parts.emplace_back(l.decoded, l.keys * l.decoded_key_pitch);
            if (l.decoded != 0) parts.emplace_back(l.decoded_value, l.keys * l.decoded_value_pitch);
            parts.emplace_back(l.bytes, 0);
            for (std::size_t i = 0; i + 1 < parts.size(); ++i) {
              CHECK(parts[i].first % 16 == 0);
              CHECK(parts[i].first + parts[i].second <= parts[i + 1].first);
            }
          }
        }
      }
    }
  }
}

TEST_CASE("what has no room is refused") {
  const Heads wide{Storage::f32, Storage::f32, 576, 512}, usual{Storage::bf16, Storage::bf16, 128, 128};
  CHECK_THROWS_AS(layout_of(engine_for(wide, 1, false, small), wide, small), abi::Unsupported);
  CHECK_NOTHROW(layout_of(engine_for(usual, 1, false, small), usual, small));
}

TEST_CASE("many rows go to products of warpgroups where the machine has them and the heads fit") {
  const auto rows_of = [](const Heads& heads, std::int64_t rows, const Machine& machine) {
    return engine_for(heads, rows, false, machine).tile_rows;
  };
  const Heads usual{Storage::bf16, Storage::bf16, 128, 128};
  CHECK(rows_of(usual, least_warpgroup_rows, hopper) == prefill_rows);
  CHECK(rows_of(usual, least_warpgroup_rows - 1, hopper) == 64);
  CHECK(rows_of(usual, 4096, small) == 64);
  CHECK(rows_of({Storage::f16, Storage::f16, 256, 256}, 4096, hopper) == prefill_rows);
  CHECK(rows_of({Storage::f16, Storage::f16, 257, 64}, 4096, hopper) == 64);
  CHECK(rows_of({Storage::f16, Storage::f16, 64, 257}, 4096, hopper) == 16);
  CHECK(rows_of({Storage::bf16, Storage::i8, 128, 128}, 4096, hopper) == 64);
  CHECK(rows_of({Storage::f32, Storage::f32, 128, 128}, 4096, hopper) == 16);
}

TEST_CASE("the tiles of warpgroups lie at whole swizzles, and no two parts overlap") {
  const bool usual = GENERATE(true, false);
  for (const int keys : {1, 64, 65, 128, 192, 256}) {
    for (const int values : {1, 64, 65, 128, 129, 256}) {
      if (usual && keys != values) continue;
      const Heads heads{Storage::f16, Storage::f16, keys, values};
      const EngineFacts engine = engine_for(heads, 4096, usual, hopper);
      REQUIRE(engine.tile_rows == prefill_rows);
      const AttendLayout l = layout_of(engine, heads, hopper);
      const int key_lines = lines_of(keys), value_lines = prefill_lines(keys, values);
      CHECK(value_lines >= lines_of(values));
      INFO(keys << " and " << values << " channels, " << l.bytes << " bytes");
      CHECK(static_cast<std::size_t>(l.bytes) <= hopper.shared_bytes);
      CHECK(l.keys == prefill_keys(value_lines, usual));
      for (const int at : {l.query, l.stage, l.stage_bytes, l.value}) CHECK(at % 1024 == 0);
      CHECK(l.query + key_lines * prefill_rows * 128 <= l.stage);
      CHECK(key_lines * l.keys * 128 <= l.value);
      CHECK(l.value + value_lines * l.keys * 128 <= l.stage_bytes);
      CHECK(l.stage + engine.stages * l.stage_bytes <= l.source);
      const std::size_t source = l.keys == 64 ? sizeof(PrefillSource<64>) : sizeof(PrefillSource<128>);
      CHECK(static_cast<std::size_t>(l.source) + prefill_sources * source <= static_cast<std::size_t>(l.bytes));
    }
  }
}

TEST_CASE("as many blocks are counted on as a multiprocessor has room for") {
  const auto resident = [](const Heads& heads, std::int64_t rows) {
    const EngineFacts engine = engine_for(heads, rows, false, hopper);
    return resident_blocks(engine, layout_of(engine, heads, hopper), hopper);
  };
  CHECK(resident({Storage::bf16, Storage::bf16, 128, 128}, 4) == 3);
  CHECK(resident({Storage::bf16, Storage::bf16, 128, 128}, 64) == 2);
  CHECK(resident({Storage::bf16, Storage::bf16, 128, 128}, 4096) == 1);
  CHECK(resident({Storage::f32, Storage::f32, 576, 512}, 4) == 1);
  for (const int channels : {8, 64, 80, 128, 192, 256, 512}) {
    const Heads heads{Storage::f16, Storage::f16, channels, channels};
    const EngineFacts engine = engine_for(heads, 4, false, hopper);
    const AttendLayout l = layout_of(engine, heads, hopper);
    // Of 228 KiB each block takes 1 KiB more than it asks for.
    CHECK(resident_blocks(engine, l, hopper) * (l.bytes + 1024) <= 228 * 1024);
    if (l.keys > 16) CHECK(resident_blocks(engine, l, hopper) >= 2);
  }
}

Unsplit decode(std::int64_t blocks, bool even, std::int64_t keys) {
  return {.blocks = blocks, .one_tile = true, .even = even, .keys = keys, .from_start = true, .tile_keys = 32};
}

TEST_CASE("splits cover the keys, wherever they begin") {
  for (const Machine& machine : {hopper, small}) {
    for (const std::int64_t blocks : {1, 8, 64, 512, 100'000}) {
      for (const std::int64_t keys : {1, 63, 64, 1000, 8192, 131'072}) {
        for (const bool from_start : {true, false}) {
          for (const bool even : {true, false}) {
            for (const int wanted : {0, 16, 1000}) {
              Unsplit launch = decode(blocks, even, keys);
              launch.from_start = from_start;
              const Splits splits = splits_for(launch, 2, wanted, machine);
              REQUIRE(splits.count >= 1);
              if (splits.count == 1) continue;
              const std::int64_t first = from_start ? 0 : splits.keys - 1;  // The worst place for a range to begin.
              CHECK((first + keys - 1) / splits.keys < splits.count);
              if (wanted == 0) CHECK(splits.keys % launch.tile_keys == 0);
            }
          }
        }
      }
    }
  }
}

TEST_CASE("blocks that have as much to do fill the machine once, and others do not leave a long one alone") {
  for (const int resident : {2, 3}) {
    const int places = resident * hopper.multiprocessors;
    for (const std::int64_t keys : {32'768, 60'000}) {
      const Splits one = splits_for(decode(8, true, keys), resident, 0, hopper);
      INFO(resident << " a multiprocessor, " << keys << " keys: " << one.count << " splits");
      CHECK(8 * one.count <= places);
      CHECK(8 * one.count >= places * 9 / 10);
    }
  }
  // A captured step may be told of far more keys than there are.
  CHECK(splits_for(decode(32, true, 131'072), 3, 0, hopper).keys == 2048);
  // Batch 64: enough blocks, and yet split.
  CHECK(splits_for(decode(512, false, 32'768), 3, 0, hopper).keys == 2048);
  // Prefill with enough tiles is not split, nor is what is short.
  Unsplit prefill = decode(4096, false, 32'768);
  prefill.one_tile = false;
  CHECK(splits_for(prefill, 1, 0, hopper).count == 1);
  CHECK(splits_for(decode(1, true, 100), 3, 0, hopper).count == 1);
}

}  // namespace
}  // namespace attest::cuda
