// SPDX-License-Identifier: Apache-2.0
#include "cases/quantise.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "cases/philox.h"
#include "cases/recipes.h"
#include "cases/storage.h"

namespace attest {
namespace {

/// Distance of neighbouring codes around `magnitude`, which is no larger than the largest code.
double code_step(DType codes, double magnitude) {
  if (codes == DType::i8) return 1;
  const int mantissa = codes == DType::f8_e4m3 ? 3 : 2;
  const int least = codes == DType::f8_e4m3 ? -6 : -14;  // exponent of the smallest normal number
  const int exponent = magnitude == 0 ? least : std::max(std::ilogb(magnitude), least);
  return std::ldexp(1.0, exponent - mantissa);
}

/// A number in [1, 1.5) with a full mantissa, so that no grid of inputs meets a middle between codes exactly.
float odd_factor(const Case& c, Role role, int64_t head) {
  const PhiloxStream stream(static_cast<uint64_t>(c.inputs.seed), static_cast<uint32_t>(role));
  return 1.0F + static_cast<float>(stream.words(static_cast<uint64_t>(head))[0] >> 10 | 1) * 0x1p-23F;
}

/// Keys or values: their tensor, the widths of its last axis, and their scales.
struct Side {
  Role role;
  Dense<float> StepInputs::*tensor;
  int64_t dim;
  Dense<float>* scale;
};

class Fitter {
 public:
  Fitter(const Case& c, const Timeline& timeline, Inputs& inputs)
      : c_(c), p_(c.problem), timeline_(timeline), inputs_(inputs) {}

  void fit(const Side& side) {
    std::vector<float> largest(static_cast<size_t>(p_.kv_scale == KvScale::head ? p_.kv_heads : 1), 0.0F);
    each_vector(side, [&](int64_t head, std::span<float> vector) {
      float& most = largest[p_.kv_scale == KvScale::head ? static_cast<size_t>(head) : 0];
      for (const float x : vector) most = std::max(most, std::fabs(x));
    });
    // A norm gives vectors a root mean square of about 1; RoPE may gather two channels in one.
    const bool keys = side.role == Role::key_scale;
    for (float& most : largest) {
      if (keys && p_.norm_epsilon > 0) most = 6;
      if (keys && p_.rope) most *= 1.5F;
    }
    if (p_.kv_scale != KvScale::token) {
      side.scale->shape = {static_cast<int64_t>(largest.size())};
      for (size_t i = 0; i < largest.size(); ++i) {
        const double fits = std::max(static_cast<double>(largest[i]), 0x1p-20) / info(p_.cache_dtype).largest;
        const auto power = static_cast<float>(std::exp2(std::ceil(std::log2(fits)) - (c_.inputs.saturate ? 2 : 0)));
        side.scale->data.push_back(power * odd_factor(c_, side.role, static_cast<int64_t>(i)));
      }
    }
    const bool given = p_.level == Level::core && !(keys && p_.transforms_keys() && (p_.rope || p_.norm_epsilon > 0));
    if (!given) return;  // what is quantised is computed first; its case is refused if it lies between two codes
    each_vector(side, [&](int64_t head, std::span<float> vector) { clear_middles(side, head, vector); });
  }

 private:
  /// Calls `use` with every KV head of every token, or at the layer level with every token.
  template <typename Use>
  void each_vector(const Side& side, const Use& use) {
    const bool layer = p_.level == Level::layer;
    const int64_t width = layer ? p_.d_model : side.dim;
    for (size_t s = 0; s < timeline_.size(); ++s) {
      Dense<float>& tensor = inputs_.steps[s].*side.tensor;
      for (const auto& sequence : timeline_[s].incoming) {
        for (const Token& token : sequence) {
          for (int64_t h = 0; h < (layer ? 1 : p_.kv_heads); ++h) {
            const int64_t at = (token.origin * timeline_[s].max_keys + token.index) * (layer ? 1 : p_.kv_heads) + h;
            use(h, std::span(tensor.data).subspan(static_cast<size_t>(at * width), static_cast<size_t>(width)));
          }
        }
      }
    }
  }

  void clear_middles(const Side& side, int64_t head, std::span<float> vector) const {
    double scale = 0;
    float most = 0;
    for (const float x : vector) most = std::max(most, std::fabs(x));
    if (p_.kv_scale == KvScale::token) {
      scale = static_cast<double>(most) / info(p_.cache_dtype).largest;
      if (scale == 0) return;
    } else {
      scale = static_cast<double>(side.scale->data[p_.kv_scale == KvScale::head ? static_cast<size_t>(head) : 0]);
    }
    for (float& x : vector) {
      const float from = x;
      const double code = std::fabs(static_cast<double>(x)) / scale;
      const double distance = code_step(p_.cache_dtype, std::min(code, info(p_.cache_dtype).largest)) * scale;
      // Towards 0, so that a vector keeps its largest element.
      const double away = std::copysign(distance / 32, static_cast<double>(-x));
      for (int k = 1; code_margin(p_.cache_dtype, static_cast<double>(x), scale) < 2 * kCodeMargin && k < 32; ++k) {
        x = round_to(p_.dtype, static_cast<float>(static_cast<double>(from) + away * k));
      }
    }
  }

  const Case& c_;
  const Problem& p_;
  const Timeline& timeline_;
  Inputs& inputs_;
};

}  // namespace

double code_of(DType codes, double x, double scale) {
  const double most = info(codes).largest;
  const double code = std::clamp(x / scale, -most, most);
  const double step = code_step(codes, std::fabs(code));
  return std::nearbyint(code / step) * step;
}

double code_margin(DType codes, double x, double scale) {
  const double code = std::fabs(x / scale);
  const double most = info(codes).largest;
  if (code >= most) return std::numeric_limits<double>::infinity();
  const double step = code_step(codes, code);
  const double steps = code / step;
  return std::fabs(steps - std::floor(steps) - 0.5);
}

void fit_scales(const Case& c, const Timeline& timeline, Inputs& inputs) {
  Fitter fitter(c, timeline, inputs);
  fitter.fit({Role::key_scale, &StepInputs::key, c.problem.qk_head_dim, &inputs.key_scale});
  fitter.fit({Role::value_scale, &StepInputs::value, c.problem.v_head_dim, &inputs.value_scale});
}

}  // namespace attest
