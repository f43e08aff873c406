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
  const RowTerms terms{
      .logit = logit, .dot = logit, .magnitude = magnitude, .weight = weight, .largest = largest, .head_dim = head_dim};
  return RowTolerance(terms, dtype).output(v.data(), 1, o);
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

namespace {

/// A row over f16 with v = 1, -1, 1, ... and the same blur for all keys.
struct Blurred {
  std::vector<double> logit, dot, magnitude, weight, blur, mask, v;
  double lse = 0, o = 0;

  Blurred(std::vector<double> logits, double of_each) : logit(std::move(logits)), dot(logit) {
    const size_t n = logit.size();
    magnitude.assign(n, 10);
    blur.assign(n, of_each);
    double sum = 0;
    for (const double s : logit) sum += std::exp(s);
    lse = std::log(sum);
    for (size_t j = 0; j < n; ++j) {
      weight.push_back(std::exp(logit[j]) / sum);
      v.push_back(j % 2 == 0 ? 1 : -1);
      o += weight[j] * v[j];
    }
  }
  [[nodiscard]] RowTolerance tolerance() const {
    return {{.logit = logit,
             .mask = mask,
             .dot = dot,
             .magnitude = magnitude,
             .blur = blur,
             .weight = weight,
             .lse = lse,
             .largest = *std::max_element(logit.begin(), logit.end()),
             .head_dim = 16},
            DType::f16};
  }
  [[nodiscard]] double output() const { return tolerance().output(v.data(), 1, o); }
};

}  // namespace

TEST_CASE("blurred logits: in proportion while small, never more than the values' reach") {
  const std::vector<double> logits{0, 0.5, -1, 0.25};
  const double none = Blurred(logits, 0).output();
  const double little = Blurred(logits, 1e-2).output() - none;
  const double twice = Blurred(logits, 2e-2).output() - none;
  CHECK(little > 1e-3);
  CHECK(std::fabs(twice / little - 2) < 0.1);
  const Blurred wild(logits, 50);
  CHECK(wild.output() < 2.05);
  CHECK(wild.output() > 1 + std::fabs(wild.o));
  CHECK(wild.tolerance().lse(wild.lse, 0) > 50);
  CHECK(wild.tolerance().lse(wild.lse, 0) < 53);
}

TEST_CASE("what logits that err may do is bounded by what they do at their worst") {
  const std::vector<double> logits{0, 0.5, -9, -25, 3, -3, -1, 1};
  for (const double error : {0.01, 0.1, 0.4, 0.6, 2.0, 9.0, 30.0}) {
    const Blurred row(logits, error);
    double worst = 0, worst_lse = 0;
    for (unsigned signs = 0; signs < 256; ++signs) {
      double sum = 0, o = 0;
      for (size_t j = 0; j < 8; ++j) {
        const double weight = std::exp(logits[j] + ((signs >> j & 1) != 0 ? error : -error));
        sum += weight;
        o += weight * row.v[j];
      }
      worst = std::max(worst, std::fabs(o / sum - row.o));
      worst_lse = std::max(worst_lse, std::fabs(std::log(sum) - row.lse));
    }
    INFO(error);
    CHECK(worst <= row.output());
    CHECK(worst_lse <= row.tolerance().lse(row.lse, 0));
  }
}

TEST_CASE("masks of any size leave allowed errors finite, and small beside keys that count") {
  Blurred row({0, 0.5, -3.4e38, -65504}, 0);
  row.weight = {0.4, 0.6, 0, 0};
  row.o = 0.4 - 0.6;
  row.mask = {0, 0, -3.4e38, -65504};
  CHECK(row.output() < 0.01);
  row.logit = {-3.4e38, -3.4e38, -3.4e38, -3.4e38};
  row.weight = {0.25, 0.25, 0.25, 0.25};
  row.mask = row.logit;
  row.lse = -3.4e38;
  row.o = 0;
  CHECK(row.output() < 1.1);
  CHECK(std::isfinite(row.tolerance().lse(row.lse, 1.4)));
}

TEST_CASE("numbers that are stored as the same one are rounded alike") {
  CHECK(repeated(DType::bf16, std::vector<double>{1, 2, 3, 4}) == 0);
  CHECK(repeated(DType::bf16, std::vector<double>{1, -1, 1, -2}) == 0.5);
  CHECK(repeated(DType::bf16, std::vector<double>{1, 1.001, 2, 0}) > 0.3);
  CHECK(repeated(DType::f16, std::vector<double>{1, 1.001, 2, 0}) == 0);
  CHECK(repeated(DType::f16, std::vector<double>{-3, 3, 3}) == 1);
  CHECK(repeated(DType::f16, std::vector<double>{0, 0}) == 0);
}

TEST_CASE("values read from codes: equal ones are rounded alike") {
  std::vector<double> logit, weight(64, 1.0 / 64), magnitude(64, 10), equal(64, 1.5), different;
  for (size_t j = 0; j < 64; ++j) {
    logit.push_back(1e-6 * static_cast<double>(j));
    different.push_back(1.5 + 0.02 * static_cast<double>(j));
  }
  const auto tolerance = [&](bool stores) {
    return RowTolerance({.logit = logit,
                         .dot = logit,
                         .magnitude = magnitude,
                         .weight = weight,
                         .lse = 4.16,
                         .head_dim = 16,
                         .read_error = 3 * 0x1p-24,
                         .stores_values = stores},
                        DType::bf16);
  };
  const auto more = [&](const std::vector<double>& v) {
    return tolerance(true).output(v.data(), 1, 1.5) - tolerance(false).output(v.data(), 1, 1.5);
  };
  CHECK(more(equal) >= 0x1p-8 * 1.5);
  CHECK(more(different) < 0.8 * more(equal));
}
