// SPDX-License-Identifier: Apache-2.0
#include "runner/temporary_folder.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <string>

#include "cases/error.h"

namespace attest {
namespace fs = std::filesystem;
namespace {

// A shell and not a fork of this process, which may have threads: their locks would stay shut in there. SIGTERM is for
// the parent, too, when a machine shuts down.
constexpr const char* kJanitor = R"(trap '' HUP INT QUIT TERM; read -r end; exec rm -rf -- "$1")";

/// Starts the janitor; the error, or 0.
int start_janitor(const std::string& folder, int pipe, pid_t& pid) {
  std::array words{std::string("sh"), std::string("-c"), std::string(kJanitor), std::string("attest"), folder};
  std::array<char*, words.size() + 1> argv{};
  for (size_t i = 0; i < words.size(); ++i) argv[i] = words[i].data();
  // It keeps nothing open that others wait for: this process's output, files, the pipe's other end.
  posix_spawn_file_actions_t actions;
  ::posix_spawn_file_actions_init(&actions);
  ::posix_spawn_file_actions_adddup2(&actions, pipe, 0);
  ::posix_spawn_file_actions_addopen(&actions, 1, "/dev/null", O_WRONLY, 0);
  ::posix_spawn_file_actions_adddup2(&actions, 1, 2);
  ::posix_spawn_file_actions_addclosefrom_np(&actions, 3);
  // What a terminal sends to its foreground group does not reach it.
  posix_spawnattr_t attributes;
  ::posix_spawnattr_init(&attributes);
  ::posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSID);
  const int error = ::posix_spawn(&pid, "/bin/sh", &actions, &attributes, argv.data(), environ);
  ::posix_spawnattr_destroy(&attributes);
  ::posix_spawn_file_actions_destroy(&actions);
  return error;
}

}  // namespace

TemporaryFolder::TemporaryFolder() {
  std::string name = (fs::temp_directory_path() / "attest-XXXXXX").string();
  std::array<int, 2> ends{};
  if (::pipe2(ends.data(), O_CLOEXEC) != 0) throw Error::at(name, "pipe: {}", std::strerror(errno));
  const UniqueFd read_end(ends[0]);
  end_.reset(ends[1]);
  if (::mkdtemp(name.data()) == nullptr) throw Error::at(name, "cannot be made: {}", std::strerror(errno));
  path_ = name;
  if (const int error = start_janitor(name, read_end.get(), janitor_); error != 0) {
    ::rmdir(name.c_str());
    throw Error::at("/bin/sh", "cannot be executed: {}", std::strerror(error));
  }
}

TemporaryFolder::~TemporaryFolder() {
  end_.reset();
  int status = -1;
  while (::waitpid(janitor_, &status, 0) < 0 && errno == EINTR) {
  }
  if (status == 0) return;
  std::error_code ignored;
  fs::remove_all(path_, ignored);
}

}  // namespace attest
