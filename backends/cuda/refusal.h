// SPDX-License-Identifier: Apache-2.0
// The words for what survey.cuh found wrong, as attest/backend.hpp has them for backends in host memory.
#pragma once

#include "kernels/arguments.h"

namespace attest::cuda {

/// Throws abi::Invalid or abi::Overflow; does nothing without a fault.
void refuse(const Report& report);

}  // namespace attest::cuda
