// SPDX-License-Identifier: Apache-2.0
// All that differs between oneDNN 2.6 and 3.x for this backend. Nothing else here asks for the version.
#pragma once

#include <oneapi/dnnl/dnnl.hpp>

namespace attest::onednn {

/// dst = src * weights (+ bias, unless it is null) in strict fp32: an environment variable could otherwise let oneDNN
/// round to bf16 or TF32 on the way.
inline dnnl::matmul make_matmul(const dnnl::engine& engine, const dnnl::memory::desc& src,
                                const dnnl::memory::desc& weights, const dnnl::memory::desc* bias,
                                const dnnl::memory::desc& dst) {
  dnnl::primitive_attr attributes;
  attributes.set_fpmath_mode(dnnl::fpmath_mode::strict);
  using Descriptor = dnnl::matmul::primitive_desc;
#if DNNL_VERSION_MAJOR >= 3
  return dnnl::matmul(bias != nullptr ? Descriptor(engine, src, weights, *bias, dst, attributes)
                                      : Descriptor(engine, src, weights, dst, attributes));
#else
  const auto operation = bias != nullptr ? dnnl::matmul::desc(src, weights, *bias, dst)  //
                                         : dnnl::matmul::desc(src, weights, dst);
  return dnnl::matmul(Descriptor(operation, attributes, engine));
#endif
}

}  // namespace attest::onednn
