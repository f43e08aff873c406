// SPDX-License-Identifier: Apache-2.0
#include "plan.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

namespace attest::cuda {

namespace {

std::byte* first_element(const DLTensor& tensor) {
  return tensor.data == nullptr ? nullptr : static_cast<std::byte*>(tensor.data) + tensor.byte_offset;
}

/// 0 where it has no meaning.
std::int64_t stride(const DLTensor& tensor, int axis) {
  return tensor.shape[axis] == 1 ? 0 : tensor.strides[axis];
}

template <class T>
T* vector(const DLTensor* tensor) {
  return tensor == nullptr ? nullptr : reinterpret_cast<T*>(first_element(*tensor));
}
std::int64_t vector_stride(const DLTensor* tensor) {
  return tensor == nullptr ? 0 : stride(*tensor, 0);
}

/// A step's tensor of tokens: [B, S, heads, D] or [tokens, heads, D]; a layer's has no axis of heads.
Tokens tokens_of(const attest_problem& p, const DLTensor& tensor) {
  const int token = p.packed != 0 ? 0 : 1;
  const bool heads = p.level == ATTEST_LEVEL_CORE;
  return {first_element(tensor),           p.packed != 0 ? 0 : stride(tensor, 0),
          stride(tensor, token),           heads ? stride(tensor, token + 1) : 0,
          stride(tensor, tensor.ndim - 1), abi::storage_of(tensor.dtype)};
}

/// Tokens side by side, as many as `axis` has in each sequence or, packed, in all.
Tokens compact(const attest_problem& p, std::byte* data, Storage storage, std::int64_t axis, std::int64_t heads,
               std::int64_t width) {
  const std::int64_t token = heads * width;
  return {data, p.packed != 0 ? 0 : axis * token, token, width, 1, storage};
}

bool in_vectors(const std::byte* data, std::initializer_list<std::int64_t> strides, std::int64_t channel,
                std::int64_t width, Storage storage) {
  const int bytes = element_bytes(storage);
  if (reinterpret_cast<std::uintptr_t>(data) % 16 != 0 || channel != 1 || width * bytes % 16 != 0) return false;
  return std::all_of(strides.begin(), strides.end(), [bytes](std::int64_t s) { return s * bytes % 16 == 0; });
}

/// Blocks along x for so much work; each takes more if there are not enough.
int grid_extent(std::int64_t work) {
  return static_cast<int>(std::min<std::int64_t>(work, 1 << 16));
}

void set_norm(IntakeSide& side, const DLTensor* weight) {
  if (weight == nullptr) return;
  side.norm = first_element(*weight);
  side.norm_stride = stride(*weight, 0);
  side.norm_storage = abi::storage_of(weight->dtype);
}

int window(std::int64_t limit) {
  return limit < 0 || limit > std::numeric_limits<std::int32_t>::max() ? -1 : static_cast<int>(limit);
}

}  // namespace

/// What the host knows of a step.
struct StepPlan::Step {
  std::int64_t query_axis, key_axis;      ///< Tokens on the axes.
  std::int64_t query_tokens, key_tokens;  ///< All tokens, padding included.
  std::int64_t queries, keys;             ///< Most of a sequence, after the step.
  Sequence* sequences;
  std::int32_t* go;
  Slots slots;
  Stream stream;
};

StepPlan::StepPlan(const Settings& settings, const attest_problem& problem)
    : settings_(settings),
      problem_((abi::check_problem(problem, settings.memory), problem)),
      dtype_(abi::storage_of(problem.dtype)),
      cache_dtype_(problem.cache == ATTEST_CACHE_NONE ? dtype_
                                                      : abi::storage_of(problem.cache_dtype, problem.cache_fp8)),
      visibility_{problem.causal, window(problem.window_left), window(problem.window_right)},
      turns_query_(problem.q_norm_weight != nullptr || problem.rope.style != ATTEST_ROPE_NONE),
      turns_key_(problem.k_norm_weight != nullptr || problem.rope.style != ATTEST_ROPE_NONE),
      frequency_(abi::rope_frequencies(problem.rope).frequency),
      magnitude_(abi::rope_frequencies(problem.rope).magnitude),
      slopes_(problem.alibi == ATTEST_ALIBI_STANDARD ? abi::alibi_slopes(problem) : std::vector<float>()),
      report_(std::make_shared<Visible<Report>>()) {
  if (problem.qk_head_dim > most_key_channels || problem.v_head_dim > most_value_channels) {
    throw abi::Unsupported("not implemented: heads of " + std::to_string(problem.qk_head_dim) + " and " +
                           std::to_string(problem.v_head_dim) + " channels; at most " +
                           std::to_string(most_key_channels) + " and " + std::to_string(most_value_channels));
  }
  // Refuses now what would not fit later.
  layout_of(engine_for(heads(), 1, false, settings.machine), heads(), settings.machine);
  if (problem.level == ATTEST_LEVEL_LAYER) {
    q_.emplace(*problem.q_weight, problem.q_bias);
    k_.emplace(*problem.k_weight, problem.k_bias);
    v_.emplace(*problem.v_weight, problem.v_bias);
    out_.emplace(*problem.out_weight, problem.out_bias);
  }
}

void StepPlan::run(const attest_step& step) {
  const attest_problem& p = problem_;
  abi::check_step_tensors(p, step, settings_.memory);
  Step s{};
  const auto axis = [&](const DLTensor* tensor) -> std::int64_t {
    return tensor == nullptr ? 0 : tensor->shape[p.packed != 0 ? 0 : 1];
  };
  s.query_axis = axis(step.query);
  s.key_axis = axis(step.key);
  s.query_tokens = s.query_axis * (p.packed != 0 ? 1 : p.batch);
  s.key_tokens = s.key_axis * (p.packed != 0 ? 1 : p.batch);
  s.queries = std::min(step.max_query_length, s.query_axis);
  s.keys = step.max_total_length;
  s.sequences = sequences_.get<Sequence>(p.batch);
  s.go = go_.get<std::int32_t>(1);
  s.slots.divisor = 1;
  s.stream = {step.stream, settings_.machine.overlap};
  if (step.cache != nullptr) {
    const DLTensor* const table = step.cache->block_table;
    s.slots.divisor = static_cast<std::int32_t>(table != nullptr ? p.page_size : p.capacity);
    if (table != nullptr) {
      s.slots.table = vector<const std::int32_t>(table);
      s.slots.table_sequence = stride(*table, 0);
      s.slots.table_page = stride(*table, 1);
      s.slots.pages = static_cast<std::int32_t>(step.cache->key->shape[0]);
      s.slots.report = report_->get();
    }
  }
  survey(step, s);

  const bool layer = p.level == ATTEST_LEVEL_LAYER, keys = step.key != nullptr;
  Tokens query{}, key{}, value{};
  if (layer) {
    query = project(*q_, *step.query, true, gathered_q_, projected_q_, p.query_heads, p.qk_head_dim, s);
    if (keys) key = project(*k_, *step.key, false, gathered_k_, projected_k_, p.kv_heads, p.qk_head_dim, s);
    if (keys) value = project(*v_, *step.value, false, gathered_v_, projected_v_, p.kv_heads, p.v_head_dim, s);
  } else {
    query = tokens_of(p, *step.query);
    if (keys) key = tokens_of(p, *step.key);
    if (keys) value = tokens_of(p, *step.value);
  }
  IntakeArguments intake{};
  intake.sides[0] = intake_query(query, query, s);
  intake.sides[1] = intake_side(true, step, key, s);
  intake.sides[2] = intake_side(false, step, value, s);
  launch_intake_of(intake, &step, s);

  Tokens output = tokens_of(p, *step.output);
  const std::int64_t channels = p.query_heads * p.v_head_dim;
  const Tokens attended = layer ? compact(p, attended_.get(s.query_tokens * channels * element_bytes(dtype_)), dtype_,
                                          s.query_axis, p.query_heads, p.v_head_dim)
                                : output;
  attend(step, s, query, intake.sides[1].kv, intake.sides[2].kv, attended);
  if (layer) {
    std::byte* const made = projected_out_.get(s.query_tokens * p.d_model * element_bytes(dtype_));
    out_->apply(attended.data, made, s.query_tokens, s.stream);
    // Not straight into the output: of a refused step nothing may arrive there.
    copy(compact(p, made, dtype_, s.query_axis, 1, p.d_model), output, true, p.d_model, s);
  }
  if (p.cache == ATTEST_CACHE_RING && s.key_axis > 0) {
    const StoreArguments store{
        {intake.sides[1].kv, intake.sides[2].kv}, static_cast<std::int32_t>(p.kv_heads), s.slots, s.sequences, s.go};
    launch_store({grid_extent(s.key_axis), 2, static_cast<int>(p.batch)}, store, s.stream);
  }
}

void StepPlan::survey(const attest_step& step, const Step& s) {
  const attest_problem& p = problem_;
  SurveyArguments a{};
  a.batch = static_cast<std::int32_t>(p.batch);
  a.packed = p.packed;
  a.cached = p.cache != ATTEST_CACHE_NONE ? 1 : 0;
  a.ring = p.cache == ATTEST_CACHE_RING ? 1 : 0;
  a.positions = step.positions != nullptr ? 1 : 0;
  // The last tile of keys reaches beyond the last of them, and so do those that are looked up ahead of it; they are
  // counted in an int32 too.
  constexpr std::int64_t tiles_ahead = 5, most_tile_keys = prefill_keys(1, true);
  static_assert(most_tile_keys >= TileSource::most);
  constexpr std::int64_t most = std::numeric_limits<std::int32_t>::max() - tiles_ahead * most_tile_keys;
  a.limit = static_cast<std::int32_t>(a.ring != 0 ? most : std::min(p.capacity, most));
  a.query_axis = static_cast<std::int32_t>(s.query_axis);
  a.key_axis = static_cast<std::int32_t>(s.key_axis);
  a.grid_queries = static_cast<std::int32_t>(s.queries);
  a.grid_keys = static_cast<std::int32_t>(std::min(s.keys, most));
  a.mask_extent = step.mask != nullptr ? step.mask->shape[3] : -1;
  const auto take = [](const DLTensor* tensor, const std::int32_t*& data, std::int64_t& data_stride) {
    data = vector<const std::int32_t>(tensor);
    data_stride = vector_stride(tensor);
  };
  take(step.query_lengths, a.query_lengths, a.query_lengths_stride);
  take(step.key_lengths, a.key_lengths, a.key_lengths_stride);
  take(step.query_start, a.query_start, a.query_start_stride);
  take(step.key_start, a.key_start, a.key_start_stride);
  if (step.cache != nullptr) {
    a.lengths = vector<std::int32_t>(step.cache->lengths);
    a.lengths_stride = vector_stride(step.cache->lengths);
  }
  a.sequences = s.sequences;
  a.go = s.go;
  a.report = report_->get();
  launch_survey(a, s.stream);
}

void StepPlan::launch_intake_of(IntakeArguments& a, const attest_step* step, const Step& s) {
  const attest_problem& p = problem_;
  std::int64_t blocks = 0;
  for (const IntakeSide& side : a.sides) {
    const std::int64_t groups = (side.heads + 3) / 4;
    if (side.active != 0) blocks = std::max(blocks, groups * (side.is_query != 0 ? s.query_axis : s.key_axis));
  }
  if (blocks == 0) return;
  a.rope.pairs = static_cast<std::int32_t>(p.rope.style == ATTEST_ROPE_NONE ? 0 : p.rope.rotary_dim / 2);
  a.rope.interleaved = p.rope.style == ATTEST_ROPE_INTERLEAVED ? 1 : 0;
  a.rope.frequency = frequency_.data();
  a.rope.magnitude = magnitude_;
  if (step != nullptr && step->positions != nullptr) {
    const DLTensor& given = *step->positions;
    a.rope.positions = vector<const std::int32_t>(&given);
    a.rope.position_sequence = p.packed != 0 ? 0 : stride(given, 0);
    a.rope.position_token = stride(given, p.packed != 0 ? 0 : 1);
  }
  a.norm_epsilon = p.norm_epsilon;
  a.slots = s.slots;
  a.sequences = s.sequences;
  a.go = s.go;
  launch_intake({grid_extent(blocks), 3, static_cast<int>(p.batch)}, a, s.stream);
}

void StepPlan::copy(const Tokens& from, const Tokens& to, bool query, std::int64_t width, const Step& s) {
  IntakeArguments a{};
  IntakeSide& side = a.sides[0];
  side.active = 1;
  side.is_query = query ? 1 : 0;
  side.heads = 1;
  side.width = static_cast<std::int32_t>(width);
  side.from = from;
  side.to = to;
  side.kv.cache.storage = to.storage;
  launch_intake_of(a, nullptr, s);
}

Tokens StepPlan::project(Linear& linear, const DLTensor& given, bool query, Scratch& gathered, Scratch& made,
                         std::int64_t heads, std::int64_t width, const Step& s) {
  const attest_problem& p = problem_;
  const std::int64_t axis = query ? s.query_axis : s.key_axis, tokens = query ? s.query_tokens : s.key_tokens;
  const int bytes = element_bytes(dtype_);
  Tokens x = tokens_of(p, given);
  const bool side_by_side = (x.channel == 1 || p.d_model == 1) && (x.token == p.d_model || axis <= 1) &&
                            (p.packed != 0 || p.batch == 1 || x.sequence == axis * p.d_model);
  if (!side_by_side) {
    const Tokens to = compact(p, gathered.get(tokens * p.d_model * bytes), dtype_, axis, 1, p.d_model);
    copy(x, to, query, p.d_model, s);
    x = to;
  }
  const Tokens y = compact(p, made.get(tokens * heads * width * bytes), dtype_, axis, heads, width);
  linear.apply(x.data, y.data, tokens, s.stream);
  return y;
}

IntakeSide StepPlan::intake_query(const Tokens& given, Tokens& query, const Step& s) {
  const attest_problem& p = problem_;
  IntakeSide side{};
  side.is_query = 1;
  if (!turns_query_) return side;
  side.active = 1;
  side.heads = static_cast<std::int32_t>(p.query_heads);
  side.width = static_cast<std::int32_t>(p.qk_head_dim);
  side.turns = 1;
  side.from = given;
  set_norm(side, p.q_norm_weight);
  side.to = compact(p, query_.get(s.query_tokens * p.query_heads * p.qk_head_dim * element_bytes(dtype_)), dtype_,
                    s.query_axis, p.query_heads, p.qk_head_dim);
  query = side.to;
  return side;
}

IntakeSide StepPlan::intake_side(bool key, const attest_step& step, const Tokens& given, const Step& s) {
  const attest_problem& p = problem_;
  const std::int64_t width = key ? p.qk_head_dim : p.v_head_dim;
  IntakeSide side{};
  side.heads = static_cast<std::int32_t>(p.kv_heads);
  side.width = static_cast<std::int32_t>(width);
  side.from = given;
  side.turns = key && turns_key_ ? 1 : 0;
  if (key) set_norm(side, p.k_norm_weight);
  side.to_cache = p.cache == ATTEST_CACHE_CONTIGUOUS || p.cache == ATTEST_CACHE_PAGED ? 1 : 0;

  KvSide& kv = side.kv;
  kv.width = static_cast<std::int32_t>(width);
  kv.cache.storage = cache_dtype_;
  bool vectors = true;
  if (step.cache != nullptr) {
    const DLTensor& cache = key ? *step.cache->key : *step.cache->value;
    const DLTensor* const scale = key ? step.cache->key_scale : step.cache->value_scale;
    CacheTensor& to = kv.cache;
    to = {first_element(cache),
          stride(cache, 0),
          stride(cache, 1),
          stride(cache, 2),
          stride(cache, 3),
          cache_dtype_,
          vector<float>(scale),
          0,
          0,
          0,
          0};
    if (p.kv_scale == ATTEST_KV_SCALE_PER_HEAD) to.scale_head = stride(*scale, 0);
    if (p.kv_scale == ATTEST_KV_SCALE_PER_TOKEN) {
      to.scale_outer = stride(*scale, 0), to.scale_inner = stride(*scale, 1), to.scale_head = stride(*scale, 2);
      to.scale_per_token = 1;
    }
    // Of a cache without pages nothing can be read in place of a wrong page.
    vectors = (s.slots.table == nullptr || s.slots.pages > 0) &&
              in_vectors(to.data, {to.outer, to.inner, to.head}, to.channel, width, cache_dtype_);
  }
  if (step.key != nullptr) {
    side.active = 1;
    if (side.to_cache == 0) {
      kv.fresh = given;
      side.active = side.turns != 0 || cache_dtype_ != dtype_ ? 1 : 0;
      if (side.active != 0) {
        Scratch& memory = key ? key_ : value_;
        kv.fresh = compact(p, memory.get(s.key_tokens * p.kv_heads * width * element_bytes(cache_dtype_)), cache_dtype_,
                           s.key_axis, p.kv_heads, width);
        side.to = kv.fresh;
        if (kv.cache.scale_per_token != 0) {
          kv.fresh_scales = (key ? key_scales_ : value_scales_).get<float>(s.key_tokens * p.kv_heads);
          kv.fresh_scale_sequence = p.packed != 0 ? 0 : s.key_axis * p.kv_heads;
          kv.fresh_scale_token = p.kv_heads;
        }
      }
      vectors = vectors && in_vectors(kv.fresh.data, {kv.fresh.sequence, kv.fresh.token, kv.fresh.head},
                                      kv.fresh.channel, width, cache_dtype_);
    }
  }
  kv.vectors = vectors ? 1 : 0;
  return side;
}

Heads StepPlan::heads() const {
  return {dtype_, cache_dtype_, static_cast<int>(problem_.qk_head_dim), static_cast<int>(problem_.v_head_dim)};
}

void StepPlan::attend(const attest_step& step, const Step& s, const Tokens& query, const KvSide& key,
                      const KvSide& value, const Tokens& output) {
  const attest_problem& p = problem_;
  const std::int64_t group = p.query_heads / p.kv_heads, rows = s.queries * group;
  if (rows == 0) return;
  AttendArguments a{};
  a.query = query;
  a.key = key;
  a.value = value;
  a.slots = s.slots;
  a.visibility = visibility_;
  a.group = static_cast<std::int32_t>(group);
  a.scale = static_cast<float>(p.scale != 0 ? p.scale : 1 / std::sqrt(static_cast<double>(p.qk_head_dim)));
  a.softcap = static_cast<float>(p.softcap);
  a.slopes = p.alibi == ATTEST_ALIBI_SLOPES ? vector<const float>(p.alibi_slopes) : slopes_.data();
  a.slopes_stride = p.alibi == ATTEST_ALIBI_SLOPES ? vector_stride(p.alibi_slopes) : 1;
  if (step.mask != nullptr) {
    a.mask = first_element(*step.mask);
    a.mask_sequence = stride(*step.mask, 0);
    a.mask_head = stride(*step.mask, 1);
    a.mask_query = stride(*step.mask, 2);
    a.mask_key = stride(*step.mask, 3);
    a.mask_boolean = p.mask == ATTEST_MASK_BOOLEAN ? 1 : 0;
    a.mask_storage = dtype_;
  }
  const auto vectors = [&](const Tokens& t, std::int64_t width) {
    return t.storage == dtype_ && in_vectors(t.data, {t.sequence, t.token, t.head}, t.channel, width, dtype_) ? 1 : 0;
  };
  a.query_vectors = vectors(query, p.qk_head_dim);
  a.output_vectors = vectors(output, p.v_head_dim);
  const EngineFacts engine = engine_for(heads(), rows, usual_prefill(a), settings_.machine);
  a.layout = layout_of(engine, heads(), settings_.machine);
  const std::int64_t tiles = (rows + engine.tile_rows - 1) / engine.tile_rows;
  // A window of a tile of queries shows no more than this.
  std::int64_t keys = s.keys;
  const bool from_start = visibility_.left < 0;
  if (!from_start && (p.causal != ATTEST_CAUSAL_NONE || visibility_.right >= 0)) {
    const std::int64_t ahead = p.causal != ATTEST_CAUSAL_NONE ? 0 : visibility_.right;
    keys = std::min(keys, visibility_.left + ahead + 1 + engine.tile_rows / group + 1);
  }
  const Splits splits =
      splits_for({.blocks = tiles * p.kv_heads * p.batch,
                  .one_tile = tiles == 1,
                  .even = p.batch == 1,
                  .keys = keys,
                  .from_start = from_start,
                  .tile_keys = a.layout.keys},
                 resident_blocks(engine, a.layout, settings_.machine), settings_.split_keys, settings_.machine);
  a.splits = splits.count;
  a.split_keys = splits.keys;
  Results& r = a.results;
  r.output = output;
  if (step.lse != nullptr) {
    const int head = p.packed != 0 ? 0 : 1;
    r.lse = vector<float>(step.lse);
    r.lse_sequence = p.packed != 0 ? 0 : stride(*step.lse, 0);
    r.lse_head = stride(*step.lse, head);
    r.lse_token = stride(*step.lse, head + 1);
  }
  r.sinks = vector<const float>(p.sinks);
  r.sinks_stride = vector_stride(p.sinks);
  r.kv_heads = static_cast<std::int32_t>(p.kv_heads);
  r.rows = static_cast<std::int32_t>(rows);
  r.splits = splits.count;
  r.width = static_cast<std::int32_t>(p.v_head_dim);
  a.sequences = s.sequences;
  a.go = s.go;
  if (splits.count > 1) {
    const std::int64_t parts = p.batch * p.kv_heads * rows * splits.count;
    r.sums = sums_.get<float>(parts * r.width);
    r.weights = weights_.get<float>(parts * 2);
  }
  const int heads = static_cast<int>(p.kv_heads), batch = static_cast<int>(p.batch);
  const Grid grid{static_cast<int>(tiles) * splits.count, heads, batch};
  if (dtype_ == Storage::f32) launch_attend_f32(grid, a, s.stream);
  if (dtype_ == Storage::f16) launch_attend_f16(engine.tile_rows, grid, a, s.stream);
  if (dtype_ == Storage::bf16) launch_attend_bf16(engine.tile_rows, grid, a, s.stream);
  if (splits.count > 1) {
    const CombineArguments combine{r, visibility_, a.group, a.split_keys, engine.tile_rows, s.sequences, s.go};
    launch_combine({static_cast<int>(rows), heads, batch}, combine, s.stream);
  }
}

}  // namespace attest::cuda
