// SPDX-License-Identifier: Apache-2.0
#include <cstdio>
#include <cstdlib>

#include "runner/fuzz/targets.h"

void attest::fuzz::want(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "fuzz: does not hold: %s\n", what);
  std::abort();
}
