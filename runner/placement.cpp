// SPDX-License-Identifier: Apache-2.0
#include "runner/placement.h"

#include <fmt/format.h>

#include <algorithm>

namespace attest {
namespace {

enum Bit : uint32_t { kOffset = 1, kAbsurd = 2, kPad = 4, kReverse = 8 };

}  // namespace

const Block& Placement::add(const std::string& name, DType dtype, const std::vector<int64_t>& shape,
                            std::vector<int64_t> strides) {
  for (size_t axis = 0; axis < shape.size(); ++axis) {
    if (shape[axis] == 1 && (hash(name, arena_.bytes()) & kAbsurd) != 0) strides[axis] = kAbsurdStride;
  }
  return arena_.add(name, dtype, shape, std::move(strides));
}

const Block& Placement::add(const std::string& name, DType dtype, const std::vector<int64_t>& shape,
                            std::string_view letters, const Layout& layout) {
  return add(name, dtype, shape, strides_for(shape, letters, layout));
}

const Block& Placement::add(const std::string& name, DType dtype, const std::vector<int64_t>& shape) {
  const uint32_t bits = hash(name, arena_.bytes());
  std::string letters;
  for (size_t axis = 0; axis < shape.size(); ++axis) letters += static_cast<char>('a' + axis);
  Layout layout;
  layout.order = letters;
  layout.pad = (bits & kPad) != 0 ? 3 : 0;
  if ((bits & kReverse) != 0) std::reverse(layout.order.begin(), layout.order.end());
  std::vector<int64_t> strides = strides_for(shape, letters, layout);
  if (shape.size() == 1 && (bits & kPad) != 0) strides[0] = 2;
  return add(name, dtype, shape, std::move(strides));
}

protocol::Tensor Placement::tensor_of(const Block& block) const {
  protocol::Tensor tensor = protocol::tensor_of(block);
  if ((hash(block.name, block.begin) & kOffset) != 0) tensor.byte_offset = kBlockAlignment;
  return tensor;
}

/// FNV-1a over the names. Its high bits: the lowest one is only a parity.
uint32_t Placement::hash(std::string_view name, int64_t place) const {
  uint64_t h = 0xcbf29ce484222325U;
  for (const char letter : fmt::format("{} {} {}", id_, name, place)) {
    h = (h ^ static_cast<unsigned char>(letter)) * 0x100000001b3U;
  }
  return static_cast<uint32_t>(h >> 37);
}

}  // namespace attest
