// SPDX-License-Identifier: Apache-2.0
// A run as a page of Markdown: the certificate, to keep beside a release or paste into a discussion.
#pragma once

#include <string>

#include "runner/record.h"

namespace attest {

std::string markdown_report(const Records& records);

}  // namespace attest
