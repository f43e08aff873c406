// SPDX-License-Identifier: Apache-2.0
#include "runner/report_markdown.h"

#include "runner/markup.h"
#include "runner/report_text.h"

namespace attest {
namespace {

std::string families(const Records& records) {
  const Tally all = whole_tally(records);
  std::string head = "|Family|Cases|", rule = "|-|-:|";
  for (const auto& [status, count] : all.by_status) {
    head += fmt::format("{}|", name(status));
    rule += "-:|";
  }
  std::string text = fmt::format("{}Worst error/allowed|\n{}-:|\n", head, rule);
  std::vector<Tally> rows = family_tallies(records);
  rows.push_back(all);
  for (const Tally& tally : rows) {
    text += fmt::format("|{}|{}|", escape_markdown(tally.name), tally.cases);
    for (const auto& [status, count] : all.by_status) text += fmt::format("{}|", tally.count(status));
    text += fmt::format("{}|\n", tally.worst_ratio ? ratio_text(*tally.worst_ratio) : "–");
  }
  return text;
}

std::string profiles(const Certificate& certificate) {
  std::string text = "|Profile|Cases|Pass|Unsupported|Fail|Result|\n|-|-:|-:|-:|-:|-|\n";
  for (const ProfileResult& profile : certificate.profiles) {
    std::string verdict = "not certified";
    if (!profile.claimed) {
      verdict = "not claimed: " + (profile.reason.empty() ? "no reason given" : escape_markdown(profile.reason));
    } else if (profile.certified()) {
      verdict = certificate.certified ? "certified" : "all pass";
    }
    text += fmt::format("|{}|{}|{}|{}|{}|{}|\n", escape_markdown(profile.name), profile.cases, profile.passed,
                        profile.unsupported, profile.failed, verdict);
  }
  return text;
}

}  // namespace

std::string markdown_report(const Records& records) {
  const Certificate result = certificate(records);
  std::string text =
      fmt::format("# attest: {}\n\n**{}**\n", escape_markdown(records.run.backend), escape_markdown(result.line));
  text += "\n|Run||\n|-|-|\n";
  for (const auto& [label, value] : run_facts(records)) text += fmt::format("|{}|{}|\n", label, escape_markdown(value));
  if (records.diagnosis) text += diagnosis_markdown(*records.diagnosis);
  if (!result.profiles.empty()) text += "\n## Profiles\n\n" + profiles(result);
  if (!records.cases.empty()) text += "\n## Families\n\n" + families(records);

  const auto failing = failing_cases(records, result);
  if (!failing.empty()) text += "\n## Cases that did not pass\n\n";
  for (const CaseRecord* record : failing) {
    text += fmt::format("- {} {}", code_markdown(record->id), name(record->status));
    if (!record->reason.empty()) text += ": " + escape_markdown(record->reason);
    if (!record->findings.empty()) {
      const Finding& first = record->findings.front();
      text += "  \n  " + escape_markdown(place_text(first));
      if (const std::string numbers = numbers_text(first); !numbers.empty()) text += ": " + escape_markdown(numbers);
    }
    if (!record->repro.empty()) text += "  \n  " + code_markdown(record->repro);
    text += "\n";
  }
  return text;
}

}  // namespace attest
