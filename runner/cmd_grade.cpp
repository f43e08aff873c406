// SPDX-License-Identifier: Apache-2.0
// attest grade: points for submissions to the challenge, one or a class.
#include <fcntl.h>
#include <sys/random.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <memory>

#include "cases/suite.h"
#include "runner/command.h"
#include "runner/grade_batch.h"
#include "runner/grade_report.h"
#include "runner/grading.h"
#include "runner/markup.h"
#include "runner/pack.h"
#include "runner/report_text.h"
#include "runner/reports.h"
#include "runner/version.h"

namespace attest {
namespace fs = std::filesystem;
namespace {

constexpr size_t kSecretBytes = 32;

struct Options {
  fs::path file, batch, out, pack, secret, tests, visible, manual, output;
  std::string format = "text";
  bool weights = false, verbose = false, insecure = false, diagnosis = true, visible_only = false;
  double limit = 10, loading = 60, total = 120, diagnosis_seconds = 5;
  int jobs = default_jobs();
};

std::vector<std::byte> fresh_secret() {
  std::vector<std::byte> secret(kSecretBytes);
  if (::getrandom(secret.data(), secret.size(), 0) != static_cast<ssize_t>(secret.size())) {
    throw Error(fmt::format("no random numbers: {}", std::strerror(errno)));
  }
  return secret;
}

/// The secret of a batch that was given none: made once, so that a run that goes on has the same cases.
std::vector<std::byte> kept_secret(const fs::path& file) {
  if (!fs::exists(file)) {
    const auto secret = fresh_secret();
    // Never readable by others, not even for a moment.
    const UniqueFd fd(::open(file.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
    if (!fd || ::write(fd.get(), secret.data(), secret.size()) != static_cast<ssize_t>(secret.size()) ||
        ::fsync(fd.get()) != 0) {
      throw Error::at(file.string(), "cannot be written: {}", std::strerror(errno));
    }
  }
  return read_secret(file);
}

/// The cases to grade by, from whatever the options name. `keep`: where a secret that nobody gave is kept; empty: it is
/// for this run only.
Pack find_pack(const Options& options, const fs::path& root, const fs::path& keep) {
  if (!options.pack.empty()) return read_pack(options.pack);
  const std::vector<std::byte> secret = !options.secret.empty() ? read_secret(options.secret)
                                        : !keep.empty()         ? kept_secret(keep)
                                                                : fresh_secret();
  if (options.secret.empty() && keep.empty()) {
    std::fprintf(stderr, "attest: no --pack or --secret: the hidden cases are made for this run only\n");
  }
  const fs::path visible = options.visible.empty() ? root / "cases/challenge/test_cases.json" : options.visible;
  if (options.visible_only) return fill_challenge(visible, {}, secret, options.jobs);
  return options.tests.empty() ? make_pack(secret, visible, options.jobs)
                               : fill_challenge(visible, options.tests, secret, options.jobs);
}

std::chrono::milliseconds milliseconds_of(double seconds) {
  return std::chrono::milliseconds(static_cast<int64_t>(std::ceil(seconds * 1000)));
}

GradingSetup setup_of(const Options& options, const fs::path& root, bool grader) {
  GradingSetup setup;
  setup.limit = milliseconds_of(options.limit);
  setup.opening = milliseconds_of(options.loading);
  setup.total = milliseconds_of(options.total);
  setup.insecure = options.insecure;
  setup.diagnose = options.diagnosis && grader;
  setup.diagnosis_seconds = options.diagnosis_seconds;
  setup.suite = root;
  setup.attest_version = version();
  return setup;
}

/// Grades a file, or what is wrong with it.
Grade grade_file(const Grading& grading, const fs::path& file, const std::string& name, const std::string& problem,
                 const Scheme& scheme) {
  SubmissionFile read;
  std::string wrong = problem;
  if (wrong.empty()) {
    try {
      read = read_submission(file);
    } catch (const Error& error) {
      wrong = error.what();
    }
  }
  return grade_run(wrong.empty() ? grading.run(read, name) : grading.refuse(name, wrong), scheme);
}

/// {"review": ..., "bonus": ...}, or {"submissions": {"name": {...}, ...}}.
std::map<std::string, ManualGrade> read_manual(const fs::path& path) {
  std::map<std::string, ManualGrade> manual;
  if (path.empty()) return manual;
  const Json json = read_json_file(path);
  if (!json.is_object() || !json.contains("submissions")) {
    manual[""] = manual_from_json(json, path.string());
    return manual;
  }
  Fields fields(json, path.string());
  for (const auto& [name, given] : fields.object("submissions").items()) {
    manual[name] = manual_from_json(given, fields.place("submissions") + "." + name);
  }
  fields.finish();
  return manual;
}

std::string report(const Grade& grade, const Options& options) {
  const Reader reader = options.verbose ? Reader::grader : Reader::student;
  if (options.format == "json") return to_json(grade).dump(2) + "\n";
  if (options.format == "gradescope") return gradescope_report(grade, reader);
  if (options.format == "junit") return grade_junit(grade, reader);
  return grade_text(grade, reader, options.output.empty() && use_colour(STDOUT_FILENO));
}

int grade_one(const Common& common, const Options& options) {
  const fs::path root = find_suite(common.suite);
  const auto manual = read_manual(options.manual);
  const std::string name = printable(options.file.filename().string());
  const bool grader = options.verbose || options.format == "json";
  for (const auto& [known, given] : manual) {
    if (!known.empty() && known != name) {
      throw Error::at(options.manual.string(), "got points for \"{}\", wanted \"{}\", which is graded", known, name);
    }
  }
  if (!fs::exists(fs::symlink_status(options.file))) throw Error::at(options.file.string(), "there is no such file");
  const Pack pack = find_pack(options, root, {});
  for (const std::string& warning : pack.warnings) std::fprintf(stderr, "attest: %s\n", warning.c_str());
  const Grading grading(pack, setup_of(options, root, grader));
  Grade grade = grade_file(grading, options.file, name, "", Scheme{.weights = options.weights});
  for (const std::string& known : {std::string(), name}) {
    if (const auto found = manual.find(known); found != manual.end()) grade.manual = found->second;
  }
  const std::string text = report(grade, options);
  if (options.output.empty()) {
    fmt::print("{}", text);
  } else {
    write_file(options.output, text);
  }
  return grade.status == Status::pass ? exit_ok : exit_red;
}

/// What grades depend on beside the submission, in words.
std::string terms_of(const Options& options, const Pack& pack, const Grading& grading) {
  return fmt::format("pack {}, points {}, {} s a call, {} s to load, {} s in all, {}{}, attest {}", pack.id,
                     options.weights ? "by the organisers' weights" : "10/25/25/10", options.limit, options.loading,
                     options.total, grading.conditions(), options.insecure ? ", --insecure" : "", version());
}

int grade_class(const Common& common, const Options& options) {
  const fs::path root = find_suite(common.suite);
  auto manual = read_manual(options.manual);
  const std::vector<BatchSubmission> submissions = find_submissions(options.batch);
  for (const auto& [name, given] : manual) {
    const auto is_it = [&, &wanted = name](const BatchSubmission& one) { return !one.ignored && one.name == wanted; };
    if (std::none_of(submissions.begin(), submissions.end(), is_it)) {
      throw Error::at(options.manual.string(), "got points for \"{}\", which is no submission of {}", name,
                      options.batch.string());
    }
  }
  const BatchFolder folder(options.out);
  const Pack pack = find_pack(options, root, folder.path() / "secret");
  for (const std::string& warning : pack.warnings) std::fprintf(stderr, "attest: %s\n", warning.c_str());
  const Grading grading(pack, setup_of(options, root, true));
  // A run that was killed in the middle of a report has left a part of it. The folder is locked: nobody else writes.
  for (const char* where : {"for_students", "for_graders"}) {
    std::error_code none;
    for (fs::directory_iterator entry(folder.path() / where, none), end; !none && entry != end; entry.increment(none)) {
      std::error_code kept;
      if (entry->path().extension() == ".tmp") fs::remove(entry->path(), kept);
    }
  }
  Batch batch(folder, terms_of(options, pack, grading));
  const Scheme scheme{.weights = options.weights};

  std::vector<Grade> grades;
  const auto told = [&](const Batch::Told& one) {
    const std::string place = fmt::format("{:>{}}/{}", one.done, std::to_string(one.all).size(), one.all);
    if (one.grade == nullptr) {
      fmt::print("{}  not graded  {}: {}\n", place, one.submission->name, printable(one.problem));
    } else {
      grades.push_back(*one.grade);
      Grade& grade = grades.back();
      if (const auto found = manual.find(one.submission->name); found != manual.end()) grade.manual = found->second;
      fmt::print("{}  {}  {}{}\n", place, grade_line(grade), seconds_text(grade.run.seconds),
                 one.resumed ? " (before)" : "");
      for (const auto& [where, reader] :
           {std::pair{"for_students", Reader::student}, {"for_graders", Reader::grader}}) {
        fs::create_directories(folder.path() / where);
        write_file(folder.path() / where / (file_name(one.submission->name) + ".txt"),
                   grade_text(grade, reader, false));
      }
    }
    std::fflush(stdout);
  };
  const auto hash = [](const BatchSubmission& one) -> std::string {
    try {
      return one.problem.empty() ? read_submission(one.file).sha256 : "";
    } catch (const Error&) {
      return "";
    }
  };
  const auto grade = [&](const BatchSubmission& one) {
    return grade_file(grading, one.file, one.name, one.problem, scheme);
  };
  // The submission's own limits end it long before.
  const auto limit = milliseconds_of(2 * (options.total + options.loading) + options.diagnosis_seconds + 120);
  const size_t failed = batch.run(submissions, options.jobs, limit, hash, grade, told);

  std::sort(grades.begin(), grades.end(),
            [](const Grade& a, const Grade& b) { return a.run.submission < b.run.submission; });
  folder.write("grades.csv", grades_csv(grades));
  double sum = 0;
  for (const Grade& one : grades) sum += one.automatic;
  fmt::print("\n{} graded, {} with all automatic points, {} on average{}; {}\n",
             count_text(static_cast<int64_t>(grades.size()), "submission"),
             std::count_if(grades.begin(), grades.end(), [](const Grade& one) { return one.status == Status::pass; }),
             points_text(grades.empty() ? 0 : sum / static_cast<double>(grades.size())),
             failed == 0 ? "" : fmt::format("; {} NOT GRADED, the next run tries again", failed),
             (folder.path() / "grades.csv").string());
  return failed == 0 ? exit_ok : exit_red;
}

void check(const Options& options) {
  const auto both = [](const char* a, const fs::path& first, const char* b, const fs::path& second) {
    if (!first.empty() && !second.empty()) throw Error(fmt::format("{} and {} exclude each other", a, b));
  };
  both("FILE", options.file, "--batch", options.batch);
  both("--pack", options.pack, "--secret", options.secret);
  both("--pack", options.pack, "--tests", options.tests);
  both("--pack", options.pack, "--visible", options.visible);
  if (options.visible_only && !(options.pack.empty() && options.tests.empty())) {
    throw Error("--visible-only leaves no use for --pack and --tests");
  }
  if (options.file.empty() && options.batch.empty()) throw CLI::RequiredError("FILE or --batch");
  if (options.batch.empty() != options.out.empty()) throw Error("--batch DIR and --out DIR go together");
  if (!options.batch.empty() && (options.format != "text" || !options.output.empty())) {
    throw Error("--batch writes its table and reports into --out; --format and --output are for a single submission");
  }
  for (const double seconds : {options.limit, options.loading, options.total, options.diagnosis_seconds}) {
    if (!std::isfinite(seconds)) throw Error(fmt::format("got {} for a limit, wanted seconds", seconds));
  }
}

}  // namespace

void add_grade_command(CLI::App& app, const Common& common, int& exit_code) {
  CLI::App* command = app.add_subcommand(
      "grade",
      "Grade submissions to the challenge: a kv_attention.py, or a library with our interface\n"
      "\n"
      "  attest grade kv_attention.py --pack pack                 what its author may see\n"
      "  attest grade kv_attention.py --pack pack --verbose       and what a grader sees, with a diagnosis\n"
      "  attest grade --batch class --out graded --pack pack      a class; the same command goes on after a kill\n"
      "  attest grade kv_attention.py --secret s --format gradescope -o /autograder/results/results.json\n"
      "\n"
      "Points: visible case 10, hidden cases 1-4 25, 5-8 25, 9-10 10 (spec/grading.md). Submissions run in a sandbox;\n"
      "without one there is no grade, unless --insecure.\n"
      "Exit codes: 0 all automatic points (--batch: every submission is graded), 1 points are lost (--batch: some "
      "could\n"
      "not be graded), 2 wrong arguments or broken input, or this machine cannot grade.");
  auto options = std::make_shared<Options>();
  command->add_option("file", options->file, "The submission, .py or .so")->type_name("FILE");
  command->add_option("--batch", options->batch, "A folder of submissions: files, or a folder for each student")
      ->type_name("DIR");
  command
      ->add_option("--out", options->out, "--batch: folder for the journal, grades.csv, for_students/ and for_graders/")
      ->type_name("DIR");
  command->add_option("--pack", options->pack, "Cases made by `attest pack make`")->type_name("DIR");
  command->add_option("--secret", options->secret, "Makes the cases from this secret (16 bytes or more)")
      ->type_name("FILE");
  command->add_option("--tests", options->tests, "The organisers' test_cases_hidden.json instead of fresh cases")
      ->type_name("FILE");
  command->add_option("--visible", options->visible, "Their test_cases.json (default: the suite's)")->type_name("FILE");
  command->add_flag(
      "--visible-only", options->visible_only,
      "No hidden cases: the visible one and the interface, for the author (cases/challenge/validator.py)");
  command->add_flag("--weights", options->weights, "Share the hidden points out by the organisers' weights");
  command
      ->add_option("--manual", options->manual,
                   "What a person gave, JSON: {\"review\": 0-30, \"bonus\": 0-10, \"comment\", \"grader\"}; "
                   "for several {\"submissions\": {\"NAME\": {...}}}")
      ->type_name("FILE");
  command->add_option("--format", options->format, "text, json (complete, for graders), gradescope or junit")
      ->check(CLI::IsMember({"text", "json", "gradescope", "junit"}))
      ->capture_default_str();
  command->add_option("--output,-o", options->output, "Write there instead of to standard output")->type_name("FILE");
  command->add_flag("--verbose,-v", options->verbose, "For graders: findings of hidden cases, and the diagnosis");
  command->add_flag("--insecure", options->insecure, "Grade without the sandbox's missing layers; the report says so");
  command->add_flag("!--no-diagnosis", options->diagnosis, "Do not look for the bugs that explain the failures");
  command->add_option("--jobs,-j", options->jobs, "--batch: submissions at once")
      ->check(CLI::Range(1, 256))
      ->capture_default_str();
  command->add_option("--timeout", options->limit, "Seconds that one call of a submission may take")
      ->check(CLI::Range(0.01, 86400.0))
      ->capture_default_str();
  command
      ->add_option("--loading-timeout", options->loading, "Seconds until a submission must be loaded, PyTorch included")
      ->check(CLI::Range(0.01, 86400.0))
      ->capture_default_str();
  command->add_option("--total-timeout", options->total, "Seconds that a submission may take in all")
      ->check(CLI::Range(0.01, 86400.0))
      ->capture_default_str();
  command->add_option("--diagnosis-seconds", options->diagnosis_seconds, "Seconds that a diagnosis may take")
      ->check(CLI::Range(0.1, 86400.0))
      ->capture_default_str();
  command->callback([&common, &exit_code, options] {
    check(*options);
    exit_code = options->batch.empty() ? grade_one(common, *options) : grade_class(common, *options);
  });
}

}  // namespace attest
