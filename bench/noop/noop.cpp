// SPDX-License-Identifier: Apache-2.0
// A backend that does nothing, to measure what the bench itself costs: `attest bench overhead`. It is wrong on purpose.
#include <attest/backend.h>

#include <cstddef>

namespace {

attest_status open(const char* /*options*/, attest_context** context, attest_message* /*message*/) {
  *context = nullptr;
  return ATTEST_OK;
}
void close(attest_context* /*context*/) {}
attest_status prepare(attest_context* /*context*/, const attest_problem* /*problem*/, attest_plan** plan,
                      attest_message* /*message*/) {
  static char nothing;
  *plan = reinterpret_cast<attest_plan*>(&nothing);
  return ATTEST_OK;
}
attest_status run(attest_plan* /*plan*/, const attest_step* /*step*/, attest_message* /*message*/) {
  return ATTEST_OK;
}
void release(attest_plan* /*plan*/) {}

constexpr attest_backend table = {
    .struct_size = sizeof(attest_backend),
    .abi_version = ATTEST_ABI_VERSION,
    .name = "noop",
    .version = "1.0",
    .description = "does nothing",
    .declarations = nullptr,
    .device_type = kDLCPU,
    .reserved = 0,
    .open = open,
    .close = close,
    .allocate = nullptr,
    .deallocate = nullptr,
    .upload = nullptr,
    .download = nullptr,
    .synchronize = nullptr,
    .prepare = prepare,
    .run = run,
    .release = release,
};

}  // namespace

ATTEST_EXPORT const attest_backend* attest_get_backend(void) {
  return &table;
}
