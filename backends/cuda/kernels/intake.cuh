// SPDX-License-Identifier: Apache-2.0
// New tokens on their way in: QK-norm, RoPE and quantisation, each where the problem has it, in one pass from where the
// tokens lie (inputs or projections) to where attention reads them: the cache itself, or memory of the plan's. A warp
// makes one head of one token. Queries, keys and values go in one launch.
#pragma once

#include "arguments.h"
#include "device.cuh"

namespace attest::cuda {

/// Grid: groups of heads of tokens (in steps of the grid's width) x sides x sequences.
struct Intake {
  static constexpr int threads = 128, blocks = 4;
  using Arguments = IntakeArguments;

  ATTEST_DEVICE static void run(const Arguments& a, std::byte*) {
    if (*a.go == 0) return;
    const IntakeSide& side = a.sides[block_index().y];
    if (side.active == 0) return;
    const std::int32_t b = block_index().z;
    const Sequence s = a.sequences[b];
    const std::int32_t count = side.is_query != 0 ? s.queries : s.keys;
    constexpr std::int32_t warps = threads / 32;
    const std::int32_t groups = (side.heads + warps - 1) / warps;
    for (std::int32_t i = block_index().x; i < count * groups; i += grid_width()) {
      const std::int32_t t = i / groups, h = (i - t * groups) * warps + thread_index() / 32;
      if (h < side.heads) make(a, side, s, b, t, h);
    }
  }

 private:
  /// One head of one token before it is stored.
  struct Head {
    const Rope* rope;
    const IntakeSide* side;
    const std::byte* from;
    double norm, position;

    [[nodiscard]] ATTEST_DEVICE float given(std::int32_t c) const {
      const std::int64_t bytes = side->from.channel * element_bytes(side->from.storage);
      const float x = load_number(side->from.storage, from + c * bytes);
      if (side->norm == nullptr) return x;
      const std::int64_t weight_bytes = side->norm_stride * element_bytes(side->norm_storage);
      const float weight = load_number(side->norm_storage, side->norm + c * weight_bytes);
      return static_cast<float>(static_cast<double>(weight) * (static_cast<double>(x) * norm));
    }

    [[nodiscard]] ATTEST_DEVICE float operator()(std::int32_t c) const {
      if (side->turns == 0 || c >= 2 * rope->pairs) return given(c);
      const std::int32_t pair = rope->interleaved != 0 ? c / 2 : c % rope->pairs;
      const bool second = rope->interleaved != 0 ? c % 2 != 0 : c >= rope->pairs;
      const std::int32_t apart = rope->interleaved != 0 ? 1 : rope->pairs;
      // The angle in double, without its whole turns: in f32 it would be known to 0.06 at position 100,000.
      constexpr double turn = 6.283185307179586477, turns = 0.159154943091895335769;
      const double angle = position * rope->frequency[pair];
      const auto rest = static_cast<float>(angle - turn * rint(angle * turns));
      const float cosine = cosf(rest) * static_cast<float>(rope->magnitude);
      const float sine = sinf(rest) * static_cast<float>(rope->magnitude);
      const float x = given(second ? c - apart : c), y = given(second ? c : c + apart);
      return second ? x * sine + y * cosine : x * cosine - y * sine;
    }
  };

  ATTEST_DEVICE static void make(const Arguments& a, const IntakeSide& side, const Sequence& s, std::int32_t b,
                                 std::int32_t t, std::int32_t h) {
    const std::int32_t start = side.is_query != 0 ? s.query_start : s.key_start;
    const std::int32_t lane = thread_index() % 32;
    Head head{&a.rope, &side, side.from.at(b, start + t, h), 1, 0};
    if (side.norm != nullptr) head.norm = norm(a, side, head);
    if (side.turns != 0 && a.rope.pairs > 0) {
      const std::int64_t first = side.is_query != 0 ? s.total() - s.queries : s.past;
      head.position = static_cast<double>(
          a.rope.positions == nullptr
              ? first + t
              : a.rope.positions[b * a.rope.position_sequence + (start + t) * a.rope.position_token]);
    }
    if (side.is_query != 0) {
      for (std::int32_t c = lane; c < side.width; c += 32) {
        store_number(side.to.storage, head(c), side.to.at(b, start + t, h, c));
      }
      return;
    }
    const Slots::Slot slot = side.to_cache != 0 ? a.slots(b, s.past + t) : Slots::Slot{0, 0, true};
    if (!slot.there) return;
    const Storage storage = side.kv.cache.storage;
    std::byte* const to = side.to_cache != 0 ? side.kv.cache.at(slot, h) : side.to.at(b, start + t, h);
    const std::int64_t step = (side.to_cache != 0 ? side.kv.cache.channel : side.to.channel) * element_bytes(storage);
    float scale = 1;
    if (side.kv.cache.scale_per_token != 0) {
      scale = largest(side, head) / (storage == Storage::i8 ? 127.0f : storage == Storage::f8_e4m3 ? 448.0f : 57344.0f);
      if (scale == 0) scale = 1;  // All codes are 0 then.
      float* const kept = side.to_cache != 0 ? side.kv.cache.scale(slot, h)
                                             : side.kv.fresh_scales + b * side.kv.fresh_scale_sequence +
                                                   (start + t) * side.kv.fresh_scale_token + h;
      if (lane == 0) *kept = scale;
    } else if (side.kv.cache.scales != nullptr) {
      scale = *side.kv.cache.scale({0, 0, true}, h);
    }
    for (std::int32_t c = lane; c < side.width; c += 32) store_number(storage, head(c) / scale, to + c * step);
  }

  /// 1 / sqrt(mean(x^2) + epsilon), in double: the squares of legal floats may overflow.
  ATTEST_DEVICE static double norm(const Arguments& a, const IntakeSide& side, const Head& head) {
    const std::int64_t bytes = side.from.channel * element_bytes(side.from.storage);
    double squares = 0;
    for (std::int32_t c = thread_index() % 32; c < side.width; c += 32) {
      const double x = load_number(side.from.storage, head.from + c * bytes);
      squares += x * x;
    }
    for (int mask = 16; mask > 0; mask /= 2) squares += shuffle_xor(squares, mask);
    return 1 / sqrt(squares / side.width + a.norm_epsilon);
  }

  ATTEST_DEVICE static float largest(const IntakeSide& side, const Head& head) {
    float most = 0;
    for (std::int32_t c = thread_index() % 32; c < side.width; c += 32) most = fmaxf(most, fabsf(head(c)));
    for (int mask = 16; mask > 0; mask /= 2) most = fmaxf(most, shuffle_xor(most, mask));
    return most;
  }
};

/// A ring's new tokens, once attention is done with what they overwrite: from the plan's memory to their slots. Grid:
/// tokens (in steps of the grid's width) x (keys, values) x sequences.
struct Store {
  static constexpr int threads = 128, blocks = 4;
  using Arguments = StoreArguments;

  ATTEST_DEVICE static void run(const Arguments& a, std::byte*) {
    if (*a.go == 0) return;
    const KvSide& side = a.sides[block_index().y];
    const std::int32_t b = block_index().z, bytes = element_bytes(side.cache.storage);
    const Sequence s = a.sequences[b];
    // Of a step that is longer than the ring the last tokens only: each slot is written once.
    const std::int32_t first = larger(0, s.keys - a.slots.divisor);
    for (std::int32_t t = first + block_index().x; t < s.keys; t += grid_width()) {
      const Slots::Slot slot = a.slots(b, s.past + t);
      for (std::int32_t i = thread_index(); i < a.heads * side.width; i += threads) {
        const std::int32_t h = i / side.width, c = i - h * side.width;
        const std::byte* const from = side.fresh.at(b, s.key_start + t, h, c);
        std::byte* const to = side.cache.at(slot, h, c);
        for (std::int32_t k = 0; k < bytes; ++k) to[k] = from[k];
      }
      if (side.cache.scale_per_token == 0) continue;
      for (std::int32_t h = thread_index(); h < a.heads; h += threads) {
        *side.cache.scale(slot, h) = side.fresh_scale(b, s.key_start + t, h);
      }
    }
  }
};

}  // namespace attest::cuda
