// SPDX-License-Identifier: Apache-2.0
// What a backend did with a case, held against what a bug would have made of it, element by element. Pure.
//
// Both were played through the same memory, so that a bug that reads where it must not read finds the same there. What
// may differ is what correct code may differ in: order of sums, roundings. Allowed errors are derived for right values,
// so a wrong value gets twice its element's (either side may use its own), a few roundings of the value itself, and,
// where a second prediction with other roundings is at hand, a multiple of what these have moved in the row.
#pragma once

#include <cstdint>
#include <string>

#include "runner/rehearsal.h"

namespace attest {

/// How a bug's prediction stands to what a backend did with a case.
enum class Match : int {
  silent,   ///< The bug shows nothing here: its own results pass.
  agrees,   ///< All that was compared is as the bug makes it, and that is wrong.
  unclear,  ///< Too near to tell.
  differs,  ///< The bug would show here, and not like this.
};

struct Agreement {
  Match match = Match::silent;
  double residual = 0;  ///< Largest |got - predicted| over what rounding may do to both.
  /// How many times nearer the backend is to the prediction than to the golden, at the worst elements; infinite where
  /// what is wrong has no size (NaN, a status, a cached token).
  double gain = 0;
  int64_t wrong = 0;    ///< Elements of output and LSE in which the backend is wrong ...
  int64_t matched = 0;  ///< ... and those of them in which it has what the bug predicts.
  std::string where;    ///< `differs`: the first place, one line.
};

/// A prediction of a bug for one case.
struct Prediction {
  const Performance& made;
  /// The same with other roundings, or null; it only widens what rounding may do.
  const Performance* other = nullptr;
  /// The bug's results change from run to run, and `other` is another run: only the size of errors can be compared.
  bool random = false;
};

/// What a backend whose results fail did, against a prediction for the same case. `actual` has the backend's own
/// conventions.
Agreement compare(const Script& script, const Performance& actual, const Conventions& conventions,
                  const Prediction& prediction);

/// The same for a backend that passes the case: it cannot be more than the allowed error away from the golden.
Agreement compare_with_pass(const Case& c, const Performance& prediction);

/// Whether two runs of a case have left the same bits.
bool is_repeated(const Performance& one, const Performance& two);

/// Whether a second prediction could make an agreement of a difference.
bool is_near(const Agreement& agreement);

}  // namespace attest
