// SPDX-License-Identifier: Apache-2.0
// The backend of the fuzzed worker: takes every problem and step, and touches the first byte of each tensor and of each
// block, which a worker must have seen to be there. Strides and extents are passed on as they are, and left alone.
#include "attest/backend.h"

#include <dlpack/dlpack.h>

#include <cstdlib>
#include <cstring>
#include <initializer_list>

namespace {

volatile unsigned char sink;

void touch(const DLTensor* tensor) {
  if (tensor == nullptr) return;
  sink = static_cast<const unsigned char*>(tensor->data)[tensor->byte_offset];
  int64_t extents = 0;
  for (int32_t axis = 0; axis < tensor->ndim; ++axis) {
    extents ^= tensor->shape[axis] ^ tensor->strides[axis];
  }
  sink = static_cast<unsigned char>(extents);
}

attest_status open_it(const char* options, attest_context** context, attest_message*) {
  static char one;  // no memory: a worker that ends without a close leaves its context behind
  *context = reinterpret_cast<attest_context*>(&one);
  return std::strstr(options, "refuse") != nullptr ? ATTEST_INVALID : ATTEST_OK;
}
void close_it(attest_context*) {}
attest_status prepare(attest_context*, const attest_problem* problem, attest_plan** plan, attest_message*) {
  for (const DLTensor* tensor : {problem->q_weight, problem->k_weight, problem->v_weight, problem->out_weight,
                                 problem->q_bias, problem->k_bias, problem->v_bias, problem->out_bias}) {
    touch(tensor);
  }
  *plan = static_cast<attest_plan*>(std::malloc(1));
  return ATTEST_OK;
}
attest_status run(attest_plan*, const attest_step* step, attest_message*) {
  touch(step->query);
  touch(step->key);
  touch(step->value);
  touch(step->output);
  if (step->cache != nullptr) touch(step->cache->key);
  return ATTEST_OK;
}
void release(attest_plan* plan) {
  std::free(plan);
}

#ifdef ATTEST_FUZZ_DEVICE
attest_status allocate(attest_context*, size_t bytes, void** memory, attest_message*) {
  *memory = std::malloc(bytes);
  if (*memory != nullptr) std::memset(*memory, 0, bytes);
  return ATTEST_OK;
}
void deallocate(attest_context*, void* memory) {
  std::free(memory);
}
attest_status upload(attest_context*, void* device, const void* host, size_t bytes, attest_message*) {
  std::memcpy(device, host, bytes);
  return ATTEST_OK;
}
attest_status download(attest_context*, void* host, const void* device, size_t bytes, attest_message*) {
  std::memcpy(host, device, bytes);
  return ATTEST_OK;
}
attest_status synchronize(attest_context*, attest_message*) {
  return ATTEST_OK;
}
constexpr attest_backend kTable{sizeof(attest_backend),
                                ATTEST_ABI_VERSION,
                                "fuzz",
                                "1",
                                "touches first bytes",
                                nullptr,
                                kDLCUDA,
                                0,
                                open_it,
                                close_it,
                                allocate,
                                deallocate,
                                upload,
                                download,
                                synchronize,
                                prepare,
                                run,
                                release};
#else
constexpr attest_backend kTable{sizeof(attest_backend),
                                ATTEST_ABI_VERSION,
                                "fuzz",
                                "1",
                                "touches first bytes",
                                nullptr,
                                kDLCPU,
                                0,
                                open_it,
                                close_it,
                                nullptr,
                                nullptr,
                                nullptr,
                                nullptr,
                                nullptr,
                                prepare,
                                run,
                                release};
#endif

}  // namespace

extern "C" ATTEST_EXPORT_ATTRIBUTE const attest_backend* attest_get_backend(void) {
  return &kTable;
}
