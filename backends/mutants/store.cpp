// SPDX-License-Identifier: Apache-2.0
// New keys and values on their way into the cache: codes, scales, slots.
#include <algorithm>
#include <cmath>

#include "kernel.h"

namespace mutants {

float stage::token_scale(const Call& /*c*/, const Heads& x, Storage storage, std::int64_t token, std::int64_t head) {
  float largest = 0;
  for (std::int64_t i = 0; i < x.width; ++i) largest = std::max(largest, std::abs(x.at(token, head)[i]));
  const float scale = largest / largest_code(storage);
  return scale == 0 ? 1 : scale;  // All codes are 0 then.
}

bool stage::append_first(const Call& c) {
  return c.p.cache != ATTEST_CACHE_RING;  // A ring's new tokens overwrite old ones that the queries see.
}

std::int64_t stage::append_position(const Call& c, std::int64_t b, std::int64_t n) {
  return c.past[b] + n;
}

void quantise(Call& c, Role role) {
  Side& side = c.side(role);
  Heads codes = side.staged;
  for (std::int64_t b = 0; b < c.p.batch; ++b) {
    for (std::int64_t n = 0; n < c.e.keys[b]; ++n) {
      for (std::int64_t h = 0; h < codes.heads; ++h) {
        const std::int64_t token = c.key_token(b, n);
        float scale = 1;
        if (c.p.kv_scale != ATTEST_KV_SCALE_NONE) {
          float& kept = side.staged_scales[static_cast<std::size_t>(token * codes.heads + h)];
          kept = c.p.kv_scale == ATTEST_KV_SCALE_PER_TOKEN
                     ? c.hooks.token_scale(c, side.staged, side.storage, token, h)
                     : side.scales.data()[c.hooks.scale_element(side.scales, {0, 0}, h)];
          scale = c.hooks.used_scale(kept);
        }
        for (std::int64_t i = 0; i < codes.width; ++i) {
          float& x = codes.at(token, h)[i];
          x = round_to(side.storage, x / scale);
        }
      }
    }
  }
  side.staged = std::move(codes);
}

void append(const Call& c) {
  if (c.step.cache == nullptr) return;
  for (std::int64_t b = 0; b < c.p.batch; ++b) {
    for (std::int64_t n = 0; n < c.e.keys[b]; ++n) {
      for (const Side* const side : {&c.keys, &c.values}) {
        const auto bytes = static_cast<std::int64_t>(bytes_of(side->storage));
        char* const memory = static_cast<char*>(side->cache->address(0, 0, 0, 0));
        for (std::int64_t h = 0; h < c.p.kv_heads; ++h) {
          const std::int64_t token = c.key_token(b, n);
          const auto [t, place] = c.hooks.append_place(c, b, c.hooks.append_position(c, b, n), h);
          const Slot slot = c.hooks.write_slot(c, b, t);
          const std::int64_t first = c.hooks.element(c, *side->cache, slot, place, true);
          for (std::int64_t i = 0; i < side->staged.width; ++i) {
            store(side->storage, side->staged.at(token, h)[i], memory + (first + i * side->cache->stride(3)) * bytes);
          }
          if (c.p.kv_scale == ATTEST_KV_SCALE_PER_TOKEN) {
            side->scales.data()[c.hooks.scale_element(side->scales, slot, place)] =
                side->staged_scales[static_cast<std::size_t>(token * c.p.kv_heads + h)];
          }
        }
      }
    }
    View<std::int32_t, 1> (*c.step.cache->lengths)(b) = static_cast<std::int32_t>(c.e.total(b));
  }
}

}  // namespace mutants
