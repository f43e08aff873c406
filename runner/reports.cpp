// SPDX-License-Identifier: Apache-2.0
#include "runner/reports.h"

#include <fmt/core.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>

#include "runner/report_html.h"
#include "runner/report_junit.h"
#include "runner/report_markdown.h"

namespace attest {

bool use_colour(int descriptor) {
  const char* no_colour = std::getenv("NO_COLOR");
  return ::isatty(descriptor) == 1 && (no_colour == nullptr || *no_colour == '\0');
}

bool write_reports(const Records& records, const std::filesystem::path& out) {
  write_file(out / "junit.xml", junit_report(records));
  write_file(out / "report.html", html_report(records));
  write_file(out / "certificate.md", markdown_report(records));
  fmt::print("{}", console_summary(records, use_colour(STDOUT_FILENO)));
  const Certificate verdict = certificate(records);
  const bool all_passed = std::all_of(records.cases.begin(), records.cases.end(),
                                      [](const CaseRecord& record) { return record.status == Status::pass; });
  return verdict.certified || (verdict.subset && verdict.complete && all_passed);
}

}  // namespace attest
