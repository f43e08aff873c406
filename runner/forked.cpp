// SPDX-License-Identifier: Apache-2.0
#include "runner/forked.h"

#include <poll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <vector>

#include "cases/error.h"
#include "runner/unique_fd.h"

namespace attest {
namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kMaxMessage = 32 << 10;
constexpr size_t kNowhere = SIZE_MAX;

/// What stands first in a packet.
enum class Kind : uint8_t { message, finished, failed, left };
struct Header {
  Kind kind;
  size_t task;
};

/// Where a child is, in memory that it shares with its parent.
struct Place {
  std::atomic<size_t> task{kNowhere}, part{kNowhere};
  std::atomic<int64_t> since{0};  ///< On the clock that both have, in milliseconds.
};
static_assert(std::atomic<size_t>::is_always_lock_free && std::atomic<int64_t>::is_always_lock_free);

int64_t now() {
  return std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now().time_since_epoch()).count();
}

/// An object in shared memory.
template <typename T>
class Shared {
 public:
  Shared() {
    void* memory = ::mmap(nullptr, sizeof(T), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw Error(fmt::format("no memory to share: {}", std::strerror(errno)));
    object_ = new (memory) T;
  }
  Shared(const Shared&) = delete;
  Shared& operator=(const Shared&) = delete;
  ~Shared() { ::munmap(object_, sizeof(T)); }
  T* operator->() const { return object_; }
  T& operator*() const { return *object_; }

 private:
  T* object_;
};

class ChildStage final : public Stage {
 public:
  ChildStage(int socket, Place& place) : socket_(socket), place_(place) {}

  /// Parts up to this one are skipped; kNowhere: none.
  void begin(size_t task, size_t skipped) {
    task_ = task;
    skipped_ = skipped;
    place_.since = now();
    place_.part = kNowhere;
    place_.task = task;
  }
  bool enter(size_t part) override {
    if (skipped_ != kNowhere && part <= skipped_) return false;
    place_.since = now();
    place_.part = part;
    return true;
  }
  void send(std::string_view message) override { send(Kind::message, message); }
  void send(Kind kind, std::string_view message) {
    const Header header{kind, task_};
    std::string packet(sizeof header, '\0');
    std::memcpy(packet.data(), &header, sizeof header);
    packet += message.substr(0, kMaxMessage);
    // Without a parent there is nobody to work for.
    if (::send(socket_, packet.data(), packet.size(), MSG_NOSIGNAL) < 0) std::_Exit(1);
  }

 private:
  int socket_;
  Place& place_;
  size_t task_ = kNowhere, skipped_ = kNowhere;
};

std::string how_it_ended(int status) {
  if (WIFSIGNALED(status)) {
    const char* name = ::sigabbrev_np(WTERMSIG(status));
    return name == nullptr ? fmt::format("killed by signal {}", WTERMSIG(status))
                           : fmt::format("killed by SIG{}", name);
  }
  return fmt::format("exited with code {}", WEXITSTATUS(status));
}

struct Child {
  pid_t pid = -1;
  UniqueFd socket;
  Shared<Place> place;
  bool timed_out = false;
  bool left = false;    ///< There was nothing more to do.
  std::string failure;  ///< What its work has thrown.
};

class Pool {
 public:
  Pool(const Forked& forked, size_t tasks) : forked_(forked), tasks_(tasks) {}
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;
  ~Pool() {
    for (const auto& child : children_) {
      if (child->pid < 0) continue;
      ::kill(child->pid, SIGKILL);
      ::waitpid(child->pid, nullptr, 0);
    }
  }

  void run(int jobs) {
    const auto count = std::min(static_cast<size_t>(std::max(1, jobs)), tasks_);
    for (size_t i = 0; i < count; ++i) start(*children_.emplace_back(std::make_unique<Child>()), kNowhere, kNowhere);
    std::vector<pollfd> polled;
    for (;;) {
      polled.clear();
      for (const auto& child : children_) {
        if (child->pid >= 0) polled.push_back({child->socket.get(), POLLIN, 0});
      }
      if (polled.empty()) return;
      if (::poll(polled.data(), polled.size(), 200) < 0 && errno != EINTR) {
        throw Error(fmt::format("poll: {}", std::strerror(errno)));
      }
      for (const auto& child : children_) {
        if (child->pid < 0) continue;
        const auto found = std::find_if(polled.begin(), polled.end(),
                                        [&](const pollfd& one) { return one.fd == child->socket.get(); });
        if (found != polled.end() && found->revents != 0) receive(*child);
        if (child->pid >= 0) watch(*child);
      }
    }
  }

 private:
  void start(Child& child, size_t task, size_t skipped) {
    int ends[2];
    if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) {
      throw Error(fmt::format("socketpair: {}", std::strerror(errno)));
    }
    UniqueFd ours(ends[0]), theirs(ends[1]);
    child.place->task = kNowhere;
    child.place->part = kNowhere;
    child.place->since = now();
    child.timed_out = child.left = false;
    child.failure.clear();
    std::fflush(nullptr);
    const pid_t parent = ::getpid();
    const pid_t pid = ::fork();
    if (pid < 0) throw Error(fmt::format("fork: {}", std::strerror(errno)));
    if (pid == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      if (::getppid() != parent) std::_Exit(1);
      ours.reset();
      work(child, theirs.get(), task, skipped);
    }
    child.pid = pid;
    child.socket = std::move(ours);
  }

  /// In the child.
  [[noreturn]] void work(Child& child, int socket, size_t task, size_t skipped) {
    ChildStage stage(socket, *child.place);
    try {
      for (; task != kNowhere || (task = (*next_)++) < tasks_; task = skipped = kNowhere) {
        stage.begin(task, skipped);
        forked_.work(task, stage);
        stage.send(Kind::finished, {});
      }
      stage.send(Kind::left, {});
    } catch (const std::exception& error) {
      stage.send(Kind::failed, error.what());
    }
    std::fflush(nullptr);
    std::_Exit(0);  // no destructors: what a part of the work has ruined shall not be touched again
  }

  void receive(Child& child) {
    std::string packet(sizeof(Header) + kMaxMessage, '\0');
    const ssize_t size = ::recv(child.socket.get(), packet.data(), packet.size(), 0);
    if (size < 0 && errno == EINTR) return;
    if (size < static_cast<ssize_t>(sizeof(Header))) return ended(child);
    Header header;
    std::memcpy(&header, packet.data(), sizeof header);
    const auto text = std::string_view(packet).substr(sizeof header, static_cast<size_t>(size) - sizeof header);
    if (header.kind == Kind::message) forked_.received(header.task, text);
    if (header.kind == Kind::finished) forked_.finished(header.task);
    if (header.kind == Kind::failed) child.failure = text;
    if (header.kind == Kind::left) child.left = true;
  }

  void watch(Child& child) {
    if (child.timed_out || now() - child.place->since < forked_.limit.count()) return;
    child.timed_out = true;
    ::kill(child.pid, SIGKILL);
  }

  void ended(Child& child) {
    int status = 0;
    ::waitpid(child.pid, &status, 0);
    child.pid = -1;
    if (!child.failure.empty()) throw Error(child.failure);
    if (child.left) return;
    const size_t task = child.place->task, part = child.place->part;
    const std::string how =
        child.timed_out ? fmt::format("ran for more than {} s", forked_.limit.count() / 1000) : how_it_ended(status);
    if (task == kNowhere || part == kNowhere) throw Error("a process of the run " + how);
    forked_.lost(task, part, how);
    start(child, task, part);
  }

  const Forked& forked_;
  size_t tasks_;
  Shared<std::atomic<size_t>> next_;
  std::vector<std::unique_ptr<Child>> children_;
};

}  // namespace

void Forked::run(size_t tasks, int jobs) const {
  if (tasks > 0) Pool(*this, tasks).run(jobs);
}

}  // namespace attest
