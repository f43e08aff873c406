// SPDX-License-Identifier: Apache-2.0
// The Python that runs backends/python/worker.py, and where that lies.
//
//   const Python python = choose_python();
//   WorkerOptions options{python_worker_command(python), ...};
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace attest {

struct Python {
  std::filesystem::path program;
  std::string version;
  std::string torch, numpy;                    ///< Their versions; empty: not there.
  std::vector<std::filesystem::path> folders;  ///< Where it and its modules lie: what a sandbox must let it read.
};

/// Asks an interpreter what it has, without importing it. Throws Error if it does not answer as a Python 3 does.
Python look_at_python(const std::filesystem::path& program);

/// The first that suits of: $ATTEST_PYTHON, after which nothing else is tried; in a build tree the virtual environment
/// that `ci/setup --grading` makes where the system's packages have no PyTorch; /usr/bin/python3; python3 on the PATH.
/// One with PyTorch is preferred to one with NumPy only, and NumPy is needed always. Throws Error, with what each of
/// them lacks and what to install.
Python choose_python(bool needs_torch = false);

/// worker.py, in ../libexec/attest/python; its folder has all that it needs. Throws Error with the place.
std::filesystem::path find_python_worker();

/// The command line of a worker.
std::vector<std::string> python_worker_command(const Python& python);

}  // namespace attest
