// SPDX-License-Identifier: Apache-2.0
#include "runner/cage_filter.h"

#include <fmt/format.h>

#include "cases/error.h"

#ifndef ATTEST_HAS_SECCOMP

namespace attest {

std::string make_filter(bool /*may_fork*/) {
  throw Error("sandbox: attest was built without libseccomp");
}

}  // namespace attest

#else

#include <fcntl.h>
#include <sched.h>
#include <seccomp.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <memory>

#include "runner/unique_fd.h"

namespace attest {
namespace {

// Measured with strace: `import torch, numpy`, layers, threads, a .so that computes; and what the C library does in
// corners that a measurement does not reach (errors, abort, large allocations, time).
constexpr std::array kAllowed{
    // Memory
    "brk", "madvise", "mincore", "mlock", "mlock2", "mmap", "mprotect", "mremap", "msync", "munlock", "munmap",
    "pkey_alloc", "pkey_free", "pkey_mprotect",
    // Files: the mounts decide which there are
    "access", "chdir", "chmod", "close", "close_range", "copy_file_range", "creat", "dup", "dup2", "dup3", "faccessat",
    "faccessat2", "fadvise64", "fallocate", "fchdir", "fchmod", "fchmodat", "fcntl", "fdatasync", "flock", "fstat",
    "fstatfs", "fsync", "ftruncate", "futimesat", "getcwd", "getdents", "getdents64", "ioctl", "link", "linkat",
    "lseek", "lstat", "mkdir", "mkdirat", "newfstatat", "open", "openat", "pread64", "preadv", "preadv2", "pwrite64",
    "pwritev", "pwritev2", "read", "readahead", "readlink", "readlinkat", "readv", "rename", "renameat", "renameat2",
    "rmdir", "sendfile", "stat", "statfs", "statx", "symlink", "symlinkat", "sync_file_range", "truncate", "umask",
    "unlink", "unlinkat", "utime", "utimensat", "utimes", "write", "writev",
    // Waiting, pipes
    "epoll_create", "epoll_create1", "epoll_ctl", "epoll_pwait", "epoll_wait", "eventfd", "eventfd2", "pipe", "pipe2",
    "poll", "ppoll", "pselect6", "select", "timerfd_create", "timerfd_gettime", "timerfd_settime",
    // The control socket, which is there already. Descriptors can be received over it, and sent to nobody
    "getpeername", "getsockname", "getsockopt", "recvfrom", "recvmsg", "sendmsg", "sendto", "shutdown",
    // Threads
    "arch_prctl", "exit", "exit_group", "futex", "get_robust_list", "getcpu", "gettid", "membarrier", "rseq",
    "sched_getaffinity", "sched_getattr", "sched_getparam", "sched_getscheduler", "sched_get_priority_max",
    "sched_get_priority_min", "sched_setaffinity", "sched_yield", "set_robust_list", "set_tid_address", "get_mempolicy",
    "set_mempolicy", "mbind",
    // Signals to itself: there is no other process that it could reach
    "alarm", "getitimer", "kill", "pause", "restart_syscall", "rt_sigaction", "rt_sigpending", "rt_sigprocmask",
    "rt_sigqueueinfo", "rt_sigreturn", "rt_sigsuspend", "rt_sigtimedwait", "rt_tgsigqueueinfo", "setitimer",
    "sigaltstack", "tgkill", "tkill", "timer_create", "timer_delete", "timer_getoverrun", "timer_gettime",
    "timer_settime",
    // Time
    "clock_getres", "clock_gettime", "clock_nanosleep", "gettimeofday", "nanosleep", "time", "times",
    // About itself
    "capget", "getegid", "geteuid", "getgid", "getgroups", "getpgid", "getpgrp", "getpid", "getppid", "getpriority",
    "getrandom", "getresgid", "getresuid", "getrlimit", "getrusage", "getsid", "getuid", "prctl", "prlimit64",
    "setpgid", "setrlimit", "setsid", "sysinfo", "uname",
    // The start of the worker itself, and waiting for children that it may or may not have
    "execve", "wait4", "waitid"};

// Refused in so many words rather than unknown: whoever tries these shall read "not permitted". All that is in neither
// list gets ENOSYS, after which the C library and others fall back to older calls.
constexpr std::array kRefused{
    "accept", "accept4", "acct", "add_key", "adjtimex", "bind", "bpf", "chown", "chroot", "clock_adjtime",
    "clock_settime", "connect", "delete_module", "execveat", "fanotify_init", "fchown", "fchownat", "finit_module",
    "fork", "init_module", "inotify_add_watch", "inotify_init", "inotify_init1", "io_uring_enter", "io_uring_register",
    "io_uring_setup", "ioperm", "iopl", "kcmp", "kexec_file_load", "kexec_load", "keyctl", "lchown", "listen",
    "memfd_create", "memfd_secret", "mknod", "mknodat", "mount", "move_pages", "migrate_pages", "msgctl", "msgget",
    "msgrcv", "msgsnd", "mq_open", "name_to_handle_at", "open_by_handle_at", "perf_event_open", "personality",
    "pidfd_getfd", "pidfd_open", "pidfd_send_signal", "pivot_root", "process_madvise", "process_vm_readv",
    "process_vm_writev", "ptrace", "quotactl", "reboot", "recvmmsg", "request_key", "sched_setattr", "sched_setparam",
    "sched_setscheduler", "seccomp", "semctl", "semget", "semop", "semtimedop", "sendmmsg", "setdomainname", "setfsgid",
    "setfsuid", "setgid", "setgroups", "sethostname", "setns", "setpriority", "setregid", "setresgid", "setresuid",
    "setreuid", "setsockopt", "settimeofday", "setuid", "shmat", "shmctl", "shmdt", "shmget", "signalfd", "signalfd4",
    "socket", "socketpair", "splice", "swapoff", "swapon", "syslog", "tee", "umount2", "unshare", "userfaultfd",
    "vfork", "vhangup", "vmsplice",
    // Mounts by descriptor
    "fsconfig", "fsmount", "fsopen", "fspick", "mount_setattr", "move_mount", "open_tree"};

class Filter {
 public:
  Filter() : context_(seccomp_init(SCMP_ACT_ERRNO(ENOSYS)), &seccomp_release) {
    if (!context_) throw Error("sandbox: libseccomp makes no filter");
    // Another architecture's calls have other numbers: nothing honest changes over in mid-run.
    check(seccomp_attr_set(context_.get(), SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS), "the architecture");
    // Looked up in a tree: each call costs the same few comparisons.
    seccomp_attr_set(context_.get(), SCMP_FLTATR_CTL_OPTIMIZE, 2);
  }

  template <typename... Conditions>
  void add(uint32_t action, const char* name, Conditions... conditions) {
    const int number = seccomp_syscall_resolve_name(name);
    if (number == __NR_SCMP_ERROR) return;  // newer than this libseccomp: unknown, so ENOSYS
    const int error = seccomp_rule_add(context_.get(), action, number, sizeof...(conditions), conditions...);
    // A call that this architecture does not have needs no rule.
    if (error != -EDOM && error != -EINVAL) check(error, name);
  }

  [[nodiscard]] std::string program() const {
    const UniqueFd file(::memfd_create("attest-filter", MFD_CLOEXEC));
    if (!file) throw Error::at("sandbox", "memfd_create: {}", std::strerror(errno));
    check(seccomp_export_bpf(context_.get(), file.get()), "the program");
    std::string bytes(static_cast<size_t>(::lseek(file.get(), 0, SEEK_END)), '\0');
    if (::pread(file.get(), bytes.data(), bytes.size(), 0) != static_cast<ssize_t>(bytes.size())) {
      throw Error::at("sandbox", "reading the filter: {}", std::strerror(errno));
    }
    return bytes;
  }

 private:
  static void check(int error, std::string_view what) {
    if (error < 0) throw Error::at("sandbox", "libseccomp refuses {}: {}", what, std::strerror(-error));
  }

  std::unique_ptr<void, decltype(&seccomp_release)> context_;
};

}  // namespace

std::string make_filter(bool may_fork) {
  constexpr uint64_t kNamespaces =
      CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET;
  const uint32_t refuse = SCMP_ACT_ERRNO(EPERM);
  Filter filter;
  for (const char* name : kAllowed) {
    const std::string_view call = name;
    // The requests of ioctl that a terminal understands, one of which types for its owner, and those of other devices.
    if (call == "ioctl") {
      for (const uint64_t request : {TCGETS, FIONREAD, FIONBIO, FIOCLEX, FIONCLEX, TIOCGWINSZ}) {
        // Only the lower half counts for the kernel.
        filter.add(SCMP_ACT_ALLOW, name, SCMP_A1(SCMP_CMP_MASKED_EQ, 0xffffffffU, request));
      }
    } else if (call == "prlimit64") {  // its own limits, not those of bubblewrap's process
      filter.add(SCMP_ACT_ALLOW, name, SCMP_A0(SCMP_CMP_MASKED_EQ, 0xffffffffU, 0));
    } else {
      filter.add(SCMP_ACT_ALLOW, name);
    }
  }
  for (const char* name : kRefused) {
    const std::string_view call = name;
    if (!(may_fork && (call == "fork" || call == "vfork" || call == "socketpair"))) filter.add(refuse, name);
  }
  // Flags of clone are in a register, and can be judged; those of clone3 are in memory, where they could still change.
  // Without it the C library uses clone.
  const uint64_t thread = may_fork ? 0 : CLONE_THREAD;
  filter.add(SCMP_ACT_ALLOW, "clone", SCMP_A0(SCMP_CMP_MASKED_EQ, kNamespaces | thread, thread));
  for (uint64_t flag = 1; flag != 0 && flag <= kNamespaces; flag <<= 1U) {
    if ((kNamespaces & flag) != 0) filter.add(refuse, "clone", SCMP_A0(SCMP_CMP_MASKED_EQ, flag, flag));
  }
  if (!may_fork) filter.add(refuse, "clone", SCMP_A0(SCMP_CMP_MASKED_EQ, CLONE_THREAD, 0));
  for (const char* name : {"fork", "vfork", "socketpair"}) {
    if (may_fork) filter.add(SCMP_ACT_ALLOW, name);
  }
  return filter.program();
}

}  // namespace attest

#endif
