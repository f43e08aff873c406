// SPDX-License-Identifier: Apache-2.0
#include "runner/temporary_folder.h"

#include <poll.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <catch2/catch_test_macros.hpp>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <fstream>
#include <optional>
#include <string>
#include <thread>

namespace attest {
namespace fs = std::filesystem;
namespace {

/// With a file that cannot be written, and a link to what must stay.
void fill(const fs::path& folder, const fs::path& linked) {
  std::ofstream(folder / "file") << "text";
  fs::permissions(folder / "file", fs::perms::owner_read);
  fs::create_directory_symlink(linked, folder / "link");
}

}  // namespace

TEST_CASE("a temporary folder is its user's, and at its end nothing is left but what its links point to") {
  const TemporaryFolder linked;
  std::ofstream(linked.path() / "stays") << "text";
  const char* given = std::getenv("PATH");
  REQUIRE(given != nullptr);
  const std::string path = given;
  // Where nobody finds rm, this process removes it.
  for (const std::string& searched : {path, std::string("/nowhere")}) {
    REQUIRE(::setenv("PATH", searched.c_str(), 1) == 0);
    std::optional<TemporaryFolder> folder(std::in_place);
    REQUIRE(::setenv("PATH", path.c_str(), 1) == 0);
    const fs::path where = folder->path();
    CHECK((fs::status(where).permissions() & fs::perms::all) == fs::perms::owner_all);
    fill(where, linked.path());
    folder.reset();
    CHECK_FALSE(fs::exists(where));
    CHECK(::waitpid(-1, nullptr, WNOHANG) == 0);  // one child runs, that of `linked`; no other waits for its burial
  }
  CHECK(fs::exists(linked.path() / "stays"));
}

TEST_CASE("a temporary folder goes when its process is killed, alone or with its group") {
  const TemporaryFolder linked;
  for (const int signal : {SIGKILL, SIGINT, SIGTERM, SIGHUP, SIGQUIT}) {
    INFO("signal " << signal);
    std::array<int, 2> ends{};
    REQUIRE(::pipe(ends.data()) == 0);
    const UniqueFd told(ends[0]);
    UniqueFd tells(ends[1]);
    const pid_t child = ::fork();
    REQUIRE(child >= 0);
    if (child == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      ::setpgid(0, 0);
      std::signal(signal, SIG_DFL);  // Catch2 would report it
      try {
        const TemporaryFolder folder;
        fill(folder.path(), linked.path());
        const std::string path = folder.path().string();
        if (::write(tells.get(), path.data(), path.size()) != static_cast<ssize_t>(path.size())) ::_exit(1);
        tells.reset();
        ::pause();
      } catch (...) {
      }
      ::_exit(1);
    }
    tells.reset();
    std::string path(4096, '\0');
    path.resize(static_cast<size_t>(std::max<ssize_t>(0, ::read(told.get(), path.data(), path.size()))));
    REQUIRE(fs::exists(path));
    // The janitor has no hold on what its parent had open.
    pollfd watched{told.get(), POLLIN, 0};
    REQUIRE(::poll(&watched, 1, 60000) == 1);
    ::kill(-child, signal);
    int status = 0;
    REQUIRE(::waitpid(child, &status, 0) == child);
    CHECK(WIFSIGNALED(status));
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
    while (fs::exists(path) && std::chrono::steady_clock::now() < deadline) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    CHECK_FALSE(fs::exists(path));
    CHECK(fs::exists(linked.path()));
  }
}

}  // namespace attest
