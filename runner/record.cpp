// SPDX-License-Identifier: Apache-2.0
#include "runner/record.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <set>

#include "runner/markup.h"

namespace attest {
namespace {

constexpr std::string_view kSchema = "attest/records/1";
const std::vector<std::string> kStatuses{"pass",  "fail",    "unsupported", "error",
                                         "crash", "timeout", "untrusted"};  // in the order of Status

// ---- writing -------------------------------------------------------------------------------------------------------
// Strings pass through utf8(): they may be a backend's own bytes, and a record must never fail to be written.

Json number(double value) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value > 0 ? "Infinity" : "-Infinity";
  return value;
}

Json strings(const std::vector<std::string>& list) {
  Json json = Json::array();
  for (const std::string& item : list) json.push_back(utf8(item));
  return json;
}

/// Four significant digits, never rounded across 1, the limit between right and wrong. Whole numbers lose their ".0".
Json compact(double value) {
  if (!std::isfinite(value)) return number(value);
  double rounded = std::strtod(fmt::format("{:.4g}", value).c_str(), nullptr);
  if (value > 1 && rounded <= 1) rounded = 1.001;
  if (rounded == std::trunc(rounded) && std::abs(rounded) < 1e15) return static_cast<int64_t>(rounded);
  return rounded;
}

}  // namespace

Json to_json(const Finding& finding) {
  Json json{{"kind", utf8(finding.kind)}, {"clause", utf8(finding.clause)},
            {"step", finding.step},       {"tensor", utf8(finding.tensor)},
            {"index", finding.index},     {"index_names", utf8(finding.index_names)},
            {"bad", finding.bad},         {"total", finding.total},
            {"text", utf8(finding.text)}};
  if (finding.got) json["got"] = number(*finding.got);
  if (finding.wanted) json["wanted"] = number(*finding.wanted);
  if (finding.allowed) json["allowed"] = number(*finding.allowed);
  if (finding.ratio) json["ratio"] = number(*finding.ratio);
  return json;
}

namespace {

Json to_json(const ErrorMap& map) {
  Json ratio = Json::array();
  for (const double value : map.ratio) ratio.push_back(compact(value));
  return {{"step", map.step},           {"sequences", map.sequences},           {"heads", map.heads},
          {"positions", map.positions}, {"first_position", map.first_position}, {"ratio", std::move(ratio)}};
}

// ---- reading -------------------------------------------------------------------------------------------------------

double number(const Json& value, const std::string& place) {
  if (value == "NaN") return std::numeric_limits<double>::quiet_NaN();
  if (value == "Infinity") return std::numeric_limits<double>::infinity();
  if (value == "-Infinity") return -std::numeric_limits<double>::infinity();
  return json_to<double>(value, place);
}

std::optional<double> optional_number(Fields& fields, std::string_view name) {
  if (!fields.has(name)) return std::nullopt;
  return number(fields.at(name), fields.place(name));
}

int64_t count(Fields& fields, std::string_view name) {
  const auto value = fields.required<int64_t>(name);
  if (value < 0) throw Error::at(fields.place(name), "got {}, wanted 0 or more", value);
  return value;
}

}  // namespace

Finding finding_from_json(const Json& json, const std::string& place) {
  Fields fields(json, place);
  Finding finding;
  finding.kind = fields.required<std::string>("kind");
  finding.clause = fields.required<std::string>("clause");
  finding.step = fields.required<int64_t>("step");
  finding.tensor = fields.required<std::string>("tensor");
  finding.index = fields.required<std::vector<int64_t>>("index");
  finding.index_names = fields.required<std::string>("index_names");
  finding.got = optional_number(fields, "got");
  finding.wanted = optional_number(fields, "wanted");
  finding.allowed = optional_number(fields, "allowed");
  finding.ratio = optional_number(fields, "ratio");
  finding.bad = count(fields, "bad");
  finding.total = count(fields, "total");
  finding.text = fields.required<std::string>("text");
  fields.finish();
  return finding;
}

namespace {

ErrorMap error_map_from_json(const Json& json, const std::string& place) {
  Fields fields(json, place);
  ErrorMap map;
  map.step = fields.required<int64_t>("step");
  map.sequences = count(fields, "sequences");
  map.heads = count(fields, "heads");
  map.positions = count(fields, "positions");
  map.first_position = fields.required<int64_t>("first_position");
  const auto size = static_cast<int64_t>(fields.array("ratio").size());
  // Compared by division: three extents of a broken file may well overflow their product.
  const int64_t rows = map.heads == 0 || map.positions == 0 ? 0 : size / map.heads / map.positions;
  if (rows != map.sequences || rows * map.heads * map.positions != size) {
    throw Error::at(fields.place("ratio"), "got {} numbers, wanted {} sequences x {} heads x {} positions", size,
                    map.sequences, map.heads, map.positions);
  }
  map.ratio = fields.list("ratio", [](const Json& one, const std::string& at) { return number(one, at); });
  fields.finish();
  return map;
}

RunRecord run_from_json(Fields& fields) {
  const auto schema = fields.required<std::string>("schema");
  if (schema != kSchema) throw Error::at(fields.place("schema"), "got \"{}\", wanted \"{}\"", schema, kSchema);
  RunRecord run;
  run.attest_version = fields.required<std::string>("attest_version");
  run.suite_hash = fields.required<std::string>("suite_hash");
  run.backend = fields.required<std::string>("backend");
  run.backend_version = fields.required<std::string>("backend_version");
  run.backend_description = fields.required<std::string>("backend_description");
  run.device = fields.required<std::string>("device");
  if (fields.has("declarations")) {
    run.conventions = conventions_from_json(fields.at("declarations"), fields.place("declarations"));
  }
  run.library = fields.required<std::string>("library");
  for (const auto& [key, value] : fields.object("options").items()) {
    run.options[key] = json_to<std::string>(value, fields.place("options") + "." + key);
  }
  run.host = fields.required<std::string>("host");
  run.cpu = fields.required<std::string>("cpu");
  run.started = fields.required<std::string>("started");
  run.cores = count(fields, "cores");
  run.jobs = count(fields, "jobs");
  run.profiles = fields.required<std::vector<std::string>>("profiles");
  run.subset = fields.required<bool>("subset");
  run.planned = count(fields, "planned");
  run.plan_hash = fields.required<std::string>("plan_hash");
  return run;
}

CaseRecord case_from_json(Fields& fields) {
  CaseRecord record;
  record.index = count(fields, "index");
  record.id = fields.required<std::string>("id");
  record.family = fields.required<std::string>("family");
  record.about = fields.required<std::string>("about");
  record.profiles = fields.required<std::vector<std::string>>("profiles");
  record.clauses = fields.required<std::vector<std::string>>("clauses");
  record.kills = fields.required<std::vector<std::string>>("kills");
  record.identity = fields.required<std::string>("identity");
  record.status = fields.choice<Status>("status", kStatuses);
  record.reason = fields.required<std::string>("reason");
  record.findings = fields.list("findings", finding_from_json);
  record.worst_ratio = optional_number(fields, "worst_ratio");
  if (fields.has("error_map")) {
    record.error_map = error_map_from_json(fields.at("error_map"), fields.place("error_map"));
  }
  for (const auto& [phase, seconds] : fields.object("seconds").items()) {
    record.seconds[phase] = json_to<double>(seconds, fields.place("seconds") + "." + phase);
  }
  record.repro = fields.required<std::string>("repro");
  return record;
}

EndRecord end_from_json(Fields& fields) {
  EndRecord end;
  end.cases = count(fields, "cases");
  end.wall_seconds = fields.required<double>("wall_seconds");
  return end;
}

}  // namespace

std::string_view name(Status status) {
  return kStatuses[static_cast<size_t>(status)];
}

Json to_json(const RunRecord& run) {
  Json options = Json::object();
  for (const auto& [key, value] : run.options) options[utf8(key)] = utf8(value);
  Json json{{"record", "run"},
            {"schema", kSchema},
            {"attest_version", utf8(run.attest_version)},
            {"suite_hash", utf8(run.suite_hash)},
            {"backend", utf8(run.backend)},
            {"backend_version", utf8(run.backend_version)},
            {"backend_description", utf8(run.backend_description)},
            {"device", utf8(run.device)},
            {"library", utf8(run.library)},
            {"options", std::move(options)},
            {"host", utf8(run.host)},
            {"cpu", utf8(run.cpu)},
            {"started", utf8(run.started)},
            {"cores", run.cores},
            {"jobs", run.jobs},
            {"profiles", strings(run.profiles)},
            {"subset", run.subset},
            {"planned", run.planned},
            {"plan_hash", utf8(run.plan_hash)}};
  if (Json declarations = to_json(run.conventions); !declarations.empty()) {
    json["declarations"] = std::move(declarations);
  }
  return json;
}

Json to_json(const CaseRecord& record) {
  Json findings = Json::array();
  for (const Finding& finding : record.findings) findings.push_back(to_json(finding));
  Json seconds = Json::object();
  for (const auto& [phase, value] : record.seconds) seconds[utf8(phase)] = value;
  Json json{{"record", "case"},
            {"index", record.index},
            {"id", utf8(record.id)},
            {"family", utf8(record.family)},
            {"about", utf8(record.about)},
            {"profiles", strings(record.profiles)},
            {"clauses", strings(record.clauses)},
            {"kills", strings(record.kills)},
            {"identity", utf8(record.identity)},
            {"status", name(record.status)},
            {"reason", utf8(record.reason)},
            {"findings", std::move(findings)},
            {"seconds", std::move(seconds)},
            {"repro", utf8(record.repro)}};
  if (record.worst_ratio) json["worst_ratio"] = number(*record.worst_ratio);
  if (record.error_map) json["error_map"] = to_json(*record.error_map);
  return json;
}

Json to_json(const EndRecord& end) {
  return {{"record", "end"}, {"cases", end.cases}, {"wall_seconds", end.wall_seconds}};
}

void sort_by_plan(std::vector<CaseRecord>& cases) {
  std::stable_sort(cases.begin(), cases.end(),
                   [](const CaseRecord& a, const CaseRecord& b) { return a.index < b.index; });
}

Records read_records(const std::filesystem::path& path) {
  return records_from_text(read_file(path), path.string());
}

Records records_from_text(std::string_view text, const std::string& file) {
  Records records;
  std::set<std::string> ids;
  std::string place = file + ":1";
  bool has_run = false;
  int64_t line_number = 0;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string_view line(text.data() + begin, end - begin);
    begin = end + 1;
    place = fmt::format("{}:{}", file, ++line_number);
    if (line.empty()) throw Error::at(place, "the line is empty, wanted a record");
    const Json json = parse_json(line, place);
    Fields fields(json, place);
    const auto kind = fields.required<std::string>("record");
    if (!has_run && kind != "run") throw Error::at(place, "got a \"{}\" record, wanted \"run\" first", kind);
    if (records.diagnosis || (records.end && kind != "diagnosis")) {
      throw Error::at(place, "got a \"{}\" record after \"{}\"", kind, records.diagnosis ? "diagnosis" : "end");
    }
    if (kind == "run") {
      if (has_run) throw Error::at(place, "got a second \"run\" record, wanted one");
      records.run = run_from_json(fields);
      has_run = true;
    } else if (kind == "case") {
      records.cases.push_back(case_from_json(fields));
      const std::string& id = records.cases.back().id;
      if (!ids.insert(id).second) throw Error::at(place, "the case \"{}\" is there twice", id);
    } else if (kind == "end") {
      records.end = end_from_json(fields);
    } else if (kind == "diagnosis" && records.end) {
      records.diagnosis = diagnosis_from_json(fields);
    } else {
      throw Error::at(fields.place("record"), "got \"{}\", wanted one of: run, case, end", kind);
    }
    fields.finish();
  }
  if (!has_run) throw Error::at(place, "the file is empty, wanted a \"run\" record");
  sort_by_plan(records.cases);
  return records;
}

}  // namespace attest
