// SPDX-License-Identifier: Apache-2.0
#include "runner/backend_arguments.h"

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <map>

#include "runner/places.h"
#include "runner/python.h"

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

/// "NAME,a=b" is how `bench` is told, which may have several backends.
void refuse_options_in_name(const std::string& given) {
  const size_t comma = given.find(',');
  if (comma == std::string::npos || given.find('=', comma) == std::string::npos || fs::exists(given)) return;
  std::string options = given.substr(comma);
  for (size_t at = 0; (at = options.find(',', at)) != std::string::npos;) options.replace(at, 1, " --option ");
  throw Error::at("--backend", "got \"{}\", wanted a name or a path, and its options apart: --backend {}{}", given,
                  given.substr(0, comma), options);
}

// PyTorch is imported when a worker opens; on a cold disk that takes longer than a call may.
constexpr std::chrono::milliseconds kPythonOpens{60000};

/// A function of a Python file as a backend: spec/protocol.md's worker in backends/python.
void choose_function(const std::string& given, BackendChoice& choice) {
  const size_t colon = given.rfind(':');
  if (colon == std::string::npos || colon == 0 || colon + 1 == given.size()) {
    throw Error::at("--python", "got \"{}\", wanted FILE.py:FUNCTION", given);
  }
  const fs::path file = given.substr(0, colon);
  std::error_code ignored;
  if (!fs::is_regular_file(file, ignored)) throw Error::at(file.string(), "no such file");
  choice.library = fs::absolute(file).lexically_normal();
  const std::map<std::string, std::string> own{{"kind", "function"}, {"function", given.substr(colon + 1)}};
  for (const auto& option : own) {
    if (!choice.options.insert(option).second) throw Error::at("--option", "got {}, which --python sets", option.first);
  }
  choice.worker.command = python_worker_command(choose_python());
  choice.open_limit = std::max(choice.limit, kPythonOpens);
}

}  // namespace

void add_backend_arguments(CLI::App& command, BackendArguments& arguments) {
  CLI::Option* backend =
      command.add_option("--backend,-b", arguments.backend, "A name that `attest doctor` lists, or the path of a .so");
  CLI::Option* python = command.add_option(
      "--python", arguments.python,
      "FILE.py:FUNCTION instead of a backend: a function on PyTorch or NumPy arrays (backends/python/README.md)");
  python->excludes(backend);
  command.add_option("--option", arguments.options, "An option of the backend, name=value (may be repeated)");
  command.add_option("--jobs,-j", arguments.jobs, "Workers at once")->check(CLI::Range(1, 256))->capture_default_str();
  command.add_option("--timeout", arguments.timeout, "Seconds that one call of the backend may take")
      ->check(CLI::Range(0.01, 86400.0))
      ->capture_default_str();
}

BackendChoice choose_backend(const BackendArguments& arguments) {
  if (arguments.backend.empty() && arguments.python.empty()) throw CLI::RequiredError("--backend or --python");
  // Not a number is in no range and outside of none, so the parser lets it pass.
  if (!std::isfinite(arguments.timeout)) throw Error::at("--timeout", "got {}, wanted seconds", arguments.timeout);
  BackendChoice choice;
  choice.options = parse_options(arguments.options);
  choice.worker.environment = worker_environment(arguments.jobs);
  choice.limit = std::chrono::milliseconds(static_cast<int64_t>(arguments.timeout * 1000));
  if (!arguments.python.empty()) {
    choose_function(arguments.python, choice);
  } else {
    refuse_options_in_name(arguments.backend);
    choice.worker.command = {find_worker().string()};
    choice.library = find_backend(arguments.backend);
  }
  return choice;
}

Opened open_once(const BackendChoice& choice) {
  Worker worker(choice.worker);
  const auto opened = worker.open(choice.library.string(), choice.options, choice.open_limit.value_or(choice.limit));
  if (!opened) throw Error::at(choice.library.string(), "cannot be opened: {}", opened.error().text);
  if (opened->reply.status != ATTEST_OK && !opened->without_device()) throw Error(opened->reply.message);
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
  if (arguments.python.empty()) {
    command += fmt::format(" {} --backend ", verb);
    command += by_path ? absolute(choice.library) : shell_quoted(arguments.backend);
  } else {
    const std::string function = arguments.python.substr(arguments.python.rfind(':'));
    command += fmt::format(" {} --python ", verb) + shell_quoted(choice.library.string() + function);
  }
  for (const std::string& option : arguments.options) command += " --option " + shell_quoted(option);
  if (arguments.timeout != BackendArguments::kTimeout) command += fmt::format(" --timeout {}", arguments.timeout);
  return command;
}

}  // namespace attest
