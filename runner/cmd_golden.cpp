// SPDX-License-Identifier: Apache-2.0
// attest golden make|check|verify
#include <fmt/core.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <memory>

#include "cases/sha256.h"
#include "cases/suite.h"
#include "golden/golden.h"
#include "runner/command.h"
#ifdef ATTEST_HAS_ORACLE
#include "golden/make.h"
#include "golden/oracle.h"
#endif

namespace attest {
namespace fs = std::filesystem;
namespace {

struct Options {
  bool all = false;
  bool quick = false;
  int jobs = default_jobs();
  Selection selection;
};

/// What a check by hashes alone has found, if nothing is wrong.
void print_quick(size_t checked, const Suite& suite) {
  fmt::print("{} of {} goldens match their case and their hash; nothing was computed again\n", checked,
             suite.cases.size());
}

#ifdef ATTEST_HAS_ORACLE

/// Counts on stderr: rewritten in place on a terminal, every tenth elsewhere.
class Counter {
 public:
  explicit Counter(size_t total) : total_(total), terminal_(::isatty(STDERR_FILENO) == 1) {}
  void done(const MadeGolden& made) {
    ++count_;
    if (terminal_) {
      fmt::print(stderr, "\r\033[K{}/{} {} ({:.1f} s){}", count_, total_, made.c->id, made.seconds,
                 count_ == total_ ? "\n" : "");
    } else if (count_ % std::max<size_t>(1, total_ / 10) == 0 || count_ == total_) {
      fmt::print(stderr, "{}/{} goldens\n", count_, total_);
    }
  }

 private:
  size_t total_, count_ = 0;
  bool terminal_;
};

bool is_current(const Manifest& manifest, const Case& c, const fs::path& root) {
  const auto entry = manifest.cases.find(c.id);
  if (manifest.oracle != oracle_version() || entry == manifest.cases.end() || entry->second.case_hash != c.hash)
    return false;
  const fs::path file = golden_path(root, c.id);
  return fs::exists(file) && sha256(read_file(file)) == entry->second.file_hash;
}

/// The case that `equals` names must have the same rows, bit for bit: both are the correctly rounded truth.
std::string unequal(const Suite& suite, const Manifest& manifest, const Case& c) {
  const auto rows = [&](const Case& one) {
    std::vector<double> values;
    for (const GoldenStep& step : load_golden(suite.root, manifest, one).steps) {
      values.insert(values.end(), step.output.value.begin(), step.output.value.end());
    }
    return values;
  };
  const Case* other = find_case(suite, c.equals);  // load_suite saw that it is there
  const auto mine = rows(c);
  const auto theirs = rows(*other);
  if (mine == theirs) return {};
  for (size_t i = 0; i < std::min(mine.size(), theirs.size()); ++i) {
    if (mine[i] != theirs[i]) {
      return fmt::format("{}: value {} is {}, {} has {}", c.id, i, mine[i], c.equals, theirs[i]);
    }
  }
  return fmt::format("{}: has {} values, {} has {}", c.id, mine.size(), c.equals, theirs.size());
}

/// Of these cases only: who asked for some has no word on the others.
void print_totals(const std::vector<const Case*>& cases, const Manifest& manifest, double seconds) {
  int64_t bytes = 0, values = 0, proven = 0, tie = 0, zero = 0;
  for (const Case* c : cases) {
    const ManifestEntry& entry = manifest.cases.at(c->id);
    bytes += entry.bytes;
    values += entry.values;
    proven += entry.proven;
    tie += entry.tie;
    zero += entry.zero;
  }
  fmt::print(
      "{} goldens, {} values: {:.4f}% proven correctly rounded, {} within one ulp, {} proven zeros; {:.1f} MiB; {:.1f} "
      "s\n",
      cases.size(), values, values == 0 ? 0.0 : 100.0 * static_cast<double>(proven) / static_cast<double>(values), tie,
      zero, static_cast<double>(bytes) / 1048576.0, seconds);
}

double since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

int check_equalities(const Suite& suite, const Manifest& manifest) {
  int broken = 0;
  for (const Case& c : suite.cases) {
    if (c.equals.empty()) continue;
    if (const std::string why = unequal(suite, manifest, c); !why.empty()) {
      fmt::print("not equal: {}\n", why);
      ++broken;
    }
  }
  return broken;
}

int make(const Common& common, const Options& options) {
  const auto start = std::chrono::steady_clock::now();
  const Suite suite = load_suite(find_suite(common.suite));
  Manifest manifest = read_manifest(suite.root);
  if (manifest.oracle != oracle_version()) {
    if (!manifest.cases.empty() && (!options.selection.ids.empty() || !options.selection.filter.empty())) {
      throw Error::at(manifest_path(suite.root).string(),
                      "was made by oracle \"{}\", this is \"{}\"; make all goldens, without a selection",
                      manifest.oracle, oracle_version());
    }
    manifest.cases.clear();
  }
  const auto cases = select(suite, options.selection);
  std::vector<const Case*> stale;
  for (const Case* c : cases) {
    if (options.all || !is_current(manifest, *c, suite.root)) stale.push_back(c);
  }
  // A case that is gone takes its golden along; but who asked for some cases has said nothing of the others.
  std::vector<std::string> gone;
  const bool selected = !options.selection.ids.empty() || !options.selection.filter.empty();
  for (const auto& [id, entry] : manifest.cases) {
    if (!selected && find_case(suite, id) == nullptr) gone.push_back(id);
  }
  for (const std::string& id : gone) {
    fs::remove(golden_path(suite.root, id));
    manifest.cases.erase(id);
    fmt::print("removed {}\n", id);
  }
  manifest.oracle = oracle_version();
  Counter counter(stale.size());
  make_goldens(stale, options.jobs, [&](const MadeGolden& made) {
    write_file(golden_path(suite.root, made.c->id), made.bytes);
    manifest.cases[made.c->id] = made.entry;
    write_file(manifest_path(suite.root), dump(manifest));  // nothing is lost if this is interrupted
    counter.done(made);
  });
  write_file(manifest_path(suite.root), dump(manifest));
  fmt::print("{} made, {} were current\n", stale.size(), cases.size() - stale.size());
  print_totals(cases, manifest, since(start));
  return manifest.cases.size() == suite.cases.size() && check_equalities(suite, manifest) > 0 ? exit_red : exit_ok;
}

int check(const Common& common, const Options& options) {
  const auto start = std::chrono::steady_clock::now();
  const Suite suite = load_suite(find_suite(common.suite));
  const Manifest manifest = read_manifest(suite.root);
  if (manifest.oracle != oracle_version()) {
    throw Error::at(manifest_path(suite.root).string(),
                    "was made by oracle \"{}\", this is \"{}\"; run `attest golden make`", manifest.oracle,
                    oracle_version());
  }
  int differing = 0;
  for (const auto& [id, entry] : manifest.cases) {
    if (find_case(suite, id) == nullptr) {
      fmt::print("without a case: {}\n", id);
      ++differing;
    }
  }
  const auto cases = select(suite, options.selection);
  for (const Case* c : cases) load_golden(suite.root, manifest, *c);
  if (!options.quick) {
    Counter counter(cases.size());
    make_goldens(cases, options.jobs, [&](const MadeGolden& made) {
      if (made.bytes != read_file(golden_path(suite.root, made.c->id)) ||
          made.entry.inputs_hash != manifest.cases.at(made.c->id).inputs_hash) {
        fmt::print("differs: {}\n", made.c->id);
        ++differing;
      }
      counter.done(made);
    });
  }
  if (options.selection.ids.empty() && options.selection.filter.empty()) differing += check_equalities(suite, manifest);
  print_totals(cases, manifest, since(start));
  if (options.quick && differing == 0) {
    print_quick(cases.size(), suite);
  } else {
    fmt::print("{} of {} goldens were computed again{}\n", options.quick ? 0 : cases.size(), suite.cases.size(),
               differing > 0 ? fmt::format("; wrong: {}", differing) : " and are the same, byte for byte");
  }
  return differing > 0 ? exit_red : exit_ok;
}

#else

int make(const Common&, const Options&) {
  throw Error("attest was built without Arb, so it can read goldens but not make them");
}
int check(const Common& common, const Options& options) {
  if (!options.quick) return make(common, options);
  const Suite suite = load_suite(find_suite(common.suite));
  const Manifest manifest = read_manifest(suite.root);
  const auto cases = select(suite, options.selection);
  for (const Case* c : cases) load_golden(suite.root, manifest, *c);
  print_quick(cases.size(), suite);
  return exit_ok;
}

#endif

void add_selection(CLI::App& command, Options& options) {
  command.add_option("--case", options.selection.ids, "Only this case (may be repeated)");
  command.add_option("--filter", options.selection.filter,
                     "Only cases whose identity line contains this, or matches it as a glob");
  command.add_option("--jobs,-j", options.jobs, "Threads")->check(CLI::Range(1, 256))->capture_default_str();
}

}  // namespace

void add_golden_command(CLI::App& app, const Common& common, int& exit_code) {
  CLI::App* golden =
      app.add_subcommand("golden", "Make the proven goldens, or check that they are what the oracle says");
  golden->require_subcommand(1);
  auto options = std::make_shared<Options>();

  CLI::App* make_command =
      golden->add_subcommand("make",
                             "Compute goldens by ball arithmetic for every case that has none or an outdated one.\n"
                             "Writes golden/data/<case>.safetensors and golden/manifest.json.");
  make_command->add_flag("--all", options->all, "Also those that are current");
  add_selection(*make_command, *options);
  make_command->callback([&common, &exit_code, options] { exit_code = make(common, *options); });

  CLI::App* check_command = golden->add_subcommand(
      "check", "Compute every golden again and compare byte for byte; exit code 1 if one differs.");
  check_command->add_flag("--quick", options->quick, "Only hashes: file against manifest, manifest against case");
  add_selection(*check_command, *options);
  check_command->callback([&common, &exit_code, options] { exit_code = check(common, *options); });
}

}  // namespace attest
