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
#include <cstring>
#include <memory>

#include "cases/sha256.h"
#include "cases/suite.h"
#include "golden/golden.h"
#include "runner/backend_arguments.h"
#include "runner/campaign.h"
#include "runner/explain_run.h"
#include "runner/machine.h"
#include "runner/reports.h"
#include "runner/subjects.h"
#include "runner/unique_fd.h"
#include "runner/version.h"

namespace attest {
namespace fs = std::filesystem;
namespace {

// What a failing run may take longer for its diagnosis.
constexpr double kDiagnosisSeconds = 10;

struct Options {
  BackendArguments backend;
  Selection selection;
  fs::path out;
  int64_t max_timeouts = 5;
  bool no_diagnosis = false;
};

std::vector<Planned> make_plan(const Suite& suite, const Subjects& subjects, const Common& common,
                               const Options& options, const BackendChoice& choice) {
  const std::string repro = backend_command(common, "certify", options.backend, choice) + " --case ";
  std::vector<Planned> plan;
  for (const Case* c : select(suite, options.selection)) plan.push_back({subjects.load(*c), repro + c->id});
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
  const BackendChoice choice = choose_backend(options.backend);
  const Suite suite = load_suite(find_suite(common.suite));
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
         options.backend.jobs,
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
  if (opened.without_device()) {
    for (const Planned& planned : plan) {
      CaseRecord record = record_of(*planned.c, planned.repro);
      record.status = Status::unsupported;
      record.reason = opened.reply.message;
      finished_case(record);
    }
  } else {
    run_campaign(plan, choice, options.backend.jobs, finished_case, subjects.finder());
  }
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
  const auto failing = [](const CaseRecord& record) {
    return record.status != Status::pass && record.status != Status::unsupported;
  };
  if (!options.no_diagnosis && std::any_of(records.cases.begin(), records.cases.end(), failing)) {
    records.diagnosis = diagnose_run(suite, subjects, choice, run.conventions, records.cases,
                                     {.seconds = kDiagnosisSeconds, .jobs = options.backend.jobs});
    // A run that was stopped ends without its end, and nothing may follow.
    if (records.end) file.add(to_json(*records.diagnosis));
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
      "  attest certify --python mine.py:attention            a function on PyTorch or NumPy arrays\n"
      "\n"
      "The backend runs in worker processes; a crash, a hang or garbage is the verdict of one case, and the run goes "
      "on.\n"
      "Workers share the cores: OMP_NUM_THREADS is set to cores / jobs unless you set it.\n"
      "Writes records.jsonl, junit.xml, report.html and certificate.md.\n"
      "A run of a subset (--case, --filter) certifies nothing.\n"
      "If cases fail, the known bug that would do the same is looked for (`attest diagnose` says more).\n"
      "Exit codes: 0 certified (subset: all passed), 1 not, 2 bad input.");
  auto options = std::make_shared<Options>();
  add_backend_arguments(*command, options->backend);
  command->add_option("--profile", options->selection.profiles,
                      "Certify this profile (may be repeated); without it, every claimed one");
  command->add_option("--filter", options->selection.filter,
                      "Only cases whose identity line contains this, or matches it as a glob");
  command->add_option("--case", options->selection.ids, "Only this case (may be repeated)");
  command->add_option("--max-timeouts", options->max_timeouts, "Stop the run, incomplete, after so many timeouts")
      ->check(CLI::Range(1, 1000000))
      ->capture_default_str();
  command->add_flag("--no-diagnosis", options->no_diagnosis, "Do not look for the bug behind failing cases");
  command->add_option("--out,-o", options->out, "Folder for records and reports (default: results/<backend>)");
  command->callback([&common, &exit_code, options] { exit_code = certify(common, *options); });
}

}  // namespace attest
