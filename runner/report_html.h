// SPDX-License-Identifier: Apache-2.0
// A run as one self-contained HTML page: no other file and no network is needed to read it, in print and in the dark.
#pragma once

#include <string>

#include "runner/record.h"

namespace attest {

std::string html_report(const Records& records);

}  // namespace attest
