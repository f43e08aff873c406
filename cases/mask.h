// SPDX-License-Identifier: Apache-2.0
// What explicit masks hold (clause M6): patterns after those of real callers (padding on either side, holes, documents,
// prefixes, biases), as functions of sequence, head, query position and key position, so that chunks of a sequence see
// the same mask as the whole.
#pragma once

#include <string>

#include "cases/inputs.h"

namespace attest {

bool has_mask_pattern(const std::string& name, MaskKind kind);
/// The names that a kind of mask may have, comma-separated.
std::string mask_pattern_names(MaskKind kind);
/// Whether the pattern differs from query to query by its nature.
bool mask_pattern_needs_queries(const std::string& name);
/// How many keys the pattern "padding_left" hides at the front of a sequence; `data` is its slot of data, 0 where the
/// mask is the same for all.
int64_t left_padding(int64_t data);

/// The mask tensor of an attend, [B or 1, Hq or 1, Sq or 1, most keys of any sequence after the step]. Boolean: 1 and
/// 0. Columns beyond a sequence's keys, and rows beyond its queries, are 0 here; the runner poisons them.
Dense<float> make_mask(const Case& c, const Moment& moment);

}  // namespace attest
