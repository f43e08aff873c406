// SPDX-License-Identifier: Apache-2.0
// All reports of a run at once: what certify and report have in common.
#pragma once

#include <filesystem>

#include "runner/record.h"
#include "runner/report_console.h"

namespace attest {

/// Writes junit.xml, report.html and certificate.md into `out` and prints the summary. True for "yes": certified, or,
/// for a run of a subset, every case passed.
bool write_reports(const Records& records, const std::filesystem::path& out);

/// Whether to colour what goes to this descriptor: a terminal, and NO_COLOR is not set.
bool use_colour(int descriptor);

}  // namespace attest
