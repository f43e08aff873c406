// SPDX-License-Identifier: Apache-2.0
#include "runner/grading.h"

#include <fcntl.h>
#include <fmt/ranges.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <ctime>
#include <map>
#include <random>
#include <tuple>

#include "cases/catalogue.h"
#include "cases/sha256.h"
#include "runner/bitwise.h"
#include "runner/challenge_bugs.h"
#include "runner/execute.h"
#include "runner/explain_run.h"
#include "runner/grading_checks.h"
#include "runner/markup.h"
#include "runner/places.h"
#include "runner/playing.h"
#include "runner/temporary_folder.h"
#include "runner/unique_fd.h"

namespace attest {
namespace fs = std::filesystem;
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr size_t kLargestPython = size_t{1} << 20;
constexpr size_t kLargestLibrary = size_t{64} << 20;
// Words of a submission that are kept: enough for a person, no more.
constexpr size_t kWords = 2000;
constexpr int kRuns = 2;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

std::string now_utc() {
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  ::gmtime_r(&now, &utc);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &utc);
  return text;
}

Status status_of(const WorkerFailure& failure) {
  switch (failure.kind) {
    case WorkerFailure::Kind::died:
      return Status::crash;
    case WorkerFailure::Kind::timed_out:
      return Status::timeout;
    case WorkerFailure::Kind::garbage:
      return Status::error;
  }
  return Status::error;
}

/// What a submission said, fit for a record.
std::string words(std::string_view text) {
  return shortened(printable(text), kWords);
}

bool same_rows(const PackCase& one, const std::vector<StepOutcome>& first, const std::vector<StepOutcome>& again,
               const Timeline& timeline, std::vector<Finding>& findings) {
  RunBits reference(*one.c), other(*one.c);
  for (size_t s = 0; s < timeline.size(); ++s) {
    if (timeline[s].step.kind != StepKind::attend || timeline[s].rows.empty()) continue;
    if (s < first.size()) reference.add(timeline[s], s, first[s]);
    if (s < again.size()) other.add(timeline[s], s, again[s]);
  }
  BitDifference difference = compare_again(reference, other, "I1", "the same call again");
  if (!difference.finding) return true;
  findings.push_back(std::move(*difference.finding));
  return false;
}

}  // namespace

SubmissionFile read_submission(const fs::path& file) {
  SubmissionFile read;
  const std::string ending = file.extension().string();
  if (ending == ".py") {
    read.kind = SubmissionKind::python;
  } else if (ending == ".so") {
    read.kind = SubmissionKind::library;
  } else {
    throw Error::at(file.string(), "wanted a file that ends in .py or .so");
  }
  // A link could lead anywhere, and a pipe would never end.
  const UniqueFd fd(::open(file.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
  if (!fd) {
    throw Error::at(
        file.string(), "{}",
        errno == ELOOP ? "is a symbolic link, wanted a file" : fmt::format("cannot be read: {}", std::strerror(errno)));
  }
  struct stat facts {};
  if (::fstat(fd.get(), &facts) != 0 || !S_ISREG(facts.st_mode)) throw Error::at(file.string(), "is no regular file");
  const size_t most = read.kind == SubmissionKind::python ? kLargestPython : kLargestLibrary;
  char buffer[1 << 16];
  for (;;) {
    const ssize_t size = ::read(fd.get(), buffer, sizeof buffer);
    if (size < 0 && errno == EINTR) continue;
    if (size < 0) throw Error::at(file.string(), "cannot be read: {}", std::strerror(errno));
    if (size == 0) break;
    read.bytes.append(buffer, static_cast<size_t>(size));
    if (read.bytes.size() > most) throw Error::at(file.string(), "is larger than {} bytes", most);
  }
  read.sha256 = sha256(read.bytes);
  return read;
}

/// One submission while it is run.
class Grading::Session {
 public:
  /// All must outlive this.
  Session(const Grading& grading, const SubmissionFile& file, GradeRun& run)
      : grading_(grading), setup_(grading.setup_), file_(file), run_(run), start_(Clock::now()) {}

  void refuse() {
    take_cases();
    refuse_all();
    hand_over();
  }

  void go() {
    take_cases();
    if (open()) {
      // What may be shown to a student comes first: nothing that is said there can be about hidden cases.
      play(false);
      check_interface();
      play(true);
    } else {
      refuse_all();
    }
    run_.workers = executor_ ? executor_->workers() : 0;
    if (Worker* worker = executor_ ? executor_->worker() : nullptr; worker != nullptr) {
      run_.printed = words(worker->output());
    }
    if (executor_) conventions_ = executor_->conventions();
    for (const SandboxLayer& layer : executor_ ? executor_->layers() : std::vector<SandboxLayer>()) {
      run_.layers.push_back({layer.name, layer.active, layer.why});
    }
    executor_.reset();
    run_.seconds = seconds_since(start_);
    if (setup_.diagnose) diagnose();
    hand_over();
  }

 private:
  struct Part {
    explicit Part(const PackCase& one) : pack_case(&one), subject(subject_of(one)), timeline(attest::play(*one.c)) {
      result.number = one.number;
      result.name = one.name;
      result.category = one.category;
      result.weight = one.weight;
      result.hidden = one.hidden;
      result.part = one.part;
      result.id = one.c->id;
      result.status = Status::pass;
    }
    const PackCase* pack_case;
    Subject subject;
    Timeline timeline;
    PartResult result;
    CaseRecord record;  ///< Of the run that decided.
    std::vector<StepOutcome> outcomes;
    int runs = 0;
  };

  void take_cases() {
    for (const PackCase& one : grading_.pack_.cases) parts_.emplace_back(one);
  }
  void hand_over() {
    for (Part& part : parts_) run_.parts.push_back(std::move(part.result));
  }

  [[nodiscard]] milliseconds left() const {
    return std::max(milliseconds(0), setup_.total - std::chrono::duration_cast<milliseconds>(Clock::now() - start_));
  }

  bool open() {
    const fs::path staged =
        folder_.path() / (file_.kind == SubmissionKind::python ? "kv_attention.py" : "submission.so");
    write_file(staged, file_.bytes);
    fs::permissions(staged, fs::perms::owner_read | fs::perms::group_read | fs::perms::others_read);
    executor_.emplace(grading_.backend(file_.kind, staged));
    executor_->set_deadline(start_ + setup_.total);
    const auto opened = executor_->open();
    run_.opening = seconds_since(start_);
    if (!opened) {
      refused_ = status_of(opened.error());
      run_.refused = words(opened.error().text);
    } else if (opened->reply.status != ATTEST_OK) {
      refused_ = Status::error;
      run_.refused = words(opened->reply.message.empty() ? "it gives no reason" : opened->reply.message);
    } else {
      run_.worker =
          words(file_.kind == SubmissionKind::python ? opened->description : opened->name + " " + opened->version);
    }
    return run_.refused.empty();
  }

  void refuse_all() {
    for (Part& part : parts_) {
      part.result.status = refused_;
      part.result.reason = "it could not be loaded";
    }
    const auto refuse = [&](CheckResult check) {
      check.status = refused_;
      check.reason = "it could not be loaded";
      run_.checks.push_back(std::move(check));
    };
    if (file_.kind == SubmissionKind::library) {
      refuse(library_check(true));
      refuse(library_check(false));
      return;
    }
    for (const InterfaceCheck& check : interface_checks(1, 4)) refuse(judge_check(check, {}));
  }

  /// All parts of the visible case or of the hidden ones, each twice, in an order that nobody can foresee.
  void play(bool hidden) {
    std::vector<Part*> order;
    for (Part& part : parts_) {
      if (part.pack_case->hidden == hidden) order.insert(order.end(), kRuns, &part);
    }
    std::shuffle(order.begin(), order.end(), random_);
    for (Part* part : order) {
      if (part->result.status == Status::pass) play(*part);
    }
  }

  void play(Part& part) {
    const milliseconds rest = left();
    if (rest == milliseconds(0)) {
      part.result.status = Status::timeout;
      part.result.reason =
          fmt::format("the {} s that a submission may take were over before", setup_.total.count() / 1000);
      part.record.status = Status::timeout;
      part.record.id = part.result.id;
      return;
    }
    executor_->set_limit(std::min(setup_.limit, rest), std::min(setup_.opening, rest));
    const auto start = Clock::now();
    std::vector<StepOutcome> outcomes;
    CaseRecord record = executor_->run(part.subject, "", &outcomes);
    part.result.seconds += seconds_since(start);
    if (record.status == Status::pass && part.runs > 0 &&
        !same_rows(*part.pack_case, part.outcomes, outcomes, part.timeline, record.findings)) {
      record.status = Status::fail;
      record.reason = "the same call gives other results the second time: " + record.findings.back().text;
    }
    ++part.runs;
    part.result.status = record.status;
    part.result.reason = words(record.reason);
    part.result.findings = record.findings;
    for (Finding& finding : part.result.findings) finding.text = words(finding.text);
    if (record.worst_ratio)
      part.result.worst_ratio = std::max(part.result.worst_ratio.value_or(0), *record.worst_ratio);
    part.record = std::move(record);
    part.outcomes = std::move(outcomes);
  }

  // ---- the interface -----------------------------------------------------------------------------------------------

  void check_interface() {
    const auto small = std::min_element(parts_.begin(), parts_.end(), [](const Part& a, const Part& b) {
      const Problem &left = a.pack_case->c->problem, &right = b.pack_case->c->problem;
      // Never a hidden one's sizes, if there is another.
      return std::tuple(a.pack_case->hidden, left.d_model) < std::tuple(b.pack_case->hidden, right.d_model);
    });
    if (small == parts_.end()) return;
    if (file_.kind == SubmissionKind::library) {
      run_.checks.push_back(check_library(*small->pack_case->c, true));
      run_.checks.push_back(check_library(*small->pack_case->c, false));
    } else {
      check_python(*small);
    }
  }

  /// Why no answer came, as a check's result.
  static void failed(CheckResult& result, const WorkerFailure& failure) {
    result.status = status_of(failure);
    result.reason = words(failure.text);
  }

  void check_python(const Part& part) {
    const Case& c = *part.pack_case->c;
    for (const InterfaceCheck& check : interface_checks(c.problem.d_model, c.problem.capacity)) {
      run_.checks.push_back(check_python(part, check));
    }
  }

  CheckResult check_python(const Part& part, const InterfaceCheck& check) {
    CheckResult result = judge_check(check, {});
    const Material material(part.subject);
    Playing playing(Script{part.subject.c, &material.timeline, &material.inputs, nullptr});
    playing.start({});
    Worker* worker = ready(result);
    if (worker == nullptr) return result;
    const auto prepared = worker->prepare(part.subject.c->problem, playing.session().arena(),
                                          playing.session().problem_tensors(), limit());
    if (!prepared) return failed(result, prepared.error()), result;
    if (prepared->status != ATTEST_OK) {
      result.status = Status::error;
      result.reason = words(prepared->message);
      return result;
    }
    std::vector<Json> details;
    for (const Probe& probe : check.probes) {
      const auto answer = worker->probe(probe.what, probe.arguments, limit());
      if (!answer) return failed(result, answer.error()), result;
      if (answer->status != ATTEST_OK) {
        result.status = Status::error;
        result.reason = words(answer->message);
        return result;
      }
      details.push_back(answer->details);
    }
    result = judge_check(check, details);
    result.reason = words(result.reason);
    if (const auto released = worker->release(limit()); !released) failed(result, released.error());
    return result;
  }

  /// A step that must be refused, behind one that must not.
  CheckResult check_library(const Case& like, bool overflow) {
    Case c = like;
    c.id = "interface";
    c.problem.batch = 1;
    c.problem.capacity = 4;
    c.inputs = InputSpec{};
    c.inputs.recipe = "gaussian";
    c.steps.clear();
    Step good, bad;
    good.queries = good.keys = {3};
    bad.queries = bad.keys = {overflow ? 2 : 1};
    bad.expect = overflow ? Expect::overflow : Expect::invalid;
    if (!overflow) bad.malformed = Malformed{"query", "rank"};
    c.steps = {good, bad};

    CheckResult result = library_check(overflow);
    const Timeline timeline = attest::play(c);
    const Inputs inputs = generate_inputs(c, timeline);
    Playing playing(Script{&c, &timeline, &inputs, nullptr});
    playing.start({});
    playing.keep_outcomes();
    Worker* worker = ready(result);
    if (worker == nullptr) return result;
    const auto prepared =
        worker->prepare(c.problem, playing.session().arena(), playing.session().problem_tensors(), limit());
    if (!prepared) return failed(result, prepared.error()), result;
    const attest_status wanted[] = {ATTEST_OK, overflow ? ATTEST_OVERFLOW : ATTEST_INVALID};
    attest_status got = prepared->status;
    for (size_t s = 0; s < 2 && got == ATTEST_OK; ++s) {
      const auto reply = worker->run(playing.begin(s), limit());
      if (!reply) return failed(result, reply.error()), result;
      got = reply->status;
      playing.end(s, *reply);
      if (got == wanted[s]) continue;
      result.status = Status::fail;
      result.reason =
          fmt::format("step {}: wanted {}, got {}", s, *protocol::name_of(wanted[s]), *protocol::name_of(got));
      got = ATTEST_ERROR;
    }
    if (prepared->status != ATTEST_OK) {
      result.status = Status::fail;
      result.reason = words("prepare: " + prepared->message);
    } else if (result.status == Status::pass && playing.outcomes().size() == 2) {
      const StepOutcome& refused = playing.outcomes()[1];
      const auto same = [](const Dense<float>& a, const Dense<float>& b) {
        return a.data.size() == b.data.size() &&
               (a.data.empty() || std::memcmp(a.data.data(), b.data.data(), a.data.size() * sizeof(float)) == 0);
      };
      if (!same(refused.before.key, refused.after.key) || !same(refused.before.value, refused.after.value)) {
        result.status = Status::fail;
        result.reason = "the step was refused, but had already changed the cache";
      }
    }
    if (const auto released = worker->release(limit()); !released) failed(result, released.error());
    return result;
  }

  [[nodiscard]] milliseconds limit() const { return std::max(milliseconds(1), std::min(setup_.limit, left())); }

  /// A worker that is up; null with the reason in the result.
  Worker* ready(CheckResult& result) {
    const auto opened = executor_->open();
    if (!opened) {
      failed(result, opened.error());
    } else if (opened->reply.status != ATTEST_OK) {
      result.status = Status::error;
      result.reason = words(opened->reply.message);
    }
    return executor_->worker();
  }

  // ---- the diagnosis -----------------------------------------------------------------------------------------------

  /// The challenge's own bugs, any number of them at once.
  std::optional<Diagnosis> challenge_bugs(const Catalogue& catalogue, Clock::time_point deadline) const {
    std::vector<PlayedPart> played;
    for (const Part& part : parts_) {
      PlayedPart one{part.pack_case->c.get(), &part.timeline, part.pack_case->inputs.get(), &part.outcomes};
      one.passed = part.record.status == Status::pass;
      one.answered = one.passed || part.record.status == Status::fail || part.record.status == Status::error;
      one.cache_is_right =
          std::none_of(part.record.findings.begin(), part.record.findings.end(), [](const Finding& finding) {
            return finding.kind == "cache" || finding.kind == "guard" || finding.kind == "input" ||
                   finding.kind == "length";
          });
      played.push_back(one);
    }
    return find_challenge_bugs(catalogue, played, deadline);
  }

  void diagnose() {
    std::vector<CaseRecord> records;
    for (const Part& part : parts_) records.push_back(part.record);
    const bool failing = std::any_of(parts_.begin(), parts_.end(), [](const Part& part) {
      return part.record.status == Status::fail || part.record.status == Status::error;
    });
    if (!run_.refused.empty() || !failing) return;
    const auto start = Clock::now();
    const auto deadline = start + milliseconds(static_cast<int64_t>(1000 * setup_.diagnosis_seconds));
    Diagnosis diagnosis;
    diagnosis.verdict = Diagnosis::Verdict::unavailable;
    try {
      const Catalogue catalogue = load_catalogue(setup_.suite);
      if (auto found = challenge_bugs(catalogue, deadline)) {
        found->seconds = seconds_since(start);
        run_.diagnosis = std::move(found);
        return;
      }
      const fs::path library = find_backend("mutants");
      const auto part_of = [&](const std::string& id) -> const Part& {
        const auto found =
            std::find_if(parts_.begin(), parts_.end(), [&](const Part& part) { return part.result.id == id; });
        if (found == parts_.end()) throw Error::at(id, "is no case of the pack");
        return *found;
      };
      Materials materials([&](const std::string& id) -> const Subject& { return part_of(id).subject; });
      const auto actual = [&](const Exhibit& exhibit) {
        const Part& part = part_of(exhibit.id);
        Performance performance;
        performance.status = part.record.status;
        performance.reason = part.record.reason;
        performance.findings = part.record.findings;
        performance.worst_ratio = part.record.worst_ratio;
        performance.outcomes = part.outcomes;
        return performance;
      };
      diagnosis = diagnose_cases({catalogue, materials, records, conventions_, actual},
                                 {.seconds = setup_.diagnosis_seconds - seconds_since(start),
                                  .jobs = setup_.diagnosis_jobs,
                                  .trace = false,
                                  .library = library});
    } catch (const Error& error) {
      diagnosis.line = fmt::format("no diagnosis: {}", error.what());
    }
    run_.diagnosis = std::move(diagnosis);
  }

  const Grading& grading_;
  const GradingSetup& setup_;
  const SubmissionFile& file_;
  GradeRun& run_;
  Clock::time_point start_;
  TemporaryFolder folder_;
  std::optional<Executor> executor_;
  std::vector<Part> parts_;
  Status refused_ = Status::error;
  Conventions conventions_;
  std::random_device random_;
};

Grading::Grading(const Pack& pack, GradingSetup setup) : pack_(pack), setup_(std::move(setup)) {
  if (pack_.cases.empty()) throw Error("the pack has no cases");
  try {
    python_ = choose_python(true);
    python_worker_ = find_python_worker();
  } catch (const Error& error) {
    without_python_ = error.what();
  }
  // Says what is missing before the first submission rather than in its grade.
  const Sandbox box(policy(SubmissionKind::library, {}));
  for (const SandboxLayer& layer : box.layers()) {
    if (layer.active) layers_.push_back(layer.name);
  }
}

Grading::~Grading() = default;

std::string Grading::conditions() const {
  const std::string python = without_python_.empty() ? fmt::format("Python {}, PyTorch {}, NumPy {}", python_.version,
                                                                   python_.torch, python_.numpy)
                                                     : "no Python";
  return fmt::format("{}, sandbox of {}", python,
                     layers_.empty() ? "nothing" : fmt::format("{}", fmt::join(layers_, "+")));
}

SandboxPolicy Grading::policy(SubmissionKind kind, const fs::path& submission) const {
  SandboxPolicy policy;
  policy.insecure = setup_.insecure;
  policy.cpu = setup_.total;
  if (kind == SubmissionKind::python) {
    policy.read_only = python_.folders;
    policy.read_only.push_back(python_worker_.parent_path());
  }
  if (!submission.empty()) policy.read_only.push_back(submission);
  return policy;
}

BackendChoice Grading::backend(SubmissionKind kind, const fs::path& submission) const {
  BackendChoice choice;
  choice.library = submission;
  choice.limit = setup_.limit;
  choice.open_limit = setup_.opening;
  choice.sandbox = policy(kind, submission);
  if (kind == SubmissionKind::library) {
    choice.worker.command = {find_worker().string()};
    return choice;
  }
  if (!without_python_.empty()) throw Error(without_python_);
  choice.options = {{"kind", "challenge"}};
  choice.worker.command = python_worker_command(python_);
  return choice;
}

GradeRun Grading::begin(const std::string& submission) const {
  GradeRun run;
  run.submission = submission;
  run.pack = pack_.id;
  run.attest_version = setup_.attest_version;
  run.started = now_utc();
  run.insecure = setup_.insecure;
  return run;
}

GradeRun Grading::run(const SubmissionFile& file, const std::string& submission) const {
  GradeRun run = begin(submission);
  run.sha256 = file.sha256;
  run.kind = file.kind == SubmissionKind::python ? "python" : "library";
  Session(*this, file, run).go();
  return run;
}

GradeRun Grading::refuse(const std::string& submission, const std::string& why) const {
  GradeRun run = begin(submission);
  run.kind = "python";
  run.refused = words(why);
  const SubmissionFile none;
  Session(*this, none, run).refuse();
  return run;
}

}  // namespace attest
