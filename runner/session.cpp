// SPDX-License-Identifier: Apache-2.0
#include "runner/session.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <limits>
#include <numeric>

#include "cases/pages.h"
#include "cases/storage.h"

namespace attest {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kFloatInfinity = std::numeric_limits<float>::infinity();

/// What fills memory that must not matter, as a number of the dtype. fp8, in which a number beyond the range is the
/// largest one, has NaN for infinity; int8 has neither.
float poison_value(Poison poison, DType dtype) {
  const auto largest = static_cast<float>(info(dtype).largest);
  switch (poison) {
    case Poison::nan:
      return dtype == DType::i8 ? largest : kNan;
    case Poison::huge:
      return dtype == DType::f32 ? 3e38F : largest;
    case Poison::inf:
      return dtype == DType::i8 ? -128.0F : is_code(dtype) ? kNan : kFloatInfinity;
    case Poison::zero:
      return 0.0F;
  }
  return 0.0F;
}

/// An integer that is no index of anything, or 0.
int32_t poison_index(Poison poison, size_t place, int64_t count) {
  const std::array<int32_t, 5> garbage{-1, std::numeric_limits<int32_t>::max(), static_cast<int32_t>(count),
                                       std::numeric_limits<int32_t>::min(), -12345};
  return poison == Poison::zero ? 0 : garbage[place % garbage.size()];
}

/// A dtype of no larger elements that differs in what the backend sees: fp8 travels as u8.
DType other_dtype(DType dtype) {
  switch (dtype) {
    case DType::bf16:
    case DType::f32:
    case DType::f64:
      return DType::f16;
    case DType::f16:
      return DType::bf16;
    case DType::i8:
    case DType::i32:
      return DType::u8;
    default:
      return DType::i8;
  }
}

/// Bends the tensor that a step hands over, so that it must be refused. Extents only shrink where they can, so that a
/// backend that does not look reads what is there; one that grows has all its elements in one place.
void malform(protocol::Tensors& tensors, const Malformed& malformed, const Case& c, int64_t queries) {
  const auto found = tensors.find(malformed.argument);
  if (found == tensors.end()) throw Error::at(c.id, "malform: the step has no {}", malformed.argument);
  protocol::Tensor& tensor = found->second;
  const bool mask = malformed.argument == "mask";
  const bool packed_tokens = c.problem.packed && !malformed.argument.starts_with("cache.");
  const auto bend = [&](size_t axis) {
    if (axis >= tensor.shape.size()) {
      throw Error::at(c.id, "malform: {} has no axis of {}", malformed.argument, malformed.change);
    }
    const int64_t from = tensor.shape[axis];
    int64_t to = from > 1 ? from - 1 : from + 1;
    // Three axes of a mask may be 1 and serve all.
    const std::array<int64_t, 3> whole{c.problem.batch, c.problem.query_heads, queries};
    if (mask && axis < 3 && (to == 1 || to == whole[axis])) to = whole[axis] + 1;
    tensor.shape[axis] = to;
    if (to > from) tensor.strides[axis] = 0;
  };
  if (malformed.change == "dtype") {
    tensor.dtype = other_dtype(tensor.dtype);
  } else if (malformed.change == "rank") {
    tensor.shape.pop_back();
    tensor.strides.pop_back();
  } else if (malformed.change == "batch") {
    if (packed_tokens) throw Error::at(c.id, "malform: {} has no axis of batch", malformed.argument);
    bend(0);
  } else if (malformed.change == "heads") {
    bend(mask || packed_tokens ? 1 : 2);
  } else {
    bend(tensor.shape.size() - 1);
  }
}

/// Calls `use(sequence, index, number)` for every token, the numbers counting all tokens through.
template <typename Use>
void for_each_token(const std::vector<int64_t>& counts, const Use& use) {
  int64_t number = 0;
  for (size_t b = 0; b < counts.size(); ++b) {
    for (int64_t i = 0; i < counts[b]; ++i) use(static_cast<int64_t>(b), i, number++);
  }
}

int64_t sum(const std::vector<int64_t>& counts) {
  return std::accumulate(counts.begin(), counts.end(), int64_t{0});
}

/// The packed form of a tensor [B, S, ...]: [tokens, ...].
std::vector<float> packed(const Dense<float>& tensor, const std::vector<int64_t>& counts, int64_t width) {
  std::vector<float> data(static_cast<size_t>(sum(counts) * width));
  for_each_token(counts, [&](int64_t b, int64_t i, int64_t number) {
    std::copy_n(tensor.data.begin() + (b * tensor.shape[1] + i) * width, width, data.begin() + number * width);
  });
  return data;
}

std::vector<int32_t> starts_of(const std::vector<int64_t>& counts) {
  std::vector<int32_t> starts{0};
  for (const int64_t count : counts) starts.push_back(starts.back() + static_cast<int32_t>(count));
  return starts;
}

bool is_ragged(const std::vector<int64_t>& counts, int64_t most) {
  return std::any_of(counts.begin(), counts.end(), [&](int64_t n) { return n != most; });
}

}  // namespace

Session::Session(const Case& c, const Timeline& timeline, const Inputs& inputs)
    : c_(c), timeline_(timeline), inputs_(inputs), placement_(c.id, arena_) {
  for (const auto& [name, tensor] : named(inputs.weights)) {
    if (tensor->data.empty()) continue;
    const DType dtype = is_always_f32(name) ? DType::f32 : c.problem.dtype;
    weights_.emplace_back(&placement_.add(name, dtype, tensor->shape), tensor);
  }
  if (c.problem.cache != CacheKind::none) place_cache();
  for (size_t s = 0; s < timeline.size(); ++s) {
    steps_.emplace_back();
    if (timeline[s].step.kind == StepKind::attend) place_step(s);
  }
  arena_.commit();
  for (const auto& [block, tensor] : weights_) arena_.put(*block, tensor->data);
  for (const auto& [block, tensor] : weights_) weight_images_.push_back(arena_.snapshot(*block));
  if (c.problem.cache != CacheKind::none) fill_cache();
}

void Session::place_cache() {
  const Problem& p = c_.problem;
  const bool paged = p.cache == CacheKind::paged;
  const int64_t outer = paged ? page_count(p) : p.batch;
  const int64_t inner = paged ? p.page_size : p.capacity;
  const auto add = [&](const char* name, int64_t channels) {
    const Block& block =
        placement_.add(name, p.cache_dtype, {outer, inner, p.kv_heads, channels}, "bshd", c_.layouts.cache);
    cache_.push_back({name, &block, Elements::may_change});
  };
  add("cache.key", p.qk_head_dim);
  add("cache.value", p.v_head_dim);
  cache_.push_back({"cache.lengths", &placement_.add("cache.lengths", DType::i32, {p.batch}), Elements::may_change});
  if (paged) {
    const int64_t pages = (p.capacity + p.page_size - 1) / p.page_size;
    cache_.push_back(
        {"cache.block_table", &placement_.add("cache.block_table", DType::i32, {p.batch, pages}), Elements::must_stay});
  }
  const auto add_scale = [&](const char* name, const Dense<float>& given) {
    const bool token = p.kv_scale == KvScale::token;
    const std::vector<int64_t> shape = token ? std::vector<int64_t>{outer, inner, p.kv_heads} : given.shape;
    cache_.push_back(
        {name, &placement_.add(name, DType::f32, shape), token ? Elements::may_change : Elements::must_stay});
  };
  if (p.quantised()) {
    add_scale("cache.key_scale", inputs_.key_scale);
    add_scale("cache.value_scale", inputs_.value_scale);
  }
}

void Session::place_step(size_t s) {
  const Problem& p = c_.problem;
  const Moment& moment = timeline_[s];
  const StepInputs& in = inputs_.steps[s];
  const bool layer = p.level == Level::layer;
  Arguments& list = steps_[s];
  const auto add = [&](const char* name, const Block& block, Elements elements = Elements::must_stay) {
    list.push_back({name, &block, elements});
  };
  const auto add_tokens = [&](const char* name, std::vector<int64_t> shape, const std::vector<int64_t>& counts,
                              const Layout& layout, Elements elements = Elements::must_stay) {
    std::string_view letters = layer ? "bsd" : "bshd";
    if (p.packed) {
      letters.remove_prefix(1);
      shape.erase(shape.begin());
      shape[0] = sum(counts);
    }
    add(name, placement_.add(name, p.dtype, shape, letters, layout), elements);
  };
  add_tokens("query", in.query.shape, moment.step.queries, c_.layouts.query);
  if (moment.max_keys > 0) {
    if (layer && c_.inputs.self) {  // one tensor for all three, as self-attention calls a layer
      const Block& query = *list.front().block;
      add("key", query);
      add("value", query);
    } else {
      add_tokens("key", in.key.shape, moment.step.keys, c_.layouts.key);
      add_tokens("value", in.value.shape, moment.step.keys, c_.layouts.value);
    }
  }
  if (p.packed) {
    add("query_start", placement_.add("query_start", DType::i32, {p.batch + 1}));
    if (moment.max_keys > 0) add("key_start", placement_.add("key_start", DType::i32, {p.batch + 1}));
  } else {
    if (is_ragged(moment.step.queries, moment.max_queries)) {
      add("query_lengths", placement_.add("query_lengths", DType::i32, {p.batch}));
    }
    if (is_ragged(moment.step.keys, moment.max_keys)) {
      add("key_lengths", placement_.add("key_lengths", DType::i32, {p.batch}));
    }
  }
  if (!moment.step.positions.empty()) {
    const std::vector<int64_t> shape =
        p.packed ? std::vector<int64_t>{sum(moment.step.queries)} : std::vector<int64_t>{p.batch, moment.max_queries};
    add("positions", placement_.add("positions", DType::i32, shape));
  }
  if (p.mask != MaskKind::none) {
    add("mask", placement_.add("mask", p.mask == MaskKind::boolean ? DType::u8 : p.dtype, in.mask.shape));
  }
  const int64_t queries = moment.max_queries;
  add_tokens("output",
             layer ? std::vector<int64_t>{p.batch, queries, p.d_model}
                   : std::vector<int64_t>{p.batch, queries, p.query_heads, p.v_head_dim},
             moment.step.queries, c_.layouts.output, Elements::may_change);
  if (p.lse) {
    const std::vector<int64_t> shape = p.packed ? std::vector<int64_t>{p.query_heads, sum(moment.step.queries)}
                                                : std::vector<int64_t>{p.batch, p.query_heads, queries};
    add("lse", placement_.add("lse", DType::f32, shape), Elements::may_change);
  }
}

void Session::fill_cache() {
  for (const auto& [name, block, elements] : cache_) {
    if (block->dtype == DType::i32) continue;  // lengths and table are every step's
    if (elements == Elements::may_change) {
      arena_.put_everywhere(*block, poison_value(c_.inputs.poison, block->dtype));
    } else {
      arena_.put(*block, name == "cache.key_scale" ? inputs_.key_scale.data : inputs_.value_scale.data);
    }
  }
  image_ = read_cache();
}

const Block* Session::find(size_t s, std::string_view name) const {
  for (const Arguments* list : {&steps_[s], &cache_}) {
    for (const Argument& argument : *list) {
      if (argument.name == name) return argument.block;
    }
  }
  return nullptr;
}

protocol::Tensors Session::problem_tensors() const {
  protocol::Tensors tensors;
  for (const auto& [block, tensor] : weights_) tensors.emplace(block->name, placement_.tensor_of(*block));
  return tensors;
}

RunRequest Session::begin(size_t s) {
  const Moment& moment = timeline_[s];
  const Step& step = moment.step;
  const StepInputs& in = inputs_.steps[s];
  // Pages that several sequences share are copied before one of them writes there, as an engine's allocator does.
  for (const auto& pages : moment.pages.copies) {
    const int64_t size = c_.problem.page_size;
    move_slots([&](const auto& copy) { copy(pages.first * size, pages.second * size, size); });
  }
  const auto counts = [](const std::vector<int64_t>& values) {
    return std::vector<int32_t>(values.begin(), values.end());
  };
  for (const auto& [name, block, elements] : steps_[s]) {
    if (name == "query") fill_tokens(*block, in.query, step.queries);
    const bool own = block != steps_[s].front().block;  // not the query's
    if (name == "key" && own) fill_tokens(*block, in.key, step.keys);
    if (name == "value" && own) fill_tokens(*block, in.value, step.keys);
    if (name == "query_start") arena_.scatter(*block, starts_of(step.queries));
    if (name == "key_start") arena_.scatter(*block, starts_of(step.keys));
    if (name == "query_lengths") arena_.scatter(*block, counts(step.queries));
    if (name == "key_lengths") arena_.scatter(*block, counts(step.keys));
    if (name == "positions") fill_positions(*block, moment);
    if (name == "mask") fill_mask(*block, moment, in.mask);
    if (elements == Elements::may_change) arena_.blank(*block);
  }
  if (c_.problem.cache != CacheKind::none) {
    arena_.scatter(*find(s, "cache.lengths"), counts(moment.before));
    image_.lengths = counts(moment.before);
    if (c_.problem.cache == CacheKind::paged) fill_table(moment);
  }

  RunRequest request;
  for (const Arguments* list : {&steps_[s], &cache_}) {
    for (const Argument& argument : *list) {
      request.tensors.emplace(argument.name, placement_.tensor_of(*argument.block));
    }
  }
  if (step.malformed) malform(request.tensors, *step.malformed, c_, moment.max_queries);
  request.max_query_length = moment.max_queries;
  for (size_t b = 0; b < moment.before.size(); ++b) {
    request.max_total_length = std::max(request.max_total_length, moment.before[b] + step.keys[b]);
  }
  // Device copies go both ways whole, so that what a backend did to its inputs and around its outputs is seen too.
  for (const auto& [argument, tensor] : request.tensors) request.upload.push_back(argument);
  request.download = request.upload;

  snapshots_.clear();
  for (const auto& [block, elements] : watched(s)) snapshots_.push_back(arena_.snapshot(*block));
  return request;
}

void Session::fill_tokens(const Block& block, Dense<float> tensor, const std::vector<int64_t>& used) {
  const int64_t tokens = tensor.shape[1];
  const auto width = static_cast<int64_t>(tensor.data.size()) / std::max<int64_t>(1, tensor.shape[0] * tokens);
  if (c_.problem.packed) return arena_.put(block, packed(tensor, used, width));
  for (size_t b = 0; b < used.size(); ++b) {
    const auto begin = tensor.data.begin() + (static_cast<int64_t>(b) * tokens + used[b]) * width;
    std::fill(begin, begin + (tokens - used[b]) * width, poison_value(c_.inputs.poison, block.dtype));
  }
  arena_.put(block, tensor.data);
}

/// Columns beyond a sequence's keys and rows beyond its queries are nobody's. Where they are boolean they attend.
void Session::fill_mask(const Block& block, const Moment& moment, Dense<float> mask) {
  const Problem& p = c_.problem;
  const float poison = p.mask == MaskKind::boolean ? 1.0F : poison_value(c_.inputs.poison, block.dtype);
  auto element = mask.data.begin();
  for (int64_t b = 0; b < mask.shape[0]; ++b) {
    const auto sequence = static_cast<size_t>(b);
    const bool shared = mask.shape[0] != p.batch;
    const int64_t total = shared ? mask.shape[3] : moment.before[sequence] + moment.step.keys[sequence];
    const int64_t queries =
        shared || mask.shape[2] != moment.max_queries ? mask.shape[2] : moment.step.queries[sequence];
    for (int64_t h = 0; h < mask.shape[1]; ++h) {
      for (int64_t i = 0; i < mask.shape[2]; ++i) {
        for (int64_t j = 0; j < mask.shape[3]; ++j, ++element) {
          if (i >= queries || j >= total) *element = poison;
        }
      }
    }
  }
  arena_.put(block, mask.data);
}

void Session::fill_positions(const Block& block, const Moment& moment) {
  const Step& step = moment.step;
  std::vector<int32_t> values(static_cast<size_t>(block.elements()));
  for (size_t i = 0; i < values.size(); ++i) values[i] = poison_index(c_.inputs.poison, i, 0);
  for_each_token(step.queries, [&](int64_t b, int64_t i, int64_t number) {
    const int64_t at = c_.problem.packed ? number : b * moment.max_queries + i;
    values[static_cast<size_t>(at)] = static_cast<int32_t>(step.positions[static_cast<size_t>(b)] + i);
  });
  arena_.scatter(block, values);
}

void Session::fill_table(const Moment& moment) {
  const Block& block = *find(0, "cache.block_table");
  std::vector<int32_t> values(static_cast<size_t>(block.elements()));
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = poison_index(c_.inputs.poison, i, page_count(c_.problem));
  }
  for (size_t b = 0; b < moment.pages.table.size(); ++b) {
    const auto row = values.begin() + static_cast<int64_t>(b) * block.shape[1];
    std::transform(moment.pages.table[b].begin(), moment.pages.table[b].end(), row,
                   [](int64_t page) { return static_cast<int32_t>(page); });
  }
  arena_.scatter(block, values);
}

void Session::apply(size_t s) {
  const Moment& moment = timeline_[s];
  const Step& step = moment.step;
  if (c_.problem.cache == CacheKind::none) return;
  const int64_t capacity = c_.problem.capacity;
  // Pages move in the table alone.
  if (c_.problem.cache != CacheKind::paged && step.kind == StepKind::fork) {
    move_slots([&](const auto& copy) { copy(step.from * capacity, step.to * capacity, capacity); });
  }
  if (c_.problem.cache != CacheKind::paged && step.kind == StepKind::reorder) {
    move_slots([&](const auto& copy) {
      for (size_t b = 0; b < step.sequences.size(); ++b) {
        copy(step.sequences[b] * capacity, static_cast<int64_t>(b) * capacity, capacity);
      }
    });
  }
  if (step.kind == StepKind::load) load(s);
  image_.lengths.assign(moment.after.begin(), moment.after.end());
}

void Session::load(size_t s) {
  const Moment& moment = timeline_[s];
  for (const auto& [name, block, elements] : cache_) {
    if (name != "cache.key" && name != "cache.value") continue;
    const Dense<float>& from = name == "cache.key" ? inputs_.steps[s].key : inputs_.steps[s].value;
    const std::vector<uint8_t> bytes = encode_all(block->dtype, from.data);
    std::vector<std::byte> slots = arena_.stored(*block);
    const auto slot = static_cast<int64_t>(slots.size()) / (block->shape[0] * block->shape[1]);
    for (const auto& sequence : moment.incoming) {
      for (const Token& token : sequence) {
        const int64_t at = (token.origin * moment.max_keys + token.index) * slot;
        const int64_t to = slot_of(c_.problem, moment, token.origin, token.position) * slot;
        std::memcpy(&slots[static_cast<size_t>(to)], &bytes[static_cast<size_t>(at)], static_cast<size_t>(slot));
      }
    }
    arena_.store(*block, slots);
  }
  image_ = read_cache();
}

template <typename Move>
void Session::move_slots(const Move& move) {
  for (const auto& [name, block, elements] : cache_) {
    if (elements != Elements::may_change || block->dtype == DType::i32) continue;
    const std::vector<std::byte> old = arena_.stored(*block);
    std::vector<std::byte> now = old;
    const int64_t slots = block->shape[0] * block->shape[1];
    const auto slot = static_cast<int64_t>(old.size()) / slots;
    move([&](int64_t from, int64_t to, int64_t count) {
      std::copy_n(old.begin() + from * slot, count * slot, now.begin() + to * slot);
    });
    arena_.store(*block, now);
  }
  const std::vector<int32_t> lengths = image_.lengths;
  image_ = read_cache();
  image_.lengths = lengths;
}

CacheImage Session::read_cache() const {
  CacheImage image;
  const auto read = [&](std::string_view name, Dense<float>& tensor) {
    for (const Argument& argument : cache_) {
      if (argument.name != name || argument.elements != Elements::may_change) continue;
      tensor = {argument.block->shape, arena_.values(*argument.block)};
    }
  };
  read("cache.key", image.key);
  read("cache.value", image.value);
  read("cache.key_scale", image.key_scale);
  read("cache.value_scale", image.value_scale);
  for (const Argument& argument : cache_) {
    if (argument.name == "cache.lengths") image.lengths = arena_.gather<int32_t>(*argument.block);
  }
  return image;
}

Dense<float> Session::read_rows(size_t s, const Block& block, bool lse) const {
  std::vector<float> values = arena_.values(block);
  if (!c_.problem.packed) return {block.shape, std::move(values)};
  const Moment& moment = timeline_[s];
  const int64_t batch = c_.problem.batch, queries = moment.max_queries, heads = c_.problem.query_heads;
  Dense<float> rows;
  if (lse) {
    rows.shape = {batch, heads, queries};
  } else {
    rows.shape = {batch, queries};
    rows.shape.insert(rows.shape.end(), block.shape.begin() + 1, block.shape.end());
  }
  const int64_t width = lse ? 1 : block.elements() / block.shape[0];
  rows.data.assign(static_cast<size_t>(batch * queries * (lse ? heads : width)), std::bit_cast<float>(kUnwritten));
  for_each_token(moment.step.queries, [&](int64_t b, int64_t i, int64_t number) {
    for (int64_t h = 0; lse && h < heads; ++h) {
      rows.data[static_cast<size_t>((b * heads + h) * queries + i)] =
          values[static_cast<size_t>(h * block.shape[1] + number)];
    }
    if (!lse) {
      std::copy_n(values.begin() + number * width, width, rows.data.begin() + (b * queries + i) * width);
    }
  });
  return rows;
}

std::vector<std::pair<const Block*, Elements>> Session::watched(size_t s) const {
  std::vector<std::pair<const Block*, Elements>> list;
  for (const Arguments* arguments : {&steps_[s], &cache_}) {
    for (const Argument& argument : *arguments) {
      const bool listed =
          std::any_of(list.begin(), list.end(), [&](const auto& one) { return one.first == argument.block; });
      if (!listed) list.emplace_back(argument.block, argument.elements);
    }
  }
  return list;
}

StepOutcome Session::end(size_t s, const Reply& reply) {
  StepOutcome outcome;
  outcome.status = reply.status;
  outcome.message = reply.message;
  outcome.output = read_rows(s, *find(s, "output"), false);
  if (const Block* lse = find(s, "lse")) outcome.lse = read_rows(s, *lse, true);
  const auto list = watched(s);
  for (size_t i = 0; i < list.size(); ++i) note_foreign(outcome, *list[i].first, snapshots_[i], list[i].second);
  for (size_t i = 0; i < weights_.size(); ++i) {
    note_foreign(outcome, *weights_[i].first, weight_images_[i], Elements::must_stay);
  }
  if (!cache_.empty()) {
    outcome.before = std::move(image_);
    image_ = read_cache();
    outcome.after = image_;
  }
  return outcome;
}

void Session::note_foreign(StepOutcome& outcome, const Block& block, const std::vector<std::byte>& before,
                           Elements elements) const {
  if (auto place = arena_.intact(block, before, elements)) {
    const bool input = elements == Elements::must_stay;
    outcome.foreign.push_back({block.name, fmt::format("{} has changed; a step may not write there", *place), input});
  }
}

}  // namespace attest
