// SPDX-License-Identifier: Apache-2.0
// Which system calls a confined worker may make: a list of those that C++, Python, NumPy and PyTorch need to compute on
// memory that they were given. All others do not exist for it.
#pragma once

#include <string>

namespace attest {

/// The filter as a BPF program, as seccomp(2) and `bwrap --seccomp` take it. Throws Error where this build or this
/// kernel has none.
std::string make_filter(bool may_fork);

}  // namespace attest
