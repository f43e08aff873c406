// SPDX-License-Identifier: Apache-2.0
// Without a bug the kernel computes what the definition says, in every variant; every bug of cases/bugs.json is there.
// That a bug shows is for the suite to prove.
//
// Compiled with ATTEST_MUTANTS, the path of the library, and ATTEST_BUGS, that of bugs.json.
#include <dlfcn.h>

#include <algorithm>
#include <attest/backend.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <fstream>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "numerics.h"

namespace {

using namespace attest::abi;
using Doubles = std::vector<double>;

constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr float nan_value = std::numeric_limits<float>::quiet_NaN();

std::mt19937& random_source() {
  static std::mt19937 source;
  return source;
}
int64_t pick(int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(random_source());
}
bool coin() {
  return pick(0, 1) == 1;
}
float pick_float() {
  return std::uniform_real_distribution<float>(-2, 2)(random_source());
}

/// Memory that a step is given, dense.
template <class T>
class Tensor {
 public:
  Tensor(DLDataType type, std::vector<int64_t> shape, T value) : shape_(std::move(shape)), strides_(shape_.size()) {
    int64_t count = 1;
    for (size_t axis = shape_.size(); axis-- > 0; count *= shape_[axis]) strides_[axis] = count;
    memory_.assign(static_cast<size_t>(count), value);
    dl_ = {memory_.data(), {kDLCPU, 0}, static_cast<int>(shape_.size()), type, shape_.data(), strides_.data(), 0};
  }
  Tensor(Tensor&&) noexcept = default;  // vectors keep their memory
  Tensor(const Tensor&) = delete;
  Tensor& operator=(const Tensor&) = delete;

  DLTensor* dl() { return &dl_; }
  template <class... Index>
  T& at(Index... index) {
    return View<T, sizeof...(Index)>(dl_)(index...);
  }
  std::vector<T>& all() { return memory_; }

 private:
  std::vector<int64_t> shape_, strides_;
  std::vector<T> memory_;
  DLTensor dl_{};
};

Tensor<float> numbers(std::vector<int64_t> shape, float value = nan_value) {
  return {f32, std::move(shape), value};
}
Tensor<float> random_numbers(std::vector<int64_t> shape) {
  Tensor<float> tensor(f32, std::move(shape), 0);
  for (float& x : tensor.all()) x = pick_float();
  return tensor;
}

class Backend {
 public:
  explicit Backend(const std::string& options) {
    void* const library = dlopen(ATTEST_MUTANTS, RTLD_NOW | RTLD_LOCAL);
    INFO((library == nullptr ? dlerror() : "loaded"));
    REQUIRE(library != nullptr);
    table_ = reinterpret_cast<decltype(&attest_get_backend)>(dlsym(library, ATTEST_ENTRY_POINT))();
    message_.struct_size = sizeof message_;
    status_ = table_->open(options.c_str(), &context_, &message_);
  }
  ~Backend() {
    if (plan_ != nullptr) table_->release(plan_);
    if (context_ != nullptr) table_->close(context_);
  }
  Backend(const Backend&) = delete;
  Backend& operator=(const Backend&) = delete;

  [[nodiscard]] attest_status status() const { return status_; }
  [[nodiscard]] std::string message() const { return message_.text; }
  void prepare(const attest_problem& p) {
    if (plan_ != nullptr) table_->release(plan_);
    plan_ = nullptr;
    status_ = table_->prepare(context_, &p, &plan_, &message_);
    INFO(message());
    REQUIRE(status_ == ATTEST_OK);
  }
  void run(const attest_step& step) {
    status_ = table_->run(plan_, &step, &message_);
    INFO(message());
    REQUIRE(status_ == ATTEST_OK);
  }

 private:
  const attest_backend* table_ = nullptr;
  attest_context* context_ = nullptr;
  attest_plan* plan_ = nullptr;
  attest_message message_{};
  attest_status status_ = ATTEST_OK;
};

std::string option(const std::string& name, const std::string& value) {
  return nlohmann::json{{name, value}}.dump();
}

/// The ids of a list in bugs.json.
std::vector<std::string> ids_of(const std::string& list) {
  std::ifstream file(ATTEST_BUGS);
  const nlohmann::json catalogue = nlohmann::json::parse(file);
  std::vector<std::string> ids;
  for (const auto& one : catalogue.at(list)) ids.push_back(one.at("id"));
  return ids;
}

/// Softmax attention of one row, from the definition.
struct Definition {
  const attest_problem& p;
  Tensor<float>& sinks;

  /// Visible logits and -infinity in; the output of one channel each, and the LSE at the end.
  [[nodiscard]] Doubles operator()(const Doubles& logits, const std::vector<Doubles>& values, int64_t h) const {
    double largest = p.sinks != nullptr ? static_cast<double>(sinks.at(h)) : -infinity;
    for (const double logit : logits) largest = std::max(largest, logit);
    Doubles result(static_cast<size_t>(p.v_head_dim) + 1, 0);
    if (largest == -infinity) return result.back() = -infinity, result;
    double sum = p.sinks != nullptr ? std::exp(static_cast<double>(sinks.at(h)) - largest) : 0;
    for (size_t j = 0; j < logits.size(); ++j) {
      const double weight = std::exp(logits[j] - largest);
      sum += weight;
      for (size_t c = 0; c + 1 < result.size(); ++c) result[c] += weight * values[j][c];
    }
    for (size_t c = 0; c + 1 < result.size(); ++c) result[c] /= sum;
    result.back() = largest + std::log(sum);
    return result;
  }
};

attest_problem random_problem() {
  attest_problem p{};
  p.struct_size = sizeof p;
  p.batch = pick(1, 3);
  p.kv_heads = pick(1, 3);
  p.query_heads = p.kv_heads * pick(1, 3);
  p.qk_head_dim = pick(1, 20);
  p.v_head_dim = pick(1, 12);
  p.dtype = p.cache_dtype = f32;
  p.scale = coin() ? 0 : 0.7;
  p.causal = static_cast<int32_t>(pick(0, 2));
  p.mask = coin() ? ATTEST_MASK_BOOLEAN : ATTEST_MASK_NONE;
  p.window_left = coin() ? pick(0, 90) : -1;
  p.window_right = pick(0, 3) == 0 ? pick(0, 9) : -1;
  p.softcap = coin() ? 0 : 3;
  p.alibi = coin() ? ATTEST_ALIBI_STANDARD : ATTEST_ALIBI_NONE;
  p.wants_lse = 1;
  p.cache = static_cast<int32_t>(pick(0, 3));
  if (p.cache != ATTEST_CACHE_NONE) p.capacity = pick(30, 300);
  if (p.cache == ATTEST_CACHE_PAGED) p.page_size = pick(1, 20);
  if (p.cache == ATTEST_CACHE_RING) p.causal = ATTEST_CAUSAL_BOTTOM_RIGHT, p.window_left = pick(0, p.capacity - 1);
  return p;
}

/// One problem, a few steps.
void check(Backend& backend) {
  attest_problem p = random_problem();
  CAPTURE(p.batch, p.query_heads, p.kv_heads, p.qk_head_dim, p.v_head_dim, p.causal, p.mask, p.window_left,
          p.window_right, p.softcap, p.alibi, p.cache, p.capacity, p.page_size);
  auto sinks = random_numbers({p.query_heads});
  if (coin()) p.sinks = sinks.dl();
  backend.prepare(p);

  const int64_t columns = p.page_size == 0 ? 0 : (p.capacity + p.page_size - 1) / p.page_size;
  const int64_t outer = p.page_size == 0 ? p.batch : p.batch * columns, inner = columns == 0 ? p.capacity : p.page_size;
  auto cached_keys = numbers({outer, inner, p.kv_heads, p.qk_head_dim});
  auto cached_values = numbers({outer, inner, p.kv_heads, p.v_head_dim});
  Tensor<int32_t> lengths(i32, {p.batch}, 0), table(i32, {p.batch, columns}, 0);
  std::iota(table.all().begin(), table.all().end(), 0);
  std::shuffle(table.all().begin(), table.all().end(), random_source());
  attest_cache cache{};
  cache.struct_size = sizeof cache;
  cache.key = cached_keys.dl(), cache.value = cached_values.dl(), cache.lengths = lengths.dl();
  if (p.cache == ATTEST_CACHE_PAGED) cache.block_table = table.dl();

  using Tokens = std::vector<std::vector<Doubles>>;  // of a sequence: [token][head][channel]
  std::vector<Tokens> keys(static_cast<size_t>(p.batch)), values(keys);
  for (int round = 0; round < 4; ++round) {
    CAPTURE(round);
    const bool ring = p.cache == ATTEST_CACHE_RING;
    int64_t fits = p.cache == ATTEST_CACHE_NONE || ring ? 130 : p.capacity;
    if (p.cache != ATTEST_CACHE_NONE && !ring) fits -= static_cast<int64_t>(keys[0].size());
    const int64_t count = std::min<int64_t>(fits, round % 2 == 0 ? pick(1, 130) : 1);
    const int64_t queries = p.cache == ATTEST_CACHE_NONE ? pick(1, 40) : std::max<int64_t>(count, 1);
    auto query = random_numbers({p.batch, queries, p.query_heads, p.qk_head_dim});
    auto key = random_numbers({p.batch, count, p.kv_heads, p.qk_head_dim});
    auto value = random_numbers({p.batch, count, p.kv_heads, p.v_head_dim});
    for (int64_t b = 0; b < p.batch; ++b) {
      auto &k = keys[static_cast<size_t>(b)], &v = values[static_cast<size_t>(b)];
      if (p.cache == ATTEST_CACHE_NONE) k.clear(), v.clear();
      for (int64_t n = 0; n < count; ++n) {
        k.emplace_back(), v.emplace_back();
        for (int64_t h = 0; h < p.kv_heads; ++h) {
          k.back().emplace_back(&key.at(b, n, h, 0), &key.at(b, n, h, 0) + p.qk_head_dim);
          v.back().emplace_back(&value.at(b, n, h, 0), &value.at(b, n, h, 0) + p.v_head_dim);
        }
      }
    }
    const auto total = static_cast<int64_t>(keys[0].size());
    Tensor<uint8_t> mask(u8, {p.batch, p.query_heads, queries, total}, 0);
    for (uint8_t& visible : mask.all()) visible = pick(0, 3) > 0 ? 1 : 0;
    auto output = numbers({p.batch, queries, p.query_heads, p.v_head_dim});
    auto lse = numbers({p.batch, p.query_heads, queries});
    attest_step step{};
    step.struct_size = sizeof step;
    step.query = query.dl(), step.output = output.dl(), step.lse = lse.dl();
    if (count > 0 || p.cache == ATTEST_CACHE_NONE) step.key = key.dl(), step.value = value.dl();
    if (p.cache != ATTEST_CACHE_NONE) step.cache = &cache;
    if (p.mask != ATTEST_MASK_NONE) step.mask = mask.dl();
    step.max_query_length = queries, step.max_total_length = total;
    backend.run(step);

    int bad = 0;
    for (int64_t b = 0; b < p.batch; ++b) {
      if (p.cache != ATTEST_CACHE_NONE) bad += lengths.at(b) == total ? 0 : 1;
      for (int64_t h = 0; h < p.query_heads; ++h) {
        const auto kv_head = static_cast<size_t>(h / (p.query_heads / p.kv_heads));
        for (int64_t i = 0; i < queries; ++i) {
          const KeyRange range = visible_keys(p, i, queries, total);
          Doubles logits;
          std::vector<Doubles> seen;
          for (int64_t j = range.begin; j < range.end; ++j) {
            if (p.mask != ATTEST_MASK_NONE && mask.at(b, h, i, j) == 0) continue;
            const Doubles& k = keys[static_cast<size_t>(b)][static_cast<size_t>(j)][kv_head];
            double x = std::inner_product(k.begin(), k.end(), &query.at(b, i, h, 0), 0.0);
            x *= p.scale != 0 ? p.scale : 1 / std::sqrt(static_cast<double>(p.qk_head_dim));
            if (p.softcap > 0) x = p.softcap * std::tanh(x / p.softcap);
            const auto distance = static_cast<double>(std::abs(total - queries + i - j));
            if (p.alibi != ATTEST_ALIBI_NONE) x -= standard_alibi_slope(h, p.query_heads) * distance;
            logits.push_back(x);
            seen.push_back(values[static_cast<size_t>(b)][static_cast<size_t>(j)][kv_head]);
          }
          const Doubles wanted = Definition{p, sinks}(logits, seen, h);
          const auto near = [](float got, double want) {
            return static_cast<double>(got) == want || std::abs(static_cast<double>(got) - want) < 1e-5;
          };
          for (int64_t c = 0; c < p.v_head_dim; ++c) {
            bad += near(output.at(b, i, h, c), wanted[static_cast<size_t>(c)]) ? 0 : 1;
          }
          bad += near(lse.at(b, h, i), wanted.back()) ? 0 : 1;
        }
      }
    }
    CHECK(bad == 0);
  }
}

}  // namespace

TEST_CASE("every variant agrees with the definition") {
  std::vector<std::string> names{""};
  for (const auto& variant : mutants::variants()) names.emplace_back(variant.name);
  for (const std::string& name : names) {
    CAPTURE(name);
    Backend backend(option("variant", name));
    REQUIRE(backend.status() == ATTEST_OK);
    random_source().seed(20240617);
    for (int i = 0; i < (name.empty() ? 60 : 8); ++i) {
      CAPTURE(i);
      check(backend);
    }
  }
}

TEST_CASE("every known bug is there and no other") {
  const std::vector<std::string> ids = ids_of("bugs");
  for (const std::string& id : ids) {
    const Backend backend(option("bug", id));
    INFO(backend.message());
    CHECK(backend.status() == ATTEST_OK);
  }
  const Backend none(option("bug", "?"));
  CAPTURE(none.message());
  CHECK(none.message().find("wanted one of " + std::to_string(ids.size()) + " names") != std::string::npos);
}

TEST_CASE("the catalogue names the variants") {
  std::vector<std::string> names;
  for (const auto& variant : mutants::variants()) names.emplace_back(variant.name);
  CHECK(ids_of("correct") == names);
}

TEST_CASE("several bugs and a bug in a variant") {
  CHECK(Backend(option("bug", "causal-plus1,gqa-modulo")).status() == ATTEST_OK);
  CHECK(Backend(R"({"bug": "sink-twice", "variant": "splits_5"})").status() == ATTEST_OK);
}

TEST_CASE("an unknown name is refused with those that are like it") {
  const Backend bug(option("bug", "causal-plus2"));
  CHECK(bug.status() == ATTEST_INVALID);
  CHECK(bug.message().find("causal-plus1") != std::string::npos);
  const Backend second(option("bug", "causal-plus1,"));
  CHECK(second.status() == ATTEST_OK);
  const Backend variant(option("variant", "tile_8"));
  CHECK(variant.status() == ATTEST_INVALID);
  CHECK(variant.message().find("tile_7") != std::string::npos);
  CHECK(Backend(option("bugs", "causal-plus1")).status() == ATTEST_INVALID);
}
