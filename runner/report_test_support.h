// SPDX-License-Identifier: Apache-2.0
// For the tests of the reports: the records that they are made from, and parsers that are not ours.
#pragma once

#include <unistd.h>

#include <array>
#include <catch2/catch_test_macros.hpp>
#include <cstdio>
#include <filesystem>
#include <string>

#include "runner/record.h"

namespace attest {

/// records_certified: two profiles, one not claimed. records_failing: every kind of failure, with error maps and
/// hostile text. records_incomplete: four of 132 cases, and no end.
inline Records test_records(const std::string& name) {
  return read_records(std::filesystem::path(ATTEST_SOURCE_DIR) / "runner" / "testdata" / (name + ".jsonl"));
}

/// What a Python program prints that finds `text` in the file sys.argv[1]; skips the test where there is no Python.
inline std::string python(const std::string& program, const std::string& text) {
  const auto folder = std::filesystem::temp_directory_path() / ("attest_report_test_" + std::to_string(::getpid()));
  write_file(folder / "program.py", program);
  write_file(folder / "input", text);
  const std::string command =
      "python3 '" + (folder / "program.py").string() + "' '" + (folder / "input").string() + "' 2>&1";
  std::string printed;
  std::FILE* pipe = ::popen(command.c_str(), "r");
  REQUIRE(pipe != nullptr);
  std::array<char, 4096> buffer{};
  for (size_t n = 0; (n = std::fread(buffer.data(), 1, buffer.size(), pipe)) > 0;) printed.append(buffer.data(), n);
  const int status = ::pclose(pipe);
  std::filesystem::remove_all(folder);
  if (WIFEXITED(status) && WEXITSTATUS(status) == 127) SKIP("python3 is not installed");
  return printed;
}

}  // namespace attest
