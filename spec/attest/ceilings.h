/* SPDX-License-Identifier: Apache-2.0
 *
 * attest/ceilings.h: what a device can do at most, for `attest bench`, which knows no device itself.
 *
 * A backend with memory of its own may export a second symbol beside `attest_get_backend`. The bench then has it copy
 * and multiply in the same rounds in which it measures steps, takes the time itself, and shows what share of that a
 * step reaches. Without the symbol a step's time stands alone. Certification does not look at it.
 *
 *     ATTEST_EXPORT const attest_ceilings *attest_get_ceilings(void) { return &table; }
 *
 * C++ authors: ATTEST_REGISTER_CEILINGS in attest/backend.hpp.
 */
#ifndef ATTEST_CEILINGS_H
#define ATTEST_CEILINGS_H

#include "attest/backend.h"

#ifdef __cplusplus
extern "C" {
#endif

/* clang-format off */

/**
 * The table; grows as those of backend.h do. Memory is what the backend's `allocate` gave, of the same context. Both
 * pieces of work may still be going on until `synchronize`, which reports their errors: one call and one `synchronize`
 * are one reading of the clock. They are done as the device's maker would: anything slower flatters the backend.
 */
typedef struct attest_ceilings {
  uint32_t struct_size;           /**< sizeof(attest_ceilings) as the backend was compiled. */
  uint32_t reserved;

  /** Bytes of the largest cache before the device's memory; 0: not known. */
  int64_t (*last_cache)(attest_context *context);
  /** Copies `bytes` bytes within the device's memory; the two do not overlap. Counts as 2 * bytes. */
  attest_status (*copy)(attest_context *context, void *to, const void *from, size_t bytes, attest_message *message);
  /** c = a b^T: all three [n, n], compact, the last axis side by side, in `dtype`: f32, f16 or bf16, summed in f32, and
   *  f32 is multiplied as f32 (no TF32). Counts as 2 n^3 operations. UNSUPPORTED for a dtype that it has not. */
  attest_status (*multiply)(attest_context *context, DLDataType dtype, int64_t n, const void *a, const void *b, void *c,
                            attest_message *message);
} attest_ceilings;

/* clang-format on */

/** The optional symbol; the table lives as long as the library is loaded. */
ATTEST_EXPORT_ATTRIBUTE const attest_ceilings* attest_get_ceilings(void);

/** Its name, for dlsym. */
#define ATTEST_CEILINGS_POINT "attest_get_ceilings"

#ifdef __cplusplus
} /* extern "C" */
#endif
#endif /* ATTEST_CEILINGS_H */
