// SPDX-License-Identifier: Apache-2.0
// What the machine can do at most, measured beside the backends and not before them: a plain read of the same bytes,
// and multiply-adds in registers.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "bench/team.h"

namespace attest::bench {

/// Reads all of it once, shared out among the team by bytes.
void read_all(Team& team, const std::vector<std::span<const std::byte>>& runs);
/// Bytes that `read_all` reads.
double bytes_in(const std::vector<std::span<const std::byte>>& runs);

/// Multiply-adds on every core at once, with the widest registers that this machine has. Answers the operations done.
double multiply_add(Team& team);
/// "AVX-512", "AVX2", "the compiler's".
std::string multiply_add_name();

}  // namespace attest::bench
