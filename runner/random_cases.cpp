// SPDX-License-Identifier: Apache-2.0
#include "runner/random_cases.h"

#include <algorithm>
#include <initializer_list>
#include <string>
#include <vector>

#include "cases/mask.h"
#include "cases/philox.h"

namespace attest {
namespace {

/// Draws from a stream that belongs to one case.
class Dice {
 public:
  Dice(uint64_t seed, uint64_t number) : stream_(seed, 0xd1ce), next_(number << 16) {}

  /// lo to hi, both included.
  int64_t number(int64_t lo, int64_t hi) {
    return lo + static_cast<int64_t>(stream_.words(next_++)[0] % static_cast<uint64_t>(hi - lo + 1));
  }
  bool percent(int64_t share) { return number(0, 99) < share; }
  template <typename T>
  T pick(std::initializer_list<T> list) {
    return list.begin()[number(0, static_cast<int64_t>(list.size()) - 1)];
  }
  std::string name(std::initializer_list<const char*> list) { return pick(list); }

 private:
  PhiloxStream stream_;
  uint64_t next_;
};

class Writer {
 public:
  Writer(uint64_t seed, uint64_t number) : dice_(seed, number), number_(number) {}

  Json write() {
    make_problem();
    make_inputs();
    make_layouts();
    Json steps = cached_ ? cached_steps() : splits_ ? split_steps() : plain_steps();
    return {{"id", fmt::format("case_{}", number_)},
            {"about", "Drawn."},
            {"clauses", {"A1"}},
            {"kills", Json::array()},
            {"problem", problem_},
            {"inputs", inputs_},
            {"layouts", layouts_},
            {"steps", std::move(steps)}};
  }

 private:
  void make_problem() {
    dtype_ = dice_.name({"f32", "f32", "f16", "bf16"});
    layer_ = dice_.percent(20);
    batch_ = dice_.pick({1, 1, 2, 3, 4});
    const int64_t kv_heads = dice_.pick({1, 1, 2, 2, 3, 4}), group = dice_.pick({1, 1, 2, 3, 4, 7});
    heads_ = kv_heads * group;
    while (heads_ > (layer_ ? 6 : 14)) heads_ -= kv_heads;
    width_ =
        layer_ ? dice_.pick({8, 16, 24, 32}) : dice_.pick({1, 2, 7, 8, 16, 16, 24, 32, 40, 64, 64, 80, 96, 128, 192});
    problem_ = {{"dtype", dtype_}, {"batch", batch_}, {"query_heads", heads_}, {"kv_heads", kv_heads}};
    problem_["qk_head_dim"] = width_;
    problem_["v_head_dim"] = value_width_ = dice_.percent(80) ? width_ : dice_.pick({1, 5, 8, 16, 40, 64});
    lse_ = dice_.percent(50);
    problem_["lse"] = lse_;
    splits_ = !layer_ && lse_ && dice_.percent(15);
    cached_ = !splits_ && dice_.percent(65);
    if (dice_.percent(15)) problem_["scale"] = static_cast<double>(dice_.number(1, 96)) / 64;
    if (dice_.percent(15)) problem_["softcap"] = dice_.pick({1.0, 5.0, 20.0, 30.0, 50.0});
    packed_ = dice_.percent(20);
    if (packed_) problem_["packed"] = true;
    quantised_ = cached_ && dice_.percent(30);
    // Codes of values that 16 bits round on the way have no certain value, and a layer's only if it is a permutation.
    turns_ = !splits_ && !(quantised_ && dtype_ != "f32");
    if (turns_ && !splits_ && width_ >= 2 && dice_.percent(35)) make_rope();
    if (turns_ && dice_.percent(15)) problem_["qk_norm"]["epsilon"] = dice_.pick({1e-6, 1e-5, 0.25});
    if (!splits_) make_visibility();
    if (cached_) make_cache();
    if (layer_) make_layer();
  }

  void make_rope() {
    Json rope{{"style", dice_.name({"half", "interleaved"})}, {"base", dice_.pick({10000.0, 500000.0, 1e6})}};
    const int64_t even = width_ / 2 * 2;
    rope["dim"] = dice_.percent(70) ? even : std::max<int64_t>(2, even / 4 * 2);
    const int64_t kind = rope["dim"].get<int64_t>() < 4 ? dice_.number(0, 3) : dice_.number(0, 8);
    if (kind == 3) rope["scaling"] = {{"kind", "linear"}, {"factor", dice_.pick({2.0, 4.0, 8.0})}};
    if (kind == 4) rope["scaling"] = {{"kind", "ntk"}, {"factor", dice_.pick({2.0, 3.0, 8.0})}};
    if (kind == 5) {
      rope["scaling"] = {
          {"kind", "llama3"}, {"factor", 8}, {"original_length", 8192}, {"low_frequency", 1}, {"high_frequency", 4}};
    }
    if (kind >= 6) {
      rope["scaling"] = {{"kind", kind == 6 ? "yarn_unrounded" : "yarn"},
                         {"factor", dice_.pick({4.0, 32.0, 40.0})},
                         {"original_length", 4096},
                         {"low_frequency", 1},
                         {"high_frequency", 32}};
      if (kind == 8) rope["scaling"]["attention_factor"] = 1.25;
    }
    problem_["rope"] = std::move(rope);
    positions_ = dice_.percent(30);
  }

  void make_visibility() {
    problem_["causal"] = dice_.name({"none", "bottom_right", "bottom_right", "top_left"});
    if (dice_.percent(20)) problem_["alibi"] = dice_.name({"standard", "slopes"});
    if (dice_.percent(20)) problem_["sinks"] = true;
    if (!packed_ && dice_.percent(25)) {
      const bool additive = dice_.percent(50);
      problem_["mask"] = additive ? "additive" : "boolean";
      std::string pattern = dice_.name({"padding_left", "padding_right", "holes", "blocks", "rows", "prefix"});
      if (additive && dice_.percent(70)) pattern = dice_.name({"bias", "bias_holes", "sentinel", "lowest"});
      std::string axes = dice_.name({"", "b", "h", "bh", "q", "bq", "hq", "bhq"});
      if (mask_pattern_needs_queries(pattern) && axes.find('q') == std::string::npos) axes += "q";
      inputs_["mask"] = {{"pattern", pattern}, {"axes", axes}};
    }
    if (dice_.percent(30)) {
      const int64_t kind = dice_.number(0, 2);
      if (kind != 1) problem_["window"]["left"] = dice_.number(0, 12);
      if (kind != 0) problem_["window"]["right"] = dice_.number(0, 6);
    }
  }

  void make_cache() {
    const std::string kind = dice_.name({"contiguous", "contiguous", "paged", "paged", "ring"});
    capacity_ = dice_.number(6, 70);
    if (kind == "paged") {
      problem_["page_size"] = dice_.pick({1, 2, 3, 4, 8, 16});
      inputs_["pages"] = dice_.number(1, 1000);
    }
    if (kind == "ring") {
      ring_ = true;
      problem_["window"]["left"] = dice_.number(0, capacity_ - 1);
    }
    problem_["cache"] = kind;
    problem_["capacity"] = capacity_;
    if (!quantised_) return;
    problem_["cache_dtype"] = dice_.name({"i8", "f8_e4m3", "f8_e5m2"});
    problem_["kv_scale"] = dice_.name({"tensor", "head", "token"});
    if (problem_["kv_scale"] != "token" && dice_.percent(20)) inputs_["saturate"] = true;
  }

  void make_layer() {
    problem_["level"] = "layer";
    permuted_ = quantised_ || dice_.percent(50);
    if (permuted_) {
      problem_["d_model"] = heads_ * std::max(width_, value_width_) + dice_.pick({0, 3});
      inputs_["weights"] = "permutation";
      if (!quantised_ && dice_.percent(40)) problem_["bias"] = true;
      return;
    }
    problem_["d_model"] = dice_.pick({8, 24, 32, 64, 96});
    inputs_["self"] = self_ = dice_.percent(60);
    if (dice_.percent(60)) problem_["bias"] = true;
    if (problem_.contains("bias") && dice_.percent(20)) inputs_["bias_outliers"] = true;
  }

  void make_inputs() {
    inputs_["seed"] = dice_.number(1, 2000000000);
    inputs_["poison"] = dice_.name({"nan", "nan", "huge", "inf", "zero"});
    // A needle's code needs channels, a ramp two of them.
    inputs_["recipe"] =
        width_ < 8
            ? dice_.name({"gaussian", "sharp", "bits", "seesaw", "flat", "flat_cancel", "negative_logits", "analytic"})
            : dice_.name({"gaussian", "sharp", "bits", "needle", "needle_odd", "seesaw", "flat", "flat_cancel",
                          "negative_logits", "large_logits", "cancelling", "rising", "falling", "analytic"});
    if (has_room_for_overflow() && dice_.percent(20)) {
      inputs_["recipe"] = "overflow";
      inputs_["mask"]["pattern"] = "padding_left";
    }
  }

  /// Whether some mask could hide logits beyond f32 (see the recipe), and the recipe is what makes the keys.
  [[nodiscard]] bool has_room_for_overflow() const {
    return inputs_.contains("mask") && dtype_ != "f16" && !quantised_ && (!layer_ || permuted_) &&
           !problem_.contains("qk_norm") && !problem_.contains("softcap");
  }

  void make_layouts() {
    layouts_ = Json::object();
    if (!dice_.percent(50)) return;
    std::string tokens = layer_ ? "bsd" : "bshd";
    if (packed_) tokens.erase(0, 1);
    for (const char* name : {"query", "key", "value", "output"}) make_layout(name, tokens);
    if (cached_) make_layout("cache", "bshd");
  }

  void make_layout(const char* name, std::string letters) {
    if (!dice_.percent(50)) return;
    Json layout = Json::object();
    for (size_t i = letters.size(); i-- > 1;) {
      std::swap(letters[i], letters[static_cast<size_t>(dice_.number(0, static_cast<int64_t>(i)))]);
    }
    layout["order"] = letters;
    if (dice_.percent(40)) layout["pad"] = dice_.number(1, 5);
    if (dice_.percent(30)) layout["pads"][std::string(1, letters[0])] = dice_.number(1, 3);
    if (dice_.percent(30)) layout["absurd"] = true;
    layouts_[name] = std::move(layout);
  }

  // ---- steps -------------------------------------------------------------------------------------------------------

  using Counts = std::vector<int64_t>;

  /// A number for each sequence, from 0 (but not all of them) to `most`.
  Counts counts(int64_t most, bool ragged) {
    Counts list(static_cast<size_t>(batch_), dice_.number(1, most));
    for (size_t b = 0; ragged && b < list.size(); ++b) list[b] = dice_.percent(15) ? 0 : dice_.number(1, most);
    if (std::all_of(list.begin(), list.end(), [](int64_t n) { return n == 0; })) list[0] = 1;
    return list;
  }
  int64_t longest() { return layer_ ? dice_.pick({3, 6, 10}) : dice_.pick({3, 6, 12, 20, 40}); }

  void place(Json& step, const Counts& queries, const Counts& keys) {
    if (!positions_) return;
    for (size_t b = 0; b < keys.size(); ++b) {
      if (keys[b] > queries[b]) return;
    }
    Counts positions;
    for (int64_t b = 0; b < batch_; ++b) positions.push_back(dice_.pick({0, 7, 500, 8190, 100000}));
    step["positions"] = positions;
  }

  Json plain_steps() {
    Json steps = Json::array();
    const bool ragged = dice_.percent(40);
    for (int64_t n = dice_.number(1, 3); n-- > 0;) {
      const Counts queries = counts(longest(), ragged);
      const Counts keys = (layer_ && self()) || dice_.percent(50) ? queries : counts(longest(), ragged);
      Json step{{"attend", queries}, {"keys", keys}};
      place(step, queries, keys);
      steps.push_back(std::move(step));
    }
    return steps;
  }

  Json split_steps() {
    Json steps = Json::array();
    const bool ragged = dice_.percent(40);
    const Counts queries = counts(longest(), ragged);
    const int64_t parts = dice_.number(2, 4);
    for (int64_t n = 0; n < parts; ++n) {
      Json step{{"attend", queries}, {"keys", counts(longest(), ragged || dice_.percent(30))}};
      if (n > 0) step["again"] = true;
      steps.push_back(std::move(step));
    }
    steps.push_back({{"merge", parts}});
    return steps;
  }

  Json cached_steps() {
    Json steps = Json::array();
    Counts lengths(static_cast<size_t>(batch_));
    const bool ragged = dice_.percent(40);
    bool attended = false;
    for (int64_t n = dice_.number(2, 6); n > 0 || !attended; --n) {
      const int64_t kind = dice_.number(0, 99);
      if (kind < 65 || !attended) {
        attended = attend(steps, lengths, ragged, attended) || attended;
      } else {
        maintain(steps, lengths, kind);
      }
    }
    return steps;
  }

  bool attend(Json& steps, Counts& lengths, bool ragged, bool decode) {
    Counts queries = counts(decode && dice_.percent(60) ? 1 : longest(), ragged);
    Counts keys = queries;
    if (!(layer_ && self()) && dice_.percent(25)) {  // cross attention, or a chunk of another length
      for (int64_t& count : keys) count = decode && dice_.percent(50) ? 0 : dice_.number(0, longest());
    }
    bool overflows = false;
    for (size_t b = 0; b < keys.size(); ++b) overflows = overflows || (!ring_ && lengths[b] + keys[b] > capacity_);
    Json step{{"attend", queries}, {"keys", keys}};
    place(step, queries, keys);
    if (overflows) step["expect"] = "overflow";
    const bool malformed = !overflows && dice_.percent(4);
    if (malformed) {
      step["expect"] = "invalid";
      step["malform"] = {{"argument", dice_.name({"query", "output", "cache.key", "cache.value"})},
                         {"change", dice_.name({"dtype", "rank", "head_dim"})}};
    }
    steps.push_back(std::move(step));
    if (overflows || malformed) return false;
    for (size_t b = 0; b < keys.size(); ++b) lengths[b] += keys[b];
    return true;
  }

  void maintain(Json& steps, Counts& lengths, int64_t kind) {
    if (kind < 78) {
      for (int64_t& length : lengths) length = std::max<int64_t>(0, length - dice_.number(0, ring_ ? 2 : 9));
      steps.push_back({{"truncate", lengths}});
    } else if (kind < 84) {
      const int64_t b = dice_.number(0, batch_ - 1);
      lengths[static_cast<size_t>(b)] = 0;
      steps.push_back({{"reset", {b}}});
    } else if (kind < 92) {
      const int64_t from = dice_.number(0, batch_ - 1), to = dice_.number(0, batch_ - 1);
      lengths[static_cast<size_t>(to)] = lengths[static_cast<size_t>(from)];
      steps.push_back({{"fork", {{"from", from}, {"to", to}}}});
    } else {
      Counts order;
      const Counts before = lengths;
      for (int64_t& length : lengths) {
        order.push_back(dice_.number(0, batch_ - 1));
        length = before[static_cast<size_t>(order.back())];
      }
      steps.push_back({{"reorder", order}});
    }
  }

  [[nodiscard]] bool self() const { return !permuted_ && self_; }

  Dice dice_;
  uint64_t number_;
  std::string dtype_;
  int64_t batch_ = 1, heads_ = 1, width_ = 1, value_width_ = 1, capacity_ = 0;
  bool layer_ = false, lse_ = false, splits_ = false, cached_ = false, packed_ = false, quantised_ = false;
  bool turns_ = false, positions_ = false, ring_ = false, permuted_ = false, self_ = true;
  Json problem_, inputs_, layouts_;
};

}  // namespace

Json random_case_json(uint64_t seed, uint64_t number) {
  return Writer(seed, number).write();
}

Case random_case(uint64_t seed, uint64_t number) {
  return case_from_json(random_case_json(seed, number), "fresh", fmt::format("seed {}, case {}", seed, number));
}

}  // namespace attest
