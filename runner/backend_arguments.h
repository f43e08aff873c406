// SPDX-License-Identifier: Apache-2.0
// The options by which a command is told which backend to run and how: what `certify` and `diagnose` have in common.
#pragma once

#include <string>
#include <vector>

#include "runner/command.h"
#include "runner/execute.h"

namespace attest {

struct BackendArguments {
  static constexpr double kTimeout = 10;

  std::string backend;               ///< A name or a path.
  std::string python;                ///< FILE.py:FUNCTION, instead of a backend.
  std::vector<std::string> options;  ///< "name=value"
  double timeout = kTimeout;
  int jobs = default_jobs();
};

/// Adds --backend, --python, --option, --jobs and --timeout.
void add_backend_arguments(CLI::App& command, BackendArguments& arguments);

/// Finds the library and makes sense of the options. Throws Error, or CLI's if neither backend nor function is given.
BackendChoice choose_backend(const BackendArguments& arguments);

/// Opens the backend once, in a worker of its own: what cannot be opened is the user's to mend, not a verdict. Only
/// that its device is not here comes back (Opened::without_device).
Opened open_once(const BackendChoice& choice);

/// "attest certify --backend mine --option a=b": a command about this backend, wherever it is pasted: with absolute
/// paths, and all that bears on the verdict.
std::string backend_command(const Common& common, std::string_view verb, const BackendArguments& arguments,
                            const BackendChoice& choice);

}  // namespace attest
