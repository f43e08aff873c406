// SPDX-License-Identifier: Apache-2.0
#include <fmt/ranges.h>

#include <algorithm>
#include <set>

#include "runner/markup.h"
#include "runner/record.h"

namespace attest {
namespace {

constexpr size_t kReasonColumns = 160;  // a backend's words, in a line of ours

bool names(const std::vector<std::string>& list, const std::string& item) {
  return std::find(list.begin(), list.end(), item) != list.end();
}

/// A profile is claimed if a case that names it was not unsupported: whoever takes a case takes all that it asks.
std::set<std::string> claimed_profiles(const std::vector<CaseRecord>& cases) {
  std::set<std::string> claimed;
  for (const CaseRecord& record : cases) {
    if (record.status != Status::unsupported) claimed.insert(record.profiles.begin(), record.profiles.end());
  }
  return claimed;
}

ProfileResult profile_result(const std::string& profile, const Records& records, const Certificate& certificate,
                             bool claimed) {
  ProfileResult result;
  result.name = profile;
  result.claimed = claimed;
  for (size_t i = 0; i < records.cases.size(); ++i) {
    const CaseRecord& record = records.cases[i];
    if (!names(record.profiles, profile) || (claimed && certificate.excused[i])) continue;
    ++result.cases;
    if (record.status == Status::pass) {
      ++result.passed;
      continue;
    }
    ++(record.status == Status::unsupported ? result.unsupported : result.failed);
    if (result.reason.empty()) result.reason = claimed ? record.id : record.reason;
  }
  if (result.cases == 0) result.reason = "none of its cases was run";
  return result;
}

/// What stands between a profile and its certificate.
std::string shortcoming(const ProfileResult& profile) {
  const std::string name = printable(profile.name);
  const std::string reason = shortened(printable(profile.reason), kReasonColumns);
  if (!profile.claimed) return fmt::format("{}: not claimed, {}", name, reason.empty() ? "no reason given" : reason);
  const int64_t missing = profile.cases - profile.passed;
  return fmt::format("{}: {} of {} case{} do{} not pass, first {}", name, missing, profile.cases,
                     profile.cases == 1 ? "" : "s", missing == 1 ? "es" : "", reason);
}

template <typename Keep, typename Show>
std::string joined(const std::vector<ProfileResult>& profiles, std::string_view separator, Keep keep, Show show) {
  std::string text;
  for (const ProfileResult& profile : profiles) {
    if (!keep(profile)) continue;
    if (!text.empty()) text += separator;
    text += show(profile);
  }
  return text;
}

}  // namespace

Certificate certificate(const Records& records) {
  const RunRecord& run = records.run;
  const bool asked = !run.profiles.empty();
  const std::set<std::string> claimed = claimed_profiles(records.cases);

  Certificate result;
  result.subset = run.subset;
  const auto recorded = static_cast<int64_t>(records.cases.size());
  result.complete = records.end && records.end->cases == recorded && run.planned == recorded;

  std::set<std::string> listed(run.profiles.begin(), run.profiles.end());
  int64_t passed = 0, counted = 0;
  for (const CaseRecord& record : records.cases) {
    if (!asked) listed.insert(record.profiles.begin(), record.profiles.end());
    const bool may_decline = record.profiles.empty() ||
                             std::any_of(record.profiles.begin(), record.profiles.end(), [&](const auto& profile) {
                               return !claimed.contains(profile) && !names(run.profiles, profile);
                             });
    result.excused.push_back(record.status == Status::unsupported && may_decline);
    if (record.status == Status::pass) ++passed;
    if (!result.excused.back()) ++counted;
  }
  for (const std::string& profile : listed) {
    result.profiles.push_back(profile_result(profile, records, result, claimed.contains(profile)));
  }

  const auto& profiles = result.profiles;
  const auto is_claimed = [](const ProfileResult& p) { return p.claimed; };
  const auto is_wanting = [&](const ProfileResult& p) { return (p.claimed || asked) && !p.certified(); };
  const bool any_claimed = std::any_of(profiles.begin(), profiles.end(), is_claimed);
  const bool any_wanting = std::any_of(profiles.begin(), profiles.end(), is_wanting);
  result.certified = result.complete && !result.subset && any_claimed && !any_wanting;

  std::string verdict;
  if (result.certified) {
    verdict = "profiles " + joined(profiles, ", ", is_claimed, [](const auto& p) { return printable(p.name); });
  } else if (recorded == 0) {
    verdict = fmt::format("no case was run, of {} planned", run.planned);
  } else if (!result.complete) {
    verdict = fmt::format("incomplete: {} of {} planned cases have a record{}", recorded, run.planned,
                          records.end ? "" : " and the run's end is missing");
  } else if (result.subset) {
    verdict = fmt::format("certifies nothing: a subset was run, {} of {} cases pass", passed, recorded);
  } else if (any_wanting) {
    verdict = joined(profiles, "; ", is_wanting, shortcoming);
  } else if (profiles.size() > 1 && std::all_of(profiles.begin(), profiles.end(), [&](const ProfileResult& p) {
               return p.reason == profiles.front().reason;
             })) {
    verdict = "no profile is claimed: " + shortened(printable(profiles.front().reason), kReasonColumns);
  } else if (!profiles.empty()) {
    const auto all = [](const ProfileResult&) { return true; };
    verdict = "no profile is claimed: " + joined(profiles, "; ", all, [](const ProfileResult& p) {
                return fmt::format("{}: {}", printable(p.name), shortened(printable(p.reason), kReasonColumns));
              });
  } else {
    verdict = "no case of a profile was run";
  }

  result.line = result.certified ? "CERTIFIED  " : "NOT CERTIFIED  ";
  result.line += printable(run.backend);
  if (!run.backend_version.empty()) result.line += " " + printable(run.backend_version);
  result.line += fmt::format(" · {}", verdict);
  if (const auto declared = alternatives(run.conventions); !declared.empty()) {
    result.line += fmt::format(" · under declared conventions: {}", fmt::join(declared, ", "));
  }
  result.line += fmt::format(" · suite {}", printable(run.attest_version));
  if (!run.suite_hash.empty()) result.line += fmt::format(" ({})", printable(run.suite_hash));
  if (result.certified) result.line += fmt::format(" · {} case{}", counted, counted == 1 ? "" : "s");
  return result;
}

}  // namespace attest
