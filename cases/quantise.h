// SPDX-License-Identifier: Apache-2.0
// Codes and scales of quantised caches (clauses Q1, Q2).
#pragma once

#include <span>

#include "cases/inputs.h"

namespace attest {

/// The value of the code (a number of `codes`, unscaled) nearest to x / scale, ties to even, clamped.
double code_of(DType codes, double x, double scale);
/// How far x / scale is from the nearest number between two codes at which the code changes, in distances of those
/// codes: 0 to 0.5. A backend's rounding may not carry x / scale across. Infinite beyond the largest code.
double code_margin(DType codes, double x, double scale);
/// The least margin with which a case may ask for a code.
inline constexpr double kCodeMargin = 0x1p-11;

/// Makes the scales of tensor or head, and moves those keys and values that lie between two codes clear of the middle.
void fit_scales(const Case& c, const Timeline& timeline, Inputs& inputs);

}  // namespace attest
