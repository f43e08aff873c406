// SPDX-License-Identifier: Apache-2.0
// What a backend declares of itself: legal alternatives to the spec's conventions, and what it repeats bit for bit
// (spec/conformance.md, "Declarations").
#pragma once

#include <set>
#include <string>
#include <vector>

#include "cases/json.h"

namespace attest {

struct Conventions {
  bool empty_lse_is_positive = false;  ///< The LSE of an empty row is +inf, not -inf (M7).
  bool empty_output_is_nan = false;    ///< The output of an empty row is NaN, not 0 (M7).
  bool lse_is_base_2 = false;          ///< The LSE is to base 2, not e (E1).
  std::set<std::string> determinism;   ///< "d0" to "d3".

  /// An LSE to base e as this backend writes it ...
  [[nodiscard]] double lse_from_natural(double lse) const;
  /// ... and the inverse.
  [[nodiscard]] double lse_to_natural(double lse) const;
  /// Where the golden has an error of `allowed` for the LSE `lse`, both to base e: what this backend may make.
  [[nodiscard]] double lse_allowed(double lse, double allowed) const;
  /// What this backend writes as the LSE of an empty row.
  [[nodiscard]] double empty_lse() const;
};

/// Reads the object that a backend declares. Throws Error, naming the key, on one that is unknown or has an unknown
/// value.
Conventions conventions_from_json(const Json& declarations, const std::string& place);
/// The declarations that differ from none at all; an empty object without any.
Json to_json(const Conventions& conventions);
/// The alternatives that a verdict depends on, as a person reads them: "empty_lse +inf", "lse_base 2".
std::vector<std::string> alternatives(const Conventions& conventions);

/// The determinism levels that a case's profiles ask for and the backend does not declare: "d0"; empty if there is
/// none.
std::string undeclared_determinism(const std::vector<std::string>& profiles, const Conventions& conventions);

}  // namespace attest
