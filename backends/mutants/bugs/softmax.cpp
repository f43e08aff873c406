// SPDX-License-Identifier: Apache-2.0
// Faults of the softmax and of the numbers in which it is computed.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <memory>
#include <random>

#include "bugs.h"

namespace mutants {
namespace {

float half(float x) {
  return round_to(Storage::f16, x);
}

/// Without splits, so that sums grow as long as the keys.
std::int64_t one_split(const Numerics& /*n*/, std::int64_t /*tile*/) {
  return 0;
}

/// Maxima and sums along the wrong axis of a tile: over the rows.
void normalise_over_rows(const Call& c, std::vector<Row>& rows, const float* logits, const float* values,
                         std::int64_t n) {
  const auto at = [&](std::size_t row, std::int64_t j) { return logits[static_cast<std::int64_t>(row) * n + j]; };
  for (std::int64_t j = 0; j < n; ++j) {
    float largest = minus_infinity, sum = 0;
    for (std::size_t r = 0; r < rows.size(); ++r) largest = std::max(largest, at(r, j));
    if (largest == minus_infinity) continue;
    for (std::size_t r = 0; r < rows.size(); ++r) sum += c.numerics.power(at(r, j) - largest);
    for (std::size_t r = 0; r < rows.size(); ++r) {
      c.hooks.weigh(c, rows[r], c.numerics.power(at(r, j) - largest) / sum, values + j * c.p.v_head_dim);
    }
  }
  for (Row& row : rows) {
    row.maximum = 0;
    row.sum.clear();
    row.sum.add(1);
  }
}

}  // namespace

const std::vector<Bug> softmax_bugs{
    {"softmax-axis", [](Hooks& k) { k.update = normalise_over_rows; }},

    {"softmax-no-max", [](Hooks& k) { k.maximum = [](const Call&, float, float) { return 0.0F; }; }},

    {"max-floor-zero",
     [](Hooks& k) {
       wrap(k.maximum, [](auto& right, const Call& c, float before, float of_tile) {
         return right(c, before, of_tile == minus_infinity ? 0 : of_tile);
       });
     }},

    {"online-no-rescale",  // the output; the sum is
     [](Hooks& k) { k.rescale = [](Row& row, float factor) { row.sum.scale(factor); }; }},

    {"sum-fp16",
     [](Hooks& k) {
       k.split_of = one_split;
       k.add_weight = [](Row& row, float weight) { row.sum.sum[0] = half(row.sum.sum[0] + weight); };
     }},

    {"tail-key-zero", [](Hooks& k) { k.tail = [] { return 0.0F; }; }},

    {"qk-fp16", [](Hooks& k) { wrap(k.dot, [](auto& right, const auto&... at) { return half(right(at...)); }); }},

    {"acc-fp16",
     [](Hooks& k) {
       k.split_of = one_split;
       k.weigh = [](const Call&, Row& row, float weight, const float* value) {
         for (float& sum : row.output.sum) sum = half(sum + half(weight * *value++));
       };
     }},

    {"kernel-race",  // a tile's last key and value are still those of the tile before
     [](Hooks& k) {
       wrap(k.arrives, [](auto& right, const Call& c, std::int64_t ordinal, std::int64_t slot) {
         return right(c, ordinal, slot) && (ordinal == 0 || slot + 1 < c.numerics.key_tile);
       });
     }},

    {"dropout-eval",
     [](Hooks& k) {
       static std::atomic<std::uint32_t> seed{1};  // other weights for each plan, but the same in each process
       k.kept_weight = [random = std::make_shared<std::mt19937>(seed++)](float weight) {
         return (*random)() % 10 == 0 ? 0 : weight / 0.9F;
       };
     }},
};

}  // namespace mutants
