// SPDX-License-Identifier: Apache-2.0
#include "cases/inputs.h"
#include "cases/json.h"
#include "cases/timeline.h"
#include "runner/fuzz/small_case.h"
#include "runner/fuzz/targets.h"

void attest::fuzz::cases(std::string_view bytes) {
  try {
    const Case c = case_from_json(parse_json(bytes, "fuzz"), "fuzz", "fuzz");
    want(!identity(c).empty(), "a case has an identity");
    const Json problem = to_json(c.problem);
    want(to_json(problem_from_json(problem, "fuzz")) == problem, "a problem survives a round trip");
    if (!is_small(c)) return;
    const Timeline timeline = play(c);
    want(timeline.size() == c.steps.size(), "every step has its moment");
    for (const Moment& moment : timeline) {
      const auto chosen = checked_rows(c, moment);
      want(chosen.empty() || chosen.back() < moment.rows.size(), "checked rows are rows");
      for (const Row& row : moment.rows) want(0 <= row.begin && row.begin <= row.end, "a row sees a range of keys");
    }
    if (c.inputs.given.empty()) want(!hash(generate_inputs(c, timeline)).empty(), "inputs have a hash");
  } catch (const Error&) {
  }
}
