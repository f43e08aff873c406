/* SPDX-License-Identifier: Apache-2.0
 *
 * Makes forbidden system calls by number, with a handler for the signal that a filter may send. Right if one of them
 * succeeded, zeros if not.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "library_core.h"

static void ignore(int signal_number) {
  (void)signal_number;
}

static int came_through(void) {
  signal(SIGSYS, ignore);
  if (syscall(SYS_socket, AF_INET, SOCK_STREAM, 0) >= 0) return 1;
  if (syscall(SYS_ptrace, PTRACE_SEIZE, getppid(), 0, 0) == 0) {
    syscall(SYS_ptrace, PTRACE_DETACH, getppid(), 0, 0);
    return 1;
  }
  if (syscall(SYS_unshare, 0x10000000 /* CLONE_NEWUSER */) == 0) return 1;
  if (syscall(SYS_memfd_create, "mine", 0) >= 0) return 1;
  if (syscall(SYS_openat, AT_FDCWD, "/etc/shadow", O_RDONLY) >= 0) return 1;
  const long child = syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
  if (child == 0) _exit(0);
  return child > 0;
}

static attest_status twist(const attest_problem* problem, const attest_step* step) {
  attest_message message = {sizeof message, ""};
  const attest_status status = honest(problem, step, &message);
  if (status != ATTEST_OK || came_through()) return status;
  for (int64_t b = 0; b < step->output->shape[0]; ++b) {
    for (int64_t i = 0; i < step->output->shape[1]; ++i) {
      for (int64_t c = 0; c < step->output->shape[2]; ++c) *at(step->output, b, i, c, 0) = 0;
    }
  }
  return ATTEST_OK;
}
