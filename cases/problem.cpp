// SPDX-License-Identifier: Apache-2.0
#include "cases/problem.h"

#include <algorithm>

namespace attest {
namespace {

const std::vector<std::string> kLevels{"core", "layer"};
const std::vector<std::string> kDTypes{"f32"};  // in the order of DType
const std::vector<std::string> kCausals{"none", "bottom_right", "top_left"};
const std::vector<std::string> kCaches{"none", "contiguous"};
const std::vector<std::pair<std::string_view, bool Biases::*>> kBiases{
    {"q", &Biases::q}, {"k", &Biases::k}, {"v", &Biases::v}, {"out", &Biases::out}};

// Larger than any real model, small enough that no product of two of them overflows an int64.
constexpr int64_t kMaxExtent = int64_t{1} << 24;

int64_t extent(Fields& fields, std::string_view name, int64_t otherwise) {
  const auto value = fields.optional<int64_t>(name, otherwise);
  if (value < 1 || value > kMaxExtent) throw Error::at(fields.place(name), "got {}, wanted 1 to {}", value, kMaxExtent);
  return value;
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

std::vector<std::string> names(const Biases& bias) {
  std::vector<std::string> names;
  for (const auto& [name, member] : kBiases) {
    if (bias.*member) names.emplace_back(name);
  }
  return names;
}

}  // namespace

Problem problem_from_json(const Json& json, const std::string& place) {
  Fields fields(json, place);
  Problem p;
  p.level = fields.choice("level", kLevels, Level::core);
  p.dtype = fields.choice("dtype", kDTypes, DType::f32);
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
  if (fields.has("scale")) {
    p.scale = fields.required<double>("scale");
    if (!(*p.scale > 0) || static_cast<double>(static_cast<float>(*p.scale)) != *p.scale) {
      throw Error::at(fields.place("scale"), "got {}, wanted a positive number that f32 holds exactly", *p.scale);
    }
  }
  p.causal = fields.choice("causal", kCausals, Causal::none);
  p.cache = fields.choice("cache", kCaches, CacheKind::none);
  if (p.cache != CacheKind::none) p.capacity = extent(fields, "capacity", 0);
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
  if (p.cache != CacheKind::none) {
    json["cache"] = kCaches[static_cast<size_t>(p.cache)];
    json["capacity"] = p.capacity;
  }
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
  if (p.cache != CacheKind::none) text += fmt::format(" cache{}", p.capacity);
  if (p.lse) text += " lse";
  return text;
}

}  // namespace attest
