// SPDX-License-Identifier: Apache-2.0
// attest diagnose: which known bug would do what a backend does, and a trace of what it should have done.
#include <fmt/ranges.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <memory>

#include "runner/backend_arguments.h"
#include "runner/campaign.h"
#include "runner/explain_accuracy.h"
#include "runner/explain_run.h"
#include "runner/markup.h"
#include "runner/places.h"
#include "runner/reports.h"
#include "runner/subjects.h"
#include "runner/trace.h"

namespace attest {
namespace {

struct Options {
  BackendArguments backend;
  Selection selection;
  std::string mutants = "mutants";
  double seconds = 60;
  bool json = false, trace = false;
  std::string traced;
  bool self_test = false, no_singles = false;
  SelfTest test;
  std::filesystem::path out;
};

/// One case beside what is right, whether it fails or not.
int trace_case(const Suite& suite, Subjects& subjects, const BackendChoice& choice, const Conventions& conventions,
               const std::string& id) {
  select(suite, {{}, {id}, {}});  // says so if there is none
  Executor executor(choice, subjects.finder());
  const Subject& subject = subjects.find(id);
  const Performance actual = perform(executor, subject);
  Materials materials(subjects.finder());
  fmt::print("{}", trace(materials[id].script(), &actual, conventions));
  fmt::print("\n{}{}\n", name(actual.status), actual.reason.empty() ? "" : ": " + printable(actual.reason));
  return exit_ok;
}

int diagnose_backend(const Common& common, const Options& options) {
  const BackendChoice choice = choose_backend(options.backend);
  const Suite suite = load_suite(find_suite(common.suite));
  Subjects subjects(suite);
  const Opened opened = open_once(choice);
  if (opened.without_device()) throw Error::at(choice.library.string(), "cannot run here: {}", opened.reply.message);
  const Conventions conventions =
      conventions_from_json(opened.declarations, choice.library.string() + ": its declarations");
  if (!options.traced.empty()) return trace_case(suite, subjects, choice, conventions, options.traced);

  const std::filesystem::path library = find_backend(options.mutants);
  std::vector<Planned> plan;
  for (const Case* c : select(suite, options.selection)) plan.push_back({subjects.load(*c), ""});

  std::vector<CaseRecord> cases;
  Progress progress(static_cast<int64_t>(plan.size()), ::isatty(STDERR_FILENO) == 1, use_colour(STDERR_FILENO));
  run_campaign(
      plan, choice, options.backend.jobs,
      [&](const CaseRecord& record) {
        cases.push_back(record);
        return true;
      },
      subjects.finder());
  progress.close();
  sort_by_plan(cases);
  const Diagnosis diagnosis = diagnose_run(suite, subjects, choice, conventions, cases,
                                           {.seconds = options.seconds,
                                            .jobs = options.backend.jobs,
                                            .trace = options.trace || options.json,
                                            .library = library});
  if (options.json) {
    fmt::print("{}\n", to_json(diagnosis).dump(2));
  } else {
    fmt::print("{}", diagnosis_text(diagnosis, use_colour(STDOUT_FILENO), Detail::full));
  }
  return exit_ok;
}

int self_test(const Common& common, const Options& options) {
  const Suite suite = load_suite(find_suite(common.suite));
  BackendArguments arguments = options.backend;
  arguments.backend = options.mutants;
  arguments.python.clear();
  const BackendChoice mutants = choose_backend(arguments);
  Subjects subjects(suite);
  SelfTest test = options.test;
  test.seconds = options.seconds;
  test.singles = !options.no_singles;
  const Catalogue catalogue = load_catalogue(suite.root);
  for (const std::string& bug : test.bugs) {
    if (catalogue.find(bug) == nullptr)
      throw Error(fmt::format("--bug: got \"{}\", which cases/bugs.json does not have", bug));
  }
  std::string lines;
  const auto told = [&](const SelfTrial& trial) {
    lines += to_json(trial).dump() + "\n";
    if (!options.out.empty()) write_file(options.out, lines);
    fmt::print("{:<7} {:<7} {} [{}] {:.1f} s: {}\n", name(trial.result), name(trial.kind),
               trial.about.empty() ? fmt::format("{}", fmt::join(trial.bugs, " + ")) : trial.about, trial.variant,
               trial.diagnosis.seconds, trial.diagnosis.line);
    std::fflush(stdout);
  };
  const std::vector<SelfTrial> trials = run_self_test(suite, subjects, mutants, test, arguments.jobs, told);
  fmt::print("\n{}", self_test_table(catalogue, trials));
  return meets_aims(trials) ? exit_ok : exit_red;
}

}  // namespace

void add_diagnose_command(CLI::App& app, const Common& common, int& exit_code) {
  CLI::App* command = app.add_subcommand("diagnose", "Name the known bug that would do what a backend does");
  auto options = std::make_shared<Options>();
  add_backend_arguments(*command, options->backend);
  command->add_option("--profile", options->selection.profiles, "Only cases of this profile (may be repeated)");
  command->add_option("--filter", options->selection.filter,
                      "Only cases whose identity line contains this, or matches it as a glob");
  command->add_option("--case", options->selection.ids, "Only this case (may be repeated)");
  command->add_option("--mutants", options->mutants, "The backend that has the bugs, by name or path")
      ->capture_default_str();
  command->add_option("--seconds", options->seconds, "What the diagnosis may take")
      ->check(CLI::Range(0.1, 86400.0))
      ->capture_default_str();
  command
      ->add_option(
          "--trace",
          [options](const std::vector<std::string>& values) {
            options->trace = true;
            if (!values.empty()) options->traced = values.front();
            return true;
          },
          "Also the simplest failing case step by step: positions, keys that are seen, weights, results. With a case: "
          "that one alone, whether it fails or not")
      ->expected(0, 1)
      ->type_name("[CASE]");
  command->add_flag("--json", options->json, "The diagnosis as it would stand in the records");
  CLI::Option* const self_test_flag =
      command->add_flag("--self-test", options->self_test, "Measure how often the diagnosis is right");
  const std::vector<CLI::Option*> of_self_test{
      command->add_option("--bug", options->test.bugs, "--self-test: only this one (may be repeated)"),
      command->add_option("--pairs", options->test.pairs, "--self-test: pairs of bugs")
          ->check(CLI::Range(0, 1000))
          ->capture_default_str(),
      command->add_option("--noise", options->test.noise, "--self-test: backends with noise")
          ->check(CLI::Range(0, 100000))
          ->capture_default_str(),
      command->add_flag("--no-singles", options->no_singles, "--self-test: no single bugs"),
      command->add_option("--seed", options->test.seed, "--self-test: draws pairs, variants and noise")
          ->capture_default_str(),
      command->add_option("--out,-o", options->out, "--self-test: file for a JSON line per trial")};
  for (CLI::Option* option : of_self_test) option->needs(self_test_flag);
  command->footer(
      "Examples:\n"
      "  attest diagnose --backend ./mine.so                   what is wrong with it, over the whole suite\n"
      "  attest diagnose --backend ./mine.so --profile rope --trace   the same of one profile, and the first steps\n"
      "  attest diagnose --backend ./mine.so --trace window/right_0   one case key by key, whether it fails or not\n"
      "\n"
      "Exit codes: 0 said what there is to say (--self-test: the aims are met), 1 they are not, 2 bad input.");
  command->callback([&common, &exit_code, options] {
    exit_code = options->self_test ? self_test(common, *options) : diagnose_backend(common, *options);
  });
}

}  // namespace attest
