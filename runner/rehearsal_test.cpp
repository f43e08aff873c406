// SPDX-License-Identifier: Apache-2.0
// A case played in this process has the verdict that it has in a worker: the hostile backend misbehaves in its ways, as
// far as a process survives them, and the template passes cases of every kind.
#include "runner/rehearsal.h"

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <deque>

#include "golden/oracle.h"
#include "runner/execute.h"
#include "runner/forked.h"
#include "runner/places.h"

using namespace attest;
using Catch::Matchers::ContainsSubstring;

namespace {

/// A case with its golden, as the suite's are.
struct Prepared {
  explicit Prepared(Json fields) {
    fields.emplace("about", "");
    fields.emplace("clauses", Json::array({"A6"}));
    fields.emplace("kills", Json::array());
    fields.emplace("inputs", Json{{"recipe", "sharp"}});
    c = case_from_json(fields, "test", "test");
    const Timeline timeline = play(c);
    subject.c = &c;
    subject.golden = compute_golden(c, timeline, generate_inputs(c, timeline)).golden;
    material.emplace(subject);
  }
  Prepared(const Prepared&) = delete;
  Prepared& operator=(const Prepared&) = delete;
  [[nodiscard]] Script script() const { return material->script(); }

  Case c;
  Subject subject;
  std::optional<Material> material;
};

Json layer_case() {
  return Json::parse(R"({"id": "layer", "problem": {"level": "layer", "batch": 2, "query_heads": 4, "kv_heads": 2,
      "head_dim": 8, "bias": true, "causal": "bottom_right", "cache": "contiguous", "capacity": 8, "lse": true},
      "layouts": {"output": {"pad": 3}, "cache": {"pad": 5}},
      "steps": [{"attend": [4, 3]}, {"truncate": [3, 3]}, {"attend": 2}, {"attend": 5, "expect": "overflow"}]})");
}

Json paged_case(const std::string& id) {
  Json json = Json::parse(R"({"problem": {"batch": 3, "query_heads": 2, "head_dim": 8, "causal": "bottom_right",
      "cache": "paged", "capacity": 12, "page_size": 3}, "profiles": ["core"],
      "steps": [{"attend": [4, 1, 6]}, {"attend": 2}]})");
  json["id"] = id;
  return json;
}

std::filesystem::path library_of(const std::string& name) {
  return executable_directory() / "backends" / fmt::format("attest-backend-{}.so", name);
}
std::filesystem::path installed(const std::string& name) {
  return executable_directory() / ".." / "lib" / "attest" / "backends" / fmt::format("attest-backend-{}.so", name);
}

std::string kinds(const std::vector<Finding>& findings) {
  std::string text;
  for (const Finding& finding : findings) text += finding.kind + ": " + finding.text + "; ";
  return text;
}

}  // namespace

TEST_CASE("rehearsal: the verdict of a fault is the executor's") {
  const std::string fault = GENERATE("none", "throw", "status99", "overrun", "underrun", "gap", "modify_input",
                                     "modify_weights", "nan", "wrong", "unwritten");
  CAPTURE(fault);
  static const Prepared prepared(layer_case());
  BackendChoice choice;
  choice.library = library_of("hostile");
  choice.options = {{"fault", fault}};
  choice.worker.command = {(executable_directory() / ".." / "bin" / "attest-worker").string()};
  const CaseRecord record = Executor(choice).run(prepared.subject, "");

  // The hostile backend counts its calls over the whole process, so it gets one of its own.
  Forked forked;
  forked.work = [&](size_t, Stage& stage) {
    stage.enter(0);
    const BackendLibrary library(choice.library);
    const Performance performance = Rehearsal(library, choice.options).play(prepared.script());
    stage.send(fmt::format("{} {} {} {}", name(performance.status), performance.reason,
                           performance.worst_ratio.value_or(-1), kinds(performance.findings)));
    stage.send(fmt::format("{} {}", performance.failed(), performance.margin()));
  };
  std::vector<std::string> heard;
  forked.received = [&](size_t, std::string_view message) { heard.emplace_back(message); };
  forked.run(1, 1);
  REQUIRE(heard.size() == 2);
  CHECK(heard[0] == fmt::format("{} {} {} {}", name(record.status), record.reason, record.worst_ratio.value_or(-1),
                                kinds(record.findings)));
  const bool finite = fault == "wrong";
  if (fault == "none") CHECK(heard[1] == "false 0");
  if (fault != "none") CHECK((heard[1] == "true inf") == !finite);
}

TEST_CASE("rehearsal: outcomes are kept step by step, also without a golden") {
  const Prepared prepared(layer_case());
  const BackendLibrary library(installed("template"));
  const Rehearsal rehearsal(library);
  Script script = prepared.script();
  CHECK(rehearsal.play(script).outcomes.empty());
  script.golden = nullptr;
  const Performance performance = rehearsal.play(script, {.outcomes = true});
  CHECK(performance.status == Status::pass);
  CHECK_FALSE(performance.worst_ratio);
  REQUIRE(performance.outcomes.size() == 4);
  CHECK(performance.outcomes[0].output.shape == std::vector<int64_t>{2, 4, 32});
  CHECK(performance.outcomes[1].output.data.empty());
  CHECK(performance.outcomes[2].after.lengths == std::vector<int32_t>{5, 5});
  CHECK(performance.outcomes[3].status == ATTEST_OVERFLOW);
}

TEST_CASE("rehearsal: cases of every kind pass on the template") {
  const BackendLibrary library(installed("template"));
  const Rehearsal rehearsal(library);
  const Prepared merged(Json::parse(R"({"id": "merged", "problem": {"query_heads": 2, "head_dim": 8, "lse": true},
      "steps": [{"attend": 3, "keys": 4}, {"attend": 3, "keys": 5, "again": true}, {"merge": 2}]})"));
  CHECK(rehearsal.play(merged.script()).status == Status::pass);

  std::deque<Prepared> partners;
  partners.emplace_back(paged_case("other"));
  partners.emplace_back(paged_case("third"));
  const FindScript find = [&](const std::string& id) {
    for (const Prepared& partner : partners) {
      if (partner.c.id == id) return partner.script();
    }
    throw Error::at(id, "is no partner");
  };
  Json json = paged_case("alongside");
  json["alongside"] = {"test/other", "test/third"};
  const Prepared alongside(json);
  CHECK(rehearsal.play(alongside.script(), {}, find).status == Status::pass);
  CHECK_THROWS_WITH(rehearsal.play(alongside.script()), ContainsSubstring("names other cases"));
  CHECK(rehearsal.play(alongside.script(), {.partners = false}).status == Status::pass);

  json = paged_case("bitwise");
  json["bitwise"] = {{"runs", 3}, {"with", {"test/other"}}};
  const Prepared bitwise(json);
  CHECK(rehearsal.play(bitwise.script(), {}, find).status == Status::pass);
}

TEST_CASE("rehearsal: what does not open says why") {
  const BackendLibrary hostile(library_of("hostile"));
  CHECK_THROWS_WITH(Rehearsal(hostile, {{"no_such_option", "1"}}), ContainsSubstring("cannot be opened: "));
}
