// SPDX-License-Identifier: Apache-2.0
// The subcommands of `attest`: each file cmd_<name>.cpp adds its own to the parser and holds its options. Adding a
// command is one such file and one line in main.cpp.
#pragma once

#include <filesystem>
#include <string>
#include <thread>

namespace CLI {
class App;
}

namespace attest {

/// Exit codes of every command (spec/conformance.md).
enum Exit : int {
  exit_ok = 0,     ///< Done; for certify: certified.
  exit_red = 1,    ///< Done, and the answer is no: not certified, a golden differs.
  exit_usage = 2,  ///< Wrong arguments or broken input; nothing was done.
};

/// Options before the subcommand.
struct Common {
  std::filesystem::path suite;  ///< --suite
  std::string program;          ///< What a person types to call this program, from any folder.
};

void add_bench_command(CLI::App& app, const Common& common, int& exit_code);
void add_cases_command(CLI::App& app, const Common& common, int& exit_code);
void add_golden_command(CLI::App& app, const Common& common, int& exit_code);
void add_certify_command(CLI::App& app, const Common& common, int& exit_code);
void add_diagnose_command(CLI::App& app, const Common& common, int& exit_code);
void add_grade_command(CLI::App& app, const Common& common, int& exit_code);
void add_mutants_command(CLI::App& app, const Common& common, int& exit_code);
void add_pack_command(CLI::App& app, const Common& common, int& exit_code);
void add_report_command(CLI::App& app, const Common& common, int& exit_code);
void add_doctor_command(CLI::App& app, const Common& common, int& exit_code);

inline int default_jobs() {
  return static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
}

}  // namespace attest
