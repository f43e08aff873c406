// SPDX-License-Identifier: Apache-2.0
// Tiles from every kind of cache and from new tokens, in portions of any size, against the elements one by one.
#include "tile_source.h"

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <cstring>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "rows.h"

using namespace attest::onednn;
namespace abi = attest::abi;

namespace {

/// A tensor with memory of just its size, so that a sanitizer sees reads beyond.
struct Tensor {
  Tensor(DLDataType dtype, std::vector<std::int64_t> extents) : shape(std::move(extents)), strides(shape.size(), 1) {
    for (std::size_t axis = shape.size(); axis-- > 1;) strides[axis - 1] = strides[axis] * shape[axis];
    bytes.resize(static_cast<std::size_t>(strides[0] * shape[0] * (dtype.bits / 8)));
    tensor = {.data = bytes.data(),
              .device = {kDLCPU, 0},
              .ndim = static_cast<std::int32_t>(shape.size()),
              .dtype = dtype,
              .shape = shape.data(),
              .strides = strides.data(),
              .byte_offset = 0};
  }
  Tensor(const Tensor&) = delete;
  Tensor& operator=(const Tensor&) = delete;

  std::vector<std::int64_t> shape, strides;
  std::vector<char> bytes;
  DLTensor tensor{};
};

constexpr std::int64_t batch = 2, heads = 3, capacity = 288, page_size = 16;

struct Kind {
  std::string name;
  DLDataType cached = abi::f32;
  bool paged = false;
  int scale = ATTEST_KV_SCALE_NONE;
  std::int64_t new_channel = 1;  ///< Stride of the new tokens' channels.
};

/// Sequence 1's first `past` positions in a cache, the others new tokens.
class World {
 public:
  World(const Kind& kind, std::int64_t width, std::int64_t past)
      : kind_(kind),
        codes_(kind.cached, kind.paged ? std::vector{batch * capacity / page_size, page_size, heads, width}
                                       : std::vector{batch, capacity, heads, width}),
        scales_(abi::f32, kind.scale == ATTEST_KV_SCALE_PER_HEAD
                              ? std::vector{heads}
                              : std::vector(codes_.shape.begin(), codes_.shape.end() - 1)),
        table_(abi::i32, {batch, capacity / page_size}),
        new_(static_cast<std::size_t>((capacity - past) * heads * width * kind.new_channel)) {
    problem_.batch = batch, problem_.capacity = capacity, problem_.page_size = page_size;
    problem_.cache = kind.paged ? ATTEST_CACHE_PAGED : ATTEST_CACHE_CONTIGUOUS;
    problem_.kv_scale = kind.scale;
    cache_.block_table = &table_.tensor;
    std::mt19937 random(3);
    const auto number = [&] { return std::uniform_real_distribution<float>(-1, 1)(random); };
    std::vector<std::int32_t> pages(static_cast<std::size_t>(batch * capacity / page_size));
    for (std::size_t i = 0; i < pages.size(); ++i) pages[i] = static_cast<std::int32_t>(i);
    std::shuffle(pages.begin(), pages.end(), random);
    std::memcpy(table_.bytes.data(), pages.data(), table_.bytes.size());
    const abi::NumberView<4> codes(codes_.tensor);
    for (std::int64_t i = 0; i < codes_.shape[0] * codes_.shape[1] * heads * width; ++i) {
      const float value = kind.cached.code == kDLInt ? std::round(127 * number()) : number();
      codes.set(value, i / (codes_.shape[1] * heads * width), i / (heads * width) % codes_.shape[1], i / width % heads,
                i % width);
    }
    for (std::size_t i = 0; i < scales_.bytes.size(); i += sizeof(float)) {
      const float scale = 1 + number() / 2;
      std::memcpy(scales_.bytes.data() + i, &scale, sizeof scale);
    }
    std::generate(new_.begin(), new_.end(), number);
    fresh_ = {abi::Storage::f32,
              {nullptr, reinterpret_cast<char*>(new_.data())},
              heads * width * kind.new_channel,
              width * kind.new_channel,
              kind.new_channel,
              heads,
              width};
    Counts pasts(batch, past);
    std::optional<CachedHeads> cached;
    if (past > 0) cached.emplace(problem_, cache_, codes_.tensor, scale());
    rows_.emplace(fresh_, pasts, cached);
    past_ = past;
  }

  [[nodiscard]] const KvRows& rows() const { return *rows_; }

  [[nodiscard]] std::int64_t past() const { return past_; }
  /// Of the row at that position, as it is stored.
  [[nodiscard]] std::int64_t element_bytes(std::int64_t position) const {
    return position < past_ ? kind_.cached.bits / 8 : std::int64_t{sizeof(float)};
  }

  [[nodiscard]] float at(std::int64_t position, std::int64_t head, std::int64_t c) const {
    if (position >= past_) return fresh_.floats(1, position - past_, head)[c * kind_.new_channel];
    const abi::Slot slot = abi::Slots(problem_, cache_)(1, position);
    const float code = abi::NumberView<4>(codes_.tensor)(slot.outer, slot.inner, head, c);
    if (scale() == nullptr) return code;
    return code * abi::scale_view(problem_, scales_.tensor)(slot.outer, slot.inner, head);
  }

 private:
  [[nodiscard]] const DLTensor* scale() const {
    return kind_.scale == ATTEST_KV_SCALE_NONE ? nullptr : &scales_.tensor;
  }

  Kind kind_;
  attest_problem problem_{};
  attest_cache cache_{};
  Tensor codes_, scales_, table_;
  std::vector<float> new_;
  Heads fresh_;
  std::optional<KvRows> rows_;
  std::int64_t past_ = 0;
};

void check_tile(const World& world, const TileKernels& kernels, TileSource::Panels kind, std::int64_t width,
                std::int64_t head, TileRange range, std::int64_t portion) {
  const bool by_channels = kind == TileSource::Panels::channels;
  constexpr float untouched = -77;
  std::vector<float> panels(static_cast<std::size_t>(tile_keys * padded(width)), untouched);
  const std::int64_t lanes = kernels.lanes;
  const auto place = [&](std::int64_t j, std::int64_t c) {
    return static_cast<std::size_t>(by_channels ? (c / lanes * tile_keys + j) * lanes + c % lanes
                                                : j / lanes * lanes * width + c * lanes + j % lanes);
  };
  TileSource source(kernels, kind, width);
  source.list(world.rows(), 1, head, range.begin, range.end);
  std::int64_t arrived = range.begin;
  for (std::int64_t asked = range.begin; asked < range.end; asked += portion) {
    const RowsAhead ahead = source.fetch(portion);
    REQUIRE(ahead.count == std::min(portion, range.end - asked));
    for (std::int64_t i = 0; i < ahead.count; ++i) {
      const std::int64_t bytes = width * world.element_bytes(asked + i);
      REQUIRE(ahead.bytes >= bytes);
      if (asked + ahead.count <= world.past() || asked >= world.past()) REQUIRE(ahead.bytes == bytes);
      if (bytes == width * 4) {
        float first = 0;
        std::memcpy(&first, ahead.row[i], sizeof first);
        REQUIRE(first == world.at(asked + i, head, 0));
      }
    }
    const abi::KeyRange some = source.pack(panels.data());
    REQUIRE(some.begin == arrived);
    arrived = some.end;
    REQUIRE(arrived == std::min(asked + portion, range.end));
    const bool all = by_channels || arrived == range.end;
    const std::int64_t ready = all ? arrived : std::max(range.begin, arrived / kernels.lanes * kernels.lanes);
    const auto there = [&](std::int64_t position) { return panels[place(position % tile_keys, 0)] != untouched; };
    if (ready > range.begin) REQUIRE(there(ready - 1));
    if (ready < range.end) REQUIRE(!there(ready));
  }
  REQUIRE(arrived == range.end);
  std::int64_t wrong = 0;
  for (std::int64_t j = 0; j < tile_keys; ++j) {
    const std::int64_t position = range.begin / tile_keys * tile_keys + j;
    const bool inside = range.begin <= position && position < range.end;
    for (std::int64_t c = 0; c < (by_channels ? padded(width) / lanes * lanes : width); ++c) {
      const float got = panels[place(j, c)];
      if (inside && got != (c < width ? world.at(position, head, c) : 0)) ++wrong;
      if (!inside && by_channels && got != untouched) ++wrong;
    }
  }
  CHECK(wrong == 0);
}

}  // namespace

TEST_CASE("a tile has the elements of its rows, wherever they lie and in whatever portions they come") {
  const std::vector<Kind> kinds{
      {.name = "f32"},
      {.name = "f32, new channels apart", .new_channel = 3},
      {.name = "f16, paged", .cached = abi::f16, .paged = true},
      {.name = "bf16", .cached = abi::bf16},
      {.name = "int8, a scale a token, paged", .cached = abi::i8, .paged = true, .scale = ATTEST_KV_SCALE_PER_TOKEN},
      {.name = "int8, a scale a head", .cached = abi::i8, .scale = ATTEST_KV_SCALE_PER_HEAD}};
  for (const RowKernels* const each : row_kernels()) {
    const TileKernels& kernels = *each->tiles;
    for (const Kind& kind : kinds) {
      for (const std::int64_t width : {64, 33}) {
        // All new, all cached, and a change inside a vector of keys, at its beginning, and before the tile.
        for (const std::int64_t past : {0, 288, 199, 192, 100}) {
          const World world(kind, width, past);
          for (const TileRange range :
               {TileRange{128, 256}, TileRange{131, 250}, TileRange{5, 6}, TileRange{256, 288}, TileRange{140, 140}}) {
            for (const std::int64_t portion : {1, 3, 16, 128}) {
              for (const auto panels : {TileSource::Panels::channels, TileSource::Panels::keys}) {
                INFO(each->name << ", " << kind.name << ", width " << width << ", past " << past << ", [" << range.begin
                                << ", " << range.end << ") by " << portion);
                check_tile(world, kernels, panels, width, 2, range, portion);
              }
            }
          }
        }
      }
    }
  }
}
