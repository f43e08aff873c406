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

TEST_CASE("splits cover the keys, wherever they begin") {
  for (const Machine& machine : {hopper, small}) {
    for (const std::int64_t blocks : {1, 8, 64, 512, 100'000}) {
      for (const std::int64_t keys : {1, 63, 64, 1000, 8192, 131'072}) {
        for (const bool from_start : {true, false}) {
          for (const int wanted : {0, 16, 1000}) {
            const Splits splits = splits_for(blocks, true, keys, from_start, 64, wanted, machine);
            REQUIRE(splits.count >= 1);
            if (splits.count == 1) continue;
            const std::int64_t first = from_start ? 0 : splits.keys - 1;  // The worst place for a range to begin.
            CHECK((first + keys - 1) / splits.keys < splits.count);
            if (wanted == 0) CHECK(splits.keys % 64 == 0);
          }
        }
      }
    }
  }
}

TEST_CASE("splits keep the machine busy, and long sequences do not stay whole") {
  // Batch 1, 8 KV heads, 32k keys: four blocks a multiprocessor, nearly.
  const Splits one = splits_for(8, true, 32'768, true, 64, 0, hopper);
  CHECK(8 * one.count >= 3 * hopper.multiprocessors);
  CHECK(8 * one.count <= 5 * hopper.multiprocessors);
  // Batch 64: enough blocks, and yet split.
  CHECK(splits_for(512, true, 32'768, true, 64, 0, hopper).keys == 2048);
  // Prefill with enough tiles is not split, nor is what is short.
  CHECK(splits_for(4096, false, 32'768, true, 64, 0, hopper).count == 1);
  CHECK(splits_for(1, true, 200, true, 64, 0, hopper).count == 1);
}

}  // namespace
}  // namespace attest::cuda
