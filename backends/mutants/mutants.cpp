// SPDX-License-Identifier: Apache-2.0
// The backend `mutants`: a correct kernel, one of its correct variants, or one with known bugs in it.
//
// Options: variant = a name of numerics.cpp; bug = ids of cases/bugs.json, separated by commas.
#include <algorithm>
#include <numeric>

#include "bugs/bugs.h"

namespace mutants {
namespace {

/// Insertions, deletions and replacements that make one name of the other.
std::size_t edits(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 0; i < a.size(); ++i) {
    std::size_t diagonal = std::exchange(row[0], i + 1);
    for (std::size_t j = 0; j < b.size(); ++j) {
      const std::size_t replaced = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({replaced, diagonal + 1, row[j] + 1});
    }
  }
  return row.back();
}

/// The element of `list` that `name` calls. Throws Invalid, with the names that are most like it.
template <class List, class Name>
const auto& find(const char* option, const List& list, const std::string& name, Name name_of) {
  std::vector<std::string_view> names;
  for (const auto& one : list) {
    if (name_of(one) == name) return one;
    names.push_back(name_of(one));
  }
  std::stable_sort(names.begin(), names.end(), [&](auto a, auto b) { return edits(name, a) < edits(name, b); });
  names.resize(5);
  std::string near;
  for (const std::string_view one : names) near += (near.empty() ? "" : ", ") + std::string(one);
  throw Invalid("option " + std::string(option) + ": got \"" + name + "\", wanted one of " +
                std::to_string(list.size()) + " names, such as " + near);
}

class Mutants {
 public:
#ifdef ATTEST_MUTANTS_DECLARED
  static constexpr const char* name = "mutants_declared";
  static constexpr const char* declarations =
      R"({"empty_lse": "+inf", "empty_output": "nan", "lse_base": "2", "determinism": ["d0", "d1", "d2", "d3"]})";
  static constexpr bool other_conventions = true;
#else
  static constexpr const char* name = "mutants";
  static constexpr const char* declarations = R"({"determinism": ["d0", "d1", "d2", "d3"]})";
  static constexpr bool other_conventions = false;
#endif
  static constexpr const char* version = "1.0";
  static std::string description() {
    return "tiles, splits and online softmax in float, one thread; options: variant (correct ones), bug";
  }

  explicit Mutants(Options& options) {
    const std::string variant = options.take("variant", "");
    if (!variant.empty()) {
      numerics_ = find("variant", variants(), variant, [](const Variant& v) { return v.name; }).numerics;
    }
    numerics_.other_conventions = other_conventions;
    static const std::vector<Bug> known = all_bugs();
    std::string ids = options.take("bug", "");
    while (!ids.empty()) {
      const std::size_t comma = std::min(ids.find(','), ids.size());
      bugs_.push_back(find("bug", known, ids.substr(0, comma), [](const Bug& bug) { return bug.id; }));
      ids.erase(0, comma + 1);
    }
  }

  class Plan {
   public:
    Plan(const Mutants& mutants, const attest_problem& problem)
        : kernel_(problem, mutants.numerics_, mutants.hooks()) {}
    void run(const attest_step& step) const { kernel_.run(step); }

   private:
    Kernel kernel_;
  };

 private:
  [[nodiscard]] Hooks hooks() const {
    Hooks hooks;
    for (const Bug& bug : bugs_) bug.put(hooks);
    return hooks;
  }

  Numerics numerics_;
  std::vector<Bug> bugs_;
};

}  // namespace
}  // namespace mutants

ATTEST_REGISTER_BACKEND(mutants::Mutants)
