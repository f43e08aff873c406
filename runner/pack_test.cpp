// SPDX-License-Identifier: Apache-2.0
#include "runner/pack.h"

#include <unistd.h>

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_exception.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <cstring>
#include <set>

#include "cases/json.h"
#include "cases/sha256.h"
#include "runner/challenge.h"
#include "runner/pack_slips.h"
#include "runner/places.h"
#include "runner/rehearsal.h"

using namespace attest;
using Catch::Matchers::ContainsSubstring;
using Catch::Matchers::MessageMatches;
namespace fs = std::filesystem;

namespace {

const fs::path kFiles = fs::path(ATTEST_SOURCE_DIR) / "cases" / "challenge";

std::vector<std::byte> secret(const std::string& text) {
  std::vector<std::byte> bytes(text.size());
  std::memcpy(bytes.data(), text.data(), text.size());
  return bytes;
}

/// A folder that is gone afterwards.
struct Folder {
  fs::path path = fs::temp_directory_path() / fmt::format("attest-pack-test-{}", ::getpid());
  Folder() { fs::remove_all(path); }
  ~Folder() { fs::remove_all(path); }
};

const Pack& fresh() {
  static const Pack pack = make_pack(secret("0123456789abcdef"), kFiles / "test_cases.json", 2);
  return pack;
}

std::string shapes(const Pack& pack) {
  std::string all;
  for (const PackCase& one : pack.cases) {
    if (one.hidden) all += identity(one.c->problem) + "\n";
  }
  return all;
}

const PackCase& part(const Pack& pack, int number, const std::string& name, bool hidden = true) {
  const auto found = std::find_if(pack.cases.begin(), pack.cases.end(), [&](const PackCase& one) {
    return one.number == number && one.part == name && one.hidden == hidden;
  });
  REQUIRE(found != pack.cases.end());
  return *found;
}

}  // namespace

TEST_CASE("a fresh pack has the challenge's ten cases, those with a cache in parts") {
  const Pack& pack = fresh();
  CHECK(pack.warnings.empty());
  std::set<int> numbers;
  double weight = 0;
  for (const PackCase& one : pack.cases) {
    if (one.hidden && numbers.insert(one.number).second) weight += one.weight;
    const Subject subject = subject_of(one);
    CHECK(Material(subject).inputs.steps.size() == one.c->steps.size());
    CHECK(one.golden.steps.size() == one.c->steps.size());
    CHECK(one.worst_radius < 1.0 / 16);
  }
  CHECK(numbers == std::set<int>{1, 2, 3, 4, 5, 6, 7, 8, 9, 10});
  CHECK(weight == 100);
  for (const int number : {2, 8, 10}) {
    const auto& own = part(pack, number, "own cache");
    CHECK(std::count_if(own.c->steps.begin(), own.c->steps.end(),
                        [](const Step& step) { return step.kind == StepKind::attend; }) >= 3);
    CHECK(part(pack, number, "canonical cache").c->steps[0].kind == StepKind::load);
  }
  CHECK(part(pack, 4, "whole").c->problem.causal == Causal::none);
  CHECK(part(pack, 5, "whole").c->problem.query_heads == 1);
}

TEST_CASE("a canonical cache is the one that right steps leave") {
  const PackCase& own = part(fresh(), 8, "own cache");
  const PackCase& canonical = part(fresh(), 8, "canonical cache");
  // Step n of the one is step 1 + 3 (n - 1) of the other: reset, load, attend.
  for (size_t n = 1; n < own.golden.steps.size(); ++n) {
    const GoldenStep& step = canonical.golden.steps[3 * n - 2];
    REQUIRE(own.golden.steps[n].output.value.size() == step.output.value.size());
    for (size_t i = 0; i < step.output.value.size(); ++i) {
      const double off = std::abs(own.golden.steps[n].output.value[i] - step.output.value[i]);
      CHECK(off <= 8 * static_cast<double>(step.output.allowed[i]));  // what is loaded was rounded to f32
    }
  }
}

TEST_CASE("a secret decides all of a pack but the visible case") {
  const Pack again = make_pack(secret("0123456789abcdef"), kFiles / "test_cases.json", 1);
  CHECK(again.id == fresh().id);
  const Pack other = make_pack(secret("0123456789abcdeg"), kFiles / "test_cases.json", 2);
  CHECK(other.id != fresh().id);
  CHECK(shapes(other) != shapes(fresh()));
  CHECK(part(other, 1, "whole", false).c->inputs.given == part(fresh(), 1, "whole", false).c->inputs.given);
  for (const PackCase& one : other.cases) {
    if (one.hidden) CHECK(one.c->inputs.given != part(fresh(), one.number, "whole").c->inputs.given);
  }
}

TEST_CASE("a pack is read as it was written, or not at all") {
  const Folder folder;
  write_pack(fresh(), folder.path);
  const Pack read = read_pack(folder.path);
  CHECK(read.id == fresh().id);
  CHECK(pack_id(read) == read.id);
  REQUIRE(read.cases.size() == fresh().cases.size());
  for (size_t i = 0; i < read.cases.size(); ++i) {
    const PackCase &got = read.cases[i], &wanted = fresh().cases[i];
    CHECK(got.c->id == wanted.c->id);
    CHECK(got.c->hash == wanted.c->hash);
    CHECK(hash(*got.inputs) == hash(*wanted.inputs));
    CHECK(got.golden.steps.back().output.value == wanted.golden.steps.back().output.value);
    CHECK(got.part == wanted.part);
    CHECK(got.category == wanted.category);
  }
  CHECK((fs::status(folder.path).permissions() & (fs::perms::group_all | fs::perms::others_all)) == fs::perms::none);
  CHECK_THROWS_MATCHES(write_pack(read, folder.path), Error, MessageMatches(ContainsSubstring("is there already")));

  const fs::path data = folder.path / "data" / "hidden_03_whole.safetensors";
  const std::string bytes = read_file(data);
  std::string changed = bytes;
  changed.back() = static_cast<char>(changed.back() ^ 1);
  write_file(data, changed);
  CHECK_THROWS_MATCHES(read_pack(folder.path), Error, MessageMatches(ContainsSubstring("has changed")));
  write_file(data, bytes);

  write_file(folder.path / "data" / "more.safetensors", bytes);
  CHECK_THROWS_MATCHES(read_pack(folder.path), Error, MessageMatches(ContainsSubstring("in no case")));
  fs::remove(folder.path / "data" / "more.safetensors");

  Json json = read_json_file(folder.path / "pack.json");
  json["cases"][0]["weight"] = 50;
  write_file(folder.path / "pack.json", json.dump());
  CHECK_THROWS_MATCHES(read_pack(folder.path), Error, MessageMatches(ContainsSubstring("the pack has changed")));
  json["id"] = sha256(json["cases"].dump()).substr(0, 16);
  json["cases"][0]["case"]["problem"]["capacity"] = 64;
  json["id"] = sha256(json["cases"].dump()).substr(0, 16);
  write_file(folder.path / "pack.json", json.dump());
  CHECK_NOTHROW(read_pack(folder.path));  // whoever can write both may
  json["cases"][0]["case"]["problem"]["softcap"] = 2;
  json["id"] = sha256(json["cases"].dump()).substr(0, 16);
  write_file(folder.path / "pack.json", json.dump());
  CHECK_THROWS_MATCHES(read_pack(folder.path), Error, MessageMatches(ContainsSubstring("no problem of the challenge")));
  fs::remove(folder.path / "pack.json");
  CHECK_THROWS_MATCHES(read_pack(folder.path), Error, MessageMatches(ContainsSubstring("is no pack")));
}

TEST_CASE("a pack's cases in the organisers' format have the same goldens") {
  const Folder folder;
  write_pack(fresh(), folder.path);
  const Pack again =
      fill_challenge(folder.path / "challenge" / "test_cases.json",
                     folder.path / "challenge" / "test_cases_hidden.json", secret("another secret.."), 2);
  CHECK(again.warnings.empty());  // the expected numbers are right
  for (const PackCase& one : again.cases) {
    if (one.part != "whole") continue;
    const PackCase& wanted = part(fresh(), one.number, "whole", one.hidden);
    CHECK(one.c->inputs.given == wanted.c->inputs.given);
    CHECK(one.golden.steps.back().output.value == wanted.golden.steps.back().output.value);
  }
}

TEST_CASE("the organisers' files are filled") {
  const Pack pack =
      fill_challenge(kFiles / "test_cases.json", kFiles / "test_cases_hidden.json", secret("a secret of grader"), 2);
  CHECK(pack.warnings.empty());
  const PackCase& visible = part(pack, 1, "whole", false);
  const PackCase& first = part(pack, 1, "whole");
  const PackCase& second = part(pack, 2, "whole");
  // The visible case's values with other weights; then the cache that came of it.
  CHECK(first.inputs->steps[0].query.data == visible.inputs->steps[0].query.data);
  CHECK(first.inputs->weights.q.data != visible.inputs->weights.q.data);
  CHECK(second.inputs->weights.q.data == first.inputs->weights.q.data);
  const auto& keys = first.golden.steps[0].cache_key.value;
  CHECK(second.inputs->steps[0].key.data == std::vector<float>(keys.begin(), keys.end()));
  CHECK(part(pack, 7, "whole").inputs->steps[0].query.shape == std::vector<int64_t>{1, 64, 32});
  CHECK(part(pack, 10, "own cache").c->steps.size() == 4);
  CHECK(part(pack, 8, "whole").category == "Incremental generation");
}

TEST_CASE("files that cannot be filled are refused") {
  const auto key = secret("a secret of grader");
  CHECK_THROWS_MATCHES(fill_challenge({}, kFiles / "test_cases_hidden.json", key), Error,
                       MessageMatches(ContainsSubstring("give its file (--visible)")));
  CHECK_THROWS_MATCHES(fill_challenge(kFiles / "test_cases_hidden.json", {}, key), Error,
                       MessageMatches(ContainsSubstring("as the file of the visible case has it")));
  CHECK_THROWS_AS(fill_challenge({}, {}, key), Error);
  CHECK_THROWS_AS(fill_challenge("nowhere.json", {}, key), Error);
  CHECK_THROWS_AS(make_pack({}, {}), Error);
}

TEST_CASE("expected numbers that are wrong, and cases that show nothing, are warned of") {
  const Folder folder;
  fs::create_directories(folder.path);
  write_pack(fresh(), folder.path / "pack");
  ChallengeFile file = read_challenge(folder.path / "pack" / "challenge" / "test_cases.json");
  file.tests[0].output->data[5] += 1;
  write_file(folder.path / "wrong.json", to_json(file).dump());
  const Pack wrong = fill_challenge(folder.path / "wrong.json", {}, secret("a secret of grader"));
  REQUIRE(wrong.warnings.size() == 1);
  CHECK_THAT(wrong.warnings[0], ContainsSubstring("expected.output: element 5 is"));

  file = read_challenge(kFiles / "test_cases.json");
  for (float& x : file.tests[0].value.data) x = 0;
  for (float& x : file.tests[0].query.data) x = 0;
  for (float& x : file.tests[0].key.data) x = 0;
  write_file(folder.path / "zero.json", to_json(file).dump());
  const Pack zero = fill_challenge(folder.path / "zero.json", {}, secret("a secret of grader"));
  REQUIRE(zero.warnings.size() == 1);
  CHECK_THAT(zero.warnings[0], ContainsSubstring("does not show: ") && ContainsSubstring("causal mask missing"));
}

TEST_CASE("every slip that a case could have is looked for") {
  const auto names = possible_slips(*part(fresh(), 8, "whole").c);
  for (const char* name :
       {"scale missing", "causal mask that forgets the cache", "causal mask only without a cache",
        "softmax over queries", "cache ignored", "cached heads split without a transpose", "dropout"}) {
    CHECK(std::count(names.begin(), names.end(), name) == 1);
  }
  // Of a golden that is off, nothing else is asked.
  PackCase spoiled = part(fresh(), 1, "whole");
  spoiled.golden.steps[0].output.value[3] += 0.5;
  CHECK_THROWS_MATCHES(unnoticed_slips(*spoiled.c, *spoiled.inputs, spoiled.golden), Error,
                       MessageMatches(ContainsSubstring("allowed errors off")));
}

TEST_CASE("right backends pass a pack, and planted bugs do not") {
  const auto library = [](const char* name) {
    return executable_directory() / ".." / "lib" / "attest" / "backends" / fmt::format("attest-backend-{}.so", name);
  };
  const auto failing = [](const BackendLibrary& backend, const Pack& pack, const std::string& bug) {
    const Rehearsal rehearsal(
        backend, bug.empty() ? std::map<std::string, std::string>{} : std::map<std::string, std::string>{{"bug", bug}});
    std::set<int> numbers;
    for (const PackCase& one : pack.cases) {
      const Subject subject = subject_of(one);
      const Performance performance = rehearsal.play(Material(subject).script());
      INFO(one.c->id << " " << bug << ": " << performance.reason);
      CHECK(performance.status != Status::unsupported);
      if (bug.empty()) CHECK(performance.status == Status::pass);
      if (performance.failed() && one.hidden) numbers.insert(one.number);
    }
    return numbers;
  };
  const Pack filled =
      fill_challenge(kFiles / "test_cases.json", kFiles / "test_cases_hidden.json", secret("a secret of grader"), 2);
  failing(BackendLibrary(library("template")), fresh(), "");
  failing(BackendLibrary(library("template")), filled, "");
  const BackendLibrary mutants(library("mutants"));
  failing(mutants, fresh(), "");
  for (const auto& [bug, least] : std::map<std::string, size_t>{{"scale-by-d", 10},
                                                                {"scale-missing", 3},
                                                                {"causal-plus1", 8},
                                                                {"causal-strict", 9},
                                                                {"causal-topleft-cached", 3},
                                                                {"causal-skipped-cached", 2},
                                                                {"softmax-axis", 10},
                                                                {"softmax-no-max", 1},
                                                                {"cache-new-only", 3},
                                                                {"cache-pos-stuck", 3},
                                                                {"cache-concat-dim", 3},
                                                                {"split-heads", 7},
                                                                {"dropout-eval", 10}}) {
    INFO(bug);
    CHECK(failing(mutants, fresh(), bug).size() >= least);
    if (bug != "softmax-no-max") CHECK(failing(mutants, filled, bug).size() >= (least > 3 ? 3 : 1));
  }
}

TEST_CASE("secrets") {
  const Folder folder;
  fs::create_directories(folder.path);
  write_file(folder.path / "short", "0123456789");
  CHECK_THROWS_MATCHES(read_secret(folder.path / "short"), Error, MessageMatches(ContainsSubstring("has 10 bytes")));
  write_file(folder.path / "zeros", std::string(32, '\0'));
  CHECK_THROWS_MATCHES(read_secret(folder.path / "zeros"), Error, MessageMatches(ContainsSubstring("equal bytes")));
  write_file(folder.path / "good", std::string("\0\1\2\3\4\5\6\7\0\1\2\3\4\5\6\7", 16));
  CHECK(read_secret(folder.path / "good").size() == 16);
}
