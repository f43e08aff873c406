// SPDX-License-Identifier: Apache-2.0
// Arb's balls as C++ values: a midpoint and a radius that together provably contain the exact real number.
#pragma once

#if __has_include(<flint/arb.h>)
#include <flint/arb.h>  // FLINT 3
#else
#include <arb.h>  // Arb 2, as Debian 12 has it
#endif

#include <cstddef>

namespace attest {

/// A fixed-size array of balls.
class Balls {
 public:
  explicit Balls(size_t size = 0) : data_(_arb_vec_init(static_cast<slong>(size))), size_(size) {}
  ~Balls() {
    if (data_ != nullptr) _arb_vec_clear(data_, static_cast<slong>(size_));
  }
  Balls(Balls&& other) noexcept : data_(other.data_), size_(other.size_) {
    other.data_ = nullptr;
    other.size_ = 0;
  }
  Balls& operator=(Balls&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  Balls(const Balls&) = delete;
  Balls& operator=(const Balls&) = delete;

  arb_ptr operator[](size_t i) { return data_ + i; }
  arb_srcptr operator[](size_t i) const { return data_ + i; }
  [[nodiscard]] size_t size() const { return size_; }

 private:
  arb_ptr data_;
  size_t size_;
};

/// The nearest double of a ball's midpoint: for error bounds, where 53 bits are plenty.
inline double middle(arb_srcptr x) {
  return arf_get_d(arb_midref(x), ARF_RND_NEAR);
}

}  // namespace attest
