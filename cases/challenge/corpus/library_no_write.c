/* SPDX-License-Identifier: Apache-2.0
 *
 * Answers OK to everything, and writes nothing.
 */
#include "library_core.h"

static attest_status twist(const attest_problem* problem, const attest_step* step) {
  (void)problem;
  (void)step;
  (void)honest;
  return ATTEST_OK;
}
