// SPDX-License-Identifier: Apache-2.0
#include "runner/grade.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>

#include "runner/markup.h"

namespace attest {
namespace {

constexpr std::string_view kSchema = "attest/grade/1";
const std::vector<std::string> kGroups{"visible", "hidden_1_4", "hidden_5_8", "hidden_9_10"};
const std::vector<std::string> kTitles{"Visible case", "Hidden cases 1-4", "Hidden cases 5-8", "Hidden cases 9-10"};
const std::vector<Status> kByHarm{Status::pass,  Status::unsupported, Status::untrusted, Status::fail,
                                  Status::error, Status::timeout,     Status::crash};
const std::vector<std::string> kStatuses{"pass",  "fail",    "unsupported", "error",
                                         "crash", "timeout", "untrusted"};  // in the order of Status

/// Sums of thirds and sevenths shall not differ in the last bit from machine to machine.
double tidy(double points) {
  return std::round(points * 1e6) / 1e6;
}

void check_scheme(const Scheme& scheme) {
  if (scheme.points.size() != kGroups.size()) {
    throw Error::at("scheme", "got {} groups, wanted {}", scheme.points.size(), kGroups.size());
  }
  for (const double points : scheme.points) {
    if (!std::isfinite(points) || points < 0) throw Error::at("scheme", "got {} points, wanted 0 or more", points);
  }
  if (!(scheme.interface_share >= 0 && scheme.interface_share <= 1)) {
    throw Error::at("scheme", "got {} for the interface, wanted a share from 0 to 1", scheme.interface_share);
  }
}

/// Cases from their parts: visible first, then by number.
std::vector<CaseGrade> cases_of(std::vector<PartResult> parts) {
  const auto place = [](const PartResult& part) { return std::tuple(part.hidden, part.number); };
  std::stable_sort(parts.begin(), parts.end(),
                   [&](const PartResult& a, const PartResult& b) { return place(a) < place(b); });
  std::vector<CaseGrade> cases;
  for (PartResult& part : parts) {
    if (cases.empty() || place(cases.back().parts.front()) != place(part)) {
      CaseGrade one;
      one.number = part.number;
      one.name = part.name;
      one.category = part.category;
      one.weight = part.weight;
      one.hidden = part.hidden;
      one.group = group_of(part.hidden, part.number);
      one.status = Status::pass;
      cases.push_back(std::move(one));
    }
    cases.back().status = worse(cases.back().status, part.status);
    cases.back().parts.push_back(std::move(part));
  }
  return cases;
}

/// What each case is worth.
void share_out(std::vector<CaseGrade>& cases, const Scheme& scheme, double visible) {
  std::vector<double> total = scheme.points;
  total[0] = visible;
  std::vector<double> count(kGroups.size());
  double weights = 0;
  for (const CaseGrade& one : cases) {
    ++count[static_cast<size_t>(one.group)];
    if (one.hidden) weights += one.weight;
  }
  const bool hidden = std::any_of(cases.begin(), cases.end(), [](const CaseGrade& one) { return one.hidden; });
  if (scheme.weights && hidden && !(weights > 0)) {
    throw Error::at("weights", "the hidden cases have none, so they cannot be used");
  }
  for (CaseGrade& one : cases) {
    const auto group = static_cast<size_t>(one.group);
    one.possible = scheme.weights && one.hidden ? (total[1] + total[2] + total[3]) * one.weight / weights
                                                : total[group] / count[group];
    one.possible = tidy(one.possible);
  }
}

// ---- JSON ----------------------------------------------------------------------------------------------------------

Json strings(const std::vector<std::string>& list) {
  Json json = Json::array();
  for (const std::string& item : list) json.push_back(utf8(item));
  return json;
}

Json number(double value) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value > 0 ? "Infinity" : "-Infinity";
  return value;
}

double number_from_json(const Json& value, const std::string& place) {
  if (value == "NaN") return std::numeric_limits<double>::quiet_NaN();
  if (value == "Infinity") return std::numeric_limits<double>::infinity();
  if (value == "-Infinity") return -std::numeric_limits<double>::infinity();
  return json_to<double>(value, place);
}

Json to_json(const PartResult& part) {
  Json findings = Json::array();
  for (const Finding& finding : part.findings) findings.push_back(to_json(finding));
  Json json{{"part", utf8(part.part)},         {"id", utf8(part.id)},
            {"status", name(part.status)},     {"reason", utf8(part.reason)},
            {"findings", std::move(findings)}, {"seconds", tidy(part.seconds)}};
  if (part.worst_ratio) json["worst_ratio"] = number(*part.worst_ratio);
  return json;
}

Json to_json(const CaseGrade& one) {
  Json parts = Json::array();
  for (const PartResult& part : one.parts) parts.push_back(to_json(part));
  return {{"number", one.number},       {"name", utf8(one.name)}, {"category", utf8(one.category)},
          {"weight", one.weight},       {"hidden", one.hidden},   {"group", name(one.group)},
          {"status", name(one.status)}, {"points", one.points},   {"possible", one.possible},
          {"parts", std::move(parts)}};
}

Json to_json(const CheckGrade& one) {
  return {{"name", utf8(one.result.name)},     {"about", utf8(one.result.about)},   {"counts", one.result.counts},
          {"status", name(one.result.status)}, {"reason", utf8(one.result.reason)}, {"points", one.points},
          {"possible", one.possible}};
}

Json to_json(const ManualGrade& manual) {
  Json json{{"comment", utf8(manual.comment)}, {"grader", utf8(manual.grader)}};
  json["review"] = manual.review ? Json(*manual.review) : Json();
  json["bonus"] = manual.bonus ? Json(*manual.bonus) : Json();
  return json;
}

PartResult part_from_json(const Json& json, const std::string& place) {
  Fields fields(json, place);
  PartResult part;
  part.part = fields.required<std::string>("part");
  part.id = fields.required<std::string>("id");
  part.status = fields.choice<Status>("status", kStatuses);
  part.reason = fields.required<std::string>("reason");
  part.findings = fields.list("findings", finding_from_json);
  part.seconds = fields.required<double>("seconds");
  if (fields.has("worst_ratio")) {
    part.worst_ratio = number_from_json(fields.at("worst_ratio"), fields.place("worst_ratio"));
  }
  fields.finish();
  return part;
}

CaseGrade case_from_json(const Json& json, const std::string& place) {
  Fields fields(json, place);
  CaseGrade one;
  one.number = static_cast<int>(fields.required<int64_t>("number"));
  one.name = fields.required<std::string>("name");
  one.category = fields.required<std::string>("category");
  one.weight = fields.required<double>("weight");
  one.hidden = fields.required<bool>("hidden");
  one.group = fields.choice<Group>("group", kGroups);
  one.status = fields.choice<Status>("status", kStatuses);
  one.points = fields.required<double>("points");
  one.possible = fields.required<double>("possible");
  one.parts = fields.list("parts", part_from_json);
  fields.finish();
  for (PartResult& part : one.parts) {
    part.number = one.number;
    part.name = one.name;
    part.category = one.category;
    part.weight = one.weight;
    part.hidden = one.hidden;
  }
  return one;
}

CheckGrade check_from_json(const Json& json, const std::string& place) {
  Fields fields(json, place);
  CheckGrade one;
  one.result.name = fields.required<std::string>("name");
  one.result.about = fields.required<std::string>("about");
  one.result.counts = fields.required<bool>("counts");
  one.result.status = fields.choice<Status>("status", kStatuses);
  one.result.reason = fields.required<std::string>("reason");
  one.points = fields.required<double>("points");
  one.possible = fields.required<double>("possible");
  fields.finish();
  return one;
}

GroupGrade group_from_json(const Json& json, const std::string& place) {
  Fields fields(json, place);
  GroupGrade one;
  one.group = fields.choice<Group>("group", kGroups);
  one.points = fields.required<double>("points");
  one.possible = fields.required<double>("possible");
  one.passed = fields.required<int64_t>("passed");
  one.cases = fields.required<int64_t>("cases");
  fields.finish();
  return one;
}

GradeLayer layer_from_json(const Json& json, const std::string& place) {
  Fields fields(json, place);
  GradeLayer layer{fields.required<std::string>("name"), fields.required<bool>("active"),
                   fields.required<std::string>("why")};
  fields.finish();
  return layer;
}

std::optional<double> points_in(Fields& fields, const char* name, double most) {
  if (!fields.has(name) || fields.at(name).is_null()) return std::nullopt;
  const auto points = fields.required<double>(name);
  if (!(points >= 0 && points <= most)) {
    throw Error::at(fields.place(name), "got {}, wanted points from 0 to {}", points, most);
  }
  return points;
}

}  // namespace

std::string_view name(Group group) {
  return kGroups[static_cast<size_t>(group)];
}

std::string_view title(Group group) {
  return kTitles[static_cast<size_t>(group)];
}

Group group_of(bool hidden, int number) {
  if (!hidden) return Group::visible;
  return number <= 4 ? Group::hidden_1_4 : number <= 8 ? Group::hidden_5_8 : Group::hidden_9_10;
}

Status worse(Status a, Status b) {
  const auto harm = [](Status status) { return std::find(kByHarm.begin(), kByHarm.end(), status); };
  return harm(a) < harm(b) ? b : a;
}

Grade grade_run(GradeRun run, const Scheme& scheme) {
  check_scheme(scheme);
  Grade grade;
  grade.scheme = scheme;
  grade.cases = cases_of(std::move(run.parts));
  const auto counting =
      std::count_if(run.checks.begin(), run.checks.end(), [](const CheckResult& check) { return check.counts; });
  const double interface = counting > 0 ? scheme.points[0] * scheme.interface_share : 0;
  share_out(grade.cases, scheme, scheme.points[0] - interface);

  grade.status = Status::pass;
  for (const Group group : {Group::visible, Group::hidden_1_4, Group::hidden_5_8, Group::hidden_9_10}) {
    grade.groups.push_back({group});
  }
  for (CaseGrade& one : grade.cases) {
    const auto passed = std::count_if(one.parts.begin(), one.parts.end(),
                                      [](const PartResult& part) { return part.status == Status::pass; });
    one.points = tidy(one.possible * static_cast<double>(passed) / static_cast<double>(one.parts.size()));
    GroupGrade& group = grade.groups[static_cast<size_t>(one.group)];
    group.points += one.points;
    group.possible += one.possible;
    ++group.cases;
    if (one.status == Status::pass) ++group.passed;
    grade.status = worse(grade.status, one.status);
  }
  for (CheckResult& check : run.checks) {
    CheckGrade one;
    one.possible = check.counts ? tidy(interface / static_cast<double>(counting)) : 0;
    one.points = check.status == Status::pass ? one.possible : 0;
    grade.groups[0].points += one.points;
    grade.groups[0].possible += one.possible;
    if (check.counts) grade.status = worse(grade.status, check.status);
    one.result = std::move(check);
    grade.checks.push_back(std::move(one));
  }
  // A hundredth of a point is the smallest that is told apart; thirds add up to the whole.
  for (GroupGrade& group : grade.groups) {
    group.points = std::round(group.points * 100) / 100;
    group.possible = std::round(group.possible * 100) / 100;
    grade.automatic += group.points;
    grade.automatic_possible += group.possible;
  }
  grade.automatic = tidy(grade.automatic);
  grade.automatic_possible = tidy(grade.automatic_possible);
  // Nothing that was judged is no pass.
  if (grade.cases.empty()) grade.status = worse(grade.status, Status::error);
  run.parts.clear();
  run.checks.clear();
  grade.run = std::move(run);
  return grade;
}

std::string points_text(double points) {
  std::string text = fmt::format("{:.2f}", points);
  while (text.back() == '0') text.pop_back();
  if (text.back() == '.') text.pop_back();
  return text == "-0" ? "0" : text;
}

ManualGrade manual_from_json(const Json& json, const std::string& place) {
  Fields fields(json, place);
  ManualGrade manual;
  manual.review = points_in(fields, "review", kReviewPoints);
  manual.bonus = points_in(fields, "bonus", kBonusPoints);
  manual.comment = fields.optional<std::string>("comment", "");
  manual.grader = fields.optional<std::string>("grader", "");
  fields.finish();
  return manual;
}

Json to_json(const Grade& grade) {
  const GradeRun& run = grade.run;
  Json layers = Json::array(), groups = Json::array(), cases = Json::array(), checks = Json::array();
  for (const GradeLayer& layer : run.layers) {
    layers.push_back({{"name", utf8(layer.name)}, {"active", layer.active}, {"why", utf8(layer.why)}});
  }
  for (const GroupGrade& group : grade.groups) {
    groups.push_back({{"group", name(group.group)},
                      {"points", group.points},
                      {"possible", group.possible},
                      {"passed", group.passed},
                      {"cases", group.cases}});
  }
  for (const CaseGrade& one : grade.cases) cases.push_back(to_json(one));
  for (const CheckGrade& one : grade.checks) checks.push_back(to_json(one));
  Json json{{"schema", kSchema},
            {"submission", utf8(run.submission)},
            {"sha256", run.sha256},
            {"kind", run.kind},
            {"pack", run.pack},
            {"attest_version", run.attest_version},
            {"worker", utf8(run.worker)},
            {"started", run.started},
            {"seconds", tidy(run.seconds)},
            {"opening", tidy(run.opening)},
            {"workers", run.workers},
            {"insecure", run.insecure},
            {"layers", std::move(layers)},
            {"refused", utf8(run.refused)},
            {"scheme",
             {{"points", grade.scheme.points},
              {"weights", grade.scheme.weights},
              {"interface_share", grade.scheme.interface_share}}},
            {"status", name(grade.status)},
            {"automatic", grade.automatic},
            {"automatic_possible", grade.automatic_possible},
            {"manual", to_json(grade.manual)},
            {"total", grade.total()},
            {"groups", std::move(groups)},
            {"cases", std::move(cases)},
            {"checks", std::move(checks)},
            {"notes", strings(run.notes)},
            {"printed", utf8(run.printed)}};
  if (run.diagnosis) json["diagnosis"] = to_json(*run.diagnosis);
  return json;
}

Grade grade_from_json(const Json& json, const std::string& place) {
  Fields fields(json, place);
  const auto schema = fields.required<std::string>("schema");
  if (schema != kSchema) throw Error::at(fields.place("schema"), "got \"{}\", wanted \"{}\"", schema, kSchema);
  Grade grade;
  GradeRun& run = grade.run;
  run.submission = fields.required<std::string>("submission");
  run.sha256 = fields.required<std::string>("sha256");
  run.kind = fields.required<std::string>("kind");
  run.pack = fields.required<std::string>("pack");
  run.attest_version = fields.required<std::string>("attest_version");
  run.worker = fields.required<std::string>("worker");
  run.started = fields.required<std::string>("started");
  run.seconds = fields.required<double>("seconds");
  run.opening = fields.required<double>("opening");
  run.workers = fields.required<int64_t>("workers");
  run.insecure = fields.required<bool>("insecure");
  run.layers = fields.list("layers", layer_from_json);
  run.refused = fields.required<std::string>("refused");
  {
    Fields scheme(fields.at("scheme"), fields.place("scheme"));
    grade.scheme.points = scheme.list("points", json_to<double>);
    grade.scheme.weights = scheme.required<bool>("weights");
    grade.scheme.interface_share = scheme.required<double>("interface_share");
    scheme.finish();
  }
  grade.status = fields.choice<Status>("status", kStatuses);
  grade.automatic = fields.required<double>("automatic");
  grade.automatic_possible = fields.required<double>("automatic_possible");
  grade.manual = manual_from_json(fields.at("manual"), fields.place("manual"));
  fields.required<double>("total");
  grade.groups = fields.list("groups", group_from_json);
  // Reports take all four for granted.
  bool whole = grade.groups.size() == kGroups.size();
  for (size_t i = 0; whole && i < kGroups.size(); ++i) whole = grade.groups[i].group == static_cast<Group>(i);
  if (!whole) throw Error::at(fields.place("groups"), "wanted each of the {} groups once, in order", kGroups.size());
  grade.cases = fields.list("cases", case_from_json);
  grade.checks = fields.list("checks", check_from_json);
  run.notes = fields.required<std::vector<std::string>>("notes");
  run.printed = fields.required<std::string>("printed");
  if (fields.has("diagnosis")) {
    Fields diagnosis(fields.at("diagnosis"), fields.place("diagnosis"));
    diagnosis.required<std::string>("record");
    run.diagnosis = diagnosis_from_json(diagnosis);
    diagnosis.finish();
  }
  fields.finish();
  return grade;
}

}  // namespace attest
