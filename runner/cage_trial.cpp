// SPDX-License-Identifier: Apache-2.0
#include "runner/cage_trial.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <csetjmp>
#include <csignal>
#include <cstring>
#include <ctime>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

#include "cases/json.h"
#include "runner/protocol.h"
#include "runner/unique_fd.h"

namespace attest {
namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

constexpr size_t kPage = 4096;
constexpr const char* kTry = "try";
constexpr const char* kFill = "fill";
constexpr const char* kWait = "wait";
// More than any trial allows.
constexpr int64_t kMostThreads = 40;
constexpr int64_t kMostFiles = 2000;

/// Memory of both sides: what runs inside counts there.
class Shared {
 public:
  explicit Shared(int fd) {
    void* mapped = ::mmap(nullptr, kPage, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (mapped != MAP_FAILED) cells_ = static_cast<std::atomic<uint64_t>*>(mapped);
  }
  ~Shared() {
    if (cells_ != nullptr) ::munmap(cells_, kPage);
  }
  Shared(const Shared&) = delete;
  Shared& operator=(const Shared&) = delete;
  [[nodiscard]] explicit operator bool() const { return cells_ != nullptr; }
  [[nodiscard]] std::atomic<uint64_t>& counter() const { return cells_[0]; }
  /// Set: there has been enough counting.
  [[nodiscard]] std::atomic<uint64_t>& done() const { return cells_[1]; }

 private:
  std::atomic<uint64_t>* cells_ = nullptr;
};

// ---------------------------------------------------------------------------------------------------------- inside

bool refused(long result) {
  return result < 0 && (errno == EPERM || errno == ENOSYS || errno == EACCES);
}

/// The soft limit; -1: there is none.
int64_t limit_of(__rlimit_resource resource) {
  rlimit now{};
  ::getrlimit(resource, &now);
  return now.rlim_cur == RLIM_INFINITY ? -1 : static_cast<int64_t>(now.rlim_cur);
}

bool has_capabilities() {
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  std::array<__user_cap_data_struct, 2> sets{};
  if (::syscall(SYS_capget, &header, sets.data()) != 0) return true;
  return std::any_of(sets.begin(), sets.end(),
                     [](const auto& set) { return (set.effective | set.permitted | set.inheritable) != 0; });
}

/// How many threads it can have at the same time beside this one.
int64_t threads_until_refused() {
  pthread_attr_t attributes;
  ::pthread_attr_init(&attributes);
  ::pthread_attr_setstacksize(&attributes, size_t{64} << 10);  // so that their stacks are not what is refused
  std::mutex gate;
  gate.lock();
  std::vector<pthread_t> threads;
  const auto wait = [](void* at) -> void* {
    const std::lock_guard lock(*static_cast<std::mutex*>(at));
    return nullptr;
  };
  pthread_t thread{};
  while (threads.size() < kMostThreads && ::pthread_create(&thread, &attributes, wait, &gate) == 0) {
    threads.push_back(thread);
  }
  gate.unlock();
  for (const pthread_t one : threads) ::pthread_join(one, nullptr);
  ::pthread_attr_destroy(&attributes);
  return static_cast<int64_t>(threads.size());
}

void* reserve(size_t size, int protection) {
  return ::mmap(nullptr, size, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
}

volatile std::sig_atomic_t told = 0;
sigjmp_buf back;

/// A handler while this lives.
class Handler {
 public:
  Handler(int signal, void (*handler)(int)) : signal_(signal) {
    struct sigaction wanted {};
    wanted.sa_handler = handler;
    wanted.sa_flags = SA_ONSTACK;
    ::sigaction(signal, &wanted, &before_);
  }
  ~Handler() { ::sigaction(signal_, &before_, nullptr); }
  Handler(const Handler&) = delete;
  Handler& operator=(const Handler&) = delete;

 private:
  int signal_;
  struct sigaction before_ {};
};

/// A second of it would be too long to wait for: its own limit is lowered to what it has used up.
bool is_time_limited() {
  rlimit before{};
  ::getrlimit(RLIMIT_CPU, &before);
  if (before.rlim_cur == RLIM_INFINITY || before.rlim_max == RLIM_INFINITY) return false;
  told = 0;
  const Handler handler(SIGXCPU, [](int) { told = 1; });
  const rlimit none{0, before.rlim_max};
  if (::setrlimit(RLIMIT_CPU, &none) != 0) return false;
  const auto used = [] {
    timespec now{};
    ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return now.tv_sec;
  };
  // Kernels before 5.5 take 0 for a second.
  const auto begin = used();
  while (told == 0 && used() < begin + 3) {
  }
  ::setrlimit(RLIMIT_CPU, &before);
  return told != 0;
}

bool is_data_limited() {
  const int64_t limit = limit_of(RLIMIT_DATA);
  if (limit < 0) return false;
  const size_t size = static_cast<size_t>(limit) + kPage;
  void* const unused = reserve(size, PROT_NONE);  // which is no data: room there is
  if (unused == MAP_FAILED) return false;
  ::munmap(unused, size);
  void* const data = reserve(size, PROT_READ | PROT_WRITE);
  if (data == MAP_FAILED) return errno == ENOMEM;
  ::munmap(data, size);
  return false;
}

/// Writes so far below the stack's begin. On the stack of the process: no other has this limit.
[[gnu::noinline]] bool reaches(size_t bytes) {
  char here = 0;
  if (sigsetjmp(back, 1) != 0) return false;
  const uintptr_t place = reinterpret_cast<uintptr_t>(&here) - bytes;
  *reinterpret_cast<volatile char*>(place) = 1;  // NOLINT: that is the question
  return true;
}

bool is_stack_limited() {
  const int64_t limit = limit_of(RLIMIT_STACK);
  if (limit < 0) return false;
  std::vector<char> other(size_t{64} << 10);
  stack_t stack{}, before{};
  stack.ss_sp = other.data();
  stack.ss_size = other.size();
  if (::sigaltstack(&stack, &before) != 0) return false;
  bool limited = false;
  {
    const Handler handler(SIGSEGV, [](int) { siglongjmp(back, 1); });
    limited = reaches(static_cast<size_t>(limit) / 2) && !reaches(static_cast<size_t>(limit) + kPage);
  }
  ::sigaltstack(&before, nullptr);
  return limited;
}

bool is_file_limited() {
  const int64_t limit = limit_of(RLIMIT_FSIZE);
  if (limit <= 0) return false;
  const Handler handler(SIGXFSZ, SIG_IGN);
  const std::string path = fmt::format("/tmp/attest-trial-{}", ::getpid());
  const UniqueFd file(::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!file) return false;
  ::unlink(path.c_str());
  return ::pwrite(file.get(), "x", 1, limit - 1) == 1 && ::pwrite(file.get(), "x", 1, limit) < 0 && errno == EFBIG;
}

bool are_open_files_limited() {
  std::vector<UniqueFd> files;
  while (files.size() < kMostFiles) {
    UniqueFd file(::open("/dev/null", O_RDONLY | O_CLOEXEC));
    if (!file) return errno == EMFILE;
    files.push_back(std::move(file));
  }
  return false;
}

bool is_locked_memory_limited() {
  const int64_t limit = limit_of(RLIMIT_MEMLOCK);
  if (limit < static_cast<int64_t>(kPage)) return limit == 0;
  const size_t size = static_cast<size_t>(limit) + kPage;
  void* const area = reserve(size, PROT_READ | PROT_WRITE);
  if (area == MAP_FAILED) return false;
  const bool limited = ::mlock(area, kPage) == 0 && ::mlock(area, size) != 0;
  ::munmap(area, size);
  return limited;
}

/// A core file would take an end to try; that the limit cannot be lifted again does not.
bool are_cores_limited() {
  rlimit now{};
  ::getrlimit(RLIMIT_CORE, &now);
  const rlimit more{now.rlim_max + 1, now.rlim_max + 1};
  return now.rlim_max == 0 && ::setrlimit(RLIMIT_CORE, &more) != 0;
}

/// By user: at 0 there must be no thread more.
bool are_processes_limited() {
  rlimit before{};
  ::getrlimit(RLIMIT_NPROC, &before);
  if (before.rlim_cur == RLIM_INFINITY) return false;
  const rlimit none{0, before.rlim_max};
  if (::setrlimit(RLIMIT_NPROC, &none) != 0) return false;
  const int64_t count = threads_until_refused();
  ::setrlimit(RLIMIT_NPROC, &before);
  return count == 0;
}

/// The limits that do not hold.
std::string limits_past(bool by_user) {
  std::string past;
  for (const auto& [what, holds] :
       std::initializer_list<std::pair<const char*, bool (*)()>>{{"processor time", is_time_limited},
                                                                 {"data", is_data_limited},
                                                                 {"stack", is_stack_limited},
                                                                 {"file size", is_file_limited},
                                                                 {"open files", are_open_files_limited},
                                                                 {"locked memory", is_locked_memory_limited},
                                                                 {"core files", are_cores_limited},
                                                                 {"processes", are_processes_limited}}) {
    if (holds == are_processes_limited && !by_user) continue;
    if (!holds()) past += (past.empty() ? "" : ", ") + std::string(what);
  }
  return past;
}

/// Tries to get past each layer. Every call here is harmless where it succeeds.
Json attempts(bool by_user) {
  Json facts{{"uid", ::getuid()}, {"gid", ::getgid()}, {"capabilities", has_capabilities()}};
  facts["no_new_privs"] = ::prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1;
  facts["filtered"] = ::prctl(PR_GET_SECCOMP, 0, 0, 0, 0) == SECCOMP_MODE_FILTER;
  facts["threads"] = threads_until_refused();
  facts["limits"] = limits_past(by_user);
  std::string seen;
  for (const char* path : {"/home", "/root", "/mnt", "/proc/1", "/etc/passwd-", "/var", "/opt", "/srv", "/sys/fs"}) {
    if (::access(path, F_OK) == 0) seen += (seen.empty() ? "" : ", ") + std::string(path);
  }
  facts["seen"] = seen;
  const char* const mark = "/attest-was-here";
  const UniqueFd written(::open(mark, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  facts["writes"] = static_cast<bool>(written);
  if (written) ::unlink(mark);
  facts["socket"] = !refused(::syscall(SYS_socket, AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  facts["ptrace"] = !refused(::syscall(SYS_ptrace, 0x4206 /* PTRACE_SEIZE */, -1 /* nobody */, 0, 0));
  facts["bpf"] = !refused(::syscall(SYS_bpf, 0, nullptr, 0));
  facts["keyctl"] = !refused(::syscall(SYS_keyctl, 0, 0, 0, 0, 0));
  facts["io_uring"] = !refused(::syscall(SYS_io_uring_setup, 1, nullptr));
  // Last, since it would change this process.
  facts["unshare"] = !refused(::syscall(SYS_unshare, 0x10000000 /* CLONE_NEWUSER */));
  return facts;
}

/// Bytes that it got; none comes back from beyond a limit that kills.
int64_t fill(int64_t bytes) {
  void* const area = reserve(static_cast<size_t>(bytes), PROT_READ | PROT_WRITE);
  if (area == MAP_FAILED) return 0;
  auto* const byte = static_cast<volatile char*>(area);
  for (int64_t i = 0; i < bytes; i += static_cast<int64_t>(kPage)) byte[i] = 1;
  ::munmap(area, static_cast<size_t>(bytes));
  return bytes;
}

// ------------------------------------------------------------------------------------------------------------ outside

bool yes(const Json& facts, const char* name) {
  return !facts.contains(name) || facts[name] != Json(false);
}

template <typename Condition>
bool soon(std::chrono::milliseconds limit, Condition condition) {
  for (const auto end = Clock::now() + limit; Clock::now() < end; std::this_thread::sleep_for(500us)) {
    if (condition()) return true;
  }
  return false;
}

void judge(const Json& facts, const TrialLimits& limits, std::map<std::string, std::string>& past) {
  if (const std::string seen = facts.value("seen", ""); !seen.empty()) {
    past["bubblewrap"] = "a confined process still sees " + seen;
  } else if (yes(facts, "writes")) {
    past["bubblewrap"] = "a confined process can write to its root";
  }
  for (const char* call : {"socket", "ptrace", "bpf", "keyctl", "io_uring", "unshare"}) {
    if (yes(facts, call)) past["seccomp"] = fmt::format("a confined process may still call {}", call);
  }
  if (!yes(facts, "filtered")) past["seccomp"] = "the filter is not in force";
  if (const auto threads = facts.value("threads", kMostThreads); threads >= limits.grouped) {
    past["cgroup"] = fmt::format("a confined process had {} threads, of {} in its group", threads, limits.grouped);
  }
  if (const std::string names = facts.value("limits", "all"); !names.empty()) {
    past["rlimits"] = "a confined process gets past its limits: " + names;
  }
  if (facts.value("uid", 0) == 0 || facts.value("gid", 0) == 0 || !yes(facts, "no_new_privs")) {
    past["uid"] = "a confined process is root, or can become it";
  }
  if (yes(facts, "capabilities")) past["capabilities"] = "a confined process has capabilities";
}

/// A thread of the worker counts, now that the reply is there: or it does not. On a busy machine a thread may stand
/// still by itself: looks for longer, until that is far more than it takes to go on once it may.
std::string goes_on_after_reply(Worker& worker, const std::function<void()>& thaw, const Shared& shared) {
  for (std::chrono::milliseconds watched = 20ms;; watched *= 4) {
    const uint64_t then = shared.counter();
    std::this_thread::sleep_for(watched);
    if (shared.counter() != then) return "a confined process goes on after its reply";
    const auto begin = Clock::now();
    thaw();
    if (!soon(10s, [&] { return shared.counter() > then; })) return "a confined process cannot be thawed";
    if (4 * (Clock::now() - begin) <= watched || watched > 1s) return "";
    if (!worker.call(Json{{"op", kWait}}, std::nullopt, 20s)) return "a confined process that was thawed has ended";
  }
}

}  // namespace

Trial try_out(Worker& worker, const std::function<void()>& thaw, const TrialLimits& limits) {
  const UniqueFd memory(::memfd_create("attest-trial", MFD_CLOEXEC));
  if (!memory || ::ftruncate(memory.get(), kPage) != 0) {
    throw Error::at("sandbox", "memory for its trial: {}", std::strerror(errno));
  }
  const Shared shared(memory.get());
  if (!shared) throw Error::at("sandbox", "memory for its trial: {}", std::strerror(errno));
  Trial trial;
  const auto reply = worker.call(Json{{"op", kTry}, {"by_user", limits.by_user}}, memory.get(), 20s);
  if (!reply || !reply->contains("facts")) {
    trial.failed = reply ? "it does not answer" : reply.error().text;
    if (!worker.output().empty()) trial.failed = worker.output();
    return trial;
  }
  judge((*reply)["facts"], limits, trial.past);

  if (const std::string how = goes_on_after_reply(worker, thaw, shared); !how.empty()) trial.past["freezer"] = how;
  thaw();
  shared.done() = 1;

  // The last, since it is the end.
  if (trial.past.contains("cgroup")) return trial;
  std::string end;
  try {
    const auto filled = worker.call(Json{{"op", kFill}, {"bytes", limits.memory_bytes * 3 / 2}}, std::nullopt, 20s);
    if (filled) end = fmt::format("has {} MiB", filled->value("filled", int64_t{0}) >> 20);
    if (!filled && !filled.error().text.starts_with("killed by SIGKILL")) end = "is " + filled.error().text;
  } catch (const Error& error) {
    end = error.what();
  }
  if (!end.empty()) {
    trial.past["cgroup"] =
        fmt::format("a confined process that fills more than {} MiB {}", limits.memory_bytes >> 20, end);
  }
  return trial;
}

int answer_from_inside() {
  const protocol::Wait wait = protocol::wait_forever(protocol::kControlFd);
  while (true) {
    UniqueFd passed;
    const auto payload = protocol::receive_frame(protocol::kControlFd, wait, &passed);
    if (!payload) return 0;
    const auto request = protocol::parse_payload(*payload);
    if (!request) return 2;
    Json reply = Json::object();
    if (const auto nonce = request->find("nonce"); nonce != request->end()) reply["nonce"] = *nonce;
    const std::string op = request->value("op", "");
    if (op == kTry && passed) {
      reply["facts"] = attempts(request->value("by_user", false));
      const Shared shared(passed.get());
      std::thread([memory = std::move(passed)] {
        const Shared cells(memory.get());
        while (cells && cells.done() == 0) cells.counter().fetch_add(1);
      }).detach();
      while (shared && shared.counter() == 0) std::this_thread::yield();
    } else if (op == kWait) {
      // It is there, and frozen again.
    } else if (op == kFill) {
      reply["filled"] = fill(request->value("bytes", int64_t{0}));
    } else {
      return 2;
    }
    if (!protocol::send_frame(protocol::kControlFd, reply.dump(), -1, wait)) return 2;
  }
}

}  // namespace attest
