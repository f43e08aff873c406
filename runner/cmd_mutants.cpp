// SPDX-License-Identifier: Apache-2.0
// attest mutants: the suite against every bug of the catalogue, and against backends that are right in their own way.
#include <fmt/core.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <memory>

#include "runner/command.h"
#include "runner/mutant_plays.h"
#include "runner/places.h"
#include "runner/report_matrix.h"
#include "runner/report_matrix_picture.h"
#include "runner/report_text.h"
#include "runner/reports.h"
#include "runner/version.h"
#ifdef ATTEST_HAS_ORACLE
#include "runner/fresh_campaign.h"
#endif

namespace attest {
namespace fs = std::filesystem;
namespace {

/// So few cells are printed one by one.
constexpr int64_t kFewCells = 40;

struct Options {
  std::string backend = "mutants";
  MatrixChoice choice;
  bool survivors = false;
  int64_t campaign = 0, seed = 1;
  fs::path out = fs::path("results") / "mutants";
};

/// How many cases are done, on standard error: one line that is written over on a terminal, else a line every tenth.
class Counter {
 public:
  void operator()(size_t done, size_t planned) {
    if (terminal_) {
      fmt::print(stderr, "\r\033[K{} of {} cases{}", done, planned, done == planned ? "\r\033[K" : "");
    } else if (done * 10 / planned > (done - 1) * 10 / planned) {
      fmt::print(stderr, "{:3}%  {} of {} cases\n", done * 100 / planned, done, planned);
    }
    std::fflush(stderr);
  }

 private:
  bool terminal_ = ::isatty(STDERR_FILENO) == 1;
};

/// Each cell on a line of its own: what one asks for who plays a bug on a case.
std::string cell_list(const KillMatrix& matrix) {
  std::string text;
  for (size_t m = 0; m < matrix.mutants.size(); ++m) {
    for (size_t c = 0; c < matrix.cases.size(); ++c) {
      const Cell& cell = matrix.at(m, c);
      if (cell.state == Cell::State::not_played) continue;
      const std::string what =
          cell.state == Cell::State::failed
              ? fmt::format("fails, {} times the allowed error: {}", ratio_text(cell.margin), cell.reason)
          : cell.state == Cell::State::unsupported ? "unsupported: " + cell.reason
          : cell.worst ? fmt::format("passes, with {} of the allowed error", ratio_text(*cell.worst))
                       : "passes";
      text += fmt::format("{} on {} {}\n", matrix.mutants[m].id, matrix.cases[c].id, what);
    }
  }
  return text;
}

void print_survivors(const KillMatrix& matrix) {
  for (size_t m = 0; m < matrix.mutants.size(); ++m) {
    if (!matrix.mutants[m].correct && summary(matrix, m).kills == 0) fmt::print("{}\n", matrix.mutants[m].id);
  }
}

int play(const Common& common, const Options& options) {
  const Suite suite = load_suite(find_suite(common.suite));
  const Catalogue catalogue = load_catalogue(suite.root);
  const BackendLibrary library(find_backend(options.backend));
  KillMatrix matrix = play_matrix(suite, catalogue, library, options.choice, Counter());
  matrix.attest_version = version();
  fs::create_directories(options.out);
  write_file(options.out / "kill_matrix.json", to_json(matrix).dump(1) + "\n");
  write_file(options.out / "kill_matrix.html", html_report(matrix));
  write_file(options.out / "kill_matrix.svg", matrix_picture(matrix));
  if (options.survivors) {
    print_survivors(matrix);
  } else {
    const MatrixTotals sum = totals(matrix);
    if (sum.plays + sum.correct_plays <= kFewCells) fmt::print("{}\n", cell_list(matrix));
    fmt::print("{}, kill_matrix.html and kill_matrix.svg written, after {}\n\n",
               (options.out / "kill_matrix.json").string(), seconds_text(matrix.seconds));
    fmt::print("{}", console_summary(matrix, use_colour(STDOUT_FILENO)));
  }
  return judge(matrix).empty() ? exit_ok : exit_red;
}

#ifdef ATTEST_HAS_ORACLE
int campaign(const Common& common, const Options& options) {
  const Selection& selection = options.choice.selection;
  if (!selection.profiles.empty() || !selection.filter.empty() || !selection.ids.empty()) {
    throw Error("--campaign: draws its cases; --profile, --filter and --case choose among others");
  }
  const BackendLibrary library(find_backend(options.backend));
  MatrixChoice choice = options.choice;
  const std::vector<Mutant> mutants = correct_ones(load_catalogue(find_suite(common.suite)), choice);
  if (mutants.empty()) throw Error("--campaign: wants correct variants; --bug chooses others");
  const FreshCampaign result = run_fresh_campaign(library, mutants, static_cast<uint64_t>(options.seed),
                                                  options.campaign, choice.jobs, Counter());
  fs::create_directories(options.out);
  write_file(options.out / "campaign.json", to_json(result).dump(1) + "\n");
  fmt::print("{} written, after {}\n\n", (options.out / "campaign.json").string(), seconds_text(result.seconds));
  fmt::print("{}", console_summary(result, use_colour(STDOUT_FILENO)));
  return result.green() ? exit_ok : exit_red;
}
#else
int campaign(const Common& /*common*/, const Options& /*options*/) {
  throw Error("--campaign: this attest was built without the oracle, which makes the goldens");
}
#endif

}  // namespace

void add_mutants_command(CLI::App& app, const Common& common, int& exit_code) {
  CLI::App* command = app.add_subcommand("mutants", "Plant every known bug and say which cases catch it");
  command->footer(
      "Examples:\n"
      "  attest mutants                              the whole matrix: every bug and every correct variant\n"
      "  attest mutants --bug causal-plus1           one bug on all cases\n"
      "  attest mutants --bug rope-theta --case rope/far_positions   what the case says of it\n"
      "  attest mutants --campaign 10000 --seed 7    correct variants on fresh random cases\n"
      "\n"
      "Plays the backend `mutants` in processes forked from this one. Writes kill_matrix.json, .html and .svg, a\n"
      "campaign campaign.json.\n"
      "Exit codes: 0 green, 1 red (a bug survives, a correct backend is flagged, ...), 2 bad input.");
  auto options = std::make_shared<Options>();
  MatrixChoice& choice = options->choice;
  choice.jobs = default_jobs();
  command->add_option("--bug", choice.bugs, "Only this bug of cases/bugs.json (may be repeated)");
  command->add_option("--variant", choice.variants, "Only this correct variant, or `plain` (may be repeated)");
  command->add_option("--profile", choice.selection.profiles, "Only cases of this profile (may be repeated)");
  command->add_option("--filter", choice.selection.filter,
                      "Only cases whose identity line contains this, or matches it as a glob");
  command->add_option("--case", choice.selection.ids, "Only this case (may be repeated)");
  auto* fast = command->add_flag("--fast", choice.fast,
                                 "Of each bug only as many of the cases that name it as it takes to be sure");
  command
      ->add_flag("--everything", choice.everything,
                 "Also plays the few costly cases with mutants that they do not name (many minutes)")
      ->excludes(fast);
  command->add_flag("--survivors", options->survivors, "Print the bugs that no case catches, and nothing else");
  command->add_option("--campaign", options->campaign, "So many fresh random cases with every correct variant")
      ->check(CLI::Range(int64_t{1}, int64_t{100000000}))
      ->excludes(fast);
  command->add_option("--seed", options->seed, "Of the campaign")->check(CLI::NonNegativeNumber)->capture_default_str();
  command->add_option("--backend,-b", options->backend, "Another backend with the options `bug` and `variant`")
      ->capture_default_str();
  command->add_option("--jobs,-j", choice.jobs, "Processes at once")->check(CLI::Range(1, 256))->capture_default_str();
  command->add_option("--out,-o", options->out, "Folder for the reports")->capture_default_str();
  command->callback([&common, &exit_code, options] {
    exit_code = options->campaign > 0 ? campaign(common, *options) : play(common, *options);
  });
}

}  // namespace attest
