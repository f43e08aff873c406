// SPDX-License-Identifier: Apache-2.0
#include "runner/pack_slips.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "cases/timeline.h"

namespace attest {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kLargestExponent = 88.7;  // of e in f32

enum class Slip : int {
  none,
  scale_missing,
  scale_by_dim,
  scale_by_model,
  causal_missing,
  causal_ahead,
  causal_strict,
  causal_without_past,
  causal_only_without_cache,
  causal_always,
  softmax_over_queries,
  softmax_without_maximum,
  dropout,
  heads_split_wrong,
  heads_merged_wrong,
  cache_split_wrong,
  cache_ignored,
  cache_replaced,
  cache_behind,
  cache_unprojected,
  cache_of_first_sequence,
  output_of_first_sequence,
  key_from_query,
  value_from_key,
  query_bias_missing,
  key_bias_missing,
  value_bias_missing,
  out_bias_missing,
  out_projection_missing,
  weight_transposed,
};

constexpr const char* kNames[]{"",
                               "scale missing",
                               "scale by head_dim",
                               "scale by d_model",
                               "causal mask missing",
                               "causal mask one key ahead",
                               "causal mask without the own key",
                               "causal mask that forgets the cache",
                               "causal mask only without a cache",
                               "causal mask although none is wanted",
                               "softmax over queries",
                               "softmax without its maximum",
                               "dropout",
                               "heads split without a transpose",
                               "heads merged without a transpose",
                               "cached heads split without a transpose",
                               "cache ignored",
                               "cache replaced by the new tokens",
                               "cached tokens behind the new ones",
                               "cache not projected",
                               "cache of the first sequence for all",
                               "output of the first sequence for all",
                               "keys from the query",
                               "values from the key",
                               "query bias missing",
                               "key bias missing",
                               "value bias missing",
                               "output bias missing",
                               "output projection missing",
                               "weight transposed"};

using Matrix = std::vector<std::vector<double>>;  ///< Rows.

class Layer {
 public:
  Layer(const Case& c, const Timeline& timeline, const Inputs& inputs, const Golden& golden, Slip slip)
      : p_(c.problem),
        timeline_(timeline),
        in_(inputs),
        golden_(golden),
        slip_(slip),
        heads_(static_cast<size_t>(p_.query_heads)),
        dim_(static_cast<size_t>(p_.qk_head_dim)),
        width_(static_cast<size_t>(p_.d_model)),
        keys_(static_cast<size_t>(p_.batch)),
        values_(keys_) {}

  /// The largest difference from the golden, in allowed errors.
  double play() {
    for (size_t s = 0; s < timeline_.size(); ++s) {
      const Step& step = timeline_[s].step;
      switch (step.kind) {
        case StepKind::attend:
          attend(s);
          break;
        case StepKind::load:
          load(s);
          break;
        default:  // a pack's cases have no step but these and a reset of all
          for (auto* side : {&keys_, &values_}) side->assign(side->size(), {});
      }
    }
    return worst_;
  }

  /// The largest logit of the honest layer.
  [[nodiscard]] double largest() const { return largest_; }

 private:
  [[nodiscard]] bool is(Slip slip) const { return slip_ == slip; }

  [[nodiscard]] Matrix rows(const Dense<float>& tensor, size_t sequence) const {
    Matrix rows;
    for (auto i = static_cast<size_t>(tensor.shape[1]) * sequence, end = i + static_cast<size_t>(tensor.shape[1]);
         i < end; ++i) {
      rows.emplace_back(tensor.data.begin() + static_cast<std::ptrdiff_t>(i * width_),
                        tensor.data.begin() + static_cast<std::ptrdiff_t>((i + 1) * width_));
    }
    return rows;
  }

  [[nodiscard]] Matrix project(const Matrix& x, const Dense<float>& weight, const Dense<float>& bias,
                               Slip bias_missing) const {
    const bool transposed = is(Slip::weight_transposed);
    Matrix y;
    for (const auto& row : x) {
      y.emplace_back(width_);
      for (size_t o = 0; o < width_; ++o) {
        double& sum = y.back()[o];
        if (!is(bias_missing)) sum = static_cast<double>(bias.data[o]);
        for (size_t i = 0; i < width_; ++i) {
          sum += row[i] * static_cast<double>(weight.data[transposed ? i * width_ + o : o * width_ + i]);
        }
      }
    }
    return y;
  }

  /// What a view of [S, H, D] memory as [H, S, D] makes of head h's row i, or the other way round.
  void scramble(Matrix& x, bool back) const {
    const Matrix old = x;
    const size_t count = x.size();
    for (size_t i = 0; i < count; ++i) {
      for (size_t e = 0; e < width_; ++e) {
        const size_t h = e / dim_, flat = (h * count + i) * dim_ + e % dim_;
        if (back) {
          x[flat / width_][flat % width_] = old[i][e];
        } else {
          x[i][e] = old[flat / width_][flat % width_];
        }
      }
    }
  }

  void load(size_t s) {
    for (size_t b = 0; b < keys_.size(); ++b) {
      for (auto& row : rows(in_.steps[s].key, b)) keys_[b].push_back(std::move(row));
      for (auto& row : rows(in_.steps[s].value, b)) values_[b].push_back(std::move(row));
    }
  }

  void attend(size_t s) {
    const StepInputs& in = in_.steps[s];
    Matrix first;
    for (size_t b = 0; b < keys_.size(); ++b) {
      const Matrix x_key = rows(is(Slip::key_from_query) ? in.query : in.key, b);
      const Matrix x_value = rows(is(Slip::value_from_key) ? in.key : in.value, b);
      Matrix q = project(rows(in.query, b), in_.weights.q, in_.weights.q_bias, Slip::query_bias_missing);
      Matrix k = project(x_key, in_.weights.k, in_.weights.k_bias, Slip::key_bias_missing);
      Matrix v = project(x_value, in_.weights.v, in_.weights.v_bias, Slip::value_bias_missing);
      const Matrix keys = k, values = v;
      if (is(Slip::heads_split_wrong)) {
        for (Matrix* x : {&q, &k, &v}) scramble(*x, false);
      }
      const size_t source = is(Slip::cache_of_first_sequence) ? 0 : b;
      Matrix cached_keys = past_keys(s, source, true), cached_values = past_keys(s, source, false);
      if (is(Slip::cache_split_wrong)) {
        for (Matrix* x : {&cached_keys, &cached_values}) scramble(*x, false);
      }
      const size_t past = cached_keys.size();
      const bool behind = is(Slip::cache_behind);
      k = joined(behind ? k : cached_keys, behind ? cached_keys : k);
      v = joined(behind ? v : cached_values, behind ? cached_values : v);
      Matrix y = heads(q, k, v, past);
      if (is(Slip::heads_merged_wrong)) scramble(y, true);
      if (!is(Slip::out_projection_missing)) {
        y = project(y, in_.weights.out, in_.weights.out_bias, Slip::out_bias_missing);
      }
      if (b == 0) first = y;
      compare_output(s, b, is(Slip::output_of_first_sequence) ? first : y);
      remember(s, b, is(Slip::cache_unprojected) ? x_key : keys, is(Slip::cache_unprojected) ? x_value : values);
    }
  }

  [[nodiscard]] Matrix past_keys(size_t s, size_t source, bool of_keys) const {
    if (is(Slip::cache_ignored)) return {};
    // Sequences before this one have this step's tokens already.
    const auto length = static_cast<size_t>(timeline_[s].before[source]);
    Matrix past = of_keys ? keys_[source] : values_[source];
    if (past.size() > length) past.resize(length);
    return past;
  }

  static Matrix joined(const Matrix& one, const Matrix& other) {
    Matrix all = one;
    all.insert(all.end(), other.begin(), other.end());
    return all;
  }

  [[nodiscard]] bool sees(size_t query, size_t key, size_t past, size_t keys, size_t queries) const {
    if (p_.causal == Causal::none) return !is(Slip::causal_always) || key <= keys - queries + query;
    const size_t own = keys - queries + query;  // bottom-right
    if (is(Slip::causal_missing) || (is(Slip::causal_only_without_cache) && past > 0)) return true;
    if (is(Slip::causal_ahead)) return key <= own + 1;
    if (is(Slip::causal_strict)) return key < own;
    if (is(Slip::causal_without_past)) return key <= query;
    return key <= own;
  }

  Matrix heads(const Matrix& q, const Matrix& k, const Matrix& v, size_t past) {
    double scale = 1 / std::sqrt(static_cast<double>(dim_));
    if (is(Slip::scale_missing)) scale = 1;
    if (is(Slip::scale_by_dim)) scale = 1 / static_cast<double>(dim_);
    if (is(Slip::scale_by_model)) scale = 1 / std::sqrt(static_cast<double>(width_));
    Matrix y(q.size(), std::vector<double>(width_));
    for (size_t h = 0; h < heads_; ++h) {
      Matrix weight(q.size(), std::vector<double>(k.size()));
      for (size_t i = 0; i < q.size(); ++i) {
        for (size_t j = 0; j < k.size(); ++j) {
          double sum = 0;
          for (size_t e = h * dim_; e < (h + 1) * dim_; ++e) sum += q[i][e] * k[j][e];
          weight[i][j] = sees(i, j, past, k.size(), q.size()) ? sum * scale : -kInfinity;
          largest_ = std::max(largest_, weight[i][j]);
        }
      }
      softmax(weight, h);
      for (size_t i = 0; i < q.size(); ++i) {
        for (size_t e = h * dim_; e < (h + 1) * dim_; ++e) {
          for (size_t j = 0; j < k.size(); ++j) y[i][e] += weight[i][j] * v[j][e];
        }
      }
    }
    return y;
  }

  void softmax(Matrix& weight, size_t head) const {
    const bool columns = is(Slip::softmax_over_queries);
    const size_t lines = columns ? weight[0].size() : weight.size();
    const size_t length = columns ? weight.size() : weight[0].size();
    const auto at = [&](size_t line, size_t place) -> double& {
      return columns ? weight[place][line] : weight[line][place];
    };
    for (size_t i = 0; i < lines; ++i) {
      double most = -kInfinity, sum = 0;
      for (size_t j = 0; j < length; ++j) most = std::max(most, at(i, j));
      if (is(Slip::softmax_without_maximum)) most = most > kLargestExponent ? -kInfinity : 0;  // inf / inf
      for (size_t j = 0; j < length; ++j) sum += at(i, j) = std::exp(at(i, j) - most);
      for (size_t j = 0; j < length; ++j) {
        at(i, j) /= sum;
        if (is(Slip::dropout)) at(i, j) *= (7 * i + 3 * j + head) % 10 == 0 ? 0 : 1 / 0.9;
      }
    }
  }

  void hold(double got, double wanted, double allowed) {
    const double off = std::fabs(got - wanted);
    worst_ = off <= kInfinity ? std::max(worst_, off == 0 ? 0 : off / allowed) : kInfinity;  // NaN is not
  }

  void compare_output(size_t s, size_t b, const Matrix& y) {
    const GoldenStep& golden = golden_.steps[s];
    for (size_t r = 0; 2 * r < golden.rows.size(); ++r) {
      if (static_cast<size_t>(golden.rows[2 * r]) != b) continue;
      const auto& row = y[static_cast<size_t>(golden.rows[2 * r + 1])];
      for (size_t o = 0; o < width_; ++o) {
        hold(row[o], golden.output.value[r * width_ + o], static_cast<double>(golden.output.allowed[r * width_ + o]));
      }
    }
  }

  /// Appends, and compares what is in the cache behind the tokens that were there.
  void remember(size_t s, size_t b, const Matrix& keys, const Matrix& values) {
    const GoldenStep& golden = golden_.steps[s];
    const auto past = static_cast<size_t>(timeline_[s].before[b]);
    const bool replaced = is(Slip::cache_replaced) && past > 0;
    const bool behind = is(Slip::cache_behind) && past > 0;
    const Matrix old_keys = keys_[b], old_values = values_[b];
    keys_[b] = replaced ? keys : behind ? joined(keys, old_keys) : joined(old_keys, keys);
    values_[b] = replaced ? values : behind ? joined(values, old_values) : joined(old_values, values);
    if (replaced) worst_ = kInfinity;  // its shape is wrong
    if (behind && (keys_[b][0] != old_keys[0] || values_[b][0] != old_values[0])) worst_ = kInfinity;
    if (replaced || behind) return;
    for (size_t t = 0; 2 * t < golden.tokens.size(); ++t) {
      if (static_cast<size_t>(golden.tokens[2 * t]) != b) continue;
      const auto n = static_cast<size_t>(golden.tokens[2 * t + 1]);
      for (size_t e = 0; e < width_; ++e) {
        hold(keys[n][e], golden.cache_key.value[t * width_ + e],
             static_cast<double>(golden.cache_key.allowed[t * width_ + e]));
        hold(values[n][e], golden.cache_value.value[t * width_ + e],
             static_cast<double>(golden.cache_value.allowed[t * width_ + e]));
      }
    }
  }

  const Problem& p_;
  const Timeline& timeline_;
  const Inputs& in_;
  const Golden& golden_;
  Slip slip_;
  size_t heads_, dim_, width_;
  std::vector<Matrix> keys_, values_;  ///< The cache, merged.
  double worst_ = 0, largest_ = -kInfinity;
};

std::vector<Slip> possible(const Case& c, const Timeline& timeline) {
  const Problem& p = c.problem;
  bool many = false, past = false, both = false, deep = false;
  for (const Moment& moment : timeline) {
    if (moment.step.kind != StepKind::attend) continue;
    const bool cached = moment.before[0] > 0, several = moment.max_queries > 1;
    many = many || several;
    past = past || cached;
    both = both || (cached && several);
    deep = deep || moment.before[0] > 1;
  }
  const bool causal = p.causal != Causal::none, heads = p.query_heads > 1;
  std::vector<Slip> slips{
      Slip::key_from_query,       Slip::value_from_key,    Slip::query_bias_missing,    Slip::key_bias_missing,
      Slip::value_bias_missing,   Slip::out_bias_missing,  Slip::weight_transposed,     Slip::dropout,
      Slip::softmax_over_queries, Slip::cache_unprojected, Slip::out_projection_missing};
  const auto add = [&](bool can, std::initializer_list<Slip> some) {
    if (can) slips.insert(slips.end(), some);
  };
  add((many || past) && p.qk_head_dim > 1, {Slip::scale_missing, Slip::scale_by_dim});
  add((many || past) && heads, {Slip::scale_by_model});
  add(causal && many, {Slip::causal_missing, Slip::causal_ahead});
  add(causal, {Slip::causal_strict});
  add(causal && past, {Slip::causal_without_past});
  add(causal && both, {Slip::causal_only_without_cache});
  add(!causal && many, {Slip::causal_always});
  add(heads && many, {Slip::heads_split_wrong, Slip::heads_merged_wrong});
  add(heads && deep, {Slip::cache_split_wrong});
  add(past, {Slip::cache_ignored, Slip::cache_replaced, Slip::cache_behind});
  add(past && p.batch > 1, {Slip::cache_of_first_sequence});
  add(p.batch > 1, {Slip::output_of_first_sequence});
  return slips;
}

}  // namespace

std::vector<std::string> unnoticed_slips(const Case& c, const Inputs& inputs, const Golden& golden, double margin) {
  const Timeline timeline = play(c);
  Layer honest(c, timeline, inputs, golden, Slip::none);
  if (const double ratio = honest.play(); !(ratio <= 1)) {
    throw Error::at(c.id, "its golden is not what the layer gives in double precision: {:.3g} allowed errors off",
                    ratio);
  }
  std::vector<Slip> slips = possible(c, timeline);
  if (honest.largest() > kLargestExponent) slips.push_back(Slip::softmax_without_maximum);
  std::vector<std::string> names;
  for (const Slip slip : slips) {
    if (!(Layer(c, timeline, inputs, golden, slip).play() > margin)) names.emplace_back(kNames[static_cast<int>(slip)]);
  }
  return names;
}

std::vector<std::string> possible_slips(const Case& c) {
  std::vector<std::string> names;
  for (const Slip slip : possible(c, play(c))) names.emplace_back(kNames[static_cast<int>(slip)]);
  return names;
}

}  // namespace attest
