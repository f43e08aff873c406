// SPDX-License-Identifier: Apache-2.0
// Results as one self-contained HTML page: throughput against context length, with the ceiling drawn.
#pragma once

#include <string>

#include "bench/results.h"

namespace attest::bench {

std::string results_page(const Results& results);

}  // namespace attest::bench
