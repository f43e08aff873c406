// SPDX-License-Identifier: Apache-2.0
// Faults at the arguments.
#include <algorithm>
#include <array>
#include <memory>

#include "bugs.h"

namespace mutants {
namespace {

/// A mask of the wanted shape, filled with the elements of another one, row after row and again from the start.
struct Reshaped {
  Reshaped(const DLTensor& given, const attest_problem& p, std::int64_t queries, std::int64_t keys)
      : shape{p.batch, p.query_heads, queries, keys}, strides{p.query_heads * queries * keys, queries * keys, keys, 1} {
    const std::int64_t size = given.dtype.bits / 8;
    std::int64_t count = 1;
    for (int axis = 0; axis < given.ndim; ++axis) count *= given.shape[axis];
    for (std::int64_t n = 0; count > 0 && n < shape[0] * strides[0]; ++n) {
      std::int64_t rest = n % count, element = 0;
      for (int axis = given.ndim; axis-- > 0; rest /= given.shape[axis]) {
        if (given.shape[axis] > 1) element += rest % given.shape[axis] * given.strides[axis];
      }
      const char* const from = static_cast<const char*>(given.data) + given.byte_offset + element * size;
      memory.insert(memory.end(), from, from + size);
    }
    tensor = given;
    tensor.data = memory.data(), tensor.byte_offset = 0;
    tensor.ndim = 4, tensor.shape = shape.data(), tensor.strides = strides.data();
  }
  Reshaped(const Reshaped&) = delete;
  Reshaped& operator=(const Reshaped&) = delete;

  std::array<std::int64_t, 4> shape, strides;
  std::vector<char> memory;
  DLTensor tensor{};
};

}  // namespace

const std::vector<Bug> interface_bugs{
    {"mask-shape-unchecked",  // too small a mask is read again from its start, not beyond its end
     [](Hooks& k) {
       const auto reshaped = std::make_shared<std::unique_ptr<Reshaped>>();
       wrap(k.check, [reshaped](auto& right, const attest_problem& p, attest_step& step) {
         if (p.mask == ATTEST_MASK_NONE || step.mask == nullptr) return right(p, step);
         attest_problem maskless = p;
         attest_step bare = step;
         maskless.mask = ATTEST_MASK_NONE, bare.mask = nullptr;
         const std::int64_t keys = right(maskless, bare).largest_total();
         try {
           return right(p, step);
         } catch (const Invalid&) {
           *reshaped = std::make_unique<Reshaped>(*step.mask, p, step.query->shape[1], keys);
           step.mask = &(*reshaped)->tensor;
           return right(p, step);  // its dtype is looked at
         }
       });
     }},

    {"cache-scalar-len",  // the ABI's lengths are one a sequence: the first is the scalar
     [](Hooks& k) {
       wrap(k.check, [](auto& right, const attest_problem& p, attest_step& step) {
         Extents e = right(p, step);
         for (std::int64_t b = 0; p.cache == ATTEST_CACHE_PAGED && b < p.batch; ++b) {
           e.past[b] = std::min(e.past[0], p.capacity - e.keys[b]);
         }
         return e;
       });
     }},

    {"arg-lost",  // the given scale, and a cache's scales of tensor or head when it is read
     [](Hooks& k) {
       const auto lost = std::make_shared<bool>(false);
       wrap(k.problem, [lost](auto& right, attest_problem& p) {
         right(p);
         p.scale = 0;
         *lost = p.kv_scale == ATTEST_KV_SCALE_PER_TENSOR || p.kv_scale == ATTEST_KV_SCALE_PER_HEAD;
       });
       wrap(k.dequantise, [lost](auto& right, Role role, bool fresh, float code, float scale) {
         return *lost ? code : right(role, fresh, code, scale);
       });
     }},
    {"arg-lost@scale",
     [](Hooks& k) { wrap(k.problem, [](auto& right, attest_problem& p) { right(p), p.scale = 0; }); }},
    {"arg-lost@alibi", [](Hooks& k) { k.slopes = [](const attest_problem&) { return std::vector<float>(); }; }},
    {"arg-lost@window",
     [](Hooks& k) {
       k.window_begin = [](const Call&, const Sequence&, std::int64_t) { return 0; };
       k.window_end = [](const Call&, const Sequence& s, std::int64_t) { return s.total; };
     }},
    {"arg-lost@mask",
     [](Hooks& k) {
       k.mask = [](const Call&, const Sequence&, std::int64_t, std::int64_t, std::int64_t) { return 0; };
     }},
};

}  // namespace mutants
