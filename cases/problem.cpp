// SPDX-License-Identifier: Apache-2.0
#include "cases/problem.h"

#include <algorithm>

namespace attest {
namespace {

const std::vector<std::string> kLevels{"core", "layer"};
const std::vector<std::string> kDTypes{"f32", "f16", "bf16"};
const std::vector<DType> kDTypeValues{DType::f32, DType::f16, DType::bf16};
const std::vector<std::string> kCodes{"i8", "f8_e4m3", "f8_e5m2"};
const std::vector<DType> kCodeValues{DType::i8, DType::f8_e4m3, DType::f8_e5m2};
const std::vector<std::string> kCausals{"none", "bottom_right", "top_left"};
const std::vector<std::string> kCaches{"none", "contiguous", "paged", "ring"};
const std::vector<std::string> kAlibis{"none", "standard", "slopes"};
const std::vector<std::string> kMasks{"none", "boolean", "additive"};
const std::vector<std::string> kRopeStyles{"none", "half", "interleaved"};
const std::vector<std::string> kRopeScalings{"none", "linear", "ntk", "yarn", "llama3", "yarn_unrounded"};
const std::vector<std::string> kKvScales{"none", "tensor", "head", "token"};
const std::vector<std::pair<std::string_view, bool Biases::*>> kBiases{
    {"q", &Biases::q}, {"k", &Biases::k}, {"v", &Biases::v}, {"out", &Biases::out}};

// Larger than any real model, small enough that no product of two of them overflows an int64.
constexpr int64_t kMaxExtent = int64_t{1} << 24;

int64_t extent(Fields& fields, std::string_view name, int64_t otherwise) {
  const auto value = fields.optional<int64_t>(name, otherwise);
  if (value < 1 || value > kMaxExtent) throw Error::at(fields.place(name), "got {}, wanted 1 to {}", value, kMaxExtent);
  return value;
}

/// A positive number that f32 holds exactly, so that every backend gets the same one.
double exact_f32(Fields& fields, std::string_view name) {
  const auto value = fields.required<double>(name);
  if (!(value > 0) || static_cast<double>(static_cast<float>(value)) != value) {
    throw Error::at(fields.place(name), "got {}, wanted a positive number that f32 holds exactly", value);
  }
  return value;
}

void window_from_json(const Json& json, const std::string& place, Problem& p) {
  Fields fields(json, place);
  const auto read = [&](std::string_view name, std::optional<int64_t>& bound) {
    if (!fields.has(name)) return;
    bound = fields.required<int64_t>(name);
    if (*bound < 0 || *bound > kMaxExtent)
      throw Error::at(fields.place(name), "got {}, wanted 0 to {}", *bound, kMaxExtent);
  };
  read("left", p.window_left);
  read("right", p.window_right);
  fields.finish();
  if (!p.window_left && !p.window_right) throw Error::at(place, "wanted a bound: left, right or both");
}

double positive(Fields& fields, std::string_view name) {
  const auto value = fields.required<double>(name);
  if (!(value > 0)) throw Error::at(fields.place(name), "got {}, wanted a positive number", value);
  return value;
}

void rope_scaling_from_json(const Json& json, const std::string& place, Rope& rope) {
  Fields fields(json, place);
  rope.scaling = fields.choice<RopeScaling>("kind", kRopeScalings);
  if (rope.scaling == RopeScaling::none) throw Error::at(fields.place("kind"), "got \"none\", wanted a scaling");
  rope.factor = positive(fields, "factor");
  const bool by_parts = rope.is_yarn() || rope.scaling == RopeScaling::llama3;
  if (by_parts) {
    rope.original_length = positive(fields, "original_length");
    rope.low_frequency = positive(fields, "low_frequency");
    rope.high_frequency = positive(fields, "high_frequency");
    if (!(rope.low_frequency < rope.high_frequency)) {
      throw Error::at(fields.place("high_frequency"), "got {}, wanted more than low_frequency = {}",
                      rope.high_frequency, rope.low_frequency);
    }
  }
  if (rope.is_yarn() && fields.has("attention_factor")) {
    rope.attention_factor = positive(fields, "attention_factor");
  }
  fields.finish();
}

Rope rope_from_json(const Json& json, const std::string& place, int64_t head_dim) {
  Fields fields(json, place);
  Rope rope;
  rope.style = fields.choice<RopeStyle>("style", kRopeStyles);
  if (!rope) throw Error::at(fields.place("style"), "got \"none\", wanted half or interleaved");
  rope.dim = fields.optional<int64_t>("dim", head_dim);
  if (rope.dim < 2 || rope.dim > head_dim || rope.dim % 2 != 0) {
    throw Error::at(fields.place("dim"), "got {}, wanted an even number from 2 to qk_head_dim = {}", rope.dim,
                    head_dim);
  }
  rope.base = positive(fields, "base");
  if (fields.has("scaling")) rope_scaling_from_json(fields.at("scaling"), fields.place("scaling"), rope);
  fields.finish();
  if (rope.scaling == RopeScaling::ntk && rope.dim < 4) {
    throw Error::at(place + ".dim", "got {}, wanted at least 4 with NTK scaling", rope.dim);
  }
  if (rope.is_yarn() && rope.base <= 1) throw Error::at(place + ".base", "got {}, wanted more than 1", rope.base);
  return rope;
}

void cache_from_json(Fields& fields, Problem& p) {
  p.cache_dtype = p.dtype;
  p.cache = fields.choice("cache", kCaches, CacheKind::none);
  if (p.cache == CacheKind::none) return;
  p.capacity = extent(fields, "capacity", 0);
  if (p.cache == CacheKind::paged) p.page_size = extent(fields, "page_size", 0);
  if (p.cache == CacheKind::ring && !(p.window_left && *p.window_left < p.capacity)) {
    throw Error::at(fields.place("cache"), "got \"ring\", wanted a window with a left bound below the capacity {}",
                    p.capacity);
  }
  if (fields.has("cache_dtype")) {
    p.cache_dtype = kCodeValues[fields.choice<size_t>("cache_dtype", kCodes)];
    p.kv_scale = fields.choice<KvScale>("kv_scale", kKvScales);
    if (!p.quantised()) throw Error::at(fields.place("kv_scale"), "got \"none\", wanted tensor, head or token");
  }
}

/// true for all four projections, false for none, or the names of those that have one.
Biases biases_from_json(Fields& fields) {
  Biases bias;
  if (!fields.has("bias")) return bias;
  if (!fields.at("bias").is_array()) {
    const bool all = fields.required<bool>("bias");
    return {all, all, all, all};
  }
  for (const std::string& name : fields.required<std::vector<std::string>>("bias")) {
    const auto found = std::find_if(kBiases.begin(), kBiases.end(), [&](const auto& one) { return one.first == name; });
    if (found == kBiases.end() || bias.*found->second) {
      throw Error::at(fields.place("bias"), "got \"{}\", wanted each of q, k, v and out once at most", name);
    }
    bias.*found->second = true;
  }
  return bias;
}

Json to_json(const Rope& rope) {
  Json json{{"style", kRopeStyles[static_cast<size_t>(rope.style)]}, {"dim", rope.dim}, {"base", rope.base}};
  if (rope.scaling == RopeScaling::none) return json;
  Json& scaling = json["scaling"];
  scaling = {{"kind", kRopeScalings[static_cast<size_t>(rope.scaling)]}, {"factor", rope.factor}};
  if (rope.original_length > 0) scaling["original_length"] = rope.original_length;
  if (rope.low_frequency > 0) scaling["low_frequency"] = rope.low_frequency;
  if (rope.high_frequency > 0) scaling["high_frequency"] = rope.high_frequency;
  if (rope.attention_factor > 0) scaling["attention_factor"] = rope.attention_factor;
  return json;
}

std::vector<std::string> names(const Biases& bias) {
  std::vector<std::string> names;
  for (const auto& [name, member] : kBiases) {
    if (bias.*member) names.emplace_back(name);
  }
  return names;
}

}  // namespace

std::vector<std::string> features(const Problem& p) {
  std::vector<std::string> names;
  if (p.scale) names.emplace_back("scale");
  if (p.window_left || p.window_right) names.emplace_back("window");
  if (p.softcap > 0) names.emplace_back("softcap");
  if (p.alibi != Alibi::none) names.emplace_back("alibi");
  if (p.sinks) names.emplace_back("sinks");
  if (p.mask != MaskKind::none) names.emplace_back("mask");
  if (p.rope) names.emplace_back("rope");
  if (p.rope.scaling != RopeScaling::none) names.emplace_back("rope_scaling");
  if (p.norm_epsilon > 0) names.emplace_back("qk_norm");
  return names;
}

Problem without(Problem p, const std::string& feature) {
  if (feature == "scale") p.scale.reset();
  if (feature == "window") p.window_left = p.window_right = std::nullopt;
  if (feature == "softcap") p.softcap = 0;
  if (feature == "alibi") p.alibi = Alibi::none;
  if (feature == "sinks") p.sinks = false;
  if (feature == "mask") p.mask = MaskKind::none;
  if (feature == "rope") p.rope = {};
  if (feature == "rope_scaling") p.rope.scaling = RopeScaling::none;
  if (feature == "qk_norm") p.norm_epsilon = 0;
  return p;
}

Problem problem_from_json(const Json& json, const std::string& place) {
  Fields fields(json, place);
  Problem p;
  p.level = fields.choice("level", kLevels, Level::core);
  p.dtype = kDTypeValues[fields.choice<size_t>("dtype", kDTypes, 0)];
  p.batch = extent(fields, "batch", 1);
  p.query_heads = extent(fields, "query_heads", 1);
  p.kv_heads = extent(fields, "kv_heads", p.query_heads);
  if (fields.has("head_dim")) {
    p.qk_head_dim = p.v_head_dim = extent(fields, "head_dim", 0);
  } else {
    p.qk_head_dim = extent(fields, "qk_head_dim", 0);
    p.v_head_dim = extent(fields, "v_head_dim", 0);
  }
  if (p.query_heads % p.kv_heads != 0) {
    throw Error::at(fields.place("kv_heads"), "got {}, wanted a divisor of query_heads = {}", p.kv_heads,
                    p.query_heads);
  }
  if (p.level == Level::layer) {
    p.d_model = extent(fields, "d_model", p.query_heads * p.qk_head_dim);
    p.bias = biases_from_json(fields);
  }
  if (fields.has("scale")) p.scale = exact_f32(fields, "scale");
  p.causal = fields.choice("causal", kCausals, Causal::none);
  if (fields.has("window")) window_from_json(fields.at("window"), fields.place("window"), p);
  if (fields.has("softcap")) p.softcap = exact_f32(fields, "softcap");
  p.alibi = fields.choice("alibi", kAlibis, Alibi::none);
  p.sinks = fields.optional<bool>("sinks", false);
  p.mask = fields.choice("mask", kMasks, MaskKind::none);
  if (fields.has("rope")) p.rope = rope_from_json(fields.at("rope"), fields.place("rope"), p.qk_head_dim);
  if (fields.has("qk_norm")) {
    Fields norm(fields.at("qk_norm"), fields.place("qk_norm"));
    p.norm_epsilon = positive(norm, "epsilon");
    norm.finish();
  }
  cache_from_json(fields, p);
  p.packed = fields.optional<bool>("packed", false);
  if (p.packed && p.mask != MaskKind::none) {
    throw Error::at(fields.place("packed"), "got true, wanted false: a mask has no packed form");
  }
  p.lse = fields.optional<bool>("lse", false);
  fields.finish();
  return p;
}

Json to_json(const Problem& p) {
  Json json{{"level", kLevels[static_cast<size_t>(p.level)]},
            {"dtype", info(p.dtype).name},
            {"batch", p.batch},
            {"query_heads", p.query_heads},
            {"kv_heads", p.kv_heads},
            {"qk_head_dim", p.qk_head_dim},
            {"v_head_dim", p.v_head_dim},
            {"causal", kCausals[static_cast<size_t>(p.causal)]},
            {"lse", p.lse}};
  if (p.level == Level::layer) {
    json["d_model"] = p.d_model;
    json["bias"] = p.bias.any() && !p.bias.all() ? Json(names(p.bias)) : Json(p.bias.all());
  }
  if (p.scale) json["scale"] = *p.scale;
  if (p.window_left) json["window"]["left"] = *p.window_left;
  if (p.window_right) json["window"]["right"] = *p.window_right;
  if (p.softcap > 0) json["softcap"] = p.softcap;
  if (p.alibi != Alibi::none) json["alibi"] = kAlibis[static_cast<size_t>(p.alibi)];
  if (p.sinks) json["sinks"] = true;
  if (p.mask != MaskKind::none) json["mask"] = kMasks[static_cast<size_t>(p.mask)];
  if (p.rope) json["rope"] = to_json(p.rope);
  if (p.norm_epsilon > 0) json["qk_norm"]["epsilon"] = p.norm_epsilon;
  if (p.cache != CacheKind::none) {
    json["cache"] = kCaches[static_cast<size_t>(p.cache)];
    json["capacity"] = p.capacity;
    if (p.cache == CacheKind::paged) json["page_size"] = p.page_size;
    if (p.quantised()) {
      json["cache_dtype"] = info(p.cache_dtype).name;
      json["kv_scale"] = kKvScales[static_cast<size_t>(p.kv_scale)];
    }
  }
  if (p.packed) json["packed"] = true;
  return json;
}

std::string identity(const Problem& p) {
  std::string text =
      fmt::format("{} {} B{} H{}", kLevels[static_cast<size_t>(p.level)], info(p.dtype).name, p.batch, p.query_heads);
  if (p.kv_heads != p.query_heads) text += fmt::format("/{}", p.kv_heads);
  text += p.qk_head_dim == p.v_head_dim ? fmt::format(" D{}", p.qk_head_dim)
                                        : fmt::format(" D{}/{}", p.qk_head_dim, p.v_head_dim);
  if (p.level == Level::layer) {
    text += fmt::format(" model{}{}", p.d_model, p.bias.any() ? " bias" : "");
    if (!p.bias.all()) {
      for (const std::string& name : names(p.bias)) text += "-" + name;
    }
  }
  if (p.causal != Causal::none) text += p.causal == Causal::top_left ? " causal-top-left" : " causal";
  if (p.scale) text += fmt::format(" scale{}", *p.scale);
  if (p.window_left || p.window_right) {
    const auto bound = [](const std::optional<int64_t>& b) { return b ? std::to_string(*b) : std::string("-"); };
    text += fmt::format(" window{}:{}", bound(p.window_left), bound(p.window_right));
  }
  if (p.softcap > 0) text += fmt::format(" softcap{}", p.softcap);
  if (p.alibi != Alibi::none) text += " alibi-" + kAlibis[static_cast<size_t>(p.alibi)];
  if (p.sinks) text += " sinks";
  if (p.mask != MaskKind::none) text += " mask-" + kMasks[static_cast<size_t>(p.mask)];
  if (p.rope) {
    text += fmt::format(" rope-{}{}", kRopeStyles[static_cast<size_t>(p.rope.style)], p.rope.dim);
    if (p.rope.scaling != RopeScaling::none) text += "-" + kRopeScalings[static_cast<size_t>(p.rope.scaling)];
  }
  if (p.norm_epsilon > 0) text += " qk-norm";
  if (p.cache == CacheKind::contiguous) text += fmt::format(" cache{}", p.capacity);
  if (p.cache == CacheKind::paged) text += fmt::format(" paged{}/{}", p.capacity, p.page_size);
  if (p.cache == CacheKind::ring) text += fmt::format(" ring{}", p.capacity);
  if (p.quantised())
    text += fmt::format(" {}-per-{}", info(p.cache_dtype).name, kKvScales[static_cast<size_t>(p.kv_scale)]);
  if (p.packed) text += " packed";
  if (p.lse) text += " lse";
  return text;
}

}  // namespace attest
