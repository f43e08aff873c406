// SPDX-License-Identifier: Apache-2.0
// The smallest complete backend: plain loops over fp32, at the core and the layer level, with and without a cache.
// Copy it to begin your own. It is built to be read, and it is certified like any other.
//
// It sums in float, as a simple kernel does: the allowed errors leave room for that, so nothing here needs a double.
#include <algorithm>
#include <attest/backend.hpp>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

namespace {

using namespace attest::abi;
using Heads = View<const float, 4>;  // [B, tokens, heads, channels], any strides
using HeadsOut = View<float, 4>;
using Wide = View<const float, 3>;  // [B, tokens, d_model], any strides

// Heads in memory of our own.
struct Scratch {
  Scratch(int64_t batch, int64_t tokens, int64_t heads, int64_t dim)
      : memory(static_cast<size_t>(batch * tokens * heads * dim)), view(memory.data(), {batch, tokens, heads, dim}) {}
  std::vector<float> memory;
  HeadsOut view;
};

// y = x W^T + bias for the first counts[b] tokens of each sequence; padding may be NaN and is neither read nor written.
// Channel c of head h is row h * channels + c of the weight.
void project(const Wide& x, const Counts& counts, const DLTensor& weight, const DLTensor* bias, const HeadsOut& y) {
  const View<const float, 2> w(weight);
  const auto offset = bias != nullptr ? View<const float, 1>(*bias) : View<const float, 1>();
  for (int64_t b = 0; b < counts.batch(); ++b) {
    for (int64_t t = 0; t < counts[b]; ++t) {
      for (int64_t row = 0; row < w.shape(0); ++row) {
        float sum = 0;
        for (int64_t i = 0; i < w.shape(1); ++i) sum += x(b, t, i) * w(row, i);
        y(b, t, row / y.shape(3), row % y.shape(3)) = bias != nullptr ? sum + offset(row) : sum;
      }
    }
  }
}

class Template {
 public:
  static constexpr const char* name = "template";
  static constexpr const char* version = "1.0";
  static std::string description() { return "plain loops, fp32, softmax in two passes, one thread"; }

  explicit Template(Options&) {}  // It takes no option, so any that is given is refused.

  class Plan {
   public:
    Plan(Template&, const attest_problem& problem) : p(problem) {
      check_problem(p);
      require_only(p, {.f32 = true,
                       .layer = true,
                       .causal_bottom_right = true,
                       .causal_top_left = true,
                       .window = true,
                       .softcap = true,
                       .alibi = true,
                       .sinks = true,
                       .contiguous_cache = true,
                       .lse = true});
      softcap = static_cast<float>(p.softcap);
      slopes = alibi_slopes(p);
      scale = static_cast<float>(p.scale != 0 ? p.scale : 1 / std::sqrt(static_cast<double>(p.qk_head_dim)));
    }

    void run(const attest_step& step) {
      const Extents extents = check_step(p, step);  // Throws before anything is written.
      if (p.level == ATTEST_LEVEL_CORE) {
        const Heads key = step.key != nullptr ? Heads(*step.key) : Heads();
        const Heads value = step.key != nullptr ? Heads(*step.value) : Heads();
        append_and_attend(step, extents, Heads(*step.query), key, value, HeadsOut(*step.output));
        return;
      }
      const int64_t queries = step.query->shape[1], keys = step.key != nullptr ? step.key->shape[1] : 0;
      const Scratch query(p.batch, queries, p.query_heads, p.qk_head_dim);
      const Scratch key(p.batch, keys, p.kv_heads, p.qk_head_dim), value(p.batch, keys, p.kv_heads, p.v_head_dim);
      project(Wide(*step.query), extents.queries, *p.q_weight, p.q_bias, query.view);
      if (step.key != nullptr) {
        project(Wide(*step.key), extents.keys, *p.k_weight, p.k_bias, key.view);
        project(Wide(*step.value), extents.keys, *p.v_weight, p.v_bias, value.view);
      }
      const Scratch heads(p.batch, queries, p.query_heads, p.v_head_dim);
      append_and_attend(step, extents, query.view, key.view, value.view, heads.view);
      const Wide concatenated(heads.view.data(), {p.batch, queries, p.query_heads * p.v_head_dim});
      const View<float, 3> out(*step.output);
      const HeadsOut one_head(out.data(), {p.batch, queries, 1, p.d_model},
                              {out.stride(0), out.stride(1), 0, out.stride(2)});
      project(concatenated, extents.queries, *p.out_weight, p.out_bias, one_head);
    }

   private:
    // With a cache, the new keys and values go into it and it is attended; without one, they are attended themselves.
    void append_and_attend(const attest_step& step, const Extents& extents, const Heads& query, const Heads& key,
                           const Heads& value, const HeadsOut& output) const {
      if (step.cache == nullptr) return attend(step, extents, query, key, value, output);
      const HeadsOut cached_key(*step.cache->key), cached_value(*step.cache->value);
      const View<int32_t, 1> lengths(*step.cache->lengths);
      for (int64_t b = 0; b < p.batch; ++b) {
        for (int64_t t = 0; t < extents.keys[b]; ++t) {
          const int64_t slot = extents.past[b] + t;
          for (int64_t h = 0; h < p.kv_heads; ++h) {
            for (int64_t c = 0; c < p.qk_head_dim; ++c) cached_key(b, slot, h, c) = key(b, t, h, c);
            for (int64_t c = 0; c < p.v_head_dim; ++c) cached_value(b, slot, h, c) = value(b, t, h, c);
          }
        }
        lengths(b) = static_cast<int32_t>(extents.total(b));
      }
      attend(step, extents, query, cached_key, cached_value, output);
    }

    void attend(const attest_step& step, const Extents& extents, const Heads& query, const Heads& key,
                const Heads& value, const HeadsOut& output) const {
      for (int64_t b = 0; b < p.batch; ++b) {
        const int64_t queries = extents.queries[b], total = extents.total(b);
        for (int64_t i = 0; i < queries; ++i) {
          // Keys that this query does not see are not read: behind the last one they may be NaN.
          const KeyRange keys = visible_keys(p, i, queries, total);
          for (int64_t h = 0; h < p.query_heads; ++h) {
            const float lse = attend_row(query, key, value, output, b, i, h, total - queries + i, keys);
            if (step.lse != nullptr) View<float, 3> (*step.lse)(b, h, i) = lse;
          }
        }
      }
    }

    // One output row; answers its log-sum-exp.
    float attend_row(const Heads& query, const Heads& key, const Heads& value, const HeadsOut& output, int64_t b,
                     int64_t i, int64_t h, int64_t position, const KeyRange& keys) const {
      const int64_t kv_head = h / (p.query_heads / p.kv_heads);
      const float sink =
          p.sinks != nullptr ? View<const float, 1>(*p.sinks)(h) : -std::numeric_limits<float>::infinity();
      std::vector<float> weights;
      float largest = sink;
      for (int64_t j = keys.begin; j < keys.end; ++j) {
        float dot = 0;
        for (int64_t c = 0; c < p.qk_head_dim; ++c) dot += query(b, i, h, c) * key(b, j, kv_head, c);
        float logit = scale * dot;
        if (softcap > 0) logit = softcap * std::tanh(logit / softcap);
        if (!slopes.empty()) logit -= slopes[static_cast<size_t>(h)] * static_cast<float>(std::abs(position - j));
        weights.push_back(logit);
        largest = std::max(largest, logit);
      }
      float sum = p.sinks != nullptr ? std::exp(sink - largest) : 0;  // The sink takes its share and gives no value.
      for (float& weight : weights)
        sum += weight = std::exp(weight - largest);  // exp of the logit itself may overflow.
      for (int64_t c = 0; c < p.v_head_dim; ++c) {
        float blend = 0;
        for (int64_t j = keys.begin; j < keys.end; ++j) {
          blend += weights[static_cast<size_t>(j - keys.begin)] * value(b, j, kv_head, c);
        }
        output(b, i, h, c) = weights.empty() ? 0 : blend / sum;
      }
      return largest + std::log(sum);  // Nothing visible: -inf + log(0) is -inf.
    }

    attest_problem p;
    float scale, softcap;
    std::vector<float> slopes;
  };
};

}  // namespace

ATTEST_REGISTER_BACKEND(Template)
