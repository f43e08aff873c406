// SPDX-License-Identifier: Apache-2.0
// What the suite talks to. Everything else in this folder is reached from here: plan.h has the steps of a problem,
// kernels/ what runs on the device, machine.h the device itself. The same file makes `cuda_on_host`.
#include <algorithm>
#include <attest/backend.hpp>
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

/// Whether an option is not as usual, but the other way.
bool is_other(abi::Options& options, const char* name, const std::string& usual, const std::string& other) {
  const std::string given = options.take(name, usual);
  if (given != usual && given != other) {
    throw abi::Invalid(std::string("option ") + name + ": got \"" + given + "\", wanted " + usual + " or " + other);
  }
  return given == other;
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
    if (is_other(options, "overlap", "yes", "no")) settings_.machine.overlap = false;
#if defined(ATTEST_CUDA_ON_HOST)
    set_backward_order(is_other(options, "order", "forward", "backward"));
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
    product_->linear.apply(static_cast<const std::byte*>(a), static_cast<std::byte*>(c), n, {});
  }

  /// Throws what the device found wrong with the steps of plans that this thread was the last to run, replays of
  /// captured ones too, since it last asked.
  void synchronize() {
    cuda::synchronize();
    Report first{};
    {
      const std::lock_guard lock(mutex_);
      for (const Expected& one : expected_) {
        if (one.by != std::this_thread::get_id()) continue;
        if (first.fault == Fault::none) first = *one.report->get();
        *one.report->get() = Report{};
      }
      // Of plans that are gone nothing more will come. What another thread has not asked for stays.
      std::erase_if(expected_, [](const Expected& one) {
        return one.report.use_count() == 1 && one.report->get()->fault == Fault::none;
      });
    }
    refuse(first);
  }

 private:
  using Reported = std::shared_ptr<Visible<Report>>;

  void expect(Reported report) {
    const std::lock_guard lock(mutex_);
    const auto known =
        std::find_if(expected_.begin(), expected_.end(), [&](const Expected& one) { return one.report == report; });
    if (known != expected_.end()) {
      known->by = std::this_thread::get_id();
    } else {
      expected_.push_back({std::move(report), std::this_thread::get_id()});
    }
  }

  /// A plan's report, and the thread that ran it last.
  struct Expected {
    Reported report;
    std::thread::id by;
  };

  /// The last one: what was prepared for its second factor serves until that is another.
  struct Product {
    const void* weight;
    int code, bits;
    Linear linear;
  };

  Settings settings_;
  std::mutex mutex_;
  std::unique_ptr<Product> product_;
  std::vector<Expected> expected_;  ///< Of all plans that have run.
};

}  // namespace

}  // namespace attest::cuda

ATTEST_REGISTER_BACKEND(attest::cuda::Cuda)
ATTEST_REGISTER_CEILINGS(attest::cuda::Cuda)
