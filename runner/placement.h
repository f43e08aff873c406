// SPDX-License-Identifier: Apache-2.0
// How a case's tensors lie in memory where the case leaves it open. T1 holds for all tensors of all cases, so a part of
// them is offset, padded and transposed everywhere; the others stay plain, as most callers hand them over and as fast
// paths want them. The choice hashes the case's id, the tensor's name and its place: it never changes from run to run,
// and a backend can do no step without meeting it.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "runner/arena.h"
#include "runner/protocol.h"

namespace attest {

class Placement {
 public:
  Placement(std::string case_id, Arena& arena) : id_(std::move(case_id)), arena_(arena) {}

  /// A block in the layout that a case gives; every second one has absurd strides on axes of extent 1.
  const Block& add(const std::string& name, DType dtype, const std::vector<int64_t>& shape, std::string_view letters,
                   const Layout& layout);
  /// A block in an order of our own: plain, padded, in reverse order, or both. A vector has a stride of 1 or 2.
  const Block& add(const std::string& name, DType dtype, const std::vector<int64_t>& shape);

  /// The block as a backend sees it: `data` of every second one points before element 0, into the guard.
  [[nodiscard]] protocol::Tensor tensor_of(const Block& block) const;

 private:
  const Block& add(const std::string& name, DType dtype, const std::vector<int64_t>& shape,
                   std::vector<int64_t> strides);
  [[nodiscard]] uint32_t hash(std::string_view name, int64_t place) const;

  std::string id_;
  Arena& arena_;
};

}  // namespace attest
