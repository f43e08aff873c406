// SPDX-License-Identifier: Apache-2.0
// Every kernel of tiles.h that this machine can run, against plain sums in double.
#include "tiles.h"

#include <algorithm>
#include <attest/backend_math.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "weights_test_support.h"

using namespace attest::onednn;
using attest::abi::Storage;

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr float poison = std::numeric_limits<float>::quiet_NaN();

std::mt19937 random_bits(7);
float number() {
  return std::uniform_real_distribution<float>(-1, 1)(random_bits);
}

/// `count` rows of floats, each in memory of its own size, so that a sanitizer sees reads beyond.
struct Matrix {
  Matrix(std::int64_t count, std::int64_t width) {
    for (std::int64_t r = 0; r < count; ++r) {
      rows.emplace_back(static_cast<std::size_t>(width));
      std::generate(rows.back().begin(), rows.back().end(), number);
    }
    for (const std::vector<float>& row : rows) pointers.push_back(reinterpret_cast<const char*>(row.data()));
  }
  [[nodiscard]] double at(std::int64_t r, std::int64_t c) const {
    return static_cast<double>(rows[static_cast<std::size_t>(r)][static_cast<std::size_t>(c)]);
  }
  [[nodiscard]] RowList block(std::int64_t first, std::int64_t count) const {
    const auto width = static_cast<std::int64_t>(rows[0].size());
    return {Storage::f32, pointers.data() + first, count, width};
  }
  std::vector<std::vector<float>> rows;
  std::vector<const char*> pointers;
};

std::vector<float> floats(std::int64_t count, float value) {
  return std::vector<float>(static_cast<std::size_t>(count), value);
}

/// Keys [first, first + count) of a tile, transposed to the panels of all of it.
std::vector<float> panels_of_keys(const TileKernels& kernels, const Matrix& keys, std::int64_t first,
                                  std::int64_t count, std::int64_t width) {
  std::vector<float> made = floats(tile_keys * width, poison);
  for (std::int64_t panel = 0; panel < tile_keys; panel += kernels.lanes) {
    const std::int64_t begin = std::max(first, panel), end = std::min(first + count, panel + kernels.lanes);
    if (begin >= end) continue;
    kernels.transpose(keys.block(begin - first, end - begin), nullptr, begin - panel, made.data() + panel * width);
  }
  return made;
}

/// A strip's queries, in parts of query_part channels.
std::vector<float> parts_of_queries(const TileKernels& kernels, const Matrix& queries, std::int64_t width) {
  const std::int64_t parts = (width + query_part - 1) / query_part;
  std::vector<float> made = floats(parts * kernels.strip * query_part, poison);
  for (std::int64_t r = 0; r < kernels.strip; ++r) {
    for (std::int64_t c = 0; c < width; ++c) {
      made[static_cast<std::size_t>((c / query_part * kernels.strip + r) * query_part + c % query_part)] =
          static_cast<float>(queries.at(r, c));
    }
  }
  return made;
}

// Rows where no memory is: they are asked for and not read. More than a product has steps, and of odd sizes.
const char* const nowhere[] = {reinterpret_cast<const char*>(1), nullptr, reinterpret_cast<const char*>(-64)};
const Ahead far_ahead{{nowhere, 3, 100}, {nowhere, 2, 64 * 1000}};

StripSoftmax fresh() {
  StripSoftmax softmax;
  std::fill(std::begin(softmax.largest), std::end(softmax.largest), -infinity);
  std::fill(std::begin(softmax.sum), std::end(softmax.sum), 0.0f);
  return softmax;
}

/// What lies where scores come to lie.
StripScores no_scores() {
  StripScores scores{};
  const auto all = [](auto& floats, float value) { std::fill(std::begin(floats), std::end(floats), value); };
  all(scores.values, poison), all(scores.sum, poison), all(scores.base, poison);
  all(scores.largest, infinity);  // Of NaN and a number the larger one would be the number.
  return scores;
}

/// Scores that a product has made: of each row and key what `wanted` says. Each query has one channel of its own.
StripScores multiplied(const TileKernels& kernels, const std::vector<float>& wanted, TileRange range) {
  Matrix queries(kernels.strip, kernels.strip), keys(tile_keys, kernels.strip);
  for (std::int64_t r = 0; r < kernels.strip; ++r) {
    const auto row = static_cast<std::size_t>(r);
    for (std::int64_t c = 0; c < kernels.strip; ++c) queries.rows[row][static_cast<std::size_t>(c)] = r == c ? 1 : 0;
    for (std::size_t j = 0; j < keys.rows.size(); ++j) keys.rows[j][row] = wanted[row * keys.rows.size() + j];
  }
  const std::vector<float> left = parts_of_queries(kernels, queries, kernels.strip);
  const std::vector<float> right = panels_of_keys(kernels, keys, 0, tile_keys, kernels.strip);
  StripScores scores = no_scores();
  kernels.multiply(left.data(), right.data(), kernels.strip, range, {}, scores);
  return scores;
}

void weigh(const TileKernels& kernels, StripScores& scores, const TileRange* seen, TileRange range, float scale,
           StripSoftmax& softmax) {
  kernels.begin_weights(scores, seen, range, scale, softmax);
  kernels.end_weights(scores, softmax);
}

/// Whether weights are the same, in the vectors at the ends of `range` too.
bool same_weights(const TileKernels& kernels, const StripScores& a, const StripScores& b, TileRange range) {
  const std::int64_t begin = range.begin / kernels.lanes * kernels.lanes;
  const std::int64_t end = (range.end + kernels.lanes - 1) / kernels.lanes * kernels.lanes;
  bool same = true;
  for (std::int64_t r = 0; r < kernels.strip; ++r) {
    const float* const row = a.values + r * tile_keys;
    same = same && std::equal(row + begin, row + end, b.values + r * tile_keys + begin);
  }
  return same;
}

bool near(float got, double wanted, double size) {
  return std::abs(static_cast<double>(got) - wanted) <= 1e-5 * size + 1e-30;
}

}  // namespace

TEST_CASE("the products of a strip with a tile's keys are right, for any width and range") {
  for (const RowKernels* const each : row_kernels()) {
    const TileKernels& kernels = *each->tiles;
    for (const std::int64_t width : {1, 3, 16, 20, 72, 128, 130, 300}) {
      for (const TileRange range : {TileRange{0, tile_keys}, {0, 1}, {5, 6}, {13, 50}, {96, tile_keys - 1}}) {
        INFO(each->name << ", width " << width << ", keys " << range.begin << " to " << range.end);
        const Matrix queries(kernels.strip, width), keys(range.end - range.begin, width);
        const std::vector<float> left = parts_of_queries(kernels, queries, width);
        const std::vector<float> right = panels_of_keys(kernels, keys, range.begin, range.end - range.begin, width);
        StripScores scores = no_scores();
        kernels.multiply(left.data(), right.data(), width, range, far_ahead, scores);
        bool right_sums = true;
        for (std::int64_t r = 0; r < kernels.strip; ++r) {
          for (std::int64_t j = range.begin; j < range.end; ++j) {
            double sum = 0, size = 0;
            for (std::int64_t c = 0; c < width; ++c) {
              const double term = queries.at(r, c) * keys.at(j - range.begin, c);
              sum += term, size += std::abs(term);
            }
            right_sums = right_sums && near(scores.values[r * tile_keys + j], sum, size);
          }
        }
        CHECK(right_sums);
      }
    }
  }
}

TEST_CASE("a blend multiplies what is there, if anything is, and adds the weighted values of its range only") {
  for (const RowKernels* const each : row_kernels()) {
    const TileKernels& kernels = *each->tiles;
    for (const std::int64_t width : {1, 3, 16, 20, 72, 128}) {
      for (const TileRange range : {TileRange{0, tile_keys}, {7, 8}, {13, 50}}) {
        INFO(each->name << ", width " << width << ", keys " << range.begin << " to " << range.end);
        const std::int64_t count = range.end - range.begin, wide = padded(width);
        const Matrix values(count, width);
        std::vector<float> panels = floats(tile_keys * wide, poison), scales = floats(count, 0);
        std::generate(scales.begin(), scales.end(), number);
        kernels.pack(values.block(0, count), scales.data(), range.begin, tile_keys, panels.data());
        StripScores weights = no_scores();
        std::vector<float> factor = floats(kernels.strip, 0);
        for (std::int64_t r = 0; r < kernels.strip; ++r) {
          std::generate_n(weights.values + r * tile_keys + range.begin, count, number);
        }
        std::generate(factor.begin(), factor.end(), number);
        std::vector<float> blended = floats(kernels.strip * wide, 2.0f), first = floats(kernels.strip * wide, poison);
        kernels.blend(weights, factor.data(), panels.data(), width, range, far_ahead, nullptr, blended.data());
        kernels.blend(weights, nullptr, panels.data(), width, range, far_ahead, nullptr, first.data());
        bool right = true;
        for (std::int64_t r = 0; r < kernels.strip; ++r) {
          for (std::int64_t c = 0; c < width; ++c) {
            double sum = 0, size = 0;
            for (std::int64_t j = 0; j < count; ++j) {
              const float weight = weights.values[r * tile_keys + range.begin + j];
              const double term = static_cast<double>(weight) *
                                  static_cast<double>(scales[static_cast<std::size_t>(j)]) * values.at(j, c);
              sum += term, size += std::abs(term);
            }
            const double before = 2 * static_cast<double>(factor[static_cast<std::size_t>(r)]);
            const auto at = static_cast<std::size_t>(r * wide + c);
            right = right && near(first[at], sum, size) && near(blended[at], before + sum, std::abs(before) + size);
          }
        }
        CHECK(right);
      }
    }
  }
}

TEST_CASE("weights over several tiles are a softmax over the keys that a row sees, whatever the others' scores") {
  constexpr float scale = 3;
  constexpr std::int64_t tiles = 3;
  for (const RowKernels* const each : row_kernels()) {
    const TileKernels& kernels = *each->tiles;
    StripSoftmax softmax = fresh();
    softmax.largest[1] = 0.5f, softmax.sum[1] = 1;  // A sink of scale / 2.
    std::vector<std::vector<double>> logits(static_cast<std::size_t>(kernels.strip));
    for (std::int64_t t = 0; t < tiles; ++t) {
      const TileRange range{t == 0 ? 3 : 0, t == tiles - 1 ? 101 : tile_keys};
      StripScores scores = no_scores();
      TileRange seen[most_strip_rows];
      for (std::int64_t r = 0; r < kernels.strip; ++r) {
        // Row 0 sees nothing at all, row 2 nothing but masked keys; the others begin later and end earlier.
        seen[r] = r == 0 ? TileRange{range.begin, range.begin} : TileRange{range.begin + r, range.end - 2 * r};
        for (std::int64_t j = seen[r].begin; j < seen[r].end; ++j) {
          const float score = r == 2 || j % 5 == 4 ? -infinity : 4 * number() + static_cast<float>(t);
          scores.values[r * tile_keys + j] = score;
          logits[static_cast<std::size_t>(r)].push_back(static_cast<double>(score) * static_cast<double>(scale));
        }
      }
      weigh(kernels, scores, seen, range, scale, softmax);
      for (std::int64_t r = 0; r < kernels.strip; ++r) {
        const double largest = static_cast<double>(softmax.largest[r]) * static_cast<double>(scale);
        std::size_t next =
            logits[static_cast<std::size_t>(r)].size() - static_cast<std::size_t>(seen[r].end - seen[r].begin);
        bool right = true;
        for (std::int64_t j = range.begin; j < range.end; ++j) {
          const bool sees = j >= seen[r].begin && j < seen[r].end;
          const double logit = sees ? logits[static_cast<std::size_t>(r)][next++] : -static_cast<double>(infinity);
          const double wanted = std::isinf(logit) ? 0 : std::exp(logit - largest);
          right = right && near(scores.values[r * tile_keys + j], wanted, wanted);
        }
        CHECK(right);
      }
    }
    for (std::int64_t r = 0; r < kernels.strip; ++r) {
      constexpr double sink = 0.5 * static_cast<double>(scale);
      double largest = r == 1 ? sink : -static_cast<double>(infinity);
      for (const double logit : logits[static_cast<std::size_t>(r)]) largest = std::max(largest, logit);
      double sum = r == 1 ? std::exp(sink - largest) : 0;
      for (const double logit : logits[static_cast<std::size_t>(r)])
        sum += std::isinf(logit) ? 0 : std::exp(logit - largest);
      const double logit = static_cast<double>(softmax.largest[r]) * static_cast<double>(scale);
      CHECK(logit == largest);
      CHECK(near(softmax.sum[r], sum, sum));
    }
  }
}

TEST_CASE("the largest of huge logits has the weight 1, whatever the rounding of its product") {
  constexpr float scale = 1234567680;
  for (const RowKernels* const each : row_kernels()) {
    const TileKernels& kernels = *each->tiles;
    StripSoftmax softmax = fresh();
    std::vector<float> before = floats(kernels.strip * tile_keys, 0);
    for (float& score : before) score = 8 * number();
    StripScores scores = multiplied(kernels, before, {0, tile_keys});
    weigh(kernels, scores, nullptr, {0, tile_keys}, scale, softmax);
    for (std::int64_t r = 0; r < kernels.strip; ++r) {
      const auto row = before.begin() + r * tile_keys;
      const std::int64_t place = std::max_element(row, row + tile_keys) - row;
      CHECK(scores.values[r * tile_keys + place] == 1);
      CHECK(softmax.sum[r] == 1);
      CHECK(softmax.largest[r] == row[place]);
    }
  }
}

TEST_CASE("a row has the same bits wherever it stands in a strip and whatever its neighbours see") {
  for (const RowKernels* const each : row_kernels()) {
    const TileKernels& kernels = *each->tiles;
    std::vector<float> row = floats(tile_keys, 0);
    std::generate(row.begin(), row.end(), number);
    std::vector<float> first;
    for (std::int64_t place = 0; place < kernels.strip; ++place) {
      StripScores scores = no_scores();
      std::generate(std::begin(scores.values), std::end(scores.values), number);
      std::copy(row.begin(), row.end(), scores.values + place * tile_keys);
      TileRange seen[most_strip_rows];
      for (std::int64_t r = 0; r < kernels.strip; ++r) seen[r] = {20, 20 + 4 * place};
      seen[place] = {20, 77};
      StripSoftmax softmax = fresh();
      weigh(kernels, scores, seen, {0, 77 + place}, 2, softmax);
      std::vector<float> got(scores.values + place * tile_keys, scores.values + place * tile_keys + 77);
      got.push_back(softmax.largest[place]);
      got.push_back(softmax.sum[place]);
      if (place == 0) first = got;
      CHECK(got == first);
    }
  }
}

TEST_CASE("weights are as good as the roundings of their exponents let them be, and 0 below the least number") {
  for (const RowKernels* const each : row_kernels()) {
    const TileKernels& kernels = *each->tiles;
    for (const float scale : {1.0f, 0.0884f, 1234.5f}) {
      double worst = 0;
      for (std::int64_t step = 0; step < 140; ++step) {
        // Below the first key's, whose weight is 1.
        std::vector<float> before = floats(kernels.strip * tile_keys, 1 / scale);
        for (std::int64_t j = 1; j < tile_keys; ++j) {
          before[static_cast<std::size_t>(j)] -= (static_cast<float>(step) + (number() + 1) / 2) / scale;
        }
        StripScores scores = multiplied(kernels, before, {0, tile_keys});
        StripSoftmax softmax = fresh();
        weigh(kernels, scores, nullptr, {0, tile_keys}, scale, softmax);
        CHECK(scores.values[0] == 1);
        for (std::int64_t j = 1; j < tile_keys; ++j) {
          const auto i = static_cast<std::size_t>(j);
          const double logit =
              (static_cast<double>(before[i]) - static_cast<double>(before[0])) * static_cast<double>(scale);
          worst = std::max(worst, off_by(scores.values[j], logit));
        }
      }
      INFO(each->name << ", scale " << scale << ": " << worst << " of what is allowed");
      CHECK(worst <= 1);
    }
  }
}

TEST_CASE("rows that all see a part of a tile have the same bits whether that is said of each or of all") {
  for (const RowKernels* const each : row_kernels()) {
    const TileKernels& kernels = *each->tiles;
    for (const TileRange range : {TileRange{0, tile_keys}, {32, 96}, {0, 16}, {0, 37}, {5, 128}, {17, 18}}) {
      std::vector<float> wanted = floats(kernels.strip * tile_keys, 0);
      std::generate(wanted.begin(), wanted.end(), number);
      StripScores scores = multiplied(kernels, wanted, range), others = scores;
      TileRange seen[most_strip_rows];
      std::fill(std::begin(seen), std::end(seen), range);
      StripSoftmax one = fresh(), other = fresh();
      weigh(kernels, scores, nullptr, range, 2, one);
      weigh(kernels, others, seen, range, 2, other);
      CHECK(same_weights(kernels, scores, others, range));
      for (std::int64_t r = 0; r < kernels.strip; ++r) {
        CHECK(one.sum[r] == other.sum[r]);
        CHECK(one.largest[r] == other.largest[r]);
        double sum = 0;
        for (std::int64_t j = range.begin; j < range.end; ++j) {
          sum += static_cast<double>(scores.values[r * tile_keys + j]);
        }
        CHECK(near(one.sum[r], sum, sum));
      }
    }
  }
}

TEST_CASE("weights that come about beside another strip's products have the same bits, and so have the products") {
  for (const RowKernels* const each : row_kernels()) {
    const TileKernels& kernels = *each->tiles;
    for (const std::int64_t width : {1, 20, 64, 128}) {
      // Of the other strip, whose products are too few for all exponentials or leave room beside them.
      for (const TileRange other : {TileRange{0, tile_keys}, {60, 61}, {13, 50}}) {
        for (const TileRange range : {TileRange{0, tile_keys}, {7, 8}, {31, 77}}) {
          INFO(each->name << ", width " << width << ", keys " << range.begin << " to " << range.end << " beside "
                          << other.begin << " to " << other.end);
          std::vector<float> wanted = floats(kernels.strip * tile_keys, 0), factor = floats(kernels.strip, 0);
          std::generate(wanted.begin(), wanted.end(), number);
          std::generate(factor.begin(), factor.end(), number);
          StripScores alone = multiplied(kernels, wanted, range), beside = alone;
          const StripScores weights = multiplied(kernels, wanted, other);
          const Matrix values(tile_keys, width);
          std::vector<float> panels = floats(tile_keys * padded(width), poison);
          kernels.pack(values.block(0, tile_keys), nullptr, 0, tile_keys, panels.data());
          std::vector<float> blended = floats(kernels.strip * padded(width), 0);
          std::generate(blended.begin(), blended.end(), number);
          std::vector<float> others = blended;
          StripSoftmax one = fresh(), another = fresh();
          weigh(kernels, alone, nullptr, range, 2, one);
          kernels.blend(weights, factor.data(), panels.data(), width, other, far_ahead, nullptr, blended.data());
          // A strip's first tile.
          std::vector<float> over_zeros = floats(kernels.strip * padded(width), 0), first = over_zeros;
          std::vector<float> first_of_others = over_zeros;
          kernels.blend(weights, factor.data(), panels.data(), width, other, far_ahead, nullptr, over_zeros.data());
          kernels.blend(weights, nullptr, panels.data(), width, other, far_ahead, nullptr, first.data());
          kernels.begin_weights(beside, nullptr, range, 2, another);
          StripScores beside_first = beside;
          kernels.blend(weights, nullptr, panels.data(), width, other, far_ahead, &beside_first,
                        first_of_others.data());
          CHECK(first == over_zeros);
          CHECK(first_of_others == over_zeros);
          kernels.blend(weights, factor.data(), panels.data(), width, other, far_ahead, &beside, others.data());
          const bool full = other.begin == 0 && other.end == tile_keys;
          CHECK((beside.row > 0 || beside.at > beside.begin));
          CHECK((beside.row == kernels.strip || width < 64 || !full));
          kernels.end_weights(beside, another);
          CHECK(blended == others);
          CHECK(same_weights(kernels, alone, beside, range));
          for (std::int64_t r = 0; r < kernels.strip; ++r) {
            CHECK(one.sum[r] == another.sum[r]);
            CHECK(one.largest[r] == another.largest[r]);
            CHECK(one.factor[r] == another.factor[r]);
          }
        }
      }
    }
  }
}

TEST_CASE("a streamed row is the row, whatever its width and place, and nothing beside it") {
  for (const RowKernels* const each : row_kernels()) {
    const TileKernels& kernels = *each->tiles;
    for (const std::int64_t width : {1, 15, 16, 20, 72, 128}) {
      alignas(64) float to[1 + 128 + 17];
      for (const std::int64_t place : {0, 1, 4, 8, 16}) {
        std::vector<float> row = floats(width, 0);
        std::generate(row.begin(), row.end(), number);
        std::fill(std::begin(to), std::end(to), 2.0f);
        kernels.stream(row.data(), width, to + place);
        settle_streams();
        INFO(each->name << ", width " << width << ", place " << place);
        CHECK(std::equal(row.begin(), row.end(), to + place));
        CHECK(std::count(std::begin(to), std::end(to), 2.0f) == std::ssize(to) - width);
        std::fill(std::begin(to), std::end(to), 2.0f);
        kernels.stream_divided(row.data(), width, 3, to + place);
        settle_streams();
        CHECK(std::equal(row.begin(), row.end(), to + place, [](float all, float third) { return third == all / 3; }));
        CHECK(std::count(std::begin(to), std::end(to), 2.0f) == std::ssize(to) - width);
      }
    }
  }
}
