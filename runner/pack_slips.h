// SPDX-License-Identifier: Apache-2.0
// Whether a pack's case notices what a submission may get wrong: the layer once more, in double precision and as the
// challenge's class is written, honest or with one slip. A case that a slip passes would give points for it.
#pragma once

#include <string>
#include <vector>

#include "cases/inputs.h"
#include "golden/golden.h"

namespace attest {

/// Names of the slips that could be made in this case and that no element of its golden shows by `margin` times its
/// allowed error. Throws Error if the honest layer is not within the allowed error: the golden would be wrong.
std::vector<std::string> unnoticed_slips(const Case& c, const Inputs& inputs, const Golden& golden,
                                         double margin = 100);

/// Names of the slips that could be made in this case.
std::vector<std::string> possible_slips(const Case& c);

}  // namespace attest
