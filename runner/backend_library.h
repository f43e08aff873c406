// SPDX-License-Identifier: Apache-2.0
// A backend in this process: its library, loaded and checked, and what its table is asked with. For the worker and the
// bench; the runner itself never loads a backend.
//
//   const BackendLibrary library("/path/attest-backend-mine.so");
//   attest_context* context = nullptr;
//   const Answer opened = ask([&](attest_message* m) { return library.table().open("{}", &context, m); });
//   if (opened.status != ATTEST_OK) return opened.message;
#pragma once

#include <dlpack/dlpack.h>

#include <cstddef>
#include <exception>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "attest/backend.h"
#include "attest/ceilings.h"
#include "cases/problem.h"
#include "runner/protocol.h"

namespace attest {

/// A loaded backend. The library stays in memory after this is gone: many have threads that outlive them.
class BackendLibrary {
 public:
  /// Loads and checks. Throws Error with the path: a file that is no library, no entry point, another ABI version, an
  /// incomplete table.
  explicit BackendLibrary(const std::filesystem::path& path);

  [[nodiscard]] const attest_backend& table() const { return *table_; }
  [[nodiscard]] const std::filesystem::path& path() const { return path_; }
  /// Tensors live in memory of the backend's own, so they must be uploaded and downloaded.
  [[nodiscard]] bool has_device_memory() const { return table_->allocate != nullptr; }
  /// What its device can do, complete; null if it does not export that. Throws Error for a table that has holes.
  [[nodiscard]] const attest_ceilings* ceilings() const;
  [[nodiscard]] DLDeviceType device_type() const { return static_cast<DLDeviceType>(table_->device_type); }

 private:
  std::filesystem::path path_;
  void* library_ = nullptr;
  const attest_backend* table_ = nullptr;
};

/// "cpu", "cuda", "rocm", ... ; "device 42" for one without a name.
std::string device_name(int32_t device_type);

/// What a call to a backend's table answered.
struct Answer {
  attest_status status = ATTEST_ERROR;
  std::string message;
};

/// Makes sense of what a backend returned: a number that is no status is an error that says so.
Answer answer_of(int status, const attest_message& message);
/// An exception that a backend let out, which a C function must not do. Call inside of a catch block.
Answer answer_of_exception();

/// Calls `call(attest_message*)` and takes down its answer, whatever it does short of a crash.
template <typename Call>
Answer ask(Call call) {
  attest_message message{};
  message.struct_size = sizeof message;
  try {
    return answer_of(static_cast<int>(call(&message)), message);
  } catch (...) {
    return answer_of_exception();
  }
}

/// A DLTensor together with the shape and strides that it points to.
class TensorArgument {
 public:
  /// `block` is where the first byte of the tensor's block lies, in memory of `device`.
  TensorArgument(const protocol::Tensor& tensor, void* block, DLDeviceType device);
  TensorArgument(const TensorArgument&) = delete;
  TensorArgument& operator=(const TensorArgument&) = delete;

  DLTensor* get() { return &tensor_; }

 private:
  std::vector<int64_t> shape_, strides_;
  DLTensor tensor_{};
};

/// The ABI's form of a problem, without its tensors.
attest_problem abi_problem(const Problem& problem);
/// Sets a tensor of a problem by its field's name: "q_weight". False if there is no such field.
bool set_tensor(attest_problem& problem, std::string_view name, const DLTensor* tensor);

/// The ABI's form of a step. Its tensors are set by name: "query", "cache.key".
class StepArguments {
 public:
  StepArguments(int64_t max_query_length, int64_t max_total_length);
  StepArguments(const StepArguments&) = delete;
  StepArguments& operator=(const StepArguments&) = delete;

  /// False if there is no such field. The step has a cache from its first "cache." tensor on.
  bool set(std::string_view name, DLTensor* tensor);
  [[nodiscard]] const attest_step* get() const { return &step_; }

 private:
  attest_step step_{};
  attest_cache cache_{};
};

}  // namespace attest
