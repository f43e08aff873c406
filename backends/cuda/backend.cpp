// SPDX-License-Identifier: Apache-2.0
// What the suite talks to. Everything else in this folder is reached from here: plan.h has the steps of a problem,
// kernels/ what runs on the device, machine.h the device itself. The same file makes `cuda_on_host`.
#include <attest/backend.hpp>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "linear.h"
#include "machine.h"
#include "plan.h"
#include "refusal.h"

namespace attest::cuda {

namespace {

/// 0 if the option was not given.
int count_or_none(abi::Options& options, const char* name) {
  constexpr int none = 1'000'000;  // More than can be given.
  const int count = options.take_count(name, none);
  return count == none ? 0 : count;
}

class Cuda {
 public:
#if defined(ATTEST_CUDA_ON_HOST)
  static constexpr const char* name = "cuda_on_host";
  static constexpr DLDeviceType device_type = kDLCPU;
#else
  static constexpr const char* name = "cuda";
  static constexpr DLDeviceType device_type = kDLCUDA;
#endif
  static constexpr const char* version = "0.1";
  // Sums have a fixed order. Where tokens lie does not change it either (d3), but cuBLASLt may choose another product
  // where there is more padding.
  static constexpr const char* declarations = R"({"determinism": ["d0"]})";
  static std::string description() {
    return machine_description();
  }

  explicit Cuda(abi::Options& options) : settings_{find_machine(), count_or_none(options, "split_keys"), device_type} {
    const int rows = count_or_none(options, "wgmma_rows");
    if (rows > 0 && settings_.machine.warpgroup_rows > 0) settings_.machine.warpgroup_rows = rows;
#if defined(ATTEST_CUDA_ON_HOST)
    const std::string order = options.take("order", "forward");
    if (order != "forward" && order != "backward") {
      throw abi::Invalid("option order: got \"" + order + "\", wanted forward or backward");
    }
    set_backward_order(order == "backward");
#endif
  }

  class Plan {
   public:
    Plan(Cuda& cuda, const attest_problem& problem) : cuda_(cuda), plan_(cuda.settings_, problem) {}
    void run(const attest_step& step) {
      // Before anything is queued: a step that fails half-way may have been refused as well.
      cuda_.expect(plan_.report());
      plan_.run(step);
    }

   private:
    Cuda& cuda_;
    StepPlan plan_;
  };

  void* allocate(std::size_t bytes) {
    return cuda::allocate(bytes);
  }
  void deallocate(void* memory) noexcept {
    cuda::deallocate(memory);
  }
  void upload(void* device, const void* host, std::size_t bytes) {
    cuda::upload(device, host, bytes);
  }
  void download(void* host, const void* device, std::size_t bytes) {
    cuda::download(host, device, bytes);
  }

  // The ceilings (attest/ceilings.h).
  [[nodiscard]] std::int64_t last_cache() const {
    return settings_.machine.last_cache;
  }
  void copy(void* to, const void* from, std::size_t bytes) {
    cuda::copy(to, from, bytes);
  }
  /// As the projections of the layer level: by cuBLASLt, without TF32.
  void multiply(DLDataType dtype, std::int64_t n, const void* a, const void* b, void* c) {
    const std::lock_guard lock(mutex_);
    // The emulation's layer has a copy of its weight.
    if (!product_ || device_type == kDLCPU || product_->weight != b || product_->linear.in() != n ||
        product_->bits != dtype.bits || product_->code != dtype.code) {
      std::int64_t shape[] = {n, n}, strides[] = {n, 1};
      const DLTensor weight{const_cast<void*>(b), {device_type, 0}, 2, dtype, shape, strides, 0};
      product_.reset();
      product_ = std::make_unique<Product>(Product{b, dtype.code, dtype.bits, Linear(weight, nullptr)});
    }
    product_->linear.apply(static_cast<const std::byte*>(a), static_cast<std::byte*>(c), n, nullptr);
  }

  /// Throws what the device found wrong with the steps that this thread has run since it last asked.
  void synchronize() {
    std::vector<Reported> mine;
    {
      const std::lock_guard lock(mutex_);
      mine.swap(expected_[std::this_thread::get_id()]);
      expected_.erase(std::this_thread::get_id());
    }
    cuda::synchronize();
    Report first{};
    for (const Reported& reported : mine) {
      if (first.fault == Fault::none) first = *reported->get();
      *reported->get() = Report{};
    }
    refuse(first);
  }

 private:
  using Reported = std::shared_ptr<Visible<Report>>;

  void expect(Reported report) {
    const std::lock_guard lock(mutex_);
    std::vector<Reported>& mine = expected_[std::this_thread::get_id()];
    if (mine.empty() || mine.back() != report) mine.push_back(std::move(report));
  }

  /// The last one: what was prepared for its second factor serves until that is another.
  struct Product {
    const void* weight;
    int code, bits;
    Linear linear;
  };

  Settings settings_;
  std::mutex mutex_;
  std::unique_ptr<Product> product_;
  std::map<std::thread::id, std::vector<Reported>> expected_;
};

}  // namespace

}  // namespace attest::cuda

ATTEST_REGISTER_BACKEND(attest::cuda::Cuda)
ATTEST_REGISTER_CEILINGS(attest::cuda::Cuda)
