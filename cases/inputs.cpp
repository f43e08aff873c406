// SPDX-License-Identifier: Apache-2.0
#include "cases/inputs.h"

#include <cmath>
#include <numeric>
#include <string_view>

#include "cases/mask.h"
#include "cases/philox.h"
#include "cases/quantise.h"
#include "cases/recipes.h"
#include "cases/sha256.h"
#include "cases/storage.h"

namespace attest {
namespace {

Dense<float> zeros(std::vector<int64_t> shape) {
  const int64_t count = std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
  return {std::move(shape), std::vector<float>(static_cast<size_t>(count))};
}

/// Row r of a signed permutation has its one entry in column (r * stride + 5) mod columns.
struct SignedPermutation {
  int64_t columns, stride;
  uint64_t seed;
  Role role;

  SignedPermutation(int64_t columns_, uint64_t seed_, Role role_)
      : columns(columns_), stride(columns_ / 3 + 1), seed(seed_), role(role_) {
    while (std::gcd(stride, columns) != 1) ++stride;
  }
  [[nodiscard]] int64_t column(int64_t row) const { return (row * stride + 5) % columns; }
  [[nodiscard]] float sign(int64_t row) const {
    return (PhiloxStream(seed, static_cast<uint32_t>(role)).words(static_cast<uint64_t>(row))[0] & 1) != 0 ? -1.0F
                                                                                                           : 1.0F;
  }
};

/// floor(2^20 / sqrt(n)), by integers only.
int64_t scaled_inverse_sqrt(int64_t n) {
  int64_t root = 0;
  for (int64_t bit = int64_t{1} << 20; bit > 0; bit >>= 1) {
    if ((root + bit) * (root + bit) * n <= int64_t{1} << 40) root += bit;
  }
  return root;
}

/// Uniform on +-1/sqrt(d_model), multiples of 2^-24 (as torch.nn.Linear initialises weights and biases).
Dense<float> uniform(std::vector<int64_t> shape, const Case& c, Role role) {
  Dense<float> tensor = zeros(std::move(shape));
  const PhiloxStream stream(static_cast<uint64_t>(c.inputs.seed), static_cast<uint32_t>(role));
  const int64_t bound = scaled_inverse_sqrt(c.problem.d_model);
  for (size_t i = 0; i < tensor.data.size(); ++i) {
    const int64_t centred = 2 * static_cast<int64_t>(stream.words(i)[0] >> 8) + 1 - (int64_t{1} << 24);
    tensor.data[i] = static_cast<float>((centred * bound) >> 20) * 0x1p-24F;
  }
  return tensor;
}

Dense<float> permutation(int64_t rows, int64_t columns, const SignedPermutation& p) {
  Dense<float> tensor = zeros({rows, columns});
  for (int64_t r = 0; r < rows; ++r) {
    if (p.column(r) < columns) tensor.data[static_cast<size_t>(r * columns + p.column(r))] = p.sign(r);
  }
  return tensor;
}

struct Widths {
  int64_t q, k, v, out;
  explicit Widths(const Problem& p)
      : q(p.query_heads * p.qk_head_dim),
        k(p.kv_heads * p.qk_head_dim),
        v(p.kv_heads * p.v_head_dim),
        out(p.query_heads * p.v_head_dim) {}
};

Weights generate_weights(const Case& c) {
  const Problem& p = c.problem;
  const Widths width(p);
  Weights w;
  if (c.inputs.weights == WeightKind::uniform) {
    w.q = uniform({width.q, p.d_model}, c, Role::q_weight);
    w.k = uniform({width.k, p.d_model}, c, Role::k_weight);
    w.v = uniform({width.v, p.d_model}, c, Role::v_weight);
    w.out = uniform({p.d_model, width.out}, c, Role::out_weight);
  } else {
    const auto seed = static_cast<uint64_t>(c.inputs.seed);
    w.q = permutation(width.q, p.d_model, {p.d_model, seed, Role::q_weight});
    w.k = permutation(width.k, p.d_model, {p.d_model, seed, Role::k_weight});
    w.v = permutation(width.v, p.d_model, {p.d_model, seed, Role::v_weight});
    w.out = permutation(p.d_model, width.out, {p.d_model, seed, Role::out_weight});
  }
  if (p.bias.q) w.q_bias = uniform({width.q}, c, Role::q_bias);
  if (p.bias.k) w.k_bias = uniform({width.k}, c, Role::k_bias);
  if (p.bias.v) w.v_bias = uniform({width.v}, c, Role::v_bias);
  if (p.bias.out) w.out_bias = uniform({p.d_model}, c, Role::out_bias);
  if (c.inputs.bias_outliers) {
    // Real checkpoints have such K biases; they are data, not a fault.
    for (size_t i = 0; i < w.k_bias.data.size(); ++i) {
      const auto channel = static_cast<int64_t>(i) % p.qk_head_dim;
      if (channel == 0) w.k_bias.data[i] -= 34.0F;
      if (channel % 8 == 3) w.k_bias.data[i] -= 14.0F;
    }
  }
  return w;
}

/// Fills the tensors of one step: a callback gets the destination of every token's vector.
class StepFiller {
 public:
  StepFiller(const Case& c, const Timeline& timeline) : c_(c), recipe_(make_recipe(c, timeline)) {}

  [[nodiscard]] StepInputs fill(const Moment& moment) const {
    return c_.problem.level == Level::core || moment.step.kind == StepKind::load ? core(moment) : layer(moment);
  }

 private:
  static std::span<float> vector_at(Dense<float>& tensor, int64_t index, int64_t width) {
    return std::span(tensor.data).subspan(static_cast<size_t>(index * width), static_cast<size_t>(width));
  }

  [[nodiscard]] StepInputs core(const Moment& moment) const {
    const Problem& p = c_.problem;
    StepInputs in{
        moment.max_queries == 0 ? Dense<float>{} : zeros({p.batch, moment.max_queries, p.query_heads, p.qk_head_dim}),
        zeros({p.batch, moment.max_keys, p.kv_heads, p.qk_head_dim}),
        zeros({p.batch, moment.max_keys, p.kv_heads, p.v_head_dim}),
        {}};
    for (const Row& row : moment.rows) {
      for (int64_t h = 0; h < p.query_heads; ++h) {
        const int64_t index = (row.sequence * moment.max_queries + row.index) * p.query_heads + h;
        recipe_->query(row, h, vector_at(in.query, index, p.qk_head_dim));
      }
    }
    for (const auto& sequence : moment.incoming) {
      for (const Token& token : sequence) {
        for (int64_t h = 0; h < p.kv_heads; ++h) {
          const int64_t index = (token.origin * moment.max_keys + token.index) * p.kv_heads + h;
          recipe_->key(token, h, vector_at(in.key, index, p.qk_head_dim));
          recipe_->value(token, h, vector_at(in.value, index, p.v_head_dim));
        }
      }
    }
    return in;
  }

  [[nodiscard]] StepInputs layer(const Moment& moment) const {
    const Problem& p = c_.problem;
    StepInputs in{zeros({p.batch, moment.max_queries, p.d_model}),
                  zeros({p.batch, moment.max_keys, p.d_model}),
                  zeros({p.batch, moment.max_keys, p.d_model}),
                  {}};
    const bool direct = c_.inputs.weights == WeightKind::uniform;
    for (const Row& row : moment.rows) {
      const auto x = vector_at(in.query, row.sequence * moment.max_queries + row.index, p.d_model);
      if (direct) {
        normal(Role::query, row.data, row.serial, x);
      } else {
        unproject(Role::q_weight, p.query_heads, p.qk_head_dim, x,
                  [&](int64_t h, std::span<float> out) { recipe_->query(row, h, out); });
      }
    }
    for (const auto& sequence : moment.incoming) {
      for (const Token& token : sequence) {
        const auto x_key = vector_at(in.key, token.origin * moment.max_keys + token.index, p.d_model);
        const auto x_value = vector_at(in.value, token.origin * moment.max_keys + token.index, p.d_model);
        if (direct) {
          normal(c_.inputs.self ? Role::query : Role::key, token.data, token.serial, x_key);
          normal(c_.inputs.self ? Role::query : Role::value, token.data, token.serial, x_value);
        } else {
          unproject(Role::k_weight, p.kv_heads, p.qk_head_dim, x_key,
                    [&](int64_t h, std::span<float> out) { recipe_->key(token, h, out); });
          unproject(Role::v_weight, p.kv_heads, p.v_head_dim, x_value,
                    [&](int64_t h, std::span<float> out) { recipe_->value(token, h, out); });
        }
      }
    }
    return in;
  }

  void normal(Role role, int64_t sequence, int64_t token, std::span<float> out) const {
    const PhiloxStream stream(static_cast<uint64_t>(c_.inputs.seed),
                              static_cast<uint32_t>(role) | static_cast<uint32_t>(sequence) << 8);
    for (size_t d = 0; d < out.size(); ++d) out[d] = stream.normal(static_cast<uint64_t>(token) * out.size() + d);
  }

  /// The layer input whose projection by the signed permutation is the recipe's vector.
  template <typename Make>
  void unproject(Role role, int64_t heads, int64_t width, std::span<float> x, const Make& make) const {
    const SignedPermutation p(c_.problem.d_model, static_cast<uint64_t>(c_.inputs.seed), role);
    std::vector<float> head(static_cast<size_t>(width));
    for (int64_t h = 0; h < heads; ++h) {
      make(h, head);
      for (int64_t d = 0; d < width; ++d) {
        const int64_t row = h * width + d;
        x[static_cast<size_t>(p.column(row))] = p.sign(row) * head[static_cast<size_t>(d)];
      }
    }
  }

  const Case& c_;
  std::unique_ptr<Recipe> recipe_;
};

/// Norm weights differ from channel to channel: with equal ones, norm and RoPE could change places.
Dense<float> norm_weight(const Case& c, Role role) {
  Dense<float> weight = zeros({c.problem.qk_head_dim});
  const PhiloxStream stream(static_cast<uint64_t>(c.inputs.seed), static_cast<uint32_t>(role));
  for (size_t d = 0; d < weight.data.size(); ++d) {
    weight.data[d] = static_cast<float>(64 + (stream.words(d)[0] & 127)) * 0x1p-7F;
  }
  return weight;
}

/// Rounds to numbers of a 16-bit dtype. Subnormal ones become 0, because a backend may flush them.
void round_all(const Case& c, Dense<float>& tensor) {
  const DType dtype = c.problem.dtype;
  const float smallest = dtype == DType::f16 ? 0x1p-14F : 0x1p-126F;
  for (float& x : tensor.data) {
    const float from = x;
    x = round_to(dtype, x);
    if (std::fabs(x) < smallest) x = 0;
    if (!std::isfinite(x)) {
      throw Error::at(fmt::format("{}: {}.inputs.recipe", c.file.string(), c.id), "gives {}, which {} cannot hold",
                      from, info(dtype).name);
    }
  }
}

}  // namespace

Inputs generate_inputs(const Case& c, const Timeline& timeline) {
  if (!c.inputs.given.empty()) throw Error::at(c.id, "has inputs of its own, which no recipe makes");
  Inputs inputs;
  const StepFiller filler(c, timeline);
  for (const Moment& moment : timeline) {
    const bool brings = moment.step.kind == StepKind::attend || moment.step.kind == StepKind::load;
    inputs.steps.push_back(brings ? filler.fill(moment) : StepInputs{});
    StepInputs& step = inputs.steps.back();
    if (moment.step.again) step.query = inputs.steps[moment.query_step].query;
    if (moment.step.kind == StepKind::attend && c.problem.mask != MaskKind::none) step.mask = make_mask(c, moment);
  }
  if (c.problem.level == Level::layer) inputs.weights = generate_weights(c);
  if (c.problem.norm_epsilon > 0) {
    inputs.weights.q_norm = norm_weight(c, Role::q_norm_weight);
    inputs.weights.k_norm = norm_weight(c, Role::k_norm_weight);
  }
  if (is_half(c.problem.dtype)) {
    for (StepInputs& step : inputs.steps) {
      for (auto* tensor : {&step.query, &step.key, &step.value}) round_all(c, *tensor);
    }
    Weights& w = inputs.weights;
    for (auto* tensor : {&w.q, &w.k, &w.v, &w.out, &w.q_bias, &w.k_bias, &w.v_bias, &w.out_bias}) round_all(c, *tensor);
  }
  if (c.problem.quantised()) fit_scales(c, timeline, inputs);
  if (c.problem.sinks) {
    const auto recipe = make_recipe(c, timeline);
    inputs.weights.sinks = zeros({c.problem.query_heads});
    for (int64_t h = 0; h < c.problem.query_heads; ++h)
      inputs.weights.sinks.data[static_cast<size_t>(h)] = recipe->sink(h);
  }
  if (c.problem.alibi == Alibi::slopes) {
    // Odd ones: no power of two and no order, so a slope of another head or formula shows.
    inputs.weights.alibi_slopes = zeros({c.problem.query_heads});
    const PhiloxStream stream(static_cast<uint64_t>(c.inputs.seed), static_cast<uint32_t>(Role::alibi_slopes));
    for (size_t h = 0; h < inputs.weights.alibi_slopes.data.size(); ++h) {
      inputs.weights.alibi_slopes.data[h] = static_cast<float>(1 + (stream.words(h)[0] & 127)) * 0x1p-8F;
    }
  }
  return inputs;
}

std::vector<std::pair<const char*, const Dense<float>*>> named(const Weights& w) {
  return {{"q_weight", &w.q},           {"k_weight", &w.k},
          {"v_weight", &w.v},           {"out_weight", &w.out},
          {"q_bias", &w.q_bias},        {"k_bias", &w.k_bias},
          {"v_bias", &w.v_bias},        {"out_bias", &w.out_bias},
          {"sinks", &w.sinks},          {"alibi_slopes", &w.alibi_slopes},
          {"q_norm_weight", &w.q_norm}, {"k_norm_weight", &w.k_norm}};
}

bool is_always_f32(std::string_view name) {
  return name == "sinks" || name == "alibi_slopes";
}

std::string hash(const Inputs& inputs) {
  Sha256 digest;
  const auto add = [&](const Dense<float>& tensor) {
    digest.add({reinterpret_cast<const char*>(tensor.shape.data()), tensor.shape.size() * sizeof(int64_t)});
    digest.add({reinterpret_cast<const char*>(tensor.data.data()), tensor.data.size() * sizeof(float)});
  };
  for (const StepInputs& step : inputs.steps) {
    for (const auto* tensor : {&step.query, &step.key, &step.value}) add(*tensor);
    if (!step.mask.data.empty()) add(step.mask);
  }
  for (const auto& [name, tensor] : named(inputs.weights)) add(*tensor);
  for (const auto* tensor : {&inputs.key_scale, &inputs.value_scale}) {
    if (!tensor->data.empty()) add(*tensor);
  }
  return digest.hex();
}

}  // namespace attest
