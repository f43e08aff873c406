// SPDX-License-Identifier: Apache-2.0
// What a run says in a terminal or a log: its progress, each failure at once, and the summary at the end.
#pragma once

#include <functional>
#include <iosfwd>
#include <string>

#include "runner/record.h"

namespace attest {

/// A failing case in a few lines: what is wrong, the bugs that the case aims at (not: that were found), the command
/// that repeats it.
std::string failure_block(const CaseRecord& record, bool colour);

/// Tables by family and profile, what did not pass, where the time went, and the certificate as the last line.
std::string console_summary(const Records& records, bool colour);

/// Tells how far a run is. On a terminal one line that is written over and over; elsewhere a line every tenth of the
/// cases, without control codes. Failing cases are printed as they come. Not thread-safe.
class Progress {
 public:
  /// To standard error.
  Progress(int64_t planned, bool terminal, bool colour);
  /// `columns` is the terminal's width, `seconds` a clock.
  Progress(int64_t planned, bool terminal, bool colour, std::ostream& out, size_t columns,
           std::function<double()> seconds);

  void finished(const CaseRecord& record);
  /// Takes the terminal's line away.
  void close();

 private:
  [[nodiscard]] std::string line(const std::string& current) const;
  [[nodiscard]] std::string counts() const;
  void clear();

  int64_t planned_;
  bool terminal_, colour_;
  std::ostream& out_;
  size_t columns_;
  std::function<double()> seconds_;
  double start_;
  int64_t done_ = 0, passed_ = 0, unsupported_ = 0;
  bool drawn_ = false;
};

}  // namespace attest
