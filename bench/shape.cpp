// SPDX-License-Identifier: Apache-2.0
#include "bench/shape.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

#include "cases/error.h"
#include "cases/json.h"

namespace attest::bench {
namespace {

constexpr int64_t kPage = 16;

/// A shape as a person writes it down.
struct Plain {
  std::string set = "decode";
  int64_t batch = 1, query_heads = 32, kv_heads = 8, head_dim = 128, context = 2048, chunk = 0, d_model = 0;
  DType dtype = DType::f32;
  bool int8 = false, paged = false, skewed = false, heads_first = false;
};

/// Tokens that a chunk of a mixed batch has.
constexpr int64_t kMixedChunk = 256;

std::string name_of(const Plain& p) {
  std::string name = fmt::format("b{}_h{}-{}_d{}", p.batch, p.query_heads, p.kv_heads, p.head_dim);
  if (p.d_model > 0) name += fmt::format("_model{}", p.d_model);
  if (p.chunk > 0) name += fmt::format("_chunk{}", p.chunk);
  name += fmt::format("_c{}_{}", p.context, info(p.dtype).name);
  if (p.int8) name += "_kv8";
  if (p.paged) name += "_paged";
  if (p.skewed) name += "_skewed";
  if (p.heads_first) name += "_heads";
  return name;
}

Shape make(const Plain& p) {
  Shape shape;
  shape.set = p.set;
  shape.name = name_of(p);
  shape.heads_first = p.heads_first;
  shape.context = p.context;
  for (int64_t b = 0; b < p.batch; ++b) {
    const int64_t total =
        p.skewed ? std::max<int64_t>(p.context / (1 + b), std::min<int64_t>(16, p.context)) : p.context;
    // A decode step reads `context` keys; a prefill makes them, all at once or its last chunk.
    const bool chunk = p.set == "prefill" || (p.set == "mixed" && b == 0);
    const int64_t fresh = chunk ? std::min(total, p.chunk > 0 ? p.chunk : total) : 1;
    shape.queries.push_back(fresh);
    shape.before.push_back(total - fresh);
  }
  Problem& problem = shape.problem;
  problem.dtype = p.dtype;
  problem.batch = p.batch;
  problem.query_heads = p.query_heads;
  problem.kv_heads = p.kv_heads;
  problem.qk_head_dim = problem.v_head_dim = p.head_dim;
  problem.causal = Causal::bottom_right;
  problem.cache = p.paged ? CacheKind::paged : CacheKind::contiguous;
  problem.page_size = p.paged ? kPage : 0;
  problem.capacity = (p.context + kPage - 1) / kPage * kPage;
  problem.cache_dtype = p.int8 ? DType::i8 : p.dtype;
  problem.kv_scale = p.int8 ? KvScale::head : KvScale::none;
  problem.packed = p.set == "mixed";
  if (p.set == "layer") {
    problem.level = Level::layer;
    problem.d_model = p.d_model;
    problem.rope.style = RopeStyle::half;
    problem.rope.dim = p.head_dim;
    problem.rope.base = 500000;
  }
  return shape;
}

/// One axis at a time around the shape that most models have: the full product would take a day.
std::vector<Shape> decode_set() {
  std::vector<Plain> list;
  const Plain usual;
  const auto add = [&](auto change) {
    Plain p = usual;
    change(p);
    list.push_back(p);
  };
  for (const int64_t context : {512, 2048, 8192, 32768}) {
    add([&](Plain& p) { p.context = context; });
    add([&](Plain& p) { p.context = context, p.kv_heads = 32; });
  }
  for (const DType dtype : {DType::f16, DType::bf16}) {
    for (const int64_t context : {2048, 8192}) {
      add([&](Plain& p) { p.dtype = dtype, p.context = context; });
    }
  }
  for (const int64_t context : {2048, 8192}) add([&](Plain& p) { p.int8 = true, p.context = context; });
  add([](Plain& p) { p.query_heads = 64; });
  add([](Plain& p) { p.query_heads = 14, p.kv_heads = 2, p.head_dim = 64; });
  add([](Plain& p) { p.head_dim = 64; });
  for (const int64_t context : {512, 2048}) add([&](Plain& p) { p.batch = 8, p.context = context; });
  add([](Plain& p) { p.batch = 8, p.skewed = true, p.context = 8192; });
  add([](Plain& p) { p.batch = 64, p.context = 512; });
  add([](Plain& p) { p.batch = 64, p.skewed = true, p.context = 8192, p.paged = true, p.dtype = DType::f16; });
  for (const int64_t context : {512, 2048, 8192}) add([&](Plain& p) { p.paged = true, p.context = context; });
  std::vector<Shape> shapes;
  for (const Plain& p : list) shapes.push_back(make(p));
  return shapes;
}

std::vector<Shape> prefill_set() {
  std::vector<Shape> shapes;
  for (const int64_t context : {512, 2048, 8192}) {
    shapes.push_back(make({.set = "prefill", .kv_heads = 32, .context = context}));
    shapes.push_back(make({.set = "prefill", .context = context}));
  }
  shapes.push_back(make({.set = "prefill", .context = 2048, .dtype = DType::f16}));
  shapes.push_back(make({.set = "prefill", .query_heads = 14, .kv_heads = 2, .head_dim = 64, .context = 2048}));
  for (const int64_t context : {2048, 8192}) {
    shapes.push_back(make({.set = "prefill", .context = context, .chunk = 512}));
  }
  return shapes;
}

std::vector<Shape> mixed_set() {
  std::vector<Shape> shapes;
  for (const int64_t context : {2048, 8192}) {
    Plain p{.set = "mixed", .batch = 8, .context = context, .chunk = kMixedChunk};
    shapes.push_back(make(p));
    p.skewed = p.paged = true;
    shapes.push_back(make(p));
  }
  return shapes;
}

/// Llama 3 8B as it runs: attention alone in bf16, which is how its weights come, and its layer in f32.
std::vector<Shape> llama3_8b() {
  std::vector<Shape> shapes;
  for (const int64_t context : {512, 2048, 8192}) {
    shapes.push_back(make({.context = context, .dtype = DType::bf16}));
    shapes.push_back(make({.batch = 8, .context = context, .dtype = DType::bf16, .paged = true, .skewed = true}));
  }
  shapes.push_back(make({.set = "prefill", .context = 2048, .dtype = DType::bf16}));
  for (const int64_t batch : {1, 8}) {
    shapes.push_back(make({.set = "layer", .batch = batch, .context = 2048, .d_model = 4096}));
  }
  return shapes;
}

int64_t between(Fields& fields, std::string_view field, int64_t otherwise, int64_t least, int64_t most) {
  const auto value = fields.optional<int64_t>(field, otherwise);
  if (value < least || value > most) {
    throw Error::at(fields.place(field), "got {}, wanted {} to {}", value, least, most);
  }
  return value;
}

/// A number, or several: then there is a shape for each.
std::vector<int64_t> contexts_of(Fields& fields) {
  std::vector<int64_t> contexts;
  if (fields.has("context") && fields.at("context").is_array()) {
    contexts = fields.required<std::vector<int64_t>>("context");
    if (contexts.empty()) throw Error::at(fields.place("context"), "got an empty list");
  } else {
    contexts.push_back(fields.required<int64_t>("context"));
  }
  for (const int64_t context : contexts) {
    if (context < 1 || context > 1 << 20) {
      throw Error::at(fields.place("context"), "got {}, wanted 1 to {}", context, 1 << 20);
    }
  }
  return contexts;
}

}  // namespace

int64_t Shape::tokens() const {
  return std::accumulate(queries.begin(), queries.end(), int64_t{0});
}

Cost cost_of(const Shape& shape) {
  const Problem& p = shape.problem;
  const auto size = static_cast<double>(info(p.dtype).size), stored = static_cast<double>(info(p.cache_dtype).size);
  const auto width = static_cast<double>(p.qk_head_dim + p.v_head_dim);
  const auto kv_heads = static_cast<double>(p.kv_heads), query_heads = static_cast<double>(p.query_heads);
  Cost cost;
  double visible = 0;
  for (size_t b = 0; b < shape.before.size(); ++b) {
    const auto before = static_cast<double>(shape.before[b]), fresh = static_cast<double>(shape.queries[b]);
    cost.kv_bytes += (before + fresh) * kv_heads * width * stored;
    visible += fresh * before + fresh * (fresh + 1) / 2;
    if (p.page_size > 0) cost.bytes += 4 * std::ceil((before + fresh) / static_cast<double>(p.page_size));
  }
  if (p.quantised()) cost.kv_bytes += 2 * kv_heads * 4;
  cost.flops = 2 * visible * query_heads * width;
  const auto tokens = static_cast<double>(shape.tokens());
  cost.bytes += cost.kv_bytes;
  if (p.level == Level::layer) {
    const auto model = static_cast<double>(p.d_model);
    const double weights = model * (query_heads + kv_heads) * width;
    cost.bytes += weights * size + 2 * tokens * model * size;
    cost.flops += 2 * tokens * weights;
  } else {
    cost.bytes += tokens * (query_heads + kv_heads) * width * size;
  }
  return cost;
}

int64_t cache_bytes(const Shape& shape) {
  const Problem& p = shape.problem;
  return p.batch * p.capacity * p.kv_heads * (p.qk_head_dim + p.v_head_dim) * info(p.cache_dtype).size;
}

std::vector<Shape> shapes_from_json(std::string_view text, std::string_view place) {
  const Json json = parse_json(text, place);
  Fields file(json, std::string(place));
  const Json& list = file.array("shapes");
  std::vector<Shape> shapes;
  std::set<std::string> names;
  for (size_t i = 0; i < list.size(); ++i) {
    Fields fields(list[i], fmt::format("{}: shapes[{}]", place, i));
    Plain p;
    static const std::vector<std::string> kSets{"decode", "prefill", "mixed", "layer"};
    p.set = kSets[static_cast<size_t>(fields.choice<int>("set", kSets))];
    p.batch = between(fields, "batch", 1, 1, 4096);
    p.query_heads = between(fields, "query_heads", 32, 1, 1024);
    p.kv_heads = between(fields, "kv_heads", p.query_heads, 1, 1024);
    if (p.query_heads % p.kv_heads != 0) {
      throw Error::at(fields.place("kv_heads"), "got {}, wanted a divisor of query_heads, {}", p.kv_heads,
                      p.query_heads);
    }
    p.head_dim = between(fields, "head_dim", 128, 1, 1024);
    const bool mixed = p.set == "mixed", own_chunk = fields.has("chunk");
    p.chunk = between(fields, "chunk", mixed ? kMixedChunk : 0, mixed ? 1 : 0, 1 << 20);
    if (p.chunk > 0 && p.set != "prefill" && !mixed) {
      throw Error::at(fields.place("chunk"), "got {} in a {} shape, whose steps have one token", p.chunk, p.set);
    }
    static const std::vector<std::string> kTypes{"f32", "f16", "bf16"};
    static constexpr DType kDTypes[] = {DType::f32, DType::f16, DType::bf16};
    p.dtype = kDTypes[fields.choice<int>("dtype", kTypes, 0)];
    p.int8 = fields.choice<int>("kv", {"same", "int8"}, 0) == 1;
    p.paged = fields.choice<int>("cache", {"contiguous", "paged"}, 0) == 1;
    p.skewed = fields.choice<int>("lengths", {"equal", "skewed"}, 0) == 1;
    p.heads_first = fields.choice<int>("order", {"tokens", "heads"}, 0) == 1;
    if (p.set == "layer") {
      p.d_model = between(fields, "d_model", p.query_heads * p.head_dim, 1, 1 << 16);
      if (p.dtype != DType::f32 || p.int8) {
        throw Error::at(fields.place(), "a layer is measured in f32 only: its outputs are checked in no other dtype");
      }
      if (p.head_dim % 2 != 0) throw Error::at(fields.place("head_dim"), "got {}, wanted an even number", p.head_dim);
    }
    const std::vector<int64_t> contexts = contexts_of(fields);
    fields.finish();
    for (const int64_t context : contexts) {
      p.context = context;
      if (own_chunk && p.chunk > context) {
        throw Error::at(fields.place("chunk"), "got {}, wanted 1 to {}, the context", p.chunk, context);
      }
      // A name that says more than there is would be a second one of the same shape.
      if (mixed && !own_chunk) p.chunk = std::min(kMixedChunk, context);
      Shape shape = make(p);
      if (!names.insert(shape.set + "/" + shape.name).second) {
        throw Error::at(fields.place(), "{} is there already", shape.name);
      }
      shapes.push_back(std::move(shape));
    }
  }
  file.finish();
  if (shapes.empty()) throw Error::at(place, "has no shapes");
  return shapes;
}

std::vector<Shape> find_shapes(const std::string& set_or_file) {
  if (set_or_file == "decode") return decode_set();
  if (set_or_file == "prefill") return prefill_set();
  if (set_or_file == "mixed") return mixed_set();
  if (set_or_file == "model:llama3-8b") return llama3_8b();
  if (set_or_file.starts_with("model:") || !set_or_file.ends_with(".json")) {
    throw Error::at("--shapes", "got \"{}\", wanted decode, prefill, mixed, model:llama3-8b or a file.json",
                    set_or_file);
  }
  return shapes_from_json(read_file(set_or_file), set_or_file);
}

}  // namespace attest::bench
