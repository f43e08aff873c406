// SPDX-License-Identifier: Apache-2.0
#include "runner/record.h"

#include <unistd.h>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_exception.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <cmath>
#include <limits>

namespace attest {
namespace {

namespace fs = std::filesystem;
using Catch::Matchers::ContainsSubstring;
using Catch::Matchers::MessageMatches;

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kInf = std::numeric_limits<double>::infinity();

/// A file that is gone with its test.
class TemporaryFile {
 public:
  explicit TemporaryFile(std::string_view text)
      : path_(fs::temp_directory_path() / fmt::format("attest_record_test_{}.jsonl", ::getpid())) {
    write_file(path_, text);
  }
  ~TemporaryFile() {
    std::error_code ignored;
    fs::remove(path_, ignored);
  }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;
  [[nodiscard]] const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

RunRecord sample_run() {
  RunRecord run;
  run.attest_version = "0.1.0";
  run.suite_hash = "3f2a9c01b7d4";
  run.backend = "mine";
  run.backend_version = "1.0";
  run.backend_description = "plain loops";
  run.device = "cpu";
  run.conventions.lse_is_base_2 = true;
  run.conventions.determinism = {"d0", "d3"};
  run.library = "/opt/mine.so";
  run.options = {{"threads", "2"}};
  run.host = "builder";
  run.cpu = "a CPU";
  run.started = "2025-11-21T04:43:00Z";
  run.cores = 2;
  run.jobs = 1;
  run.profiles = {"core"};
  run.subset = true;
  run.planned = 1;
  run.plan_hash = "abc";
  return run;
}

CaseRecord sample_case() {
  CaseRecord record;
  record.id = "with_cache/needle";
  record.family = "with_cache";
  record.about = "a needle";
  record.profiles = {"core"};
  record.clauses = {"M3", "C1"};
  record.kills = {"causal-plus1"};
  record.identity = "with_cache/needle core f32";
  record.status = Status::fail;
  record.reason = "12 of 384 elements of output are wrong";
  Finding finding;
  finding.kind = "nan";
  finding.clause = "M3";
  finding.step = 3;
  finding.tensor = "output";
  finding.index = {0, 3, 1, 7};
  finding.index_names = "sequence,token,head,channel";
  finding.got = kNaN;
  finding.wanted = 0.1;
  finding.allowed = 1.25e-6;
  finding.ratio = kInf;
  finding.bad = 12;
  finding.total = 384;
  finding.text = "NaN";
  record.findings = {finding};
  record.worst_ratio = kInf;
  record.error_map = ErrorMap{3, 1, 2, 2, 5, {0.123456, -1, kInf, 1.00001}};
  record.seconds = {{"run", 0.25}, {"judge", 1e-5}};
  record.repro = "attest certify --backend mine --case with_cache/needle";
  return record;
}

std::string lines(const std::vector<Json>& records) {
  std::string text;
  for (const Json& record : records) text += record.dump() + "\n";
  return text;
}

TEST_CASE("records survive a round trip, what is not finite included") {
  const CaseRecord wanted = sample_case();
  const TemporaryFile file(lines({to_json(sample_run()), to_json(wanted), to_json(EndRecord{1, 2.5})}));
  const Records records = read_records(file.path());

  CHECK(to_json(records.run) == to_json(sample_run()));
  CHECK(records.run.options.at("threads") == "2");
  CHECK(records.run.conventions.lse_is_base_2);
  CHECK(records.run.conventions.determinism == std::set<std::string>{"d0", "d3"});
  REQUIRE(records.cases.size() == 1);
  const CaseRecord& got = records.cases[0];
  CHECK(to_json(got) == to_json(wanted));
  CHECK(got.status == Status::fail);
  REQUIRE(got.findings.size() == 1);
  CHECK(std::isnan(got.findings[0].got.value()));
  CHECK(got.findings[0].wanted == 0.1);
  CHECK(got.findings[0].ratio == kInf);
  CHECK(got.findings[0].index == std::vector<int64_t>{0, 3, 1, 7});
  CHECK(got.worst_ratio == kInf);
  REQUIRE(got.error_map);
  CHECK(got.error_map->first_position == 5);
  CHECK(got.error_map->ratio[0] == 0.1235);
  CHECK(got.error_map->ratio[1] == -1);
  CHECK(got.error_map->ratio[2] == kInf);
  REQUIRE(records.end);
  CHECK(records.end->cases == 1);
  CHECK(records.end->wall_seconds == 2.5);
}

TEST_CASE("an error map is compact and never rounds a failure into a pass") {
  CaseRecord record = sample_case();
  record.error_map->ratio = {0.12345678, 1.00001, 0.99999, 31234567.0};
  CHECK(to_json(record)["error_map"]["ratio"].dump() == "[0.1235,1.001,1,31230000]");
}

TEST_CASE("optional fields are absent, not null") {
  CaseRecord record = sample_case();
  record.worst_ratio.reset();
  record.error_map.reset();
  record.findings[0].got.reset();
  const Json json = to_json(record);
  CHECK_FALSE(json.contains("worst_ratio"));
  CHECK_FALSE(json.contains("error_map"));
  CHECK_FALSE(json["findings"][0].contains("got"));
  RunRecord run = sample_run();
  run.conventions = {};
  CHECK_FALSE(to_json(run).contains("declarations"));
}

TEST_CASE("a backend's bytes cannot stop a record from being written") {
  CaseRecord record = sample_case();
  record.reason = "bad \xFF\x01\n bytes";
  const std::string line = to_json(record).dump();
  CHECK(line.find('\n') == std::string::npos);
  const TemporaryFile file(lines({to_json(sample_run()), to_json(record)}));
  CHECK(read_records(file.path()).cases[0].reason == "bad \uFFFD\x01\n bytes");
}

TEST_CASE("cases that finished in another order are read in the plan's") {
  CaseRecord first = sample_case(), second = sample_case();
  second.index = 1;
  second.id = "with_cache/second";
  const TemporaryFile file(lines({to_json(sample_run()), to_json(second), to_json(first)}));
  const Records records = read_records(file.path());
  REQUIRE(records.cases.size() == 2);
  CHECK(records.cases[0].id == first.id);
  CHECK(records.cases[1].id == second.id);
}

TEST_CASE("a file without its end is read and has none") {
  const TemporaryFile file(lines({to_json(sample_run()), to_json(sample_case())}));
  CHECK_FALSE(read_records(file.path()).end);
}

TEST_CASE("broken files are refused with the line") {
  const std::string run = to_json(sample_run()).dump() + "\n";
  const std::string one = to_json(sample_case()).dump() + "\n";
  const std::string end = to_json(EndRecord{1, 1}).dump() + "\n";
  const auto with = [](Json json, const char* field, Json value) {
    json[field] = std::move(value);
    return json.dump() + "\n";
  };
  const auto without = [](Json json, const char* field) {
    json.erase(field);
    return json.dump() + "\n";
  };
  const Json case_json = to_json(sample_case());

  struct Row {
    std::string text, message;
  };
  const std::vector<Row> rows{
      {"", ":1: the file is empty"},
      {one, ":1: got a \"case\" record, wanted \"run\" first"},
      {run + run, ":2: got a second \"run\""},
      {run + one + one, ":3: the case \"with_cache/needle\" is there twice"},
      {run + one + end + one, ":4: got a \"case\" record after \"end\""},
      {run + "\n" + one, ":2: the line is empty"},
      {run + one.substr(0, 90), ":2: parse error"},
      {run + "[1]\n", ":2: got [1], wanted an object"},
      {run + "{\"record\":\"casé\"}\n", ":2.record: got \"casé\", wanted one of: run, case, end"},
      {run + with(case_json, "extra", 1), ":2: unknown field \"extra\""},
      {run + without(case_json, "index"), ":2: the field \"index\" is missing"},
      {run + with(case_json, "index", -1), ":2.index: got -1, wanted 0 or more"},
      {run + without(case_json, "repro"), ":2: the field \"repro\" is missing"},
      {run + with(case_json, "status", "passed"), ":2.status: got \"passed\""},
      {run + with(case_json, "worst_ratio", "inf"), ":2.worst_ratio: got \"inf\", wanted a number"},
      {run + with(case_json, "seconds", {{"run", "1"}}), ":2.seconds.run: got \"1\", wanted a number"},
      {run + with(case_json, "error_map",
                  {{"step", 0},
                   {"sequences", 1},
                   {"heads", 2},
                   {"positions", 2},
                   {"first_position", 0},
                   {"ratio", {1, 2, 3}}}),
       ":2.error_map.ratio: got 3 numbers, wanted 1 sequences x 2 heads x 2 positions"},
      {run + with(case_json, "error_map",
                  {{"step", 0},
                   {"sequences", 1},
                   {"heads", int64_t{1} << 62},
                   {"positions", int64_t{1} << 62},
                   {"first_position", 0},
                   {"ratio", {1}}}),
       ":2.error_map.ratio: got 1 numbers"},
      {with(to_json(sample_run()), "schema", "attest/records/9"), ":1.schema: got \"attest/records/9\""},
      {with(to_json(sample_run()), "planned", -1), ":1.planned: got -1, wanted 0 or more"},
  };
  for (const Row& row : rows) {
    CAPTURE(row.text);
    const TemporaryFile file(row.text);
    CHECK_THROWS_MATCHES(read_records(file.path()), Error,
                         MessageMatches(ContainsSubstring(file.path().string() + row.message)));
  }
}

TEST_CASE("every status has a name") {
  CHECK(name(Status::pass) == "pass");
  CHECK(name(Status::untrusted) == "untrusted");
}

}  // namespace
}  // namespace attest
