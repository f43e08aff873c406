// SPDX-License-Identifier: Apache-2.0
// Everything that a backend can do wrong becomes the right verdict of that case, and the run goes on: the hostile
// backend misbehaves in the middle one of three cases, in each of its ways.
#include "runner/execute.h"

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include "cases/inputs.h"
#include "golden/oracle.h"
#include "runner/campaign.h"
#include "runner/places.h"

using namespace attest;

namespace {

struct Prepared {
  Case c;
  Golden golden;
  double worst_radius = 0;
};

Prepared prepare(const std::string& id, const std::string& problem, const std::string& steps,
                 const std::string& layouts) {
  Json json{{"id", id}, {"about", ""}, {"clauses", {"A6"}}, {"kills", Json::array()}};
  json["problem"] = Json::parse(problem);
  json["inputs"] = Json::parse(R"({"recipe": "sharp"})");
  json["layouts"] = Json::parse(layouts);
  json["steps"] = Json::parse(steps);
  Prepared prepared;
  prepared.c = case_from_json(json, "test", "test");
  const Timeline timeline = play(prepared.c);
  OracleResult result = compute_golden(prepared.c, timeline, generate_inputs(prepared.c, timeline));
  prepared.golden = std::move(result.golden);
  prepared.worst_radius = result.worst_radius;
  return prepared;
}

/// One step before, three (a prefill, a decode, an overflow) in the middle, one step after.
const std::vector<Prepared>& three_cases() {
  static const std::vector<Prepared> cases = [] {
    const std::string core = R"({"batch": 2, "query_heads": 2, "head_dim": 8, "causal": "bottom_right"})";
    const std::string layer =
        R"({"level": "layer", "batch": 2, "query_heads": 4, "kv_heads": 2, "head_dim": 8, "bias": true,
                                  "causal": "bottom_right", "cache": "contiguous", "capacity": 8, "lse": true})";
    std::vector<Prepared> list;
    list.push_back(prepare("before", core, R"([{"attend": 3}])", "{}"));
    list.push_back(prepare("middle", layer,
                           R"([{"attend": [4, 3]}, {"attend": 2}, {"attend": 5, "expect": "overflow"}])",
                           R"({"output": {"pad": 3}, "cache": {"pad": 5}})"));
    list.push_back(prepare("after", core, R"([{"attend": 4}])", "{}"));
    return list;
  }();
  return cases;
}

std::vector<CaseRecord> run_three(std::map<std::string, std::string> options, const char* library = "hostile",
                                  std::chrono::milliseconds limit = std::chrono::seconds(20)) {
  BackendChoice choice;
  choice.library = executable_directory() / "backends" / fmt::format("attest-backend-{}.so", library);
  choice.options = std::move(options);
  choice.worker.command = {(executable_directory() / ".." / "bin" / "attest-worker").string()};
  choice.limit = limit;
  std::vector<Planned> plan;
  for (const Prepared& p : three_cases()) plan.push_back({&p.c, p.golden, p.worst_radius, "again"});
  std::vector<CaseRecord> records;
  run_campaign(plan, choice, 1, [&](const CaseRecord& record) {
    records.push_back(record);
    return true;
  });
  return records;
}

struct Expected {
  const char* fault;
  Status status;
  const char* kind;  ///< Of the first finding; null for none.
};

}  // namespace

TEST_CASE("each fault is the verdict of its case, and the cases around it pass") {
  const Expected expected = GENERATE(values<Expected>({
      {"none", Status::pass, nullptr},
      {"slow", Status::pass, nullptr},
      {"stdout_flood", Status::pass, nullptr},
      {"stdout_noise", Status::pass, nullptr},
      {"crash", Status::crash, "status"},
      {"abort", Status::crash, "status"},
      {"exit", Status::crash, "status"},
      {"hang", Status::timeout, "status"},
      {"garbage", Status::error, "status"},
      {"forge", Status::error, "status"},
      {"throw", Status::error, "status"},
      {"status99", Status::error, "status"},
      {"overrun", Status::fail, "guard"},
      {"underrun", Status::fail, "guard"},
      {"gap", Status::fail, "guard"},
      {"modify_input", Status::fail, "input"},
      {"modify_weights", Status::fail, "input"},
      {"nan", Status::fail, "nan"},
      {"wrong", Status::fail, "value"},
      {"unwritten", Status::fail, "unwritten"},
      {"cache_history", Status::fail, "cache"},
      {"cache_skip", Status::fail, "cache"},
      {"length", Status::fail, "length"},
      {"refuse", Status::fail, "status"},
      {"accept", Status::fail, "status"},
      {"refuse_dirty", Status::fail, "refusal"},
  }));
  INFO(expected.fault);
  const bool hangs = std::string(expected.fault) == "hang";
  // The third call is the decode of the middle case.
  const auto records = run_three({{"fault", expected.fault}, {"at", "3"}}, "hostile",
                                 hangs ? std::chrono::milliseconds(1500) : std::chrono::seconds(20));
  REQUIRE(records.size() == 3);
  CHECK(records[0].status == Status::pass);
  INFO(records[1].reason);
  CHECK(name(records[1].status) == name(expected.status));
  if (expected.kind != nullptr) {
    REQUIRE_FALSE(records[1].findings.empty());
    CHECK(records[1].findings[0].kind == expected.kind);
    CHECK_FALSE(records[1].reason.empty());
    CHECK(records[1].findings[0].step >= 1);
  } else {
    CHECK(records[1].findings.empty());
  }
  INFO(records[2].reason);
  CHECK(records[2].status == Status::pass);
}

TEST_CASE("a worker that dies while it opens or prepares costs that case only") {
  const auto prepares = run_three({{"fault", "crash"}, {"where", "prepare"}, {"at", "2"}});
  CHECK(prepares[0].status == Status::pass);
  CHECK(prepares[1].status == Status::crash);
  CHECK(prepares[2].status == Status::pass);
  const auto opens = run_three({{"fault", "exit"}, {"where", "open"}});
  for (const CaseRecord& record : opens) CHECK(record.status == Status::crash);
}

TEST_CASE("a backend with memory of its own passes through uploads and downloads") {
  for (const CaseRecord& record : run_three({}, "detached")) {
    INFO(record.reason);
    CHECK(record.status == Status::pass);
  }
}

TEST_CASE("a golden that is hardly better known than the error it allows is not trusted") {
  BackendChoice choice;
  choice.library = executable_directory() / "backends" / "attest-backend-hostile.so";
  choice.worker.command = {(executable_directory() / ".." / "bin" / "attest-worker").string()};
  Executor executor(choice);
  const Prepared& p = three_cases()[0];
  CHECK(executor.run(p.c, p.golden, 0.01, "").status == Status::pass);
  CHECK(executor.run(p.c, p.golden, 0.5, "").status == Status::untrusted);
}
