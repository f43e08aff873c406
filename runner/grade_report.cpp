// SPDX-License-Identifier: Apache-2.0
#include "runner/grade_report.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "runner/markup.h"
#include "runner/report_text.h"

namespace attest {
namespace {

constexpr size_t kReason = 300;    // characters of a reason, for students and graders
constexpr size_t kPrinted = 1000;  // and of what a submission printed
constexpr size_t kFindings = 4;    // of a part
constexpr size_t kNameColumns = 52;

constexpr const char* kRed = "31";
constexpr const char* kGreen = "32";
constexpr const char* kBold = "1";
constexpr const char* kDim = "2";

std::string painted(std::string_view text, const char* code, bool colour) {
  return colour ? fmt::format("\x1b[{}m{}\x1b[0m", code, text) : std::string(text);
}

/// One line of what a submission said.
std::string said(std::string_view text, size_t limit = kReason) {
  return shortened(printable(text), limit);
}

std::string of(double points, double possible) {
  return fmt::format("{} / {}", points_text(points), points_text(possible));
}

std::string padded(std::string_view text, size_t columns) {
  const std::string cut = shortened(text, columns);
  return cut + std::string(columns - width(cut), ' ');
}

/// What a case is called. Of a hidden one its name is the grader's: it says what is tested.
std::string label(const CaseGrade& one, Reader reader) {
  if (!one.hidden) return printable(one.name);
  std::string category = printable(one.category);
  const std::string whole = printable(one.name);
  if (reader == Reader::student) return category;
  return fmt::format("{}  {}{}", one.number, whole, whole.starts_with(category) ? "" : " (" + category + ")");
}

/// What a student may do about a verdict. Fixed words: nothing of the case or the submission is in them.
std::string_view meaning(Status status) {
  switch (status) {
    case Status::pass:
      return "everything that was compared is right";
    case Status::fail:
      return "an output, a cache, a length or its determinism is wrong";
    case Status::unsupported:
      return "the submission says that it cannot do this";
    case Status::error:
      return "it raised an exception, or returned something of the wrong kind or shape";
    case Status::crash:
      return "its process ended";
    case Status::timeout:
      return "it took too long";
    case Status::untrusted:
      return "the suite's own answer is not good enough; tell your grader";
  }
  return "";
}

bool may_read_reason(bool hidden, Reader reader) {
  return reader == Reader::grader || !hidden;
}

/// The findings of a part, and else its reason.
std::vector<std::string> details(const PartResult& part) {
  std::vector<std::string> lines;
  for (const Finding& finding : part.findings) {
    if (lines.size() == kFindings) {
      lines.push_back(
          fmt::format("and {}", count_text(static_cast<int64_t>(part.findings.size() - kFindings), "other")));
      break;
    }
    std::string line = fmt::format("{}: {}", finding.kind, finding.text);
    if (finding.total > 0) line = fmt::format("{}, {}: {}", line, place_text(finding), numbers_text(finding));
    lines.push_back(said(line, 2 * kReason));
  }
  if (lines.empty() && !part.reason.empty()) lines.push_back(said(part.reason));
  return lines;
}

std::string first_reason(const CaseGrade& one) {
  for (const PartResult& part : one.parts) {
    if (part.status == one.status && !part.reason.empty()) return part.reason;
  }
  return "";
}

bool shows(const CheckGrade& check, Reader reader) {
  return reader == Reader::grader || check.result.counts;
}

std::string sandbox_line(const GradeRun& run) {
  if (run.layers.empty()) return "not needed, nothing was run";
  std::string active, missing;
  for (const GradeLayer& layer : run.layers) {
    std::string& list = layer.active ? active : missing;
    list += (list.empty() ? "" : ", ") + printable(layer.name);
  }
  std::string line = active.empty() ? "none" : active;
  if (!missing.empty()) line += "; missing: " + missing;
  if (run.insecure) line += " (--insecure)";
  return line;
}

std::string manual_text(const std::optional<double>& points, double possible) {
  return points ? of(*points, possible) : fmt::format("- / {}", points_text(possible));
}

std::string joined(const std::vector<std::string>& lines) {
  std::string text;
  for (const std::string& line : lines) text += line + "\n";
  return text;
}

}  // namespace

std::string grade_line(const Grade& grade) {
  return fmt::format("{:>6} / {}  {:<8}  {}", points_text(grade.automatic), points_text(grade.automatic_possible),
                     name(grade.status), said(grade.run.submission, 120));
}

std::string diagnosis_cell(const Grade& grade) {
  if (!grade.run.diagnosis || grade.run.diagnosis->verdict != Diagnosis::Verdict::explained) return "";
  std::string cell;
  for (const auto& together : grade.run.diagnosis->explanations.front().bugs) {
    if (!cell.empty()) cell += " or ";
    for (size_t i = 0; i < together.size(); ++i) cell += (i == 0 ? "" : " + ") + together[i];
  }
  return cell;
}

std::string grade_text(const Grade& grade, Reader reader, bool colour) {
  const GradeRun& run = grade.run;
  const bool grader = reader == Reader::grader;
  std::string text;
  const auto row = [&](std::string_view verdict, const char* code, const std::string& what, const std::string& points) {
    text += fmt::format("  {}  {}  {:>13}\n", painted(padded(verdict, 7), code, colour), padded(what, kNameColumns),
                        points);
  };
  const auto note = [&](const std::string& line) { text += fmt::format("           {}\n", line); };

  text += painted(said(run.submission, 120), kBold, colour) + "\n";
  if (!run.refused.empty()) text += fmt::format("It could not be loaded: {}\n", said(run.refused));
  for (const GroupGrade& group : grade.groups) {
    if (group.cases == 0 && group.possible == 0) continue;
    text += fmt::format("\n{}  {:>13}\n", painted(padded(title(group.group), kNameColumns + 11), kBold, colour),
                        of(group.points, group.possible));
    for (const CaseGrade& one : grade.cases) {
      if (one.group != group.group) continue;
      const bool passed = one.status == Status::pass;
      row(name(one.status), passed ? kGreen : kRed, label(one, reader), of(one.points, one.possible));
      if (passed || !run.refused.empty()) continue;
      if (!grader) {
        if (may_read_reason(one.hidden, reader)) note(said(first_reason(one)));
        continue;
      }
      for (const PartResult& part : one.parts) {
        if (part.status == Status::pass) {
          note(fmt::format("{}: pass", printable(part.part)));
          continue;
        }
        note(fmt::format("{}: {}", printable(part.part), name(part.status)));
        for (const std::string& line : details(part)) note("  " + line);
      }
    }
    if (group.group != Group::visible) continue;
    for (const CheckGrade& check : grade.checks) {
      if (!shows(check, reader)) continue;
      const bool passed = check.result.status == Status::pass;
      row(name(check.result.status), passed ? kGreen : kRed, printable(check.result.about),
          check.result.counts ? of(check.points, check.possible) : "not counted");
      if (!passed && run.refused.empty()) note(said(check.result.reason));
    }
  }

  const auto total = [&](std::string_view what, const std::string& points, const char* code) {
    text += fmt::format("{}  {:>13}\n", painted(padded(what, kNameColumns + 11), code, colour), points);
  };
  text += "\n";
  total("Automatic", of(grade.automatic, grade.automatic_possible), kBold);
  const ManualGrade& manual = grade.manual;
  if (grader || manual.review || manual.bonus) {
    total("Review, by a person", manual_text(manual.review, kReviewPoints), kDim);
    total("Bonus, by a person", manual_text(manual.bonus, kBonusPoints), kDim);
    total(grade.complete() ? "Total" : "Total so far", points_text(grade.total()), kBold);
    if (!manual.comment.empty()) text += fmt::format("Comment: {}\n", printable(manual.comment));
  }
  if (!grader) {
    std::map<Status, bool> seen;
    for (const CaseGrade& one : grade.cases) seen[one.status] = true;
    text += "\n";
    for (const auto& [status, there] : seen) text += fmt::format("{:<8}  {}\n", name(status), meaning(status));
    return text;
  }

  text += fmt::format("\npack      {}\nsandbox   {}\nran       {}; {} in all, {} until it was loaded, {}\n", run.pack,
                      sandbox_line(run), said(run.worker), seconds_text(run.seconds), seconds_text(run.opening),
                      run.workers == 1 ? "1 process" : fmt::format("{} processes", run.workers));
  for (const std::string& line : run.notes) text += fmt::format("note      {}\n", said(line, 2 * kReason));
  if (!run.printed.empty()) text += fmt::format("printed   {}\n", said(run.printed, kPrinted));
  if (run.diagnosis) text += "\n" + diagnosis_text(*run.diagnosis, colour, Detail::brief);
  return text;
}

std::string gradescope_report(const Grade& grade, Reader reader) {
  const GradeRun& run = grade.run;
  Json tests = Json::array();
  const auto test = [&](const std::string& name, Status status, double points, double possible,
                        const std::string& output) {
    Json one{{"name", utf8(name)},      {"score", points},
             {"max_score", possible},   {"status", status == Status::pass ? "passed" : "failed"},
             {"output_format", "text"}, {"output", utf8(output)},
             {"visibility", "visible"}};
    tests.push_back(std::move(one));
  };
  for (const CaseGrade& one : grade.cases) {
    const std::string group(title(one.group));
    std::string output = fmt::format("{}: {}", name(one.status), meaning(one.status));
    if (!one.hidden && run.refused.empty() && one.status != Status::pass) output += "\n" + said(first_reason(one));
    test(fmt::format("{}: {}", group, label(one, Reader::student)), one.status, one.points, one.possible, output);
  }
  for (const CheckGrade& check : grade.checks) {
    if (!check.result.counts) continue;
    std::string output(name(check.result.status));
    if (check.result.status != Status::pass && run.refused.empty()) output += ": " + said(check.result.reason);
    test("Interface: " + check.result.about, check.result.status, check.points, check.possible, output);
  }
  if (reader == Reader::grader) {
    tests.push_back({{"name", "For graders"},
                     {"output_format", "text"},
                     {"output", utf8(grade_text(grade, Reader::grader, false))},
                     {"visibility", "hidden"}});
  }
  std::string output = fmt::format("{} automatic points.", of(grade.automatic, grade.automatic_possible));
  if (!run.refused.empty()) output += "\nThe submission could not be loaded: " + said(run.refused);
  double score = grade.automatic;
  if (grade.manual.review || grade.manual.bonus) {
    score = grade.total();
    output += fmt::format("\nReview: {}. Bonus: {}.", manual_text(grade.manual.review, kReviewPoints),
                          manual_text(grade.manual.bonus, kBonusPoints));
    if (!grade.manual.comment.empty()) output += "\n" + printable(grade.manual.comment);
  }
  // No execution_time: a submission chooses how long it takes, and could tell its author what it has seen.
  const Json report{{"score", score},          {"output", utf8(output)},        {"output_format", "text"},
                    {"visibility", "visible"}, {"stdout_visibility", "hidden"}, {"tests", std::move(tests)}};
  return report.dump(2) + "\n";
}

std::string grade_junit(const Grade& grade, Reader reader) {
  struct Counts {
    int64_t tests = 0, failures = 0, errors = 0;
  };
  Counts all;
  std::string suites;
  const auto attribute = [](std::string_view key, std::string_view value) {
    return fmt::format(" {}=\"{}\"", key, escape_attribute(value));
  };
  const auto counted = [](const Counts& counts) {
    return fmt::format(" tests=\"{}\" failures=\"{}\" errors=\"{}\" skipped=\"0\"", counts.tests, counts.failures,
                       counts.errors);
  };
  const auto test = [&](Counts& counts, const std::string& suite, const std::string& title, Status status,
                        const std::string& message, const std::string& output) {
    ++counts.tests;
    std::string text = fmt::format("    <testcase{}{} time=\"0\"", attribute("classname", "attest.grade." + suite),
                                   attribute("name", title));
    if (status == Status::pass) return text + "/>\n";
    const bool failure = status == Status::fail || status == Status::unsupported || status == Status::untrusted;
    ++(failure ? counts.failures : counts.errors);
    text += fmt::format(">\n      <{}{}{}/>\n", failure ? "failure" : "error", attribute("type", name(status)),
                        attribute("message", message));
    if (!output.empty()) text += fmt::format("      <system-out>{}</system-out>\n", escape_text(output));
    return text + "    </testcase>\n";
  };
  for (const GroupGrade& group : grade.groups) {
    Counts counts;
    std::string tests;
    const std::string suite(name(group.group));
    for (const CaseGrade& one : grade.cases) {
      if (one.group != group.group) continue;
      std::string message(meaning(one.status)), output;
      const bool reads = may_read_reason(one.hidden, reader);
      if (const std::string reason = first_reason(one); reads && !reason.empty()) message = said(reason);
      for (const PartResult& part : one.parts) {
        if (reader != Reader::grader || part.status == Status::pass) continue;
        output += fmt::format("{}: {}\n{}", printable(part.part), name(part.status), joined(details(part)));
      }
      tests += test(counts, suite, label(one, reader), one.status, message, output);
    }
    for (const CheckGrade& check : grade.checks) {
      if (group.group != Group::visible || !check.result.counts) continue;
      tests += test(counts, suite, check.result.about, check.result.status, said(check.result.reason), "");
    }
    if (counts.tests == 0) continue;
    suites += fmt::format(
        "  <testsuite{}{}>\n    <properties>\n      <property name=\"points\"{}/>\n    </properties>\n",
        attribute("name", title(group.group)), counted(counts), attribute("value", of(group.points, group.possible)));
    suites += tests + "  </testsuite>\n";
    all.tests += counts.tests;
    all.failures += counts.failures;
    all.errors += counts.errors;
  }
  return fmt::format("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites{}{}>\n{}</testsuites>\n",
                     attribute("name", "attest grade"), counted(all), suites);
}

std::string without_formulas(std::string_view text) {
  // Some spreadsheets drop spaces in front. Their languages have wide twins of the signs that a formula begins with.
  constexpr std::string_view spaces[]{" ", "\t", "\r", "\n", "\u00a0", "\u200b", "\u3000", "\ufeff"};
  constexpr std::string_view begins[]{"=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20"};
  const auto is_next = [&](const auto& some, size_t i) {
    const auto found = std::find_if(std::begin(some), std::end(some),
                                    [&](std::string_view one) { return text.substr(i).starts_with(one); });
    return found == std::end(some) ? size_t{0} : found->size();
  };
  std::string safe;
  bool at_start = true;
  for (size_t i = 0; i < text.size();) {
    size_t size = is_next(spaces, i);
    if (size == 0) {
      if (at_start && is_next(begins, i) > 0) safe += '\'';
      // Where ; separates cells, one begins behind it whatever stands around it; a quote may not count as one.
      at_start = text[i] == ';' || text[i] == '"';
      size = 1;
    }
    safe += text.substr(i, size);
    i += size;
  }
  return safe;
}

std::string grades_csv(const std::vector<Grade>& grades) {
  const auto cell = [](const std::string& raw) {
    const std::string text = without_formulas(printable(raw));
    if (text.find_first_of(",;\"") == std::string::npos) return text;
    std::string quoted = "\"";
    for (const char c : text) quoted += c == '"' ? std::string("\"\"") : std::string(1, c);
    return quoted + "\"";
  };
  const auto points = [](const std::optional<double>& given) { return given ? points_text(*given) : std::string(); };
  std::string csv =
      "submission,status,automatic,automatic_possible,visible,hidden_1_4,hidden_5_8,hidden_9_10,review,bonus,total,"
      "cases_passed,cases,diagnosis,refused,insecure,seconds,sha256,pack\r\n";
  for (const Grade& grade : grades) {
    const auto passed = std::count_if(grade.cases.begin(), grade.cases.end(),
                                      [](const CaseGrade& one) { return one.status == Status::pass; });
    const std::vector<std::string> cells{cell(grade.run.submission),
                                         std::string(name(grade.status)),
                                         points_text(grade.automatic),
                                         points_text(grade.automatic_possible),
                                         points_text(grade.groups.at(0).points),
                                         points_text(grade.groups.at(1).points),
                                         points_text(grade.groups.at(2).points),
                                         points_text(grade.groups.at(3).points),
                                         points(grade.manual.review),
                                         points(grade.manual.bonus),
                                         points_text(grade.total()),
                                         std::to_string(passed),
                                         std::to_string(grade.cases.size()),
                                         cell(diagnosis_cell(grade)),
                                         cell(said(grade.run.refused)),
                                         grade.run.insecure ? "yes" : "no",
                                         fmt::format("{:.2f}", grade.run.seconds),
                                         grade.run.sha256,
                                         grade.run.pack};
    for (size_t i = 0; i < cells.size(); ++i) csv += (i == 0 ? "" : ",") + cells[i];
    csv += "\r\n";
  }
  return csv;
}

}  // namespace attest
