// SPDX-License-Identifier: Apache-2.0
#include "golden/tolerance.h"

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <cmath>

using namespace attest;

namespace {

double allowed(const std::vector<double>& logit, const std::vector<double>& v, int64_t head_dim,
               DType dtype = DType::f32) {
  const double largest = *std::max_element(logit.begin(), logit.end());
  std::vector<double> weight;
  double sum = 0, o = 0;
  for (const double s : logit) sum += std::exp(s - largest);
  for (const double s : logit) weight.push_back(std::exp(s - largest) / sum);
  for (size_t j = 0; j < v.size(); ++j) o += weight[j] * v[j];
  std::vector<double> magnitude(logit.size(), 10);
  return RowTolerance({logit, {}, logit, magnitude, weight, largest, 0, 0, 0, head_dim}, dtype).output(v.data(), 1, o);
}

}  // namespace

TEST_CASE("growth: linear for few terms, a random walk, then truncating hardware's n/8") {
  CHECK(sum_growth(1) == 1);
  CHECK(sum_growth(16) == 16);
  CHECK(sum_growth(64) == 32);
  CHECK(sum_growth(8192) == 1024);
}

TEST_CASE("f32 bounds are stored rounded up") {
  CHECK(static_cast<double>(round_up(0.1)) >= 0.1);
  CHECK(round_up(0.5) == 0.5F);
  CHECK(round_up(1e-60) > 0);
}

TEST_CASE("one key: its value, two roundings and the sum's constant") {
  const double u = 0x1p-24;
  CHECK(allowed({3.0}, {2.0}, 16) <= u * 2 + (1 + 8) * u * 4 + 1e-12);  // |v - o| is 0: no error of the logit counts
}

TEST_CASE("the allowed error grows with logits, dot length, ties and narrow storage") {
  const std::vector<double> v{1, -1, 0.5, 2};
  const std::vector<double> near{1, 1.1, 1.2, 1.3}, far{1001, 1001.1, 1001.2, 1001.3};
  CHECK(allowed(far, v, 16) > allowed(near, v, 16));
  CHECK(allowed(near, v, 256) > allowed(near, v, 16));
  CHECK(allowed(near, v, 16, DType::bf16) > allowed(near, v, 16, DType::f16));
  const std::vector<double> many(1024, 1.0);
  std::vector<double> spread(1024), ones(1024, 1.0);
  for (size_t j = 0; j < spread.size(); ++j) spread[j] = 1.0 + 1e-9 * static_cast<double>(j);
  CHECK(allowed(many, ones, 16) > 2 * allowed(spread, ones, 16));
}

TEST_CASE("sequential f32 sums of tied terms stay within the bound") {
  for (const size_t n : {16U, 100U, 1000U, 5000U}) {
    const std::vector<double> logit(n, 0.0);
    std::vector<double> v(n);
    float sum = 0;
    double exact = 0;
    for (size_t j = 0; j < n; ++j) {
      v[j] = static_cast<double>(1.0F + static_cast<float>((j * 37) % 128) / 128.0F);
      sum += static_cast<float>(v[j]);
      exact += v[j];
    }
    const auto count = static_cast<double>(n);
    const double error = std::fabs(static_cast<double>(sum / static_cast<float>(n)) - exact / count);
    CHECK(error <= allowed(logit, v, 16));
  }
}
