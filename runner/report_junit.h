// SPDX-License-Identifier: Apache-2.0
// A run as JUnit XML, for CI systems: a test suite per family, a test case per case, and one for the certificate, so
// that a run that broke off cannot look green.
#pragma once

#include <string>

#include "runner/record.h"

namespace attest {

std::string junit_report(const Records& records);

}  // namespace attest
