// SPDX-License-Identifier: Apache-2.0
#include "cases/suite.h"

#include <fmt/ranges.h>
#include <fnmatch.h>

#include <algorithm>
#include <cstdlib>
#include <regex>
#include <set>

#include "cases/timeline.h"

namespace attest {
namespace fs = std::filesystem;
namespace {

void check_schema(Fields& fields, const std::string& wanted) {
  const auto got = fields.required<std::string>("schema");
  if (got != wanted) throw Error::at(fields.place("schema"), "got \"{}\", wanted \"{}\"", got, wanted);
}

std::vector<Profile> load_profiles(const fs::path& path) {
  const Json json = read_json_file(path);
  Fields fields(json, path.string());
  check_schema(fields, "attest/profiles/1");
  std::vector<Profile> profiles = fields.list("profiles", [](const Json& element, const std::string& place) {
    Fields one(element, place);
    Profile profile{one.required<std::string>("id"), one.required<std::string>("about")};
    one.finish();
    return profile;
  });
  fields.finish();
  return profiles;
}

std::set<std::string> bug_ids(const fs::path& path) {
  const Json json = read_json_file(path);
  Fields fields(json, path.string());
  check_schema(fields, "attest/bugs/1");
  const auto ids = fields.list("bugs", [](const Json& element, const std::string& place) {
    return Fields(element, place).required<std::string>("id");
  });
  return {ids.begin(), ids.end()};
}

/// The ids of the clauses, which stand in bold at the start of a line: **A1 Scale.** ...
std::set<std::string> clause_ids(const fs::path& path) {
  const std::string text = read_file(path);
  static const std::regex clause(R"((?:^|\n)\*\*([A-Z][0-9]+) )");
  std::set<std::string> ids;
  for (auto it = std::sregex_iterator(text.begin(), text.end(), clause); it != std::sregex_iterator(); ++it) {
    ids.insert((*it)[1]);
  }
  return ids;
}

template <typename Names>
void check_known(const std::vector<std::string>& cited, const Names& known, const Case& c, std::string_view field,
                 std::string_view where) {
  for (const std::string& id : cited) {
    if (std::find(known.begin(), known.end(), id) == known.end()) {
      throw Error::at(fmt::format("{}: {}.{}", c.file.string(), c.id, field), "got \"{}\", which is not in {}", id,
                      where);
    }
  }
}

std::vector<fs::path> case_files(const fs::path& folder) {
  std::vector<fs::path> files;
  for (const auto& family : fs::directory_iterator(folder)) {
    // The challenge's files have the format of its organisers, and are no part of the suite.
    if (!family.is_directory() || family.path().filename() == "challenge") continue;
    for (const auto& file : fs::directory_iterator(family)) {
      if (file.path().extension() == ".json") files.push_back(file.path());
    }
  }
  // The six founding families first, in the order of the challenge they grew from; later ones by name.
  static const std::vector<std::string> order{"no_cache",    "with_cache",    "batch_1",
                                              "single_head", "long_sequence", "stress"};
  const auto rank = [](const fs::path& file) {
    const auto family = file.parent_path().filename().string();
    return std::make_tuple(std::find(order.begin(), order.end(), family) - order.begin(), family, file.filename());
  };
  std::sort(files.begin(), files.end(), [&](const fs::path& a, const fs::path& b) { return rank(a) < rank(b); });
  return files;
}

void load_case_file(const fs::path& path, std::vector<Case>& cases) {
  const Json json = read_json_file(path);
  Fields fields(json, path.string());
  check_schema(fields, "attest/cases/1");
  const auto family = fields.required<std::string>("family");
  if (family != path.parent_path().filename()) {
    throw Error::at(fields.place("family"), "got \"{}\", wanted \"{}\", the name of its folder", family,
                    path.parent_path().filename().string());
  }
  fields.required<std::string>("about");
  for (Case& one : fields.list("cases", [&](const Json&element, const std::string&place) {
         Case made = case_from_json(element, family, place);
         made.file = path;
         if (!made.inputs.given.empty()) {
           throw Error::at(place + ".inputs.given", "wanted a recipe: a case of the suite brings no inputs");
         }
         return made;
       })) {
    cases.push_back(std::move(one));
  }
  fields.finish();
}

/// Cases that are run together must be possible together.
void check_partners(const Suite& suite, const Case& c) {
  const auto kinds_of = [](const Case& one) {
    std::vector<StepKind> kinds;
    for (const Step& step : one.steps) kinds.push_back(step.kind);
    return kinds;
  };
  for (const std::string& id : c.alongside) {
    if (id == c.id || kinds_of(*find_case(suite, id)) != kinds_of(c)) {
      throw Error::at(fmt::format("{}: {}.alongside", c.file.string(), c.id),
                      "got \"{}\", wanted another case, with as many steps of the same kinds", id);
    }
  }
  const auto rows_of = [](const Case& one) {
    std::set<std::pair<int64_t, int64_t>> rows;
    for (const Moment& moment : play(one)) {
      for (const Row& row : moment.rows) rows.emplace(row.data, row.serial);
    }
    return rows;
  };
  for (const std::string& id : c.bitwise.with) {
    const auto own = rows_of(c), others = rows_of(*find_case(suite, id));
    if (std::none_of(own.begin(), own.end(), [&](const auto& row) { return others.contains(row); })) {
      throw Error::at(fmt::format("{}: {}.bitwise.with", c.file.string(), c.id),
                      "got \"{}\", wanted a case that has a row of the same data", id);
    }
  }
}

}  // namespace

fs::path find_suite(const fs::path& given) {
  const auto holds = [](const fs::path& root) { return fs::exists(root / "cases" / "profiles.json"); };
  if (!given.empty()) {
    if (!holds(given)) throw Error::at(given.string(), "is no suite: cases/profiles.json is not there");
    return given;
  }
  if (const char* variable = std::getenv("ATTEST_SUITE"); variable != nullptr && *variable != '\0') {
    if (!holds(variable))
      throw Error::at(variable, "is no suite (from ATTEST_SUITE): cases/profiles.json is not there");
    return variable;
  }
  const fs::path installed = fs::read_symlink("/proc/self/exe").parent_path() / ".." / "share" / "attest";
  if (holds(installed)) return fs::canonical(installed);
  if (holds(ATTEST_SOURCE_DIR)) return ATTEST_SOURCE_DIR;
  throw Error::at(installed.string(), "holds no suite, nor does {}; give --suite or ATTEST_SUITE", ATTEST_SOURCE_DIR);
}

Suite load_suite(const fs::path& root) {
  Suite suite;
  suite.root = root;
  suite.profiles = load_profiles(root / "cases" / "profiles.json");
  for (const fs::path& file : case_files(root / "cases")) load_case_file(file, suite.cases);

  std::set<std::string> profiles;
  for (const Profile& profile : suite.profiles) profiles.insert(profile.id);
  const auto bugs = bug_ids(root / "cases" / "bugs.json");
  const auto clauses = clause_ids(root / "spec" / "attention.md");
  std::set<std::string> ids;
  for (const Case& c : suite.cases) {
    if (!ids.insert(c.id).second) throw Error::at(c.file.string(), "the id \"{}\" is taken twice", c.id);
  }
  for (const Case& c : suite.cases) {
    check_known(c.profiles, profiles, c, "profiles", "cases/profiles.json");
    check_known(c.kills, bugs, c, "kills", "cases/bugs.json");
    check_known(c.clauses, clauses, c, "clauses", "spec/attention.md");
    if (!c.equals.empty()) check_known({c.equals}, ids, c, "equals", "the suite");
    check_known(c.bitwise.with, ids, c, "bitwise.with", "the suite");
    check_known(c.alongside, ids, c, "alongside", "the suite");
    if (c.equals == c.id) {
      throw Error::at(fmt::format("{}: {}.equals", c.file.string(), c.id), "got \"{}\", wanted another case", c.id);
    }
    play(c);  // an impossible step is refused here, not only in a run that happens to select its case
  }
  for (const Case& c : suite.cases) check_partners(suite, c);
  // Whoever cannot take a partner cannot take the case: its profiles are all of theirs.
  const std::vector<Case> alone = suite.cases;
  for (Case& c : suite.cases) {
    for (const auto* partners : {&c.alongside, &c.bitwise.with}) {
      for (const std::string& id : *partners) {
        const auto partner = std::find_if(alone.begin(), alone.end(), [&](const Case& one) { return one.id == id; });
        for (const std::string& profile : partner->profiles) {
          if (std::find(c.profiles.begin(), c.profiles.end(), profile) == c.profiles.end()) {
            c.profiles.push_back(profile);
          }
        }
      }
    }
  }
  return suite;
}

const Case* find_case(const Suite& suite, std::string_view id) {
  const auto found = std::find_if(suite.cases.begin(), suite.cases.end(), [&](const Case& c) { return c.id == id; });
  return found == suite.cases.end() ? nullptr : &*found;
}

std::vector<const Case*> select(const Suite& suite, const Selection& selection) {
  const auto contains = [](const auto& list, const std::string& item) {
    return std::find(list.begin(), list.end(), item) != list.end();
  };
  for (const std::string& profile : selection.profiles) {
    std::vector<std::string> known;
    for (const Profile& p : suite.profiles) known.push_back(p.id);
    if (!contains(known, profile)) {
      throw Error::at("--profile", "got \"{}\", wanted one of: {}", profile, fmt::join(known, ", "));
    }
  }
  for (const std::string& id : selection.ids) {
    if (find_case(suite, id) == nullptr) {
      throw Error::at("--case", "got \"{}\", which is no case; `attest cases list` shows them", id);
    }
  }
  const bool glob = selection.filter.find_first_of("*?") != std::string::npos;
  std::vector<const Case*> chosen;
  for (const Case& c : suite.cases) {
    const bool in_profile = selection.profiles.empty() ||
                            std::any_of(c.profiles.begin(), c.profiles.end(),
                                        [&](const std::string& p) { return contains(selection.profiles, p); });
    const std::string line = identity(c);
    const bool matches =
        selection.filter.empty() || (glob ? ::fnmatch(selection.filter.c_str(), c.id.c_str(), 0) == 0 ||
                                                ::fnmatch(selection.filter.c_str(), line.c_str(), 0) == 0
                                          : line.find(selection.filter) != std::string::npos);
    if (in_profile && matches && (selection.ids.empty() || contains(selection.ids, c.id))) chosen.push_back(&c);
  }
  if (chosen.empty()) {
    throw Error::at(selection.filter.empty() ? "the selection" : "--filter " + selection.filter,
                    "selects no case of {}", suite.cases.size());
  }
  return chosen;
}

}  // namespace attest
