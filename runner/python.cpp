// SPDX-License-Identifier: Apache-2.0
#include "runner/python.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <poll.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <string_view>
#include <system_error>

#include "cases/json.h"
#include "runner/places.h"
#include "runner/unique_fd.h"

namespace attest {
namespace fs = std::filesystem;
namespace {

// An interpreter on a cold disk may need seconds.
constexpr std::chrono::seconds kPatience{30};

// PyTorch is looked for and not imported, which would take a second.
constexpr const char* kQuestion = R"(
import importlib.metadata, importlib.util, json, os, sys
answer = {"version": ".".join(map(str, sys.version_info[:3])), "folders": [sys.prefix, sys.base_prefix]}
for name in ("torch", "numpy"):
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        continue
    answer["folders"].append(os.path.dirname(os.path.dirname(found.origin)))
    try:
        answer[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        answer[name] = "of unknown version"
print(json.dumps(answer))
)";

/// What a program prints; throws Error if it cannot be started, fails, or takes too long.
std::string output_of(const std::vector<std::string>& command) {
  const auto fail = [&](std::string_view what) -> Error { return Error::at(command[0], "{}", what); };
  std::array<int, 2> ends{};
  if (::pipe2(ends.data(), O_CLOEXEC) != 0) throw fail(std::strerror(errno));
  const UniqueFd read_end(ends[0]);
  UniqueFd write_end(ends[1]);
  std::vector<char*> argv;
  for (const std::string& word : command) argv.push_back(const_cast<char*>(word.c_str()));
  argv.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  ::posix_spawn_file_actions_init(&actions);
  ::posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
  ::posix_spawn_file_actions_adddup2(&actions, write_end.get(), 1);
  ::posix_spawn_file_actions_addopen(&actions, 2, "/dev/null", O_WRONLY, 0);
  pid_t pid = -1;
  const int error = ::posix_spawn(&pid, argv[0], &actions, nullptr, argv.data(), environ);
  ::posix_spawn_file_actions_destroy(&actions);
  if (error != 0) throw fail(std::strerror(error));
  write_end.reset();

  std::string text;
  bool in_time = true;
  const auto deadline = std::chrono::steady_clock::now() + kPatience;
  while (true) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now()).count();
    pollfd watched{read_end.get(), POLLIN, 0};
    const int ready = left > 0 ? ::poll(&watched, 1, static_cast<int>(left)) : 0;
    if (ready < 0 && errno == EINTR) continue;
    std::array<char, 4096> bytes{};
    const ssize_t got = ready > 0 ? ::read(read_end.get(), bytes.data(), bytes.size()) : 0;
    if (got < 0 && errno == EINTR) continue;
    in_time = ready > 0;
    if (got <= 0 || text.size() > 1U << 20) break;
    text.append(bytes.data(), static_cast<size_t>(got));
  }
  if (!in_time) ::kill(pid, SIGKILL);
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  if (!in_time) throw fail(fmt::format("no answer within {} s", kPatience.count()));
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) throw fail("it fails when it is asked for its modules");
  return text;
}

/// A program of this name on the PATH; empty if there is none.
fs::path on_path(std::string_view name) {
  const char* path = std::getenv("PATH");
  std::string_view rest = path != nullptr ? path : "";
  while (!rest.empty()) {
    const size_t colon = std::min(rest.find(':'), rest.size());
    fs::path candidate = fs::path(rest.substr(0, colon)) / name;
    if (candidate.is_absolute() && ::access(candidate.c_str(), X_OK) == 0) return candidate;
    rest.remove_prefix(std::min(colon + 1, rest.size()));
  }
  return {};
}

/// Those that are there, in order, each once.
std::vector<fs::path> candidates() {
  if (const char* chosen = std::getenv("ATTEST_PYTHON"); chosen != nullptr && *chosen != '\0') {
    const fs::path program = std::string_view(chosen).find('/') == std::string_view::npos ? on_path(chosen) : chosen;
    if (::access(program.c_str(), X_OK) != 0) {
      throw Error::at("ATTEST_PYTHON", "got \"{}\", wanted a program that can be run", chosen);
    }
    return {fs::absolute(program)};
  }
  std::vector<fs::path> found;
  const auto add = [&](const fs::path& place) {
    const bool known = std::find(found.begin(), found.end(), place) != found.end();
    if (!place.empty() && !known && ::access(place.c_str(), X_OK) == 0) found.push_back(place);
  };
  const fs::path prefix = executable_directory().parent_path();
  std::error_code ignored;
  // Of a build tree build/<preset>: build/python.
  if (fs::exists(prefix / "CMakeCache.txt", ignored)) add(prefix.parent_path() / "python/bin/python3");
  add("/usr/bin/python3");
  add(on_path("python3"));
  return found;
}

}  // namespace

Python look_at_python(const fs::path& program) {
  const std::string text = output_of({program.string(), "-I", "-B", "-c", kQuestion});
  const std::string place = program.string() + ": what it says of itself";
  const Json json = parse_json(text, place);
  Fields fields(json, place);
  Python python;
  python.program = program;
  python.version = fields.required<std::string>("version");
  python.torch = fields.optional<std::string>("torch", "");
  python.numpy = fields.optional<std::string>("numpy", "");
  for (const std::string& folder : fields.required<std::vector<std::string>>("folders")) {
    if (std::find(python.folders.begin(), python.folders.end(), fs::path(folder)) == python.folders.end()) {
      python.folders.emplace_back(folder);
    }
  }
  fields.finish();
  return python;
}

Python choose_python(bool needs_torch) {
  std::optional<Python> second;
  std::vector<std::string> reasons;
  for (const fs::path& program : candidates()) {
    try {
      Python python = look_at_python(program);
      if (!python.torch.empty() && !python.numpy.empty()) return python;
      reasons.push_back(fmt::format("{} (Python {}) has no {}", program.string(), python.version,
                                    python.numpy.empty() ? "NumPy" : "PyTorch"));
      if (!second && !needs_torch && !python.numpy.empty()) second = std::move(python);
    } catch (const Error& error) {
      reasons.emplace_back(error.what());
    }
  }
  if (second) return *second;
  throw Error::at("Python",
                  "{}; install {} with `ci/setup --grading` (Debian: python3-torch python3-numpy), or name a Python "
                  "that has them in ATTEST_PYTHON",
                  reasons.empty() ? "found none" : fmt::format("{}", fmt::join(reasons, "; ")),
                  needs_torch ? "PyTorch and NumPy" : "NumPy, and PyTorch for code that uses it");
}

fs::path find_python_worker() {
  fs::path worker = (executable_directory() / "../libexec/attest/python/worker.py").lexically_normal();
  std::error_code ignored;
  if (!fs::is_regular_file(worker, ignored)) throw Error::at(worker.string(), "no such file");
  return worker;
}

std::vector<std::string> python_worker_command(const Python& python) {
  return {python.program.string(), "-I", "-B", find_python_worker().string()};
}

}  // namespace attest
