// SPDX-License-Identifier: Apache-2.0
#include "runner/fuzz/targets.h"
#include "runner/record.h"

void attest::fuzz::records(std::string_view bytes) {
  try {
    const Records records = records_from_text(bytes, "fuzz");
    // What was read can be written, and is the same when it is read again, but for rounded numbers.
    std::string text = to_json(records.run).dump() + "\n";
    for (const CaseRecord& one : records.cases) text += to_json(one).dump() + "\n";
    if (records.end) text += to_json(*records.end).dump() + "\n";
    if (records.diagnosis) text += to_json(*records.diagnosis).dump() + "\n";
    const Records again = records_from_text(text, "fuzz, again");
    want(again.cases.size() == records.cases.size(), "records survive a round trip");
    want(certificate(again).certified == certificate(records).certified, "a certificate survives a round trip");
  } catch (const Error& error) {
    want(std::string_view(error.what()).substr(0, 11) != "fuzz, again", "what was written can be read");
  }
}
