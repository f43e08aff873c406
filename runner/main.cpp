// SPDX-License-Identifier: Apache-2.0
// The `attest` command.
#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <system_error>

#include "cases/error.h"
#include "runner/command.h"
#include "runner/version.h"

namespace {

/// How the user called this program, so that a command in a report can be pasted anywhere. The scripts of ci/ stand in
/// front of it and say so in a variable.
std::string program_name(const char* called) {
  if (const char* script = std::getenv("ATTEST_PROGRAM"); script != nullptr && *script != '\0') return script;
  std::string name = called == nullptr ? "attest" : called;
  if (name.find('/') == std::string::npos) return name;
  return std::filesystem::absolute(name).lexically_normal().string();
}

/// An answer that could not be written down is no answer. Whoever closed the pipe (`| head`) knows that.
int unwritten(int reason) {
  if (reason != EPIPE) std::fprintf(stderr, "attest: standard output cannot be written: %s\n", std::strerror(reason));
  return attest::exit_usage;
}

int run(int argc, char** argv) {
  CLI::App app{
      "attest certifies attention backends: JSON cases against proven goldens, with an allowed error derived per "
      "element.\n"
      "\n"
      "  attest certify --backend onednn          certify a backend by name\n"
      "  attest certify --backend ./mine.so       or by path\n"
      "  attest cases list --filter needle        what is tested\n"
      "  attest grade kv_attention.py             points for a submission to the challenge\n"
      "  attest doctor                            what this machine has\n"
      "\n"
      "Exit codes: 0 yes, 1 no (not certified, a golden differs), 2 wrong arguments or broken input."};
  app.set_version_flag("--version", std::string("attest ") + attest::version());
  app.require_subcommand(1);
  app.failure_message([](const CLI::App*, const CLI::Error& wrong) {
    return fmt::format("attest: {}; --help shows how\n", wrong.what());
  });

  attest::Common common;
  common.program = program_name(argc > 0 ? argv[0] : nullptr);
  app.add_option("--suite", common.suite,
                 "Folder with cases/, golden/ and spec/ (default: the one this was built with)");
  int exit_code = attest::exit_ok;
  attest::add_bench_command(app, common, exit_code);
  attest::add_certify_command(app, common, exit_code);
  attest::add_diagnose_command(app, common, exit_code);
  attest::add_cases_command(app, common, exit_code);
  attest::add_golden_command(app, common, exit_code);
  attest::add_grade_command(app, common, exit_code);
  attest::add_mutants_command(app, common, exit_code);
  attest::add_pack_command(app, common, exit_code);
  attest::add_report_command(app, common, exit_code);
  attest::add_doctor_command(app, common, exit_code);

  try {
    app.parse(argc, argv);
  } catch (const CLI::RequiredError& wrong) {
    // What is missing is often missing because of a word that nobody knows.
    const auto unknown = app.remaining(true);
    if (unknown.empty()) return app.exit(wrong), attest::exit_usage;
    std::fprintf(stderr, "attest: got \"%s\", which is no subcommand or option here; --help shows how\n",
                 unknown.front().c_str());
    return attest::exit_usage;
  } catch (const CLI::ParseError& wrong) {
    return app.exit(wrong) == 0 ? attest::exit_ok : attest::exit_usage;
  } catch (const attest::Error& error) {
    std::fprintf(stderr, "attest: %s\n", error.what());
    return attest::exit_usage;
  } catch (const std::system_error& error) {
    if (std::ferror(stdout) != 0) return unwritten(error.code().value());
    std::fprintf(stderr, "attest: %s\n", error.what());
    return attest::exit_usage;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "attest: internal error: %s\n", error.what());
    return attest::exit_usage;
  }
  return exit_code;
}

}  // namespace

int main(int argc, char** argv) {
  // A reader that is gone or a limit on file sizes is an error of a write, which says where, and no sudden end.
  // Workers start with the standard signals again.
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGXFSZ, SIG_IGN);
  const int exit_code = run(argc, argv);
  errno = 0;
  const bool failed_before = std::ferror(stdout) != 0;
  if (std::fflush(stdout) == 0 && !failed_before) return exit_code;
  if (failed_before) return attest::exit_usage;  // and it has been said
  return unwritten(errno);
}
