// SPDX-License-Identifier: Apache-2.0
// attest cases list|show|trace
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <memory>

#include "cases/catalogue.h"
#include "cases/suite.h"
#include "cases/timeline.h"
#include "golden/golden.h"
#include "runner/command.h"
#include "runner/subjects.h"
#include "runner/trace.h"

namespace attest {
namespace {

struct Options {
  Selection selection;
  bool json = false;
  std::string id;
};

Json summary(const Case& c) {
  return {{"id", c.id},           {"family", c.family}, {"profiles", c.profiles},        {"about", c.about},
          {"clauses", c.clauses}, {"kills", c.kills},   {"problem", to_json(c.problem)}, {"identity", identity(c)}};
}

int list(const Common& common, const Options& options) {
  const Suite suite = load_suite(find_suite(common.suite));
  const auto cases = select(suite, options.selection);
  for (const Case* c : cases) {
    if (options.json) {
      fmt::print("{}\n", summary(*c).dump());
    } else {
      fmt::print("{}\n", identity(*c));
    }
  }
  if (!options.json) fmt::print(stderr, "{} of {} cases\n", cases.size(), suite.cases.size());
  return exit_ok;
}

/// The bugs of a case with the catalogue's sentence for each.
void print_bugs(const Suite& suite, const Case& c) {
  const Catalogue catalogue = load_catalogue(suite.root);
  for (const std::string& id : c.kills) {
    const Bug* bug = catalogue.find(id);
    fmt::print("  {:<24} {}\n", id, bug == nullptr ? "" : bug->fault);
  }
}

int show(const Common& common, const Options& options) {
  const Suite suite = load_suite(find_suite(common.suite));
  const Case& c = *select(suite, {{}, {options.id}, {}}).front();
  if (options.json) {
    fmt::print("{}\n", summary(c).dump(2));
    return exit_ok;
  }
  fmt::print("{}\n\n{}\n\nfile      {}\nprofiles  {}\nclauses   {}\nrecipe    {} (seed {})\n", identity(c), c.about,
             c.file.string(), fmt::join(c.profiles, ", "), fmt::join(c.clauses, ", "), c.inputs.recipe, c.inputs.seed);
  if (!c.equals.empty()) fmt::print("equals    {} (bit for bit)\n", c.equals);
  const Manifest manifest = read_manifest(suite.root);
  if (const auto golden = manifest.cases.find(c.id); golden != manifest.cases.end()) {
    fmt::print("golden    {} values, {} proven, {} bytes\n", golden->second.values, golden->second.proven,
               golden->second.bytes);
  }
  fmt::print("\nsteps\n");
  static const std::vector<std::string> kinds{"attend", "truncate", "reset", "fork", "reorder", "merge", "load"};
  const Timeline timeline = play(c);
  for (size_t i = 0; i < timeline.size(); ++i) {
    const Moment& moment = timeline[i];
    fmt::print("  {:>3} {:<9} lengths {} -> {}", i, kinds[static_cast<size_t>(moment.step.kind)], moment.before,
               moment.after);
    if (moment.step.kind == StepKind::attend) {
      fmt::print(", queries {}, keys {}", moment.step.queries, moment.step.keys);
      if (moment.step.expect != Expect::ok) {
        fmt::print(", must be refused as {}", moment.step.expect == Expect::invalid ? "INVALID" : "OVERFLOW");
      }
    }
    fmt::print("\n");
  }
  fmt::print("\nit is there to catch\n");
  print_bugs(suite, c);
  return exit_ok;
}

int trace_case(const Common& common, const Options& options) {
  const Suite suite = load_suite(find_suite(common.suite));
  const Case& c = *select(suite, {{}, {options.id}, {}}).front();
  Subjects subjects(suite);
  const Golden golden = subjects.load(c).golden;
  const Timeline timeline = play(c);
  const Inputs inputs = generate_inputs(c, timeline);
  fmt::print("{}", trace({&c, &timeline, &inputs, &golden}, nullptr, {}));
  return exit_ok;
}

}  // namespace

void add_cases_command(CLI::App& app, const Common& common, int& exit_code) {
  CLI::App* cases = app.add_subcommand("cases", "List the cases, or explain one");
  cases->require_subcommand(1);
  auto options = std::make_shared<Options>();

  CLI::App* list_command =
      cases->add_subcommand("list", "One line a case: its whole identity, which --filter matches.");
  list_command->add_option("--profile", options->selection.profiles, "Only cases of this profile (may be repeated)");
  list_command->add_option("--filter", options->selection.filter,
                           "Part of the identity line, or a glob over it: needle, 'with_cache/*', 'H14/2'");
  list_command->add_flag("--json", options->json, "JSON lines");
  list_command->callback([&common, &exit_code, options] { exit_code = list(common, *options); });

  CLI::App* show_command =
      cases->add_subcommand("show", "What a case does, step by step, and which bugs it is there to catch.");
  show_command->add_option("id", options->id, "The case, as in `attest cases list`: family/name")->required();
  show_command->add_flag("--json", options->json, "As JSON");
  show_command->callback([&common, &exit_code, options] { exit_code = show(common, *options); });

  CLI::App* trace_command = cases->add_subcommand(
      "trace", "What a right backend computes in a case: positions, keys that are seen and their weights.");
  trace_command->footer("`attest diagnose --trace ID` shows a backend's results beside it.");
  trace_command->add_option("id", options->id, "The case, as in `attest cases list`: family/name")->required();
  trace_command->callback([&common, &exit_code, options] { exit_code = trace_case(common, *options); });
}

}  // namespace attest
