// SPDX-License-Identifier: Apache-2.0
#include "bench/reference.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>

#include "golden/tolerance.h"

namespace attest::bench {
namespace {

constexpr double kUnit = 0x1p-24;
constexpr int kRows = 8;  // of a step: enough to meet each head group and both ends of a batch

using Numbers = std::vector<double>;

/// One row's keys and values as attention reads them, and what may be wrong with those that the step itself has made.
struct Attending {
  Numbers query;
  std::vector<Numbers> keys, values;
  Numbers query_error, fresh_key_error, fresh_value_error;  ///< Layer: of the query, and of the last key and value.
};
struct Attended {
  Numbers output, allowed;
};

Attended attend(const Problem& p, const Attending& row) {
  const size_t n = row.keys.size(), width = row.query.size();
  const double scale = 1 / std::sqrt(static_cast<double>(width));
  Numbers dot(n), magnitude(n), blur(n), weight(n);
  for (size_t j = 0; j < n; ++j) {
    for (size_t c = 0; c < width; ++c) {
      const double product = row.query[c] * row.keys[j][c] * scale;
      dot[j] += product;
      magnitude[j] += std::abs(product);
      if (!row.query_error.empty()) {
        blur[j] += scale * row.query_error[c] * std::abs(row.keys[j][c]);
        if (j + 1 == n) blur[j] += scale * std::abs(row.query[c]) * row.fresh_key_error[c];
      }
    }
    // A code times its scale is rounded, and may be kept in the problem's own 16 bits.
    if (p.quantised()) blur[j] = (4 * kUnit + (is_half(p.dtype) ? info(p.dtype).unit_roundoff : 0)) * magnitude[j];
  }
  const double largest = *std::max_element(dot.begin(), dot.end());
  double sum = 0;
  for (size_t j = 0; j < n; ++j) sum += weight[j] = std::exp(dot[j] - largest);
  for (double& one : weight) one /= sum;
  const bool blurred = p.quantised() || !row.query_error.empty();
  const RowTolerance tolerance({.logit = dot,
                                .dot = dot,
                                .magnitude = magnitude,
                                .blur = blurred ? std::span<const double>(blur) : std::span<const double>(),
                                .weight = weight,
                                .lse = largest + std::log(sum),
                                .largest = largest,
                                .head_dim = static_cast<int64_t>(width),
                                .read_error = p.quantised() ? 3 * kUnit : 0,
                                .stores_values = p.quantised() && is_half(p.dtype)},
                               p.dtype);
  Attended result;
  Numbers column(n);
  for (size_t c = 0; c < row.values.front().size(); ++c) {
    double output = 0;
    for (size_t j = 0; j < n; ++j) {
      column[j] = row.values[j][c];
      output += weight[j] * column[j];
    }
    result.output.push_back(output);
    result.allowed.push_back(tolerance.output(column.data(), 1, output));
    if (!row.fresh_value_error.empty()) result.allowed.back() += weight.back() * row.fresh_value_error[c];
  }
  return result;
}

Numbers scaled(Numbers numbers, double factor) {
  for (double& one : numbers) one *= factor;
  return numbers;
}

/// What a cache makes of a new row: codes are rounded, all else is kept.
Numbers stored(const Problem& p, Numbers row, double scale) {
  if (!p.quantised()) return row;
  for (double& one : row) one = std::clamp(std::nearbyint(one / scale), -127.0, 127.0);
  return row;
}

/// y = W x for some rows of W, and what f32 may make of it.
struct Projected {
  Numbers value, error;
};
Projected project(const HostTensor& weight, int64_t first, int64_t count, const Numbers& x, const Numbers& x_error) {
  const auto width = static_cast<int64_t>(x.size());
  Projected result;
  for (int64_t row = first; row < first + count; ++row) {
    const Numbers w = weight.numbers(row * width, width);
    double sum = 0, size = 0, error = 0;
    for (size_t c = 0; c < x.size(); ++c) {
      sum += w[c] * x[c];
      size += std::abs(w[c] * x[c]);
      if (!x_error.empty()) error += std::abs(w[c]) * x_error[c];
    }
    result.value.push_back(sum);
    result.error.push_back(error + kUnit * ((sum_growth(width) + 4) * size + std::abs(sum)));
  }
  return result;
}

/// RoPE, halves, without stretching (clauses R1, R2). A backend may round the angle's cosine and the products.
void turn(const Problem& p, Projected& x, int64_t position) {
  const auto pairs = static_cast<size_t>(p.rope.dim / 2);
  for (size_t i = 0; i < pairs; ++i) {
    const double angle = static_cast<double>(position) *
                         std::pow(p.rope.base, -2.0 * static_cast<double>(i) / static_cast<double>(p.rope.dim));
    const double cos = std::cos(angle), sin = std::sin(angle), a = x.value[i], b = x.value[i + pairs];
    x.value[i] = a * cos - b * sin;
    x.value[i + pairs] = a * sin + b * cos;
    // An angle in f32 is off by as much as it is long.
    const double error = x.error[i] + x.error[i + pairs] + kUnit * (8 + 2 * angle) * (std::abs(a) + std::abs(b));
    x.error[i] = x.error[i + pairs] = error;
  }
}

bool all_finite(const HostTensor& tensor, int64_t begin, int64_t count) {
  if (tensor.dtype() == DType::f32) {
    const float* values = tensor.as<float>() + begin;
    return std::all_of(values, values + count, [](float value) { return std::isfinite(value); });
  }
  const auto exponent = static_cast<uint16_t>(tensor.dtype() == DType::f16 ? 0x7C00 : 0x7F80);
  const uint16_t* bits = tensor.as<uint16_t>() + begin;
  return std::none_of(bits, bits + count, [&](uint16_t one) { return (one & exponent) == exponent; });
}

}  // namespace

Reference::Reference(const Workload& workload) {
  const Shape& shape = workload.shape();
  const auto batch = static_cast<int64_t>(shape.before.size());
  if (shape.problem.level == Level::layer) {
    add_layer(workload, 0);
    if (batch > 1) add_layer(workload, batch - 1);
    return;
  }
  std::mt19937 random(17);
  for (int row = 0; row < kRows; ++row) {
    // The first and the last row of all, then any.
    int64_t sequence = row == 0 ? 0 : row == 1 ? batch - 1 : random() % batch;
    const int64_t queries = shape.queries[static_cast<size_t>(sequence)], heads = shape.problem.query_heads;
    const int64_t index = row == 0 ? 0 : row == 1 ? queries - 1 : random() % queries;
    add_core(workload, sequence, index, row == 0 ? 0 : row == 1 ? heads - 1 : random() % heads);
  }
}

void Reference::add_core(const Workload& workload, int64_t sequence, int64_t index, int64_t head) {
  const Shape& shape = workload.shape();
  const Problem& p = shape.problem;
  const int64_t width = p.qk_head_dim, kv_head = head / p.group(), before = shape.before[static_cast<size_t>(sequence)];
  const double scale = workload.kv_scale();
  const auto fresh = [&](const HostTensor& from, int64_t t) {
    const int64_t token = workload.token_number(sequence, t - before);
    return stored(p, from.numbers((token * p.kv_heads + kv_head) * width, width), scale);
  };
  Attending row;
  const int64_t query_at = (workload.token_number(sequence, index) * p.query_heads + head) * width;
  row.query = workload.query().numbers(query_at, width);
  for (int64_t t = 0; t <= before + index; ++t) {
    const int64_t at = workload.cache_row(sequence, t, kv_head);
    const bool is_new = t >= before;
    row.keys.push_back(scaled(is_new ? fresh(workload.key(), t) : workload.cache_key(0).numbers(at, width), scale));
    row.values.push_back(
        scaled(is_new ? fresh(workload.value(), t) : workload.cache_value(0).numbers(at, width), scale));
  }
  Attended attended = attend(p, row);
  outputs_.push_back({fmt::format("output[sequence {}, token {}, head {}]", sequence, index, head), query_at,
                      std::move(attended.output), std::move(attended.allowed)});

  // A code may be rounded to either side where it lies between two; whatever is no code is copied.
  const Numbers slack(static_cast<size_t>(width), p.quantised() ? 1 : 0);
  const int64_t at = workload.cache_row(sequence, before + index, kv_head);
  const std::string what = fmt::format("[sequence {}, token {}, head {}]", sequence, before + index, kv_head);
  keys_.push_back({"cache.key" + what, at, fresh(workload.key(), before + index), slack});
  values_.push_back({"cache.value" + what, at, fresh(workload.value(), before + index), slack});
}

void Reference::add_layer(const Workload& workload, int64_t sequence) {
  const Shape& shape = workload.shape();
  const Problem& p = shape.problem;
  const int64_t width = p.qk_head_dim, before = shape.before[static_cast<size_t>(sequence)];
  const int64_t at = workload.token_number(sequence, 0) * p.d_model;
  const Numbers x = workload.query().numbers(at, p.d_model), xk = workload.key().numbers(at, p.d_model),
                xv = workload.value().numbers(at, p.d_model);
  Numbers heads, heads_error;
  for (int64_t kv_head = 0; kv_head < p.kv_heads; ++kv_head) {
    Attending row;
    for (int64_t t = 0; t < before; ++t) {
      const int64_t slot = workload.cache_row(sequence, t, kv_head);
      row.keys.push_back(workload.cache_key(0).numbers(slot, width));
      row.values.push_back(workload.cache_value(0).numbers(slot, width));
    }
    Projected key = project(*workload.weights()[1], kv_head * width, width, xk, {});
    turn(p, key, before);
    const Projected value = project(*workload.weights()[2], kv_head * width, width, xv, {});
    row.keys.push_back(key.value);
    row.values.push_back(value.value);
    row.fresh_key_error = key.error;
    row.fresh_value_error = value.error;
    for (int64_t head = kv_head * p.group(); head < (kv_head + 1) * p.group(); ++head) {
      Projected query = project(*workload.weights()[0], head * width, width, x, {});
      turn(p, query, before);
      row.query = query.value;
      row.query_error = query.error;
      const Attended attended = attend(p, row);
      heads.insert(heads.end(), attended.output.begin(), attended.output.end());
      heads_error.insert(heads_error.end(), attended.allowed.begin(), attended.allowed.end());
    }
    const std::string what = fmt::format("[sequence {}, token {}, head {}]", sequence, before, kv_head);
    const int64_t slot = workload.cache_row(sequence, before, kv_head);
    keys_.push_back({"cache.key" + what, slot, key.value, key.error});
    values_.push_back({"cache.value" + what, slot, value.value, value.error});
  }
  Projected output = project(*workload.weights()[3], 0, p.d_model, heads, heads_error);
  outputs_.push_back(
      {fmt::format("output[sequence {}, token 0]", sequence), at, std::move(output.value), std::move(output.error)});
}

std::string Reference::check(const Workload& workload, size_t copy) const {
  const Shape& shape = workload.shape();
  const Problem& p = shape.problem;
  const int32_t* lengths = workload.lengths(copy).as<int32_t>();
  for (size_t b = 0; b < shape.before.size(); ++b) {
    const int64_t wanted = shape.before[b] + shape.queries[b];
    if (lengths[b] != wanted) return fmt::format("cache.lengths[{}] is {}, wanted {}", b, lengths[b], wanted);
  }
  const auto differs = [](const HostTensor& tensor, const std::vector<Wanted>& list) -> std::string {
    for (const Wanted& one : list) {
      const Numbers got = tensor.numbers(one.begin, static_cast<int64_t>(one.value.size()));
      for (size_t c = 0; c < got.size(); ++c) {
        if (!(std::abs(got[c] - one.value[c]) <= one.allowed[c])) {
          return fmt::format("{} channel {}: got {:.9g}, wanted {:.9g}, allowed {:.2g}", one.what, c, got[c],
                             one.value[c], one.allowed[c]);
        }
      }
    }
    return {};
  };
  const int64_t row = p.level == Level::layer ? p.d_model : p.query_heads * p.v_head_dim;
  for (size_t b = 0; b < shape.queries.size(); ++b) {
    const auto sequence = static_cast<int64_t>(b);
    const int64_t begin = workload.token_number(sequence, 0) * row;
    if (!all_finite(workload.output(), begin, shape.queries[b] * row)) {
      return fmt::format("output of sequence {} holds what is no number, or was not written", sequence);
    }
  }
  if (std::string wrong = differs(workload.output(), outputs_); !wrong.empty()) return wrong;
  if (std::string wrong = differs(workload.cache_key(copy), keys_); !wrong.empty()) return wrong;
  return differs(workload.cache_value(copy), values_);
}

}  // namespace attest::bench
