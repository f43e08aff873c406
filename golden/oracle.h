// SPDX-License-Identifier: Apache-2.0
// The oracle: the operator of spec/attention.md, written down clause by clause in ball arithmetic. It shares no code
// with any backend. Needs Arb; reading goldens does not.
#pragma once

#include "cases/inputs.h"
#include "golden/golden.h"

namespace attest {

/// Changes when any golden could: part of the manifest.
std::string oracle_version();

struct OracleResult {
  Golden golden;
  int64_t values = 0, proven = 0, tie = 0, zero = 0;
  double worst_radius = 0;  ///< Largest (proof radius / allowed error).
};

/// Computes every checked element of a case, with as many bits as its proof takes.
OracleResult compute_golden(const Case& c, const Timeline& timeline, const Inputs& inputs);

/// Throws unless every feature of the case matters to it: without the feature, and with the same inputs, some checked
/// element would differ by more than 100 times its allowed error. A case that fails this tests nothing that it claims.
void check_binding(const Case& c, const Inputs& inputs, const Golden& golden);

/// Gives back what Arb caches per thread; call before a thread that used the oracle ends.
void release_oracle_thread();

}  // namespace attest
