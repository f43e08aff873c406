// SPDX-License-Identifier: Apache-2.0
#include "bench/watch.h"

#include <fmt/format.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>

namespace attest::bench {
namespace {

using Clock = std::chrono::steady_clock;

/// A text that a signal handler may read while another is being set: the new one is written beside it.
class Text {
 public:
  void set(const std::string& text) {
    const size_t next = 1 - current_.load();
    const size_t size = std::min(text.size(), texts_[next].size() - 1);
    std::memcpy(texts_[next].data(), text.data(), size);
    texts_[next][size] = '\0';
    current_.store(next);
  }
  [[nodiscard]] const char* get() const { return texts_[current_.load()].data(); }

 private:
  std::array<std::array<char, 512>, 2> texts_{};
  std::atomic<size_t> current_{0};
};

// A signal handler knows no object.
Text running, results;
std::atomic<bool> alive{false};
std::atomic<pid_t> owner{0};              ///< The process that made it: what it forks may end as it likes.
std::atomic<bool> armed{false};           ///< A backend runs.
std::atomic<Clock::rep> deadline{0};      ///< Its end.
std::atomic<bool> told{false};            ///< One message is enough, whatever an end brings with it.
std::atomic<int> stop_signal{0};          ///< The first of SIGINT and SIGTERM.
std::array<struct sigaction, 65> before;  ///< What a signal did without a Watch.

constexpr std::array<int, 5> kFatal{SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT};
constexpr std::array<int, 2> kStops{SIGINT, SIGTERM};

// Only write(): this runs in signal handlers.
void put(const char* text) {
  size_t size = std::strlen(text);
  while (size > 0) {
    const ssize_t written = ::write(STDERR_FILENO, text, size);
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return;
    text += written;
    size -= static_cast<size_t>(written);
  }
}

void tell(const char* what) {
  if (told.exchange(true)) return;
  put("\nattest bench: ");
  put(what);
  put(armed.load() ? " while this ran: " : ", after this had run: ");
  put(running.get());
  if (*results.get() != '\0') {
    put("\nattest bench: the shapes before it are in ");
    put(results.get());
  } else {
    put("\nattest bench: no results are kept");
  }
  put("\n");
}

const char* name_of(int signal) {
  switch (signal) {
    case SIGSEGV:
      return "SIGSEGV";
    case SIGBUS:
      return "SIGBUS";
    case SIGFPE:
      return "SIGFPE";
    case SIGILL:
      return "SIGILL";
    default:
      return "SIGABRT";
  }
}

void on_fatal(int signal, siginfo_t* info, void* /*context*/) {
  tell(name_of(signal));
  ::sigaction(signal, &before[static_cast<size_t>(signal)], nullptr);
  // A fault comes again when the instruction does, with its address for whoever looks; what was sent does not.
  if (info == nullptr || info->si_code <= 0) ::raise(signal);
}

void on_stop(int signal) {
  stop_signal.store(signal);
  put("\nattest bench: stops after this turn; once more: at once\n");
  for (const int one : kStops) ::sigaction(one, &before[static_cast<size_t>(one)], nullptr);
}

void on_exit() {
  if (!alive.load()) return;
  tell("exit() was called");
  ::_exit(1);
}

}  // namespace

// In the program itself, so that a backend's call comes here and not to the C library. Who calls the system past both
// gets through.
extern "C" {
void _exit(int status) {  // NOLINT(bugprone-reserved-identifier)
  if (alive.load() && ::getpid() == owner.load()) {
    tell("_exit() was called");
    status = 1;
  }
  while (true) ::syscall(SYS_exit_group, status);
}
void _Exit(int status) {  // NOLINT(bugprone-reserved-identifier)
  ::_exit(status);
}
}

Watch::Watch(double limit) : limit_(limit) {
  running.set("nothing");
  results.set("");
  told = armed = false;
  stop_signal = 0;
  owner = ::getpid();
  alive = true;
  static const bool guarded = std::atexit(on_exit) == 0 && ::at_quick_exit(on_exit) == 0;
  static_cast<void>(guarded);

  // The handler of a stack that overflowed needs another one.
  constexpr size_t kStack = 64 << 10;
  stack_ = std::make_unique<char[]>(kStack);
  const stack_t stack{.ss_sp = stack_.get(), .ss_flags = 0, .ss_size = kStack};
  ::sigaltstack(&stack, &stack_before_);
  for (const int signal : kFatal) {
    struct sigaction action {};
    action.sa_sigaction = on_fatal;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    ::sigaction(signal, &action, &before[static_cast<size_t>(signal)]);
  }
  for (const int signal : kStops) {
    struct sigaction action {};
    action.sa_handler = on_stop;
    action.sa_flags = SA_RESTART;
    ::sigaction(signal, nullptr, &before[static_cast<size_t>(signal)]);
    // Who started this in the background, where a Ctrl-C is not for it, said so.
    if (before[static_cast<size_t>(signal)].sa_handler != SIG_IGN) ::sigaction(signal, &action, nullptr);
  }

  // Signals are for the thread that measures.
  sigset_t all, old;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &old);
  thread_ = std::thread([this] { look(); });
  ::pthread_sigmask(SIG_SETMASK, &old, nullptr);
}

Watch::~Watch() {
  {
    const std::lock_guard lock(mutex_);
    end_ = true;
  }
  ended_.notify_all();
  thread_.join();
  for (const int signal : kFatal) ::sigaction(signal, &before[static_cast<size_t>(signal)], nullptr);
  for (const int signal : kStops) ::sigaction(signal, &before[static_cast<size_t>(signal)], nullptr);
  ::sigaltstack(&stack_before_, nullptr);
  armed = false;
  alive = false;
}

void Watch::now(const std::string& what) {
  running.set(what);
  const auto limit = std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(limit_));
  deadline.store((Clock::now() + limit).time_since_epoch().count());
  armed.store(true);
}

void Watch::idle() {
  armed.store(false);
}

void Watch::kept(const std::filesystem::path& path) {
  results.set(path.string());
}

bool Watch::stopped() {
  return stop_signal.load() != 0;
}

// Sleeps until the end that it knew when it last woke, which is no later than any that was set since: it finds what
// hangs in time, and wakes once in `limit` seconds. A thread that works more often would be taken for a backend's.
void Watch::look() {
  const auto limit = std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(limit_));
  std::unique_lock lock(mutex_);
  Clock::time_point next = Clock::now() + limit;
  while (!ended_.wait_until(lock, next, [this] { return end_; })) {
    const Clock::time_point end{Clock::duration(deadline.load())};
    if (!armed.load()) {
      next = Clock::now() + limit;
    } else if (Clock::now() < end) {
      next = end;
    } else {
      tell(fmt::format("gave up after {:g} s (--timeout)", limit_).c_str());
      ::_exit(1);
    }
  }
}

}  // namespace attest::bench
