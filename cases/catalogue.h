// SPDX-License-Identifier: Apache-2.0
// The catalogue of bugs (cases/bugs.json, schema: spec/schema/bugs.schema.json): what an attention kernel or a cache
// can do wrong, and what it may do differently and still be right. The mutants backend plays each of them by its id.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace attest {

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
};

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

  /// Null if there is none.
  [[nodiscard]] const Bug* find(std::string_view id) const;
  [[nodiscard]] const BugGroup* find_group(std::string_view id) const;
};

/// Loads and checks: ids that are taken twice, groups and bugs that do not name each other. Throws Error.
Catalogue load_catalogue(const std::filesystem::path& root);

}  // namespace attest
