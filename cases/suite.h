// SPDX-License-Identifier: Apache-2.0
// The suite on disk: all cases, the profiles, and the names of bugs and clauses that cases cite.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "cases/case.h"

namespace attest {

struct Profile {
  std::string id, about;
};

struct Suite {
  std::filesystem::path root;  ///< The folder that holds cases/, golden/ and spec/.
  std::vector<Profile> profiles;
  std::vector<Case> cases;  ///< Sorted by family (the order of the families below), file and place in the file.
};

/// Where the suite lies: `given` if not empty, else $ATTEST_SUITE, else beside the installed program, else the source
/// tree that this was built from. Throws if there is none.
std::filesystem::path find_suite(const std::filesystem::path& given);

/// Loads and checks everything: schema names, ids that are taken twice, clauses that the spec does not have, bugs that
/// the catalogue does not have, profiles that do not exist, `equals` that points nowhere or at itself, steps that are
/// impossible.
Suite load_suite(const std::filesystem::path& root);

/// The case of that id, or null.
const Case* find_case(const Suite& suite, std::string_view id);

/// Which cases a run takes. Empty members select everything.
struct Selection {
  std::vector<std::string> profiles;  ///< Cases of any of these.
  std::vector<std::string> ids;       ///< Exact ids.
  std::string filter;                 ///< Glob (* and ?) or part of the identity line.
};

/// The selected cases in suite order; throws if an id or profile does not exist or nothing is left.
std::vector<const Case*> select(const Suite& suite, const Selection& selection);

}  // namespace attest
