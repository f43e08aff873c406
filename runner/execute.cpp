// SPDX-License-Identifier: Apache-2.0
#include "runner/execute.h"

#include <algorithm>
#include <bit>
#include <limits>

#include "cases/inputs.h"
#include "cases/timeline.h"
#include "runner/judge.h"

namespace attest {
namespace {

using Clock = std::chrono::steady_clock;

/// Adds the time from its making to its end to a phase.
class Stopwatch {
 public:
  explicit Stopwatch(double& seconds) : seconds_(seconds), start_(Clock::now()) {}
  ~Stopwatch() { seconds_ += std::chrono::duration<double>(Clock::now() - start_).count(); }
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;

 private:
  double& seconds_;
  Clock::time_point start_;
};

float poison_value(Poison poison) {
  switch (poison) {
    case Poison::nan:
      return std::numeric_limits<float>::quiet_NaN();
    case Poison::huge:
      return 3e38F;
    case Poison::inf:
      return std::numeric_limits<float>::infinity();
    case Poison::zero:
      return 0.0F;
  }
  return 0.0F;
}

/// Bends the tensor that a step hands over, so that it must be refused. Extents only shrink where they can, so that a
/// backend that does not look reads what is there.
void malform(protocol::Tensors& tensors, const Malformed& malformed) {
  const auto found = tensors.find(malformed.argument);
  if (found == tensors.end()) throw Error("malform: the step has no " + malformed.argument);
  protocol::Tensor& tensor = found->second;
  const auto bend = [&](size_t axis) {
    if (axis >= tensor.shape.size()) return;
    if (tensor.shape[axis] == 1) tensor.strides[axis] = 1;
    tensor.shape[axis] += tensor.shape[axis] > 1 ? -1 : 1;
  };
  if (malformed.change == "dtype") {
    tensor.dtype = tensor.dtype == DType::f32 ? DType::f16 : DType::u8;
  } else if (malformed.change == "rank") {
    tensor.shape.pop_back();
    tensor.strides.pop_back();
  } else if (malformed.change == "batch") {
    bend(0);
  } else if (malformed.change == "heads") {
    bend(2);
  } else {
    bend(tensor.shape.size() - 1);
  }
}

/// How tensors lie in memory where the case leaves it open. T1 holds for all tensors of all cases, so a part of them is
/// offset, padded and transposed everywhere; the others stay plain, as most callers hand them over and as fast paths
/// want them. The choice hashes the case's id, the tensor's name and its place: it never changes from run to run, and
/// a backend can do no step without meeting it.
class Placement {
 public:
  /// A stride that nobody may use.
  static constexpr int64_t absurd = 1'000'003;

  Placement(const Case& c, Arena& arena) : id_(c.id), arena_(arena) {}

  /// A block with these strides, but for those on axes of extent 1: every second block has absurd ones there.
  const Block& add(std::string name, DType dtype, std::vector<int64_t> shape, std::vector<int64_t> strides) {
    const uint32_t bits = hash(name, arena_.bytes());
    for (size_t axis = 0; axis < shape.size(); ++axis) {
      if (shape[axis] == 1 && (bits & kAbsurd) != 0) strides[axis] = absurd;
    }
    return arena_.add(std::move(name), dtype, std::move(shape), std::move(strides));
  }

  /// A block in an order of our own: plain, padded, in reverse order, or both. A vector has a stride of 1 or 2.
  const Block& add(std::string name, DType dtype, const std::vector<int64_t>& shape) {
    const uint32_t bits = hash(name, arena_.bytes());
    std::string letters;
    for (size_t axis = 0; axis < shape.size(); ++axis) letters += static_cast<char>('a' + axis);
    Layout layout{letters, (bits & kPad) != 0 ? 3 : 0};
    if ((bits & kReverse) != 0) std::reverse(layout.order.begin(), layout.order.end());
    std::vector<int64_t> strides = strides_for(shape, letters, layout);
    if (shape.size() == 1 && (bits & kPad) != 0) strides[0] = 2;
    return add(std::move(name), dtype, shape, std::move(strides));
  }

  /// The block as a backend sees it: `data` of every second one points before element 0, into the guard.
  [[nodiscard]] protocol::Tensor tensor_of(const Block& block) const {
    protocol::Tensor tensor = protocol::tensor_of(block);
    if ((hash(block.name, block.begin) & kOffset) != 0) tensor.byte_offset = kBlockAlignment;
    return tensor;
  }

 private:
  enum Bit : uint32_t { kOffset = 1, kAbsurd = 2, kPad = 4, kReverse = 8 };

  /// FNV-1a over the names. Its high bits: the lowest one is only a parity.
  [[nodiscard]] uint32_t hash(std::string_view name, int64_t place) const {
    uint64_t h = 0xcbf29ce484222325U;
    for (const char letter : fmt::format("{} {} {}", id_, name, place)) {
      h = (h ^ static_cast<unsigned char>(letter)) * 0x100000001b3U;
    }
    return static_cast<uint32_t>(h >> 37);
  }

  std::string id_;
  Arena& arena_;
};

}  // namespace

/// The memory of one case and its way through the steps.
struct Executor::Session {
  Session(const Case& c_, const Timeline& timeline_, const Inputs& inputs_)
      : c(c_), timeline(timeline_), inputs(inputs_), placement(c_, arena) {
    lay_out();
    arena.commit();
    fill_weights();
    if (c.problem.cache != CacheKind::none) {
      const float poison = poison_value(c.inputs.poison);
      arena.fill(*cache_key, poison);
      arena.fill(*cache_value, poison);
      arena.fill(*cache_lengths, int32_t{0});
      image = read_cache();
    }
  }

  struct StepBlocks {
    const Block *query = nullptr, *key = nullptr, *value = nullptr, *query_lengths = nullptr, *key_lengths = nullptr,
                *output = nullptr, *lse = nullptr;
  };

  void lay_out() {
    const Problem& p = c.problem;
    const bool layer = p.level == Level::layer;
    for (const auto& [name, tensor] : named(inputs.weights)) {
      if (!tensor->data.empty()) weights.emplace_back(&placement.add(name, p.dtype, tensor->shape), tensor);
    }
    if (p.cache != CacheKind::none) {
      const auto cache = [&](const char* name, int64_t channels) {
        const std::vector<int64_t> shape{p.batch, p.capacity, p.kv_heads, channels};
        return &placement.add(name, p.dtype, shape, strides_for(shape, "bshd", c.layouts.cache));
      };
      cache_key = cache("cache.key", p.qk_head_dim);
      cache_value = cache("cache.value", p.v_head_dim);
      cache_lengths = &placement.add("cache.lengths", DType::i32, {p.batch});
    }
    const std::string_view letters = layer ? "bsd" : "bshd";
    for (size_t s = 0; s < timeline.size(); ++s) {
      const Moment& moment = timeline[s];
      StepBlocks blocks;
      if (moment.step.kind == StepKind::attend) {
        const auto add = [&](const char* name, const std::vector<int64_t>& shape, const Layout& layout) {
          return &placement.add(name, p.dtype, shape, strides_for(shape, letters, layout));
        };
        const StepInputs& in = inputs.steps[s];
        blocks.query = add("query", in.query.shape, c.layouts.query);
        if (moment.max_keys > 0) {
          const bool aliased = layer && c.inputs.self;  // one tensor for all three, as self-attention calls a layer
          blocks.key = aliased ? blocks.query : add("key", in.key.shape, c.layouts.key);
          blocks.value = aliased ? blocks.query : add("value", in.value.shape, c.layouts.value);
        }
        const auto ragged = [](const std::vector<int64_t>& counts, int64_t most) {
          return std::any_of(counts.begin(), counts.end(), [&](int64_t n) { return n != most; });
        };
        if (ragged(moment.step.queries, moment.max_queries))
          blocks.query_lengths = &placement.add("query_lengths", DType::i32, {p.batch});
        if (ragged(moment.step.keys, moment.max_keys))
          blocks.key_lengths = &placement.add("key_lengths", DType::i32, {p.batch});
        blocks.output = add("output",
                            layer ? std::vector<int64_t>{p.batch, moment.max_queries, p.d_model}
                                  : std::vector<int64_t>{p.batch, moment.max_queries, p.query_heads, p.v_head_dim},
                            c.layouts.output);
        if (p.lse) blocks.lse = &placement.add("lse", DType::f32, {p.batch, p.query_heads, moment.max_queries});
      }
      steps.push_back(blocks);
    }
  }

  void fill_weights() {
    for (const auto& [block, tensor] : weights) arena.scatter(*block, tensor->data);
    for (const auto& [block, tensor] : weights) weight_images.push_back(arena.snapshot(*block));
  }

  /// Inputs with their padding poisoned; outputs hold the sentinel already.
  void fill(size_t s) {
    const Moment& moment = timeline[s];
    const StepBlocks& blocks = steps[s];
    const auto write = [&](const Block* block, Dense<float> tensor, const std::vector<int64_t>& used) {
      if (block == nullptr) return;
      const int64_t tokens = tensor.shape[1];
      const auto width = static_cast<int64_t>(tensor.data.size()) / std::max<int64_t>(1, tensor.shape[0] * tokens);
      for (size_t b = 0; b < used.size(); ++b) {
        const auto begin = tensor.data.begin() + (static_cast<int64_t>(b) * tokens + used[b]) * width;
        std::fill(begin, begin + (tokens - used[b]) * width, poison_value(c.inputs.poison));
      }
      arena.scatter(*block, tensor.data);
    };
    const auto write_lengths = [&](const Block* block, const std::vector<int64_t>& lengths) {
      if (block != nullptr) arena.scatter(*block, std::vector<int32_t>(lengths.begin(), lengths.end()));
    };
    const StepInputs& in = inputs.steps[s];
    write(blocks.query, in.query, moment.step.queries);
    if (blocks.key != blocks.query) {
      write(blocks.key, in.key, moment.step.keys);
      write(blocks.value, in.value, moment.step.keys);
    }
    write_lengths(blocks.query_lengths, moment.step.queries);
    write_lengths(blocks.key_lengths, moment.step.keys);
    if (c.problem.cache != CacheKind::none) {
      write_lengths(cache_lengths, moment.before);
      image.lengths.assign(moment.before.begin(), moment.before.end());
    }
  }

  [[nodiscard]] RunRequest request(size_t s) const {
    const StepBlocks& blocks = steps[s];
    RunRequest request;
    const auto name = [&](const char* argument, const Block* block) {
      if (block != nullptr) request.tensors.emplace(argument, placement.tensor_of(*block));
    };
    name("query", blocks.query);
    name("key", blocks.key);
    name("value", blocks.value);
    name("query_lengths", blocks.query_lengths);
    name("key_lengths", blocks.key_lengths);
    name("output", blocks.output);
    name("lse", blocks.lse);
    name("cache.key", cache_key);
    name("cache.value", cache_value);
    name("cache.lengths", cache_lengths);
    if (timeline[s].step.malformed) malform(request.tensors, *timeline[s].step.malformed);
    request.max_query_length = timeline[s].max_queries;
    for (size_t b = 0; b < timeline[s].before.size(); ++b) {
      request.max_total_length = std::max(request.max_total_length, timeline[s].before[b] + timeline[s].step.keys[b]);
    }
    // Device copies go both ways whole, so that what a backend did to its inputs and around its outputs is seen too.
    for (const auto& [argument, tensor] : request.tensors) request.upload.push_back(argument);
    request.download = request.upload;
    return request;
  }

  /// Blocks of a step and whether their elements may change.
  [[nodiscard]] std::vector<std::pair<const Block*, Elements>> watched(size_t s) const {
    const StepBlocks& blocks = steps[s];
    std::vector<std::pair<const Block*, Elements>> list;
    for (const Block* input : {blocks.query, blocks.key, blocks.value, blocks.query_lengths, blocks.key_lengths}) {
      const bool listed = std::any_of(list.begin(), list.end(), [&](const auto& one) { return one.first == input; });
      if (input != nullptr && !listed) list.emplace_back(input, Elements::must_stay);
    }
    for (const Block* output : {blocks.output, blocks.lse, cache_key, cache_value, cache_lengths}) {
      if (output != nullptr) list.emplace_back(output, Elements::may_change);
    }
    return list;
  }

  [[nodiscard]] CacheImage read_cache() const {
    return {{cache_key->shape, arena.gather<float>(*cache_key)},
            {cache_value->shape, arena.gather<float>(*cache_value)},
            arena.gather<int32_t>(*cache_lengths)};
  }

  [[nodiscard]] StepOutcome read(size_t s, const Reply& reply, const std::vector<std::vector<std::byte>>& before) {
    StepOutcome outcome;
    outcome.status = reply.status;
    outcome.message = reply.message;
    const StepBlocks& blocks = steps[s];
    outcome.output = {blocks.output->shape, arena.gather<float>(*blocks.output)};
    if (blocks.lse != nullptr) outcome.lse = {blocks.lse->shape, arena.gather<float>(*blocks.lse)};
    const auto list = watched(s);
    for (size_t i = 0; i < list.size(); ++i) {
      note_foreign(outcome, *list[i].first, before[i], list[i].second);
    }
    for (size_t i = 0; i < weights.size(); ++i)
      note_foreign(outcome, *weights[i].first, weight_images[i], Elements::must_stay);
    if (cache_key != nullptr) {
      outcome.before = std::move(image);
      image = read_cache();
      outcome.after = image;
    }
    return outcome;
  }

  void note_foreign(StepOutcome& outcome, const Block& block, const std::vector<std::byte>& before,
                    Elements elements) const {
    if (auto place = arena.intact(block, before, elements)) {
      const bool input = elements == Elements::must_stay;
      outcome.foreign.push_back({block.name, fmt::format("{} has changed; a step may not write there", *place), input});
    }
  }

  /// The suite's own operations on the cache, in the memory that the backend will see.
  void apply(const Moment& moment) {
    const Step& step = moment.step;
    if (step.kind == StepKind::fork) move_slots([&](int64_t b) { return b == step.to ? step.from : b; });
    if (step.kind == StepKind::reorder) move_slots([&](int64_t b) { return step.sequences[static_cast<size_t>(b)]; });
    image.lengths.assign(moment.after.begin(), moment.after.end());
  }

  template <typename Source>
  void move_slots(const Source& source) {
    for (Dense<float>* tensor : {&image.key, &image.value}) {
      const Dense<float> old = *tensor;
      const auto slot = static_cast<int64_t>(old.data.size()) / c.problem.batch;
      for (int64_t b = 0; b < c.problem.batch; ++b) {
        std::copy_n(old.data.begin() + source(b) * slot, slot, tensor->data.begin() + b * slot);
      }
    }
    arena.scatter(*cache_key, image.key.data);
    arena.scatter(*cache_value, image.value.data);
  }

  const Case& c;
  const Timeline& timeline;
  const Inputs& inputs;
  Arena arena;
  Placement placement;
  std::vector<std::pair<const Block*, const Dense<float>*>> weights;
  std::vector<std::vector<std::byte>> weight_images;
  const Block *cache_key = nullptr, *cache_value = nullptr, *cache_lengths = nullptr;
  std::vector<StepBlocks> steps;
  CacheImage image;  ///< The cache as the last step or operation left it.
};

namespace {

/// A worker's end as a verdict.
void record_failure(CaseRecord& record, const WorkerFailure& failure, const std::string& output, int64_t step,
                    std::string_view during) {
  record.status = failure.kind == WorkerFailure::Kind::died        ? Status::crash
                  : failure.kind == WorkerFailure::Kind::timed_out ? Status::timeout
                                                                   : Status::error;
  Finding finding;
  finding.kind = "status";
  finding.clause = "P1";
  finding.step = step;
  finding.text = fmt::format("during {}: {}", during, failure.text);
  if (!output.empty())
    finding.text +=
        fmt::format("; it last printed: {}",
                    protocol::printable(output.substr(output.size() - std::min<size_t>(output.size(), 200)), 200));
  record.findings.push_back(std::move(finding));
}

void conclude(CaseRecord& record, double worst_radius) {
  if (record.status == Status::pass && !record.findings.empty()) record.status = Status::fail;
  // The golden itself must be known far better than the error it allows.
  if (record.status == Status::pass && worst_radius > 1.0 / 16) {
    record.status = Status::untrusted;
    record.reason = fmt::format("its golden is only known to {:.3g} of the allowed error", worst_radius);
  }
  if (!record.findings.empty() && record.reason.empty()) {
    const Finding& first = record.findings.front();
    record.reason =
        fmt::format("step {}{}: {}", first.step, first.tensor.empty() ? "" : ", " + first.tensor, first.text);
    if (first.ratio) record.reason += fmt::format(" ({}, {:.2g} times it)", first.clause, *first.ratio);
  }
}

}  // namespace

std::optional<WorkerFailure> Executor::ensure_worker() {
  if (worker_ && worker_->alive()) return std::nullopt;
  worker_ = std::make_unique<Worker>(choice_.worker);
  const auto opened = worker_->open(choice_.library.string(), choice_.options, choice_.limit);
  if (!opened) return opened.error();
  if (opened->reply.status != ATTEST_OK) {
    worker_.reset();
    return WorkerFailure{WorkerFailure::Kind::garbage, "it no longer opens: " + opened->reply.message};
  }
  return std::nullopt;
}

CaseRecord Executor::run(const Case& c, const Golden& golden, double worst_radius, std::string repro) {
  CaseRecord record;
  record.id = c.id;
  record.family = c.family;
  record.about = c.about;
  record.profiles = c.profiles;
  record.clauses = c.clauses;
  record.kills = c.kills;
  record.identity = identity(c);
  record.status = Status::pass;
  record.repro = std::move(repro);

  Timeline timeline;
  Inputs inputs;
  std::optional<Session> session;
  {
    const Stopwatch watch(record.seconds["inputs"]);
    timeline = play(c);
    inputs = generate_inputs(c, timeline);
    session.emplace(c, timeline, inputs);
  }
  {
    const Stopwatch watch(record.seconds["start"]);
    if (const auto failure = ensure_worker()) {
      record_failure(record, *failure, worker_ ? worker_->output() : "", 0, "open");
      conclude(record, worst_radius);
      return record;
    }
  }
  const auto failed = [&](const WorkerFailure& failure, size_t s, std::string_view during) {
    record_failure(record, failure, worker_->output(), static_cast<int64_t>(s), during);
  };
  {
    const Stopwatch watch(record.seconds["prepare"]);
    protocol::Tensors weights;
    for (const auto& [block, tensor] : session->weights)
      weights.emplace(block->name, session->placement.tensor_of(*block));
    const auto prepared = worker_->prepare(c.problem, session->arena, weights, choice_.limit);
    if (!prepared) {
      failed(prepared.error(), 0, "prepare");
    } else if (prepared->status == ATTEST_UNSUPPORTED) {
      record.status = Status::unsupported;
      record.reason = prepared->message.empty() ? "it gives no reason" : prepared->message;
    } else if (prepared->status != ATTEST_OK) {
      record.status = prepared->status == ATTEST_ERROR ? Status::error : Status::fail;
      record.reason = fmt::format("prepare refused a legal problem: {}", prepared->message);
    }
  }
  if (record.status != Status::pass) {
    conclude(record, worst_radius);
    return record;
  }

  Judge judge(c, timeline, inputs, golden);
  for (size_t s = 0; s < timeline.size() && record.status == Status::pass; ++s) {
    if (timeline[s].step.kind != StepKind::attend) {
      const Stopwatch watch(record.seconds["judge"]);
      session->apply(timeline[s]);
      continue;
    }
    RunRequest request;
    std::vector<std::vector<std::byte>> before;
    {
      const Stopwatch watch(record.seconds["judge"]);
      session->fill(s);
      request = session->request(s);
      for (const auto& [block, elements] : session->watched(s)) before.push_back(session->arena.snapshot(*block));
    }
    const auto reply = worker_->run(request, choice_.limit);
    if (!reply) {
      failed(reply.error(), s, "run");
      break;
    }
    record.seconds["run"] += reply->elapsed;
    const Stopwatch watch(record.seconds["judge"]);
    if (reply->status == ATTEST_ERROR) record.status = Status::error;
    if (!judge.step(s, session->read(s, *reply, before))) break;
  }
  {
    const Stopwatch watch(record.seconds["judge"]);
    const auto& findings = judge.findings();
    record.findings.insert(record.findings.end(), findings.begin(), findings.end());
    record.worst_ratio = judge.worst_ratio();
    record.error_map = judge.error_map();
  }
  if (worker_->alive()) {
    const Stopwatch watch(record.seconds["prepare"]);
    const auto released = worker_->release(choice_.limit);
    if (!released && record.status == Status::pass) failed(released.error(), timeline.size() - 1, "release");
  }
  conclude(record, worst_radius);
  return record;
}

}  // namespace attest
