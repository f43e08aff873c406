// SPDX-License-Identifier: Apache-2.0
// Device memory that a plan owns.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "machine.h"

namespace attest::cuda {

/// Scratch that grows with the largest step so far: a step that is to be captured in a graph is run once before.
class Scratch {
 public:
  template <class T = std::byte>
  T* get(std::int64_t count) {
    const std::size_t bytes = static_cast<std::size_t>(count) * sizeof(T);
    if (bytes > size_) {
      memory_.reset();  // Waits for whoever still uses it.
      size_ = 0;
      memory_.reset(allocate(bytes));
      size_ = bytes;
    }
    return static_cast<T*>(memory_.get());
  }

 private:
  struct Free {
    void operator()(void* memory) const { deallocate(memory); }
  };
  std::unique_ptr<void, Free> memory_;
  std::size_t size_ = 0;
};

/// A copy of host values; null if there are none.
template <class T>
class Uploaded {
 public:
  explicit Uploaded(const std::vector<T>& values) {
    if (values.empty()) return;
    data_ = memory_.template get<T>(static_cast<std::int64_t>(values.size()));
    upload(data_, values.data(), values.size() * sizeof(T));
  }
  [[nodiscard]] T* data() const { return data_; }

 private:
  Scratch memory_;
  T* data_ = nullptr;
};

/// One T that the device writes and the host reads, zeroed at first.
template <class T>
class Visible {
 public:
  Visible() : memory_(static_cast<T*>(allocate_visible(sizeof(T)))) {}
  [[nodiscard]] T* get() const { return memory_.get(); }

 private:
  struct Free {
    void operator()(T* memory) const { deallocate_visible(memory); }
  };
  std::unique_ptr<T, Free> memory_;
};

}  // namespace attest::cuda
