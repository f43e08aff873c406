// SPDX-License-Identifier: Apache-2.0
// attest doctor: what this machine and this installation have, and what is missing.
#include <dlfcn.h>
#include <fmt/core.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <thread>

#include "cases/suite.h"
#include "golden/golden.h"
#include "runner/command.h"
#include "runner/conventions.h"
#include "runner/machine.h"
#include "runner/places.h"
#include "runner/python.h"
#include "runner/reports.h"
#include "runner/sandbox.h"
#include "runner/version.h"
#include "runner/worker_client.h"

namespace attest {
namespace {

using namespace std::chrono_literals;

#ifdef __clang__
constexpr const char* kCompiler = "clang";
#else
constexpr const char* kCompiler = "g++";
#endif

/// One line: a mark, a subject, what is so. Counts what is broken (not what is merely absent).
class Report {
 public:
  void good(const std::string& subject, const std::string& text) const {
    line(colour_ ? "\033[32m✓\033[0m" : "✓", subject, text);
  }
  static void absent(const std::string& subject, const std::string& text) { line("-", subject, text); }
  void broken(const std::string& subject, const std::string& text) {
    line(colour_ ? "\033[31m✗\033[0m" : "✗", subject, text);
    ++broken_;
  }
  [[nodiscard]] int broken_count() const { return broken_; }

 private:
  static void line(const std::string& mark, const std::string& subject, const std::string& text) {
    fmt::print("{} {:<18} {}\n", mark, subject, text);
  }
  bool colour_ = use_colour(STDOUT_FILENO);
  int broken_ = 0;
};

void report_suite(Report& report, const Common& common) {
  try {
    const Suite suite = load_suite(find_suite(common.suite));
    report.good("suite", fmt::format("{} cases in {}, version {} ({})", suite.cases.size(), suite.root.string(),
                                     version(), suite_hash(suite.root)));
    const Manifest manifest = read_manifest(suite.root);
    for (const Case& c : suite.cases) load_golden(suite.root, manifest, c);
    report.good("goldens", fmt::format("all {} are there and match their cases", manifest.cases.size()));
  } catch (const Error& error) {
    report.broken("suite", error.what());
  }
}

/// What is wrong with a backend's declarations; empty if nothing is.
std::string undeclarable(const Json& declarations) {
  try {
    conventions_from_json(declarations, "its declarations");
    return {};
  } catch (const Error& error) {
    return error.what();
  }
}

/// Opens each backend in a worker of its own: one that crashes while loading is a line here.
void report_backends(Report& report) {
  const auto places = list_backends();
  if (places.empty()) {
    std::string searched;
    for (const auto& place : backend_places()) searched += (searched.empty() ? "" : ", ") + place.string();
    Report::absent("backends", "none in " + searched);
  }
  for (const auto& [name, path] : places) {
    WorkerOptions options;
    options.command = {find_worker().string()};
    Worker worker(options);
    const auto opened = worker.open(path.string(), {}, 10s);
    if (!opened) {
      report.broken("backend " + name, opened.error().text);
    } else if (opened->without_device()) {
      Report::absent("backend " + name, opened->reply.message);
    } else if (opened->reply.status != ATTEST_OK) {
      report.broken("backend " + name, opened->reply.message);
    } else if (const std::string wrong = undeclarable(opened->declarations); !wrong.empty()) {
      report.broken("backend " + name, wrong);
    } else {
      report.good("backend " + name, fmt::format("{} {} on {}, ABI {}: {}", opened->name, opened->version,
                                                 opened->device, opened->abi_version, opened->description));
    }
  }
}

/// The Python that runs functions and submissions.
void report_python(Report& report) {
  try {
    const Python python = choose_python();
    const std::string torch = python.torch.empty()
                                  ? "no PyTorch (ci/setup --grading): functions on NumPy only, no grading of .py files"
                                  : "PyTorch " + python.torch;
    report.good("Python", fmt::format("{} is {}, with {}, NumPy {}", python.program.string(), python.version, torch,
                                      python.numpy));
  } catch (const Error& error) {
    Report::absent("Python", error.what());
  }
  try {
    find_python_worker();
  } catch (const Error& error) {
    report.broken("Python worker", error.what());
  }
}

/// What holds submissions while they are graded. What is missing is no fault: only `attest grade` needs it.
void report_sandbox(Report& report) {
  try {
    bool whole = true;
    for (const SandboxLayer& layer : Sandbox::probe()) {
      whole = whole && layer.active;
      if (layer.active) {
        report.good("sandbox " + layer.name, layer.why);
      } else {
        Report::absent("sandbox " + layer.name, layer.why);
      }
    }
    if (!whole) Report::absent("grading", "refused while a layer of the sandbox is missing, or with --insecure");
  } catch (const Error& error) {
    report.broken("sandbox", error.what());
  }
}

int doctor(const Common& common) {
  Report report;
  const Machine machine = this_machine();
  report.good("attest",
              fmt::format("{}, ABI {}, built with {} {}", version(), ATTEST_ABI_VERSION, kCompiler, __VERSION__));
  report.good("machine", fmt::format("{}, {} cores, {}", machine.cpu, machine.cores, machine.system));
  report_suite(report, common);
#ifdef ATTEST_HAS_ORACLE
  report.good("oracle", "Arb: goldens can be made and checked");
#else
  Report::absent("oracle", "built without Arb: goldens can be read, not made");
#endif
  report_backends(report);
  report_python(report);
  report_sandbox(report);
  if (void* driver = ::dlopen("libcuda.so.1", RTLD_LAZY); driver != nullptr) {
    report.good("CUDA driver", "is there");
    ::dlclose(driver);
  } else {
    Report::absent("CUDA driver", "none: no GPU backend can run here");
  }
  if (report.broken_count() > 0) {
    fmt::print("\n{} broken\n", report.broken_count());
    return exit_red;
  }
  return exit_ok;
}

}  // namespace

void add_doctor_command(CLI::App& app, const Common& common, int& exit_code) {
  CLI::App* command = app.add_subcommand("doctor", "What this machine and installation have, and what is broken");
  command->footer(
      "Looks at the suite, its goldens, the oracle, every backend (each in a process of its own), Python, the\n"
      "layers of the sandbox (a process tries to get past them; spec/sandbox.md) and devices.\n"
      "Exit code 1 if something that is there does not work.");
  command->callback([&common, &exit_code] { exit_code = doctor(common); });
}

}  // namespace attest
