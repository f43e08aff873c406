// SPDX-License-Identifier: Apache-2.0
#include "runner/report_console.h"

#include <fmt/ranges.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <iostream>

#include "runner/markup.h"
#include "runner/report_text.h"

namespace attest {
namespace {

constexpr size_t kOtherFindings = 5;    // of a failing case, beside its first
constexpr size_t kListedFailures = 20;  // in the summary
constexpr size_t kReasonColumns = 100;
constexpr size_t kBarColumns = 20;

constexpr const char* kRed = "31";
constexpr const char* kGreen = "32";
constexpr const char* kYellow = "33";
constexpr const char* kBold = "1";
constexpr const char* kDim = "2";

std::string painted(std::string_view text, const char* code, bool colour) {
  return colour ? fmt::format("\x1b[{}m{}\x1b[0m", code, text) : std::string(text);
}

const char* colour_of(Status status) {
  return status == Status::pass ? kGreen : status == Status::unsupported ? kYellow : kRed;
}

std::string bar(double share, size_t columns) {
  const double clamped = std::clamp(std::isfinite(share) ? share : 0.0, 0.0, 1.0);
  const auto full = static_cast<size_t>(std::lround(clamped * static_cast<double>(columns)));
  std::string text;
  for (size_t i = 0; i < columns; ++i) text += i < full ? "█" : "░";
  return text;
}

/// Columns as wide as their widest cell, two spaces between them. Text is set left, numbers right.
class Table {
 public:
  struct Cell {
    std::string text;
    const char* code = nullptr;  ///< Colour, or none.
  };
  explicit Table(std::vector<Cell> head) { rows_.push_back(std::move(head)); }
  void row(std::vector<Cell> cells) { rows_.push_back(std::move(cells)); }

  /// The first column and those in `left` are text.
  [[nodiscard]] std::string text(bool colour, const std::vector<size_t>& left = {}) const {
    std::vector<size_t> widths;
    for (const auto& row : rows_) {
      widths.resize(std::max(widths.size(), row.size()), 0);
      for (size_t c = 0; c < row.size(); ++c) widths[c] = std::max(widths[c], width(row[c].text));
    }
    std::string text;
    for (size_t r = 0; r < rows_.size(); ++r) {
      std::string line;
      for (size_t c = 0; c < rows_[r].size(); ++c) {
        const Cell& cell = rows_[r][c];
        const std::string pad(widths[c] - width(cell.text), ' ');
        const bool is_left = c == 0 || std::find(left.begin(), left.end(), c) != left.end();
        const char* code = r == 0 ? kBold : cell.code;
        const std::string shown = code != nullptr ? painted(cell.text, code, colour && !cell.text.empty()) : cell.text;
        const bool last = c + 1 == rows_[r].size();
        line += (c == 0 ? "" : "  ") + (is_left ? shown + (last ? "" : pad) : pad + shown);
      }
      line.erase(line.find_last_not_of(' ') + 1);
      text += line + "\n";
    }
    return text;
  }

 private:
  std::vector<std::vector<Cell>> rows_;
};

std::string family_table(const Records& records, bool colour) {
  const Tally all = whole_tally(records);
  std::vector<Table::Cell> head{{"Family"}, {"cases"}};
  for (const auto& [status, count] : all.by_status) head.push_back({std::string(name(status))});
  head.push_back({"worst error/allowed"});
  Table table(head);
  std::vector<Tally> rows = family_tallies(records);
  rows.push_back(all);
  for (const Tally& tally : rows) {
    std::vector<Table::Cell> cells{{printable(tally.name)}, {std::to_string(tally.cases)}};
    for (const auto& [status, total] : all.by_status) {
      const int64_t count = tally.count(status);
      cells.push_back({count == 0 ? "-" : std::to_string(count), count == 0 ? kDim : colour_of(status)});
    }
    const bool beyond = tally.worst_ratio && !(*tally.worst_ratio <= 1);
    cells.push_back({tally.worst_ratio ? ratio_text(*tally.worst_ratio) : "-", beyond ? kRed : nullptr});
    table.row(cells);
  }
  return table.text(colour);
}

std::string profile_table(const Certificate& certificate, bool colour) {
  Table table({{"Profile"}, {"cases"}, {"pass"}, {"unsupported"}, {"fail"}, {""}});
  for (const ProfileResult& profile : certificate.profiles) {
    const auto number = [](int64_t count, const char* code) {
      return Table::Cell{count == 0 ? "-" : std::to_string(count), count == 0 ? kDim : code};
    };
    Table::Cell verdict{"certified", kGreen};
    if (!profile.claimed) {
      const std::string reason = profile.reason.empty() ? "no reason given" : printable(profile.reason);
      verdict = {"not claimed: " + shortened(reason, kReasonColumns), kYellow};
    } else if (!profile.certified()) {
      verdict = {"not certified", kRed};
    } else if (!certificate.certified) {
      // A profile alone does not make a certificate: the run was a subset, is incomplete, or another profile fails.
      verdict = {"all pass", kGreen};
    }
    table.row({{printable(profile.name)},
               {std::to_string(profile.cases)},
               number(profile.passed, kGreen),
               number(profile.unsupported, profile.claimed ? kRed : kYellow),
               number(profile.failed, kRed),
               verdict});
  }
  return table.text(colour, {5});
}

std::string failure_list(const Records& records, const Certificate& certificate, bool colour) {
  const auto failing = failing_cases(records, certificate);
  if (failing.empty()) return "";
  Table table({{"Not passed"}, {""}, {""}});
  for (size_t i = 0; i < std::min(failing.size(), kListedFailures); ++i) {
    const CaseRecord& record = *failing[i];
    table.row({{printable(record.id)},
               {std::string(name(record.status)), colour_of(record.status)},
               {shortened(printable(record.reason), kReasonColumns)}});
  }
  std::string text = "\n" + table.text(colour, {1, 2});
  if (failing.size() > kListedFailures) {
    text += fmt::format("and {} more\n", failing.size() - kListedFailures);
  }
  return text;
}

std::string time_table(const Records& records, bool colour) {
  const auto phases = phase_seconds(records);
  if (phases.empty()) return "";
  double sum = 0;
  for (const auto& [phase, seconds] : phases) sum += seconds;
  Table table({{"Where the time went"}, {""}, {""}, {""}});
  for (const auto& [phase, seconds] : phases) {
    const double share = sum > 0 ? seconds / sum : 0;
    table.row({{"  " + printable(phase)},
               {seconds_text(seconds)},
               {fmt::format("{:.0f}%", 100 * share)},
               {bar(share, kBarColumns), kDim}});
  }
  std::string total = fmt::format("  {} in all", seconds_text(sum));
  if (records.run.jobs > 0) total += fmt::format(" over {}", count_text(records.run.jobs, "worker"));
  if (records.end) total += fmt::format("; {} by the clock", seconds_text(records.end->wall_seconds));
  return "\n" + table.text(colour, {3}) + total + "\n";
}

size_t terminal_columns() {
  winsize size{};
  if (::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) return size.ws_col;
  return 80;
}

double steady_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

std::string failure_block(const CaseRecord& record, bool colour) {
  std::string text = painted(fmt::format("{:<9}", name(record.status)), colour_of(record.status), colour) + " " +
                     painted(printable(record.id), kBold, colour);
  if (!record.about.empty()) text += "  " + printable(record.about);
  text += "\n";
  const auto line = [&](std::string_view label, const std::string& value) {
    if (!value.empty()) text += fmt::format("  {} {}\n", painted(fmt::format("{:<7}", label), kDim, colour), value);
  };
  if (record.findings.empty()) {
    line("reason", printable(record.reason));
  } else {
    const Finding& first = record.findings.front();
    std::string what = printable(first.kind);
    if (!first.clause.empty() && !cites_its_case(record, first)) what += ", clause " + printable(first.clause);
    if (!first.text.empty()) what += ": " + printable(first.text);
    if (cites_its_case(record, first)) {
      what += printable(fmt::format("; clauses tested: {}", fmt::join(record.clauses, ", ")));
    }
    line("finding", what);
    line("at", place_text(first));
    line("", numbers_text(first));
  }
  for (size_t i = 1; i < std::min(record.findings.size(), kOtherFindings + 1); ++i) {
    line("also", finding_text(record, record.findings[i]));
  }
  if (record.findings.size() > kOtherFindings + 1) {
    line("", fmt::format("and {} more", record.findings.size() - kOtherFindings - 1));
  }
  line("aims at", printable(fmt::format("{}", fmt::join(record.kills, ", "))));
  line("again", printable(record.repro));
  return text;
}

std::string console_summary(const Records& records, bool colour) {
  const Certificate result = certificate(records);
  std::string text;
  if (!records.cases.empty()) text += family_table(records, colour) + "\n";
  if (!result.profiles.empty()) text += profile_table(result, colour);
  text += failure_list(records, result, colour);
  text += time_table(records, colour);
  if (records.diagnosis) text += "\n" + diagnosis_text(*records.diagnosis, colour, Detail::brief);
  const char* code = result.certified ? "1;32" : "1;31";
  const size_t verdict =
      result.certified ? std::string_view("CERTIFIED").size() : std::string_view("NOT CERTIFIED").size();
  text += "\n" + painted(result.line.substr(0, verdict), code, colour) + result.line.substr(verdict) + "\n";
  return text;
}

Progress::Progress(int64_t planned, bool terminal, bool colour)
    : Progress(planned, terminal, colour, std::cerr, terminal ? terminal_columns() : 0, steady_seconds) {}

Progress::Progress(int64_t planned, bool terminal, bool colour, std::ostream& out, size_t columns,
                   std::function<double()> seconds)
    : planned_(planned),
      terminal_(terminal),
      colour_(colour),
      out_(out),
      columns_(columns),
      seconds_(std::move(seconds)),
      start_(seconds_()) {}

std::string Progress::counts() const {
  std::string text = fmt::format("{} pass", passed_);
  if (unsupported_ > 0) text += fmt::format(", {} unsupported", unsupported_);
  if (const int64_t bad = done_ - passed_ - unsupported_; bad > 0) {
    text += ", " + painted(fmt::format("{} fail", bad), kRed, colour_);
  }
  return text;
}

std::string Progress::line(const std::string& current) const {
  const double share = planned_ > 0 ? static_cast<double>(done_) / static_cast<double>(planned_) : 1;
  const double elapsed = seconds_() - start_;
  const double left = done_ > 0 ? elapsed / static_cast<double>(done_) * static_cast<double>(planned_ - done_) : 0;
  const std::string time = done_ < planned_ ? seconds_text(std::ceil(left)) + " left" : seconds_text(elapsed);
  const std::string tail = fmt::format("  {}/{}  {}  {}  ", done_, planned_, counts(), time);
  const std::string plain = fmt::format("  {}/{}  {}  ", done_, planned_, time);
  // The counts may hold colour codes, so the room for the name is reckoned from what is seen.
  const int64_t bad = done_ - passed_ - unsupported_;
  size_t seen = kBarColumns + plain.size() + fmt::format("{} pass  ", passed_).size();
  if (unsupported_ > 0) seen += fmt::format(", {} unsupported", unsupported_).size();
  if (bad > 0) seen += fmt::format(", {} fail", bad).size();
  if (columns_ <= seen) return fmt::format("{}/{} {}", done_, planned_, time);  // a wrapped line cannot be taken back
  const size_t room = columns_ - seen - 1;
  return bar(share, kBarColumns) + tail + shortened(printable(current), room);
}

void Progress::clear() {
  if (drawn_) out_ << "\r\x1b[K";
  drawn_ = false;
}

void Progress::finished(const CaseRecord& record) {
  const int64_t tenth_before = planned_ > 0 ? done_ * 10 / planned_ : 0;
  ++done_;
  if (record.status == Status::pass) ++passed_;
  if (record.status == Status::unsupported) ++unsupported_;
  clear();
  // Whether `unsupported` is a failure shows only when all cases are in: the summary tells.
  if (record.status != Status::pass && record.status != Status::unsupported) {
    out_ << failure_block(record, colour_) << "\n";
  }
  if (terminal_) {
    out_ << line(record.id);
    drawn_ = true;
  } else if (planned_ > 0 && done_ * 10 / planned_ > tenth_before) {
    out_ << fmt::format("{:3}%  {}/{}  {}  {}\n", done_ * 100 / planned_, done_, planned_, counts(),
                        seconds_text(seconds_() - start_));
  }
  out_.flush();
}

void Progress::close() {
  clear();
  out_.flush();
}

}  // namespace attest
