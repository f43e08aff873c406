// SPDX-License-Identifier: Apache-2.0
// The `attest` command.
#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <cstdio>

#include "cases/error.h"
#include "runner/command.h"
#include "runner/version.h"

int main(int argc, char** argv) {
  CLI::App app{
      "attest certifies attention backends: JSON cases against proven goldens, with an allowed error derived per "
      "element.\n"
      "\n"
      "  attest certify --backend onednn          certify a backend by name\n"
      "  attest certify --backend ./mine.so       or by path\n"
      "  attest cases list --filter needle        what is tested\n"
      "  attest doctor                            what this machine has\n"
      "\n"
      "Exit codes: 0 yes, 1 no (not certified, a golden differs), 2 wrong arguments or broken input."};
  app.set_version_flag("--version", std::string("attest ") + attest::version());
  app.require_subcommand(1);
  app.failure_message([](const CLI::App*, const CLI::Error& wrong) {
    return fmt::format("attest: {}; --help shows how\n", wrong.what());
  });

  attest::Common common;
  app.add_option("--suite", common.suite,
                 "Folder with cases/, golden/ and spec/ (default: the one this was built with)");
  int exit_code = attest::exit_ok;
  attest::add_certify_command(app, common, exit_code);
  attest::add_cases_command(app, common, exit_code);
  attest::add_golden_command(app, common, exit_code);
  attest::add_report_command(app, common, exit_code);
  attest::add_doctor_command(app, common, exit_code);

  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& wrong) {
    return app.exit(wrong) == 0 ? attest::exit_ok : attest::exit_usage;
  } catch (const attest::Error& error) {
    std::fprintf(stderr, "attest: %s\n", error.what());
    return attest::exit_usage;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "attest: internal error: %s\n", error.what());
    return attest::exit_usage;
  }
  return exit_code;
}
