// SPDX-License-Identifier: Apache-2.0
// Smoke test of a backend against the template: random shapes, layouts, ragged lengths, caches and both levels, with
// NaN in all memory that must not matter. It finds a broken build within a second; certifying is the suite's work.
//
// Compiled once per backend, with ATTEST_SUBJECT and ATTEST_REFERENCE the paths of the two libraries.
#include <dlfcn.h>

#include <algorithm>
#include <attest/backend.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
// LeakSanitizer crashes when it scans the thread-local storage of Debian's libdnnl, which it did not see allocated.
extern "C" const char* __lsan_default_options() {
  return "use_tls=0:print_suppressions=0";
}
#endif

namespace {

using namespace attest::abi;
constexpr float nan_value = std::numeric_limits<float>::quiet_NaN();

std::mt19937& random_source() {
  static std::mt19937 source;
  return source;
}
int64_t pick(int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(random_source());
}
int64_t pick(std::initializer_list<int64_t> from) {
  return from.begin()[pick(0, static_cast<int64_t>(from.size()) - 1)];
}
float pick_float() {
  return std::uniform_real_distribution<float>(-1, 1)(random_source());
}

/// An fp32 tensor in memory of its own, its axes stored in any order with gaps, everything NaN at first.
class Tensor {
 public:
  Tensor(std::vector<int64_t> shape, std::vector<int64_t> order, int64_t gap)
      : shape_(std::move(shape)), strides_(shape_.size()) {
    int64_t stride = 1;
    for (size_t place = order.size(); place-- > 0;) {
      const auto axis = static_cast<size_t>(order[place]);
      strides_[axis] = stride;
      stride *= shape_[axis] + (place + 1 == order.size() ? gap : 0);
    }
    memory_.assign(static_cast<size_t>(stride + 2 * margin), nan_value);
    dl_ = {memory_.data(),  {kDLCPU, 0}, static_cast<int>(shape_.size()), f32, shape_.data(),
           strides_.data(), margin * 4};
  }
  Tensor(const Tensor&) = delete;
  Tensor& operator=(const Tensor&) = delete;

  DLTensor* dl() { return &dl_; }
  float& at(const std::vector<int64_t>& index) {
    return memory_[static_cast<size_t>(margin +
                                       std::inner_product(index.begin(), index.end(), strides_.begin(), int64_t{0}))];
  }
  /// Calls visit(index) for each element.
  template <class Visit>
  void each(Visit&& visit) const {
    std::vector<int64_t> index(shape_.size(), 0);
    if (std::find(shape_.begin(), shape_.end(), 0) != shape_.end()) return;
    while (true) {
      visit(index);
      size_t axis = shape_.size();
      while (axis-- > 0 && ++index[axis] == shape_[axis]) index[axis] = 0;
      if (axis >= shape_.size()) return;
    }
  }
  /// Whether all memory that is not an element is as it was made.
  bool gaps_untouched() {
    std::vector<char> element(memory_.size(), 0);
    each([&](const auto& index) { element[static_cast<size_t>(&at(index) - memory_.data())] = 1; });
    for (size_t i = 0; i < memory_.size(); ++i) {
      if (element[i] == 0 && std::memcmp(&memory_[i], &nan_value, sizeof(float)) != 0) return false;
    }
    return true;
  }

 private:
  static constexpr int64_t margin = 8;
  std::vector<int64_t> shape_, strides_;
  std::vector<float> memory_;
  DLTensor dl_{};
};

/// Makes a tensor in a random layout; two calls with the same `layout` get the same one.
struct Layout {
  std::vector<int64_t> order;
  int64_t gap;
  explicit Layout(int64_t rank) : order(static_cast<size_t>(rank)), gap(pick({0, 0, 1, 5})) {
    std::iota(order.begin(), order.end(), 0);
    const int64_t kind = pick(0, 3);
    if (kind == 1 && rank == 4) std::swap(order[1], order[2]);                 // Heads before tokens.
    if (kind == 2) std::shuffle(order.begin(), order.end(), random_source());  // Anything.
  }
};

struct Counts32 {
  std::vector<int32_t> values;
  int64_t shape = 0, stride = 1;
  DLTensor tensor{};
  explicit Counts32(int64_t batch, int32_t value = 0) : values(static_cast<size_t>(batch), value), shape(batch) {}
  Counts32(const Counts32&) = delete;
  Counts32& operator=(const Counts32&) = delete;
  DLTensor* dl() {
    tensor = {values.data(), {kDLCPU, 0}, 1, i32, &shape, &stride, 0};
    return &tensor;
  }
};

class Backend {
 public:
  Backend(const char* path, const char* options) {
    void* const library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    INFO(path << ": " << (library == nullptr ? dlerror() : "loaded"));
    REQUIRE(library != nullptr);
    table_ = reinterpret_cast<decltype(&attest_get_backend)>(dlsym(library, ATTEST_ENTRY_POINT))();
    REQUIRE(table_ != nullptr);
    message_.struct_size = sizeof message_;
    const attest_status status = table_->open(options, &context_, &message_);
    INFO(message_.text);
    REQUIRE(status == ATTEST_OK);
  }
  ~Backend() {
    if (plan_ != nullptr) table_->release(plan_);
    if (context_ != nullptr) table_->close(context_);
  }
  Backend(const Backend&) = delete;
  Backend& operator=(const Backend&) = delete;

  const attest_backend& table() const { return *table_; }
  void prepare(const attest_problem& problem) {
    if (plan_ != nullptr) table_->release(plan_);
    plan_ = nullptr;
    const attest_status status = table_->prepare(context_, &problem, &plan_, &message_);
    INFO(message_.text);
    REQUIRE(status == ATTEST_OK);
  }
  attest_status run(const attest_step& step) { return table_->run(plan_, &step, &message_); }
  std::string message() const { return message_.text; }

 private:
  const attest_backend* table_ = nullptr;
  attest_context* context_ = nullptr;
  attest_plan* plan_ = nullptr;
  attest_message message_{};
};

/// What one backend writes.
struct Written {
  Tensor key, value;
  Counts32 lengths;
  Written(const attest_problem& p, const Layout& layout)
      : key({p.batch, p.capacity, p.kv_heads, p.qk_head_dim}, layout.order, layout.gap),
        value({p.batch, p.capacity, p.kv_heads, p.v_head_dim}, layout.order, layout.gap),
        lengths(p.batch) {}
};

bool close(float got, float wanted) {
  if (std::isinf(wanted)) return got == wanted;
  return std::abs(got - wanted) <= 1e-4f * (1 + std::abs(wanted));
}

attest_problem random_problem() {
  attest_problem p{};
  p.struct_size = sizeof p;
  p.level = static_cast<int32_t>(pick(0, 1));
  p.batch = pick(1, 3);
  p.kv_heads = pick(1, 3);
  p.query_heads = p.kv_heads * pick({1, 2, 3, 7});
  p.qk_head_dim = pick({1, 5, 16, 33, 64});
  p.v_head_dim = pick({1, 6, 16, 31, 64});
  p.d_model = p.level == ATTEST_LEVEL_LAYER ? pick({1, 24, 63}) : 0;
  p.dtype = p.cache_dtype = f32;
  p.scale = pick({0, 1}) == 0 ? 0 : 0.3 * static_cast<double>(pick(1, 9));
  p.causal = static_cast<int32_t>(pick(0, 2));
  p.window_left = p.window_right = -1;
  p.wants_lse = 1;
  p.cache = static_cast<int32_t>(pick(0, 1));
  p.capacity = p.cache == ATTEST_CACHE_CONTIGUOUS ? pick(40, 400) : 0;
  return p;
}

/// One problem, a few steps, both backends.
void compare(Backend& subject, Backend& reference) {
  attest_problem p = random_problem();
  const bool layer = p.level == ATTEST_LEVEL_LAYER, cached = p.cache != ATTEST_CACHE_NONE;
  CAPTURE(p.level, p.batch, p.query_heads, p.kv_heads, p.qk_head_dim, p.v_head_dim, p.d_model, p.causal, p.capacity);

  const Layout weight_layout(2), bias_layout(1);
  const auto filled = [&](Tensor& tensor) { tensor.each([&](const auto& index) { tensor.at(index) = pick_float(); }); };
  const auto weight = [&](int64_t out, int64_t in) {
    auto tensor = std::make_unique<Tensor>(std::vector{out, in}, weight_layout.order, weight_layout.gap);
    filled(*tensor);
    return tensor;
  };
  const int64_t q_rows = p.query_heads * p.qk_head_dim, k_rows = p.kv_heads * p.qk_head_dim;
  const int64_t v_rows = p.kv_heads * p.v_head_dim, o_rows = p.query_heads * p.v_head_dim;
  const auto wq = weight(q_rows, p.d_model), wk = weight(k_rows, p.d_model), wv = weight(v_rows, p.d_model);
  const auto wo = weight(p.d_model, o_rows);
  Tensor bq({q_rows}, bias_layout.order, 0), bo({p.d_model}, bias_layout.order, 0);
  filled(bq), filled(bo);
  if (layer) {
    p.q_weight = wq->dl(), p.k_weight = wk->dl(), p.v_weight = wv->dl(), p.out_weight = wo->dl();
    p.q_bias = bq.dl(), p.out_bias = pick(0, 1) == 0 ? nullptr : bo.dl();
  }
  subject.prepare(p);
  reference.prepare(p);

  const Layout cache_layout(4), in_layout(layer ? 3 : 4), out_layout(layer ? 3 : 4), lse_layout(3);
  Written got(p, cache_layout), wanted(p, cache_layout);
  for (int64_t round = 0; round < 4; ++round) {
    const int64_t queries = round == 0 ? pick(1, 90) : pick({1, 1, 2, 9}),
                  keys = cached && round > 0 ? queries : pick(1, 90);
    const bool appends = !cached || pick(0, 4) > 0;
    CAPTURE(round, queries, keys, appends);
    Counts32 query_counts(p.batch), key_counts(p.batch);
    int64_t most = 0;
    for (size_t b = 0; b < query_counts.values.size(); ++b) {
      query_counts.values[b] = static_cast<int32_t>(pick({0, pick(0, queries), queries, queries}));
      key_counts.values[b] = static_cast<int32_t>(pick({0, pick(0, keys), keys, keys}));
      most = std::max<int64_t>(most, got.lengths.values[b] + key_counts.values[b]);
    }
    const auto input = [&](int64_t tokens, int64_t heads, int64_t dim, const Counts32& counts) {
      const auto shape = layer ? std::vector{p.batch, tokens, p.d_model} : std::vector{p.batch, tokens, heads, dim};
      auto tensor = std::make_unique<Tensor>(shape, in_layout.order, in_layout.gap);
      tensor->each([&](const auto& i) {
        if (i[1] < counts.values[static_cast<size_t>(i[0])]) tensor->at(i) = pick_float();
      });
      return tensor;
    };
    const auto query = input(queries, p.query_heads, p.qk_head_dim, query_counts);
    const auto key = input(keys, p.kv_heads, p.qk_head_dim, key_counts);
    const auto value = input(keys, p.kv_heads, p.v_head_dim, key_counts);
    const auto out_shape =
        layer ? std::vector{p.batch, queries, p.d_model} : std::vector{p.batch, queries, p.query_heads, p.v_head_dim};
    Tensor got_out(out_shape, out_layout.order, out_layout.gap),
        wanted_out(out_shape, out_layout.order, out_layout.gap);
    const std::vector<int64_t> lse_shape{p.batch, p.query_heads, queries};
    Tensor got_lse(lse_shape, lse_layout.order, lse_layout.gap),
        wanted_lse(lse_shape, lse_layout.order, lse_layout.gap);

    const auto run = [&](Backend& backend, Written& written, Tensor& out, Tensor& lse) {
      attest_cache cache{};
      cache.struct_size = sizeof cache;
      cache.key = written.key.dl(), cache.value = written.value.dl(), cache.lengths = written.lengths.dl();
      attest_step step{};
      step.struct_size = sizeof step;
      step.query = query->dl();
      step.key = appends ? key->dl() : nullptr;
      step.value = appends ? value->dl() : nullptr;
      step.query_lengths = query_counts.dl();
      step.key_lengths = appends ? key_counts.dl() : nullptr;
      step.cache = cached ? &cache : nullptr;
      step.output = out.dl(), step.lse = lse.dl();
      return backend.run(step);
    };
    const attest_status status = run(subject, got, got_out, got_lse);
    CHECK(status == run(reference, wanted, wanted_out, wanted_lse));
    INFO(subject.message());
    CHECK(status == (cached && appends && most > p.capacity ? ATTEST_OVERFLOW : ATTEST_OK));
    CHECK(subject.message() == reference.message());

    const auto agree = [&](const char* name, Tensor& a, Tensor& b, auto&& counts) {
      CAPTURE(name);
      int64_t bad = 0;
      a.each([&](const auto& index) { bad += counts(index) && !close(a.at(index), b.at(index)) ? 1 : 0; });
      CHECK(bad == 0);
      CHECK(a.gaps_untouched());
    };
    const auto of = [](const Counts32& counts, int64_t b) { return counts.values[static_cast<size_t>(b)]; };
    CHECK(got.lengths.values == wanted.lengths.values);
    agree("cache.key", got.key, wanted.key, [&](const auto& i) { return i[1] < of(got.lengths, i[0]); });
    agree("cache.value", got.value, wanted.value, [&](const auto& i) { return i[1] < of(got.lengths, i[0]); });
    if (status != ATTEST_OK) return;
    agree("output", got_out, wanted_out, [&](const auto& i) { return i[1] < of(query_counts, i[0]); });
    agree("lse", got_lse, wanted_lse, [&](const auto& i) { return i[2] < of(query_counts, i[0]); });
  }
}

}  // namespace

TEST_CASE("agrees with the template") {
  Backend reference(ATTEST_REFERENCE, nullptr);
  for (const char* options : {"{}", R"({"threads":"1"})", R"({"threads":"3"})"}) {
    Backend subject(ATTEST_SUBJECT, options);
    CAPTURE(options, subject.table().description);
    random_source().seed(20240229);
    for (int i = 0; i < 60; ++i) {
      CAPTURE(i);
      compare(subject, reference);
    }
  }
}

TEST_CASE("huge logits and many keys") {
  Backend reference(ATTEST_REFERENCE, nullptr), subject(ATTEST_SUBJECT, nullptr);
  attest_problem p{};
  p.struct_size = sizeof p;
  p.batch = 1, p.query_heads = 2, p.kv_heads = 1, p.qk_head_dim = 8, p.v_head_dim = 4;
  p.dtype = p.cache_dtype = f32;
  p.causal = ATTEST_CAUSAL_BOTTOM_RIGHT;
  p.window_left = p.window_right = -1;
  p.wants_lse = 1;
  subject.prepare(p);
  reference.prepare(p);
  Tensor query({1, 70, 2, 8}, {0, 1, 2, 3}, 0), key({1, 9000, 1, 8}, {0, 1, 2, 3}, 0),
      value({1, 9000, 1, 4}, {0, 1, 2, 3}, 0);
  query.each([&](const auto& i) { query.at(i) = 128 * std::round(pick_float() * 8); });
  key.each([&](const auto& i) { key.at(i) = std::round(pick_float() * 64); });
  value.each([&](const auto& i) { value.at(i) = pick_float(); });
  Tensor out_a({1, 70, 2, 4}, {0, 1, 2, 3}, 0), out_b({1, 70, 2, 4}, {0, 1, 2, 3}, 0);
  Tensor lse_a({1, 2, 70}, {0, 1, 2}, 0), lse_b({1, 2, 70}, {0, 1, 2}, 0);
  attest_step step{};
  step.struct_size = sizeof step;
  step.query = query.dl(), step.key = key.dl(), step.value = value.dl();
  step.output = out_a.dl(), step.lse = lse_a.dl();
  REQUIRE(subject.run(step) == ATTEST_OK);
  step.output = out_b.dl(), step.lse = lse_b.dl();
  REQUIRE(reference.run(step) == ATTEST_OK);
  int bad = 0;
  out_a.each([&](const auto& i) { bad += close(out_a.at(i), out_b.at(i)) ? 0 : 1; });
  lse_a.each([&](const auto& i) { bad += close(lse_a.at(i), lse_b.at(i)) ? 0 : 1; });
  CHECK(bad == 0);
}
