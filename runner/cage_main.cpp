// SPDX-License-Identifier: Apache-2.0
// attest-cage: between attest and a confined worker. It joins the control groups, sets limits, gives up its user and
// starts the worker behind bubblewrap and a system call filter; all of that before the first instruction of foreign
// code. Then it waits outside of the groups, so that it runs while the worker is frozen: when attest dies, it ends the
// worker and removes the groups; when the worker ends, it ends in the same way. runner/sandbox.h starts it.
#include <fcntl.h>
#include <fmt/format.h>
#include <grp.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <sstream>
#include <string_view>

#include "runner/cage_filter.h"
#include "runner/cage_plan.h"
#include "runner/cage_trial.h"
#include "runner/cgroup.h"
#include "runner/protocol.h"
#include "runner/unique_fd.h"

namespace attest {
namespace {

constexpr int kFailed = 125;
constexpr const char* kInsideId = "1000";

[[noreturn]] void fail(std::string_view what) {
  throw Error::at("sandbox", "{}: {}", what, std::strerror(errno));
}

/// A file with these contents and no name.
UniqueFd file_of(std::string_view text) {
  UniqueFd file(::memfd_create("attest-cage", MFD_CLOEXEC));
  if (!file) fail("memfd_create");
  for (size_t done = 0; done < text.size();) {
    const ssize_t count = ::write(file.get(), text.data() + done, text.size() - done);
    if (count < 0) fail("write");
    done += static_cast<size_t>(count);
  }
  if (::lseek(file.get(), 0, SEEK_SET) != 0) fail("lseek");
  return file;
}

/// A regular file, and not what a link points to: a submission could be a link to what it must not see, and this
/// process may read everything.
UniqueFd opened(const CagePlan::Copy& copy) {
  UniqueFd file(::open(copy.from.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
  struct stat status {};
  if (!file || ::fstat(file.get(), &status) != 0) {
    if (copy.optional) return UniqueFd();
    fail(copy.from);
  }
  if (!S_ISREG(status.st_mode)) throw Error::at(copy.from, "is no regular file");
  return file;
}

/// Where closed directories are shown to bubblewrap, in a mount namespace that nobody else is in.
constexpr const char* kOpenPlace = "/mnt";

/// What is executed, and what it needs for that.
struct Launch {
  std::vector<std::string> argv;
  std::vector<std::string> closed;  // directories that are shown in kOpenPlace, by their index
  std::vector<UniqueFd> files;      // that bubblewrap reads, by number
  UniqueFd progress;                // what bubblewrap tells of its own work
  std::string filter;

  std::string pass(UniqueFd file) {
    files.push_back(std::move(file));
    return std::to_string(files.back().get());
  }
};

Launch launch_of(const CagePlan& plan) {
  Launch launch;
  if (plan.filter) launch.filter = make_filter(plan.may_fork);
  if (plan.bubblewrap.empty()) {
    launch.argv = plan.command;
    return launch;
  }
  std::vector<std::string>& argv = launch.argv;
  const auto add = [&](std::initializer_list<std::string> words) { argv.insert(argv.end(), words); };
  add({plan.bubblewrap, "--unshare-all", "--unshare-user", "--disable-userns", "--uid", kInsideId, "--gid", kInsideId,
       "--die-with-parent", "--new-session", "--cap-drop", "ALL", "--hostname", "attest"});
  // On systems whose /lib is a directory of its own it is mounted; elsewhere it is the link that it is outside.
  for (const char* name : {"/lib", "/lib64"}) {
    std::array<char, 256> target{};
    if (::readlink(name, target.data(), target.size() - 1) > 0) {
      add({"--symlink", target.data(), name});
    } else {
      add({"--ro-bind-try", name, name});
    }
  }
  add({"--perms", "0755", "--tmpfs", "/dev"});
  for (const char* device : {"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"}) {
    add({"--dev-bind-try", device, device});
  }
  add({"--remount-ro", "/dev", "--size", std::to_string(plan.tmpfs_bytes), "--perms", "1777", "--tmpfs", "/tmp"});
  // After /tmp, which would hide what is shown below it.
  for (const CagePlan::Mount& mount : plan.mounts) {
    std::string from = mount.from;
    if (mount.closed) {
      from = fmt::format("{}/{}", kOpenPlace, launch.closed.size());
      launch.closed.push_back(mount.from);
    }
    add({mount.optional ? "--ro-bind-try" : "--ro-bind", from, mount.to});
  }
  for (const CagePlan::Copy& copy : plan.copies) {
    UniqueFd file = copy.from.empty() ? file_of(copy.text) : opened(copy);
    if (!file) continue;
    add({"--perms", copy.executable ? "0555" : "0444", "--ro-bind-data", launch.pass(std::move(file)), copy.to});
  }
  if (plan.filter) add({"--seccomp", launch.pass(file_of(launch.filter))});
  std::array<int, 2> ends{};
  if (::pipe2(ends.data(), O_CLOEXEC) != 0) fail("pipe");
  launch.progress.reset(ends[0]);
  add({"--json-status-fd", launch.pass(UniqueFd(ends[1]))});
  add({"--remount-ro", "/", "--chdir", "/tmp", "--"});
  argv.insert(argv.end(), plan.command.begin(), plan.command.end());
  return launch;
}

void limit(__rlimit_resource resource, const char* name, int64_t value, int64_t hard) {
  rlimit now{};
  if (::getrlimit(resource, &now) != 0) fail(name);
  const auto at_most = [&](int64_t wanted) { return std::min(static_cast<rlim_t>(wanted), now.rlim_max); };
  const rlimit wanted{at_most(value), at_most(hard)};
  if (::setrlimit(resource, &wanted) != 0) fail(name);
}

void set_limits(const CagePlan& plan) {
  constexpr int64_t kStack = int64_t{8} << 20;
  limit(RLIMIT_CORE, "RLIMIT_CORE", 0, 0);
  limit(RLIMIT_CPU, "RLIMIT_CPU", plan.cpu_seconds, plan.cpu_seconds + 1);
  limit(RLIMIT_DATA, "RLIMIT_DATA", plan.data_bytes, plan.data_bytes);
  limit(RLIMIT_STACK, "RLIMIT_STACK", kStack, kStack);
  limit(RLIMIT_FSIZE, "RLIMIT_FSIZE", plan.file_bytes, plan.file_bytes);
  limit(RLIMIT_NOFILE, "RLIMIT_NOFILE", 256, 256);
  limit(RLIMIT_MEMLOCK, "RLIMIT_MEMLOCK", 65536, 65536);
  limit(RLIMIT_MSGQUEUE, "RLIMIT_MSGQUEUE", 0, 0);
  limit(RLIMIT_SIGPENDING, "RLIMIT_SIGPENDING", 256, 256);
  limit(RLIMIT_NICE, "RLIMIT_NICE", 0, 0);
  limit(RLIMIT_RTPRIO, "RLIMIT_RTPRIO", 0, 0);
  // Of a user that nobody else is, so it counts this worker alone; bubblewrap's own two are in it. A user who shares
  // the number with others would be refused for what those do: the control group counts there.
  if (plan.uid != 0) limit(RLIMIT_NPROC, "RLIMIT_NPROC", plan.processes + 2, plan.processes + 2);
}

/// What root may read is given a way that its lesser user may go, too, in a mount namespace of this process:
/// outside, everything above it stays as closed as it was.
void open_directories(const std::vector<std::string>& closed) {
  if (closed.empty()) return;
  if (::unshare(CLONE_NEWNS) != 0) fail("unshare");
  if (::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) fail("mount");
  std::vector<UniqueFd> directories;  // before kOpenPlace covers what may be one of them
  for (const std::string& path : closed) {
    directories.emplace_back(::open(path.c_str(), O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    if (!directories.back()) fail(path);
  }
  if (::mount("tmpfs", kOpenPlace, "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755,size=64k") != 0) fail(kOpenPlace);
  for (size_t i = 0; i < closed.size(); ++i) {
    const std::string place = fmt::format("{}/{}", kOpenPlace, i);
    const std::string source = fmt::format("/proc/self/fd/{}", directories[i].get());
    if (::mkdir(place.c_str(), 0755) != 0) fail(place);
    if (::mount(source.c_str(), place.c_str(), nullptr, MS_BIND | MS_REC, nullptr) != 0) fail(place);
  }
}

void become(const CagePlan& plan) {
  if (plan.uid != 0) {
    const auto id = static_cast<uid_t>(plan.uid);
    if (::setgroups(0, nullptr) != 0) fail("setgroups");
    if (::setresgid(id, id, id) != 0) fail("setresgid");
    if (::setresuid(id, id, id) != 0) fail("setresuid");
  }
  if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) fail("no_new_privs");
}

/// In the child: nothing that it holds is given to bubblewrap but what belongs there.
[[noreturn]] void start(const CagePlan& plan, Launch& launch, pid_t cage) {
  try {
    if (!plan.groups.empty()) {
      ControlGroup({plan.groups.begin(), plan.groups.end()}).join();
    }
    open_directories(launch.closed);
    if (plan.limited) set_limits(plan);
    become(plan);
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);  // after the change of user, which clears it
    if (::getppid() != cage) ::_exit(kFailed);
    sigset_t none;
    ::sigemptyset(&none);
    ::sigprocmask(SIG_SETMASK, &none, nullptr);
    for (const UniqueFd& file : launch.files) {
      if (::fcntl(file.get(), F_SETFD, 0) != 0) fail("fcntl");
    }
    if (plan.bubblewrap.empty() && !launch.filter.empty()) {
      sock_fprog program{static_cast<unsigned short>(launch.filter.size() / sizeof(sock_filter)),
                         reinterpret_cast<sock_filter*>(launch.filter.data())};
      if (::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program, 0, 0) != 0) fail("seccomp");
    }
    std::vector<char*> argv;
    for (std::string& word : launch.argv) argv.push_back(word.data());
    argv.push_back(nullptr);
    ::execv(argv[0], argv.data());
    fail(argv[0]);
  } catch (const std::exception& error) {
    fmt::print(stderr, "attest-cage: {}\n", error.what());
  }
  std::fflush(stderr);
  ::_exit(kFailed);
}

class Status {
 public:
  /// The parent's pipe. No parent, no cage.
  explicit Status(const std::string& path) {
    if (path.empty()) return;
    pipe_.reset(::open(path.c_str(), O_WRONLY | O_CLOEXEC | O_NONBLOCK));
    if (!pipe_) fail(path);
  }
  void tell(const Json& fact) const {
    const std::string line = fact.dump() + "\n";
    if (pipe_ && ::write(pipe_.get(), line.data(), line.size()) < 0) return;  // nobody is left to hear it
  }

 private:
  UniqueFd pipe_;
};

/// What bubblewrap says of itself: JSON documents one after the other.
class Progress {
 public:
  explicit Progress(const UniqueFd& pipe) : pipe_(pipe) {
    if (pipe_) ::fcntl(pipe_.get(), F_SETFL, O_NONBLOCK);
  }
  void read() {
    std::array<char, 1024> bytes;  // NOLINT: read() fills it
    for (ssize_t got = 0; pipe_ && (got = ::read(pipe_.get(), bytes.data(), bytes.size())) > 0;) {
      text_.append(bytes.data(), static_cast<size_t>(got));
    }
  }
  /// The first document is whole: it is written piece by piece.
  [[nodiscard]] bool begun() const { return text_.find('}') != std::string::npos; }
  /// The number behind "name":, or -1.
  [[nodiscard]] int64_t number(const std::string& name) const {
    const size_t at = text_.find("\"" + name + "\":");
    return at == std::string::npos ? -1 : std::strtoll(text_.c_str() + at + name.size() + 3, nullptr, 10);
  }

 private:
  const UniqueFd& pipe_;
  std::string text_;
};

/// Ends as the worker did: a signal is a signal, so that nobody has to know of the processes in between.
[[noreturn]] void end_like(int code) {
  const int signal = code - 128;
  // Those that stop a process would leave this one there.
  const bool ends = signal != SIGSTOP && signal != SIGTSTP && signal != SIGTTIN && signal != SIGTTOU;
  if (signal > 0 && signal < NSIG && ends) {
    struct sigaction standard {};
    standard.sa_handler = SIG_DFL;
    ::sigaction(signal, &standard, nullptr);
    sigset_t only;
    ::sigemptyset(&only);
    ::sigaddset(&only, signal);
    ::sigprocmask(SIG_UNBLOCK, &only, nullptr);
    ::raise(signal);
  }
  ::_exit(code);
}

void let_go_of_descriptors() {
  const UniqueFd null(::open("/dev/null", O_RDWR | O_CLOEXEC));
  for (int fd = 0; fd <= 2; ++fd) ::dup2(null.get(), fd);
  ::close(protocol::kControlFd);
}

int run(const CagePlan& plan, const Status& status) {
  // The parent's end is heard as a signal: it may come between any two lines below, and none of them has left anything
  // behind that the next does not end.
  sigset_t heard;
  ::sigemptyset(&heard);
  for (const int signal : {SIGTERM, SIGINT, SIGHUP, SIGCHLD}) ::sigaddset(&heard, signal);
  ::sigprocmask(SIG_BLOCK, &heard, nullptr);
  ::prctl(PR_SET_PDEATHSIG, SIGTERM);
  const UniqueFd signals(::signalfd(-1, &heard, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!signals) fail("signalfd");
  const ControlGroup groups({plan.groups.begin(), plan.groups.end()});
  const auto orphaned = [&] { return plan.parent != 0 && ::getppid() != plan.parent; };

  int end = 0;
  Launch launch = launch_of(plan);
  const pid_t self = ::getpid();
  const pid_t child = ::fork();
  if (child < 0) fail("fork");
  if (child == 0) start(plan, launch, self);
  launch.files.clear();
  let_go_of_descriptors();

  Progress progress(launch.progress);
  bool told = false;
  while (true) {
    std::array<pollfd, 2> watched{{{signals.get(), POLLIN, 0}, {told ? -1 : launch.progress.get(), POLLIN, 0}}};
    ::poll(watched.data(), watched.size(), -1);
    progress.read();
    if (!told && progress.begun()) {
      told = true;
      status.tell({{"pid", progress.number("child-pid")}, {"network", progress.number("net-namespace")}});
    }
    bool asked_to_end = orphaned();
    signalfd_siginfo info{};
    while (::read(signals.get(), &info, sizeof info) == sizeof info) {
      asked_to_end = asked_to_end || info.ssi_signo != SIGCHLD;
    }
    if (asked_to_end) {
      ::kill(child, SIGKILL);
      groups.kill();
      ::waitpid(child, nullptr, 0);
      if (orphaned()) groups.remove();  // a parent that lives does that itself, and wants to read their counters first
      return kFailed;
    }
    if (::waitpid(child, &end, WNOHANG) == child) break;
  }
  progress.read();
  if (plan.bubblewrap.empty()) end_like(WIFSIGNALED(end) ? 128 + WTERMSIG(end) : WEXITSTATUS(end));
  // Where a signal ended bubblewrap itself, it was meant for all: the control group's limits, or the parent.
  if (WIFSIGNALED(end)) end_like(128 + WTERMSIG(end));
  if (const int64_t code = progress.number("exit-code"); code >= 0) end_like(static_cast<int>(code));
  status.tell({{"failed", fmt::format("it ended with code {}", WEXITSTATUS(end))}});
  return kFailed;
}

int cage(const CagePlan& plan) {
  const Status status(plan.status);
  try {
    return run(plan, status);
  } catch (const std::exception& error) {
    status.tell({{"failed", error.what()}});
    throw;
  }
}

constexpr std::string_view kHelp =
    R"(attest-cage PLAN      starts a worker behind control groups, limits, bubblewrap and a filter
attest-cage --inside  is a worker that tries to get past all of them, and tells

attest starts this program; nobody else has to. PLAN is JSON (runner/cage_plan.h). Descriptors 0 to 3 go to the worker.
Exit code 125: the cage could not be set up; else it ends as the worker does. See spec/sandbox.md.
)";

}  // namespace
}  // namespace attest

int main(int argc, char** argv) {
  try {
    const std::string_view argument = argc == 2 ? argv[1] : "--help";
    if (argument == "--help" || argument == "-h") {
      fmt::print("{}", attest::kHelp);
      return argc == 2 ? 0 : 2;
    }
    if (argument == "--inside") return attest::answer_from_inside();
    return attest::cage(attest::cage_plan_from_json(attest::parse_json(argument, "plan")));
  } catch (const std::exception& error) {
    fmt::print(stderr, "attest-cage: {}\n", error.what());
    return attest::kFailed;
  }
}
