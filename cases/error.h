// SPDX-License-Identifier: Apache-2.0
// What is thrown when something that a user gave is wrong: a file, a field, an argument. `main` prints it as one line
// and exits with 2. Failures that are part of the job (a backend that crashes) are values, never this.
#pragma once

#include <fmt/core.h>

#include <stdexcept>
#include <string>
#include <utility>

namespace attest {

/// Bad input. `what()` is one line: the place (file, field), what was got and what was wanted.
class Error : public std::runtime_error {
 public:
  explicit Error(const std::string& line) : std::runtime_error(line) {}

  template <typename... Args>
  static Error at(std::string_view place, fmt::format_string<Args...> format, Args&&... args) {
    return Error(fmt::format("{}: {}", place, fmt::format(format, std::forward<Args>(args)...)));
  }
};

}  // namespace attest
