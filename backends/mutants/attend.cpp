// SPDX-License-Identifier: Apache-2.0
// Split-KV: each split goes through its tiles of keys with an online softmax, and leaves a partial result.
#include <algorithm>
#include <cmath>
#include <map>

#include "kernel.h"

namespace mutants {
namespace {

/// Keys, values and logits of one tile, in scratch memory.
class Tile {
 public:
  Tile(const Call& c, const Sequence& s, std::int64_t kv_head, KeyRange walked, std::size_t rows)
      : c_(c),
        s_(s),
        kv_head_(kv_head),
        walked_(walked),
        keys_(1, c.numerics.key_tile, c.p.qk_head_dim),
        values_(1, c.numerics.key_tile, c.p.v_head_dim),
        logits_(static_cast<std::int64_t>(rows), 1, c.numerics.key_tile) {}

  /// Loads tile `number`, the `ordinal`-th of its split. What is not loaded is 0.
  void load(std::int64_t number, std::int64_t ordinal) {
    first_ = number * c_.numerics.key_tile;
    for (std::int64_t n = 0; n < c_.numerics.key_tile; ++n) {
      if (!c_.hooks.arrives(c_, ordinal, n)) continue;
      load(Role::key, n, keys_.at(0, n), keys_.width);
      load(Role::value, n, values_.at(0, n), values_.width);
      if (c_.numerics.scaling != Scaling::both_roots) continue;
      for (std::int64_t i = 0; i < keys_.width; ++i) keys_.at(0, n)[i] *= std::sqrt(std::abs(s_.scale));
    }
  }

  const float* score(const std::vector<Row>& rows) {
    float* x = logits_.memory.data();
    for (const Row& row : rows) {
      for (std::int64_t n = 0; n < c_.numerics.key_tile; ++n) {
        *x++ = first_ + n < s_.total ? logit(c_, s_, row, keys_.at(0, n), first_ + n) : c_.hooks.tail();
      }
    }
    return logits_.memory.data();
  }

  [[nodiscard]] const float* values() const { return values_.memory.data(); }

 private:
  void load(Role role, std::int64_t n, float* to, std::int64_t width) {
    if (c_.hooks.loads(c_, s_, walked_, role, first_ + n)) {
      c_.hooks.fetch(c_, s_, first_ + n, role, kv_head_, to);
    } else {
      std::fill_n(to, width, 0.0F);
    }
  }

  const Call& c_;
  const Sequence& s_;
  std::int64_t kv_head_;
  KeyRange walked_;
  Heads keys_, values_, logits_;
  std::int64_t first_ = 0;
};

std::int64_t tiles_up_to(const Numerics& n, std::int64_t key) {
  return (key + n.key_tile - 1) / n.key_tile;
}

/// The tiles of each split that has work to do. The sink is work of split 0.
std::map<std::int64_t, std::vector<std::int64_t>> plan_splits(const Call& c, const Sequence& s, KeyRange walked) {
  const Numerics& n = c.numerics;
  std::map<std::int64_t, std::vector<std::int64_t>> splits;
  const std::int64_t first = n.extra_tiles ? 0 : walked.begin / n.key_tile;
  const std::int64_t end = n.extra_tiles ? tiles_up_to(n, s.total) + 1 : tiles_up_to(n, walked.end);
  for (std::int64_t tile = first; tile < end && (n.extra_tiles || walked.begin < walked.end); ++tile) {
    splits[c.hooks.split_of(n, tile)].push_back(tile);
  }
  if (!c.kernel.sinks.empty()) splits[0];
  for (auto& [split, tiles] : splits) {
    if (n.reversed) std::reverse(tiles.begin(), tiles.end());
  }
  return splits;
}

}  // namespace

Partials::Partials(std::int64_t splits_, std::int64_t rows_, std::int64_t width_)
    : splits(splits_),
      rows(rows_),
      width(width_),
      padded(width_ / 4 * 4 + 8),
      memory(static_cast<std::size_t>(rows * (width + (splits - 1) * padded)), poison),
      lses(static_cast<std::size_t>(splits * rows), poison) {}

KeyRange stage::walked(const Call& /*c*/, const Sequence& /*s*/, const std::vector<Row>& rows) {
  KeyRange all{0, 0};
  for (const Row& row : rows) {
    if (row.keys.begin == row.keys.end) continue;
    all = all.begin == all.end ? row.keys
                               : KeyRange{std::min(all.begin, row.keys.begin), std::max(all.end, row.keys.end)};
  }
  return all;
}

bool stage::loads(const Call& /*c*/, const Sequence& /*s*/, KeyRange walked, Role /*role*/, std::int64_t j) {
  return walked.begin <= j && j < walked.end;
}

void attend_rows(Call& c, const Sequence& s, std::int64_t kv_head, std::vector<Row>& rows) {
  const KeyRange walked = c.hooks.walked(c, s, rows);
  const auto splits = plan_splits(c, s, walked);
  const std::int64_t all = tiles_up_to(c.numerics, s.total);
  std::int64_t count = 1;
  for (std::int64_t tile = 0; tile < all; ++tile) count = std::max(count, c.hooks.split_of(c.numerics, tile) + 1);
  if (!splits.empty()) count = std::max(count, splits.rbegin()->first + 1);
  Partials partials(count, static_cast<std::int64_t>(rows.size()), c.p.v_head_dim);
  Tile tile(c, s, kv_head, walked, rows.size());
  std::vector<std::int64_t> computed;

  for (const auto& [split, tiles] : splits) {
    for (Row& row : rows) c.hooks.start(c, s, row, split);
    for (int pass = c.numerics.two_passes ? 0 : 1; pass < 2; ++pass) {
      for (std::size_t n = 0; n < tiles.size(); ++n) {
        tile.load(tiles[n], static_cast<std::int64_t>(n));
        const float* const logits = tile.score(rows);
        if (pass == 0) {
          find_maxima(c, rows, logits);
        } else {
          c.hooks.update(c, rows, logits, tile.values(), c.numerics.key_tile);
        }
      }
    }
    for (std::size_t r = 0; r < rows.size(); ++r) {
      Row& row = rows[r];
      c.hooks.finish(c, s, row, split);
      const auto at = static_cast<std::int64_t>(r);
      const float sum = row.sum[0];
      partials.lse(split, at) = sum == 0 ? minus_infinity : c.hooks.partial_lse(c, row.maximum, sum);
      float* const to = partials.output(split, at, partials.stride(split));
      for (std::int64_t i = 0; i < c.p.v_head_dim; ++i) {
        to[i] = sum == 0 ? 0 : row.output[static_cast<std::size_t>(i)] / sum;
      }
    }
    computed.push_back(split);
  }
  merge(c, s, rows, partials, computed);
}

}  // namespace mutants
