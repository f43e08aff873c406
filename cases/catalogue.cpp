// SPDX-License-Identifier: Apache-2.0
#include "cases/catalogue.h"

#include <algorithm>
#include <set>

#include "cases/json.h"

namespace attest {
namespace {

using Strings = std::vector<std::string>;

template <typename List>
auto find_in(const List& list, std::string_view id) -> decltype(list.data()) {
  const auto found = std::find_if(list.begin(), list.end(), [&](const auto& one) { return one.id == id; });
  return found == list.end() ? nullptr : &*found;
}

/// Reads the objects of a list that have an id, which no two may share.
template <typename T, typename Read>
std::vector<T> read_list(Fields& fields, std::string_view name, const Read& read) {
  std::set<std::string> ids;
  return fields.list(name, [&](const Json& element, const std::string& place) -> T {
    Fields one(element, place);
    T made = read(one);
    if (!ids.insert(made.id).second) throw Error::at(one.place("id"), "got \"{}\", which is taken", made.id);
    one.finish();
    return made;
  });
}

std::vector<Realisation> read_realisations(Fields& bug) {
  if (!bug.has("realisations")) return {};
  return read_list<Realisation>(bug, "realisations", [](Fields& one) {
    return Realisation{one.required<std::string>("id"), one.required<std::string>("about"),
                       one.optional<std::string>("weak", "")};
  });
}

void check_groups(const Catalogue& catalogue, const std::string& place) {
  for (const BugGroup& group : catalogue.groups) {
    for (const std::string& id : group.bugs) {
      const Bug* bug = catalogue.find(id);
      if (bug == nullptr || bug->group != group.id) {
        throw Error::at(place, "the group {} names {}, which does not name it", group.id, id);
      }
    }
  }
  for (const Bug& bug : catalogue.bugs) {
    if (bug.group.empty()) continue;
    const BugGroup* group = catalogue.find_group(bug.group);
    if (group == nullptr || std::find(group->bugs.begin(), group->bugs.end(), bug.id) == group->bugs.end()) {
      throw Error::at(place, "{} names the group {}, which does not name it", bug.id, bug.group);
    }
  }
}

}  // namespace

std::vector<std::string> Bug::names() const {
  std::vector<std::string> list{id};
  for (const Realisation& one : realisations) list.push_back(id + "@" + one.id);
  return list;
}

std::string_view bug_of(std::string_view name) {
  return name.substr(0, name.find('@'));
}

const Bug* Catalogue::find(std::string_view name) const {
  const Bug* const bug = find_in(bugs, bug_of(name));
  if (bug == nullptr || name == bug->id) return bug;
  const std::vector<std::string> names = bug->names();
  return std::find(names.begin(), names.end(), name) == names.end() ? nullptr : bug;
}

const BugGroup* Catalogue::find_group(std::string_view id) const {
  return find_in(groups, id);
}

Catalogue load_catalogue(const std::filesystem::path& root) {
  const std::string place = (root / "cases" / "bugs.json").string();
  return catalogue_from_json(read_json_file(place), place);
}

Catalogue catalogue_from_json(const Json& json, const std::string& place) {
  Fields fields(json, place);
  if (const auto schema = fields.required<std::string>("schema"); schema != "attest/bugs/1") {
    throw Error::at(fields.place("schema"), "got \"{}\", wanted \"attest/bugs/1\"", schema);
  }
  Catalogue catalogue;
  catalogue.bugs = read_list<Bug>(fields, "bugs", [](Fields& one) {
    return Bug{one.required<std::string>("id"),           one.required<std::string>("area"),
               one.required<std::string>("fault"),        one.required<std::string>("symptom"),
               one.required<std::string>("visible_with"), one.optional<std::string>("missed_by", ""),
               one.optional<std::string>("look_for", ""), one.optional<std::string>("group", ""),
               one.optional<std::string>("weak", ""),     one.required<Strings>("links"),
               one.required<Strings>("source"),           read_realisations(one)};
  });
  catalogue.groups = read_list<BugGroup>(fields, "groups", [](Fields& one) {
    return BugGroup{one.required<std::string>("id"), one.required<Strings>("bugs"),
                    one.required<std::string>("how_to_separate")};
  });
  if (fields.has("correct")) {
    catalogue.correct = read_list<Variant>(fields, "correct", [](Fields& one) {
      return Variant{one.required<std::string>("id"), one.required<std::string>("about")};
    });
  }
  fields.finish();
  check_groups(catalogue, place);
  return catalogue;
}

}  // namespace attest
