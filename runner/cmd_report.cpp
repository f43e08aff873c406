// SPDX-License-Identifier: Apache-2.0
// attest report: the reports of a run again, from its records alone.
#include <CLI/CLI.hpp>
#include <memory>

#include "runner/command.h"
#include "runner/reports.h"

namespace attest {

void add_report_command(CLI::App& app, const Common& /*common*/, int& exit_code) {
  CLI::App* command = app.add_subcommand("report", "Make the reports of a run again from its records");
  command->footer("Needs no backend. Prints the summary; exit codes as of certify.");
  struct Options {
    std::filesystem::path records, out;
  };
  auto options = std::make_shared<Options>();
  command->add_option("records", options->records, "A records.jsonl")->required();
  command->add_option("--out,-o", options->out, "Folder for the reports (default: beside the records)");
  command->callback([&exit_code, options] {
    const Records records = read_records(options->records);
    const auto out = options->out.empty() ? options->records.parent_path() : options->out;
    exit_code = write_reports(records, out) ? exit_ok : exit_red;
  });
}

}  // namespace attest
