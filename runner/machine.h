// SPDX-License-Identifier: Apache-2.0
// The machine that a run happens on, as records name it.
#pragma once

#include <cstdint>
#include <string>

namespace attest {

struct Machine {
  std::string host, cpu, system;
  int64_t cores = 0;
};

Machine this_machine();
/// Now, UTC, ISO 8601 to the second.
std::string utc_now();

}  // namespace attest
