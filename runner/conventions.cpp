// SPDX-License-Identifier: Apache-2.0
#include "runner/conventions.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace attest {
namespace {

constexpr double kLn2 = 0.693147180559945309417;
constexpr double kUnit = 0x1p-24;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Each with the spec's own convention first.
const std::vector<std::string> kEmptyLse{"-inf", "+inf"};
const std::vector<std::string> kEmptyOutput{"zero", "nan"};
const std::vector<std::string> kLseBase{"e", "2"};
const std::vector<std::string> kDeterminism{"d0", "d1", "d2", "d3"};

constexpr std::string_view kDeterminismProfile = "determinism_";

}  // namespace

double Conventions::empty_lse() const {
  return empty_lse_is_positive ? kInfinity : -kInfinity;
}

double Conventions::lse_from_natural(double lse) const {
  if (lse == -kInfinity) return empty_lse();
  return lse_is_base_2 ? lse / kLn2 : lse;
}

double Conventions::lse_to_natural(double lse) const {
  if (lse == empty_lse()) return -kInfinity;
  return lse_is_base_2 ? lse * kLn2 : lse;
}

double Conventions::lse_allowed(double lse, double allowed) const {
  // One rounding for log2 e in f32 and one for the product with it.
  return lse_is_base_2 && std::isfinite(lse) ? (allowed + 2 * kUnit * std::fabs(lse)) / kLn2 : allowed;
}

Conventions conventions_from_json(const Json& declarations, const std::string& place) {
  Fields fields(declarations, place);
  Conventions conventions;
  conventions.empty_lse_is_positive = fields.choice<int>("empty_lse", kEmptyLse, 0) == 1;
  conventions.empty_output_is_nan = fields.choice<int>("empty_output", kEmptyOutput, 0) == 1;
  conventions.lse_is_base_2 = fields.choice<int>("lse_base", kLseBase, 0) == 1;
  for (const auto& level : fields.optional<std::vector<std::string>>("determinism", {})) {
    if (std::find(kDeterminism.begin(), kDeterminism.end(), level) == kDeterminism.end()) {
      throw Error::at(fields.place("determinism"), "got \"{}\", wanted d0, d1, d2 or d3", level);
    }
    conventions.determinism.insert(level);
  }
  fields.finish();
  return conventions;
}

Json to_json(const Conventions& conventions) {
  Json json = Json::object();
  if (conventions.empty_lse_is_positive) json["empty_lse"] = kEmptyLse[1];
  if (conventions.empty_output_is_nan) json["empty_output"] = kEmptyOutput[1];
  if (conventions.lse_is_base_2) json["lse_base"] = kLseBase[1];
  if (!conventions.determinism.empty()) json["determinism"] = conventions.determinism;
  return json;
}

std::vector<std::string> alternatives(const Conventions& conventions) {
  std::vector<std::string> texts;
  if (conventions.empty_lse_is_positive) texts.push_back("empty_lse " + kEmptyLse[1]);
  if (conventions.empty_output_is_nan) texts.push_back("empty_output " + kEmptyOutput[1]);
  if (conventions.lse_is_base_2) texts.push_back("lse_base " + kLseBase[1]);
  return texts;
}

std::string undeclared_determinism(const std::vector<std::string>& profiles, const Conventions& conventions) {
  for (const std::string& profile : profiles) {
    if (!profile.starts_with(kDeterminismProfile)) continue;
    std::string level = profile.substr(kDeterminismProfile.size());
    if (!conventions.determinism.contains(level)) return level;
  }
  return {};
}

}  // namespace attest
