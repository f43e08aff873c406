// SPDX-License-Identifier: Apache-2.0
#include "runner/backend_arguments.h"

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <map>

#include "runner/places.h"

namespace attest {
namespace fs = std::filesystem;
namespace {

std::map<std::string, std::string> parse_options(const std::vector<std::string>& pairs) {
  std::map<std::string, std::string> options;
  for (const std::string& pair : pairs) {
    const auto equals = pair.find('=');
    if (equals == std::string::npos || equals == 0) {
      throw Error::at("--option", "got \"{}\", wanted name=value", pair);
    }
    if (!options.emplace(pair.substr(0, equals), pair.substr(equals + 1)).second) {
      throw Error::at("--option", "\"{}\" is given twice", pair.substr(0, equals));
    }
  }
  return options;
}

/// The parent's environment, with the machine's cores shared out among the workers for backends that use OpenMP.
std::vector<std::string> worker_environment(int jobs) {
  std::vector<std::string> variables;
  for (char** variable = environ; *variable != nullptr; ++variable) variables.emplace_back(*variable);
  if (std::getenv("OMP_NUM_THREADS") == nullptr) {
    variables.push_back(fmt::format("OMP_NUM_THREADS={}", std::max(1, default_jobs() / jobs)));
  }
  return variables;
}

std::string shell_quoted(const std::string& word) {
  if (!word.empty() &&
      word.find_first_not_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./=:,+@") ==
          std::string::npos) {
    return word;
  }
  std::string quoted = "'";
  for (const char letter : word) quoted += letter == '\'' ? std::string("'\\''") : std::string(1, letter);
  return quoted + "'";
}

}  // namespace

void add_backend_arguments(CLI::App& command, BackendArguments& arguments, bool required) {
  command.add_option("--backend,-b", arguments.backend, "A name that `attest doctor` lists, or the path of a .so")
      ->required(required);
  command.add_option("--option", arguments.options, "An option of the backend, name=value (may be repeated)");
  command.add_option("--jobs,-j", arguments.jobs, "Workers at once")->check(CLI::Range(1, 256))->capture_default_str();
  command.add_option("--timeout", arguments.timeout, "Seconds that one call of the backend may take")
      ->check(CLI::Range(0.01, 86400.0))
      ->capture_default_str();
}

BackendChoice choose_backend(const BackendArguments& arguments) {
  // Not a number is in no range and outside of none, so the parser lets it pass.
  if (!std::isfinite(arguments.timeout)) throw Error::at("--timeout", "got {}, wanted seconds", arguments.timeout);
  BackendChoice choice;
  choice.options = parse_options(arguments.options);
  choice.worker.command = {find_worker().string()};
  choice.worker.environment = worker_environment(arguments.jobs);
  choice.limit = std::chrono::milliseconds(static_cast<int64_t>(arguments.timeout * 1000));
  choice.library = find_backend(arguments.backend);
  return choice;
}

Opened open_once(const BackendChoice& choice) {
  Worker worker(choice.worker);
  const auto opened = worker.open(choice.library.string(), choice.options, choice.limit);
  if (!opened) throw Error::at(choice.library.string(), "cannot be opened: {}", opened.error().text);
  if (opened->reply.status != ATTEST_OK) throw Error(opened->reply.message);
  return *opened;
}

std::string backend_command(const Common& common, std::string_view verb, const BackendArguments& arguments,
                            const BackendChoice& choice) {
  const auto absolute = [](const fs::path& path) {
    return shell_quoted(fs::absolute(path).lexically_normal().string());
  };
  std::string command = shell_quoted(common.program);
  const char* suite = std::getenv("ATTEST_SUITE");
  if (!common.suite.empty()) {
    command += " --suite " + absolute(common.suite);
  } else if (suite != nullptr && *suite != '\0') {
    command += " --suite " + absolute(suite);
  }
  const bool by_path = arguments.backend.find('/') != std::string::npos || arguments.backend.ends_with(".so");
  command += fmt::format(" {} --backend ", verb);
  command += by_path ? absolute(choice.library) : shell_quoted(arguments.backend);
  for (const std::string& option : arguments.options) command += " --option " + shell_quoted(option);
  if (arguments.timeout != BackendArguments::kTimeout) command += fmt::format(" --timeout {}", arguments.timeout);
  return command;
}

}  // namespace attest
