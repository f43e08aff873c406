// SPDX-License-Identifier: Apache-2.0
// Tokens in, and out again: reading any layout, the merged projection, the split into heads, the output projection.
#include <algorithm>

#include "kernel.h"

namespace mutants {
namespace {

float round16(const attest_problem& p, bool wanted, float x) {
  return wanted ? round_to(storage_of(p.dtype), x) : x;
}

/// y[row] for some rows of a weight.
void multiply(const Kernel& k, const Linear& linear, std::int64_t first, std::int64_t rows, std::int64_t head_width,
              const float* x, float* y) {
  const float* const weight = linear.weight.data() + first * linear.columns;
  std::vector<float> gathered(static_cast<std::size_t>(linear.columns));
  for (std::int64_t row = 0; row < rows; ++row) {
    const WeightRow at = k.hooks.weight_row(rows, linear.columns, row);
    const float* elements = weight + at.first;
    if (at.step != 1) {
      for (std::int64_t i = 0; i < linear.columns; ++i) gathered[static_cast<std::size_t>(i)] = elements[i * at.step];
      elements = gathered.data();
    }
    const float bias = linear.bias[static_cast<std::size_t>(first + k.hooks.bias_row(row, rows, head_width))];
    y[row] = dot_product(k.numerics.dot, elements, x, linear.columns) + bias;
  }
}

/// The query, key or value of a step as heads, before norm and RoPE.
Heads bring(const Call& c, Role role, const DLTensor& tensor, std::int64_t heads, std::int64_t width) {
  const bool query = role == Role::query, layer = c.p.level == ATTEST_LEVEL_LAYER;
  const Tokens given = query ? Tokens::of_queries(c.p, c.e, tensor) : Tokens::of_keys(c.p, c.e, tensor);
  const Counts &counts = query ? c.e.queries : c.e.keys, &start = query ? c.e.query_start : c.e.key_start;
  const std::int64_t tokens = query ? c.e.query_tokens : c.e.key_tokens;
  const std::int64_t axis = c.p.packed != 0 ? 0 : tensor.shape[1];
  Heads raw(tokens, layer ? 1 : heads, layer ? c.p.d_model : width), split(tokens, heads, width);
  for (std::int64_t b = 0; b < c.p.batch; ++b) {
    // Padding too, as real kernels do: it does not matter what becomes of it.
    const std::int64_t count = c.p.packed != 0 ? counts[b] : axis;
    for (std::int64_t t = 0; t < count; ++t) {
      for (std::int64_t h = 0; h < raw.heads; ++h) {
        const Channels from = c.hooks.input(c, role, given, b, t, h);
        float* const to = raw.at(start[b] + t, h);
        for (std::int64_t i = 0; i < raw.width; ++i) to[i] = load(given.storage(), from.first + i * from.step);
      }
    }
  }
  if (layer) {
    Heads projected(tokens, heads, width);
    const std::int64_t first = c.hooks.first_row(c.kernel, role);
    for (std::int64_t t = 0; t < tokens; ++t) {
      multiply(c.kernel, c.kernel.qkv, first, heads * width, width, raw.at(t, 0), projected.at(t, 0));
      for (std::int64_t i = 0; i < heads * width; ++i) {
        float& x = projected.at(t, 0)[i];
        x = round16(c.p, c.numerics.round_query && role != Role::value, x);
      }
    }
    raw = std::move(projected);
  }
  for (std::int64_t b = 0; b < c.p.batch; ++b) {
    const std::int64_t count = c.p.packed != 0 ? counts[b] : axis;
    for (std::int64_t t = 0; t < count; ++t) {
      for (std::int64_t h = 0; h < heads; ++h) {
        // A padded token stays where it is; the view is of the sequence's own tokens.
        const std::int64_t place = t < counts[b] ? c.hooks.split_head(c, role, counts[b], t, h) : t * heads + h;
        std::copy_n(raw.at(start[b], 0) + place * width, width, split.at(start[b] + t, h));
      }
    }
  }
  return split;
}

}  // namespace

void Linear::append(const DLTensor& more, const DLTensor* more_bias) {
  const NumberView<2> view(more);
  rows += view.shape(0);
  columns = view.shape(1);
  for (std::int64_t row = 0; row < view.shape(0); ++row) {
    for (std::int64_t i = 0; i < columns; ++i) weight.push_back(view(row, i));
    bias.push_back(more_bias == nullptr ? 0 : NumberView<1>(*more_bias)(row));
  }
}

Channels stage::input(const Call& /*c*/, Role /*role*/, const Tokens& tokens, std::int64_t b, std::int64_t t,
                      std::int64_t h) {
  return {static_cast<const char*>(tokens.address(b, t, h, 0)),
          tokens.channel_stride() * static_cast<std::int64_t>(bytes_of(tokens.storage()))};
}

std::int64_t stage::first_row(const Kernel& k, Role role) {
  const std::int64_t q = k.p.query_heads * k.p.qk_head_dim;
  return role == Role::query ? 0 : role == Role::key ? q : q + k.p.kv_heads * k.p.qk_head_dim;
}

WeightRow stage::weight_row(std::int64_t /*rows*/, std::int64_t columns, std::int64_t row) {
  return {row * columns, 1};
}

std::int64_t stage::bias_row(std::int64_t row, std::int64_t /*rows*/, std::int64_t /*width*/) {
  return row;
}

std::int64_t stage::split_head(const Call& c, Role role, std::int64_t /*tokens*/, std::int64_t t, std::int64_t h) {
  return t * (role == Role::query ? c.p.query_heads : c.p.kv_heads) + h;
}

float* stage::projected(float* /*input*/, float* output) {
  return output;
}

void stage_tokens(Call& c) {
  c.query = bring(c, Role::query, *c.step.query, c.p.query_heads, c.p.qk_head_dim);
  for (std::int64_t b = 0; b < c.p.batch; ++b) {
    for (std::int64_t i = 0; i < c.e.queries[b]; ++i) {
      for (std::int64_t h = 0; h < c.p.query_heads; ++h) {
        c.hooks.transform(c, Role::query, b, i, c.query.at(c.query_token(b, i), h));
      }
    }
  }
  if (c.step.key == nullptr) return;
  c.keys.staged = bring(c, Role::key, *c.step.key, c.p.kv_heads, c.p.qk_head_dim);
  c.values.staged = bring(c, Role::value, *c.step.value, c.p.kv_heads, c.p.v_head_dim);
  for (std::int64_t b = 0; b < c.p.batch; ++b) {
    for (std::int64_t n = 0; n < c.e.keys[b]; ++n) {
      for (std::int64_t h = 0; h < c.p.kv_heads; ++h) {
        c.hooks.transform(c, Role::key, b, n, c.keys.staged.at(c.key_token(b, n), h));
      }
    }
  }
  quantise(c, Role::key);
  quantise(c, Role::value);
}

void give(Call& c) {
  const bool layer = c.p.level == ATTEST_LEVEL_LAYER;
  const Tokens output = Tokens::of_queries(c.p, c.e, *c.step.output);
  const std::int64_t width = c.p.query_heads * c.p.v_head_dim;
  std::vector<float> in(static_cast<std::size_t>(std::max(width, c.p.d_model)), poison), out(in);
  for (std::int64_t b = 0; b < c.p.batch; ++b) {
    for (std::int64_t i = 0; i < c.e.queries[b]; ++i) {
      const std::int64_t token = c.query_token(b, i);
      const auto is_written = [&](std::int64_t h) {
        return c.written[static_cast<std::size_t>(token * c.p.query_heads + h)] != 0;
      };
      if (layer) {
        for (std::int64_t n = 0; n < width; ++n) {
          in[static_cast<std::size_t>(n)] = round16(c.p, c.numerics.round_heads, c.output.at(token, 0)[n]);
        }
        float* const y = c.hooks.projected(in.data(), out.data());
        multiply(c.kernel, c.kernel.out, 0, c.p.d_model, c.p.d_model, in.data(), y);
        for (std::int64_t n = 0; n < c.p.d_model; ++n) output.set(y[n], b, i, 0, n);
      } else {
        for (std::int64_t h = 0; h < c.p.query_heads; ++h) {
          for (std::int64_t n = 0; n < c.p.v_head_dim && is_written(h); ++n) {
            output.set(c.output.at(token, h)[n], b, i, h, n);
          }
        }
      }
      if (c.step.lse == nullptr) continue;
      const Tokens lse = Tokens::of_lse(c.p, c.e, *c.step.lse);
      for (std::int64_t h = 0; h < c.p.query_heads; ++h) {
        if (is_written(h)) lse.set(*c.lse.at(token, h), b, i, h, 0);
      }
    }
  }
}

}  // namespace mutants
