// SPDX-License-Identifier: Apache-2.0
#include "runner/execute.h"

#include <algorithm>

#include "runner/playing.h"

namespace attest {
namespace {

using Clock = std::chrono::steady_clock;

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
    record.reason = reason_of(record.findings.front());
  }
}

}  // namespace

struct Executor::Part : Playing {
  Part(const Script& script, int64_t number, std::string who = "") : Playing(script, std::move(who)), plan(number) {}

  int64_t plan;
  bool prepared = false;  ///< The worker has its plan.
};

Executor::Executor(BackendChoice choice, FindSubject find) : choice_(std::move(choice)), find_(std::move(find)) {}
Executor::~Executor() {
  part_with_worker();
}

void Executor::part_with_worker() {
  if (!choice_.sandbox && worker() != nullptr && opened_.own_memory) {
    try {
      (void)worker_->close(choice_.limit);
    } catch (const std::exception&) {
      // It is killed then.
    }
  }
  worker_.reset();
}

tl::expected<Opened, WorkerFailure> Executor::open() {
  if (worker_ && worker_->alive()) return opened_;
  WorkerOptions options = choice_.worker;
  std::string library = choice_.library.string();
  if (choice_.sandbox) {
    SandboxPolicy policy = *choice_.sandbox;
    policy.read_only.push_back(choice_.library);
    Sandbox sandbox(policy);
    options = sandbox.wrap(options.command);
    library = sandbox.inside(choice_.library).string();
    if (layers_.empty()) layers_ = sandbox.layers();
    for (size_t i = 0; i < layers_.size(); ++i) {
      if (const SandboxLayer& layer = sandbox.layers()[i]; !layer.active) layers_[i] = layer;
    }
  }
  worker_ = std::make_unique<Worker>(options);
  ++workers_;
  auto opened = worker_->open(library, choice_.options, left(choice_.open_limit.value_or(choice_.limit)));
  if (!opened) return tl::unexpected(opened.error());
  if (opened->reply.status != ATTEST_OK) {
    worker_.reset();
    return *opened;
  }
  try {
    conventions_ = conventions_from_json(opened->declarations, library + ": its declarations");
  } catch (const Error& wrong) {
    worker_.reset();
    return tl::unexpected(WorkerFailure{WorkerFailure::Kind::garbage, wrong.what()});
  }
  return opened_ = *std::move(opened);
}

std::chrono::milliseconds Executor::left(std::chrono::milliseconds limit) const {
  using std::chrono::milliseconds;
  if (!deadline_) return limit;
  const auto rest = std::chrono::ceil<milliseconds>(*deadline_ - std::chrono::steady_clock::now());
  return std::clamp(rest, milliseconds(1), std::max(limit, milliseconds(1)));
}

std::optional<WorkerFailure> Executor::ensure_worker() {
  const auto opened = open();
  if (!opened) return opened.error();
  if (opened->reply.status == ATTEST_OK) return std::nullopt;
  return WorkerFailure{WorkerFailure::Kind::garbage, "it no longer opens: " + opened->reply.message};
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

bool Executor::prepare(Part& part, CaseRecord& record) {
  const Stopwatch watch(record.seconds["prepare"]);
  const auto answer = worker_->prepare(part.c().problem, part.session().arena(), part.session().problem_tensors(),
                                       left(choice_.limit), part.plan);
  if (!answer) {
    failed(record, answer.error(), 0, part.named("prepare"));
  } else if (answer->status == ATTEST_OK) {
    part.prepared = true;
  } else {
    refuse(part, answer->status, answer->message, record.status, record.reason);
  }
  return part.prepared;
}

void Executor::release(Part& part, CaseRecord& record) {
  if (!part.prepared || !worker_->alive()) return;
  const Stopwatch watch(record.seconds["prepare"]);
  const auto released = worker_->release(left(choice_.limit), part.plan);
  if (!released && record.status == Status::pass) {
    failed(record, released.error(), part.steps() - 1, part.named("release"));
  }
}

bool Executor::step(std::vector<Part*> group, size_t s, CaseRecord& record) {
  std::map<int64_t, RunRequest> requests;
  {
    const Stopwatch watch(record.seconds["judge"]);
    for (Part* part : group) {
      if (part->attends(s)) {
        requests.emplace(part->plan, part->begin(s));
      } else {
        part->apply(s);
      }
    }
  }
  std::erase_if(group, [&](const Part* part) { return !part->attends(s); });
  if (group.empty()) return true;

  std::vector<Reply> replies;
  if (group.size() == 1) {
    auto reply = worker_->run(requests.begin()->second, left(choice_.limit), group.front()->plan);
    if (!reply) return failed(record, reply.error(), s, group.front()->named("run")), false;
    replies.push_back(std::move(*reply));
  } else {
    auto together = worker_->run_together(requests, left(choice_.limit));
    if (!together) return failed(record, together.error(), s, "runs at the same time"), false;
    replies = std::move(*together);
  }
  record.seconds["run"] += replies.front().elapsed;

  const Stopwatch watch(record.seconds["judge"]);
  bool going = true;
  for (size_t i = 0; i < group.size(); ++i) {
    if (replies[i].status == ATTEST_ERROR) record.status = Status::error;
    going = group[i]->end(s, replies[i]) && going;
  }
  return going && record.status == Status::pass;
}

void Executor::play(const std::vector<Part*>& group, CaseRecord& record) {
  {
    const Stopwatch watch(record.seconds["inputs"]);
    for (Part* part : group) part->start(conventions_);
  }
  const bool prepared = std::all_of(group.begin(), group.end(), [&](Part* part) { return prepare(*part, record); });
  for (size_t s = 0; prepared && s < group.front()->steps() && step(group, s, record); ++s) {
  }
  {
    const Stopwatch watch(record.seconds["judge"]);
    for (Part* part : group) {
      for (Finding& finding : part->findings()) record.findings.push_back(std::move(finding));
      const auto worst = part->worst_ratio();
      if (worst && !(record.worst_ratio.value_or(0) > *worst)) record.worst_ratio = worst;
      if (!record.error_map) record.error_map = part->error_map();
      if (part->keeps_outcomes()) *outcomes_ = std::move(part->outcomes());
    }
  }
  for (Part* part : group) release(*part, record);
}

const Subject& Executor::find(const Case& c, const std::string& id) const {
  if (!find_) throw Error::at(c.id, "names the case \"{}\", which cannot be looked up here", id);
  return find_(id);
}

void Executor::run_alone(const Script& script, CaseRecord& record) {
  const Case& c = *script.c;
  Part part(script, 0);
  if (c.bitwise.wanted()) part.keep_bits();
  if (outcomes_ != nullptr) part.keep_outcomes();
  play({&part}, record);
  if (c.bitwise.wanted() && record.status == Status::pass && record.findings.empty()) {
    check_bits(script, part.bits(), record);
  }
}

/// I1 to I4: the same rows again, by this case and by others, in fresh memory each time.
void Executor::check_bits(const Script& script, const RunBits& reference, CaseRecord& record) {
  const Case& c = *script.c;
  const auto again = [&](const std::string& id, const std::string& who) -> std::optional<RunBits> {
    const Subject* other = id.empty() ? nullptr : &find(c, id);
    std::optional<Material> material;
    if (other != nullptr) material.emplace(*other);
    Part part(material ? material->script() : script, 0, who);
    part.keep_bits();
    play({&part}, record);
    if (record.status != Status::pass || !record.findings.empty()) return std::nullopt;
    return part.bits();
  };
  if (auto difference = compare_bits(c, reference, c.bitwise.runs, again)) {
    record.findings.push_back(std::move(*difference));
  }
}

/// All of them on one open backend, each with a plan and memory of its own, step by step at the same time.
void Executor::run_alongside(const Script& script, CaseRecord& record) {
  const Case& c = *script.c;
  std::vector<Script> scripts{script};
  std::vector<std::unique_ptr<Material>> partners;
  for (const std::string& id : c.alongside) {
    const Subject& partner = find(c, id);
    const Stopwatch watch(record.seconds["inputs"]);
    scripts.push_back(partners.emplace_back(std::make_unique<Material>(partner))->script());
    if (scripts.back().timeline->size() != script.timeline->size()) {
      throw Error::at(c.id, "has {} steps, and runs alongside {}, which has {}", script.timeline->size(), id,
                      scripts.back().timeline->size());
    }
  }
  for (int64_t round = 1; round <= kRoundsAlongside && record.status == Status::pass && record.findings.empty();
       ++round) {
    std::vector<std::unique_ptr<Part>> parts;
    std::vector<Part*> group;
    for (size_t i = 0; i < scripts.size(); ++i) {
      parts.push_back(
          std::make_unique<Part>(scripts[i], static_cast<int64_t>(i), i == 0 ? "" : scripts[i].c->id + " alongside"));
      group.push_back(parts.back().get());
    }
    if (outcomes_ != nullptr) group.front()->keep_outcomes();
    play(group, record);
    for (Finding& finding : record.findings) {
      finding.text += fmt::format(", in round {} of {}", round, kRoundsAlongside);
    }
  }
}

CaseRecord record_of(const Case& c, std::string repro) {
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
  return record;
}

CaseRecord Executor::run(const Subject& subject, std::string repro, std::vector<StepOutcome>* outcomes) {
  const Case& c = *subject.c;
  outcomes_ = outcomes;
  CaseRecord record = record_of(c, std::move(repro));

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
    run_alongside(material->script(), record);
  } else {
    run_alone(material->script(), record);
  }
  double radius = subject.worst_radius;
  for (const std::string& id : c.alongside) {
    if (record.status == Status::pass) radius = std::max(radius, find(c, id).worst_radius);
  }
  conclude(record, radius);
  // A device may not answer again in a process in which it has failed.
  if (record.status == Status::error && opened_.own_memory) part_with_worker();
  return record;
}

}  // namespace attest
