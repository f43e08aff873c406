// SPDX-License-Identifier: Apache-2.0
#include "runner/fuzz/targets.h"
#include "runner/grade.h"
#include "runner/grade_report.h"

void attest::fuzz::grades(std::string_view bytes) {
  Json json;
  try {
    json = parse_json(bytes, "fuzz");
    const ManualGrade manual = manual_from_json(json, "fuzz");
    want(manual.review.value_or(0) <= kReviewPoints && manual.bonus.value_or(0) <= kBonusPoints,
         "a person's points keep to their range");
  } catch (const Error&) {
  }
  try {
    const Grade grade = grade_from_json(json, "fuzz");
    const Json written = to_json(grade);
    want(to_json(grade_from_json(Json::parse(written.dump()), "fuzz, again")) == written,
         "a grade survives a round trip");
    want(!grades_csv({grade}).empty(), "a grade has its line of a table");
    for (const Reader reader : {Reader::student, Reader::grader}) {
      want(!grade_text(grade, reader, false).empty() && !gradescope_report(grade, reader).empty() &&
               !grade_junit(grade, reader).empty(),
           "a grade has its reports");
    }
  } catch (const Error& error) {
    want(std::string_view(error.what()).substr(0, 11) != "fuzz, again", "what was written can be read");
  }
}
