// SPDX-License-Identifier: Apache-2.0
// libFuzzer's entry for one target, whose name is the macro's.
#include <cstddef>
#include <cstdint>

#include "runner/fuzz/targets.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  attest::fuzz::ATTEST_FUZZ_TARGET({reinterpret_cast<const char*>(data), size});
  return 0;
}
