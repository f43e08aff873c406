// SPDX-License-Identifier: Apache-2.0
// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): the suite's only source of
// randomness. Counter-based, so element i needs no state, and integer-only, so every language gets the same bits.
#pragma once

#include <array>
#include <cstdint>

namespace attest {

using PhiloxWords = std::array<uint32_t, 4>;

constexpr PhiloxWords philox4x32_10(PhiloxWords counter, std::array<uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53} * counter[0];
    const uint64_t product1 = uint64_t{0xCD9E8D57} * counter[2];
    counter = {static_cast<uint32_t>(product1 >> 32) ^ counter[1] ^ key[0], static_cast<uint32_t>(product1),
               static_cast<uint32_t>(product0 >> 32) ^ counter[3] ^ key[1], static_cast<uint32_t>(product0)};
    key = {key[0] + 0x9E3779B9U, key[1] + 0xBB67AE85U};
  }
  return counter;
}

/// One stream per (seed, tensor): word i of the stream depends on nothing but these three numbers.
class PhiloxStream {
 public:
  constexpr PhiloxStream(uint64_t seed, uint32_t tensor) : seed_(seed), tensor_(tensor) {}

  [[nodiscard]] constexpr PhiloxWords words(uint64_t index) const {
    return philox4x32_10({static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32), tensor_, 0},
                         {static_cast<uint32_t>(seed_), static_cast<uint32_t>(seed_ >> 32)});
  }

  /// Irwin-Hall sum of eight 16-bit uniforms, centred: |z| <= 262140, standard deviation 53511, nearly normal.
  [[nodiscard]] constexpr int32_t bell(uint64_t index) const {
    int64_t sum = -262140;
    for (const uint32_t word : words(index)) sum += static_cast<int64_t>((word & 0xffff) + (word >> 16));
    return static_cast<int32_t>(sum);
  }

  /// The bell on the f32 grid: multiples of 2^-16, |x| <= 4, standard deviation 0.816.
  [[nodiscard]] constexpr float normal(uint64_t index) const { return static_cast<float>(bell(index)) * 0x1p-16F; }

 private:
  uint64_t seed_;
  uint32_t tensor_;
};

}  // namespace attest
