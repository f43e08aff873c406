// SPDX-License-Identifier: Apache-2.0
// Points, reports and the class's journal, without a worker.
#include "runner/grade.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/wait.h>
#include <unistd.h>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <csignal>
#include <fstream>

#include "cases/sha256.h"
#include "runner/grade_batch.h"
#include "runner/grade_report.h"
#include "runner/grading_checks.h"
#include "runner/unique_fd.h"

namespace {

namespace fs = std::filesystem;
using namespace attest;
using Catch::Matchers::ContainsSubstring;

PartResult part(int number, bool hidden, Status status, const std::string& which = "whole") {
  PartResult one;
  one.number = number;
  one.name = "Name of " + std::to_string(number);
  one.category = "category of " + std::to_string(number);
  one.weight = number;
  one.hidden = hidden;
  one.part = which;
  one.id = "challenge/" + std::to_string(number);
  one.status = status;
  if (status == Status::pass) return one;
  one.reason = "SECRET <b>\x1b[31m words";
  Finding finding;
  finding.kind = "value";
  finding.text = "SECRET words";
  finding.got = std::numeric_limits<double>::quiet_NaN();
  finding.wanted = 41.5;
  finding.allowed = 1e-6;
  finding.total = 7;
  one.findings.push_back(finding);
  one.worst_ratio = std::numeric_limits<double>::infinity();
  return one;
}

GradeRun full_run() {
  GradeRun run;
  run.submission = "kv_attention.py";
  run.sha256 = std::string(64, 'a');
  run.kind = "python";
  run.pack = "0123456789abcdef";
  run.attest_version = "0.1.0";
  run.started = "2026-11-21T10:00:00Z";
  run.workers = 1;
  run.parts.push_back(part(0, false, Status::pass));
  for (int number = 1; number <= 10; ++number) run.parts.push_back(part(number, true, Status::pass));
  return run;
}

/// The check at this place does not pass.
GradeRun with(int number, Status status, const std::string& which = "whole") {
  GradeRun run = full_run();
  run.parts[static_cast<size_t>(number)] = part(number, number > 0, status, which);
  return run;
}

/// A folder of its own, gone at the end.
struct Scratch {
  fs::path path;
  Scratch() {
    std::string pattern = (fs::temp_directory_path() / "attest-grade-test-XXXXXX").string();
    REQUIRE(::mkdtemp(pattern.data()) != nullptr);
    path = pattern;
  }
  ~Scratch() { fs::remove_all(path); }
};

void write(const fs::path& path, const std::string& text) {
  fs::create_directories(path.parent_path());
  std::ofstream(path) << text;
}

Grade simple_grade(const BatchSubmission& one) {
  GradeRun run = full_run();
  run.submission = one.name;
  run.sha256 = std::string(64, 'b');
  return grade_run(std::move(run), Scheme{});
}

}  // namespace

TEST_CASE("points are 10, 25, 25 and 10") {
  const Grade grade = grade_run(full_run(), Scheme{});
  CHECK(grade.automatic == 70);
  CHECK(grade.automatic_possible == 70);
  CHECK(grade.status == Status::pass);
  REQUIRE(grade.groups.size() == 4);
  CHECK(grade.groups[0].possible == 10);
  CHECK(grade.groups[1].possible == 25);
  CHECK(grade.groups[2].possible == 25);
  CHECK(grade.groups[3].possible == 10);
  CHECK(grade.total() == 70);
  CHECK_FALSE(grade.complete());
}

TEST_CASE("a case costs its share of its group, a part its share of the case") {
  CHECK(grade_run(with(2, Status::fail), Scheme{}).automatic == 63.75);
  CHECK(grade_run(with(9, Status::crash), Scheme{}).automatic == 65);
  CHECK(grade_run(with(0, Status::timeout), Scheme{}).automatic == 60);
  GradeRun run = with(8, Status::fail, "own cache");
  run.parts.insert(run.parts.begin(), part(8, true, Status::pass, "canonical cache"));  // in any order
  const Grade grade = grade_run(run, Scheme{});
  CHECK(grade.groups[2].points == 21.88);  // 25 - 6.25 / 2, on the grid of a hundredth
  CHECK(grade.cases[8].status == Status::fail);
  CHECK(grade.cases[8].parts.size() == 2);
  CHECK(grade.cases.front().number == 0);
}

TEST_CASE("the organisers' weights share the hidden points out") {
  const Scheme scheme{.weights = true};
  const Grade grade = grade_run(with(10, Status::fail), scheme);  // weights 1 to 10: 10 of 55
  CHECK(grade.cases[10].possible == 10.909091);
  CHECK(grade.automatic_possible == 70);
  CHECK(grade.groups[0].possible == 10);
  GradeRun none = full_run();
  for (PartResult& one : none.parts) one.weight = 0;
  CHECK_THROWS_AS(grade_run(none, scheme), Error);
}

TEST_CASE("checks that count share half of the visible points") {
  GradeRun run = full_run();
  run.checks.push_back({"overflow", "raises", true, Status::pass, ""});
  run.checks.push_back({"reset_cache", "gives", true, Status::fail, "no"});
  run.checks.push_back({"sample_input", "repeats", false, Status::crash, "no"});
  const Grade grade = grade_run(run, Scheme{});
  CHECK(grade.cases[0].possible == 5);
  CHECK(grade.checks[0].points == 2.5);
  CHECK(grade.checks[1].points == 0);
  CHECK(grade.checks[2].possible == 0);
  CHECK(grade.automatic == 67.5);
  CHECK(grade.automatic_possible == 70);
  CHECK(grade.status == Status::fail);  // of those that count
}

TEST_CASE("the verdict is the worst one, and nothing judged is no pass") {
  GradeRun run = with(3, Status::fail);
  run.parts[5] = part(5, true, Status::timeout);
  run.parts[6] = part(6, true, Status::error);
  CHECK(grade_run(run, Scheme{}).status == Status::timeout);
  run.parts[7] = part(7, true, Status::crash);
  CHECK(grade_run(run, Scheme{}).status == Status::crash);
  CHECK(grade_run(with(4, Status::unsupported), Scheme{}).automatic == 63.75);
  GradeRun nothing = full_run();
  nothing.parts.clear();
  CHECK(grade_run(nothing, Scheme{}).status == Status::error);
  CHECK(grade_run(nothing, Scheme{}).automatic == 0);
  CHECK_THROWS_AS(grade_run(full_run(), Scheme{.points = {1, 2}}), Error);
  CHECK_THROWS_AS(grade_run(full_run(), Scheme{.points = {1, 2, 3, std::nan("")}}), Error);
}

TEST_CASE("a grade survives JSON") {
  GradeRun run = with(2, Status::fail);
  run.parts[3].reason = std::string("bytes \xff\x01", 8);
  run.checks.push_back({"overflow", "raises", true, Status::fail, "returned"});
  run.layers.push_back({"seccomp", false, "not there"});
  run.notes = {"a note"};
  run.diagnosis.emplace();
  run.diagnosis->line = "no diagnosis: none";
  run.diagnosis->verdict = Diagnosis::Verdict::unavailable;
  Grade grade = grade_run(run, Scheme{.weights = true});
  grade.manual = {24.5, std::nullopt, "well done", "me"};
  const Json json = to_json(grade);
  const Json again = parse_json(json.dump(), "test");
  CHECK(to_json(grade_from_json(again, "test")) == again);
  CHECK(again.at("total") == grade.automatic + 24.5);

  for (const auto& item : json.items()) {
    if (item.key() == "diagnosis") continue;
    Json without = json;
    without.erase(item.key());
    CHECK_THROWS_AS(grade_from_json(without, "test"), Error);
    Json wrong = json;
    wrong[item.key()] = Json::array({Json::array()});
    CHECK_THROWS_AS(grade_from_json(wrong, "test"), Error);
  }
}

TEST_CASE("a grade without all of its groups is refused: reports take them for granted") {
  const Json whole = to_json(grade_run(full_run(), Scheme{}));
  for (const size_t gone : {0, 1, 2, 3}) {
    Json json = whole;
    json["groups"].erase(gone);
    CHECK_THROWS_AS(grade_from_json(json, "test"), Error);
  }
  Json twice = whole;
  twice["groups"][1] = twice["groups"][0];
  CHECK_THROWS_AS(grade_from_json(twice, "test"), Error);
}

TEST_CASE("a person's points are checked") {
  const auto read = [](const char* text) { return manual_from_json(parse_json(text, "m"), "m"); };
  CHECK(read(R"({"review": 30, "bonus": 10, "comment": "c", "grader": "g"})").review == 30);
  CHECK_FALSE(read("{}").review.has_value());
  for (const char* wrong :
       {R"({"review": 30.5})", R"({"bonus": -1})", R"({"review": "30"})", R"({"reviw": 3})", "[]"}) {
    CHECK_THROWS_AS(read(wrong), Error);
  }
}

TEST_CASE("points as text") {
  CHECK(points_text(6.25) == "6.25");
  CHECK(points_text(10) == "10");
  CHECK(points_text(0) == "0");
  CHECK(points_text(62.5) == "62.5");
}

TEST_CASE("a student sees a hidden case's category and nothing else of it") {
  GradeRun run = with(2, Status::fail);
  run.parts[9] = part(9, true, Status::error);
  run.printed = "SECRET printed";
  run.notes = {"SECRET note"};
  run.checks.push_back({"sample_input", "SECRET check", false, Status::fail, "SECRET"});
  run.diagnosis.emplace();
  run.diagnosis->line = "SECRET diagnosis";
  run.diagnosis->verdict = Diagnosis::Verdict::unexplained;
  const Grade grade = grade_run(run, Scheme{});
  for (const std::string& text : {grade_text(grade, Reader::student, false), gradescope_report(grade, Reader::student),
                                  grade_junit(grade, Reader::student)}) {
    CHECK_THAT(text, ContainsSubstring("category of 2"));
    CHECK_THAT(text, ContainsSubstring("category of 9"));
    for (const char* secret : {"SECRET", "41.5", "Name of 2", "Name of 9", "challenge/", "0123456789abcdef"}) {
      INFO(text);
      CHECK(text.find(secret) == std::string::npos);
    }
  }
  for (const std::string& text : {grade_text(grade, Reader::grader, false), gradescope_report(grade, Reader::grader),
                                  grade_junit(grade, Reader::grader), to_json(grade).dump()}) {
    CHECK_THAT(text, ContainsSubstring("SECRET"));
    CHECK(text.find('\x1b') == std::string::npos);
  }
  CHECK(grade_junit(grade, Reader::grader).find("<b>") == std::string::npos);
}

TEST_CASE("the visible case's own words are a student's") {
  const Grade grade = grade_run(with(0, Status::error), Scheme{});
  CHECK_THAT(grade_text(grade, Reader::student, false), ContainsSubstring("SECRET"));
  const Json report = parse_json(gradescope_report(grade, Reader::student), "gradescope");
  CHECK(report.at("score") == 60);
  CHECK(report.at("stdout_visibility") == "hidden");
  CHECK(report.at("tests").size() == 11);
  double possible = 0;
  for (const Json& test : report.at("tests")) {
    possible += test.at("max_score").get<double>();
    CHECK(test.at("visibility") == "visible");
  }
  CHECK(possible == 70);
  const Json graders = parse_json(gradescope_report(grade, Reader::grader), "gradescope");
  CHECK(graders.at("tests").back().at("visibility") == "hidden");
}

TEST_CASE("a table that no spreadsheet takes for a program") {
  GradeRun run = full_run();
  run.submission = "=cmd|' /C calc'!A0,\"x\"";
  run.refused = "a\nb,c";
  const std::string csv = grades_csv({grade_run(run, Scheme{})});
  CHECK_THAT(csv, ContainsSubstring("\r\n\"'=cmd|' /C calc'!A0,\"\"x\"\"\",pass,70,70,10,25,25,10,"));
  CHECK_THAT(csv, ContainsSubstring("\"a\\nb,c\""));
  CHECK(std::count(csv.begin(), csv.end(), '\n') == 2);
}

TEST_CASE("a formula is found behind all that spreadsheets skip or split at") {
  for (const std::string before : {"", " ", "   ", "\t", "\r", "\r\n", "\"", " \"", "\"\"", "\u00a0", "\u3000",
                                   "\ufeff", "x;", "x; ", "x;\"", "x\";\t", "'=1;"}) {
    for (const std::string sign : {"=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20"}) {
      INFO(before << sign);
      CHECK(without_formulas(before + sign + "1+1") == fmt::format("{}'{}1+1", before, sign));
    }
  }
  for (const std::string text : {"", " ", "anna.py", "a=b", "x, -1", "a - b", "ä=1", "(-1)", "; x", "'=1"}) {
    CHECK(without_formulas(text) == text);
  }
  GradeRun run = full_run();
  run.submission = "anna;=1+1";
  run.refused = "\t=1+1";
  const std::string csv = grades_csv({grade_run(run, Scheme{})});
  // Quoted too: where ; separates, the name stays one cell.
  CHECK_THAT(csv, ContainsSubstring("\r\n\"anna;'=1+1\",pass,"));
  CHECK_THAT(csv, ContainsSubstring(",\\t=1+1,"));
}

TEST_CASE("checks judge what a worker tells, whatever form it has") {
  const auto checks = interface_checks(16, 8);
  REQUIRE(checks.size() == 6);
  const auto call = [](const Json& returned) {
    return Json{{"missing", false}, {"raised", nullptr}, {"error", nullptr}, {"returned", returned}};
  };
  const auto raising = [](const char* type) {
    return Json{{"missing", false}, {"raised", type}, {"error", "words"}, {"returned", nullptr}};
  };
  const auto calls = [](std::initializer_list<Json> list) { return Json{{"calls", Json(list)}}; };
  const auto dict = [&](const Json& items) { return call({{"type", "dict"}, {"items", items}}); };
  const auto info = [&](const Json& length, const Json& size, const Json& full) {
    return calls({dict({{"cache_length", length}, {"cache_size_mb", size}, {"is_full", full}})});
  };
  const auto status = [&](size_t check, const std::vector<Json>& details) {
    return judge_check(checks[check], details).status;
  };

  CHECK(status(0, {calls({call(nullptr)}), calls({raising("ValueError")})}) == Status::pass);
  CHECK(status(0, {calls({call(nullptr)}), calls({raising("RuntimeError")})}) == Status::fail);
  CHECK(status(0, {calls({raising("ValueError")}), calls({raising("ValueError")})}) == Status::fail);

  const Json no = raising("ValueError");
  CHECK(status(1, {calls({call(nullptr), no, no, no, no, no})}) == Status::pass);
  CHECK(status(1, {calls({call(nullptr), no, no, call(nullptr), no, no})}) == Status::fail);
  CHECK(status(1, {calls({no, no, no, no, no, no})}) == Status::fail);
  CHECK(status(1, {calls({call(nullptr), no})}) == Status::fail);

  CHECK(status(2, {calls({dict({{"key", nullptr}, {"value", nullptr}})})}) == Status::pass);
  CHECK(status(2, {calls({dict({{"key", nullptr}})})}) == Status::fail);
  CHECK(status(2, {calls({call(nullptr)})}) == Status::fail);

  CHECK(status(3, {info(0, 0, false), info(2, 0.1, false), info(8, 0.4, true)}) == Status::pass);
  CHECK(status(3, {info(0, 0, false), info(16, 0.1, false), info(8, 0.4, true)}) == Status::fail);
  CHECK(status(3, {info(0, 0, false), info(2, 0.1, false), info(8, 0.4, false)}) == Status::fail);

  const auto tensor = [&](const Json& values) { return calls({call({{"type", "tensor"}, {"values", values}})}); };
  CHECK(status(4, {tensor({0, 1, 2, 3}), tensor({3, 4, 5, 6, 7})}) == Status::pass);
  CHECK(status(4, {tensor({0, 1, 2, 3}), tensor({0, 1, 2, 3, 4})}) == Status::fail);

  CHECK(status(5, {calls({call(1), call(1), call(2)})}) == Status::pass);
  CHECK(status(5, {calls({call(1), call(3), call(2)})}) == Status::fail);
  CHECK_FALSE(checks[5].counts);

  // Garbage of every kind is a failure, never more.
  const std::vector<Json> garbage{nullptr,
                                  3,
                                  "x",
                                  Json::array(),
                                  Json::object(),
                                  {{"calls", 3}},
                                  {{"calls", {1, 2}}},
                                  calls({call({{"type", 3}, {"items", 3}, {"values", {{}, "x"}}})}),
                                  {{"calls", Json::array({nullptr, nullptr, nullptr, nullptr, nullptr, nullptr})}}};
  for (const auto& check : checks) {
    CHECK(judge_check(check, {}).status == Status::fail);
    for (const Json& one : garbage) {
      CHECK(judge_check(check, std::vector<Json>(check.probes.size(), one)).status == Status::fail);
    }
  }
}

TEST_CASE("a class is found in files and folders") {
  const Scratch scratch;
  write(scratch.path / "b.py", "");
  write(scratch.path / "a.so", "");
  write(scratch.path / "notes.txt", "");
  write(scratch.path / ".hidden.py", "");
  write(scratch.path / "carol/kv_attention.py", "");
  write(scratch.path / "carol/other.py", "");
  write(scratch.path / "dan/solution.py", "");
  write(scratch.path / "eve/x.py", "");
  write(scratch.path / "eve/y.py", "");
  write(scratch.path / "frank/readme.md", "");
  fs::create_directory_symlink("/usr/lib", scratch.path / "link");
  const auto list = find_submissions(scratch.path);
  std::vector<std::string> names;
  for (const auto& one : list) names.push_back(one.name + (one.problem.empty() ? "" : "!"));
  CHECK(names == std::vector<std::string>{"a.so", "b.py", "carol", "dan", "eve!", "frank!", "link!", "notes.txt!"});
  CHECK(list[2].file.filename() == "kv_attention.py");
  CHECK_THROWS_AS(find_submissions(scratch.path / "frank"), Error);
  CHECK_THROWS_AS(find_submissions(scratch.path / "nowhere"), Error);
}

TEST_CASE("no entry of a class stops it or is lost") {
  const Scratch scratch;
  const fs::path folder = scratch.path / "class";
  write(folder / "anna.py", "");
  write(folder / "anna.ipynb", "");
  write(folder / "notes.PY", "");
  write(folder / "a\nb.py", "");
  write(folder / "a\\nb.py", "");
  write(folder / ("a\\nb.py-" + sha256("a\nb.py").substr(0, 8)), "");  // as if to take the other's name
  write(folder / "out/journal.jsonl", "{\"schema\":\"attest/grades/1\",\"terms\":\"\"}\n");
  write(folder / "liar/journal.jsonl", "{\"schema\":\"attest/grades/1\",\"terms\":\"\"}\n");
  write(folder / "liar/kv_attention.py", "");
  fs::create_symlink("z.py", folder / "z.py");
  fs::create_directory_symlink("liar", folder / "dora");
  std::map<std::string, BatchSubmission> found;
  for (const auto& one : find_submissions(folder)) CHECK(found.emplace(one.name, one).second);
  CHECK(found.size() == 10);
  for (const char* link : {"z.py", "dora"}) {
    CHECK_THAT(found.at(link).problem, ContainsSubstring("symbolic link"));
    CHECK(found.at(link).file.empty());
    CHECK_FALSE(found.at(link).ignored);
  }
  for (const char* other : {"anna.ipynb", "notes.PY", "out"}) CHECK(found.at(other).ignored);
  CHECK(found.at("liar").problem.empty());
  CHECK(found.at("a\\nb.py").file == folder / "a\\nb.py");
  CHECK(found.at("a\\nb.py-" + sha256("a\nb.py").substr(0, 16)).file == folder / "a\nb.py");
}

TEST_CASE("what is ignored is told of, and has no grade") {
  const Scratch scratch;
  write(scratch.path / "class/anna.py", "");
  write(scratch.path / "class/notes.PY", "");
  const auto hash = [](const BatchSubmission&) { return std::string(64, 'b'); };
  std::map<std::string, std::string> told;
  const auto tell = [&](const Batch::Told& one) { told[one.submission->name] = one.grade ? "graded" : one.problem; };
  {
    const BatchFolder folder(scratch.path / "class/out");
    Batch batch(folder, "terms");
    const auto submissions = find_submissions(scratch.path / "class");
    CHECK(batch.run(submissions, 1, std::chrono::seconds(60), hash, simple_grade, tell) == 0);
    CHECK(told.at("anna.py") == "graded");
    CHECK_THAT(told.at("notes.PY"), ContainsSubstring("neither"));
    CHECK_THAT(told.at("out"), ContainsSubstring("folder of grades"));
  }
  {
    // Even before its journal can be seen.
    fs::create_directory(scratch.path / "class/new");
    const auto submissions = find_submissions(scratch.path / "class");
    const BatchFolder folder(scratch.path / "class/new");
    Batch batch(folder, "terms");
    CHECK(batch.run(submissions, 1, std::chrono::seconds(60), hash, simple_grade, tell) == 0);
    CHECK_THAT(told.at("new"), ContainsSubstring("folder of grades"));
  }
  const BatchFolder folder(scratch.path / "class");
  Batch batch(folder, "terms");
  CHECK_THROWS_WITH(
      batch.run(find_submissions(scratch.path / "class"), 1, std::chrono::seconds(60), hash, simple_grade, tell),
      ContainsSubstring("another folder"));
}

TEST_CASE("what is for graders is their own, in a folder that all may read") {
  const Scratch scratch;
  const fs::path out = scratch.path / "out";
  const auto mode = [&](const char* name) { return static_cast<int>(fs::status(out / name).permissions()); };
  write(out / "grades.csv", "old");
  fs::create_directory(out / "for_graders");
  for (const char* name : {".", "for_graders"}) fs::permissions(out / name, fs::perms(0755));
  fs::permissions(out / "grades.csv", fs::perms(0644));
  {
    const BatchFolder folder(out);
    CHECK(mode("for_graders") == 0700);
    CHECK(mode("grades.csv") == 0600);
    folder.write("grades.csv", "new");
    CHECK(mode("grades.csv") == 0600);
    CHECK(read_file(out / "grades.csv") == "new");
    fs::permissions(out / "grades.csv", fs::perms(0644));
  }
  CHECK(mode("grades.csv") == 0600);
}

TEST_CASE("two names never become one file") {
  CHECK(file_name("anna.py") == "anna.py");
  CHECK(file_name("../x") != file_name(".._x"));
  CHECK(file_name("../x").find('/') == std::string::npos);
  CHECK(file_name("..").front() != '.');
  CHECK_FALSE(file_name("").empty());
  CHECK(file_name(std::string(300, 'a')).size() < 120);
}

TEST_CASE("a batch that was killed goes on: nothing is lost or graded twice") {
  const Scratch scratch;
  const fs::path out = scratch.path / "out", log = scratch.path / "log";
  std::vector<BatchSubmission> submissions;
  for (int i = 0; i < 12; ++i) submissions.push_back({"s" + std::to_string(i), "x.py", ""});
  const auto hash = [](const BatchSubmission&) { return std::string(64, 'b'); };
  const auto graded = [&](const BatchSubmission& one) {
    ::usleep(20000);
    return simple_grade(one);
  };
  const auto line = [&](const std::string& text) { std::ofstream(log, std::ios::app) << text << std::endl; };

  for (int round = 0; round < 3; ++round) {
    const pid_t child = ::fork();
    REQUIRE(child >= 0);
    if (child == 0) {
      try {
        const BatchFolder folder(out);
        Batch batch(folder, "terms");
        batch.run(submissions, 2, std::chrono::seconds(60), hash, graded, [&](const Batch::Told& told) {
          if (!told.resumed) line(told.submission->name);
        });
      } catch (...) {
        ::_exit(1);
      }
      ::_exit(0);
    }
    // Its first line and three grades more than before, and then anywhere in a grade.
    const auto lines = [&] {
      const std::string journal = fs::exists(out / "journal.jsonl") ? read_file(out / "journal.jsonl") : "";
      return std::count(journal.begin(), journal.end(), '\n');
    };
    for (int tries = 0; tries < 10000 && lines() < 4 + 3 * round; ++tries) ::usleep(1000);
    ::usleep(static_cast<useconds_t>(7000 * round));
    ::kill(child, SIGKILL);
    ::waitpid(child, nullptr, 0);
    // Its children end with it, and with them their hold on the lock.
    const UniqueFd lock(::open((out / "lock").c_str(), O_RDWR | O_CLOEXEC));
    REQUIRE(::flock(lock.get(), LOCK_EX) == 0);
    std::ofstream(out / "journal.jsonl", std::ios::app) << R"({"half a li)";
  }
  const BatchFolder folder(out);
  Batch batch(folder, "terms");
  size_t told = 0, resumed = 0;
  CHECK(batch.run(submissions, 2, std::chrono::seconds(60), hash, graded, [&](const Batch::Told& one) {
    ++told;
    resumed += one.resumed ? 1 : 0;
    CHECK(one.grade != nullptr);
    CHECK(one.grade->run.submission == one.submission->name);
    if (!one.resumed) line(one.submission->name);
  }) == 0);
  CHECK(told == 12);
  CHECK(resumed > 0);
  // Each has one line in the journal, beside the first one.
  const std::string journal = read_file(out / "journal.jsonl");
  CHECK(std::count(journal.begin(), journal.end(), '\n') == 13);
  for (const BatchSubmission& one : submissions) CHECK(batch.find(one.name, hash(one)) != nullptr);
  CHECK(batch.find("s0", "another") == nullptr);  // changed since: is graded again
}

TEST_CASE("a batch tells what could not be graded, and tries it again") {
  const Scratch scratch;
  const BatchFolder folder(scratch.path / "out");
  Batch batch(folder, "terms");
  const std::vector<BatchSubmission> submissions{{"crash", "", ""}, {"good", "", ""}, {"throws", "", ""}};
  const auto hash = [](const BatchSubmission&) { return std::string(64, 'b'); };
  const auto grade = [](const BatchSubmission& one) {
    if (one.name == "crash") std::raise(SIGKILL);
    if (one.name == "throws") throw Error("the machine is at fault");
    return simple_grade(one);
  };
  std::map<std::string, std::string> problems;
  const auto told = [&](const Batch::Told& one) { problems[one.submission->name] = one.problem; };
  CHECK(batch.run(submissions, 2, std::chrono::seconds(60), hash, grade, told) == 2);
  CHECK_THAT(problems.at("crash"), ContainsSubstring("SIGKILL"));
  CHECK(problems.at("throws") == "the machine is at fault");
  CHECK(problems.at("good").empty());
  CHECK(batch.run(submissions, 1, std::chrono::seconds(60), hash, simple_grade, told) == 0);
}

TEST_CASE("a batch's folder belongs to one process, and to one set of terms") {
  const Scratch scratch;
  {
    const BatchFolder folder(scratch.path / "out");
    CHECK_THROWS_AS(BatchFolder(scratch.path / "out"), Error);
    const Batch batch(folder, "pack a");
    CHECK((fs::status(scratch.path / "out").permissions() & fs::perms::others_all) == fs::perms::none);
  }
  const BatchFolder folder(scratch.path / "out");
  CHECK_THROWS_WITH(Batch(folder, "pack b"), ContainsSubstring("on other terms"));
  write(scratch.path / "out/journal.jsonl", "{\"schema\":\"attest/grades/1\",\"terms\":\"pack a\"}\n{}\n");
  CHECK_THROWS_AS(Batch(folder, "pack a"), Error);
}
