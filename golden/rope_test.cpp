// SPDX-License-Identifier: Apache-2.0
#include "golden/rope.h"

#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <numbers>

#include "cases/error.h"

using namespace attest;

namespace {

Rope plain(int64_t dim, double base) {
  Rope rope;
  rope.style = RopeStyle::half;
  rope.dim = dim;
  rope.base = base;
  return rope;
}

Rope scaled(Rope rope, RopeScaling scaling, double factor, double length = 0, double low = 0, double high = 0) {
  rope.scaling = scaling;
  rope.factor = factor;
  rope.original_length = length;
  rope.low_frequency = low;
  rope.high_frequency = high;
  return rope;
}

double frequency(const Rope& rope, size_t pair) {
  const RopeTable table(rope, 128, "test");
  return middle(table.frequencies()[pair]);
}

void check_near(double got, double wanted) {
  INFO(got << " for " << wanted);
  CHECK(std::fabs(got - wanted) <= 4e-15 * std::fabs(wanted));
}

}  // namespace

TEST_CASE("frequencies of known models") {
  const Rope llama2 = plain(128, 10000);
  check_near(frequency(llama2, 1), 0.8659643233600653);
  check_near(frequency(llama2, 32), 0.01);
  check_near(frequency(llama2, 63), 0.00011547819846894582);

  // Llama 3.1: up to pair 28 as they were, from 35 on an eighth.
  const Rope llama31 = scaled(plain(128, 500000), RopeScaling::llama3, 8, 8192, 1, 4);
  CHECK(frequency(llama31, 0) == 1);
  check_near(frequency(llama31, 28), 0.003211445994752591);
  check_near(frequency(llama31, 29), 0.002166570763503359);
  check_near(frequency(llama31, 33), 0.00031269375038406517);
  check_near(frequency(llama31, 34), 0.00017850781276799646);
  check_near(frequency(llama31, 35), 9.556212353964683e-05);
  check_near(frequency(llama31, 63), 3.068925988914511e-07);

  // DeepSeek-V2: the ramp goes from pair 10 to 23.
  const Rope deepseek = scaled(plain(64, 10000), RopeScaling::yarn, 40, 4096, 1, 32);
  CHECK(frequency(deepseek, 0) == 1);
  check_near(frequency(deepseek, 10), 0.05623413251903491);
  check_near(frequency(deepseek, 11), 0.03900692656714386);
  check_near(frequency(deepseek, 16), 0.0055);
  check_near(frequency(deepseek, 23), 3.33380358040831e-05);
  check_near(RopeTable(deepseek, 128, "test").magnitude(), 1.3688879454113936);

  // gpt-oss: the ramp goes from 8.09 to 17.40, without rounding.
  const Rope gpt_oss = scaled(plain(64, 150000), RopeScaling::yarn_unrounded, 32, 4096, 1, 32);
  check_near(frequency(gpt_oss, 8), 0.050813274815461475);
  check_near(frequency(gpt_oss, 9), 0.03170569618466377);
  check_near(frequency(gpt_oss, 13), 0.0038603593171920685);
  check_near(frequency(gpt_oss, 17), 0.0001293187012450632);
  check_near(frequency(gpt_oss, 18), 3.8308812373753384e-05);
  check_near(RopeTable(gpt_oss, 128, "test").magnitude(), 1.3465735902799727);

  const Rope ntk = scaled(plain(128, 10000), RopeScaling::ntk, 8);
  check_near(frequency(ntk, 1), 0.8378480019188024);
  check_near(frequency(ntk, 63), 1.4434774808618228e-05);
  check_near(frequency(scaled(llama2, RopeScaling::linear, 4), 32), 0.0025);
}

TEST_CASE("angles far out and below 0, in either style") {
  Rope rope = plain(8, 10000);
  RopeTable half(rope, 128, "test");
  CHECK(half.channels(1) == std::pair<size_t, size_t>(1, 5));
  rope.style = RopeStyle::interleaved;
  RopeTable interleaved(rope, 128, "test");
  CHECK(interleaved.channels(1) == std::pair<size_t, size_t>(2, 3));
  for (const int64_t t : {0, 1, -3, 131072, 16777215}) {
    const Turn& turn = half.turn(t);
    for (size_t c = 0; c < 4; ++c) {
      const long double angle = static_cast<long double>(t) * std::pow(10.0L, -static_cast<long double>(c));
      CHECK(std::fabs(turn.cosine[c] - static_cast<double>(std::cos(angle))) < 1e-11);
      CHECK(std::fabs(turn.sine[c] - static_cast<double>(std::sin(angle))) < 1e-11);
    }
    CHECK(&half.turn(t) == &turn);
  }
}

TEST_CASE("frequencies of f32 stay within their allowed error, those of 16 bits do not") {
  const double u = 0x1p-24;
  for (const double base : {10000.0, 500000.0, 1e6, 1e7}) {
    for (const int dim : {2, 8, 20, 64, 96, 128, 256}) {
      RopeTable table(plain(dim, base), 128, "test");
      float running = 1;
      const float step = std::pow(static_cast<float>(base), -2.0F / static_cast<float>(dim));
      for (size_t c = 0; c < table.pairs(); ++c) {
        const double exact = middle(table.frequencies()[c]);
        const float exponent = static_cast<float>(2 * c) / static_cast<float>(dim);
        const auto b = static_cast<float>(base);
        for (const float f : {1.0F / std::pow(b, exponent), std::pow(b, -exponent), std::exp2(-exponent * std::log2(b)),
                              std::exp(-exponent * std::log(b)), running}) {
          CHECK(std::fabs(static_cast<double>(f) - exact) <= (table.frequency_error()[c] - u) * exact);
        }
        running *= step;
        if (c > 0) CHECK(table.frequency_error()[c] < 0x1p-15);
      }
    }
  }
}

TEST_CASE("scaled frequencies of f32 stay within their allowed error") {
  const auto check = [](const Rope& rope, const auto& stretch) {
    RopeTable table(rope, 128, "test");
    for (size_t c = 0; c < table.pairs(); ++c) {
      const float plain =
          1.0F / std::pow(static_cast<float>(rope.base), static_cast<float>(2 * c) / static_cast<float>(rope.dim));
      const double exact = middle(table.frequencies()[c]);
      CHECK(std::fabs(static_cast<double>(stretch(c, plain)) - exact) <= table.frequency_error()[c] * exact);
    }
  };
  for (const double factor : {2.0, 8.0, 32.0}) {
    check(scaled(plain(128, 500000), RopeScaling::llama3, factor, 8192, 1, 4), [&](size_t, float f) {
      const auto by = static_cast<float>(factor);
      const float length = 2 * std::numbers::pi_v<float> / f;
      if (length < 8192.0F / 4) return f;
      if (length > 8192.0F) return f / by;
      const float smooth = (8192.0F / length - 1) / (4.0F - 1);
      return (1 - smooth) * f / by + smooth * f;
    });
    check(scaled(plain(64, 150000), RopeScaling::yarn_unrounded, factor, 4096, 1, 32), [&](size_t c, float f) {
      const auto dim = [](float turns) {
        return 64 * std::log(4096.0F / (turns * 2 * std::numbers::pi_v<float>)) / (2 * std::log(150000.0F));
      };
      const float low = dim(32), high = dim(1);
      const float ramp = std::min(std::max((static_cast<float>(c) - low) / (high - low), 0.0F), 1.0F);
      return f / static_cast<float>(factor) * ramp + f * (1 - ramp);
    });
    check(scaled(plain(64, 10000), RopeScaling::yarn, factor, 4096, 1, 32), [&](size_t c, float f) {
      const float ramp = std::min(std::max((static_cast<float>(c) - 10.0F) / (23.0F - 10.0F), 0.0F), 1.0F);
      const float keep = 1 - ramp;
      return f / static_cast<float>(factor) * (1 - keep) + f * keep;
    });
  }
}

TEST_CASE("a ramp whose end f32 could not find is refused") {
  // dim(x) = 8 ln(N / 2 pi x) / (2 ln 10000) = 2 for N / 2 pi x = 100.
  Rope rope = scaled(plain(8, 10000), RopeScaling::yarn, 4, 200 * std::numbers::pi, 0.5, 1);
  CHECK_THROWS_AS(RopeTable(rope, 128, "test"), Error);
  rope.original_length = 800;
  CHECK_NOTHROW(RopeTable(rope, 128, "test"));
}
