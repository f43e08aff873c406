// SPDX-License-Identifier: Apache-2.0
// The kill matrix in one picture: families of cases × bugs.
#pragma once

#include <string>

#include "runner/kill_matrix.h"

namespace attest {

/// kill_matrix.svg: a column per bug in its first realisation, areas together, a row per family of cases; the colour is
/// the largest margin with which a case of the family kills the bug.
std::string matrix_picture(const KillMatrix& matrix);

}  // namespace attest
