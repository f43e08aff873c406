/* SPDX-License-Identifier: Apache-2.0
 *
 * Right, and then writes where it must not: into its input, and behind its output.
 */
#include "library_core.h"

static attest_status twist(const attest_problem* problem, const attest_step* step) {
  attest_message message = {sizeof message, ""};
  const attest_status status = honest(problem, step, &message);
  if (status != ATTEST_OK) return status;
  const DLTensor* output = step->output;
  *at(step->query, 0, 0, 0, 0) = 0;
  at(output, output->shape[0] - 1, output->shape[1] - 1, output->shape[2] - 1, 0)[1] = 0;
  return ATTEST_OK;
}
