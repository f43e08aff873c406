// SPDX-License-Identifier: Apache-2.0
#include "runner/rehearsal.h"

#include <algorithm>
#include <latch>
#include <limits>
#include <memory>
#include <thread>
#include <utility>

namespace attest {

double Performance::margin() const {
  if (!failed()) return 0;
  double margin = 0;
  for (const Finding& finding : findings) {
    margin = std::max(margin, finding.ratio.value_or(std::numeric_limits<double>::infinity()));
  }
  return findings.empty() ? std::numeric_limits<double>::infinity() : margin;
}

/// One that is played on a plan of the backend's.
struct Rehearsal::Part : Playing {
  Part(const BackendLibrary& library, const Script& script, std::string who = "")
      : Playing(script, std::move(who)), table(library.table()), device(library.device_type()) {}
  Part(const Part&) = delete;
  Part& operator=(const Part&) = delete;
  ~Part() { release(); }

  Answer prepare(attest_context* context) {
    attest_problem problem = abi_problem(c().problem);
    for (const auto& [name, tensor] : session().problem_tensors()) {
      if (!set_tensor(problem, name, add(weights, tensor))) throw Error::at(c().id, "a problem has no tensor {}", name);
    }
    Answer prepared = ask([&](attest_message* m) { return table.prepare(context, &problem, &plan, m); });
    if (prepared.status == ATTEST_OK && plan == nullptr)
      prepared = {ATTEST_ERROR, "prepare answered OK without a plan"};
    return prepared;
  }

  void release() {
    if (plan != nullptr) ask([&](attest_message*) { return table.release(std::exchange(plan, nullptr)), ATTEST_OK; });
  }

  /// The backend's part of an attend, in any thread.
  void call() {
    StepArguments arguments(request.max_query_length, request.max_total_length);
    Arguments tensors;
    for (const auto& [name, tensor] : request.tensors) {
      if (!arguments.set(name, add(tensors, tensor))) throw Error::at(c().id, "a step has no tensor {}", name);
    }
    Answer answer = ask([&](attest_message* m) { return table.run(plan, arguments.get(), m); });
    reply.status = answer.status;
    reply.message = std::move(answer.message);
  }

  using Arguments = std::vector<std::unique_ptr<TensorArgument>>;
  DLTensor* add(Arguments& arguments, const protocol::Tensor& tensor) const {
    std::byte* block = session().arena().data() + tensor.begin;
    return arguments.emplace_back(std::make_unique<TensorArgument>(tensor, block, device))->get();
  }

  const attest_backend& table;
  DLDeviceType device;
  Arguments weights;
  attest_plan* plan = nullptr;
  RunRequest request;  ///< Of the step that goes on ...
  Reply reply;         ///< ... and its answer.
};

Rehearsal::Rehearsal(const BackendLibrary& library, const std::map<std::string, std::string>& options)
    : library_(library) {
  const attest_backend& table = library.table();
  const std::string place = library.path().string();
  if (library.has_device_memory()) throw Error::at(place, "its tensors live in memory of its own");
  const std::string declared = place + ": its declarations";
  conventions_ = conventions_from_json(
      table.declarations == nullptr ? Json::object() : parse_json(table.declarations, declared), declared);
  const std::string json = Json(options).dump();
  const Answer answer = ask([&](attest_message* m) { return table.open(json.c_str(), &context_, m); });
  if (answer.status != ATTEST_OK) throw Error::at(place, "cannot be opened: {}", answer.message);
  if (context_ == nullptr) throw Error::at(place, "open answered OK without a context");
}

Rehearsal::~Rehearsal() {
  if (context_ != nullptr) ask([&](attest_message*) { return library_.table().close(context_), ATTEST_OK; });
}

bool Rehearsal::step(std::vector<Part*> group, size_t s, Performance& performance) {
  for (Part* part : group) {
    if (part->attends(s)) {
      part->request = part->begin(s);
    } else {
      part->apply(s);
    }
  }
  std::erase_if(group, [&](const Part* part) { return !part->attends(s); });
  if (group.size() == 1) {
    group.front()->call();
  } else {
    std::latch start(static_cast<std::ptrdiff_t>(group.size()));
    std::vector<std::thread> threads;
    for (Part* part : group) {
      threads.emplace_back([&start, part] {
        start.arrive_and_wait();
        part->call();
      });
    }
    for (std::thread& thread : threads) thread.join();
  }
  bool going = true;
  for (Part* part : group) {
    if (part->reply.status == ATTEST_ERROR) performance.status = Status::error;
    going = part->end(s, part->reply) && going;
  }
  return going && performance.status == Status::pass;
}

void Rehearsal::play(const std::vector<Part*>& group, Performance& performance) const {
  bool going = true;
  for (Part* part : group) {
    part->start(conventions_);
    const Answer answer = part->prepare(context_);
    if (answer.status == ATTEST_OK) continue;
    refuse(*part, answer.status, answer.message, performance.status, performance.reason);
    going = false;
    break;
  }
  for (size_t s = 0; going && s < group.front()->steps(); ++s) going = step(group, s, performance);
  for (Part* part : group) {
    part->release();
    for (Finding& finding : part->findings()) performance.findings.push_back(std::move(finding));
    const auto worst = part->worst_ratio();
    if (worst && !(performance.worst_ratio.value_or(0) > *worst)) performance.worst_ratio = worst;
    if (part->keeps_outcomes()) performance.outcomes = std::move(part->outcomes());
  }
}

void Rehearsal::play_alone(const Script& script, const How& how, const FindScript& find,
                           Performance& performance) const {
  const Bitwise& bitwise = script.c->bitwise;
  const bool compares = how.partners && bitwise.wanted();
  const auto passes = [&] { return performance.status == Status::pass && performance.findings.empty(); };
  Part part(library_, script);
  if (how.outcomes) part.keep_outcomes();
  if (compares) part.keep_bits();
  play({&part}, performance);
  if (!compares || !passes()) return;
  const auto again = [&](const std::string& id, const std::string& who) -> std::optional<RunBits> {
    Part other(library_, id.empty() ? script : find(id), who);
    other.keep_bits();
    play({&other}, performance);
    return passes() ? std::optional(other.bits()) : std::nullopt;
  };
  if (auto difference = compare_bits(*script.c, part.bits(), std::min(bitwise.runs, how.runs), again)) {
    performance.findings.push_back(std::move(*difference));
  }
}

void Rehearsal::play_alongside(const Script& script, const How& how, const FindScript& find,
                               Performance& performance) const {
  for (int64_t round = 1; round <= how.rounds && performance.status == Status::pass && performance.findings.empty();
       ++round) {
    std::vector<std::unique_ptr<Part>> parts;
    std::vector<Part*> group;
    group.push_back(parts.emplace_back(std::make_unique<Part>(library_, script)).get());
    if (how.outcomes) group.front()->keep_outcomes();
    for (const std::string& id : script.c->alongside) {
      group.push_back(parts.emplace_back(std::make_unique<Part>(library_, find(id), id + " alongside")).get());
    }
    play(group, performance);
    for (Finding& finding : performance.findings) finding.text += fmt::format(", in round {} of {}", round, how.rounds);
  }
}

Performance Rehearsal::play(const Script& script, const How& how, const FindScript& find) const {
  const Case& c = *script.c;
  const bool alongside = how.partners && !c.alongside.empty();
  if (!find && (alongside || (how.partners && !c.bitwise.with.empty()))) {
    throw Error::at(c.id, "names other cases, which cannot be looked up here");
  }
  Performance performance;
  if (const std::string level = undeclared_determinism(c.profiles, conventions_); !level.empty()) {
    performance.status = Status::unsupported;
    performance.reason = "does not declare determinism " + level;
    return performance;
  }
  if (alongside) {
    play_alongside(script, how, find, performance);
  } else {
    play_alone(script, how, find, performance);
  }
  if (performance.status == Status::pass && !performance.findings.empty()) performance.status = Status::fail;
  if (!performance.findings.empty() && performance.reason.empty()) {
    performance.reason = reason_of(performance.findings.front());
  }
  return performance;
}

}  // namespace attest
