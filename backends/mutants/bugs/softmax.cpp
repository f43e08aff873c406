// SPDX-License-Identifier: Apache-2.0
// Faults of the softmax and of the numbers in which it is computed.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <random>

#include "bugs.h"

namespace mutants {
namespace {

float half(float x) {
  return round_to(Storage::f16, x);
}

void sum_in(Hooks& k, Storage storage, std::int64_t (*split_of)(const Numerics&, std::int64_t)) {
  k.split_of = split_of;
  k.add_weight = [storage](Row& row, float weight) { row.sum.set(0, round_to(storage, row.sum[0] + weight)); };
}

/// Other numbers each time that a plan begins with the same query, and the same ones in every process.
std::uint32_t next_seed(const float* query, std::int64_t width) {
  std::uint32_t hash = 2166136261U;
  for (std::int64_t i = 0; i < width; ++i) {
    std::uint32_t bits = 0;
    std::memcpy(&bits, query + i, sizeof bits);
    hash = (hash ^ bits) * 16777619U;
  }
  static std::mutex mutex;
  static std::map<std::uint32_t, std::uint32_t> plans;
  const std::lock_guard lock(mutex);
  return hash + plans[hash]++;
}

/// Without splits, so that sums grow as long as the keys.
std::int64_t one_split(const Numerics& /*n*/, std::int64_t /*tile*/) {
  return 0;
}

/// Off by a rounding: the maximum's product has one that the fused difference has not.
float less_a_rounding(float maximum) {
  return std::nextafter(maximum, minus_infinity);
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
    {"softmax-no-max@constant",
     [](Hooks& k) { k.maximum = [](const Call& c, float, float) { return 10 * c.numerics.units(); }; }},

    {"softmax-fused-difference",
     [](Hooks& k) { wrap(k.reference, [](auto& right, float maximum) { return less_a_rounding(right(maximum)); }); }},
    {"softmax-fused-difference@merge",
     [](Hooks& k) {
       wrap(k.merge_reference, [](auto& right, float largest, std::size_t splits) {
         return splits > 1 ? less_a_rounding(right(largest, splits)) : right(largest, splits);
       });
     }},

    {"max-floor-zero",
     [](Hooks& k) {
       wrap(k.maximum, [](auto& right, const Call& c, float before, float of_tile) {
         return right(c, before, of_tile == minus_infinity ? 0 : of_tile);
       });
     }},

    {"online-no-rescale",  // the output; the sum is
     [](Hooks& k) { k.rescale = [](Row& row, float factor) { row.sum.scale(factor); }; }},
    {"online-no-rescale@sum", [](Hooks& k) { k.rescale = [](Row& row, float factor) { row.output.scale(factor); }; }},
    {"online-no-rescale@skipped",  // when the maximum has grown by less than 8
     [](Hooks& k) {
       wrap(k.rescale, [](auto& right, Row& row, float factor) {
         if (factor < std::exp(-8.0F)) right(row, factor);
       });
     }},

    {"sum-fp16", [](Hooks& k) { sum_in(k, Storage::f16, one_split); }},
    {"sum-fp16@bf16", [](Hooks& k) { sum_in(k, Storage::bf16, one_split); }},

    {"tail-key-zero", [](Hooks& k) { k.tail = [] { return 0.0F; }; }},

    {"qk-fp16",
     [](Hooks& k) {
       wrap(k.soften, [](auto& right, const Call& c, const Sequence& s, float dot) {
         const float rounded = half(stage::unscaled(c, s, dot));
         return right(c, s, c.numerics.scaling == Scaling::logit ? rounded : rounded * s.scale);
       });
     }},

    {"acc-fp16",
     [](Hooks& k) {
       k.split_of = one_split;
       k.weigh = [](const Call& c, Row& row, float weight, const float* value) {
         const float kept = stage::weight_of_value(c, weight);
         for (std::size_t i = 0; i < row.output.size(); ++i) {
           row.output.set(i, half(row.output[i] + half(kept * *value++)));
         }
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
       const auto random = std::make_shared<std::unique_ptr<std::mt19937>>();
       wrap(k.sequence, [random](auto& right, const Call& c, std::int64_t b) {
         if (*random == nullptr && c.e.queries[b] > 0) {
           const float* const query = c.query.at(c.query_token(b, 0), 0);
           *random = std::make_unique<std::mt19937>(next_seed(query, c.query.width));
         }
         return right(c, b);
       });
       k.kept_weight = [random](float weight) { return (**random)() % 10 == 0 ? 0 : weight / 0.9F; };
     }},
};

}  // namespace mutants
