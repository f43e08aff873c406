// SPDX-License-Identifier: Apache-2.0
// Where a token lies: ring, block table, strides. Whatever a fault asks for, an address stays inside its tensor.
#include <algorithm>

#include "kernel.h"

namespace mutants {

Slot stage::slot(const Call& c, std::int64_t b, std::int64_t t) {
  t = std::max<std::int64_t>(t, 0);
  if (c.p.cache == ATTEST_CACHE_PAGED) return {c.page(b, t / c.p.page_size), t % c.p.page_size};
  return {b, t % c.p.capacity};
}

std::int64_t stage::element(const Call& /*c*/, const NumberView<4>& cache, Slot slot, std::int64_t head,
                            bool /*writing*/) {
  const auto inside = [&](std::int64_t index, int axis) {
    return std::clamp<std::int64_t>(index, 0, cache.shape(axis) - 1) * cache.stride(axis);
  };
  return inside(slot.outer, 0) + inside(slot.inner, 1) + inside(head, 2);
}

std::int64_t stage::scale_element(const View<float, 3>& scales, Slot slot, std::int64_t head) {
  const auto inside = [&](std::int64_t index, int axis) {
    return std::clamp<std::int64_t>(index, 0, scales.shape(axis) - 1) * scales.stride(axis);
  };
  return inside(slot.outer, 0) + inside(slot.inner, 1) + inside(head, 2);
}

bool stage::fresh(const Call& c, std::int64_t b, std::int64_t j) {
  return c.step.cache == nullptr || ((c.numerics.fresh_from_step || !c.hooks.append_first(c)) && j >= c.past[b]);
}

void stage::fetch(const Call& c, const Sequence& s, std::int64_t j, Role role, std::int64_t head, float* to) {
  const Side& side = c.side(role);
  const std::int64_t width = side.staged.width;
  const bool fresh = c.hooks.fresh(c, s.b, j);
  float scale = 1;
  if (fresh) {
    if (side.staged.tokens == 0) return std::fill_n(to, width, poison), void();
    const std::int64_t token = std::clamp<std::int64_t>(c.key_token(s.b, j - c.past[s.b]), 0, side.staged.tokens - 1);
    std::copy_n(side.staged.at(token, head), width, to);
    if (!side.staged_scales.empty()) scale = side.staged_scales[static_cast<std::size_t>(token * c.p.kv_heads + head)];
  } else {
    const Slot slot = c.hooks.read_slot(c, s.b, j);
    const auto bytes = static_cast<std::int64_t>(bytes_of(side.storage));
    const char* const from = static_cast<const char*>(side.cache->address(0, 0, 0, 0)) +
                             c.hooks.element(c, *side.cache, slot, head, false) * bytes;
    const std::int64_t step = side.cache->stride(3) * bytes;
    for (std::int64_t i = 0; i < width; ++i) to[i] = load(side.storage, from + i * step);
    if (c.p.kv_scale != ATTEST_KV_SCALE_NONE)
      scale = side.scales.data()[c.hooks.scale_element(side.scales, slot, head)];
  }
  if (c.p.kv_scale == ATTEST_KV_SCALE_NONE) return;
  scale = c.hooks.used_scale(scale);
  for (std::int64_t i = 0; i < width; ++i) {
    to[i] = c.hooks.dequantise(role, fresh, to[i], scale);
    if (c.numerics.round_kv) to[i] = round_to(storage_of(c.p.dtype), to[i]);
  }
}

}  // namespace mutants
