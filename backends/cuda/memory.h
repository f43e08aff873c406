// SPDX-License-Identifier: Apache-2.0
// Device memory that a plan owns.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <utility>
#include <vector>

#include "machine.h"

namespace attest::cuda {

/// Scratch that grows with the largest step so far: a step that is to be captured in a graph is run once before. What
/// was too small stays, for graphs that were captured with it; each growth doubles where there is room, so that is
/// hardly ever more than what is in use.
class Scratch {
 public:
  enum class First { as_it_is, zeros };  ///< What lies in it at first.
  explicit Scratch(First first = First::as_it_is) : first_(first) {}
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  template <class T = std::byte>
  T* get(std::int64_t count) {
    const std::size_t bytes = static_cast<std::size_t>(count) * sizeof(T);
    if (bytes > size_) {
      std::size_t size = std::max(bytes, 2 * size_);
      std::unique_ptr<void, Free> memory(take(size, bytes));
      if (first_ == First::zeros) clear(memory.get(), size);
      memory_.push_back(std::move(memory));
      size_ = size;
    }
    return memory_.empty() ? nullptr : static_cast<T*>(memory_.back().get());
  }

 private:
  struct Free {
    void operator()(void* memory) const { deallocate(memory); }
  };
  /// `size` bytes, or where that is too much no more than `least`.
  static void* take(std::size_t& size, std::size_t least) {
    try {
      return allocate(size);
    } catch (const std::exception&) {
      if (size == least) throw;
    }
    size = least;
    return allocate(size);
  }

  First first_;
  std::vector<std::unique_ptr<void, Free>> memory_;
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
