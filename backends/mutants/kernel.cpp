// SPDX-License-Identifier: Apache-2.0
// A problem's preparation, and a step's way through the stages.
#include "kernel.h"

#include <algorithm>

namespace mutants {
namespace {

std::vector<float> floats(const DLTensor* tensor) {
  std::vector<float> values;
  if (tensor == nullptr) return values;
  const NumberView<1> view(*tensor);
  for (std::int64_t i = 0; i < view.shape(0); ++i) values.push_back(view(i));
  return values;
}

Side side_of(const attest_problem& p, const attest_step& step, std::int64_t tokens, std::int64_t width,
             DLTensor* attest_cache::*tensor, DLTensor* attest_cache::*scale) {
  Side side{Heads(tokens, p.kv_heads, width), {}, {}, {}, storage_of(p.dtype)};
  if (step.cache != nullptr) {
    side.cache.emplace(*(step.cache->*tensor), p.cache_fp8);
    side.storage = side.cache->storage();
    if (p.kv_scale != ATTEST_KV_SCALE_NONE) {
      side.scales = scale_view(p, *(step.cache->*scale));
      side.staged_scales.assign(static_cast<std::size_t>(tokens * p.kv_heads), poison);
    }
  }
  return side;
}

/// The tokens as counted from `past` on.
Extents from(Extents e, const Counts& past) {
  e.past = past;
  return e;
}

}  // namespace

Call::Call(const Kernel& kernel_, const attest_step& step_, Extents extents)
    : kernel(kernel_),
      p(kernel.p),
      hooks(kernel.hooks),
      numerics(kernel.numerics),
      step(step_),
      e(std::move(extents)),
      past(e.past),
      query(e.query_tokens, p.query_heads, p.qk_head_dim),
      keys(side_of(p, step, e.key_tokens, p.qk_head_dim, &attest_cache::key, &attest_cache::key_scale)),
      values(side_of(p, step, e.key_tokens, p.v_head_dim, &attest_cache::value, &attest_cache::value_scale)),
      output(e.query_tokens, p.query_heads, p.v_head_dim),
      lse(e.query_tokens, p.query_heads, 1),
      written(lse.memory.size(), 0) {
  if (p.cache == ATTEST_CACHE_PAGED) table = View<const std::int32_t, 2>(*step.cache->block_table);
}

std::int64_t Call::page(std::int64_t b, std::int64_t column) const {
  return table(b, std::clamp<std::int64_t>(column, 0, table.shape(1) - 1));
}

Kernel::Kernel(const attest_problem& problem, const Numerics& numerics_, Hooks hooks_)
    : p(problem), numerics(numerics_), hooks(std::move(hooks_)) {
  check_problem(p);
  hooks.problem(p);
  if (p.level == ATTEST_LEVEL_LAYER) {
    qkv.append(*p.q_weight, p.q_bias);
    qkv.append(*p.k_weight, p.k_bias);
    qkv.append(*p.v_weight, p.v_bias);
    out.append(*p.out_weight, p.out_bias);
  }
  q_norm = floats(p.q_norm_weight);
  k_norm = floats(p.k_norm_weight);
  sinks = floats(p.sinks);
  slopes = hooks.slopes(p);
  prefill_scale = static_cast<float>(hooks.scale(p, false));
  decode_scale = static_cast<float>(hooks.scale(p, true));
}

void Kernel::run(attest_step step) const {
  Call c(*this, step, hooks.check(p, step));  // Throws before anything is written.
  hooks.lengths(c);
  c.positions.emplace(p, from(c.e, c.past), c.step);
  for (std::int64_t b = 0; b < p.batch; ++b) {
    c.frequencies.push_back(hooks.frequencies(p, c.past[b] + c.e.keys[b]));
  }
  stage_tokens(c);
  const bool append_first = hooks.append_first(c);
  if (append_first) append(c);
  attend(c);
  if (!append_first) append(c);
  give(c);
  hooks.finished(c);
}

Extents stage::check(const attest_problem& p, attest_step& step) {
  return check_step(p, step);
}

Sequence stage::sequence(const Call& c, std::int64_t b) {
  const std::int64_t total = c.past[b] + c.e.keys[b], queries = c.e.queries[b];
  const bool decode = queries == 1;
  return {b, queries, total, total - queries, decode, decode ? c.kernel.decode_scale : c.kernel.prefill_scale};
}

}  // namespace mutants
