// SPDX-License-Identifier: Apache-2.0
// Random legal cases: any features, shapes, recipes and steps together, small enough that the oracle is quick. What no
// list of cases has thought of; for campaigns that look for false alarms.
#pragma once

#include <cstdint>

#include "cases/case.h"

namespace attest {

/// Case `number` of a seed, as it would stand in a case file of the family "fresh": the same on every machine.
Json random_case_json(uint64_t seed, uint64_t number);

/// The same, read. Throws Error if the draw is no case after all: a ring that is cut too far, a recipe that 16 bits
/// cannot hold. About one in ten.
Case random_case(uint64_t seed, uint64_t number);

}  // namespace attest
