// SPDX-License-Identifier: Apache-2.0
#include "runner/report_html.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "runner/error_map.h"
#include "runner/markup.h"
#include "runner/report_html_assets.h"
#include "runner/report_text.h"

namespace attest {
namespace {

constexpr size_t kOpenFailures = 8;  // cards that are open when the page is
constexpr int kPhaseColours = 7;     // classes p0 to p6 of the style sheet

/// Text from the records, safe in an element.
std::string safe(std::string_view text) {
  return escape_text(printable(text));
}

std::string pill(Status status) {
  return fmt::format("<span class=\"pill {0}\">{0}</span>", name(status));
}

std::string number_cell(int64_t count, std::string_view css) {
  return count == 0 ? std::string("<td class=\"n zero\">–</td>")
                    : fmt::format("<td class=\"n {}\">{}</td>", css, count);
}

std::string_view colour_of(Status status) {
  return status == Status::pass ? "green" : status == Status::unsupported ? "amber" : "red";
}

std::string ratio_cell(std::string_view tag, const std::optional<double>& ratio) {
  if (!ratio) return fmt::format("<{0} class=\"n zero\">–</{0}>", tag);
  return fmt::format("<{0} class=\"n{1}\">{2}</{0}>", tag, *ratio <= 1 ? "" : " red", ratio_text(*ratio));
}

std::string banner(const Records& records, const Certificate& result, size_t failing) {
  const RunRecord& run = records.run;
  const Tally all = whole_tally(records);
  const bool subset = result.subset && result.complete;
  std::string text = fmt::format("<header class=\"card banner {}\">\n<span class=\"verdict\">{}</span>\n",
                                 result.certified ? "good"
                                 : subset         ? "warn"
                                                  : "bad",
                                 result.certified ? "CERTIFIED"
                                 : subset         ? "NOT CERTIFIED · SUBSET"
                                                  : "NOT CERTIFIED");
  text += fmt::format("<h1>{} <small>{}</small></h1>\n<p>{}</p>\n<div class=\"numbers\">", safe(run.backend),
                      safe(run.backend_version), safe(result.line));
  const auto number = [&](std::string_view css, const std::string& value, std::string_view label) {
    text += fmt::format("<div class=\"{}\"><b>{}</b><span>{}</span></div>", css, value, label);
  };
  number("", std::to_string(all.cases), all.cases == 1 ? "case" : "cases");
  number("good", std::to_string(all.count(Status::pass)), "passed");
  number(failing > 0 ? "bad" : "", std::to_string(failing), "did not pass");
  if (const auto excused = std::count(result.excused.begin(), result.excused.end(), true); excused > 0) {
    number("", std::to_string(excused), "of profiles not claimed");
  }
  if (all.worst_ratio)
    number(*all.worst_ratio <= 1 ? "" : "bad", ratio_text(*all.worst_ratio), "worst error / allowed");
  if (records.end) number("", seconds_text(records.end->wall_seconds), "by the clock");
  return text + "</div>\n</header>\n";
}

std::string facts(const Records& records) {
  std::string text = "<section><h2>Run</h2><div class=\"card\"><table class=\"facts\"><tbody>\n";
  for (const auto& [label, value] : run_facts(records)) {
    text += fmt::format("<tr><th>{}</th><td>{}</td></tr>\n", label, safe(value));
  }
  return text + "</tbody></table></div></section>\n";
}

std::string profiles(const Certificate& result) {
  if (result.profiles.empty()) return "";
  std::string text =
      "<section><h2>Profiles</h2><div class=\"card wide\"><table><thead><tr><th>Profile</th><th class=\"n\">Cases</th>"
      "<th class=\"n\">Pass</th><th class=\"n\">Unsupported</th><th "
      "class=\"n\">Fail</th><th>Result</th></tr></thead><tbody>\n";
  for (const ProfileResult& profile : result.profiles) {
    std::string verdict = "<span class=\"red\">not certified</span>";
    if (!profile.claimed) {
      verdict = fmt::format("<span class=\"amber\">not claimed</span><br><span class=\"soft\">{}</span>",
                            profile.reason.empty() ? "no reason given" : safe(profile.reason));
    } else if (profile.certified()) {
      verdict = fmt::format("<span class=\"green\">{}</span>", result.certified ? "certified" : "all pass");
    }
    text += fmt::format("<tr><th>{}</th><td class=\"n\">{}</td>{}{}{}<td>{}</td></tr>\n", safe(profile.name),
                        profile.cases, number_cell(profile.passed, "green"),
                        number_cell(profile.unsupported, profile.claimed ? "red" : "amber"),
                        number_cell(profile.failed, "red"), verdict);
  }
  return text + "</tbody></table></div></section>\n";
}

std::string families(const Records& records) {
  const Tally all = whole_tally(records);
  std::string text =
      "<h2>Families</h2><div class=\"card wide\"><table><thead><tr><th>Family</th><th class=\"n\">Cases</th>";
  for (const auto& [status, count] : all.by_status) text += fmt::format("<th class=\"n\">{}</th>", name(status));
  text += "<th class=\"n\">Worst error / allowed</th><th class=\"n\">Time</th></tr></thead>";
  const auto row = [&](const Tally& tally, std::string_view cell) {
    text += fmt::format("<tr><th>{}</th><td class=\"n\">{}</td>", safe(tally.name), tally.cases);
    for (const auto& [status, total] : all.by_status) text += number_cell(tally.count(status), colour_of(status));
    text += ratio_cell(cell, tally.worst_ratio);
    text += fmt::format("<td class=\"n\">{}</td></tr>\n", seconds_text(tally.seconds));
  };
  text += "<tbody>\n";
  for (const Tally& tally : family_tallies(records)) row(tally, "td");
  text += "</tbody><tfoot>";
  row(all, "td");
  return text + "</tfoot></table></div>\n";
}

std::string times(const Records& records) {
  const auto phases = phase_seconds(records);
  double sum = 0;
  for (const auto& [phase, seconds] : phases) sum += seconds;
  if (!(sum > 0)) return "";
  std::string bar, key;
  int colour = 0;
  for (const auto& [phase, seconds] : phases) {
    const double share = 100 * seconds / sum;
    const int css = std::min(colour++, kPhaseColours - 1);
    bar += fmt::format("<i class=\"p{}\" style=\"width:{:.3f}%\" title=\"{}\"></i>", css, share,
                       escape_attribute(printable(phase)));
    key += fmt::format("<li><i class=\"p{}\"></i>{} <b>{}</b> <span class=\"soft\">{:.0f}%</span></li>", css,
                       safe(phase), seconds_text(seconds), share);
  }
  std::string total = seconds_text(sum) + " in all";
  if (records.run.jobs > 0) total += " over " + count_text(records.run.jobs, "worker");
  if (records.end) total += "; " + seconds_text(records.end->wall_seconds) + " by the clock";
  return fmt::format(
      "<h2>Where the time went <small>{}</small></h2>\n<div class=\"card time\"><div class=\"stack\">{}</div>"
      "<ul class=\"key\">{}</ul></div>\n",
      total, bar, key);
}

std::string finding_block(const CaseRecord& record, const Finding& finding) {
  std::string text = fmt::format("<div class=\"finding\"><p><span class=\"kind\">{}</span> ", safe(finding.kind));
  // A clause that is only the case's stands with the others below, under "Clauses it tests".
  if (!finding.clause.empty() && !cites_its_case(record, finding)) {
    text += fmt::format("<span class=\"chip\">{}</span>", safe(finding.clause));
  }
  text += safe(finding.text) + "</p>";
  text += fmt::format("<p class=\"mono soft\">{}</p>", safe(place_text(finding)));
  std::string values;
  const auto value = [&](std::string_view label, const std::string& shown) {
    values += fmt::format("<div><dt>{}</dt><dd>{}</dd></div>", label, shown);
  };
  if (finding.got) value("got", number_text(*finding.got));
  if (finding.wanted) value("wanted", number_text(*finding.wanted));
  if (finding.allowed) value("allowed error", fmt::format("{:.3g}", *finding.allowed));
  if (finding.ratio) value("error / allowed", ratio_text(*finding.ratio));
  if (finding.total > 0) value("elements", fmt::format("{} of {}", finding.bad, finding.total));
  if (!values.empty()) text += fmt::format("<dl class=\"values\">{}</dl>", values);
  return text + "</div>\n";
}

std::string anchor(const CaseRecord& record) {
  return escape_attribute("case-" + printable(record.id));
}

/// The identity without the id that stands before it anyway.
std::string_view problem_text(const CaseRecord& record) {
  std::string_view text = record.identity;
  if (text.starts_with(record.id)) text.remove_prefix(record.id.size());
  text.remove_prefix(std::min(text.find_first_not_of(' '), text.size()));
  return text;
}

double total_seconds(const CaseRecord& record) {
  double sum = 0;
  for (const auto& [phase, seconds] : record.seconds) sum += seconds;
  return sum;
}

std::string failure_card(const CaseRecord& record, bool open) {
  std::string text = fmt::format(
      "<details class=\"card failure {}\" id=\"{}\"{}><summary>{}<span class=\"id mono\">{}</span>"
      "<span class=\"about\">{}</span></summary>\n<div class=\"body\">\n",
      name(record.status), anchor(record), open ? " open" : "", pill(record.status), safe(record.id),
      safe(record.about));
  if (record.findings.empty() && !record.reason.empty()) {
    text += fmt::format("<div class=\"finding\"><p>{}</p></div>\n", safe(record.reason));
  }
  for (const Finding& finding : record.findings) text += finding_block(record, finding);
  if (record.error_map) text += error_map_figure(*record.error_map);
  std::string facts;
  const auto fact = [&](std::string_view label, const std::string& html) {
    if (!html.empty()) facts += fmt::format("<dt>{}</dt><dd>{}</dd>\n", label, html);
  };
  const auto chips = [](const std::vector<std::string>& names) {
    std::string html;
    for (const std::string& one : names) html += fmt::format("<span class=\"chip\">{}</span>", safe(one));
    return html;
  };
  fact("Bugs it is there to catch", chips(record.kills));
  fact("Clauses it tests", chips(record.clauses));
  if (!problem_text(record).empty()) fact("Problem and steps", "<code>" + safe(problem_text(record)) + "</code>");
  if (!record.repro.empty()) fact("Run it again", "<pre class=\"repro\"><code>" + safe(record.repro) + "</code></pre>");
  if (!facts.empty()) text += fmt::format("<dl class=\"about-case\">\n{}</dl>\n", facts);
  return text + "</div></details>\n";
}

/// How near an error comes to the allowed one: three decades on either side of the limit in the middle.
std::string ratio_bar(const std::optional<double>& ratio) {
  if (!ratio) return "";
  const bool right = *ratio <= 1;
  const double decades = std::isfinite(*ratio) ? std::log10(std::max(*ratio, 1e-3)) : 3;
  const double share = std::clamp(50 + decades / 3 * 50, 2.0, 100.0);
  return fmt::format("<span class=\"ratio{}\"><i style=\"width:{:.1f}%\"></i></span>", right ? "" : " beyond", share);
}

std::string case_table(const Records& records, const Certificate& result) {
  const Tally all = whole_tally(records);
  std::string text = fmt::format(
      "<h2>Cases <small>{}</small></h2>\n<div class=\"tools\"><input type=\"search\" placeholder=\"Filter by any "
      "word\" "
      "aria-label=\"Filter\"><button data-status=\"\" aria-pressed=\"true\">all</button>",
      all.cases);
  for (const auto& [status, count] : all.by_status) {
    text += fmt::format("<button data-status=\"{0}\" aria-pressed=\"false\">{0} {1}</button>", name(status), count);
  }
  text +=
      "<output></output></div>\n<div class=\"card\"><table class=\"cases\"><thead><tr><th "
      "data-sort=\"text\">Status</th>"
      "<th data-sort=\"text\">Case</th><th class=\"n\" data-sort=\"number\">Worst error / allowed</th>"
      "<th class=\"n\" data-sort=\"number\">Time</th></tr></thead><tbody>\n";
  for (size_t i = 0; i < records.cases.size(); ++i) {
    const CaseRecord& record = records.cases[i];
    const bool failing = record.status != Status::pass && !result.excused[i];
    const std::string id = failing
                               ? fmt::format("<a class=\"mono\" href=\"#{}\">{}</a>", anchor(record), safe(record.id))
                               : fmt::format("<span class=\"mono\">{}</span>", safe(record.id));
    const bool finite = record.worst_ratio && std::isfinite(*record.worst_ratio);
    const double seconds = total_seconds(record);
    text += fmt::format(
        "<tr data-status=\"{0}\"><td data-key=\"{0}\">{1}</td><td data-key=\"{2}\">{3} <div class=\"about\">{4}</div>"
        "<div class=\"mono identity\">{5}</div></td><td class=\"n{6}\" data-key=\"{7}\">{8}{9}</td>"
        "<td class=\"n\" data-key=\"{10:.9f}\">{11}</td></tr>\n",
        name(record.status), pill(record.status), escape_attribute(printable(record.id)), id,
        safe(record.status == Status::unsupported ? record.reason : record.about), safe(problem_text(record)),
        !record.worst_ratio        ? " zero"
        : *record.worst_ratio <= 1 ? ""
                                   : " red",
        !record.worst_ratio ? "-1"
        : finite            ? fmt::format("{:.6g}", *record.worst_ratio)
                            : "1e308",
        record.worst_ratio ? ratio_text(*record.worst_ratio) : "–", ratio_bar(record.worst_ratio), seconds,
        seconds_text(seconds));
  }
  return text + "</tbody></table></div>\n";
}

}  // namespace

std::string html_report(const Records& records) {
  const Certificate result = certificate(records);
  const auto failing = failing_cases(records, result);

  std::string page =
      "<!doctype html>\n<!-- SPDX-License-Identifier: Apache-2.0 -->\n<html lang=\"en\">\n<head>\n<meta "
      "charset=\"utf-8\">\n";
  // The page needs nothing but itself, and says so: even text that slipped through unescaped could load nothing.
  page +=
      "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
      "script-src "
      "'unsafe-inline'\">\n<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n";
  page += fmt::format("<title>{}: {}</title>\n<style>{}</style>\n</head>\n<body>\n", safe(records.run.backend),
                      result.certified ? "certified" : "not certified", kReportStyle);
  page += error_map_definitions();
  page += "<main>\n" + banner(records, result, failing.size());
  page += "<div class=\"columns\">\n" + facts(records) + profiles(result) + "</div>\n";
  if (records.diagnosis) page += diagnosis_html(*records.diagnosis);
  if (!records.cases.empty()) page += families(records);
  page += times(records);
  if (!failing.empty()) {
    page += fmt::format("<h2>Did not pass <small>{}</small></h2>\n",
                        count_text(static_cast<int64_t>(failing.size()), "case"));
    for (size_t i = 0; i < failing.size(); ++i) page += failure_card(*failing[i], i < kOpenFailures);
  }
  if (!records.cases.empty()) page += case_table(records, result);
  page += fmt::format(
      "<footer>Made by attest {} from the records of this "
      "run.</footer>\n</main>\n<script>{}</script>\n</body>\n</html>\n",
      safe(records.run.attest_version), kReportScript);
  return page;
}

}  // namespace attest
