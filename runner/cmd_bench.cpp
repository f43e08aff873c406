// SPDX-License-Identifier: Apache-2.0
// attest bench: how fast backends are, beside each other and beside what the machine can do. bench/ does it.
#include <fmt/core.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <cmath>
#include <fstream>
#include <memory>

#include "bench/ceiling.h"
#include "bench/measure.h"
#include "bench/page.h"
#include "bench/results.h"
#include "bench/table.h"
#include "bench/watch.h"
#include "cases/error.h"
#include "runner/command.h"
#include "runner/machine.h"
#include "runner/places.h"
#include "runner/version.h"

namespace attest {
namespace fs = std::filesystem;
namespace {

using namespace bench;

struct Arguments {
  std::vector<std::string> backends;
  std::string shapes = "decode", filter;
  fs::path out, file, other;
  Settings settings;
  double memory_gib = 0, threshold = 0.02;
  double timeout = 0;  ///< 0: patience() says.
  bool ab = false, aa = false, list = false;
};

/// What it is doing, on one line of a terminal; in a log, a line for each shape.
class Teller {
 public:
  void shape(const std::string& text) {
    shape_ = text;
    if (!terminal_) std::fprintf(stderr, "%s\n", text.c_str());
  }
  void detail(const std::string& text) {
    if (terminal_ && text != detail_) std::fprintf(stderr, "\r\033[K%s: %s", shape_.c_str(), text.c_str());
    detail_ = text;
  }
  void done() const {
    if (terminal_) std::fprintf(stderr, "\r\033[K");
  }

 private:
  bool terminal_ = ::isatty(STDERR_FILENO) == 1;
  std::string shape_, detail_;
};

std::string first_line(const char* path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line.empty() ? "unknown" : line;
}

/// Time that the hypervisor gave to others, in ticks since the start of the machine.
std::string stolen() {
  std::ifstream file("/proc/stat");
  std::string word;
  for (int i = 0; i < 9 && file >> word; ++i) {
  }
  return word;
}

std::map<std::string, std::string> facts_of(const std::vector<std::unique_ptr<Participant>>& backends,
                                            const Settings& settings, const Cores& cores) {
  std::map<std::string, std::string> facts{
      {"attest_version", version()},
      {"cpu", this_machine().cpu},
      {"cores_used", std::to_string(cores.count())},
      {"pinning", "one thread a core"},
      {"huge_pages", first_line("/sys/kernel/mm/transparent_hugepage/enabled")},
      {"multiply_add", multiply_add_name()},
      {"order_seed", std::to_string(settings.seed)},
      {"steal_ticks_before", stolen()},
  };
  for (const auto& backend : backends) {
    facts["backend " + backend->label()] =
        fmt::format("{} {}: {}", backend->table().name, backend->table().version, backend->table().description);
  }
  return facts;
}

std::vector<Shape> shapes_of(const Arguments& arguments) {
  std::vector<Shape> shapes = find_shapes(arguments.shapes);
  std::erase_if(shapes, [&](const Shape& shape) {
    return (shape.set + "/" + shape.name).find(arguments.filter) == std::string::npos;
  });
  if (shapes.empty()) throw Error::at("--filter", "no shape of {} has \"{}\"", arguments.shapes, arguments.filter);
  return shapes;
}

/// What stops a measurement between two turns.
struct Stopped {};

/// Exit code of a run that SIGINT or SIGTERM stopped.
constexpr int kStopped = 130;

/// An hour of measuring is lost where its results cannot be written: known before. Throws Error.
void try_place(const fs::path& out) {
  if (fs::is_directory(out)) throw Error::at("--out", "{} is a folder, wanted a file", out.string());
  const fs::path trial = out.string() + ".try";
  try {
    write_file(trial, "");
  } catch (const std::runtime_error& error) {
    throw Error::at("--out", "{} cannot be written: {}", out.string(), error.what());
  }
  std::error_code ignored;
  fs::remove(trial, ignored);
}

/// Seconds that may pass between two words of measure(): a backend's begin or a turn. Beyond any that is well.
double patience(const Arguments& arguments) {
  if (arguments.timeout > 0) return arguments.timeout;
  return std::max(60.0, 10 * arguments.settings.step_limit) + 2 * arguments.settings.seconds;
}

struct Run {
  Results results;        ///< What was written, read back as any reader will.
  bool stopped = false;   ///< By a signal: the shape that it met and those behind it are missing.
  std::string unwritten;  ///< Why --out lacks the last shapes.
};

void show(const Run& run, const fs::path& out) {
  if (run.results.list.empty()) return;
  fmt::print("{}", results_table(run.results));
  if (!out.empty() && run.unwritten.empty()) fmt::print("\nwritten: {}\n", out.string());
  std::fflush(stdout);
}

/// Measures and shows the table.
Run measure_all(const Arguments& arguments, const std::vector<std::string>& given, const fs::path& out) {
  const std::vector<Shape> shapes = shapes_of(arguments);
  if (!out.empty()) try_place(out);
  const Cores cores;
  Watch watch(patience(arguments));
  watch.now("the opening of backends");
  bind_openmp();
  auto backends = open_all(given, cores);
  watch.idle();
  Team team(cores);
  auto facts = facts_of(backends, arguments.settings, cores);
  Teller teller;
  std::vector<Measured> measured;
  std::string text;
  Run run;
  for (size_t i = 0; i < shapes.size() && !Watch::stopped(); ++i) {
    const std::string name = fmt::format("{}/{}", shapes[i].set, shapes[i].name);
    teller.shape(fmt::format("[{}/{}] {}", i + 1, shapes.size(), name));
    try {
      const Progress progress = [&](const std::string& what, const std::string& who) {
        if (Watch::stopped()) throw Stopped{};
        watch.now(fmt::format("{}, {}{}{}", name, what, who.empty() ? "" : ", ", who));
        teller.detail(what);
      };
      measured.push_back(measure(shapes[i], backends, cores, team, arguments.settings, progress));
    } catch (const Stopped&) {
      break;
    }
    watch.idle();
    facts["steal_ticks_after"] = stolen();
    text = results_json(measured, facts);
    // After each shape: who stops a long run keeps what it has.
    if (out.empty()) continue;
    try {
      write_file(out, text);
      Watch::kept(out);
      run.unwritten.clear();
    } catch (const std::runtime_error& error) {
      run.unwritten = error.what();
    }
  }
  watch.idle();
  teller.done();
  run.stopped = Watch::stopped();
  if (!text.empty()) run.results = parse_results(text, "results");
  show(run, out);  // Now: a backend that does not close takes with it what was not said.
  watch.now("the closing of backends");
  return run;
}

/// Whether a reason for no number says that the backend is at fault, and not only that it was not measured.
bool at_fault(const std::string& wrong) {
  static constexpr std::array<std::string_view, 4> kInnocent{"unsupported", "a cache takes",
                                                             "there is not enough memory", "one step takes"};
  return !wrong.empty() && std::none_of(kInnocent.begin(), kInnocent.end(),
                                        [&](std::string_view start) { return wrong.starts_with(start); });
}

int run_bench(const Arguments& given) {
  Arguments arguments = given;
  if (arguments.list) {
    for (const Shape& shape : shapes_of(arguments)) {
      fmt::print("{}/{}  {:.1f} MiB of KV\n", shape.set, shape.name, cost_of(shape).kv_bytes / 0x1p20);
    }
    return exit_ok;
  }
  if (arguments.backends.empty()) throw CLI::RequiredError("--backend");
  arguments.settings.memory = static_cast<int64_t>(arguments.memory_gib * 0x1p30);
  std::vector<std::string> backends = arguments.backends;
  if (arguments.aa) {
    if (backends.size() != 1)
      throw Error::at("--aa", "got {} backends, wanted one, which is measured twice", backends.size());
    backends.push_back(backends.front());
  }
  if (arguments.ab && backends.size() != 2) throw Error::at("--ab", "got {} backends, wanted two", backends.size());
  const Run run = measure_all(arguments, backends, arguments.out);
  const Results& results = run.results;
  if (!run.unwritten.empty()) throw Error(run.unwritten);
  if (run.stopped) {
    std::fprintf(stderr, "attest bench: stopped; shapes are missing\n");
    return kStopped;
  }
  if (!arguments.aa && !arguments.ab) {
    const auto of = [&](auto&& is) { return std::any_of(results.list.begin(), results.list.end(), is); };
    if (of([](const Result& r) { return at_fault(r.wrong); })) return exit_red;
    return of([](const Result& r) { return r.wrong.empty(); }) ? exit_ok : exit_code(Verdict::not_measured);
  }

  // Both sides were measured in the same rounds: the labels tell them apart.
  std::vector<std::string> labels;
  for (const Result& result : results.list) {
    if (std::find(labels.begin(), labels.end(), result.backend) == labels.end()) labels.push_back(result.backend);
  }
  const auto list = compare_results(results, results, arguments.threshold, labels.at(0), labels.at(1));
  fmt::print("\n{} against {}:\n{}", labels.at(1), labels.at(0), comparison_table(list));
  if (arguments.aa) {
    double largest = 0;
    for (const Compared& one : list) largest = std::max(largest, smallest_detectable(one.comparison));
    fmt::print("A/A: differences below {:.1f} % cannot be told from this machine's noise\n", 100 * largest);
  }
  const Verdict verdict = verdict_of(list);
  fmt::print("{}\n", name(verdict));
  return exit_code(verdict);
}

int run_compare(const Arguments& arguments) {
  const auto list = compare_results(read_results(arguments.file), read_results(arguments.other), arguments.threshold);
  fmt::print("{}", comparison_table(list));
  const Verdict verdict = verdict_of(list);
  fmt::print("{}\n", name(verdict));
  return exit_code(verdict);
}

int run_report(const Arguments& arguments) {
  const Results results = read_results(arguments.file);
  fs::path out = arguments.out;
  if (out.empty()) out = fs::path(arguments.file).replace_extension(".html");
  write_file(out, results_page(results));
  fmt::print("{}\nwritten: {}\n", results_table(results), out.string());
  return exit_ok;
}

/// Microseconds that the harness may add to a step.
constexpr double kMostOverhead = 1;

int run_overhead() {
  const fs::path noop = executable_directory() / "../lib/attest/attest-bench-noop.so";
  const Cores cores;
  bind_openmp();
  auto backends = open_all({noop.lexically_normal().string()}, cores);
  Team team(cores);
  Settings settings;
  settings.validate = false;
  const Shape shape = shapes_from_json(R"({"shapes": [{"set": "decode", "context": 512}]})", "overhead").front();
  const Measured measured = measure(shape, backends, cores, team, settings, [](const auto&...) {});
  double most = 0;
  for (const Series& series : measured.series) {
    const Summary step = summarise(series.samples());
    if (!series.wrong.empty()) throw Error::at("overhead", "{}: {}", name(series.temperature), series.wrong);
    if (step.n == 0) throw Error::at("overhead", "{}: nothing was measured", name(series.temperature));
    most = std::max(most, step.median);
    fmt::print("{:<4} a step that does nothing takes {:.3f} us (p99 {:.3f}, n {}): {:.2f} % of a step of 100 us\n",
               name(series.temperature), step.median, step.p99, step.n, step.median);
  }
  if (measured.series.empty()) throw Error::at("overhead", "nothing was measured");
  if (most <= kMostOverhead) return exit_ok;
  fmt::print("too much: {:.3f} us; a step may cost at most {:g} us, 1 % of 100 us\n", most, kMostOverhead);
  return exit_red;
}

/// CLI::Range lets NaN pass.
CLI::Validator within(double least, double most) {
  return {[least, most](std::string& text) -> std::string {
            double value = 0;
            if (CLI::detail::lexical_cast(text, value) && value >= least && value <= most) return {};
            return fmt::format("got {}, wanted a number from {:g} to {:g}", text, least, most);
          },
          fmt::format("FLOAT in [{:g} - {:g}]", least, most)};
}

/// Options of `bench` itself before a subcommand that does not have them would do nothing. Throws Error.
void refuse_others(const CLI::App& bench, const CLI::App& subcommand) {
  for (const CLI::Option* option : bench.get_options()) {
    if (option->count() == 0) continue;
    const std::string name = option->get_name();
    if (subcommand.get_option_no_throw(name) != nullptr) continue;
    throw Error::at(name, "does nothing for `attest bench {}`", subcommand.get_name());
  }
}

}  // namespace

void add_bench_command(CLI::App& app, const Common& /*common*/, int& exit_code) {
  auto arguments = std::make_shared<Arguments>();
  CLI::App* command = app.add_subcommand(
      "bench",
      "Measure backends beside each other and beside the machine's ceilings.\n"
      "\n"
      "  attest bench --backend onednn --out results.json\n"
      "  attest bench --ab --backend ./old.so --backend ./new.so --filter b1_\n"
      "  attest bench report results.json          an HTML page\n"
      "  attest bench compare A.json B.json        verdicts\n"
      "\n"
      "Exit codes: 0 measured, 1 a backend was wrong or failed, 5 nothing was measured, 130 stopped by a signal;\n"
      "of compare, --ab and --aa: 0 SAME, 1 SLOWER, 3 FASTER, 4 AMBIGUOUS, 5 NOT_MEASURED.\n"
      "Always 2: bad usage, or results that cannot be written. A backend that crashes ends all by its signal; one "
      "that\n"
      "calls exit() or hangs, with 1.");
  command->require_subcommand(0, 1);
  Settings& settings = arguments->settings;
  command
      ->add_option("--backend,-b", arguments->backends,
                   "A name that `attest doctor` lists or the path of a .so; with options: NAME,threads=2 (repeat)")
      ->allow_extra_args(false);
  command->add_option("--shapes", arguments->shapes, "decode, prefill, mixed, model:llama3-8b, or a FILE.json")
      ->capture_default_str();
  command->add_option("--filter", arguments->filter, "Only shapes with this in their name");
  command->add_option("--out,-o", arguments->out, "Write the results there, as Google Benchmark's JSON");
  command->add_option("--seconds", settings.seconds, "For each backend, shape and temperature")
      ->check(within(0.001, 3600))
      ->capture_default_str();
  command->add_option("--rounds", settings.rounds, "In which backends take turns")
      ->check(CLI::Range(1, 100000))
      ->capture_default_str();
  command->add_option("--step-limit", settings.step_limit, "Seconds; a shape whose step takes longer is not measured")
      ->check(within(0.001, 86400))
      ->capture_default_str();
  command
      ->add_option("--memory", arguments->memory_gib, "GiB for the copies of a cache (default: half of what is free)")
      ->check(within(0, 1e6));
  command
      ->add_option("--timeout", arguments->timeout,
                   "Seconds for a backend's begin or turn; one that takes longer has hung, and the run ends\n"
                   "(default: 60, or ten times --step-limit, and twice --seconds)")
      ->check(within(0.001, 86400));
  command->add_option("--seed", settings.seed, "Of the order")->capture_default_str();
  command->add_option("--threshold", arguments->threshold, "The smallest difference that counts, as a share")
      ->check(within(0.0001, 10))
      ->capture_default_str();
  CLI::Option* ab = command->add_flag("--ab", arguments->ab, "Compare two backends, the first as the baseline");
  command->add_flag("--aa", arguments->aa, "Compare a backend with itself: what can be told apart here")->excludes(ab);
  command->add_flag("--list", arguments->list, "Only list the shapes");
  command->callback([arguments, command, &exit_code] {
    if (command->get_subcommands().empty()) exit_code = run_bench(*arguments);
  });

  CLI::App* report = command->add_subcommand("report", "Write an HTML page of results");
  report->add_option("results", arguments->file, "A file of attest bench --out")->required()->check(CLI::ExistingFile);
  report->add_option("--out,-o", arguments->out, "Where to (default: beside it, .html)");
  report->callback([arguments, command, report, &exit_code] {
    refuse_others(*command, *report);
    exit_code = run_report(*arguments);
  });

  CLI::App* compare = command->add_subcommand("compare", "Compare two runs, round by round");
  compare->add_option("baseline", arguments->file, "A file of attest bench --out")
      ->required()
      ->check(CLI::ExistingFile);
  compare->add_option("candidate", arguments->other, "Another")->required()->check(CLI::ExistingFile);
  compare->add_option("--threshold", arguments->threshold, "The smallest difference that counts, as a share")
      ->check(within(0.0001, 10))
      ->capture_default_str();
  compare->callback([arguments, command, compare, &exit_code] {
    refuse_others(*command, *compare);
    exit_code = run_compare(*arguments);
  });

  CLI::App* overhead =
      command->add_subcommand("overhead", "What the harness itself adds to a step; 1 if that is more than 1 us");
  overhead->callback([command, overhead, &exit_code] {
    refuse_others(*command, *overhead);
    exit_code = run_overhead();
  });
}

}  // namespace attest
