// SPDX-License-Identifier: Apache-2.0
// attest pack make|show
#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <map>
#include <memory>

#include "cases/suite.h"
#include "runner/command.h"
#include "runner/markup.h"
#include "runner/pack.h"

namespace attest {
namespace fs = std::filesystem;
namespace {

struct Options {
  fs::path secret, out, visible, hidden, dir;
  int jobs = default_jobs();
};

int64_t values_of(const Golden& golden) {
  int64_t values = 0;
  for (const GoldenStep& step : golden.steps) {
    for (const auto* tensor : {&step.output, &step.cache_key, &step.cache_value}) {
      values += static_cast<int64_t>(tensor->value.size());
    }
  }
  return values;
}

void print(const Pack& pack) {
  fmt::print("pack {}\n\n", pack.id);
  fmt::print("{:<8} {:>2} {:>6}  {:<16} {:>7}  {}\n", "", "", "weight", "part", "values", "what");
  for (const PackCase& one : pack.cases) {
    fmt::print("{:<8} {:>2} {:>6}  {:<16} {:>7}  {}\n", one.hidden ? "hidden" : "visible", one.number, one.weight,
               one.part, values_of(one.golden), printable(identity(*one.c)));
  }
  for (const std::string& warning : pack.warnings) fmt::print("\nwarning: {}\n", printable(warning));
}

int make(const Common& common, const Options& options) {
  const auto start = std::chrono::steady_clock::now();
  std::error_code none;
  if (fs::exists(options.out, none) && !(fs::is_directory(options.out, none) && fs::is_empty(options.out, none))) {
    throw Error::at(options.out.string(), "is there already, wanted a new or empty folder");
  }
  const auto secret = read_secret(options.secret);
  const fs::path visible =
      options.visible.empty() ? find_suite(common.suite) / "cases" / "challenge" / "test_cases.json" : options.visible;
  const Pack pack = options.hidden.empty() ? make_pack(secret, visible, options.jobs)
                                           : fill_challenge(visible, options.hidden, secret, options.jobs);
  write_pack(pack, options.out);
  print(pack);
  fmt::print("\n{} parts in {:.1f} s, written to {}\nIt holds the answers: no student may read it, or the secret.\n",
             pack.cases.size(), std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(),
             options.out.string());
  return exit_ok;
}

}  // namespace

void add_pack_command(CLI::App& app, const Common& common, int& exit_code) {
  CLI::App* pack = app.add_subcommand("pack", "Make the cases by which submissions to the challenge are graded");
  pack->require_subcommand(1);
  auto options = std::make_shared<Options>();

  CLI::App* make_command = pack->add_subcommand(
      "make",
      "Make a pack: ten hidden cases that nobody can foresee, and the visible one, with their goldens.\n"
      "\n"
      "  head -c 32 /dev/urandom > secret.bin\n"
      "  attest pack make --secret secret.bin --out pack                       fresh shapes and values\n"
      "  attest pack make --secret secret.bin --out pack --hidden FILE.json    the organisers' file, filled in\n"
      "\n"
      "The same secret gives the same pack anywhere. Placeholders of the organisers' files are filled from the\n"
      "secret, not by torch's generator; numbers that are there are taken as they are. pack/challenge/ holds the\n"
      "cases once more in the organisers' format, with weights and what is expected. A case that would not notice a\n"
      "known slip (scale, mask, softmax axis, heads, cache, ...) is drawn again; of a file it is a warning.");
  make_command->add_option("--secret", options->secret, "File of 16 bytes or more that only graders have")->required();
  make_command->add_option("--out", options->out, "New or empty folder")->required();
  make_command->add_option("--visible", options->visible,
                           "The visible case, test_cases.json (default: the suite's own)");
  make_command->add_option("--hidden", options->hidden,
                           "The organisers' test_cases_hidden.json (default: fresh cases)");
  make_command->add_option("-j,--jobs", options->jobs, "Threads")->check(CLI::Range(1, 256))->capture_default_str();
  make_command->callback([&common, &exit_code, options] { exit_code = make(common, *options); });

  CLI::App* show_command = pack->add_subcommand("show", "Check a pack's hashes, and list its cases.");
  show_command->add_option("dir", options->dir, "The pack's folder")->required();
  show_command->callback([&exit_code, options] {
    print(read_pack(options->dir));
    exit_code = exit_ok;
  });
}

}  // namespace attest
