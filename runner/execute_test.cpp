// SPDX-License-Identifier: Apache-2.0
// Everything that a backend can do wrong becomes the right verdict of that case, and the run goes on: the hostile
// backend misbehaves in the middle one of three cases, in each of its ways. And everything that a case can ask for goes
// through memory, worker and judge and back: correct backends pass cases of every feature.
#include "runner/execute.h"

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <fstream>

#include "cases/inputs.h"
#include "golden/oracle.h"
#include "runner/campaign.h"
#include "runner/places.h"
#include "runner/temporary_folder.h"

using namespace attest;

namespace {

struct Prepared {
  Case c;
  Golden golden;
  double worst_radius = 0;
};

/// A case of these fields, beside those that every case has.
Prepared prepare(const std::string& id, Json fields) {
  fields.emplace("id", id);
  fields.emplace("about", "");
  fields.emplace("clauses", Json::array({"A6"}));
  fields.emplace("kills", Json::array());
  fields.emplace("inputs", Json{{"recipe", "sharp"}});
  Prepared prepared;
  prepared.c = case_from_json(fields, "test", "test");
  const Timeline timeline = play(prepared.c);
  OracleResult result = compute_golden(prepared.c, timeline, generate_inputs(prepared.c, timeline));
  prepared.golden = std::move(result.golden);
  prepared.worst_radius = result.worst_radius;
  return prepared;
}

Prepared prepare(const std::string& id, const std::string& problem, const std::string& steps,
                 const std::string& layouts) {
  return prepare(id,
                 {{"problem", Json::parse(problem)}, {"steps", Json::parse(steps)}, {"layouts", Json::parse(layouts)}});
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

BackendChoice choice_of(const std::string& library, std::map<std::string, std::string> options = {},
                        std::chrono::milliseconds limit = std::chrono::seconds(20)) {
  BackendChoice choice;
  choice.library = executable_directory() / "backends" / fmt::format("attest-backend-{}.so", library);
  choice.options = std::move(options);
  choice.worker.command = {(executable_directory() / ".." / "bin" / "attest-worker").string()};
  choice.limit = limit;
  return choice;
}

std::vector<CaseRecord> run_all(const std::vector<Prepared>& cases, const BackendChoice& choice) {
  std::vector<Planned> plan;
  for (const Prepared& p : cases) plan.push_back({{&p.c, p.golden, p.worst_radius, ""}, "again"});
  std::vector<CaseRecord> records;
  run_campaign(plan, choice, 1, [&](const CaseRecord& record) {
    records.push_back(record);
    return true;
  });
  return records;
}

std::vector<CaseRecord> run_three(std::map<std::string, std::string> options, const char* library = "hostile",
                                  std::chrono::milliseconds limit = std::chrono::seconds(20)) {
  return run_all(three_cases(), choice_of(library, std::move(options), limit));
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

TEST_CASE("a device that fails for good costs that case only") {
  Executor executor(choice_of("detached", {{"fault", "upload"}}));
  const Prepared& p = three_cases()[0];
  const auto run = [&] { return executor.run({&p.c, p.golden, p.worst_radius, ""}, "").status; };
  Status status = run();
  for (int i = 0; i < 100 && status == Status::pass; ++i) status = run();
  CHECK(name(status) == name(Status::error));
  CHECK(executor.workers() == 1);
  CHECK(name(run()) == name(Status::pass));
  CHECK(executor.workers() == 2);
}

TEST_CASE("a worker with a device ends by itself") {
  const Prepared& p = three_cases()[0];
  for (const std::string library : {"detached", "hostile"}) {
    const TemporaryFolder folder;
    BackendChoice choice = choice_of(library);
    // What is written when a shell's child has answered to the last, and not where the shell is killed with it.
    const std::string note = (folder.path() / "ended").string();
    choice.worker.command = {"/bin/sh", "-c", choice.worker.command.front() + "; echo $? >" + note};
    {
      Executor executor(choice);
      CHECK(executor.run({&p.c, p.golden, p.worst_radius, ""}, "").status == Status::pass);
    }
    INFO(library);
    std::string code;
    std::ifstream(note) >> code;
    CHECK(code == (library == "detached" ? "0" : ""));
  }
}

TEST_CASE("a golden that is hardly better known than the error it allows is not trusted") {
  Executor executor(choice_of("hostile"));
  const Prepared& p = three_cases()[0];
  CHECK(executor.run({&p.c, p.golden, 0.01, ""}, "").status == Status::pass);
  CHECK(executor.run({&p.c, p.golden, 0.5, ""}, "").status == Status::untrusted);
}

namespace {

/// Cases of every form that a problem, its inputs and its steps can have.
const std::vector<Prepared>& all_forms() {
  static const std::vector<Prepared> cases = [] {
    std::vector<Prepared> list;
    const auto add = [&](const std::string& id, const std::string& fields) {
      list.push_back(prepare(id, Json::parse(fields)));
    };
    add("half_precision", R"({"problem": {"dtype": "f16", "batch": 2, "query_heads": 2, "head_dim": 8,
        "causal": "bottom_right", "cache": "contiguous", "capacity": 9, "lse": true},
        "inputs": {"recipe": "sharp", "poison": "huge"},
        "steps": [{"attend": [4, 3]}, {"fork": {"from": 0, "to": 1}}, {"attend": [1, 2]}]})");
    add("bfloat_layer", R"({"problem": {"level": "layer", "dtype": "bf16", "batch": 2, "query_heads": 2, "head_dim": 8,
        "bias": true, "causal": "bottom_right"}, "inputs": {"recipe": "gaussian", "poison": "inf"},
        "steps": [{"attend": [4, 3]}]})");
    for (const char* poison : {"nan", "zero"}) {
      add(std::string("boolean_mask_") + poison,
          std::string(R"({"problem": {"batch": 2, "query_heads": 2,
          "head_dim": 8, "mask": "boolean", "lse": true}, "inputs": {"recipe": "sharp", "poison": ")") +
              poison + R"(", "mask": {"pattern": "rows", "axes": "bhq"}}, "steps": [{"attend": [5, 3]}]})");
    }
    add("additive_mask", R"({"problem": {"dtype": "bf16", "batch": 2, "query_heads": 2, "head_dim": 8,
        "mask": "additive", "lse": true, "cache": "contiguous", "capacity": 9}, "inputs": {"recipe": "sharp",
        "mask": {"pattern": "bias_holes", "axes": "bq"}}, "steps": [{"attend": [5, 3]}, {"attend": [1, 2]}]})");
    add("shared_mask", R"({"problem": {"batch": 2, "query_heads": 2, "head_dim": 8, "mask": "additive"},
        "inputs": {"recipe": "sharp", "mask": {"pattern": "holes", "axes": ""}}, "steps": [{"attend": [5, 3]}]})");
    add("rope_positions", R"({"problem": {"batch": 2, "query_heads": 2, "head_dim": 8, "causal": "bottom_right",
        "rope": {"style": "half", "base": 10000}, "cache": "contiguous", "capacity": 9},
        "steps": [{"attend": [4, 3], "positions": [100, 7]}, {"attend": 1, "positions": [104, 10]}]})");
    add("rope_norm_interleaved",
        R"({"problem": {"batch": 1, "query_heads": 2, "head_dim": 8, "qk_norm": {"epsilon": 1e-6},
        "causal": "bottom_right", "rope": {"style": "interleaved", "dim": 4, "base": 10000,
        "scaling": {"kind": "linear", "factor": 4}}, "cache": "contiguous", "capacity": 9},
        "steps": [{"attend": 4}, {"attend": 1}]})");
    add("packed", R"({"problem": {"batch": 3, "query_heads": 4, "kv_heads": 2, "head_dim": 8, "causal": "bottom_right",
        "packed": true, "cache": "contiguous", "capacity": 9, "lse": true, "rope": {"style": "half", "base": 100}},
        "layouts": {"query": {"order": "hsd", "pads": {"s": 2}}, "output": {"pad": 3, "absurd": true}},
        "steps": [{"attend": [4, 0, 2], "positions": [3, 0, 9]}, {"attend": 1}, {"attend": [2, 1, 1]}]})");
    add("packed_layer", R"({"problem": {"level": "layer", "batch": 2, "query_heads": 2, "head_dim": 8, "packed": true,
        "causal": "bottom_right", "cache": "paged", "capacity": 9, "page_size": 4},
        "inputs": {"recipe": "gaussian"}, "steps": [{"attend": [4, 2]}, {"attend": 1}]})");
    add("paged", R"({"problem": {"batch": 3, "query_heads": 2, "kv_heads": 1, "head_dim": 8, "causal": "bottom_right",
        "cache": "paged", "capacity": 14, "page_size": 4, "lse": true}, "inputs": {"recipe": "sharp", "pages": 7},
        "layouts": {"cache": {"order": "bhsd", "pads": {"h": 1, "s": 2}, "absurd": true}},
        "steps": [{"attend": [6, 3, 5]}, {"fork": {"from": 0, "to": 1}}, {"attend": [2, 3, 1]},
                  {"reorder": [1, 1, 2]}, {"attend": 1}, {"truncate": [5, 9, 0]}, {"attend": [3, 1, 2]},
                  {"attend": 14, "expect": "overflow"}, {"reset": [1]}, {"attend": 1},
                  {"attend": 1, "expect": "invalid", "malform": {"argument": "cache.block_table", "change": "dtype"}},
                  {"attend": 1, "expect": "invalid", "malform": {"argument": "cache.block_table", "change": "batch"}},
                  {"attend": 1}]})");
    add("ring", R"({"problem": {"batch": 2, "query_heads": 2, "head_dim": 8, "causal": "bottom_right",
        "window": {"left": 3}, "cache": "ring", "capacity": 5},
        "steps": [{"attend": [3, 4]}, {"attend": [9, 2]}, {"attend": 1}, {"fork": {"from": 0, "to": 1}},
                  {"attend": [1, 2]}]})");
    for (const char* dtype : {"i8", "f8_e4m3", "f8_e5m2"}) {
      for (const char* scale : {"tensor", "head", "token"}) {
        add(fmt::format("{}_per_{}", dtype, scale),
            fmt::format(R"({{"problem": {{"batch": 2, "query_heads": 4,
            "kv_heads": 2, "head_dim": 8, "causal": "bottom_right", "cache": "{}", "capacity": 9, {} "lse": true,
            "cache_dtype": "{}", "kv_scale": "{}"}}, "inputs": {{"recipe": "sharp", "poison": "{}"}},
            "steps": [{{"attend": [4, 3]}}, {{"reorder": [1, 0]}}, {{"attend": [1, 2]}},
                      {{"fork": {{"from": 1, "to": 0}}}}, {{"attend": [2, 1]}}]}})",
                        scale[0] == 'h' ? "contiguous" : "paged", scale[0] == 'h' ? "" : R"("page_size": 2,)", dtype,
                        scale, scale[0] == 't' ? "nan" : "inf"));
      }
    }
    add("cross", R"({"problem": {"batch": 2, "query_heads": 2, "head_dim": 8, "cache": "contiguous", "capacity": 9},
        "steps": [{"attend": [1, 1], "keys": [6, 4]}, {"attend": [2, 3], "keys": 0}]})");
    add("merged", R"({"problem": {"batch": 2, "query_heads": 2, "head_dim": 8, "lse": true},
        "steps": [{"attend": [3, 2], "keys": [4, 0]}, {"attend": [3, 2], "keys": [2, 0], "again": true},
                  {"attend": [3, 2], "keys": [1, 0], "again": true}, {"merge": 3}]})");
    add("empty_rows", R"({"problem": {"batch": 1, "query_heads": 2, "head_dim": 8, "lse": true,
        "causal": "bottom_right"}, "steps": [{"attend": 4, "keys": 2}]})");
    add("malformed_mask", R"({"problem": {"batch": 2, "query_heads": 2, "head_dim": 8, "mask": "boolean"},
        "inputs": {"recipe": "sharp", "mask": {"pattern": "holes", "axes": "bq"}}, "steps": [
        {"attend": 4, "expect": "invalid", "malform": {"argument": "mask", "change": "dtype"}},
        {"attend": 4, "expect": "invalid", "malform": {"argument": "mask", "change": "rank"}},
        {"attend": 4, "expect": "invalid", "malform": {"argument": "mask", "change": "batch"}},
        {"attend": 4, "expect": "invalid", "malform": {"argument": "mask", "change": "heads"}},
        {"attend": 4, "expect": "invalid", "malform": {"argument": "mask", "change": "head_dim"}}, {"attend": 4}]})");
    return list;
  }();
  return cases;
}

}  // namespace

TEST_CASE("cases of every form pass, in host memory, in a device's and under declared conventions") {
  const auto library = GENERATE(as<std::string>{}, "hostile", "detached", "alternative");
  size_t passed = 0;
  for (const CaseRecord& record : run_all(all_forms(), choice_of(library))) {
    INFO(library << " " << record.id << ": " << record.reason);
    CHECK((record.status == Status::pass || (library == "alternative" && record.status == Status::unsupported)));
    passed += record.status == Status::pass ? 1 : 0;
  }
  CHECK(passed >= 15);
}

TEST_CASE("faults are found in paged caches, rings and scales too") {
  struct Found {
    const char* id;
    const char* fault;
    const char* kind;
    const char* clause;
  };
  const auto expected = GENERATE(values<Found>({
      {"paged", "cache_history", "cache", "C5"},
      {"paged", "cache_skip", "cache", "C1"},
      {"paged", "modify_table", "input", "T3"},
      {"ring", "cache_history", "cache", "C5"},
      {"ring", "cache_skip", "cache", "C1"},
      {"i8_per_tensor", "modify_scale", "input", "T3"},
      {"i8_per_head", "modify_scale", "input", "T3"},
      {"f8_e4m3_per_token", "modify_scale", "cache", "C5"},
      {"packed", "unwritten", "unwritten", "T4"},
      {"packed", "wrong", "value", "A6"},
      {"merged", "wrong", "value", "A6"},
  }));
  INFO(expected.id << " " << expected.fault);
  const auto& forms = all_forms();
  const auto form = std::find_if(forms.begin(), forms.end(),
                                 [&](const Prepared& p) { return p.c.id == "test/" + std::string(expected.id); });
  REQUIRE(form != forms.end());
  // The ring's second step is longer than the ring, so nothing of its history is left to be changed.
  const std::string at = form->c.problem.cache == CacheKind::ring ? "3" : "2";
  const auto records = run_all({*form}, choice_of("hostile", {{"fault", expected.fault}, {"at", at}}));
  INFO(records[0].reason);
  CHECK(records[0].status == Status::fail);
  REQUIRE_FALSE(records[0].findings.empty());
  CHECK(records[0].findings[0].kind == expected.kind);
  CHECK(records[0].findings[0].clause == expected.clause);
}

namespace {

/// A case with partners, which share the data of its first sequences.
std::vector<Prepared> family(const std::string& extra) {
  const auto with_batch = [&](const char* id, int batch, Json fields) {
    fields["problem"] = {{"batch", batch},        {"query_heads", 2}, {"head_dim", 8}, {"causal", "bottom_right"},
                         {"cache", "contiguous"}, {"capacity", 9},    {"lse", true}};
    fields["steps"] = Json::parse(R"([{"attend": 4}, {"attend": 1}])");
    return prepare(id, std::move(fields));
  };
  std::vector<Prepared> list;
  list.push_back(with_batch("subject", 1, Json::parse(extra)));
  list.push_back(with_batch("partner", 3, Json::object()));
  return list;
}

CaseRecord run_subject(const std::string& extra, std::map<std::string, std::string> options,
                       std::chrono::milliseconds limit = std::chrono::seconds(20)) {
  return run_all(family(extra), choice_of("hostile", std::move(options), limit)).front();
}

}  // namespace

TEST_CASE("determinism: the same bits in every run, and in cases with the same data") {
  const std::string again = R"({"bitwise": {"runs": 3, "with": ["test/partner"]}, "clauses": ["I2"]})";
  CHECK(run_subject(again, {}).status == Status::pass);
  // Calls 1 and 2 are the judged run, 5 and 6 the third one, 7 and 8 the partner's.
  const CaseRecord third = run_subject(again, {{"fault", "last_bit"}, {"at", "6"}});
  INFO(third.reason);
  CHECK(third.status == Status::fail);
  REQUIRE(third.findings.size() == 1);
  const Finding& finding = third.findings[0];
  CHECK(finding.kind == "bitwise");
  CHECK(finding.clause == "I2");
  CHECK(finding.step == 1);
  CHECK(finding.index == std::vector<int64_t>{0, 0, 0, 0});
  CHECK(finding.text.starts_with("run 3 of 3 (its step 1, sequence 0, token 0) has other bits"));
  CHECK(finding.bad == 1);
  CHECK(finding.got != finding.wanted);
  // A bit of a row that the subject does not have is no difference.
  CHECK(run_subject(again, {{"fault", "last_bit"}, {"at", "8"}}).status == Status::pass);
  const CaseRecord wrong = run_subject(again, {{"fault", "wrong"}, {"at", "8"}});
  REQUIRE_FALSE(wrong.findings.empty());
  CHECK(wrong.findings[0].kind == "value");
  CHECK(wrong.findings[0].text.starts_with("test/partner: "));
}

TEST_CASE("a case of determinism is run only if the backend declares its level") {
  const CaseRecord declared = run_subject(R"({"bitwise": {"runs": 2}, "profiles": ["determinism_d1"]})", {});
  CHECK(declared.status == Status::pass);
  const CaseRecord other = run_subject(R"({"bitwise": {"runs": 2}, "profiles": ["determinism_d3"]})", {});
  CHECK(other.status == Status::unsupported);
  CHECK(other.reason == "does not declare determinism d3");
}

TEST_CASE("cases that run alongside each other really overlap, and each is judged") {
  const std::string alongside = R"({"alongside": ["test/partner"]})";
  for (const char* library : {"hostile", "detached"}) {
    for (const CaseRecord& record : run_all(family(alongside), choice_of(library))) {
      INFO(record.reason);
      CHECK(record.status == Status::pass);
    }
  }
  const CaseRecord raced = run_subject(alongside, {{"fault", "overlap"}});
  INFO(raced.reason);
  CHECK(raced.status == Status::fail);
  REQUIRE_FALSE(raced.findings.empty());
  CHECK(raced.findings[0].kind == "value");
  CHECK(raced.findings[0].text.ends_with(", in round 1 of 8"));
  // Alone, there is nobody to overlap with.
  CHECK(run_subject("{}", {{"fault", "overlap"}}).status == Status::pass);
  CHECK(run_subject(alongside, {{"fault", "crash"}, {"at", "3"}}).status == Status::crash);
  const std::chrono::milliseconds soon(1500);
  CHECK(run_subject(alongside, {{"fault", "hang"}, {"at", "3"}}, soon).status == Status::timeout);
}

TEST_CASE("a suite that contradicts itself is an error, not a verdict") {
  const auto fails = [](const std::string& extra, const std::string& words) {
    try {
      run_subject(extra, {});
      FAIL("no error");
    } catch (const Error& error) {
      INFO(error.what());
      CHECK(std::string(error.what()).find(words) != std::string::npos);
    }
  };
  fails(R"({"alongside": ["test/nobody"]})", "test/nobody: is named by another case");
  fails(R"({"bitwise": {"with": ["test/partner"]}, "inputs": {"recipe": "sharp", "slots": [7]}})",
        "test/subject: has no row in common with test/partner");
  Executor executor(choice_of("hostile"));
  const Prepared& p = three_cases()[0];
  CHECK_THROWS_AS(executor.run({&p.c, p.golden, 0, std::string(64, '0')}, ""), Error);
  CHECK(executor.run({&p.c, p.golden, 0, hash(generate_inputs(p.c, play(p.c)))}, "").status == Status::pass);
}
