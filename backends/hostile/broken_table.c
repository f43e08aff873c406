/* SPDX-License-Identifier: Apache-2.0
 * Libraries that must not load as a backend, one a macro: another ABI version, a table with something missing. */
#include <attest/backend.h>

static attest_status broken_open(const char* options, attest_context** context, attest_message* message) {
  (void)options;
  (void)context;
  (void)message;
  return ATTEST_ERROR;
}

static void broken_close(attest_context* context) {
  (void)context;
}

static attest_status broken_prepare(attest_context* context, const attest_problem* problem, attest_plan** plan,
                                    attest_message* message) {
  (void)context;
  (void)problem;
  (void)plan;
  (void)message;
  return ATTEST_ERROR;
}

static attest_status broken_run(attest_plan* plan, const attest_step* step, attest_message* message) {
  (void)plan;
  (void)step;
  (void)message;
  return ATTEST_ERROR;
}

static void broken_release(attest_plan* plan) {
  (void)plan;
}

static attest_status broken_synchronize(attest_context* context, attest_message* message) {
  (void)context;
  (void)message;
  return ATTEST_ERROR;
}

#if defined(BROKEN_SYMBOL)
#define ENTRY_POINT attest_get_another_backend
#else
#define ENTRY_POINT attest_get_backend
#endif

ATTEST_EXPORT const attest_backend* ENTRY_POINT(void);

ATTEST_EXPORT const attest_backend* ENTRY_POINT(void) {
  static attest_backend table = {
      .struct_size = sizeof(attest_backend),
      .abi_version = ATTEST_ABI_VERSION,
      .name = "broken",
      .version = "1.0",
      .description = "not to be loaded",
      .device_type = kDLCPU,
      .open = broken_open,
      .close = broken_close,
      .prepare = broken_prepare,
      .run = broken_run,
      .release = broken_release,
  };
#if defined(BROKEN_VERSION)
  table.abi_version = 7;
#elif defined(BROKEN_SIZE)
  table.struct_size = 16;
#elif defined(BROKEN_NAME)
  table.name = "../Broken";
#elif defined(BROKEN_RUN)
  table.run = NULL;
#elif defined(BROKEN_MEMORY)
  table.synchronize = broken_synchronize;
#elif defined(BROKEN_DEVICE)
  table.device_type = kDLCUDA;
#elif defined(BROKEN_NULL)
  return NULL;
#elif defined(BROKEN_DECLARATIONS)
  table.declarations = "not JSON";
#endif
  (void)broken_synchronize;
  return &table;
}
