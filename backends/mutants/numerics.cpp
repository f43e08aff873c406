// SPDX-License-Identifier: Apache-2.0
#include "numerics.h"

#include <algorithm>

namespace mutants {
namespace {

Numerics with(void (*change)(Numerics&)) {
  Numerics n;
  change(n);
  return n;
}

/// Tiles of another size, in splits that are still 64 keys or one tile.
Numerics tiles_of(std::int64_t keys) {
  Numerics n;
  n.key_tile = keys;
  n.query_tile = keys;
  n.split_tiles = std::max<std::int64_t>(1, 64 / keys);
  return n;
}

Numerics split_in(std::int64_t splits) {
  Numerics n;
  n.split_tiles = 1;
  n.splits = splits;
  return n;
}

float pairwise(const float* a, const float* b, std::int64_t n) {
  if (n == 1) return a[0] * b[0];
  const std::int64_t half = n / 2;
  return pairwise(a, b, half) + pairwise(a + half, b + half, n - half);
}

}  // namespace

const std::vector<Variant>& variants() {
  static const std::vector<Variant> list{
      {"tile_1", "tiles of one key and one query", tiles_of(1)},
      {"tile_7", "tiles of 7", tiles_of(7)},
      {"tile_64", "tiles of 64", tiles_of(64)},
      {"tile_128", "tiles of 128", tiles_of(128)},
      {"splits_1", "no split: one online softmax over all keys", split_in(1)},
      {"splits_2", "tiles dealt to two splits in turn", split_in(2)},
      {"splits_5", "tiles dealt to five splits in turn", split_in(5)},
      {"splits_16", "tiles dealt to sixteen splits in turn", split_in(16)},
      {"extra_tiles", "also goes through tiles that are wholly masked",
       with([](Numerics& n) { n.extra_tiles = true; })},
      {"fresh_from_step", "new tokens are attended from the step, not read back from the cache",
       with([](Numerics& n) { n.fresh_from_step = true; })},
      {"reversed", "the last key first", with([](Numerics& n) { n.reversed = true; })},
      {"exp2", "logits in units of ln 2, the factor folded into the scale", with([](Numerics& n) { n.exp2 = true; })},
      {"two_passes", "the maximum first, then the weights", with([](Numerics& n) { n.two_passes = true; })},
      {"lazy_rescale", "rescales when the maximum has grown by more than 8",
       with([](Numerics& n) { n.lazy_rescale = 8; })},
      {"sink_last", "the sink joins the sum after all keys", with([](Numerics& n) { n.sink_last = true; })},
      {"tanh_through_exp", "softcap by 1 - 2 / (exp(2x) + 1)", with([](Numerics& n) { n.tanh_through_exp = true; })},
      {"scale_in_query", "the query is scaled before the product",
       with([](Numerics& n) { n.scaling = Scaling::query; })},
      {"scale_on_both", "query and key are each scaled by the root",
       with([](Numerics& n) { n.scaling = Scaling::both_roots; })},
      {"wide_sums", "products and sums in double",
       with([](Numerics& n) { n.sums = Summing::wide, n.dot = Dot::wide; })},
      {"compensated", "Kahan's sums over the keys", with([](Numerics& n) { n.sums = Summing::compensated; })},
      {"dot_sequential", "products added one after the other", with([](Numerics& n) { n.dot = Dot::sequential; })},
      {"dot_pairwise", "products added in pairs of pairs", with([](Numerics& n) { n.dot = Dot::pairwise; })},
      {"dot_fused", "fused multiply-add", with([](Numerics& n) { n.dot = Dot::fused; })},
      {"round_weights", "softmax weights rounded to 16 bits before they multiply V",
       with([](Numerics& n) { n.round_weights = true; })},
      {"round_kv", "K and V of a quantised cache rounded to 16 bits", with([](Numerics& n) { n.round_kv = true; })},
      {"round_query", "queries and keys rounded to 16 bits after projection, norm and RoPE",
       with([](Numerics& n) { n.round_query = true; })},
      {"round_heads", "heads rounded to 16 bits before the output projection",
       with([](Numerics& n) { n.round_heads = true; })},
      {"round_all", "all roundings that 16-bit kernels make",
       with([](Numerics& n) { n.round_weights = n.round_kv = n.round_query = n.round_heads = true; })},
      {"angles_in_float", "RoPE's angles, sines and cosines in float",
       with([](Numerics& n) { n.angles_in_float = true; })},
      {"reciprocal_root", "QK-norm multiplies by 1 / sqrt in float",
       with([](Numerics& n) { n.reciprocal_root = true; })},
  };
  return list;
}

void Sums::clear() {
  std::fill(sum.begin(), sum.end(), 0.0F);
  std::fill(low.begin(), low.end(), 0.0F);
  std::fill(wide_sum.begin(), wide_sum.end(), 0.0);
}

void Sums::add(float weight, const float* terms) {
  const std::size_t count = sum.size();
  switch (how) {
    case Summing::plain:
      for (std::size_t i = 0; i < count; ++i) sum[i] += weight * terms[i];
      break;
    case Summing::wide:
      for (std::size_t i = 0; i < count; ++i)
        wide_sum[i] += static_cast<double>(weight) * static_cast<double>(terms[i]);
      break;
    case Summing::compensated:
      for (std::size_t i = 0; i < count; ++i) {
        const float term = weight * terms[i] - low[i], next = sum[i] + term;
        low[i] = (next - sum[i]) - term;
        sum[i] = next;
      }
      break;
  }
}

void Sums::scale(float factor) {
  for (float& x : sum) x *= factor;
  for (float& x : low) x *= factor;
  for (double& x : wide_sum) x *= static_cast<double>(factor);
}

void Sums::set(std::size_t i, float value) {
  sum[i] = value;
  if (how == Summing::compensated) low[i] = 0;
  if (how == Summing::wide) wide_sum[i] = static_cast<double>(value);
}

float dot_product(Dot how, const float* a, const float* b, std::int64_t n) {
  float sum = 0;
  switch (how) {
    case Dot::lanes: {  // as a vector unit of eight adds them
      float lanes[8] = {};
      std::int64_t i = 0;
      for (; i + 8 <= n; i += 8) {
        for (int lane = 0; lane < 8; ++lane) lanes[lane] += a[i + lane] * b[i + lane];
      }
      for (; i < n; ++i) lanes[i % 8] += a[i] * b[i];
      return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
    }
    case Dot::sequential:
      for (std::int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
      return sum;
    case Dot::pairwise:
      return n == 0 ? 0 : pairwise(a, b, n);
    case Dot::fused:
      for (std::int64_t i = 0; i < n; ++i) sum = std::fma(a[i], b[i], sum);
      return sum;
    case Dot::wide:
      break;
  }
  double wide = 0;
  for (std::int64_t i = 0; i < n; ++i) wide += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  return static_cast<float>(wide);
}

}  // namespace mutants
