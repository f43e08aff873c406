// SPDX-License-Identifier: Apache-2.0
#include "bench/device_ceiling.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <vector>

#include "cases/storage.h"

namespace attest::bench {
namespace {

constexpr size_t kLeastBytes = size_t{1} << 20, kMostBytes = size_t{1} << 32;
constexpr int64_t kLeastProduct = 64, kMostProduct = 8192;

/// Seconds: the least of three, of which a hiccup of the machine is none, after one that loads and chooses kernels.
template <typename Work>
double seconds_of(Work work) {
  using Clock = std::chrono::steady_clock;
  work();
  double least = INFINITY;
  for (int i = 0; i < 3; ++i) {
    const Clock::time_point begin = Clock::now();
    work();
    least = std::min(least, std::chrono::duration<double>(Clock::now() - begin).count());
  }
  return least;
}

/// Numbers and no zeros, with which some devices are faster; `skip` of them are left out.
void fill(const Device& device, std::byte* to, size_t bytes, DType dtype, size_t skip = 0) {
  const std::vector<uint8_t>& from = noise(dtype, 1);
  size_t begin = skip * static_cast<size_t>(info(dtype).size) % from.size();
  for (size_t at = 0; at < bytes;) {
    const size_t size = std::min(from.size() - begin, bytes - at);
    device.upload(to + at, from.data() + begin, size);
    at += size;
    begin = 0;
  }
}

}  // namespace

DeviceCeiling::DeviceCeiling(const Device& device, const attest_ceilings& table, int64_t last_cache, DType dtype)
    : device_(device), table_(&table), dtype_(dtype) {
  make_pair(last_cache);
  make_product();
}

void DeviceCeiling::make_pair(int64_t last_cache) {
  for (size_t bytes = std::clamp(4 * static_cast<size_t>(last_cache), kLeastBytes, kMostBytes); bytes <= kMostBytes;
       bytes *= 2) {
    try {
      pair_.reset();  // Not two of them at once.
      pair_ = std::make_unique<Pair>(device_, bytes);
    } catch (const DeviceFull&) {
      if (bytes_ == 0) throw;
      pair_ = std::make_unique<Pair>(device_, bytes_);
      fill(device_, pair_->from.data(), bytes_, DType::f32);
      return;
    }
    bytes_ = bytes;
    fill(device_, pair_->from.data(), bytes, DType::f32);
    const double seconds = seconds_of([this] { copy(); });
    check_copy();
    if (seconds >= kEnoughWork) return;
  }
}

void DeviceCeiling::make_product() {
  const auto size = static_cast<size_t>(info(dtype_).size);
  for (int64_t n = kLeastProduct; n <= kMostProduct; n *= 2) {
    const auto make = [&](int64_t side) {
      const size_t bytes = static_cast<size_t>(side * side) * size;
      product_.reset();
      product_ = std::make_unique<Product>(device_, bytes);
      n_ = side;
      fill(device_, product_->a.data(), bytes, dtype_);
      // Others, or a product and its transpose would be the same.
      fill(device_, product_->b.data(), bytes, dtype_, 1000);
    };
    const int64_t before = n_;
    try {
      make(n);
    } catch (const DeviceFull&) {
      if (before == 0) throw;
      return make(before);
    }
    const double seconds = seconds_of([this] { multiply(); });
    check_product();
    if (seconds >= kEnoughWork) return;
  }
}

double DeviceCeiling::copy() const {
  demand("the ceiling's copy", [&](attest_message* m) {
    return table_->copy(device_.context(), pair_->to.data(), pair_->from.data(), bytes_, m);
  });
  device_.synchronize();
  return 2 * static_cast<double>(bytes_);
}

double DeviceCeiling::multiply() const {
  demand("the ceiling's product", [&](attest_message* m) {
    return table_->multiply(device_.context(), info(dtype_).dlpack, n_, product_->a.data(), product_->b.data(),
                            product_->c.data(), m);
  });
  device_.synchronize();
  return 2 * std::pow(static_cast<double>(n_), 3);
}

std::string DeviceCeiling::name() const {
  return fmt::format("copies of {} MiB, products of {}", bytes_ >> 20, n_);
}

void DeviceCeiling::check_copy() const {
  std::vector<std::byte> from(64), to(64);
  for (const size_t at : {size_t{0}, bytes_ / 2, bytes_ - from.size()}) {
    device_.download(from.data(), pair_->from.data() + at, from.size());
    device_.download(to.data(), pair_->to.data() + at, to.size());
    if (from != to) throw DeviceRefusal(fmt::format("the ceiling's copy leaves out byte {}", at));
  }
}

void DeviceCeiling::check_product() const {
  const auto size = static_cast<size_t>(info(dtype_).size), width = static_cast<size_t>(n_);
  const auto read = [&](const DeviceMemory& from, size_t begin, size_t count) {
    std::vector<uint8_t> bytes(count * size);
    device_.download(bytes.data(), from.data() + begin * size, bytes.size());
    std::vector<double> numbers(count);
    for (size_t i = 0; i < count; ++i) {
      uint32_t bits = 0;
      std::memcpy(&bits, &bytes[i * size], size);
      numbers[i] = decode(dtype_, bits);
    }
    return numbers;
  };
  for (size_t i = 0; i < 16; ++i) {
    const size_t row = i * (width - 1) / 15, column = (i * 7 % 16) * (width - 1) / 15;
    const auto a = read(product_->a, row * width, width), b = read(product_->b, column * width, width);
    double wanted = 0, magnitude = 0;
    for (size_t k = 0; k < width; ++k) {
      wanted += a[k] * b[k];
      magnitude += std::abs(a[k] * b[k]);
    }
    const double got = read(product_->c, row * width + column, 1)[0];
    // Sums in f32, whatever their order; TF32 does not fit in.
    const double allowed =
        (dtype_ == DType::f32 ? 0 : info(dtype_).unit_roundoff) * std::abs(wanted) + 4e-6 * magnitude;
    if (!(std::abs(got - wanted) <= allowed)) {
      throw DeviceRefusal(
          fmt::format("the ceiling's product has {:.6g} at [{}, {}], wanted {:.6g}", got, row, column, wanted));
    }
  }
}

}  // namespace attest::bench
