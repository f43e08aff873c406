// SPDX-License-Identifier: Apache-2.0
// What a device can do at most, done by the library of a backend on it (attest/ceilings.h) and checked and timed here.
#pragma once

#include <cstdint>
#include <string>

#include "attest/ceilings.h"
#include "bench/twin.h"

namespace attest::bench {

/// Seconds of a device's work, beside which launches and the waking of the host do not count.
inline constexpr double kEnoughWork = 2e-3;

class DeviceCeiling {
 public:
  /// Takes memory and finds out how much work keeps the device busy for long enough: a copy far beyond its caches, and
  /// a square product in `dtype`, as large as memory and a few milliseconds allow. Throws DeviceRefusal, also where the
  /// work is done wrong.
  /// `last_cache`: bytes of the device's.
  DeviceCeiling(const Device& device, const attest_ceilings& table, int64_t last_cache, DType dtype);

  // Each does its work once and waits for it. Throws DeviceRefusal.

  /// Answers bytes read and written.
  double copy() const;
  /// Answers operations done.
  double multiply() const;
  /// "copies of 1024 MiB, products of 8192"
  [[nodiscard]] std::string name() const;

 private:
  struct Pair {
    Pair(const Device& device, size_t bytes) : to(device, bytes, "a copy"), from(device, bytes, "a copy") {}
    DeviceMemory to, from;
  };
  struct Product {
    Product(const Device& device, size_t bytes)
        : a(device, bytes, "a product"), b(device, bytes, "a product"), c(device, bytes, "a product") {}
    DeviceMemory a, b, c;
  };
  void make_pair(int64_t last_cache);
  void make_product();
  void check_copy() const;
  void check_product() const;

  Device device_;
  const attest_ceilings* table_;
  DType dtype_;
  size_t bytes_ = 0;
  int64_t n_ = 0;
  std::unique_ptr<Pair> pair_;
  std::unique_ptr<Product> product_;
};

}  // namespace attest::bench
