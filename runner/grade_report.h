// SPDX-License-Identifier: Apache-2.0
// A grade in the formats that people and systems read. Whoever may read what (spec/grading.md):
//
// A student sees, of a hidden case, its category, its verdict and its points. Nothing else: no numbers, no seeds, no
// shapes, and no word that the submission has chosen, since that word may be the case's data. What the visible case and
// the checks of the interface say may be shown, because they are run before anything hidden is.
//
// A grader sees everything; words of the submission are escaped and cut to size.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "runner/grade.h"

namespace attest {

enum class Reader : int { student, grader };

/// For a terminal.
std::string grade_text(const Grade& grade, Reader reader, bool colour);

/// Gradescope's results.json. For a grader, with tests that only instructors see.
std::string gradescope_report(const Grade& grade, Reader reader);

/// JUnit XML. Lost points are failures; a case that gave no answer is an error.
std::string grade_junit(const Grade& grade, Reader reader);

/// One line for a class's list: "52.5 / 70  fail  anna/kv_attention.py".
std::string grade_line(const Grade& grade);

/// A table with a line for each submission, in the order given (RFC 4180), without_formulas.
std::string grades_csv(const std::vector<Grade>& grades);

/// Text for a table's cell: an apostrophe stands wherever a spreadsheet would find the begin of a formula, at the
/// start, behind spaces and quotes, and behind a semicolon, at which many split whatever the other lines are separated
/// by.
std::string without_formulas(std::string_view text);

/// The bugs that explain the failures, as one cell: "causal-plus1 or causal-strict"; empty if there is no answer.
std::string diagnosis_cell(const Grade& grade);

}  // namespace attest
