/* SPDX-License-Identifier: Apache-2.0
 *
 * Answers OK with zeros for an output; a thread writes the right one a little later.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <time.h>
#include <unistd.h>

#include "library_core.h"

struct late {
  float* place;
  size_t bytes;
  float values[];
};

static void* write_late(void* argument) {
  struct late* late = argument;
  const struct timespec pause = {0, 100000000};
  nanosleep(&pause, NULL);
  /* Through a system call: a mapping that is gone meanwhile is an error then, and no crash. */
  int ends[2];
  if (pipe(ends) == 0) {
    for (size_t done = 0; done < late->bytes;) {
      const size_t part = late->bytes - done < 4096 ? late->bytes - done : 4096;
      if (write(ends[1], (char*)late->values + done, part) != (ssize_t)part) break;
      if (read(ends[0], (char*)late->place + done, part) != (ssize_t)part) break;
      done += part;
    }
    close(ends[0]);
    close(ends[1]);
  }
  free(late);
  return NULL;
}

static attest_status twist(const attest_problem* problem, const attest_step* step) {
  attest_message message = {sizeof message, ""};
  const attest_status status = honest(problem, step, &message);
  if (status != ATTEST_OK) return status;
  float* place = at(step->output, 0, 0, 0, 0);
  size_t bytes = sizeof(float);
  for (int axis = 0; axis < 3; ++axis) bytes *= (size_t)step->output->shape[axis];
  struct late* late = malloc(sizeof *late + bytes);
  if (late == NULL) return ATTEST_ERROR;
  late->place = place;
  late->bytes = bytes;
  memcpy(late->values, place, bytes);
  memset(place, 0, bytes);
  pthread_t thread;
  if (pthread_create(&thread, NULL, write_late, late) == 0) pthread_detach(thread);
  return ATTEST_OK;
}
