// SPDX-License-Identifier: Apache-2.0
#include "runner/cgroup.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <chrono>
#include <csignal>
#include <fstream>
#include <functional>
#include <thread>

#include "cases/error.h"

namespace attest {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

constexpr GroupLimits kLimits{.memory_bytes = 64 << 20, .processes = 8, .cores = 1};

/// Skips where this machine has no such groups.
ControlGroup group_or_skip(ControlGroup::Freezer freezer = ControlGroup::Freezer::best) {
  ControlGroup group = ControlGroup::make(kLimits, freezer);
  const std::string missing = group.missing() + group.no_freezer();
  if (!missing.empty()) {
    group.remove();
    SKIP("no control groups: " << missing);
  }
  return group;
}

/// A child in the group that does this.
pid_t child_in(const ControlGroup& group, const std::function<void()>& deed) {
  const pid_t child = ::fork();
  if (child == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    try {
      group.join();
    } catch (const Error&) {
      ::_exit(99);
    }
    deed();
    ::_exit(0);
  }
  return child;
}

template <typename Condition>
bool soon(Condition condition) {
  for (const auto end = Clock::now() + 5s; Clock::now() < end; std::this_thread::sleep_for(1ms)) {
    if (condition()) return true;
  }
  return false;
}

bool anything_left(const std::vector<fs::path>& directories) {
  for (const fs::path& directory : directories) {
    if (fs::exists(directory)) return true;
  }
  return false;
}

TEST_CASE("what is frozen does not run, and runs on after a thaw") {
  const auto kind = GENERATE(ControlGroup::Freezer::best, ControlGroup::Freezer::version_1);
  const ControlGroup group = group_or_skip(kind);
  CAPTURE(group.description());
  auto* counter = static_cast<std::atomic<uint64_t>*>(
      ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  const pid_t child = child_in(group, [counter] {
    while (true) counter->fetch_add(1);
  });
  CHECK(soon([&] { return *counter > 0; }));
  group.freeze();
  const uint64_t then = *counter;
  std::this_thread::sleep_for(50ms);
  CHECK(*counter == then);
  group.thaw();
  CHECK(soon([&] { return *counter > then; }));
  group.freeze();
  CHECK(group.kill());  // from the frozen state
  int status = 0;
  CHECK(::waitpid(child, &status, 0) == child);
  CHECK(WIFSIGNALED(status));
  CHECK(group.events().cpu > 0us);
  CHECK(group.remove());
  CHECK_FALSE(anything_left(group.directories()));
  ::munmap(counter, 4096);
}

TEST_CASE("freezing an empty group, twice, is no error") {
  const auto kind = GENERATE(ControlGroup::Freezer::best, ControlGroup::Freezer::version_1);
  const ControlGroup group = group_or_skip(kind);
  group.freeze();
  group.freeze();
  group.thaw();
  group.thaw();
  CHECK(group.kill());
  CHECK(group.remove());
  CHECK(group.remove());
}

TEST_CASE("children of children die with the group, whatever session they are in") {
  const ControlGroup group = group_or_skip();
  const pid_t child = child_in(group, [] {
    for (int i = 0; i < 4; ++i) {
      if (::fork() == 0) {
        ::setsid();
        ::pause();
      }
    }
    ::pause();
  });
  const auto inside = [&] {
    std::ifstream processes(group.directories().front() / "cgroup.procs");
    int count = 0;
    for (pid_t pid = 0; processes >> pid;) ++count;
    return count;
  };
  CHECK(soon([&] { return inside() == 5; }));
  CHECK(group.kill());
  CHECK(inside() == 0);
  ::waitpid(child, nullptr, 0);
  CHECK(group.remove());
}

TEST_CASE("limits of memory and processes bite, and are counted") {
  const ControlGroup group = group_or_skip();
  int status = 0;
  const pid_t eater = child_in(group, [] {
    constexpr size_t kBytes = size_t{256} << 20;
    auto* area = static_cast<volatile char*>(
        ::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    for (size_t i = 0; i < kBytes; i += 4096) area[i] = 1;
  });
  ::waitpid(eater, &status, 0);
  CHECK(WIFSIGNALED(status));
  CHECK(group.events().out_of_memory == 1);

  const pid_t forker = child_in(group, [] {
    int count = 0;
    while (count < 100 && ::fork() > 0) ++count;
    ::_exit(count);
  });
  ::waitpid(forker, &status, 0);
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 7);
  CHECK(group.events().forks_refused > 0);
  CHECK(group.kill());
  CHECK(group.remove());
}

TEST_CASE("groups of dead processes are swept, and what is frozen in them dies; those of living ones stay") {
  const auto kind = GENERATE(ControlGroup::Freezer::best, ControlGroup::Freezer::version_1);
  const ControlGroup mine = group_or_skip();
  std::array<int, 2> ends{};
  REQUIRE(::pipe(ends.data()) == 0);
  const pid_t other = ::fork();
  if (other == 0) {
    // A process that makes a group, leaves a frozen worker in there, and ends without a word.
    const ControlGroup group = ControlGroup::make(kLimits, kind);
    const pid_t worker = ::fork();
    if (worker == 0) {
      group.join();
      ::pause();
    }
    while (group.events().cpu == 0us) std::this_thread::sleep_for(1ms);
    group.freeze();
    std::string text = std::to_string(worker) + "\n";
    for (const fs::path& directory : group.directories()) text += directory.string() + "\n";
    if (::write(ends[1], text.data(), text.size()) < 0) ::_exit(1);
    ::_exit(0);
  }
  ::close(ends[1]);
  ::waitpid(other, nullptr, 0);
  std::string text(4096, '\0');
  text.resize(static_cast<size_t>(::read(ends[0], text.data(), text.size())));
  ::close(ends[0]);
  std::istringstream lines(text);
  pid_t worker = 0;
  lines >> worker;
  std::vector<fs::path> directories;
  for (std::string line; lines >> line;) directories.emplace_back(line);
  REQUIRE_FALSE(directories.empty());
  CHECK(anything_left(directories));

  CHECK(ControlGroup::sweep() >= 1);
  CHECK_FALSE(anything_left(directories));
  CHECK(anything_left(mine.directories()));
  CHECK(soon([&] {
    std::ifstream stat(fmt::format("/proc/{}/stat", worker));
    std::string pid, name, state;
    return !(stat >> pid >> name >> state) || state == "Z";
  }));
  CHECK(mine.remove());
}

TEST_CASE("a directory that cannot be joined is named") {
  const ControlGroup group({"/nowhere/attest-1"});
  CHECK_THROWS_AS(group.join(), Error);
  CHECK_THROWS_AS(group.freeze(), Error);
  CHECK(group.events().out_of_memory == 0);
  CHECK(group.remove());
}

}  // namespace
}  // namespace attest
