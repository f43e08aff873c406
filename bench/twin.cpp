// SPDX-License-Identifier: Apache-2.0
#include "bench/twin.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>

#include "runner/backend_library.h"
#include "runner/markup.h"

namespace attest::bench {
namespace {

size_t bytes_of(const DLTensor& tensor) {
  size_t bytes = size_t{tensor.dtype.bits} / 8 * tensor.dtype.lanes;
  for (int i = 0; i < tensor.ndim; ++i) bytes *= static_cast<size_t>(tensor.shape[i]);
  return bytes;
}

std::string size_text(size_t bytes) {
  constexpr size_t kib = 1024, mib = kib * kib;
  return bytes < mib ? fmt::format("{} KiB", (bytes + kib - 1) / kib) : fmt::format("{} MiB", (bytes + mib - 1) / mib);
}

}  // namespace

DeviceFull::DeviceFull(const std::string& why)
    : DeviceRefusal("there is not enough memory on the device: " + why), detail(why) {}

void demand(const char* what, const std::function<attest_status(attest_message*)>& call) {
  const Answer answer = ask(call);
  if (answer.status != ATTEST_OK) throw DeviceRefusal(fmt::format("{} failed: {}", what, printable(answer.message)));
}

void* Device::allocate(size_t bytes, const std::string& what) const {
  void* memory = nullptr;
  const Answer answer =
      ask([&](attest_message* m) { return table_->allocate(context_, std::max<size_t>(bytes, 1), &memory, m); });
  if (answer.status == ATTEST_OK && memory != nullptr) return memory;
  if (answer.status == ATTEST_OK) throw DeviceRefusal("allocate answered OK without memory");
  throw DeviceFull(fmt::format("{} for {}: {}", size_text(bytes), what, printable(answer.message)));
}

void Device::deallocate(void* memory) const noexcept {
  ask([&](attest_message*) { return table_->deallocate(context_, memory), ATTEST_OK; });
}

void Device::upload(void* device, const void* host, size_t bytes) const {
  demand("upload", [&](attest_message* m) { return table_->upload(context_, device, host, bytes, m); });
}

void Device::download(void* host, const void* device, size_t bytes) const {
  demand("download", [&](attest_message* m) { return table_->download(context_, host, device, bytes, m); });
}

void Device::synchronize() const {
  demand("synchronize", [&](attest_message* m) { return table_->synchronize(context_, m); });
}

Twin::Twin(const Device& device, const Workload& workload)
    : device_(device),
      problem_(workload.problem()),
      copies_(workload.copies()),
      key_runs_(workload.appended(problem_.qk_head_dim)),
      value_runs_(workload.appended(problem_.v_head_dim)) {
  problem_.q_weight = twin_tensor("q_weight", problem_.q_weight);
  problem_.k_weight = twin_tensor("k_weight", problem_.k_weight);
  problem_.v_weight = twin_tensor("v_weight", problem_.v_weight);
  problem_.out_weight = twin_tensor("out_weight", problem_.out_weight);
  for (size_t i = 0; i < copies_.size(); ++i) {
    Copy& copy = copies_[i];
    copy.step = workload.step(i);
    copy.cache = *copy.step.cache;
    attest_step& step = copy.step;
    attest_cache& cache = copy.cache;
    step.cache = &cache;
    if (i == 0) {
      inputs_ = {twin("query", step.query), twin("key", step.key), twin("value", step.value)};
      output_ = step.output;
    }
    step.query = twin_tensor("query", step.query);
    step.key = twin_tensor("key", step.key);
    step.value = twin_tensor("value", step.value);
    step.query_lengths = twin_tensor("query_lengths", step.query_lengths);
    step.key_lengths = twin_tensor("key_lengths", step.key_lengths);
    step.query_start = twin_tensor("query_start", step.query_start);
    step.key_start = twin_tensor("key_start", step.key_start);
    copy.key = twin("cache.key", cache.key);
    copy.value = twin("cache.value", cache.value);
    copy.lengths = cache.lengths;
    cache.key = &copy.key->tensor;
    cache.value = &copy.value->tensor;
    cache.block_table = twin_tensor("cache.block_table", cache.block_table);
    cache.key_scale = twin_tensor("cache.key_scale", cache.key_scale);
    cache.value_scale = twin_tensor("cache.value_scale", cache.value_scale);
  }
}

Twin::Tensor* Twin::twin(const char* name, const DLTensor* host) {
  if (host == nullptr) return nullptr;
  const auto found = tensors_.find(host);
  if (found != tensors_.end()) return &found->second;
  return &tensors_.emplace(host, make(name, *host)).first->second;
}

Twin::Tensor Twin::make(const char* name, const DLTensor& host) const {
  const size_t bytes = bytes_of(host);
  auto memory = std::make_unique<DeviceMemory>(device_, bytes, name);
  Tensor made{host, static_cast<std::byte*>(host.data), bytes, std::move(memory)};
  made.tensor.data = made.memory->data();
  made.tensor.device = device_.place();
  put(made);
  return made;
}

DLTensor* Twin::twin_tensor(const char* name, const DLTensor* host) {
  Tensor* const its = twin(name, host);
  return its != nullptr ? &its->tensor : nullptr;
}

void Twin::put(const Tensor& tensor) const {
  device_.upload(tensor.memory->data(), tensor.host, tensor.bytes);
}

void Twin::make_own(size_t count) {
  while (own_.size() < count) own_.push_back({make("cache.lengths", *copies_[0].lengths), make("output", *output_)});
}

size_t Twin::room_for(size_t steps) {
  try {
    make_own(steps);
  } catch (const DeviceRefusal&) {
    // Fewer, then. If it is out of order and not full, the next step will tell.
  }
  return std::min(steps, own_.size());
}

const std::vector<attest_step>& Twin::queue(const std::vector<size_t>& copies) {
  make_own(copies.size());
  queued_.clear();
  queued_caches_.clear();
  const DLTensor& rewound = *copies_[copies.back()].lengths;  // All copies have the same lengths.
  for (size_t i = 0; i < copies.size(); ++i) {
    device_.upload(own_[i].lengths.memory->data(), rewound.data, own_[i].lengths.bytes);
    queued_caches_.push_back(copies_[copies[i]].cache);
    queued_caches_.back().lengths = &own_[i].lengths.tensor;
    queued_.push_back(copies_[copies[i]].step);
    queued_.back().output = &own_[i].output.tensor;
  }
  for (size_t i = 0; i < copies.size(); ++i) queued_[i].cache = &queued_caches_[i];
  return queued_;
}

void Twin::put_poison(const std::vector<size_t>& copies) {
  make_own(copies.size());
  const auto slots = [&](const Tensor& tensor, const std::vector<Workload::Run>& runs) {
    for (const auto& [begin, size] : runs) device_.upload(tensor.memory->data() + begin, tensor.host + begin, size);
  };
  for (size_t i = 0; i < copies.size(); ++i) {
    put(own_[i].output);
    slots(*copies_[copies[i]].key, key_runs_);
    slots(*copies_[copies[i]].value, value_runs_);
  }
}

void Twin::put_inputs() const {
  for (const Tensor* tensor : inputs_) put(*tensor);
}

void Twin::fetch(const std::vector<size_t>& copies, size_t number) const {
  const Own& own = own_[number];
  const Copy& copy = copies_[copies[number]];
  device_.download(own.output.host, own.output.memory->data(), own.output.bytes);
  device_.download(copy.lengths->data, own.lengths.memory->data(), own.lengths.bytes);
  const auto slots = [&](const Tensor& tensor, const std::vector<Workload::Run>& runs) {
    for (const auto& [begin, size] : runs) device_.download(tensor.host + begin, tensor.memory->data() + begin, size);
  };
  slots(*copy.key, key_runs_);
  slots(*copy.value, value_runs_);
}

double Twin::look() const {
  using Clock = std::chrono::steady_clock;
  std::array<std::byte, 64> bytes{};
  const Clock::time_point begin = Clock::now();
  device_.download(bytes.data(), own_.front().output.memory->data(), std::min(bytes.size(), own_.front().output.bytes));
  return std::chrono::duration<double, std::micro>(Clock::now() - begin).count();
}

}  // namespace attest::bench
