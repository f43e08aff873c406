/* SPDX-License-Identifier: Apache-2.0
 *
 * Acts while it is loaded: replies ok on the control socket, and ends the process with exit code 0.
 */
#define _GNU_SOURCE
#include <sys/stat.h>
#include <unistd.h>

#define CORE_HONEST
#include "library_core.h"

__attribute__((constructor)) static void load(void) {
  static const char reply[] =
      "{\"nonce\":\"0000000000000000\",\"status\":\"ok\",\"message\":\"\",\"name\":\"mine\",\"version\":\"1\","
      "\"description\":\"\",\"device\":\"cpu\",\"abi_version\":1,\"declarations\":{}}";
  const uint32_t length = sizeof reply - 1;
  struct stat status;
  if (fstat(3, &status) != 0 || !S_ISSOCK(status.st_mode)) return; /* not in a worker */
  if (write(3, &length, sizeof length) > 0 && write(3, reply, length) > 0) _exit(0);
  _exit(0);
}
