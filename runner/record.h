// SPDX-License-Identifier: Apache-2.0
// The records of a run: what `certify` writes as JSON lines, and all that reports read (schema:
// spec/schema/record.schema.json). A report can be made again from them without the backend.
//
// A file is one `run` line, one `case` line per case as it finished, one `end` line; without its end it is incomplete.
// A `diagnosis` line may follow.
// Workers finish in any order, so each case has its place in the plan.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "cases/json.h"
#include "runner/conventions.h"
#include "runner/explain.h"

namespace attest {

/// Verdict of one case (spec/conformance.md). Only `pass` passes.
enum class Status : int { pass, fail, unsupported, error, crash, timeout, untrusted };
std::string_view name(Status status);

/// One thing that is wrong with a case, first in the order of spec/conformance.md.
struct Finding {
  std::string kind;    ///< status, guard, input, unwritten, nan, value, cache, length, invariant, refusal, message,
                       ///< bitwise
  std::string clause;  ///< Clause of spec/attention.md that it breaks.
  int64_t step = 0;    ///< Index of the case's step.
  std::string tensor;  ///< output, lse, cache.key, ...
  std::vector<int64_t> index;                  ///< Of the worst element, logical.
  std::string index_names;                     ///< What the index counts: "sequence,token,head,channel".
  std::optional<double> got, wanted, allowed;  ///< Of the worst element; got may be NaN or infinite.
  std::optional<double> ratio;                 ///< |got - wanted| / allowed of the worst element; infinite for NaN.
  int64_t bad = 0, total = 0;                  ///< Elements beyond their allowed error, of those compared.
  std::string text;                            ///< One sentence.
};

/// The worst error / allowed over channels, for every (sequence, head, row) of one step that was checked.
struct ErrorMap {
  int64_t step = 0;
  int64_t sequences = 0, heads = 0, positions = 0;  ///< heads = 1 at the layer level.
  int64_t first_position = 0;                       ///< Position of column 0.
  std::vector<double> ratio;  ///< [sequences][heads][positions]; -1 where nothing was checked, infinite for NaN.
};

struct CaseRecord {
  int64_t index = 0;  ///< Place in the plan, from 0.
  std::string id, family, about;
  std::vector<std::string> profiles, clauses, kills;
  std::string identity;  ///< Full identity line of the case.
  Status status = Status::error;
  std::string reason;  ///< One line why, unless it passed; for `unsupported`, the backend's own words.
  std::vector<Finding> findings;
  std::optional<double> worst_ratio;      ///< Largest error / allowed over all that was compared; passing cases too.
  std::optional<ErrorMap> error_map;      ///< Failing cases with a wrong value.
  std::map<std::string, double> seconds;  ///< By phase: inputs, golden, start, prepare, run, judge.
  std::string repro;                      ///< The command that runs just this case again.
};

struct RunRecord {
  std::string attest_version;
  std::string suite_hash;  ///< First 12 hex digits over the goldens' manifest.
  std::string backend, backend_version, backend_description, device;
  Conventions conventions;  ///< What the backend declares.
  std::string library;
  std::map<std::string, std::string> options;
  std::string host, cpu, started;  ///< started: ISO 8601, UTC.
  int64_t cores = 0, jobs = 0;
  std::vector<std::string> profiles;  ///< Asked for; empty = every profile that the backend claims.
  bool subset = false;                ///< A filter or --case was given: such a run certifies nothing.
  int64_t planned = 0;                ///< Cases that will follow.
  std::string plan_hash;              ///< Over the ids and hashes of the planned cases.
};

struct EndRecord {
  int64_t cases = 0;
  double wall_seconds = 0;
};

struct Records {
  RunRecord run;
  std::vector<CaseRecord> cases;
  std::optional<EndRecord> end;
  std::optional<Diagnosis> diagnosis;  ///< Of a run with failing cases, unless it was not wanted.
};

Json to_json(const Finding& finding);
Finding finding_from_json(const Json& json, const std::string& place);
Json to_json(const RunRecord& run);
Json to_json(const CaseRecord& record);
Json to_json(const EndRecord& end);
/// Brings cases that finished in any order back into the plan's.
void sort_by_plan(std::vector<CaseRecord>& cases);
/// Reads a records file, cases in plan order; throws on a broken line, an unknown field, a missing or second `run`
/// line, a duplicate case.
Records read_records(const std::filesystem::path& path);
/// The same of a file's text; `file` names it in errors.
Records records_from_text(std::string_view text, const std::string& file);

/// What the records say of one profile.
struct ProfileResult {
  std::string name;
  bool claimed = false;                                        ///< At least one of its cases was not `unsupported`.
  int64_t cases = 0, passed = 0, unsupported = 0, failed = 0;  ///< failed: every other status.
  std::string reason;  ///< Not claimed: the backend's words. Not certified: the first failing case.
  [[nodiscard]] bool certified() const { return claimed && cases > 0 && passed == cases; }
};

/// The certificate: computed from the records alone. A case counts for each profile it names, with one excuse: a case
/// may be `unsupported` if one of its profiles is neither claimed nor asked for. A wrong answer is never excused.
struct Certificate {
  std::vector<ProfileResult> profiles;  ///< By name; of a run that asked for profiles, those only.
  std::vector<bool> excused;            ///< By case, in the records' order: unsupported, and may be.
  bool complete = false;                ///< The end record is there and counts what was planned.
  bool subset = false;
  /// Complete, no subset, at least one profile claimed, and every claimed (or asked-for) profile certified.
  bool certified = false;
  std::string line;  ///< The last line: CERTIFIED / NOT CERTIFIED, profiles, suite version, why not.
};
Certificate certificate(const Records& records);

}  // namespace attest
