// SPDX-License-Identifier: Apache-2.0
// A workload in the memory of a backend that has its own.
#pragma once

#include <cstddef>
#include <functional>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "attest/backend.h"
#include "bench/workload.h"

namespace attest::bench {

/// What a device's memory functions refused, in a line.
struct DeviceRefusal : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// A device that has no memory left; what() says so, `detail` only for what it was wanted and what the device said.
struct DeviceFull : DeviceRefusal {
  explicit DeviceFull(const std::string& why);
  std::string detail;
};

/// Throws DeviceRefusal unless a call answers OK; `what` it was.
void demand(const char* what, const std::function<attest_status(attest_message*)>& call);

/// The memory functions of an open backend that has them. What they refuse is thrown as DeviceRefusal.
class Device {
 public:
  Device(const attest_backend& table, attest_context* context) : table_(&table), context_(context) {}
  [[nodiscard]] DLDevice place() const { return {static_cast<DLDeviceType>(table_->device_type), 0}; }
  [[nodiscard]] attest_context* context() const { return context_; }
  /// `what` it is for is said where there is none. Throws DeviceFull where the backend gives none.
  [[nodiscard]] void* allocate(size_t bytes, const std::string& what) const;
  void deallocate(void* memory) const noexcept;
  void upload(void* device, const void* host, size_t bytes) const;
  void download(void* host, const void* device, size_t bytes) const;
  void synchronize() const;

 private:
  const attest_backend* table_;
  attest_context* context_;
};

/// Memory of a device, given back at its end.
class DeviceMemory {
 public:
  DeviceMemory(const Device& device, size_t bytes, const std::string& what)
      : device_(device), data_(static_cast<std::byte*>(device.allocate(bytes, what))) {}
  ~DeviceMemory() { device_.deallocate(data_); }
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;
  [[nodiscard]] std::byte* data() const { return data_; }

 private:
  Device device_;
  std::byte* data_;
};

/// Every tensor of a workload a second time, in a device's memory and filled alike. The workload outlives its use: what
/// is put there and fetched from there is the workload's own.
class Twin {
 public:
  /// Throws DeviceRefusal.
  Twin(const Device& device, const Workload& workload);
  Twin(const Twin&) = delete;
  Twin& operator=(const Twin&) = delete;

  [[nodiscard]] const attest_problem& problem() const { return problem_; }

  // All of these throw DeviceRefusal.

  /// Makes room for so many queued steps; answers for how many there is, at least for those of queue() so far.
  size_t room_for(size_t steps);
  /// Steps over these copies, to be queued one after the other; good until the next call. Each has an output and
  /// lengths of its own, a copy may come several times; lengths are put there by this call, after Workload::rewind of
  /// the last.
  const std::vector<attest_step>& queue(const std::vector<size_t>& copies);
  /// Outputs and appended slots of steps over these copies, after Workload::poison of each.
  void put_poison(const std::vector<size_t>& copies);
  /// Queries, keys and values, after Workload::renew.
  void put_inputs() const;
  /// What the queued step of this number has written: output, appended slots, lengths. Into the workload's memory.
  void fetch(const std::vector<size_t>& copies, size_t number) const;
  /// Microseconds that the download of a few bytes of the output takes.
  [[nodiscard]] double look() const;

 private:
  struct Tensor {
    DLTensor tensor;
    std::byte* host;
    size_t bytes;
    std::unique_ptr<DeviceMemory> memory;
  };
  struct Copy {
    attest_cache cache;
    attest_step step;
    Tensor *key, *value;
    const DLTensor* lengths;  ///< The host's.
  };
  /// The twin of a tensor, made when it is first asked for; null of null.
  Tensor* twin(const char* name, const DLTensor* host);
  [[nodiscard]] Tensor make(const char* name, const DLTensor& host) const;
  DLTensor* twin_tensor(const char* name, const DLTensor* host);
  void put(const Tensor& tensor) const;

  Device device_;
  attest_problem problem_;
  std::map<const DLTensor*, Tensor> tensors_;
  std::vector<Copy> copies_;
  /// Of a queued step.
  struct Own {
    Tensor lengths, output;
  };
  void make_own(size_t count);
  std::vector<Own> own_;
  // Of queue().
  std::vector<attest_cache> queued_caches_;
  std::vector<attest_step> queued_;
  std::vector<Workload::Run> key_runs_, value_runs_;
  std::vector<Tensor*> inputs_;
  const DLTensor* output_ = nullptr;  ///< The host's.
};

}  // namespace attest::bench
