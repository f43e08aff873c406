// SPDX-License-Identifier: Apache-2.0
// An executor whose workers are confined: real backends compute in there as they do outside, and a submission that
// stops does so in its own sandbox.
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/matchers/catch_matchers_exception.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include "cases/suite.h"
#include "runner/execute.h"
#include "runner/sandbox.h"

namespace attest {
namespace {

namespace fs = std::filesystem;
using Catch::Matchers::MessageMatches;
using Catch::Matchers::StartsWith;

BackendChoice confined(const fs::path& library) {
  BackendChoice choice;
  choice.library = library;
  choice.worker.command = {ATTEST_WORKER};
  choice.sandbox = SandboxPolicy{};
  return choice;
}

TEST_CASE("an executor does not go on without a layer that its policy asks for") {
  BackendChoice choice = confined(ATTEST_TEST_BACKENDS "/attest-backend-hostile.so");
  choice.sandbox->without = {"bubblewrap"};
  Executor executor(choice);
  CHECK_THROWS_MATCHES(executor.open(), Error, MessageMatches(StartsWith("sandbox: no ")));
}

TEST_CASE("an executor tells the layers that its own workers had") {
  const fs::path library = fs::path(ATTEST_BACKENDS) / "attest-backend-template.so";
  if (!fs::exists(library)) SKIP("no backend template");
  BackendChoice choice = confined(library);
  choice.sandbox->insecure = true;
  choice.sandbox->without = {"rlimits"};
  Executor executor(choice);
  CHECK(executor.layers().empty());
  REQUIRE(executor.open());
  const auto trial = Sandbox::probe();
  REQUIRE(executor.layers().size() == trial.size());
  for (size_t i = 0; i < trial.size(); ++i) {
    CAPTURE(trial[i].name);
    CHECK(executor.layers()[i].name == trial[i].name);
    CHECK(executor.layers()[i].active == (trial[i].active && trial[i].name != "rlimits"));
  }
}

TEST_CASE("real backends pass in a sandbox what they pass outside") {
  for (const SandboxLayer& layer : Sandbox::probe()) {
    if (!layer.active) SKIP("no " << layer.name << ": " << layer.why);
  }
  // Not onednn3: the library that it links lies in the build folder, which no sandbox shows.
  const std::string name = GENERATE("template", "onednn");
  const fs::path library = fs::path(ATTEST_BACKENDS) / ("attest-backend-" + name + ".so");
  if (!fs::exists(library)) SKIP("no backend " << name);
  const Suite suite = load_suite(ATTEST_SOURCE_DIR);
  Subjects subjects(suite);
  Executor executor(confined(library), subjects.finder());
  const auto opened = executor.open();
  REQUIRE(opened);
  CHECK(opened->reply.message.empty());
  REQUIRE(opened->reply.status == ATTEST_OK);
  int passed = 0;
  for (size_t i = 0; i < suite.cases.size(); i += 12) {
    const Case& c = suite.cases[i];
    const CaseRecord record = executor.run(subjects.load(c), "");
    CAPTURE(c.id, record.reason);
    CHECK((record.status == Status::pass || record.status == Status::unsupported));
    if (record.status == Status::pass) ++passed;
  }
  CHECK(passed >= 5);
  CHECK(executor.workers() == 1);
}

}  // namespace
}  // namespace attest
