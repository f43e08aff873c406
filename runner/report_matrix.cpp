// SPDX-License-Identifier: Apache-2.0
#include "runner/report_matrix.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "runner/markup.h"
#include "runner/report_html_assets.h"
#include "runner/report_matrix_assets.h"
#include "runner/report_text.h"

namespace attest {
namespace {

using State = Cell::State;

constexpr size_t kWeakest = 10;
constexpr size_t kComplaintsOfARule = 12;  // on the console

std::string safe(std::string_view text) {
  return escape_text(printable(text));
}

/// What a rule says of all that break it.
std::string_view headline(Complaint::Rule rule) {
  switch (rule) {
    case Complaint::Rule::survives:
      return "Bugs that survive";
    case Complaint::Rule::single:
      return "Bugs that only one case catches";
    case Complaint::Rule::unclear:
      return "Bugs that no case catches clearly";
    case Complaint::Rule::not_weak:
      return "Bugs whose `weak` in the catalogue no longer holds";
    case Complaint::Rule::not_cited:
      return "Bugs that no case names";
    case Complaint::Rule::wrong_citation:
      return "Bugs that a case names and does not catch";
    case Complaint::Rule::idle:
      return "Cases that catch nothing";
    case Complaint::Rule::false_alarm:
      return "False alarms";
    case Complaint::Rule::unsupported:
      return "Cases that the mutants do not support";
    case Complaint::Rule::lost:
      return "Crashes and timeouts of a mutant";
  }
  return "";
}

std::string scope(const KillMatrix& matrix) {
  if (matrix.fast) return "fast: of each bug as many of the cases that name it as it takes";
  if (!matrix.all_bugs || !matrix.all_cases) return "subset";
  return "";
}

/// 1234567 as 1,234,567.
std::string grouped(int64_t count) {
  std::string text = std::to_string(count);
  for (size_t end = text.size(); end > 3; end -= 3) text.insert(end - 3, ",");
  return text;
}

/// What the cases did to the bugs. Caught is what all cases together have to catch; of some of them it is asked which
/// kill.
std::string bugs_line(const KillMatrix& matrix, const MatrixTotals& sum) {
  if (sum.bugs == 0) return "";
  if (!matrix.all_cases && sum.realisations == 1) {
    const auto bug =
        std::find_if(matrix.mutants.begin(), matrix.mutants.end(), [](const Mutant& m) { return !m.correct; });
    return fmt::format("{} of {} kill{} {}", sum.kills, count_text(sum.plays, "case"), sum.plays == 1 ? "s" : "",
                       bug->id);
  }
  std::string text = matrix.all_cases ? fmt::format("{} of {} caught", sum.caught, count_text(sum.bugs, "bug"))
                                      : fmt::format("{} of {} killed by some of {}", sum.killed,
                                                    count_text(sum.bugs, "bug"), count_text(sum.cases, "case"));
  if (sum.realisations > sum.bugs) text += fmt::format(" in {} realisations", sum.realisations);
  return text;
}

std::string verdict_line(const KillMatrix& matrix, size_t complaints) {
  const MatrixTotals sum = totals(matrix);
  std::string text = bugs_line(matrix, sum);
  if (!text.empty()) text += ", ";
  text += fmt::format("{} in {} of correct backends", count_text(sum.alarms, "false alarm"),
                      count_text(sum.correct_plays, "play"));
  if (complaints > 0) text += fmt::format(", {}", count_text(static_cast<int64_t>(complaints), "complaint"));
  text += fmt::format(" · suite {} ({}), {} {}", matrix.attest_version, matrix.suite_hash, matrix.backend,
                      matrix.backend_version);
  if (const std::string what = scope(matrix); !what.empty()) text += " · " + what;
  return text;
}

// ---- the page ------------------------------------------------------------------------------------------------------

std::string banner(const KillMatrix& matrix, const std::vector<Complaint>& complaints) {
  const MatrixTotals sum = totals(matrix);
  const bool green = complaints.empty();
  const bool subset = !scope(matrix).empty();
  std::string text = fmt::format(
      "<header class=\"card banner {}\">\n<span class=\"verdict\">{}{}</span>\n<h1>Kill matrix</h1>\n<p>{}</p>\n"
      "<div class=\"numbers\">",
      !green   ? "bad"
      : subset ? "warn"
               : "good",
      green ? "GREEN" : "RED", subset ? " · SUBSET" : "", safe(verdict_line(matrix, complaints.size())));
  const auto number = [&](std::string_view css, const std::string& value, std::string_view label) {
    text += fmt::format("<div class=\"{}\"><b>{}</b><span>{}</span></div>", css, value, label);
  };
  number("", grouped(sum.bugs), "bugs");
  if (sum.realisations > sum.bugs) number("", grouped(sum.realisations), "realisations");
  const int64_t done = matrix.all_cases ? sum.caught : sum.killed;
  number(done == sum.bugs ? "good" : "bad", grouped(done), matrix.all_cases ? "caught" : "killed");
  number("", grouped(sum.cases), "cases");
  number("", grouped(sum.plays), "plays of bugs");
  number("", grouped(sum.kills), "kills");
  number(sum.alarms == 0 ? "good" : "bad", grouped(sum.alarms), "false alarms");
  number("", grouped(sum.correct_plays), "plays of correct backends");
  if (matrix.seconds > 0) number("", seconds_text(matrix.seconds), "by the clock");
  return text + "</div>\n</header>\n";
}

std::string complaint_lists(const std::vector<Complaint>& complaints) {
  std::map<Complaint::Rule, std::vector<const Complaint*>> by_rule;
  for (const Complaint& complaint : complaints) by_rule[complaint.rule].push_back(&complaint);
  std::string text;
  for (const auto& [rule, list] : by_rule) {
    text += fmt::format("<h2>{} <small>{}</small></h2>\n<div class=\"card complaints\"><ul>\n", safe(headline(rule)),
                        list.size());
    for (const Complaint* complaint : list) text += fmt::format("<li>{}</li>\n", safe(complaint->text));
    text += "</ul></div>\n";
  }
  return text;
}

/// A cell of a table with a margin, in the colour that the matrix has for it.
std::string margin_cell(const std::optional<size_t>& c, double margin) {
  if (!c) return "<td class=\"n zero\">–</td>";
  return fmt::format("<td class=\"n{}\">{}</td>", margin < kClearMargin ? " amber" : "", ratio_text(margin));
}

std::string case_cell(const KillMatrix& matrix, size_t m, const std::optional<size_t>& c) {
  if (!c) return "<td></td>";
  return fmt::format("<td title=\"{}\"><span class=\"mono\">{}</span></td>",
                     escape_attribute(printable(matrix.at(m, *c).reason)), safe(matrix.cases[*c].id));
}

std::string bug_table(const KillMatrix& matrix, const std::vector<size_t>& bugs) {
  std::string text =
      "<div class=\"card wide\"><table class=\"bugs\"><thead><tr><th>Bug</th><th class=\"n\">Kills</th><th "
      "class=\"n\">Best</th><th>Case</th><th class=\"n\">Second</th><th>Case</th></tr></thead><tbody>\n";
  std::string area;
  const bool grouped = bugs.size() > kWeakest;
  for (const size_t m : bugs) {
    const Mutant& bug = matrix.mutants[m];
    if (grouped && bug.area != area) {
      area = bug.area;
      text += fmt::format("<tr class=\"area\"><th colspan=\"6\">{}</th></tr>\n", safe(area));
    }
    const MutantSummary sum = summary(matrix, m);
    text += fmt::format("<tr><td><span class=\"mono name\">{}</span> <div class=\"about\">{}{}</div></td>",
                        safe(bug.id), safe(bug.about),
                        bug.weak.empty() ? "" : fmt::format("<br><span class=\"chip\">weak</span>{}", safe(bug.weak)));
    text += fmt::format("<td class=\"n{}\">{}</td>", sum.kills < 2 ? " red" : "", sum.kills);
    text += margin_cell(sum.best, sum.best_margin) + case_cell(matrix, m, sum.best);
    text += margin_cell(sum.second, sum.second_margin) + case_cell(matrix, m, sum.second) + "</tr>\n";
  }
  return text + "</tbody></table></div>\n";
}

std::string family_table(const KillMatrix& matrix) {
  struct Family {
    int64_t cases = 0, kills = 0, least = INT64_MAX;
    std::set<size_t> rows;
    std::set<std::string_view> bugs;
  };
  std::vector<std::string> order;
  std::map<std::string, Family> families;
  const std::vector<int64_t> kills = kills_by_case(matrix);
  std::vector<std::set<std::string>> killers(matrix.mutants.size());
  for (size_t c = 0; c < matrix.cases.size(); ++c) {
    const std::string& name = matrix.cases[c].family;
    if (!families.contains(name)) order.push_back(name);
    Family& family = families[name];
    ++family.cases;
    family.kills += kills[c];
    family.least = std::min(family.least, kills[c]);
    for (size_t m = 0; m < matrix.mutants.size(); ++m) {
      if (matrix.mutants[m].correct || matrix.at(m, c).state != State::failed) continue;
      family.rows.insert(m);
      family.bugs.insert(matrix.mutants[m].bug());
      killers[m].insert(name);
    }
  }
  std::string text =
      "<div class=\"card wide\"><table><thead><tr><th>Family</th><th class=\"n\">Cases</th><th class=\"n\">Bugs that "
      "it catches</th><th class=\"n\">Kills</th><th class=\"n\">Fewest of a case</th><th>Bugs that no other family "
      "catches</th></tr></thead><tbody>\n";
  for (const std::string& name : order) {
    const Family& family = families[name];
    std::string alone;
    for (const size_t m : family.rows) {
      if (killers[m].size() == 1) alone += fmt::format("<span class=\"chip\">{}</span>", safe(matrix.mutants[m].id));
    }
    text += fmt::format(
        "<tr><th>{}</th><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td "
        "class=\"n{}\">{}</td><td>{}</td></tr>\n",
        safe(name), family.cases, family.bugs.size(), family.kills, family.least == 0 ? " red" : "", family.least,
        alone);
  }
  return text + "</tbody></table></div>\n";
}

std::string correct_table(const KillMatrix& matrix) {
  std::string text =
      "<div class=\"card wide\"><table><thead><tr><th>Correct backend</th><th class=\"n\">Plays</th><th class=\"n\">"
      "False alarms</th><th class=\"n\">Worst error / allowed</th></tr></thead><tbody>\n";
  for (size_t m = 0; m < matrix.mutants.size(); ++m) {
    const Mutant& mutant = matrix.mutants[m];
    if (!mutant.correct) continue;
    const MutantSummary sum = summary(matrix, m);
    double worst = 0;
    for (size_t c = 0; c < matrix.cases.size(); ++c) worst = std::max(worst, matrix.at(m, c).worst.value_or(0));
    text += fmt::format(
        "<tr><td><span class=\"mono name\">{}</span> <span class=\"about\">{}</span></td><td class=\"n\">{}</td><td "
        "class=\"n{}\">{}</td><td class=\"n\">{}</td></tr>\n",
        safe(mutant.id), safe(mutant.about), sum.played, sum.kills > 0 ? " red" : " zero", sum.kills,
        ratio_text(worst));
  }
  return text + "</tbody></table></div>\n";
}

/// One letter a cell: '-' not played, '.' passed, '!' unsupported, '~' an infinite margin, else 'A' and up, six to a
/// decade.
char letter(const Cell& cell) {
  switch (cell.state) {
    case State::not_played:
      return '-';
    case State::unsupported:
      return '!';
    case State::passed:
      return '.';
    case State::failed:
      break;
  }
  if (!std::isfinite(cell.margin)) return '~';
  const double level = std::round(6 * std::log10(std::max(cell.margin, 1.0)));
  return static_cast<char>('A' + static_cast<int>(std::min(level, 57.0)));
}

/// What the page's script draws.
std::string page_data(const KillMatrix& matrix) {
  Json bugs = Json::array(), cases = Json::array();
  for (size_t m = 0; m < matrix.mutants.size(); ++m) {
    const Mutant& mutant = matrix.mutants[m];
    std::string cells;
    for (size_t c = 0; c < matrix.cases.size(); ++c) cells += letter(matrix.at(m, c));
    const MutantSummary sum = summary(matrix, m);
    bugs.push_back({printable(mutant.id), mutant.correct ? "correct backends" : printable(mutant.area),
                    printable(mutant.about), mutant.correct ? 1 : 0, sum.kills, cells});
  }
  const std::vector<int64_t> kills = kills_by_case(matrix);
  for (size_t c = 0; c < matrix.cases.size(); ++c) {
    const MatrixCase& one = matrix.cases[c];
    cases.push_back({printable(one.id), printable(one.family), printable(one.about), kills[c]});
  }
  const std::string json = Json{{"bugs", bugs}, {"cases", cases}}.dump(-1, ' ', false, Json::error_handler_t::replace);
  std::string text;
  for (const char one : json) text += one == '<' ? std::string("\\u003c") : std::string(1, one);
  return text;
}

std::string matrix_figure() {
  std::string legend;
  for (const auto& [css, label] : {std::pair{"k1", "1 to 20"},
                                   {"k2", "to 10³"},
                                   {"k3", "to 10⁵"},
                                   {"k4", "to 10⁷"},
                                   {"k5", "beyond"},
                                   {"k6", "NaN, status, guard"},
                                   {"k0", "passed"},
                                   {"k8", "not played"},
                                   {"k7", "a correct one fails"}}) {
    legend += fmt::format("<li><i class=\"{}\"></i>{}</li>", css, label);
  }
  return fmt::format(
      "<div class=\"tools matrix-tools\"><input type=\"search\" id=\"bug-filter\" placeholder=\"Bugs: id or area\" "
      "aria-label=\"Bugs\"><input type=\"search\" id=\"case-filter\" placeholder=\"Cases: id or family\" "
      "aria-label=\"Cases\"><button id=\"weakest\" aria-pressed=\"false\">weakest first</button><output "
      "id=\"matrix-shown\"></output></div>\n<ul class=\"legend\"><li class=\"what\">error / allowed</li>{}</ul>\n"
      "<div class=\"card matrix\" id=\"matrix\"><div class=\"corner\"></div><canvas "
      "id=\"matrix-families\"></canvas><canvas id=\"matrix-labels\"></canvas><canvas id=\"matrix-cells\">"
      "</canvas></div>\n<p class=\"matrix-pick soft\" id=\"matrix-pick\">Point at a cell; a click keeps it here.</p>\n"
      "<div class=\"matrix-tip\" id=\"matrix-tip\" hidden></div>\n",
      legend);
}

// ---- the console ---------------------------------------------------------------------------------------------------

std::string painted(std::string_view text, const char* code, bool colour) {
  return colour ? fmt::format("\x1b[{}m{}\x1b[0m", code, text) : std::string(text);
}

}  // namespace

std::string html_report(const KillMatrix& matrix) {
  const std::vector<Complaint> complaints = judge(matrix);
  const std::vector<size_t> weakest = weakest_first(matrix);
  std::vector<size_t> bugs = weakest;
  std::sort(bugs.begin(), bugs.end());
  std::string page =
      "<!doctype html>\n<!-- SPDX-License-Identifier: Apache-2.0 -->\n<html lang=\"en\">\n<head>\n<meta "
      "charset=\"utf-8\">\n<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src "
      "'unsafe-inline'; script-src 'unsafe-inline'\">\n<meta name=\"viewport\" content=\"width=device-width, "
      "initial-scale=1\">\n";
  page += fmt::format("<title>Kill matrix: {}</title>\n<style>{}{}</style>\n</head>\n<body>\n<main>\n",
                      complaints.empty() ? "green" : "red", kReportStyle, kMatrixStyle);
  page += banner(matrix, complaints) + complaint_lists(complaints);
  if (!bugs.empty()) {
    page += "<h2>The weakest bugs</h2>\n" +
            bug_table(matrix,
                      {weakest.begin(), weakest.begin() + static_cast<ptrdiff_t>(std::min(kWeakest, weakest.size()))});
  }
  page += fmt::format(
      "</main>\n<section class=\"broad\">\n<h2>The matrix <small>{} × {}</small></h2>\n{}</section>\n<main>\n",
      count_text(static_cast<int64_t>(bugs.size()),
                 totals(matrix).bugs == static_cast<int64_t>(bugs.size()) ? "bug" : "realisation"),
      count_text(static_cast<int64_t>(matrix.cases.size()), "case"), matrix_figure());
  page += "<h2>Families of cases</h2>\n" + family_table(matrix);
  if (bugs.size() > kWeakest) page += "<h2>All bugs</h2>\n" + bug_table(matrix, bugs);
  if (bugs.size() < matrix.mutants.size()) page += "<h2>Correct backends</h2>\n" + correct_table(matrix);
  page += fmt::format(
      "<footer>Made by attest {}.</footer>\n</main>\n<script>const matrix = {};\n{}</script>\n</body>\n</html>\n",
      safe(matrix.attest_version), page_data(matrix), kMatrixScript);
  return page;
}

std::string console_summary(const KillMatrix& matrix, bool colour) {
  const std::vector<Complaint> complaints = judge(matrix);
  std::string text;
  const std::vector<size_t> weakest = weakest_first(matrix);
  if (!weakest.empty()) {
    text += painted(fmt::format("{:<26} {:>6} {:>9} {:>9}  best case\n", "Weakest bugs", "kills", "best", "second"),
                    "1", colour);
  }
  for (size_t i = 0; i < std::min(kWeakest, weakest.size()); ++i) {
    const MutantSummary sum = summary(matrix, weakest[i]);
    text += fmt::format("{:<26} {:>6} {:>9} {:>9}  {}\n", printable(matrix.mutants[weakest[i]].id), sum.kills,
                        sum.best ? ratio_text(sum.best_margin) : "-", sum.second ? ratio_text(sum.second_margin) : "-",
                        sum.best ? printable(matrix.cases[*sum.best].id) : "");
  }
  const std::map<DType, Closest> near = closest(matrix);
  if (!near.empty()) text += "\n";
  for (const auto& [dtype, one] : near) {
    text += fmt::format("correct backends, {}: worst error/allowed {} ({}, {})\n", info(dtype).name,
                        ratio_text(one.ratio), printable(one.mutant), printable(one.c));
  }
  std::map<Complaint::Rule, std::vector<const Complaint*>> by_rule;
  for (const Complaint& complaint : complaints) by_rule[complaint.rule].push_back(&complaint);
  for (const auto& [rule, list] : by_rule) {
    text += "\n" + painted(fmt::format("{}: {}", headline(rule), list.size()), "31", colour) + "\n";
    for (size_t i = 0; i < std::min(kComplaintsOfARule, list.size()); ++i)
      text += "  " + printable(list[i]->text) + "\n";
    if (list.size() > kComplaintsOfARule) text += fmt::format("  and {} more\n", list.size() - kComplaintsOfARule);
  }
  text += "\n" + (complaints.empty() ? painted("GREEN", "1;32", colour) : painted("RED", "1;31", colour)) + "  " +
          printable(verdict_line(matrix, complaints.size())) + "\n";
  return text;
}

}  // namespace attest
