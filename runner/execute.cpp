// SPDX-License-Identifier: Apache-2.0
#include "runner/execute.h"

#include <algorithm>
#include <set>

#include "cases/inputs.h"
#include "cases/timeline.h"
#include "runner/bitwise.h"
#include "runner/judge.h"
#include "runner/session.h"

namespace attest {
namespace {

using Clock = std::chrono::steady_clock;

/// Cases that run at the same time do so this often: a race shows now and then.
constexpr int kRounds = 8;

/// Adds the time from its making to its end to a phase.
class Stopwatch {
 public:
  explicit Stopwatch(double& seconds) : seconds_(seconds), start_(Clock::now()) {}
  ~Stopwatch() { seconds_ += std::chrono::duration<double>(Clock::now() - start_).count(); }
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;

 private:
  double& seconds_;
  Clock::time_point start_;
};

void conclude(CaseRecord& record, double worst_radius) {
  if (record.status == Status::pass && !record.findings.empty()) record.status = Status::fail;
  // The golden itself must be known far better than the error it allows.
  if (record.status == Status::pass && worst_radius > 1.0 / 16) {
    record.status = Status::untrusted;
    record.reason = fmt::format("its golden is only known to {:.3g} of the allowed error", worst_radius);
  }
  if (!record.findings.empty() && record.reason.empty()) {
    const Finding& first = record.findings.front();
    record.reason =
        fmt::format("step {}{}: {}", first.step, first.tensor.empty() ? "" : ", " + first.tensor, first.text);
    if (first.ratio) record.reason += fmt::format(" ({}, {:.2g} times it)", first.clause, *first.ratio);
  }
}

}  // namespace

/// What is the same in every run of a case.
class Executor::Material {
 public:
  explicit Material(const Subject& subject) : timeline(play_through(*subject.c)), inputs(generate(subject)) {}

  const Timeline timeline;
  const Inputs inputs;

 private:
  static Timeline play_through(const Case& c) { return attest::play(c); }
  [[nodiscard]] Inputs generate(const Subject& subject) const {
    Inputs made = generate_inputs(*subject.c, timeline);
    if (subject.inputs_hash.empty()) return made;
    if (const std::string got = hash(made); got != subject.inputs_hash) {
      throw Error::at(subject.c->id,
                      "its inputs are not those that its golden was made from (hash {:.12}, the manifest says {:.12}); "
                      "run `attest golden make`",
                      got, subject.inputs_hash);
    }
    return made;
  }
};

/// A case while it is played through once.
struct Executor::Running {
  Running(const Subject& subject, const Material& made, int64_t number)
      : c(*subject.c), golden(subject.golden), material(made), plan(number), bits(c) {}

  const Case& c;
  const Golden& golden;
  const Material& material;
  int64_t plan;
  std::string who;        ///< Stands before what is said of this one; empty for the case itself.
  bool prepared = false;  ///< The worker has its plan.
  std::optional<Session> session;
  std::optional<Judge> judge;  ///< None where only the bits matter.
  bool keeps_bits = false;
  RunBits bits;

  [[nodiscard]] bool attends(size_t s) const { return material.timeline[s].step.kind == StepKind::attend; }
  [[nodiscard]] std::string named(const std::string& text) const { return who.empty() ? text : who + ": " + text; }
};

Executor::Executor(BackendChoice choice, FindSubject find) : choice_(std::move(choice)), find_(std::move(find)) {}
Executor::~Executor() = default;

std::optional<WorkerFailure> Executor::ensure_worker() {
  if (worker_ && worker_->alive()) return std::nullopt;
  worker_ = std::make_unique<Worker>(choice_.worker);
  const std::string library = choice_.library.string();
  const auto opened = worker_->open(library, choice_.options, choice_.limit);
  if (!opened) return opened.error();
  if (opened->reply.status != ATTEST_OK) {
    worker_.reset();
    return WorkerFailure{WorkerFailure::Kind::garbage, "it no longer opens: " + opened->reply.message};
  }
  conventions_ = conventions_from_json(opened->declarations, library + ": its declarations");
  return std::nullopt;
}

/// A worker's end as a verdict.
void Executor::failed(CaseRecord& record, const WorkerFailure& failure, size_t s, std::string_view during) const {
  record.status = failure.kind == WorkerFailure::Kind::died        ? Status::crash
                  : failure.kind == WorkerFailure::Kind::timed_out ? Status::timeout
                                                                   : Status::error;
  Finding finding;
  finding.kind = "status";
  finding.clause = "P1";
  finding.step = static_cast<int64_t>(s);
  finding.text = fmt::format("during {}: {}", during, failure.text);
  const std::string output = worker_ ? worker_->output() : "";
  if (!output.empty())
    finding.text +=
        fmt::format("; it last printed: {}",
                    protocol::printable(output.substr(output.size() - std::min<size_t>(output.size(), 200)), 200));
  record.findings.push_back(std::move(finding));
}

bool Executor::prepare(Running& running, CaseRecord& record) {
  const Stopwatch watch(record.seconds["prepare"]);
  const auto answer = worker_->prepare(running.c.problem, running.session->arena(), running.session->problem_tensors(),
                                       choice_.limit, running.plan);
  if (!answer) {
    failed(record, answer.error(), 0, running.named("prepare"));
  } else if (answer->status == ATTEST_UNSUPPORTED) {
    record.status = Status::unsupported;
    record.reason = running.named(answer->message.empty() ? "it gives no reason" : answer->message);
  } else if (answer->status != ATTEST_OK) {
    record.status = answer->status == ATTEST_ERROR ? Status::error : Status::fail;
    record.reason = running.named(fmt::format("prepare refused a legal problem: {}", answer->message));
  } else {
    running.prepared = true;
  }
  return running.prepared;
}

void Executor::release(Running& running, CaseRecord& record) {
  if (!running.prepared || !worker_->alive()) return;
  const Stopwatch watch(record.seconds["prepare"]);
  const auto released = worker_->release(choice_.limit, running.plan);
  if (!released && record.status == Status::pass) {
    failed(record, released.error(), running.material.timeline.size() - 1, running.named("release"));
  }
}

bool Executor::step(std::vector<Running*> group, size_t s, CaseRecord& record) {
  std::map<int64_t, RunRequest> requests;
  {
    const Stopwatch watch(record.seconds["judge"]);
    for (Running* running : group) {
      if (running->attends(s)) {
        requests.emplace(running->plan, running->session->begin(s));
      } else if (running->material.timeline[s].step.kind != StepKind::merge) {
        running->session->apply(s);
      } else if (running->judge) {
        running->judge->merge(s);
      }
    }
  }
  std::erase_if(group, [&](const Running* running) { return !running->attends(s); });
  if (group.empty()) return true;

  std::vector<Reply> replies;
  if (group.size() == 1) {
    auto reply = worker_->run(requests.begin()->second, choice_.limit, group.front()->plan);
    if (!reply) return failed(record, reply.error(), s, group.front()->named("run")), false;
    replies.push_back(std::move(*reply));
  } else {
    auto together = worker_->run_together(requests, choice_.limit);
    if (!together) return failed(record, together.error(), s, "runs at the same time"), false;
    replies = std::move(*together);
  }
  record.seconds["run"] += replies.front().elapsed;

  const Stopwatch watch(record.seconds["judge"]);
  bool going = true;
  for (size_t i = 0; i < group.size(); ++i) {
    Running& running = *group[i];
    if (replies[i].status == ATTEST_ERROR) record.status = Status::error;
    const StepOutcome outcome = running.session->end(s, replies[i]);
    if (running.keeps_bits) running.bits.add(running.material.timeline[s], s, outcome);
    if (running.judge) going = running.judge->step(s, outcome) && going;
  }
  return going && record.status == Status::pass;
}

void Executor::play(const std::vector<Running*>& group, CaseRecord& record) {
  {
    const Stopwatch watch(record.seconds["inputs"]);
    for (Running* running : group) {
      running->session.emplace(running->c, running->material.timeline, running->material.inputs);
    }
  }
  const bool prepared =
      std::all_of(group.begin(), group.end(), [&](Running* running) { return prepare(*running, record); });
  const size_t steps = group.front()->material.timeline.size();
  for (size_t s = 0; prepared && s < steps && step(group, s, record); ++s) {
  }
  {
    const Stopwatch watch(record.seconds["judge"]);
    for (Running* running : group) {
      if (!running->judge) continue;
      for (Finding finding : running->judge->findings()) {
        finding.text = running->named(finding.text);
        record.findings.push_back(std::move(finding));
      }
      const auto worst = running->judge->worst_ratio();
      if (worst && !(record.worst_ratio.value_or(0) > *worst)) record.worst_ratio = worst;
      if (!record.error_map) record.error_map = running->judge->error_map();
    }
  }
  for (Running* running : group) release(*running, record);
}

const Subject& Executor::find(const Case& c, const std::string& id) const {
  if (!find_) throw Error::at(c.id, "names the case \"{}\", which cannot be looked up here", id);
  return find_(id);
}

void Executor::run_alone(const Subject& subject, const Material& material, CaseRecord& record) {
  const Case& c = *subject.c;
  Running running(subject, material, 0);
  running.judge.emplace(c, material.timeline, material.inputs, subject.golden, conventions_);
  running.keeps_bits = c.bitwise.wanted();
  play({&running}, record);
  if (c.bitwise.wanted() && record.status == Status::pass && record.findings.empty()) {
    check_bits(subject, material, running.bits, record);
  }
}

/// I1 to I4: the same rows again, by this case and by others, in fresh memory each time.
void Executor::check_bits(const Subject& subject, const Material& material, const RunBits& reference,
                          CaseRecord& record) {
  const Case& c = *subject.c;
  const auto again = [&](const Subject& other, const Material& made, const std::string& who) {
    Running running(other, made, 0);
    running.who = who;
    running.keeps_bits = true;
    running.judge.emplace(*other.c, made.timeline, made.inputs, other.golden, conventions_);
    play({&running}, record);
    return std::move(running.bits);
  };
  const auto passes = [&] { return record.status == Status::pass && record.findings.empty(); };
  const auto take = [&](BitDifference difference) {
    if (difference.finding && passes()) record.findings.push_back(std::move(*difference.finding));
  };
  for (int64_t run = 2; run <= c.bitwise.runs && passes(); ++run) {
    const std::string who = fmt::format("run {} of {}", run, c.bitwise.runs);
    take(compare_again(reference, again(subject, material, who), c.clauses.front(), who));
  }
  for (const std::string& id : c.bitwise.with) {
    if (!passes()) return;
    const Subject& other = find(c, id);
    const Material made(other);
    BitDifference difference = compare_with(reference, again(other, made, id), c.clauses.front(), id);
    if (passes() && difference.rows == 0) throw Error::at(c.id, "has no row in common with {}", id);
    take(std::move(difference));
  }
}

/// All of them on one open backend, each with a plan and memory of its own, step by step at the same time.
void Executor::run_alongside(const Subject& subject, const Material& material, CaseRecord& record) {
  const Case& c = *subject.c;
  std::vector<const Subject*> subjects{&subject};
  std::vector<std::unique_ptr<Material>> partners;
  for (const std::string& id : c.alongside) {
    subjects.push_back(&find(c, id));
    const Stopwatch watch(record.seconds["inputs"]);
    partners.push_back(std::make_unique<Material>(*subjects.back()));
    if (partners.back()->timeline.size() != material.timeline.size()) {
      throw Error::at(c.id, "has {} steps, and runs alongside {}, which has {}", material.timeline.size(), id,
                      partners.back()->timeline.size());
    }
  }
  for (int round = 1; round <= kRounds && record.status == Status::pass && record.findings.empty(); ++round) {
    std::vector<std::unique_ptr<Running>> runs;
    std::vector<Running*> group;
    for (size_t i = 0; i < subjects.size(); ++i) {
      const Material& made = i == 0 ? material : *partners[i - 1];
      auto& running = *runs.emplace_back(std::make_unique<Running>(*subjects[i], made, static_cast<int64_t>(i)));
      running.judge.emplace(running.c, made.timeline, made.inputs, subjects[i]->golden, conventions_);
      if (i > 0) running.who = running.c.id + " alongside";
      group.push_back(&running);
    }
    play(group, record);
    for (Finding& finding : record.findings) finding.text += fmt::format(", in round {} of {}", round, kRounds);
  }
}

CaseRecord Executor::run(const Subject& subject, std::string repro) {
  const Case& c = *subject.c;
  CaseRecord record;
  record.id = c.id;
  record.family = c.family;
  record.about = c.about;
  record.profiles = c.profiles;
  record.clauses = c.clauses;
  record.kills = c.kills;
  record.identity = identity(c);
  record.status = Status::pass;
  record.repro = std::move(repro);

  std::optional<Material> material;
  {
    const Stopwatch watch(record.seconds["inputs"]);
    material.emplace(subject);
  }
  std::optional<WorkerFailure> failure;
  {
    const Stopwatch watch(record.seconds["start"]);
    failure = ensure_worker();
  }
  if (failure) {
    failed(record, *failure, 0, "open");
  } else if (const std::string level = undeclared_determinism(c.profiles, conventions_); !level.empty()) {
    record.status = Status::unsupported;
    record.reason = "does not declare determinism " + level;
  } else if (!c.alongside.empty()) {
    run_alongside(subject, *material, record);
  } else {
    run_alone(subject, *material, record);
  }
  double radius = subject.worst_radius;
  for (const std::string& id : c.alongside) {
    if (record.status == Status::pass) radius = std::max(radius, find(c, id).worst_radius);
  }
  conclude(record, radius);
  return record;
}

}  // namespace attest
