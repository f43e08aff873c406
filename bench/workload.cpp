// SPDX-License-Identifier: Apache-2.0
#include "bench/workload.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <mutex>
#include <new>
#include <numeric>
#include <random>

#include "cases/philox.h"
#include "cases/storage.h"
#include "runner/backend_library.h"

namespace attest::bench {
namespace {

/// So many numbers, over and over, fill a tensor. Prime: no two rows of a cache hold the same.
constexpr size_t kPeriod = 1048573;
/// Scale of an int8 cache: codes up to about +-127 stand for numbers up to about +-4.
constexpr float kScale = 1.0F / 32;

/// Fills a tensor, each thread its part: so a page lies near the thread that reads such a part later.
void fill(Team& team, const HostTensor& tensor, size_t salt, float size) {
  const std::vector<uint8_t>& from = noise(tensor.dtype(), size);
  const auto to = tensor.bytes();
  const auto element = static_cast<size_t>(info(tensor.dtype()).size);
  const auto threads = static_cast<size_t>(team.size());
  const size_t elements = to.size() / element, share = (elements + threads - 1) / threads;
  team.run([&](int number) {
    size_t at = std::min(elements, static_cast<size_t>(number) * share);
    const size_t end = std::min(elements, at + share);
    while (at < end) {
      const size_t phase = (at + salt) % kPeriod, count = std::min(end - at, kPeriod - phase);
      std::memcpy(&to[at * element], &from[phase * element], count * element);
      at += count;
    }
  });
}

}  // namespace

const std::vector<uint8_t>& noise(DType dtype, float size) {
  static std::map<std::pair<DType, float>, std::vector<uint8_t>> made;
  auto& bytes = made[{dtype, size}];
  if (bytes.empty()) {
    const PhiloxStream stream(7, 0);
    std::vector<float> numbers(kPeriod);
    for (size_t i = 0; i < kPeriod; ++i) numbers[i] = stream.normal(i) * size;
    bytes = encode_all(dtype, numbers);
  }
  return bytes;
}

Memory::Memory(size_t bytes) : size_(std::max<size_t>(bytes, 1)) {
  void* memory = ::mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  ::madvise(memory, size_, MADV_HUGEPAGE);
  data_ = static_cast<std::byte*>(memory);
}

Memory::~Memory() {
  ::munmap(data_, size_);
}

HostTensor::HostTensor(DType dtype, std::vector<int64_t> shape, const std::vector<size_t>& order)
    : dtype_(dtype),
      shape_(std::move(shape)),
      strides_(shape_.size()),
      used_(static_cast<size_t>(elements() * info(dtype).size)),
      memory_(used_) {
  int64_t stride = 1;
  for (size_t i = shape_.size(); i-- > 0;) {
    const size_t axis = order.empty() ? i : order[i];
    strides_[axis] = stride;
    stride *= shape_[axis];
  }
  tensor_.data = memory_.data();
  tensor_.device = {kDLCPU, 0};
  tensor_.ndim = static_cast<int>(shape_.size());
  tensor_.dtype = info(dtype).dlpack;
  tensor_.shape = shape_.data();
  tensor_.strides = strides_.data();
}

int64_t HostTensor::elements() const {
  return std::accumulate(shape_.begin(), shape_.end(), int64_t{1}, std::multiplies<>());
}

std::vector<double> HostTensor::numbers(int64_t begin, int64_t count) const {
  const int64_t size = info(dtype_).size;
  std::vector<double> numbers(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    uint32_t bits = 0;
    std::memcpy(&bits, memory_.data() + (begin + i) * size, static_cast<size_t>(size));
    numbers[static_cast<size_t>(i)] = decode(dtype_, bits);
  }
  return numbers;
}

Workload::Workload(const Shape& shape, Team& team, size_t copies) : shape_(shape) {
  const Problem& p = shape_.problem;
  padded_ = *std::max_element(shape_.queries.begin(), shape_.queries.end());
  problem_ = abi_problem(p);
  team.wake();
  const auto tokens_of = [&](int64_t heads, int64_t width) {
    std::vector<int64_t> extents{p.batch, padded_};
    if (p.packed) extents = {shape_.tokens()};
    if (heads > 0) extents.push_back(heads);
    extents.push_back(width);
    return extents;
  };
  const bool layer = p.level == Level::layer;
  query_ =
      std::make_unique<HostTensor>(p.dtype, layer ? tokens_of(0, p.d_model) : tokens_of(p.query_heads, p.qk_head_dim));
  key_ = std::make_unique<HostTensor>(p.dtype, layer ? tokens_of(0, p.d_model) : tokens_of(p.kv_heads, p.qk_head_dim));
  value_ = std::make_unique<HostTensor>(p.dtype, layer ? tokens_of(0, p.d_model) : tokens_of(p.kv_heads, p.v_head_dim));
  output_ =
      std::make_unique<HostTensor>(p.dtype, layer ? tokens_of(0, p.d_model) : tokens_of(p.query_heads, p.v_head_dim));
  fill_inputs(team, 0);
  if (layer) {
    // A layer's projections keep the size of what they are given.
    const std::vector<std::pair<std::string_view, std::vector<int64_t>>> shapes{
        {"q_weight", {p.query_heads * p.qk_head_dim, p.d_model}},
        {"k_weight", {p.kv_heads * p.qk_head_dim, p.d_model}},
        {"v_weight", {p.kv_heads * p.v_head_dim, p.d_model}},
        {"out_weight", {p.d_model, p.query_heads * p.v_head_dim}}};
    for (const auto& [name, extents] : shapes) {
      weights_.push_back(std::make_unique<HostTensor>(p.dtype, extents));
      fill(team, *weights_.back(), 40011 * weights_.size(), 0x1p-6F);
      set_tensor(problem_, name, weights_.back()->get());
    }
  }
  if (p.packed) {
    start_ = std::make_unique<HostTensor>(DType::i32, std::vector<int64_t>{p.batch + 1});
    for (int64_t b = 0; b < p.batch; ++b) {
      start_->as<int32_t>()[b + 1] =
          start_->as<int32_t>()[b] + static_cast<int32_t>(shape_.queries[static_cast<size_t>(b)]);
    }
  } else {
    query_lengths_ = std::make_unique<HostTensor>(DType::i32, std::vector<int64_t>{p.batch});
    std::transform(shape_.queries.begin(), shape_.queries.end(), query_lengths_->as<int32_t>(),
                   [](int64_t count) { return static_cast<int32_t>(count); });
  }
  if (p.cache == CacheKind::paged) {
    // Pages as after a long day of serving: in no order.
    const int64_t pages = p.capacity / p.page_size;
    table_ = std::make_unique<HostTensor>(DType::i32, std::vector<int64_t>{p.batch, pages});
    const std::span<int32_t> order(table_->as<int32_t>(), static_cast<size_t>(p.batch * pages));
    std::iota(order.begin(), order.end(), 0);
    std::mt19937 random(5);
    for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random() % i]);
  }
  if (p.quantised()) {
    for (auto* scale : {&key_scale_, &value_scale_}) {
      *scale = std::make_unique<HostTensor>(DType::f32, std::vector<int64_t>{p.kv_heads});
      std::fill_n((*scale)->as<float>(), p.kv_heads, kScale);
    }
  }
  for (size_t i = 0; i < copies; ++i) make_copy(team);
  team.rest();
}

void Workload::make_copy(Team& team) {
  const Problem& p = shape_.problem;
  auto copy = std::make_unique<Copy>();
  const bool paged = p.cache == CacheKind::paged;
  const int64_t first = paged ? p.batch * (p.capacity / p.page_size) : p.batch,
                second = paged ? p.page_size : p.capacity;
  const std::vector<size_t> order =
      shape_.heads_first ? std::vector<size_t>{0, 2, 1, 3} : std::vector<size_t>{0, 1, 2, 3};
  copy->key = std::make_unique<HostTensor>(p.cache_dtype,
                                           std::vector<int64_t>{first, second, p.kv_heads, p.qk_head_dim}, order);
  copy->value =
      std::make_unique<HostTensor>(p.cache_dtype, std::vector<int64_t>{first, second, p.kv_heads, p.v_head_dim}, order);
  copy->lengths = std::make_unique<HostTensor>(DType::i32, std::vector<int64_t>{p.batch});
  const float size = p.quantised() ? 1 / kScale : 1;
  fill(team, *copy->key, 500011, size);
  fill(team, *copy->value, 900007, size);

  copy->cache.struct_size = sizeof copy->cache;
  copy->cache.key = copy->key->get();
  copy->cache.value = copy->value->get();
  copy->cache.lengths = copy->lengths->get();
  if (table_) copy->cache.block_table = table_->get();
  if (key_scale_) copy->cache.key_scale = key_scale_->get();
  if (value_scale_) copy->cache.value_scale = value_scale_->get();
  attest_step& step = copy->step;
  step.struct_size = sizeof step;
  step.query = query_->get();
  step.key = key_->get();
  step.value = value_->get();
  if (start_) {
    step.query_start = step.key_start = start_->get();
  } else {
    step.query_lengths = step.key_lengths = query_lengths_->get();
  }
  step.cache = &copy->cache;
  step.output = output_->get();
  step.max_query_length = padded_;
  for (size_t b = 0; b < shape_.before.size(); ++b) {
    step.max_total_length = std::max(step.max_total_length, shape_.before[b] + shape_.queries[b]);
  }
  note_reads(*copy);
  copies_.push_back(std::move(copy));
  rewind(copies_.size() - 1);
}

void Workload::note_reads(Copy& copy) const {
  const Problem& p = shape_.problem;
  const int64_t size = info(p.cache_dtype).size;
  for (const HostTensor* tensor : {copy.key.get(), copy.value.get()}) {
    const auto bytes = std::span<const std::byte>(tensor->bytes());
    const int64_t width = tensor == copy.key.get() ? p.qk_head_dim : p.v_head_dim;
    // A run has all heads of its tokens, or all tokens of its head.
    const int64_t heads = shape_.heads_first ? p.kv_heads : 1;
    const int64_t row = p.kv_heads / heads * width * size;
    for (int64_t b = 0; b < p.batch; ++b) {
      const auto at = static_cast<size_t>(b);
      const int64_t total = shape_.before[at] + shape_.queries[at], run = p.page_size > 0 ? p.page_size : total;
      for (int64_t t = 0; t < total; t += run) {
        for (int64_t head = 0; head < heads; ++head) {
          const int64_t begin = cache_row(b, t, head) / p.qk_head_dim * width * size;
          copy.reads.push_back(
              bytes.subspan(static_cast<size_t>(begin), static_cast<size_t>(std::min(run, total - t) * row)));
        }
      }
    }
  }
  for (const auto& weight : weights_) copy.reads.emplace_back(weight->bytes());
}

void Workload::rewind(size_t copy) {
  std::transform(shape_.before.begin(), shape_.before.end(), copies_[copy]->lengths->as<int32_t>(),
                 [](int64_t length) { return static_cast<int32_t>(length); });
}

void Workload::poison(size_t copy) {
  std::memset(output_->bytes().data(), 0xFF, output_->bytes().size());
  const Problem& p = shape_.problem;
  // No number; of an 8-bit code the one that is never used.
  const int byte = p.quantised() ? 0x80 : 0xFF;
  const Copy& its = *copies_[copy];
  for (const Run& run : appended(p.qk_head_dim)) std::memset(its.key->bytes().data() + run.begin, byte, run.size);
  for (const Run& run : appended(p.v_head_dim)) std::memset(its.value->bytes().data() + run.begin, byte, run.size);
}

std::vector<Workload::Run> Workload::appended(int64_t head_dim) const {
  const Problem& p = shape_.problem;
  const auto row_bytes = static_cast<size_t>(head_dim * info(p.cache_dtype).size);
  std::vector<size_t> rows;
  for (size_t b = 0; b < shape_.before.size(); ++b) {
    for (int64_t i = 0; i < shape_.queries[b] * p.kv_heads; ++i) {
      const int64_t row = cache_row(static_cast<int64_t>(b), shape_.before[b] + i / p.kv_heads, i % p.kv_heads);
      rows.push_back(static_cast<size_t>(row / p.qk_head_dim) * row_bytes);
    }
  }
  std::sort(rows.begin(), rows.end());
  std::vector<Run> runs;
  for (const size_t row : rows) {
    if (!runs.empty() && runs.back().begin + runs.back().size == row) {
      runs.back().size += row_bytes;
    } else {
      runs.push_back({row, row_bytes});
    }
  }
  return runs;
}

void Workload::fill_inputs(Team& team, uint64_t seed) {
  fill(team, *query_, seed + 11, 1);
  fill(team, *key_, seed + 211, 1);
  fill(team, *value_, seed + 3011, 1);
}

void Workload::renew(Team& team) {
  team.wake();
  fill_inputs(team, 70001);
  team.rest();
}

int64_t Workload::cache_row(int64_t sequence, int64_t token, int64_t head) const {
  const Problem& p = shape_.problem;
  // Sequences and their tokens, or pages and theirs.
  int64_t outer = sequence, inner = token, tokens = p.capacity;
  if (table_) {
    outer = table_->as<int32_t>()[sequence * (p.capacity / p.page_size) + token / p.page_size];
    inner = token % p.page_size;
    tokens = p.page_size;
  }
  const int64_t row =
      shape_.heads_first ? (outer * p.kv_heads + head) * tokens + inner : (outer * tokens + inner) * p.kv_heads + head;
  return row * p.qk_head_dim;
}

int64_t Workload::token_number(int64_t sequence, int64_t index) const {
  return start_ ? start_->as<int32_t>()[sequence] + index : sequence * padded_ + index;
}

double Workload::kv_scale() const {
  return shape_.problem.quantised() ? static_cast<double>(kScale) : 1;
}

}  // namespace attest::bench
