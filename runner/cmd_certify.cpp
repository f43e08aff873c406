// SPDX-License-Identifier: Apache-2.0
// attest certify: a backend against the suite.
#include <fmt/core.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <memory>

#include "cases/sha256.h"
#include "cases/suite.h"
#include "golden/golden.h"
#include "runner/campaign.h"
#include "runner/command.h"
#include "runner/machine.h"
#include "runner/places.h"
#include "runner/reports.h"
#include "runner/version.h"

namespace attest {
namespace fs = std::filesystem;
namespace {

struct Options {
  std::string backend;
  Selection selection;
  std::vector<std::string> backend_options;
  fs::path out;
  double timeout = 10;
  int jobs = default_jobs();
};

std::map<std::string, std::string> parse_options(const std::vector<std::string>& pairs) {
  std::map<std::string, std::string> options;
  for (const std::string& pair : pairs) {
    const auto equals = pair.find('=');
    if (equals == std::string::npos || equals == 0) {
      throw Error::at("--option", "got \"{}\", wanted name=value", pair);
    }
    if (!options.emplace(pair.substr(0, equals), pair.substr(equals + 1)).second) {
      throw Error::at("--option", "\"{}\" is given twice", pair.substr(0, equals));
    }
  }
  return options;
}

/// The parent's environment, with the machine's cores shared out among the workers for backends that use OpenMP.
std::vector<std::string> worker_environment(int jobs) {
  std::vector<std::string> variables;
  for (char** variable = environ; *variable != nullptr; ++variable) variables.emplace_back(*variable);
  if (std::getenv("OMP_NUM_THREADS") == nullptr) {
    variables.push_back(fmt::format("OMP_NUM_THREADS={}", std::max(1, default_jobs() / jobs)));
  }
  return variables;
}

/// Opens the backend once, in a worker of its own: what cannot be opened is the user's to mend, not a verdict.
Opened open_once(const BackendChoice& choice) {
  Worker worker(choice.worker);
  const auto opened = worker.open(choice.library.string(), choice.options, choice.limit);
  if (!opened) throw Error::at(choice.library.string(), "cannot be opened: {}", opened.error().text);
  if (opened->reply.status != ATTEST_OK) throw Error(opened->reply.message);
  return *opened;
}

std::string shell_quoted(const std::string& word) {
  if (!word.empty() &&
      word.find_first_not_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./=:,+@") ==
          std::string::npos) {
    return word;
  }
  std::string quoted = "'";
  for (const char letter : word) quoted += letter == '\'' ? std::string("'\\''") : std::string(1, letter);
  return quoted + "'";
}

std::string repro_command(const Common& common, const Options& options, const std::string& id) {
  std::string command = "attest";
  if (!common.suite.empty()) command += " --suite " + shell_quoted(common.suite.string());
  command += " certify --backend " + shell_quoted(options.backend);
  for (const std::string& option : options.backend_options) command += " --option " + shell_quoted(option);
  return command + " --case " + id;
}

std::vector<Planned> make_plan(const Suite& suite, const Common& common, const Options& options) {
  const Manifest manifest = read_manifest(suite.root);
  std::vector<Planned> plan;
  for (const Case* c : select(suite, options.selection)) {
    plan.push_back({c, load_golden(suite.root, manifest, *c), manifest.cases.at(c->id).worst_radius,
                    repro_command(common, options, c->id)});
  }
  return plan;
}

std::string plan_hash(const std::vector<Planned>& plan) {
  std::string text;
  for (const Planned& planned : plan) text += planned.c->id + " " + planned.c->hash + "\n";
  return sha256(text).substr(0, 12);
}

/// Appends records as they come, so that a run that is killed has lost nothing.
class RecordsFile {
 public:
  explicit RecordsFile(const fs::path& path) : path_(path) {
    std::error_code made;
    fs::create_directories(path.parent_path(), made);
    out_.open(path, std::ios::trunc);
    if (made || !out_) throw Error::at(path.string(), "cannot be written");
  }
  void add(const Json& json) {
    out_ << json.dump(-1, ' ', false, Json::error_handler_t::replace) << '\n' << std::flush;
    if (!out_) throw Error::at(path_.string(), "cannot be written");
  }

 private:
  fs::path path_;
  std::ofstream out_;
};

int certify(const Common& common, const Options& options) {
  const auto start = std::chrono::steady_clock::now();
  const Suite suite = load_suite(find_suite(common.suite));
  const std::vector<Planned> plan = make_plan(suite, common, options);
  BackendChoice choice;
  choice.library = find_backend(options.backend);
  choice.options = parse_options(options.backend_options);
  choice.worker.command = {find_worker().string()};
  choice.worker.environment = worker_environment(options.jobs);
  choice.limit = std::chrono::milliseconds(static_cast<int64_t>(options.timeout * 1000));
  const Opened opened = open_once(choice);

  Records records;
  RunRecord& run = records.run;
  const Machine machine = this_machine();
  run = {version(),
         suite_hash(suite.root),
         opened.name,
         opened.version,
         opened.description,
         opened.device,
         choice.library.string(),
         choice.options,
         machine.host,
         machine.cpu,
         utc_now(),
         machine.cores,
         options.jobs,
         options.selection.profiles,
         !options.selection.ids.empty() || !options.selection.filter.empty(),
         static_cast<int64_t>(plan.size()),
         plan_hash(plan)};

  const fs::path out = options.out.empty() ? fs::path("results") / opened.name : options.out;
  RecordsFile file(out / "records.jsonl");
  file.add(to_json(run));
  Progress progress(run.planned, ::isatty(STDERR_FILENO) == 1, use_colour(STDERR_FILENO));
  run_campaign(
      plan, choice, options.jobs,
      [&](const CaseRecord& record) {
        progress.finished(record);
        return true;
      },
      [&](const CaseRecord& record) {
        file.add(to_json(record));
        records.cases.push_back(record);
      });
  progress.close();
  records.end = EndRecord{static_cast<int64_t>(records.cases.size()),
                          std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count()};
  file.add(to_json(*records.end));
  return write_reports(records, out) ? exit_ok : exit_red;
}

}  // namespace

void add_certify_command(CLI::App& app, const Common& common, int& exit_code) {
  CLI::App* command = app.add_subcommand("certify", "Run the suite on a backend and say whether it is certified");
  command->footer(
      "Examples:\n"
      "  attest certify --backend onednn                      every profile that it claims\n"
      "  attest certify --backend ./mine.so --profile core    this profile, claimed or not\n"
      "  attest certify --backend mine --case no_cache/...    one case again, as a failure's report says\n"
      "\n"
      "The backend runs in worker processes; a crash, a hang or garbage is the verdict of one case, and the run goes "
      "on.\n"
      "Workers share the cores: OMP_NUM_THREADS is set to cores / jobs unless you set it.\n"
      "Writes records.jsonl, junit.xml, report.html and certificate.md.\n"
      "A run of a subset (--case, --filter) certifies nothing.\n"
      "Exit codes: 0 certified (subset: all passed), 1 not, 2 bad input.");
  auto options = std::make_shared<Options>();
  command->add_option("--backend,-b", options->backend, "A name that `attest doctor` lists, or the path of a .so")
      ->required();
  command->add_option("--profile", options->selection.profiles,
                      "Certify this profile (may be repeated); without it, every claimed one");
  command->add_option("--filter", options->selection.filter,
                      "Only cases whose identity line contains this, or matches it as a glob");
  command->add_option("--case", options->selection.ids, "Only this case (may be repeated)");
  command->add_option("--option", options->backend_options, "An option of the backend, name=value (may be repeated)");
  command->add_option("--jobs,-j", options->jobs, "Workers at once")->check(CLI::Range(1, 256))->capture_default_str();
  command->add_option("--timeout", options->timeout, "Seconds that one call of the backend may take")
      ->check(CLI::Range(0.01, 86400.0))
      ->capture_default_str();
  command->add_option("--out,-o", options->out, "Folder for records and reports (default: results/<backend>)");
  command->callback([&common, &exit_code, options] { exit_code = certify(common, *options); });
}

}  // namespace attest
