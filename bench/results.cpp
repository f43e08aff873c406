// SPDX-License-Identifier: Apache-2.0
#include "bench/results.h"

#include <benchmark/benchmark.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <set>
#include <sstream>

namespace attest::bench {
namespace {

using Run = benchmark::BenchmarkReporter::Run;

Run run_of(const Measured& measured, const Series& series, int64_t family) {
  Run run;
  run.run_name.function_name = result_name(measured.shape, series);
  run.family_index = family;
  run.per_family_instance_index = 0;
  run.run_type = Run::RT_Iteration;
  run.time_unit = benchmark::kMicrosecond;
  run.repetitions = 1;
  run.repetition_index = 0;
  run.threads = 1;
  run.iterations = 0;
  run.real_accumulated_time = run.cpu_accumulated_time = 0;
  auto& counters = run.counters;
  const auto count = [&](const char* name, double value) { counters[name] = benchmark::Counter(value); };
  count("context", static_cast<double>(measured.shape.context));
  count("batch", static_cast<double>(measured.shape.problem.batch));
  if (!series.wrong.empty()) {
    run.error_occurred = true;
    run.error_message = series.wrong;
    return run;
  }
  const Figures figures = figures_of(measured, series);
  run.iterations = figures.step.n;
  // The library divides by the iterations, and its readers expect one time: the median.
  run.real_accumulated_time = run.cpu_accumulated_time =
      figures.step.median * 1e-6 * static_cast<double>(figures.step.n);
  count("p95_us", figures.step.p95);
  count("p99_us", figures.step.p99);
  count("min_us", figures.step.min);
  count("n", static_cast<double>(figures.step.n));
  count("tokens_per_second", figures.tokens_per_second);
  count("kv_gb_per_second", figures.kv_gb_per_second);
  count("gflops", figures.gflops);
  count("ceiling_share", figures.share.median);
  if (series.rounds.size() >= kLeastPairs && figures.share.median > 0) {  // fewer rounds give no such interval
    count("ceiling_share_low", figures.share.low);
    count("ceiling_share_high", figures.share.high);
  }
  count("ceiling_us", figures.ceiling);
  count("ceiling_is_memory", figures.memory_bound ? 1 : 0);
  const Ceiling& ceiling = measured.ceiling_of(series);
  const auto rate = [](const std::vector<double>& rates) { return rates.empty() ? 0 : median(rates) / 1e9; };
  count("read_gb_per_second", rate(series.temperature == Temperature::hot ? ceiling.read_hot : ceiling.read_cold));
  count("multiply_add_gflops", rate(ceiling.multiply_add));
  if (measured.devices.contains(series.backend)) {
    count("ceiling_is_device", 1);
    count("queued", static_cast<double>(series.queued));
  }
  count("bytes", measured.cost.bytes);
  count("flops", measured.cost.flops);
  count("copies", static_cast<double>(measured.copies));
  count("copies_wanted", static_cast<double>(measured.copies_wanted));
  return run;
}

void not_negative(Fields& fields, std::string_view name) {
  const auto value = fields.required<double>(name);
  if (!std::isfinite(value) || value < 0) throw Error::at(fields.place(name), "got {}, wanted 0 or more", value);
}

/// What table and page show of every entry with a number.
constexpr const char* kFigures[] = {"real_time",
                                    "p95_us",
                                    "p99_us",
                                    "min_us",
                                    "n",
                                    "tokens_per_second",
                                    "bytes",
                                    "kv_gb_per_second",
                                    "ceiling_share",
                                    "ceiling_us",
                                    "ceiling_is_memory",
                                    "context",
                                    "flops",
                                    "gflops"};

/// One entry of "benchmarks", without its counters and rounds.
Result result_of(Fields& entry) {
  Result result;
  result.name = entry.required<std::string>("name");
  // From the end: a backend's name is not ours.
  std::string rest = result.name;
  for (std::string* part : {&result.temperature, &result.shape, &result.set}) {
    const size_t slash = rest.rfind('/');
    if (slash == std::string::npos) {
      throw Error::at(entry.place("name"), "got \"{}\", wanted backend/set/shape/temperature", result.name);
    }
    *part = rest.substr(slash + 1);
    rest.resize(slash);
  }
  result.backend = rest;
  const auto one_of = [&](const std::string& part, const std::vector<std::string>& wanted) {
    if (std::find(wanted.begin(), wanted.end(), part) != wanted.end()) return;
    throw Error::at(entry.place("name"), "got \"{}\" in \"{}\", wanted one of: {}", part, result.name,
                    fmt::join(wanted, ", "));
  };
  one_of(result.set, {"decode", "prefill", "mixed", "layer"});
  one_of(result.temperature, {"cold", "hot"});
  if (result.backend.empty() || result.shape.empty()) {
    throw Error::at(entry.place("name"), "got \"{}\", wanted backend/set/shape/temperature", result.name);
  }
  entry.choice<int>("time_unit", {"us"});
  if (entry.optional<bool>("error_occurred", false)) {
    result.wrong = entry.required<std::string>("error_message");
    if (result.wrong.empty()) throw Error::at(entry.place("error_message"), "got \"\", wanted a reason");
    return result;
  }
  for (const char* name : kFigures) not_negative(entry, name);
  if (entry.has("ceiling_share_low") || entry.has("ceiling_share_high")) {
    for (const char* name : {"ceiling_share_low", "ceiling_share_high"}) not_negative(entry, name);
    const auto low = entry.required<double>("ceiling_share_low"), high = entry.required<double>("ceiling_share_high");
    if (low > high) throw Error::at(entry.place("ceiling_share_low"), "got {}, wanted {} at most", low, high);
  }
  return result;
}

void not_empty(const Json& value, const std::string& place) {
  if (!value.is_array()) throw Error::at(place, "got {}, wanted an array", value.type_name());
  if (value.empty()) throw Error::at(place, "got an empty array");
}

std::vector<double> times_of(const Json& list, const std::string& place) {
  not_empty(list, place);
  std::vector<double> times;
  for (size_t i = 0; i < list.size(); ++i) {
    const std::string here = fmt::format("{}[{}]", place, i);
    times.push_back(json_to<double>(list[i], here));
    if (!std::isfinite(times.back()) || times.back() <= 0) {
      throw Error::at(here, "got {}, wanted more than 0", times.back());
    }
  }
  return times;
}

std::vector<std::vector<double>> rounds_of(const Json& rounds, const std::string& place) {
  not_empty(rounds, place);
  std::vector<std::vector<double>> list;
  for (size_t i = 0; i < rounds.size(); ++i) list.push_back(times_of(rounds[i], fmt::format("{}[{}]", place, i)));
  return list;
}

}  // namespace

std::string result_name(const Shape& shape, const Series& series) {
  return fmt::format("{}/{}/{}/{}", series.backend, shape.set, shape.name, name(series.temperature));
}

Figures figures_of(const Measured& measured, const Series& series) {
  Figures figures;
  figures.step = summarise(series.samples());
  if (figures.step.n == 0) return figures;
  const double seconds = figures.step.median * 1e-6;
  figures.tokens_per_second = static_cast<double>(measured.shape.tokens()) / seconds;
  figures.kv_gb_per_second = measured.cost.kv_bytes / seconds / 1e9;
  figures.gflops = measured.cost.flops / seconds / 1e9;
  const Bound bound = bound_of(measured, series);
  figures.memory_bound = bound.memory;
  if (bound.microseconds.empty()) return figures;
  figures.ceiling = median(bound.microseconds);
  // Round by round, and not median over median: where a machine's memory is now faster and now slower, the two medians
  // may be of different times.
  const std::vector<double> steps = series.medians();
  std::vector<double> shares;
  for (size_t round = 0; round < std::min(steps.size(), bound.microseconds.size()); ++round) {
    shares.push_back(bound.microseconds[round] / steps[round]);
  }
  figures.share = middle_of(shares, 0.95);
  return figures;
}

std::string results_json(const std::vector<Measured>& measured, const std::map<std::string, std::string>& facts) {
  std::ostringstream text, errors;
  benchmark::JSONReporter reporter;
  reporter.SetOutputStream(&text);
  reporter.SetErrorStream(&errors);
  benchmark::BenchmarkReporter::Context::executable_name = "attest bench";
  reporter.ReportContext(benchmark::BenchmarkReporter::Context());
  std::vector<Run> runs;
  Json rounds = Json::object(), ceilings = Json::object();
  int64_t family = 0;
  for (const Measured& one : measured) {
    for (const Series& series : one.series) {
      runs.push_back(run_of(one, series, family++));
      if (series.rounds.empty()) continue;
      rounds[result_name(one.shape, series)] = series.rounds;
      if (const Bound bound = bound_of(one, series); !bound.microseconds.empty()) {
        ceilings[result_name(one.shape, series)] = bound.microseconds;
      }
    }
  }
  reporter.ReportRuns(runs);
  reporter.Finalize();
  // Kept in the library's order of fields, which people know by heart.
  auto json = nlohmann::ordered_json::parse(text.str());
  for (const auto& [name, value] : facts) json["context"][name] = value;
  for (const Measured& one : measured) {
    for (const auto& [label, limit] : one.devices) {
      if (limit.wrong.empty()) {
        json["context"][fmt::format("ceilings of {} in {}", label, info(one.shape.problem.dtype).name)] = limit.how;
      } else {
        json["context"][fmt::format("{}{} for {}/{}", kNoCeiling, label, one.shape.set, one.shape.name)] = limit.wrong;
      }
    }
  }
  if (!json.contains("benchmarks")) json["benchmarks"] = Json::array();
  json["attest"] = {{"format", 1}, {"unit", "us"}, {"rounds", rounds}, {"ceilings", ceilings}};
  return json.dump(1) + "\n";
}

std::vector<double> Result::medians() const {
  std::vector<double> all;
  for (const auto& round : rounds) all.push_back(median(round));
  return all;
}

double Result::counter(const std::string& counter_name) const {
  const auto found = counters.find(counter_name);
  return found == counters.end() ? 0 : found->second;
}

bool Result::maybe_warm() const {
  return temperature == "cold" && wrong.empty() && counter("copies") < counter("copies_wanted");
}

Results parse_results(std::string_view text, std::string_view place) {
  const Json json = parse_json(text, place);
  if (!json.is_object() || !json.contains("benchmarks")) {
    throw Error::at(place, "has no array \"benchmarks\": not a file of attest bench");
  }
  if (!json.contains("attest")) throw Error::at(place, "has no object \"attest\": none of attest bench");
  Fields file(json, std::string(place) + ": file");
  const Json& list = file.array("benchmarks");
  Results results;
  for (const auto& [name, value] : file.object("context").items()) {
    if (value.is_string()) results.context[name] = value.get<std::string>();
    if (value.is_number()) results.context[name] = value.dump();
  }
  Fields own(file.object("attest"), fmt::format("{}: attest", place));
  if (const auto format = own.required<int64_t>("format"); format != 1) {
    throw Error::at(own.place("format"), "got {}, wanted 1", format);
  }
  own.choice<int>("unit", {"us"});
  const Json& rounds = own.object("rounds");
  std::set<std::string> names;
  for (size_t i = 0; i < list.size(); ++i) {
    Fields entry(list[i], fmt::format("{}: benchmarks[{}]", place, i));
    Result result = result_of(entry);
    for (const auto& [name, value] : list[i].items()) {
      if (value.is_number()) result.counters[name] = value.get<double>();
    }
    if (!names.insert(result.name).second) {
      throw Error::at(entry.place("name"), "got \"{}\" a second time", result.name);
    }
    if (const auto found = rounds.find(result.name); found != rounds.end()) {
      result.rounds = rounds_of(*found, fmt::format("{}[\"{}\"]", own.place("rounds"), result.name));
    } else if (result.wrong.empty()) {
      throw Error::at(own.place("rounds"), "\"{}\" is missing", result.name);
    }
    results.list.push_back(std::move(result));
  }
  const auto named = [&](const Json& list_by_name, const char* field) -> const Json& {
    for (const auto& [name, value] : list_by_name.items()) {
      if (!names.contains(name)) throw Error::at(own.place(field), "\"{}\" is the name of no benchmark", name);
    }
    return list_by_name;
  };
  named(rounds, "rounds");
  if (own.has("ceilings")) {  // Older files have none.
    for (const auto& [name, value] : named(own.object("ceilings"), "ceilings").items()) {
      const std::string here = fmt::format("{}[\"{}\"]", own.place("ceilings"), name);
      const size_t got = times_of(value, here).size(), wanted = rounds.contains(name) ? rounds[name].size() : 0;
      if (got != wanted) throw Error::at(here, "got {} rounds, wanted {}", got, wanted);
    }
  }
  if (list.empty()) throw Error::at(file.place("benchmarks"), "got none, wanted one at least");
  return results;
}

Results read_results(const std::filesystem::path& path) {
  return parse_results(read_file(path), path.string());
}

}  // namespace attest::bench
