// SPDX-License-Identifier: Apache-2.0
// Makes goldens for many cases at once.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "golden/golden.h"

namespace attest {

struct MadeGolden {
  const Case* c = nullptr;
  std::string bytes;  ///< The golden file.
  ManifestEntry entry;
  double seconds = 0;
};

/// Computes the goldens on `jobs` threads, the most expensive first, and calls `done` for each, one call at a time.
void make_goldens(const std::vector<const Case*>& cases, int jobs, const std::function<void(const MadeGolden&)>& done);

}  // namespace attest
