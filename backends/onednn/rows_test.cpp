// SPDX-License-Identifier: Apache-2.0
// Every kernel of rows.h that this machine can run, against plain sums in double.
#include "rows.h"

#include <algorithm>
#include <attest/backend_math.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <utility>
#include <vector>

#include "weights_test_support.h"

using namespace attest::onednn;
using attest::abi::Storage;

namespace {

constexpr Storage storages[] = {Storage::f32, Storage::f16,     Storage::bf16,
                                Storage::i8,  Storage::f8_e4m3, Storage::f8_e5m2};

/// Rows of random codes that are finite numbers, `gap` elements apart, in memory of just their size, so that a
/// sanitizer sees reads beyond.
struct Rows {
  Rows(Storage storage, std::int64_t count, std::int64_t width, std::mt19937& random, std::int64_t gap = 3)
      : storage_(storage), width_(width) {
    stride = (width + gap) * element();
    memory.resize(static_cast<std::size_t>((count - 1) * stride + width * element()));
    for (std::int64_t j = 0; j < count; ++j) {
      for (std::int64_t c = 0; c < width; ++c) {
        const float number =
            std::uniform_real_distribution<float>(-1, 1)(random) * (storage == Storage::i8 ? 127.0f : 1.0f);
        attest::abi::store(storage, c % 7 == 3 ? number / 4096 : number, memory.data() + j * stride + c * element());
      }
    }
  }
  [[nodiscard]] std::int64_t element() const { return static_cast<std::int64_t>(attest::abi::bytes_of(storage_)); }
  [[nodiscard]] double at(std::int64_t j, std::int64_t c) const {
    return static_cast<double>(attest::abi::load(storage_, memory.data() + j * stride + c * element()));
  }
  [[nodiscard]] RowBlock block(std::int64_t first, std::int64_t count) const {
    return {storage_, memory.data() + first * stride, stride, count, width_, 1, 0, memory.data(), stride};
  }
  /// The same, but nothing is fetched ahead.
  [[nodiscard]] RowBlock unfetched(std::int64_t first, std::int64_t count) const {
    return {storage_, memory.data() + first * stride, stride, count, width_};
  }
  /// `heads` heads of count / heads rows: those of a row side by side, or each head's behind the other's.
  [[nodiscard]] RowBlock split(std::int64_t heads, std::int64_t count, bool adjacent) const {
    const std::int64_t rows = count / heads, row = adjacent ? heads * stride : stride,
                       head = adjacent ? stride : rows * stride;
    return {storage_, memory.data(), row, rows, width_, heads, head, memory.data(), row, head};
  }

  std::vector<char> memory;
  std::int64_t stride = 0;

 private:
  Storage storage_;
  std::int64_t width_;
};

std::vector<float> numbers(std::int64_t count, std::mt19937& random) {
  std::vector<float> made(static_cast<std::size_t>(count));
  for (float& each : made) each = std::uniform_real_distribution<float>(-1, 1)(random);
  return made;
}

bool near(float got, double wanted, double size) {
  return std::abs(static_cast<double>(got) - wanted) <= 1e-5 * size + 1e-30;
}

}  // namespace

TEST_CASE("the products and the blend of any width, count and storage are right") {
  std::mt19937 random(1);
  for (const RowKernels* const kernels : row_kernels()) {
    for (const Storage storage : storages) {
      for (const std::int64_t width : {1, 3, 8, 16, 20, 40, 64, 72, 128}) {
        for (const std::int64_t queries : {1, 2, 3, 4, 5, 6, 7, 8}) {
          const std::int64_t count = 1 + static_cast<std::int64_t>(random() % 40), wide = padded(width);
          INFO(kernels->name << ", storage " << static_cast<int>(storage) << ", width " << width << ", queries "
                             << queries << ", rows " << count);
          const Rows rows(storage, count, width, random);
          std::vector<float> query = numbers(queries * wide, random);
          for (std::int64_t r = 0; r < queries; ++r) std::fill_n(query.begin() + r * wide + width, wide - width, 0.0f);
          const std::int64_t leading = count + row_padding;
          std::vector<float> products(static_cast<std::size_t>(queries * leading));
          kernels->multiply(rows.block(0, count), query.data(), queries, products.data(), leading);
          const std::vector<float> weights = numbers(queries * leading, random);
          std::vector<float> blended(static_cast<std::size_t>(queries * wide), 0.5f);
          kernels->blend(rows.block(0, count), weights.data(), leading, queries, blended.data());
          bool products_right = true, blend_right = true;
          for (std::int64_t r = 0; r < queries; ++r) {
            for (std::int64_t j = 0; j < count; ++j) {
              double sum = 0, size = 0;
              for (std::int64_t c = 0; c < width; ++c) {
                const double term = rows.at(j, c) * static_cast<double>(query[static_cast<std::size_t>(r * wide + c)]);
                sum += term, size += std::abs(term);
              }
              products_right = products_right && near(products[static_cast<std::size_t>(r * leading + j)], sum, size);
            }
            for (std::int64_t c = 0; c < width; ++c) {
              double sum = 0.5, size = 0.5;
              for (std::int64_t j = 0; j < count; ++j) {
                const double term =
                    rows.at(j, c) * static_cast<double>(weights[static_cast<std::size_t>(r * leading + j)]);
                sum += term, size += std::abs(term);
              }
              blend_right = blend_right && near(blended[static_cast<std::size_t>(r * wide + c)], sum, size);
            }
          }
          CHECK(products_right);
          CHECK(blend_right);
          std::vector<float> again(products.size());
          kernels->multiply(rows.unfetched(0, count), query.data(), queries, again.data(), leading);
          CHECK(again == products);
          again.assign(blended.size(), 0.5f);
          kernels->blend(rows.unfetched(0, count), weights.data(), leading, queries, again.data());
          CHECK(again == blended);
        }
      }
    }
  }
}

TEST_CASE("every code of an 8-bit format and every finite fp16 and bf16 is converted exactly") {
  for (const RowKernels* const kernels : row_kernels()) {
    for (const Storage storage : {Storage::f16, Storage::bf16, Storage::i8, Storage::f8_e4m3, Storage::f8_e5m2}) {
      const std::size_t bytes = attest::abi::bytes_of(storage);
      const std::uint32_t codes = bytes == 2 ? 65536 : 256;
      std::vector<char> row(codes * bytes);
      for (std::uint32_t code = 0; code < codes; ++code) {
        const auto half = static_cast<std::uint16_t>(code);
        const auto byte = static_cast<std::uint8_t>(code);
        std::memcpy(row.data() + code * bytes, bytes == 2 ? static_cast<const void*>(&half) : &byte, bytes);
      }
      std::vector<float> blended(codes, 0.0f);
      const float one = 1;
      kernels->blend({storage, row.data(), 0, 1, codes}, &one, 1, 1, blended.data());
      std::uint32_t wrong = 0;
      for (std::uint32_t code = 0; code < codes; ++code) {
        const float wanted = attest::abi::load(storage, row.data() + code * bytes);
        if (std::isfinite(wanted) && blended[code] != wanted) ++wrong;
      }
      INFO(kernels->name << ", storage " << static_cast<int>(storage));
      CHECK(wrong == 0);
    }
  }
}

TEST_CASE("products and blends have the same bits however the rows are divided into blocks") {
  std::mt19937 random(2);
  const auto [storage, width] =
      GENERATE(std::pair{Storage::f16, std::int64_t{72}}, std::pair{Storage::bf16, std::int64_t{64}},
               std::pair{Storage::i8, std::int64_t{20}}, std::pair{Storage::f32, std::int64_t{24}},
               std::pair{Storage::f32, std::int64_t{128}}, std::pair{Storage::f16, std::int64_t{128}});
  for (const RowKernels* const kernels : row_kernels()) {
    for (const std::int64_t queries : {1, 2, 3, 4, 5, 7, 8, 15}) {
      INFO(kernels->name << ", storage " << static_cast<int>(storage) << ", width " << width << ", queries "
                         << queries);
      constexpr std::int64_t count = 37, leading = count + row_padding;
      const std::int64_t wide = padded(width);
      const Rows rows(storage, count, width, random);
      std::vector<float> query = numbers(queries * wide, random);
      for (std::int64_t r = 0; r < queries; ++r) std::fill_n(query.begin() + r * wide + width, wide - width, 0.0f);
      const std::vector<float> weights = numbers(queries * leading, random);
      std::vector<float> whole(weights.size()), pieces = whole, blended(query.size(), 0.0f),
                                                blended_in_pieces = blended;
      kernels->multiply(rows.block(0, count), query.data(), queries, whole.data(), leading);
      kernels->blend(rows.block(0, count), weights.data(), leading, queries, blended.data());
      std::int64_t first = 0;
      for (const std::int64_t some : {5, 7, 1, 2, 8, 3, 11}) {
        const RowBlock piece = some % 2 == 0 ? rows.unfetched(first, some) : rows.block(first, some);
        kernels->multiply(piece, query.data(), queries, pieces.data() + first, leading);
        kernels->blend(piece, weights.data() + first, leading, queries, blended_in_pieces.data());
        first += some;
      }
      REQUIRE(first == count);
      CHECK(whole == pieces);
      CHECK(blended == blended_in_pieces);
    }
  }
}

TEST_CASE("a block of several heads gives each of them the bits that it has alone") {
  std::mt19937 random(4);
  for (const RowKernels* const kernels : row_kernels()) {
    for (const Storage storage : {Storage::f32, Storage::f16, Storage::bf16, Storage::i8}) {
      for (const std::int64_t width : {20, 64, 128}) {
        const std::int64_t gap = width == 64 ? 3 : 0;  // Without gaps, rows are fetched in another order.
        for (const std::int64_t heads : {2, 4, 5, 9}) {
          for (const std::int64_t queries : {1, 2, 3, 4, 5, 8}) {
            for (const bool adjacent : {true, false}) {
              INFO(kernels->name << ", storage " << static_cast<int>(storage) << ", width " << width << ", heads "
                                 << heads << ", queries " << queries << ", adjacent " << adjacent);
              constexpr std::int64_t count = 7, leading = count + row_padding;
              const std::int64_t wide = padded(width);
              const Rows rows(storage, heads * count, width, random, gap);
              const RowBlock all = rows.split(heads, heads * count, adjacent);
              std::vector<float> query = numbers(heads * queries * wide, random);
              for (std::int64_t r = 0; r < heads * queries; ++r) {
                std::fill_n(query.begin() + r * wide + width, wide - width, 0.0f);
              }
              const std::vector<float> weights = numbers(heads * queries * leading, random);
              std::vector<float> products(weights.size(), 9.0f), single = products;
              std::vector<float> blended(query.size(), 0.25f), single_blended = blended;
              kernels->multiply(all, query.data(), queries, products.data(), leading);
              kernels->blend(all, weights.data(), leading, queries, blended.data());
              for (std::int64_t h = 0; h < heads; ++h) {
                RowBlock one = all;
                one.first += h * one.head_stride, one.heads = 1, one.ahead = nullptr,
                                                  one.ahead_stride = one.ahead_head_stride = 0;
                kernels->multiply(one, query.data() + h * queries * wide, queries,
                                  single.data() + h * queries * leading, leading);
                kernels->blend(one, weights.data() + h * queries * leading, leading, queries,
                               single_blended.data() + h * queries * wide);
              }
              CHECK(products == single);  // What lies between the products is left alone.
              CHECK(blended == single_blended);
              RowBlock unfetched = all;
              unfetched.ahead = nullptr;
              unfetched.ahead_stride = unfetched.ahead_head_stride = 0;
              kernels->multiply(unfetched, query.data(), queries, products.data(), leading);
              CHECK(products == single);
            }
          }
        }
      }
    }
  }
}

TEST_CASE("weights of scores are right, masked scores and empty rows among them") {
  constexpr float masked = -std::numeric_limits<float>::infinity();
  std::mt19937 random(3);
  for (const RowKernels* const kernels : row_kernels()) {
    for (const std::int64_t count : {0, 1, 5, 16, 31, 256, 4096}) {
      for (const float scale : {1.0f, 0.0884f, 90.0f, 0x1p-40f, 0x1p40f}) {
        std::vector<float> row = numbers(count + row_padding, random);
        if (count > 4) row[2] = masked;
        if (count > 400) std::fill(row.begin() + 5, row.begin() + count, 0.3f);  // What rounding makes of sums adds up.
        const std::vector<float> scores(row.begin(), row.begin() + count);
        const float largest = count > 0 ? *std::max_element(scores.begin(), scores.end()) : masked;
        const RowSum got = kernels->exponentials(row.data(), count, scale);
        CHECK(got.largest == largest);
        double sum = 0, worst = 0;
        for (std::size_t j = 0; j < scores.size(); ++j) {
          const double logit =
              (static_cast<double>(scores[j]) - static_cast<double>(largest)) * static_cast<double>(scale);
          sum += std::exp(logit);
          worst = std::max(worst, off_by(row[j], logit));
        }
        CHECK(worst <= 1);
        CHECK(std::abs(static_cast<double>(got.sum) - sum) <= 1e-5 * sum);
      }
    }
    std::vector<float> all_masked(60 + row_padding, masked);
    const RowSum nothing = kernels->exponentials(all_masked.data(), 60, 1);
    CHECK(nothing.sum == 0);
    CHECK(nothing.largest == masked);
    CHECK(std::all_of(all_masked.begin(), all_masked.begin() + 60, [](float weight) { return weight == 0; }));
  }
}

TEST_CASE("weights are as good as the roundings of their exponents let them be, and 0 below the least number") {
  std::mt19937 random(5);
  for (const RowKernels* const kernels : row_kernels()) {
    for (const float scale : {1.0f, 0.0884f, 1234.5f}) {
      double worst = 0;
      for (std::int64_t step = 0; step < 140; ++step) {
        constexpr std::int64_t count = 500;
        std::vector<float> row = numbers(count + row_padding, random);
        for (float& score : row) score = (1.7f - static_cast<float>(step) - std::abs(score)) / scale;
        row[0] = 1.7f / scale;  // The largest, whose weight is 1.
        const std::vector<float> scores = row;
        kernels->exponentials(row.data(), count, scale);
        CHECK(row[0] == 1);
        for (std::size_t j = 0; j < count; ++j) {
          const double logit =
              (static_cast<double>(scores[j]) - static_cast<double>(scores[0])) * static_cast<double>(scale);
          worst = std::max(worst, off_by(row[j], logit));
        }
      }
      INFO(kernels->name << ", scale " << scale << ": " << worst << " of what is allowed");
      CHECK(worst <= 1);
    }
  }
}
