// SPDX-License-Identifier: Apache-2.0
#include "bench/ceiling.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#define ATTEST_BENCH_X86
#endif

namespace attest::bench {
namespace {

/// Where sums end, so that no compiler leaves the work out.
std::atomic<uint64_t> sink{0};

constexpr int64_t kRounds = 20000;
constexpr int64_t kChains = 10;  // more than the latency (4 cycles) times the units (2) that any of these machines has

uint64_t read_plain(const std::byte* data, size_t bytes) {
  uint64_t sums[4] = {0, 0, 0, 0};
  size_t i = 0;
  for (; i + 32 <= bytes; i += 32) {
    uint64_t words[4];
    std::memcpy(words, data + i, sizeof words);
    for (int w = 0; w < 4; ++w) sums[w] ^= words[w];
  }
  for (; i < bytes; ++i) sums[0] ^= static_cast<uint64_t>(data[i]);
  return sums[0] ^ sums[1] ^ sums[2] ^ sums[3];
}

double multiply_plain() {
  float sums[4 * kChains];
  std::fill(std::begin(sums), std::end(sums), 1.0F);
  for (int64_t r = 0; r < kRounds; ++r) {
    for (float& sum : sums) sum = sum * 0.999F + 0.001F;
  }
  float all = 0;
  for (const float sum : sums) all += sum;
  sink.fetch_add(static_cast<uint64_t>(all), std::memory_order_relaxed);
  return 2.0 * 4 * kChains * kRounds;
}

#ifdef ATTEST_BENCH_X86
__attribute__((target("avx2"))) uint64_t read_avx2(const std::byte* data, size_t bytes) {
  __m256i a = _mm256_setzero_si256(), b = a, c = a, d = a;
  size_t i = 0;
  for (; i + 128 <= bytes; i += 128) {
    const auto* at = reinterpret_cast<const __m256i*>(data + i);
    a = _mm256_xor_si256(a, _mm256_loadu_si256(at));
    b = _mm256_xor_si256(b, _mm256_loadu_si256(at + 1));
    c = _mm256_xor_si256(c, _mm256_loadu_si256(at + 2));
    d = _mm256_xor_si256(d, _mm256_loadu_si256(at + 3));
  }
  alignas(32) uint64_t words[4];
  _mm256_store_si256(reinterpret_cast<__m256i*>(words),
                     _mm256_xor_si256(_mm256_xor_si256(a, b), _mm256_xor_si256(c, d)));
  return words[0] ^ words[1] ^ words[2] ^ words[3] ^ read_plain(data + i, bytes - i);
}

__attribute__((target("avx2,fma"))) double multiply_avx2() {
  __m256 sums[kChains];
  for (auto& sum : sums) sum = _mm256_set1_ps(1.0F);
  const __m256 factor = _mm256_set1_ps(0.999F), term = _mm256_set1_ps(0.001F);
  for (int64_t r = 0; r < kRounds; ++r) {
#pragma GCC unroll 10
    for (int64_t c = 0; c < kChains; ++c) sums[c] = _mm256_fmadd_ps(sums[c], factor, term);
  }
  __m256 all = sums[0];
  for (int64_t c = 1; c < kChains; ++c) all = _mm256_add_ps(all, sums[c]);
  sink.fetch_add(static_cast<uint64_t>(_mm256_cvtss_f32(all)), std::memory_order_relaxed);
  return 2.0 * 8 * kChains * kRounds;
}

__attribute__((target("avx512f"))) double multiply_avx512() {
  __m512 sums[kChains];
  for (auto& sum : sums) sum = _mm512_set1_ps(1.0F);
  const __m512 factor = _mm512_set1_ps(0.999F), term = _mm512_set1_ps(0.001F);
  for (int64_t r = 0; r < kRounds; ++r) {
#pragma GCC unroll 10
    for (int64_t c = 0; c < kChains; ++c) sums[c] = _mm512_fmadd_ps(sums[c], factor, term);
  }
  __m512 all = sums[0];
  for (int64_t c = 1; c < kChains; ++c) all = _mm512_add_ps(all, sums[c]);
  sink.fetch_add(static_cast<uint64_t>(_mm512_cvtss_f32(all)), std::memory_order_relaxed);
  return 2.0 * 16 * kChains * kRounds;
}
#endif

uint64_t read_run(const std::byte* data, size_t bytes) {
#ifdef ATTEST_BENCH_X86
  if (__builtin_cpu_supports("avx2")) return read_avx2(data, bytes);
#endif
  return read_plain(data, bytes);
}

}  // namespace

double bytes_in(const std::vector<std::span<const std::byte>>& runs) {
  double bytes = 0;
  for (const auto& run : runs) bytes += static_cast<double>(run.size());
  return bytes;
}

void read_all(Team& team, const std::vector<std::span<const std::byte>>& runs) {
  size_t all = 0;
  for (const auto& run : runs) all += run.size();
  const auto threads = static_cast<size_t>(team.size());
  const size_t share = (all + threads - 1) / threads;
  team.run([&](int number) {
    const size_t begin = static_cast<size_t>(number) * share, end = std::min(all, begin + share);
    size_t at = 0;
    uint64_t sum = 0;
    for (const auto& run : runs) {
      const size_t from = std::max(begin, at), to = std::min(end, at + run.size());
      if (from < to) sum ^= read_run(run.data() + (from - at), to - from);
      at += run.size();
    }
    sink.fetch_xor(sum, std::memory_order_relaxed);
  });
}

double multiply_add(Team& team) {
  std::vector<double> done(static_cast<size_t>(team.size()));
  team.run([&](int number) {
#ifdef ATTEST_BENCH_X86
    if (__builtin_cpu_supports("avx512f")) {
      done[static_cast<size_t>(number)] = multiply_avx512();
      return;
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
      done[static_cast<size_t>(number)] = multiply_avx2();
      return;
    }
#endif
    done[static_cast<size_t>(number)] = multiply_plain();
  });
  double all = 0;
  for (const double one : done) all += one;
  return all;
}

std::string multiply_add_name() {
#ifdef ATTEST_BENCH_X86
  if (__builtin_cpu_supports("avx512f")) return "AVX-512";
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return "AVX2";
#endif
  return "the compiler's";
}

}  // namespace attest::bench
