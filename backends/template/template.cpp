// SPDX-License-Identifier: Apache-2.0
// The smallest real backend: plain loops for everything that the interface knows, in every dtype. Copy it to begin your
// own. It is built to be read, top to bottom, and it is certified like any other.
//
// Whatever the tensors' dtypes and layouts, it computes on compact floats of its own: tokens in -> project -> QK-norm
// -> RoPE -> quantise -> attend to them and to what the cache holds -> write the output, then the cache and its
// lengths. It sums in float, as a simple kernel does; the allowed errors leave room for that. RoPE's
// angles are doubles, which costs nothing here.
#include <algorithm>
#include <attest/backend.hpp>
#include <cmath>
#include <limits>
#include <optional>
#include <string>
#include <vector>

namespace {

using namespace attest::abi;

constexpr float minus_infinity = -std::numeric_limits<float>::infinity();

// Some numbers for each head of each token, in the order of the tokens' numbers in the step, padded or packed.
struct Heads {
  Heads(int64_t tokens_, int64_t heads_, int64_t width_)
      : tokens(tokens_), heads(heads_), width(width_), memory(static_cast<size_t>(tokens * heads * width)) {}
  float* at(int64_t token, int64_t head) { return memory.data() + (token * heads + head) * width; }
  const float* at(int64_t token, int64_t head) const { return memory.data() + (token * heads + head) * width; }
  int64_t tokens, heads, width;
  std::vector<float> memory;
};

// Reads the tokens of all sequences, of any dtype. What lies behind them may be NaN and stays 0 here.
Heads take(const Tokens& from, int64_t heads, int64_t width) {
  Heads to(from.numbers(), heads, width);
  for (int64_t b = 0; b < from.batch(); ++b) {
    for (int64_t t = 0; t < from.count(b); ++t) {
      for (int64_t h = 0; h < heads; ++h) {
        for (int64_t c = 0; c < width; ++c) to.at(from.number(b, t), h)[c] = from(b, t, h, c);
      }
    }
  }
  return to;
}

// The other way.
void give(const Heads& from, const Tokens& to) {
  for (int64_t b = 0; b < to.batch(); ++b) {
    for (int64_t t = 0; t < to.count(b); ++t) {
      for (int64_t h = 0; h < from.heads; ++h) {
        for (int64_t c = 0; c < from.width; ++c) to.set(from.at(to.number(b, t), h)[c], b, t, h, c);
      }
    }
  }
}

std::vector<float> floats(const DLTensor& tensor) {
  const NumberView<1> view(tensor);
  std::vector<float> values;
  for (int64_t i = 0; i < view.shape(0); ++i) values.push_back(view(i));
  return values;
}

// y = W x + bias for every token; channel c of head h is row h * width + c of W (clauses L1 and L2).
class Linear {
 public:
  Linear(const DLTensor& weight, const DLTensor* bias) : rows_(weight.shape[0]), columns_(weight.shape[1]) {
    const NumberView<2> view(weight);
    for (int64_t row = 0; row < rows_; ++row) {
      for (int64_t i = 0; i < columns_; ++i) weight_.push_back(view(row, i));
    }
    bias_ = bias != nullptr ? floats(*bias) : std::vector<float>(static_cast<size_t>(rows_));
  }
  [[nodiscard]] Heads apply(const Heads& x, int64_t heads, int64_t width) const {
    Heads y(x.tokens, heads, width);
    for (int64_t token = 0; token < x.tokens; ++token) {
      for (int64_t row = 0; row < rows_; ++row) {
        const float *const in = x.at(token, 0), *const w = weight_.data() + row * columns_;
        float sum = 0;
        for (int64_t i = 0; i < columns_; ++i) sum += in[i] * w[i];
        y.at(token, 0)[row] = sum + bias_[static_cast<size_t>(row)];
      }
    }
    return y;
  }

 private:
  int64_t rows_, columns_;
  std::vector<float> weight_, bias_;
};

// w[d] * x[d] / sqrt(mean(x^2) + epsilon) for every head (clause N1).
void normalise(Heads& x, const std::vector<float>& weight, double epsilon) {
  for (auto head = x.memory.begin(); head != x.memory.end(); head += x.width) {
    float squares = 0;
    for (int64_t c = 0; c < x.width; ++c) squares += head[c] * head[c];
    const float size = std::sqrt(squares / static_cast<float>(x.width) + static_cast<float>(epsilon));
    for (int64_t c = 0; c < x.width; ++c) head[c] *= weight[static_cast<size_t>(c)] / size;
  }
}

// Turns the pairs of one token's heads by the token's position (clauses R1 and R2).
void turn(Heads& x, int64_t token, int64_t position, const RopeFrequencies& rope, int32_t style) {
  const auto pairs = static_cast<int64_t>(rope.frequency.size());
  for (int64_t pair = 0; pair < pairs; ++pair) {
    const double angle = static_cast<double>(position) * rope.frequency[static_cast<size_t>(pair)];
    const auto cos = static_cast<float>(std::cos(angle) * rope.magnitude);
    const auto sin = static_cast<float>(std::sin(angle) * rope.magnitude);
    const int64_t first = style == ATTEST_ROPE_HALF ? pair : 2 * pair;
    const int64_t second = style == ATTEST_ROPE_HALF ? pair + pairs : 2 * pair + 1;
    for (int64_t h = 0; h < x.heads; ++h) {
      float* const head = x.at(token, h);
      const float a = head[first], b = head[second];
      head[first] = a * cos - b * sin;
      head[second] = a * sin + b * cos;
    }
  }
}

// The keys, or the values, of a step: the new ones as the cache will store them, and those that it holds. Each is a
// code times a scale; where nothing is quantised, the code is the value itself and the scale is 1.
class Stored {
 public:
  Stored(const attest_problem& p, const Extents& e, Heads values, const attest_cache* cache,
         DLTensor* attest_cache::*tensor, DLTensor* attest_cache::*scale_tensor)
      : p_(p), e_(e), codes_(std::move(values)), new_scales_(codes_.memory.size() / static_cast<size_t>(codes_.width)) {
    if (cache != nullptr) {
      slots_.emplace(p, *cache);
      cache_.emplace(*(cache->*tensor), p.cache_fp8);
      if (p.kv_scale != ATTEST_KV_SCALE_NONE) scales_ = scale_view(p, *(cache->*scale_tensor));
    }
    // Without a cache they are rounded as in one of the problem's dtype: the results are the same with one and without.
    const Storage storage = cache_ ? cache_->storage() : storage_of(p.dtype);
    float* code = codes_.memory.data();
    for (size_t i = 0; i < new_scales_.size(); ++i, code += codes_.width) {
      float scale = 1;
      if (p.kv_scale == ATTEST_KV_SCALE_PER_TOKEN) {
        float largest = 0;
        for (int64_t c = 0; c < codes_.width; ++c) largest = std::max(largest, std::abs(code[c]));
        scale = largest / largest_code(storage);
        if (scale == 0) scale = 1;  // All codes are 0 then.
      } else if (p.kv_scale != ATTEST_KV_SCALE_NONE) {
        scale = scales_(0, 0, static_cast<int64_t>(i) % codes_.heads);
      }
      for (int64_t c = 0; c < codes_.width; ++c) code[c] = rounded(storage, code[c] / scale);
      new_scales_[i] = scale;
    }
  }

  // One KV head of a range of a sequence's tokens, be they in the cache or new.
  [[nodiscard]] std::vector<float> read(int64_t b, KeyRange range, int64_t head) const {
    std::vector<float> values;
    for (int64_t j = range.begin; j < range.end; ++j) {
      if (j < e_.past[b]) {
        const auto [outer, inner] = (*slots_)(b, j);
        const float scale = p_.kv_scale != ATTEST_KV_SCALE_NONE ? scales_(outer, inner, head) : 1;
        for (int64_t c = 0; c < codes_.width; ++c) values.push_back((*cache_)(outer, inner, head, c) * scale);
      } else {
        const int64_t token = e_.key_start[b] + j - e_.past[b];
        const float scale = new_scale(token, head);
        for (int64_t c = 0; c < codes_.width; ++c) values.push_back(codes_.at(token, head)[c] * scale);
      }
    }
    return values;
  }

  // Appends new token n of a sequence to the cache.
  void write(int64_t b, int64_t n) const {
    const auto [outer, inner] = (*slots_)(b, e_.past[b] + n);
    const int64_t token = e_.key_start[b] + n;
    for (int64_t h = 0; h < codes_.heads; ++h) {
      for (int64_t c = 0; c < codes_.width; ++c) cache_->set(codes_.at(token, h)[c], outer, inner, h, c);
      if (p_.kv_scale == ATTEST_KV_SCALE_PER_TOKEN) scales_(outer, inner, h) = new_scale(token, h);
    }
  }

 private:
  [[nodiscard]] float new_scale(int64_t token, int64_t head) const {
    return new_scales_[static_cast<size_t>(token * codes_.heads + head)];
  }

  const attest_problem& p_;
  const Extents& e_;
  Heads codes_;
  std::vector<float> new_scales_;  // of each head of each token
  std::optional<Slots> slots_;
  std::optional<NumberView<4>> cache_;
  View<float, 3> scales_;
};

class Template {
 public:
  static constexpr const char* name = "template";
  static constexpr const char* version = "1.1";
  // One thread and one order of sums for each row, whatever else is in the step.
  static constexpr const char* declarations = R"({"determinism": ["d0", "d1", "d2", "d3"]})";
  static std::string description() { return "plain loops in float, softmax in two passes, one thread"; }

  explicit Template(Options&) {}  // It takes no option, so any that is given is refused.

  class Plan {
   public:
    Plan(Template&, const attest_problem& problem) : p_(problem) {
      check_problem(p_);
      require_only(p_, {.f32 = true,
                        .f16 = true,
                        .bf16 = true,
                        .layer = true,
                        .causal_bottom_right = true,
                        .causal_top_left = true,
                        .mask_boolean = true,
                        .mask_additive = true,
                        .window = true,
                        .softcap = true,
                        .alibi = true,
                        .sinks = true,
                        .rope = true,
                        .rope_scaling = true,
                        .qk_norm = true,
                        .packed = true,
                        .contiguous_cache = true,
                        .paged_cache = true,
                        .ring_cache = true,
                        .int8_cache = true,
                        .fp8_cache = true,
                        .lse = true});
      if (p_.level == ATTEST_LEVEL_LAYER) {
        q_projection_.emplace(*p_.q_weight, p_.q_bias);
        k_projection_.emplace(*p_.k_weight, p_.k_bias);
        v_projection_.emplace(*p_.v_weight, p_.v_bias);
        out_projection_.emplace(*p_.out_weight, p_.out_bias);
      }
      if (p_.q_norm_weight != nullptr) q_norm_ = floats(*p_.q_norm_weight);
      if (p_.k_norm_weight != nullptr) k_norm_ = floats(*p_.k_norm_weight);
      if (p_.sinks != nullptr) sinks_ = floats(*p_.sinks);
      slopes_ = alibi_slopes(p_);
      rope_ = rope_frequencies(p_.rope);
      scale_ = static_cast<float>(p_.scale != 0 ? p_.scale : 1 / std::sqrt(static_cast<double>(p_.qk_head_dim)));
      softcap_ = static_cast<float>(p_.softcap);
    }

    void run(const attest_step& step) const {
      const Extents e = check_step(p_, step);  // Throws before anything is written.
      const Positions positions(p_, e, step);

      Heads query = bring(Tokens::of_queries(p_, e, *step.query), q_projection_, p_.query_heads, p_.qk_head_dim);
      if (!q_norm_.empty()) normalise(query, q_norm_, p_.norm_epsilon);
      for (int64_t b = 0; b < p_.batch; ++b) {
        for (int64_t i = 0; i < e.queries[b]; ++i) {
          turn(query, e.query_start[b] + i, positions.query(b, i), rope_, p_.rope.style);
        }
      }
      Heads key(0, p_.kv_heads, p_.qk_head_dim), value(0, p_.kv_heads, p_.v_head_dim);
      if (step.key != nullptr) {
        key = bring(Tokens::of_keys(p_, e, *step.key), k_projection_, p_.kv_heads, p_.qk_head_dim);
        value = bring(Tokens::of_keys(p_, e, *step.value), v_projection_, p_.kv_heads, p_.v_head_dim);
      }
      if (!k_norm_.empty()) normalise(key, k_norm_, p_.norm_epsilon);
      for (int64_t b = 0; b < p_.batch; ++b) {
        for (int64_t n = 0; n < e.keys[b]; ++n) {
          turn(key, e.key_start[b] + n, positions.key(b, n), rope_, p_.rope.style);
        }
      }
      const Stored keys(p_, e, std::move(key), step.cache, &attest_cache::key, &attest_cache::key_scale);
      const Stored values(p_, e, std::move(value), step.cache, &attest_cache::value, &attest_cache::value_scale);
      Heads output(e.query_tokens, p_.query_heads, p_.v_head_dim), lse(e.query_tokens, p_.query_heads, 1);
      attend(e, query, keys, values, Mask(p_, step), output, lse);

      if (out_projection_) output = out_projection_->apply(output, 1, p_.d_model);
      give(output, Tokens::of_queries(p_, e, *step.output));
      if (step.lse != nullptr) give(lse, Tokens::of_lse(p_, e, *step.lse));
      // Last, because a ring's new tokens overwrite old ones that the queries see.
      for (int64_t b = 0; step.cache != nullptr && b < p_.batch; ++b) {
        for (int64_t n = 0; n < e.keys[b]; ++n) keys.write(b, n), values.write(b, n);
        View<int32_t, 1> (*step.cache->lengths)(b) = static_cast<int32_t>(e.total(b));
      }
    }

   private:
    // The query, key or value heads of a step's tokens.
    Heads bring(const Tokens& given, const std::optional<Linear>& projection, int64_t heads, int64_t width) const {
      return projection ? projection->apply(take(given, 1, p_.d_model), heads, width) : take(given, heads, width);
    }

    void attend(const Extents& e, const Heads& query, const Stored& keys, const Stored& values, const Mask& mask,
                Heads& output, Heads& lse) const {
      const int64_t group = p_.query_heads / p_.kv_heads;
      std::vector<float> key, value, weights;
      for (int64_t b = 0; b < p_.batch; ++b) {
        const int64_t queries = e.queries[b], total = e.total(b);
        if (queries == 0) continue;
        // The keys that any query of the sequence sees. No other is read: beyond the length may be NaN, and a ring has
        // lost the earliest.
        const KeyRange seen{visible_keys(p_, 0, queries, total).begin,
                            visible_keys(p_, queries - 1, queries, total).end};
        for (int64_t h = 0; h < p_.query_heads; ++h) {
          if (h % group == 0) key = keys.read(b, seen, h / group), value = values.read(b, seen, h / group);
          for (int64_t i = 0; i < queries; ++i) {
            const int64_t token = e.query_start[b] + i;
            const KeyRange range = visible_keys(p_, i, queries, total);
            weights.clear();
            for (int64_t j = range.begin; j < range.end; ++j) {
              const float* const k = key.data() + (j - seen.begin) * p_.qk_head_dim;
              const float bias = mask(b, h, i, j);  // Of a masked key not even the logit counts: it may overflow.
              weights.push_back(
                  bias == minus_infinity ? bias : logit(query.at(token, h), k, h, total - queries + i - j) + bias);
            }
            const float* const first_value = value.data() + (range.begin - seen.begin) * p_.v_head_dim;
            *lse.at(token, h) = blend(weights, h, first_value, output.at(token, h));
          }
        }
      }
    }

    // Scale, then cap, then position bias (clauses A2, A5 and B1); the mask comes after them.
    float logit(const float* query, const float* key, int64_t head, int64_t distance) const {
      float dot = 0;
      for (int64_t c = 0; c < p_.qk_head_dim; ++c) dot += query[c] * key[c];
      float logit = scale_ * dot;
      if (softcap_ > 0) logit = softcap_ * std::tanh(logit / softcap_);
      if (!slopes_.empty()) logit -= slopes_[static_cast<size_t>(head)] * static_cast<float>(std::abs(distance));
      return logit;
    }

    // The softmax of one row and the values that it weighs; answers the row's log-sum-exp. The logits become weights.
    float blend(std::vector<float>& weights, int64_t head, const float* value, float* output) const {
      const float sink = sinks_.empty() ? minus_infinity : sinks_[static_cast<size_t>(head)];
      float largest = sink;
      for (const float logit : weights) largest = std::max(largest, logit);
      if (largest == minus_infinity) return minus_infinity;  // Nothing is visible; the output is 0 already.
      float sum = std::exp(sink - largest);                  // The sink takes its share and gives no value.
      for (float& weight : weights) {
        weight = std::exp(weight - largest);  // exp of the logit itself may overflow.
        sum += weight;
        for (int64_t c = 0; c < p_.v_head_dim; ++c) output[c] += weight * value[c];
        value += p_.v_head_dim;
      }
      for (int64_t c = 0; c < p_.v_head_dim; ++c) output[c] /= sum;
      return largest + std::log(sum);
    }

    attest_problem p_;
    std::optional<Linear> q_projection_, k_projection_, v_projection_, out_projection_;
    std::vector<float> q_norm_, k_norm_, sinks_, slopes_;
    RopeFrequencies rope_;
    float scale_, softcap_;
  };
};

}  // namespace

ATTEST_REGISTER_BACKEND(Template)
