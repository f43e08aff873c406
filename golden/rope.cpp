// SPDX-License-Identifier: Apache-2.0
#include "golden/rope.h"

#include <algorithm>
#include <cmath>

#include "cases/error.h"

namespace attest {
namespace {

constexpr double kUnit = 0x1p-24;
/// Nearer than this to a whole number, f32 could take YaRN's floor or ceiling on its other side.
constexpr double kUndecided = 0x1p-12;

Balls number(double x) {
  Balls ball(1);
  arb_set_d(ball[0], x);
  return ball;
}

/// YaRN's dim(x) = r ln(N / (2 pi x)) / (2 ln base), rounded down or up unless the ramp is an unrounded one.
Balls ramp_end(const Rope& rope, const Balls& log_base, double turns, bool up, slong precision,
               const std::string& place) {
  Balls x = number(rope.original_length), y(1);
  arb_const_pi(y[0], precision);
  arb_mul_2exp_si(y[0], y[0], 1);
  arb_div(x[0], x[0], y[0], precision);
  arb_set_d(y[0], turns);
  arb_div(x[0], x[0], y[0], precision);
  arb_log(x[0], x[0], precision);
  arb_mul_si(x[0], x[0], static_cast<slong>(rope.dim), precision);
  arb_mul_2exp_si(x[0], x[0], -1);
  arb_div(x[0], x[0], log_base[0], precision);
  if (rope.scaling == RopeScaling::yarn_unrounded) return x;
  const double dim = middle(x[0]);
  const bool matters = dim > -1 && dim < static_cast<double>(rope.dim);  // else it is clamped
  if (matters && std::fabs(dim - std::nearbyint(dim)) < kUndecided) {
    throw Error::at(place,
                    "the ramp ends at {}, too near a whole number for f32 to find its side; change the base, "
                    "the length or the frequencies",
                    dim);
  }
  return number(up ? std::ceil(dim) : std::floor(dim));
}

/// min(max(x, 0), 1)
void clamp_to_unit(arb_ptr x, slong precision) {
  Balls bound(1);
  arb_max(x, x, bound[0], precision);
  arb_one(bound[0]);
  arb_min(x, x, bound[0], precision);
}

}  // namespace

RopeTable::RopeTable(const Rope& rope, slong precision, const std::string& place)
    : style_(rope.style), precision_(precision), magnitude_(1) {
  arb_one(magnitude_[0]);
  if (!rope) return;
  const auto pairs = static_cast<size_t>(rope.dim / 2);
  Balls log_base = number(rope.base), log_factor = number(rope.factor);
  arb_log(log_base[0], log_base[0], precision);
  if (rope.scaling != RopeScaling::none) arb_log(log_factor[0], log_factor[0], precision);
  if (rope.scaling == RopeScaling::ntk) {
    Balls power(1);
    arb_mul_si(power[0], log_factor[0], static_cast<slong>(rope.dim), precision);
    arb_div_si(power[0], power[0], static_cast<slong>(rope.dim - 2), precision);
    arb_add(log_base[0], log_base[0], power[0], precision);
  }
  frequency_ = Balls(pairs);
  for (size_t c = 0; c < pairs; ++c) {
    arb_mul_si(frequency_[c], log_base[0], -2 * static_cast<slong>(c), precision);
    arb_div_si(frequency_[c], frequency_[c], static_cast<slong>(rope.dim), precision);
    const double exponent = -middle(frequency_[c]);
    arb_exp(frequency_[c], frequency_[c], precision);
    // A power function, by way of exp2 or not, or a running product; then a few roundings.
    frequency_error_.push_back(kUnit * (6 + 2 * static_cast<double>(c) + 3 * exponent));
  }
  stretch(rope, log_base, place);
  if (rope.is_yarn()) {
    if (rope.attention_factor > 0) {
      arb_set_d(magnitude_[0], rope.attention_factor);
    } else {
      arb_div_si(log_factor[0], log_factor[0], 10, precision);
      arb_add(magnitude_[0], magnitude_[0], log_factor[0], precision);
    }
  }
}

/// R3: divides frequencies by the factor, all of them, or each in part.
void RopeTable::stretch(const Rope& rope, const Balls& log_base, const std::string& place) {
  if (rope.scaling == RopeScaling::none || rope.scaling == RopeScaling::ntk) return;
  const Balls factor = number(rope.factor);
  Balls low(1), width(1);
  if (rope.is_yarn()) {
    const Balls least(1), most = number(static_cast<double>(rope.dim - 1));
    low = ramp_end(rope, log_base, rope.high_frequency, false, precision_, place);
    width = ramp_end(rope, log_base, rope.low_frequency, true, precision_, place);
    arb_max(low[0], low[0], least[0], precision_);
    arb_min(width[0], width[0], most[0], precision_);
    arb_sub(width[0], width[0], low[0], precision_);
    if (arb_is_zero(width[0]) != 0) {
      arb_one(width[0]);
      arb_div_si(width[0], width[0], 1000, precision_);
    }
  }
  Balls kept(1), stretched(1), x(1);
  for (size_t c = 0; c < pairs(); ++c) {
    arb_div(stretched[0], frequency_[c], factor[0], precision_);
    if (rope.scaling == RopeScaling::linear) {
      arb_set(frequency_[c], stretched[0]);
      continue;
    }
    // The share that is kept: the g of Llama 3, or 1 - g of YaRN.
    double share_error = 2 * kUnit;
    if (rope.scaling == RopeScaling::llama3) {
      arb_const_pi(x[0], precision_);
      arb_mul_2exp_si(x[0], x[0], 1);
      arb_div(kept[0], frequency_[c], x[0], precision_);
      arb_set_d(x[0], rope.original_length);
      arb_mul(kept[0], kept[0], x[0], precision_);
      arb_set_d(x[0], rope.low_frequency);
      const double turns = middle(kept[0]);
      arb_sub(kept[0], kept[0], x[0], precision_);
      Balls between = number(rope.high_frequency);
      arb_sub(between[0], between[0], x[0], precision_);
      arb_div(kept[0], kept[0], between[0], precision_);
      share_error += turns / middle(between[0]) * (frequency_error_[c] + 4 * kUnit);
    } else {
      arb_sub_si(x[0], low[0], static_cast<slong>(c), precision_);
      arb_div(kept[0], x[0], width[0], precision_);
      // Ends that are no whole numbers are themselves logarithms, rounded in f32.
      if (rope.scaling == RopeScaling::yarn_unrounded) {
        share_error += 8 * kUnit * (static_cast<double>(rope.dim) + static_cast<double>(c)) / middle(width[0]);
      }
      arb_add_si(kept[0], kept[0], 1, precision_);
    }
    const double unclamped = middle(kept[0]);
    const double whole = middle(frequency_[c]), part = middle(stretched[0]);
    clamp_to_unit(kept[0], precision_);
    arb_mul(frequency_[c], frequency_[c], kept[0], precision_);
    arb_sub_si(kept[0], kept[0], 1, precision_);
    arb_mul(stretched[0], stretched[0], kept[0], precision_);
    arb_sub(frequency_[c], frequency_[c], stretched[0], precision_);
    frequency_error_[c] += 2 * kUnit;
    if (unclamped > -share_error && unclamped < 1 + share_error) {
      frequency_error_[c] += std::fabs(whole - part) * share_error / middle(frequency_[c]);
    }
  }
}

const Turn& RopeTable::turn(int64_t position) {
  const auto known = turns_.find(position);
  if (known != turns_.end()) return known->second;
  Turn turn;
  turn.cos = Balls(pairs());
  turn.sin = Balls(pairs());
  Balls angle(1);
  for (size_t c = 0; c < pairs(); ++c) {
    arb_mul_si(angle[0], frequency_[c], static_cast<slong>(position), precision_);
    arb_sin_cos(turn.sin[c], turn.cos[c], angle[0], precision_);
    arb_mul(turn.sin[c], turn.sin[c], magnitude_[0], precision_);
    arb_mul(turn.cos[c], turn.cos[c], magnitude_[0], precision_);
    turn.sine.push_back(middle(turn.sin[c]));
    turn.cosine.push_back(middle(turn.cos[c]));
    turn.angle.push_back(middle(angle[0]));
    turn.angle_error.push_back(frequency_error_[c] * std::fabs(turn.angle.back()) + 2 * kUnit);
  }
  return turns_.emplace(position, std::move(turn)).first->second;
}

}  // namespace attest
