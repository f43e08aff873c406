// SPDX-License-Identifier: Apache-2.0
#include "softmax.h"

#include <algorithm>
#include <bit>
#include <limits>

#include "clones.h"

namespace attest::onednn {

namespace {

// exp(x) for x <= 0, without a branch so that the loop around it becomes vector code. x = n ln 2 + r with |r| <= ln 2 /
// 2; ln 2 is split so that n times its first part is exact, and the polynomial is Cephes' expf.
inline float exponential(float x) {
  x = x < -104.0f ? -104.0f : x;  // exp(-104) rounds to 0; below, n would leave the range of the two factors.
  constexpr float to_integer = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number.
  const float n = (x * 1.44269504088896341f + to_integer) - to_integer;
  const float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  // 2^n in two factors, because below n = -126 one float cannot hold it while the result is still a subnormal number.
  const int whole = static_cast<int>(n), half = whole >> 1;
  return p * std::bit_cast<float>((half + 127) << 23) * std::bit_cast<float>((whole - half + 127) << 23);
}

}  // namespace

ATTEST_ONEDNN_CLONES
RowSum exponentials(float* row, std::int64_t visible, std::int64_t columns, float scale, float at_least) {
  float largest = at_least;
#pragma omp simd reduction(max : largest)
  for (std::int64_t j = 0; j < visible; ++j) {
    row[j] *= scale;
    largest = std::max(largest, row[j]);
  }
  if (largest == -std::numeric_limits<float>::infinity()) {  // All are masked, and the difference of two would be NaN.
    std::fill(row, row + columns, 0.0f);
    return {largest, 0};
  }
  // Short sums in float, their sum in double: a long row of equal logits would make float's errors add up.
  constexpr std::int64_t block = 256;
  double sum = 0;
  for (std::int64_t begin = 0; begin < visible; begin += block) {
    const std::int64_t end = std::min(begin + block, visible);
    float part = 0;
#pragma omp simd reduction(+ : part)
    for (std::int64_t j = begin; j < end; ++j) {
      row[j] = exponential(row[j] - largest);
      part += row[j];
    }
    sum += static_cast<double>(part);
  }
  std::fill(row + visible, row + columns, 0.0f);
  return {largest, sum};
}

}  // namespace attest::onednn
