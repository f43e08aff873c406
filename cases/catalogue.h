// SPDX-License-Identifier: Apache-2.0
// The catalogue of bugs (cases/bugs.json, schema: spec/schema/bugs.schema.json): what an attention kernel or a cache
// can do wrong, and what it may do differently and still be right. The mutants backend plays each of them by its id.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "cases/json.h"

namespace attest {

/// Another way in which a bug comes about, beside the one that the bug's own id stands for.
struct Realisation {
  std::string id;     ///< Within its bug.
  std::string about;  ///< How it differs from the first one.
  std::string weak;   ///< As Bug::weak.
};

struct Bug {
  std::string id, area;
  std::string fault;         ///< What the faulty code does.
  std::string symptom;       ///< What its user sees.
  std::string visible_with;  ///< Inputs and shapes that show it.
  std::string missed_by;     ///< Tests that pass in spite of it; may be empty.
  std::string look_for;      ///< Where in the code, and what to print, once it is suspected.
  std::string group;         ///< Id of a BugGroup; may be empty.
  std::string weak;          ///< Why no case can show it with twenty times the allowed error; empty: some case must.
  std::vector<std::string> links;   ///< Issues where it was seen.
  std::vector<std::string> source;  ///< issue, write-up, common knowledge
  std::vector<Realisation> realisations{};

  /// What the mutants backend calls the bug's realisations: `id`, then `id@realisation` of each.
  [[nodiscard]] std::vector<std::string> names() const;
};

/// The bug of a realisation's name.
std::string_view bug_of(std::string_view name);

/// Bugs that look alike.
struct BugGroup {
  std::string id;
  std::vector<std::string> bugs;
  std::string how_to_separate;
};

/// A way to do it that is right, and must never be flagged.
struct Variant {
  std::string id, about;
};

struct Catalogue {
  std::vector<Bug> bugs;
  std::vector<BugGroup> groups;
  std::vector<Variant> correct;

  /// Null if there is none. A realisation's name finds its bug.
  [[nodiscard]] const Bug* find(std::string_view name) const;
  [[nodiscard]] const BugGroup* find_group(std::string_view id) const;
};

/// Loads and checks: ids that are taken twice, groups and bugs that do not name each other. Throws Error.
Catalogue load_catalogue(const std::filesystem::path& root);
/// The same of the file's JSON; `place` names it in errors.
Catalogue catalogue_from_json(const Json& json, const std::string& place);

}  // namespace attest
