// SPDX-License-Identifier: Apache-2.0
#include "cases/recipes.h"

#include <bit>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>

#include "cases/mask.h"
#include "cases/philox.h"

namespace attest {
namespace {

/// What recipes share: the case's numbers, and hashes of small integers.
class Base : public Recipe {
 public:
  Base(const Case& c, const Timeline& timeline)
      : problem_(c.problem),
        seed_(static_cast<uint64_t>(c.inputs.seed)),
        scale_(c.problem.scale.value_or(1.0 / std::sqrt(static_cast<double>(c.problem.qk_head_dim)))) {
    for (const Moment& moment : timeline) {
      for (const auto& sequence : moment.incoming) {
        if (!sequence.empty()) positions_ = std::max(positions_, sequence.back().position + 1);
      }
    }
  }

  void query(const Row& row, int64_t head, std::span<float> out) const override {
    normal(Role::query, row.data, (row.serial * problem_.query_heads + head), out);
  }
  void key(const Token& token, int64_t kv_head, std::span<float> out) const override {
    normal(Role::key, token.data, token.serial * problem_.kv_heads + kv_head, out);
  }
  void value(const Token& token, int64_t kv_head, std::span<float> out) const override {
    normal(Role::value, token.data, token.serial * problem_.kv_heads + kv_head, out);
  }

  [[nodiscard]] float sink(int64_t head) const override {
    return static_cast<float>(std::floor(stream(Role::sinks, 0).normal(static_cast<uint64_t>(head)) * 32.0F)) * 0x1p-4F;
  }

 protected:
  [[nodiscard]] PhiloxStream stream(Role role, int64_t sequence) const {
    return {seed_, static_cast<uint32_t>(role) | static_cast<uint32_t>(sequence) << 8};
  }

  void normal(Role role, int64_t sequence, int64_t vector, std::span<float> out) const {
    const PhiloxStream source = stream(role, sequence);
    for (size_t d = 0; d < out.size(); ++d) {
      out[d] = source.normal(static_cast<uint64_t>(vector) * out.size() + d);
    }
  }

  /// 32 hashed bits of a triple of small numbers.
  [[nodiscard]] uint32_t hash(int64_t a, int64_t b, int64_t c) const {
    const auto index = static_cast<uint64_t>(a) << 40 ^ static_cast<uint64_t>(b) << 20 ^ static_cast<uint64_t>(c);
    return stream(Role::hash, 0).words(index)[0];
  }
  [[nodiscard]] float sign(int64_t a, int64_t b, int64_t c) const { return (hash(a, b, c) & 1) != 0 ? -1.0F : 1.0F; }

  /// The smallest power of two that is at least `value`.
  static float power_of_two(double value) { return static_cast<float>(std::exp2(std::ceil(std::log2(value)))); }

  /// base * (1 + g / 128) with g of 7 hashed bits: distinct for every token, head and channel, exact in bf16.
  [[nodiscard]] float graded(float base, const Token& token, int64_t kv_head, size_t d) const {
    const uint32_t g = hash(token.data * 4096 + token.serial, kv_head, static_cast<int64_t>(d)) >> 25;
    return base * (1.0F + static_cast<float>(g) * 0x1p-7F);
  }

  Problem problem_;
  uint64_t seed_;
  double scale_;
  int64_t positions_ = 1;  ///< Positions that any sequence ever reaches.
};

/// Independent bell-shaped values: the generic case, on which boundary faults are nearly invisible.
class Gaussian : public Base {
 public:
  using Base::Base;
};

/// Gaussian with queries four times as large: softmax weights that differ by orders of magnitude, so scale, mapping and
/// layout faults move every output.
class Sharp : public Base {
 public:
  using Base::Base;
  void query(const Row& row, int64_t head, std::span<float> out) const override {
    Base::query(row, head, out);
    for (float& x : out) x *= 4.0F;
  }
};

/// Gaussian on multiples of 1/16, exact in bf16: what the structured recipes use where they say nothing else.
class Coarse : public Base {
 public:
  using Base::Base;
  void query(const Row& row, int64_t head, std::span<float> out) const override {
    Base::query(row, head, out);
    coarsen(out);
  }
  void key(const Token& token, int64_t kv_head, std::span<float> out) const override {
    Base::key(token, kv_head, out);
    coarsen(out);
  }
  void value(const Token& token, int64_t kv_head, std::span<float> out) const override {
    Base::value(token, kv_head, out);
    coarsen(out);
  }

 private:
  static void coarsen(std::span<float> out) {
    for (float& x : out) x = std::floor(x * 16.0F + 0.5F) * 0x1p-4F;
  }
};

/// Signs, exponents and full 23-bit mantissas drawn separately: every product rounds, unlike on a grid. One element in
/// 64 is +0 or -0, which an append bit for bit (C1) must tell apart.
class Bits : public Base {
 public:
  using Base::Base;
  void query(const Row& row, int64_t head, std::span<float> out) const override {
    draw(Role::query, row.data, row.serial * problem_.query_heads + head, out);
  }
  void key(const Token& token, int64_t kv_head, std::span<float> out) const override {
    draw(Role::key, token.data, token.serial * problem_.kv_heads + kv_head, out);
  }
  void value(const Token& token, int64_t kv_head, std::span<float> out) const override {
    draw(Role::value, token.data, token.serial * problem_.kv_heads + kv_head, out);
  }

 private:
  void draw(Role role, int64_t sequence, int64_t vector, std::span<float> out) const {
    for (size_t d = 0; d < out.size(); ++d) {
      const uint32_t word = stream(role, sequence).words(static_cast<uint64_t>(vector) * out.size() + d)[0];
      const uint32_t exponent = 127 - 3 + ((word >> 24) & 3);  // 2^-3 to 2^0
      const bool zero = (word & 0x7c800000U) == 0;             // six bits that serve nothing else
      const uint32_t magnitude = zero ? 0 : exponent << 23 | (word & 0x7fffffU);
      out[d] = std::bit_cast<float>((word & 0x80000000U) | magnitude);
    }
  }
};

/// The quiet needle. Keys carry the bits of their position as +-1; a query asks for one position so sharply that any
/// other bit pattern costs 40 nats. By turns over heads and positions it asks for the last visible key (excluded by
/// off-by-one masks and lengths), for the first *masked* key at a quarter of the amplitude in the bits that differ from
/// the last visible one (a leak wins; without one the last visible key does, or shares with its nearest codes where
/// four or more bits change), for a visible key anywhere, and for the first visible one or, behind a window, the masked
/// one before it in the same way. Codes are sign-hashed per KV head, so a wrong head reads noise. Values of even codes
/// are quiet (1/16), all others +-32 with position, head, sequence and generation in their signs: a failure shows which
/// key was read.
class Needle : public Base {
 public:
  Needle(const Case& c, const Timeline& timeline, int64_t offset) : Base(c, timeline), offset_(offset) {
    bits_ = static_cast<int64_t>(std::bit_width(static_cast<uint64_t>(positions_ + 2)));
    repeats_ = problem_.qk_head_dim / bits_;
    if (repeats_ < 1) {
      throw Error::at(fmt::format("{}: {}.inputs.recipe", c.file.string(), c.id),
                      "needs a head_dim of at least {} to code {} positions, got {}", bits_, positions_,
                      problem_.qk_head_dim);
    }
    amplitude_ = power_of_two(40.0 / (2.0 * static_cast<double>(repeats_) * scale_));
  }

  void query(const Row& row, int64_t head, std::span<float> out) const override {
    const int64_t last = row.end - 1;
    int64_t target = std::max(last, row.begin);
    uint64_t soft = 0;  // bits at a quarter of the amplitude
    switch ((head + row.position / 2) % 4) {
      case 1:
        target = row.end;
        soft = code(row.end) ^ code(std::max<int64_t>(last, 0));
        break;
      case 2:
        if (row.end > row.begin) target = row.begin + hash(row.data, head, row.position) % (row.end - row.begin);
        break;
      case 3:
        target = row.begin;
        if (row.begin > 0 && row.position % 2 == 1) {
          target = row.begin - 1;
          soft = code(row.begin - 1) ^ code(row.begin);
        }
        break;
      default:
        break;
    }
    const int64_t kv_head = head / problem_.group();
    for (size_t d = 0; d < out.size(); ++d) {
      const auto channel = static_cast<int64_t>(d);
      if (channel >= repeats_ * bits_) {
        out[d] = 0;
        continue;
      }
      const float weight = ((soft >> (channel % bits_)) & 1) != 0 ? amplitude_ / 4 : amplitude_;
      out[d] = weight * bit(target, channel) * sign(kv_head, channel, -1);
    }
  }

  /// Near the logit of a key that fits, so that the sink takes a share of it.
  [[nodiscard]] float sink(int64_t head) const override {
    const double fits = scale_ * static_cast<double>(amplitude_) * static_cast<double>(repeats_ * bits_);
    return static_cast<float>(std::floor(fits)) + Base::sink(head) / 4;
  }

  void key(const Token& token, int64_t kv_head, std::span<float> out) const override {
    for (size_t d = 0; d < out.size(); ++d) {
      const auto channel = static_cast<int64_t>(d);
      const float value = channel < repeats_ * bits_ ? bit(token.position, channel) : 1.0F;
      out[d] = value * sign(kv_head, channel, -1);
    }
  }

  void value(const Token& token, int64_t kv_head, std::span<float> out) const override {
    if (code(token.position) % 2 == 0) {
      for (size_t d = 0; d < out.size(); ++d) out[d] = graded(0x1p-4F, token, kv_head, d);
      return;
    }
    const float loud = 32.0F + 8.0F * static_cast<float>(token.serial % 3);
    const auto identity = static_cast<uint64_t>(token.position) | static_cast<uint64_t>(kv_head) << bits_ |
                          static_cast<uint64_t>(token.data) << (bits_ + 6);
    for (size_t d = 0; d < out.size(); ++d) {
      const size_t bit_index = d % static_cast<size_t>(bits_ + 12);
      out[d] = ((identity >> bit_index) & 1) != 0 ? loud : -loud;
    }
  }

 private:
  [[nodiscard]] uint64_t code(int64_t position) const { return static_cast<uint64_t>(position + offset_); }
  [[nodiscard]] float bit(int64_t position, int64_t channel) const {
    return ((code(position) >> (channel % bits_)) & 1) != 0 ? 1.0F : -1.0F;
  }

  int64_t offset_, bits_ = 1, repeats_ = 1;
  float amplitude_ = 1;
};

/// One key outweighs all others together just so that the output hangs in the balance between V = +1 and V = -1: the
/// smallest fault in scale, sum or weight tips it.
class Seesaw : public Base {
 public:
  using Base::Base;
  void query(const Row& row, int64_t head, std::span<float> out) const override {
    const auto visible = static_cast<double>(row.end - row.begin);
    const int64_t kv_head = head / problem_.group();
    for (size_t d = 0; d < out.size(); ++d) out[d] = sign(row.position, head, static_cast<int64_t>(d));
    out[channel(kv_head)] = eight_bits(visible > 1 ? std::log(visible - 1) / scale_ : 0.0);
  }
  void key(const Token& token, int64_t kv_head, std::span<float> out) const override {
    for (float& x : out) x = 0;
    if (heavy(token, kv_head)) out[channel(kv_head)] = 1;
  }
  void value(const Token& token, int64_t kv_head, std::span<float> out) const override {
    const float side = heavy(token, kv_head) ? 1.0F : -1.0F;
    for (size_t d = 0; d < out.size(); ++d) out[d] = side * sign(token.data, kv_head, static_cast<int64_t>(d));
  }

 private:
  [[nodiscard]] size_t channel(int64_t kv_head) const {
    return hash(kv_head, 7, 7) % static_cast<uint64_t>(problem_.qk_head_dim);
  }
  static bool heavy(const Token& token, int64_t kv_head) { return token.position == kv_head % 2; }
  /// Rounded to 8 significant bits, so that it is exact in bf16.
  static float eight_bits(double x) {
    int exponent = 0;
    const double mantissa = std::frexp(x, &exponent);
    return static_cast<float>(std::ldexp(std::nearbyint(mantissa * 256), exponent - 8));
  }
};

/// All logits equal: every key counts 1/n, so a lost or extra key shows as 1/n of a value in [1, 2), and a sum that
/// saturates shows on long rows.
class Flat : public Coarse {
 public:
  using Coarse::Coarse;
  void key(const Token& /*token*/, int64_t /*kv_head*/, std::span<float> out) const override {
    for (float& x : out) x = 0;
  }
  void value(const Token& token, int64_t kv_head, std::span<float> out) const override {
    for (size_t d = 0; d < out.size(); ++d) out[d] = graded(1.0F, token, kv_head, d);
  }
};

/// All logits equal, values of +-[64, 128) that cancel between the two halves: accumulators in low precision drift.
class FlatCancel : public Flat {
 public:
  using Flat::Flat;
  void value(const Token& token, int64_t kv_head, std::span<float> out) const override {
    const float base = token.position < positions_ / 2 ? 64.0F : -64.0F;
    for (size_t d = 0; d < out.size(); ++d) out[d] = graded(base, token, kv_head, d);
  }
};

/// A common offset on every logit of a head, spread by Gaussian noise: exact mathematics ignores it, exp() without the
/// maximum and padding that counts as logit 0 do not.
class Offset : public Coarse {
 public:
  Offset(const Case& c, const Timeline& timeline, double even, double odd)
      : Coarse(c, timeline), even_(even), odd_(odd) {}
  void query(const Row& row, int64_t head, std::span<float> out) const override {
    Coarse::query(row, head, out);
    const double offset = head % 2 == 0 ? even_ : odd_;
    out[0] = std::copysign(power_of_two(std::fabs(offset) / scale_), static_cast<float>(offset));
  }
  void key(const Token& token, int64_t kv_head, std::span<float> out) const override {
    Coarse::key(token, kv_head, out);
    out[0] = 1;
  }
  void value(const Token& token, int64_t kv_head, std::span<float> out) const override {
    for (size_t d = 0; d < out.size(); ++d) out[d] = graded(4.0F, token, kv_head, d);
  }

 private:
  double even_, odd_;
};

/// Integer pairs of +-64..127 that cancel in the dot product and leave +-a/2: exact in f32 in any order, hopeless where
/// products or sums are rounded to 16 bits.
class Cancelling : public Coarse {
 public:
  using Coarse::Coarse;
  void query(const Row& row, int64_t head, std::span<float> out) const override {
    for (size_t d = 0; d < out.size(); ++d) {
      out[d] = static_cast<float>(64 + (hash(row.data * 65536 + row.serial, head, static_cast<int64_t>(d / 2)) & 63));
    }
  }
  void key(const Token& token, int64_t kv_head, std::span<float> out) const override {
    const int64_t id = token.data * 65536 + token.serial;
    for (size_t d = 0; d < out.size(); ++d) {
      const auto pair = static_cast<int64_t>(d / 2);
      const auto b = static_cast<float>(64 + (hash(id, kv_head + 64, pair) & 63));
      out[d] = d % 2 == 0 ? b : -b;
    }
    if (out.size() % 2 == 1) out.back() = 0;
    const size_t leftover = hash(id, kv_head + 128, 0) % std::max<size_t>(out.size() / 2, 1);
    out[2 * leftover] += 0.5F * sign(id, kv_head + 192, 0);
  }
};

/// Logits that rise (or fall) by about half a nat per key: the running maximum moves in every tile, or never again
/// after the first, so a rescaling that is missed or applied twice shows.
class Ramp : public Coarse {
 public:
  Ramp(const Case& c, const Timeline& timeline, float direction) : Coarse(c, timeline), direction_(direction) {
    if (problem_.qk_head_dim < 2) {
      throw Error::at(fmt::format("{}: {}.inputs.recipe", c.file.string(), c.id), "needs a head_dim of at least 2");
    }
  }
  void query(const Row& row, int64_t head, std::span<float> out) const override {
    for (size_t d = 0; d < out.size(); ++d) out[d] = 0.5F * sign(row.position, head, static_cast<int64_t>(d));
    const float slope = direction_ * power_of_two(0.3 / scale_) / static_cast<float>(1 << (head % 3));
    out[0] = slope;
    out[1] = slope * 128;
  }
  void key(const Token& token, int64_t kv_head, std::span<float> out) const override {
    for (size_t d = 0; d < out.size(); ++d) {
      out[d] = 0.5F * sign(token.data * 65536 + token.serial, kv_head, static_cast<int64_t>(d));
    }
    const auto [blocks, rest] = std::lldiv(token.position, 128);
    out[0] = static_cast<float>(rest);
    out[1] = static_cast<float>(blocks);
  }

 private:
  float direction_;
};

/// K = 0 and V = 1: the output is exactly 1, whatever the weights; anything else in the sum shows as its share.
class Analytic : public Flat {
 public:
  using Flat::Flat;
  void value(const Token& /*token*/, int64_t /*kv_head*/, std::span<float> out) const override {
    for (float& x : out) x = 1;
  }
};

/// Left padding whose logits overflow f32 to +inf in every row: adding a mask's -inf to them makes NaN. Channel 0 of
/// hidden keys is huge, and positive in every query; no other product is large, so no sum meets two infinities. Their
/// values are huge too. With an exponent to spare, turning a pair of channels (R1 to R3) stays finite.
class Overflow : public Coarse {
 public:
  Overflow(const Case& c, const Timeline& timeline) : Coarse(c, timeline), per_sequence_(c.inputs.mask.batch) {
    const std::string place = fmt::format("{}: {}", c.file.string(), c.id);
    if (c.inputs.mask.pattern != "padding_left") {
      throw Error::at(place + ".inputs.mask.pattern", "got \"{}\", wanted \"padding_left\" for the recipe overflow",
                      c.inputs.mask.pattern);
    }
    if (problem_.dtype == DType::f16) {
      throw Error::at(place + ".problem.dtype", "got \"f16\", wanted \"f32\" or \"bf16\" for the recipe overflow");
    }
    if (problem_.norm_epsilon > 0) {
      throw Error::at(place + ".problem.qk_norm",
                      "wanted none for the recipe overflow: f32 has no squares of its keys");
    }
    if (problem_.softcap > 0) {
      throw Error::at(place + ".problem.softcap", "wanted none for the recipe overflow: no logit is beyond it");
    }
    if (problem_.cache_dtype != problem_.dtype) {
      throw Error::at(place + ".problem.cache_dtype", "got \"{}\", wanted \"{}\" for the recipe overflow",
                      info(problem_.cache_dtype).name, info(problem_.dtype).name);
    }
    for (const Moment& moment : timeline) {
      for (size_t b = 0; b < moment.tokens.size(); ++b) {
        const int64_t slot = c.inputs.slots.empty() ? static_cast<int64_t>(b) : c.inputs.slots[b];
        for (const Token& token : moment.tokens[b]) {
          if (hidden(token) == (token.position < left_padding(per_sequence_ ? slot : 0))) continue;
          throw Error::at(place + ".steps", "key {} of sequence {} comes to where the mask does not hide it",
                          token.position, token.origin);
        }
      }
    }
  }
  void query(const Row& row, int64_t head, std::span<float> out) const override {
    Coarse::query(row, head, out);
    for (float& x : out) x *= 4.0F;
    out[0] = power_of_two(8 / scale_);
  }
  void key(const Token& token, int64_t kv_head, std::span<float> out) const override {
    Coarse::key(token, kv_head, out);
    out[0] = hidden(token) ? graded(kHuge, token, kv_head, 0) : 1.0F;
  }
  void value(const Token& token, int64_t kv_head, std::span<float> out) const override {
    Coarse::value(token, kv_head, out);
    if (!hidden(token)) return;
    for (size_t d = 0; d < out.size(); ++d) out[d] = std::copysign(graded(kHuge, token, kv_head, d), out[d]);
  }

 private:
  static constexpr float kHuge = 0x1p126F;
  [[nodiscard]] bool hidden(const Token& token) const {
    return token.position < left_padding(per_sequence_ ? token.data : 0);
  }

  bool per_sequence_;
};

using Maker = std::function<std::unique_ptr<Recipe>(const Case&, const Timeline&)>;

template <typename R, typename... Args>
Maker maker(Args... args) {
  return [=](const Case& c, const Timeline& t) { return std::make_unique<R>(c, t, args...); };
}

const std::map<std::string, Maker>& makers() {
  static const std::map<std::string, Maker> table{
      {"gaussian", maker<Gaussian>()},
      {"sharp", maker<Sharp>()},
      {"bits", maker<Bits>()},
      {"needle", maker<Needle>(int64_t{0})},
      {"needle_odd", maker<Needle>(int64_t{1})},
      {"seesaw", maker<Seesaw>()},
      {"flat", maker<Flat>()},
      {"flat_cancel", maker<FlatCancel>()},
      {"negative_logits", maker<Offset>(-96.0, -150.0)},
      {"large_logits", maker<Offset>(2000.0, -1e5)},
      {"cancelling", maker<Cancelling>()},
      {"rising", maker<Ramp>(1.0F)},
      {"falling", maker<Ramp>(-1.0F)},
      {"analytic", maker<Analytic>()},
      {"overflow", maker<Overflow>()},
  };
  return table;
}

}  // namespace

bool has_recipe(const std::string& name) {
  return makers().contains(name);
}

std::string recipe_names() {
  std::string names;
  for (const auto& [name, maker] : makers()) names += (names.empty() ? "" : ", ") + name;
  return names;
}

std::unique_ptr<Recipe> make_recipe(const Case& c, const Timeline& timeline) {
  return makers().at(c.inputs.recipe)(c, timeline);
}

}  // namespace attest
