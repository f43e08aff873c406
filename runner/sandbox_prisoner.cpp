// SPDX-License-Identifier: Apache-2.0
// A worker for sandbox_test: on request it does what a sandbox is there to stop, and tells how far it got. Each reply
// has "result": 0 or a count where the attempt succeeded, else -errno.
#include <arpa/inet.h>
#include <dirent.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <map>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "cases/json.h"
#include "runner/protocol.h"

namespace attest {
namespace {

using namespace std::chrono_literals;

UniqueFd memory;  // that came with the last request that brought one

int64_t outcome(int64_t result) {
  return result < 0 ? -errno : result;
}

std::string text_of(const std::string& path) {
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

Json listing(const std::string& path) {
  Json names = Json::array();
  DIR* directory = ::opendir(path.c_str());
  if (directory == nullptr) return -errno;
  while (const dirent* entry = ::readdir(directory)) {
    const std::string name = entry->d_name;
    if (name != "." && name != "..") names.push_back(name);
  }
  ::closedir(directory);
  return names;
}

int64_t connect_to(const std::string& address, int port) {
  const UniqueFd socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!socket) return -errno;
  sockaddr_in target{};
  target.sin_family = AF_INET;
  target.sin_port = htons(static_cast<uint16_t>(port));
  ::inet_pton(AF_INET, address.c_str(), &target.sin_addr);
  return outcome(::connect(socket.get(), reinterpret_cast<sockaddr*>(&target), sizeof target));
}

/// Children that do nothing, until there are no more of them.
int64_t fork_until_refused() {
  std::vector<pid_t> children;
  int64_t count = 0;
  for (; count < 5000; ++count) {
    const pid_t child = ::fork();
    if (child < 0) break;
    if (child == 0) {
      ::pause();
      ::_exit(0);
    }
    children.push_back(child);
  }
  for (const pid_t child : children) ::kill(child, SIGKILL);
  for (const pid_t child : children) ::waitpid(child, nullptr, 0);
  return count;
}

int64_t threads_until_refused() {
  std::atomic<bool> done{false};
  std::vector<std::thread> threads;
  try {
    while (threads.size() < 5000) {
      threads.emplace_back([&] {
        while (!done) std::this_thread::sleep_for(1ms);
      });
    }
  } catch (const std::system_error&) {
  }
  done = true;
  for (std::thread& thread : threads) thread.join();
  return static_cast<int64_t>(threads.size());
}

int64_t touch_memory(int64_t bytes) {
  void* area = ::mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (area == MAP_FAILED) return -errno;
  auto* byte = static_cast<volatile char*>(area);
  for (int64_t i = 0; i < bytes; i += 4096) byte[i] = 1;
  ::munmap(area, static_cast<size_t>(bytes));
  return bytes;
}

/// How much fits into files of this size.
int64_t fill(const std::string& directory, int64_t each) {
  ::signal(SIGXFSZ, SIG_IGN);
  const std::vector<char> block(size_t{1} << 20, 'x');
  int64_t total = 0;
  for (int number = 0; number < 4096; ++number) {
    const std::string path = directory + "/fill" + std::to_string(number);
    const UniqueFd file(::open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
    if (!file) return total > 0 ? total : -errno;
    for (int64_t done = 0; done < each;) {
      const ssize_t count = ::write(file.get(), block.data(), block.size());
      if (count <= 0) return total;
      done += count;
      total += count;
    }
  }
  return total;
}

/// Writes into the shared memory from now on, in this process or in one that has left it.
int64_t write_for_ever(bool detached) {
  auto* counter =
      static_cast<std::atomic<uint64_t>*>(::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, memory.get(), 0));
  if (counter == MAP_FAILED) return -errno;
  const auto count = [counter] {
    while (true) counter->fetch_add(1);
  };
  if (!detached) {
    std::thread(count).detach();
    return 0;
  }
  const pid_t child = ::fork();
  if (child != 0) return outcome(child);
  ::setsid();
  if (::fork() != 0) ::_exit(0);
  for (int fd = 0; fd <= protocol::kControlFd; ++fd) ::close(fd);
  count();
  return 0;
}

struct CloneArguments {
  uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls;
};

const std::map<std::string, std::function<Json(const Json&)>>& deeds() {
  static const std::map<std::string, std::function<Json(const Json&)>> all{
      {"nothing", [](const Json&) { return 0; }},
      {"connect", [](const Json& a) { return connect_to(a.at("address"), a.at("port")); }},
      {"socket", [](const Json& a) { return outcome(::socket(a.at("family"), SOCK_STREAM, 0)); }},
      {"read",
       [](const Json& a) -> Json {
         const UniqueFd file(::open(a.at("path").get<std::string>().c_str(), O_RDONLY | O_CLOEXEC));
         return file ? Json(text_of(a.at("path"))) : Json(-errno);
       }},
      {"write",
       [](const Json& a) {
         const UniqueFd file(::open(a.at("path").get<std::string>().c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
         return file ? outcome(::write(file.get(), "x", 1)) : -errno;
       }},
      {"list", [](const Json& a) { return listing(a.at("path")); }},
      {"fork", [](const Json&) { return fork_until_refused(); }},
      {"threads", [](const Json&) { return threads_until_refused(); }},
      {"memory", [](const Json& a) { return touch_memory(a.at("bytes")); }},
      {"fill", [](const Json& a) { return fill(a.at("path"), a.at("each")); }},
      {"spin",
       [](const Json&) -> Json {
         ::signal(SIGXCPU, SIG_IGN);
         for (std::atomic<uint64_t> i = 0;; i.fetch_add(1)) {
         }
       }},
      {"thread that writes", [](const Json&) { return write_for_ever(false); }},
      {"grandchild that writes", [](const Json&) { return write_for_ever(true); }},
      {"exit", [](const Json& a) -> Json { std::_Exit(a.at("code")); }},
      {"raise", [](const Json& a) { return ::raise(a.at("signal")); }},
      {"ptrace", [](const Json&) { return outcome(::ptrace(PTRACE_TRACEME, 0, nullptr, nullptr)); }},
      {"process_vm_readv",
       [](const Json&) {
         char byte = 0;
         const iovec area{&byte, 1};
         return outcome(::process_vm_readv(::getpid(), &area, 1, &area, 1, 0));
       }},
      {"unshare", [](const Json&) { return outcome(::unshare(CLONE_NEWUSER)); }},
      {"clone with a namespace",
       [](const Json&) {
         const auto child = ::syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, nullptr, nullptr, nullptr, nullptr);
         if (child == 0) ::_exit(0);
         return outcome(child);
       }},
      {"clone3",
       [](const Json&) {
         CloneArguments arguments{};
         arguments.exit_signal = SIGCHLD;
         const auto child = ::syscall(SYS_clone3, &arguments, sizeof arguments);
         if (child == 0) ::_exit(0);
         return outcome(child);
       }},
      {"mount", [](const Json&) { return outcome(::syscall(SYS_mount, "none", "/tmp", "tmpfs", 0, nullptr)); }},
      {"call", [](const Json& a) { return outcome(::syscall(a.at("number"), 0, 0, 0, 0, 0, 0)); }},
      {"ioctl", [](const Json& a) { return outcome(::syscall(SYS_ioctl, 0, a.at("request").get<uint64_t>(), "x")); }},
      {"execute",
       [](const Json& a) {
         const std::string path = a.at("path");
         std::array<char*, 2> argv{const_cast<char*>(path.c_str()), nullptr};
         ::execv(path.c_str(), argv.data());
         return -errno;
       }},
      {"raise a limit",
       [](const Json&) {
         rlimit now{};
         ::getrlimit(RLIMIT_CPU, &now);
         now.rlim_cur = now.rlim_max += 10;
         return outcome(::setrlimit(RLIMIT_CPU, &now));
       }},
      {"another's limit",
       [](const Json&) {
         const rlimit none{0, 0};
         return outcome(::prlimit(1, RLIMIT_CPU, &none, nullptr));
       }},
      {"identity",
       [](const Json&) {
         return Json{{"uid", ::getuid()},
                     {"gid", ::getgid()},
                     {"pid", ::getpid()},
                     {"environment",
                      [] {
                        Json names = Json::array();
                        for (char** one = environ; *one != nullptr; ++one) names.push_back(*one);
                        return names;
                      }()},
                     {"descriptors", [] {
                        Json open = Json::array();
                        for (int fd = 0; fd < 256; ++fd) {
                          if (::fcntl(fd, F_GETFD) >= 0) open.push_back(fd);
                        }
                        return open;
                      }()}};
       }},
      {"become root", [](const Json&) { return outcome(::setuid(0)); }},
      {"kill everybody", [](const Json&) { return outcome(::kill(-1, SIGKILL)); }},
      {"kill init", [](const Json&) { return outcome(::kill(1, SIGKILL)); }},
  };
  return all;
}

int serve() {
  const protocol::Wait wait = protocol::wait_forever(protocol::kControlFd);
  while (true) {
    UniqueFd passed;
    const auto payload = protocol::receive_frame(protocol::kControlFd, wait, &passed);
    if (!payload) return 0;
    if (passed) memory = std::move(passed);
    const auto request = protocol::parse_payload(*payload);
    if (!request) return 2;
    Json reply{{"nonce", request->at("nonce")}};
    reply["result"] = deeds().at(request->at("op"))(*request);
    if (!protocol::send_frame(protocol::kControlFd, reply.dump(), -1, wait)) return 2;
  }
}

}  // namespace
}  // namespace attest

int main() {
  return attest::serve();
}
