// SPDX-License-Identifier: Apache-2.0
// attest certify: a backend against the suite.
#include <fcntl.h>
#include <fmt/core.h>
#include <sys/file.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>

#include "cases/sha256.h"
#include "cases/suite.h"
#include "golden/golden.h"
#include "runner/campaign.h"
#include "runner/command.h"
#include "runner/machine.h"
#include "runner/places.h"
#include "runner/reports.h"
#include "runner/unique_fd.h"
#include "runner/version.h"

namespace attest {
namespace fs = std::filesystem;
namespace {

constexpr double kTimeout = 10;

struct Options {
  std::string backend;
  Selection selection;
  std::vector<std::string> backend_options;
  fs::path out;
  double timeout = kTimeout;
  int64_t max_timeouts = 5;
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

/// The suite's cases with their goldens. Also of cases that are in no plan, since others may name them.
class Subjects {
 public:
  explicit Subjects(const Suite& suite) : suite_(suite), manifest_(read_manifest(suite.root)) {
    // A suite that has lost cases would certify too easily.
    for (const auto& [id, entry] : manifest_.cases) {
      if (find_case(suite, id) == nullptr) {
        throw Error::at(manifest_path(suite.root).string(), "has a golden for {}, but that case is not in the suite",
                        id);
      }
    }
  }
  [[nodiscard]] Subject load(const Case& c) const {
    Golden golden = load_golden(suite_.root, manifest_, c);
    const ManifestEntry& entry = manifest_.cases.at(c.id);
    return {&c, std::move(golden), entry.worst_radius, entry.inputs_hash};
  }
  /// Called by several threads.
  const Subject& find(const std::string& id) {
    const std::lock_guard lock(mutex_);
    const auto found = named_.find(id);
    if (found != named_.end()) return found->second;
    const Case* c = find_case(suite_, id);
    if (c == nullptr) throw Error::at(id, "is named by another case, but is not in the suite");
    return named_.emplace(id, load(*c)).first->second;
  }

 private:
  const Suite& suite_;
  Manifest manifest_;
  std::mutex mutex_;
  std::map<std::string, Subject> named_;
};

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

/// The command that runs one case again, wherever it is pasted: with absolute paths, and all that bears on the verdict.
std::string repro_command(const Common& common, const Options& options, const BackendChoice& choice,
                          const std::string& id) {
  const auto absolute = [](const fs::path& path) {
    return shell_quoted(fs::absolute(path).lexically_normal().string());
  };
  std::string command = shell_quoted(common.program);
  const char* suite = std::getenv("ATTEST_SUITE");
  if (!common.suite.empty()) {
    command += " --suite " + absolute(common.suite);
  } else if (suite != nullptr && *suite != '\0') {
    command += " --suite " + absolute(suite);
  }
  const bool by_path = options.backend.find('/') != std::string::npos || options.backend.ends_with(".so");
  command += " certify --backend " + (by_path ? absolute(choice.library) : shell_quoted(options.backend));
  for (const std::string& option : options.backend_options) command += " --option " + shell_quoted(option);
  if (options.timeout != kTimeout) command += fmt::format(" --timeout {}", options.timeout);
  return command + " --case " + id;
}

std::vector<Planned> make_plan(const Suite& suite, const Subjects& subjects, const Common& common,
                               const Options& options, const BackendChoice& choice) {
  std::vector<Planned> plan;
  for (const Case* c : select(suite, options.selection)) {
    plan.push_back({subjects.load(*c), repro_command(common, options, choice, c->id)});
  }
  return plan;
}

std::string plan_hash(const std::vector<Planned>& plan) {
  std::string text;
  for (const Planned& planned : plan) text += planned.c->id + " " + planned.c->hash + "\n";
  return sha256(text).substr(0, 12);
}

/// Appends records as they come, so that a run that is killed has lost nothing. Holds a lock while it lives: a second
/// run into the folder would mix its lines with ours. Workers do not inherit it.
class RecordsFile {
 public:
  explicit RecordsFile(const fs::path& folder) : path_(folder / "records.jsonl") {
    std::error_code made;
    fs::create_directories(folder, made);
    // Opened as it is, and emptied only once it is ours.
    file_.reset(::open(path_.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0666));
    if (made || !file_) throw Error::at(path_.string(), "cannot be written: {}", made ? made.message() : reason());
    if (::flock(file_.get(), LOCK_EX | LOCK_NB) != 0) {
      if (errno == EWOULDBLOCK) throw Error::at(folder.string(), "is in use by another run");
      throw Error::at(path_.string(), "cannot be locked: {}", reason());
    }
    if (::ftruncate(file_.get(), 0) != 0 && errno != EINVAL) {  // a device has no length
      throw Error::at(path_.string(), "cannot be written: {}", reason());
    }
  }
  void add(const Json& json) {
    const std::string line = json.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
    for (size_t done = 0; done < line.size();) {
      const ssize_t written = ::write(file_.get(), line.data() + done, line.size() - done);
      if (written < 0 && errno != EINTR) throw Error::at(path_.string(), "cannot be written: {}", reason());
      if (written > 0) done += static_cast<size_t>(written);
    }
  }

 private:
  static std::string reason() { return std::strerror(errno); }

  fs::path path_;
  UniqueFd file_;
};

int certify(const Common& common, const Options& options) {
  const auto start = std::chrono::steady_clock::now();
  // Not a number is in no range and outside of none, so the parser lets it pass.
  if (!std::isfinite(options.timeout)) throw Error::at("--timeout", "got {}, wanted seconds", options.timeout);
  const Suite suite = load_suite(find_suite(common.suite));
  BackendChoice choice;
  choice.options = parse_options(options.backend_options);
  choice.worker.command = {find_worker().string()};
  choice.worker.environment = worker_environment(options.jobs);
  choice.limit = std::chrono::milliseconds(static_cast<int64_t>(options.timeout * 1000));
  choice.library = find_backend(options.backend);
  Subjects subjects(suite);
  const std::vector<Planned> plan = make_plan(suite, subjects, common, options, choice);
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
         conventions_from_json(opened.declarations, choice.library.string() + ": its declarations"),
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
  RecordsFile file(out);
  file.add(to_json(run));
  Progress progress(run.planned, ::isatty(STDERR_FILENO) == 1, use_colour(STDERR_FILENO));
  int64_t timeouts = 0;
  const auto finished_case = [&](const CaseRecord& record) {
    file.add(to_json(record));
    records.cases.push_back(record);
    progress.finished(record);
    if (record.status == Status::timeout) ++timeouts;
    return timeouts < options.max_timeouts;
  };
  run_campaign(plan, choice, options.jobs, finished_case,
               [&](const std::string& id) -> const Subject& { return subjects.find(id); });
  progress.close();
  sort_by_plan(records.cases);
  const auto finished = static_cast<int64_t>(records.cases.size());
  if (finished == run.planned) {
    records.end = EndRecord{finished, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count()};
    file.add(to_json(*records.end));
  } else {
    fmt::print(stderr, "attest: stopped after {} timeouts, with {} of {} cases run; --max-timeouts allows more\n",
               timeouts, finished, run.planned);
  }
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
  command->add_option("--max-timeouts", options->max_timeouts, "Stop the run, incomplete, after so many timeouts")
      ->check(CLI::Range(1, 1000000))
      ->capture_default_str();
  command->add_option("--out,-o", options->out, "Folder for records and reports (default: results/<backend>)");
  command->callback([&common, &exit_code, options] { exit_code = certify(common, *options); });
}

}  // namespace attest
