// SPDX-License-Identifier: Apache-2.0
// The kill matrix for people: a page with every cell of it, and what a console says.
#pragma once

#include <string>

#include "runner/kill_matrix.h"

namespace attest {

/// kill_matrix.html: one file that needs nothing else.
std::string html_report(const KillMatrix& matrix);

/// The weakest bugs, every complaint (of many of one rule, the first), the totals and, as the last line, the verdict.
std::string console_summary(const KillMatrix& matrix, bool colour);

}  // namespace attest
