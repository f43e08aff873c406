// SPDX-License-Identifier: Apache-2.0
// An error map as a picture: position × sequence, a panel per head, coloured by error / allowed. A causal leak, a head
// that reads another's keys or a row of NaN shows at a glance.
#pragma once

#include <string>

#include "runner/record.h"

namespace attest {

/// An HTML <figure> with inline SVG, a legend, and a caption that says what was left out. Colours are the classes r0 to
/// r9 of the report's style sheet; unchecked cells are hatched with the page's pattern #unchecked.
std::string error_map_figure(const ErrorMap& map);

/// The pattern that the figures fill unchecked cells with; once a page.
std::string error_map_definitions();

}  // namespace attest
