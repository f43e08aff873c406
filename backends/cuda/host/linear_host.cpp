// SPDX-License-Identifier: Apache-2.0
#include <attest/backend.hpp>
#include <vector>

#include "../linear.h"

namespace attest::cuda {

struct Linear::Parts {
  abi::Storage storage;
  std::vector<float> weight, bias;
};

Linear::Linear(const DLTensor& weight, const DLTensor* bias)
    : in_(weight.shape[1]), out_(weight.shape[0]), parts_(new Parts{abi::storage_of(weight.dtype), {}, {}}) {
  const abi::NumberView<2> w(weight);
  for (std::int64_t o = 0; o < out_; ++o) {
    for (std::int64_t i = 0; i < in_; ++i) parts_->weight.push_back(w(o, i));
  }
  parts_->bias.resize(static_cast<std::size_t>(out_));
  if (bias == nullptr) return;
  const abi::NumberView<1> b(*bias);
  for (std::int64_t o = 0; o < out_; ++o) parts_->bias[static_cast<std::size_t>(o)] = b(o);
}
Linear::Linear(Linear&&) noexcept = default;
Linear::~Linear() = default;

void Linear::apply(const std::byte* x, std::byte* y, std::int64_t rows, Stream) {
  const auto bytes = static_cast<std::int64_t>(abi::bytes_of(parts_->storage));
  std::vector<float> row(static_cast<std::size_t>(in_));
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t i = 0; i < in_; ++i) {
      row[static_cast<std::size_t>(i)] = abi::load(parts_->storage, x + (r * in_ + i) * bytes);
    }
    for (std::int64_t o = 0; o < out_; ++o) {
      const float* const w = parts_->weight.data() + o * in_;
      float sum = 0;
      for (std::int64_t i = 0; i < in_; ++i) sum += w[i] * row[static_cast<std::size_t>(i)];
      abi::store(parts_->storage, sum + parts_->bias[static_cast<std::size_t>(o)], y + (r * out_ + o) * bytes);
    }
  }
}

}  // namespace attest::cuda
