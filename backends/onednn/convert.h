// SPDX-License-Identifier: Apache-2.0
// Storage formats to f32 and back, a run of elements at a time. Strides are in elements.
#pragma once

#include <attest/backend.hpp>
#include <cstdint>

namespace attest::onednn {

/// to[c] is the number of element c; of a quantised format, its code times `scale`.
void decode(abi::Storage storage, const void* from, std::int64_t stride, std::int64_t count, float scale, float* to);

/// Element c of `to` becomes the nearest to from[c], ties to even; of a quantised format, the code nearest to
/// from[c] / scale, clamped (clause Q1).
void encode(abi::Storage storage, const float* from, std::int64_t count, float scale, void* to, std::int64_t stride);

/// Bit for bit.
void copy_elements(abi::Storage storage, const void* from, std::int64_t from_stride, void* to, std::int64_t to_stride,
                   std::int64_t count);

}  // namespace attest::onednn
