// SPDX-License-Identifier: Apache-2.0
#include "bench/results.h"

#include <benchmark/benchmark.h>
#include <fmt/format.h>

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
  count("ceiling_share", figures.ceiling);
  count("ceiling_us", bound_of(measured, series.temperature).microseconds);
  count("ceiling_is_memory", figures.memory_bound ? 1 : 0);
  count("read_gb_per_second",
        (series.temperature == Temperature::hot ? measured.ceiling.read_hot : measured.ceiling.read_cold) / 1e9);
  count("multiply_add_gflops", measured.ceiling.multiply_add / 1e9);
  count("bytes", measured.cost.bytes);
  count("flops", measured.cost.flops);
  count("copies", static_cast<double>(measured.copies));
  return run;
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
  const Bound bound = bound_of(measured, series.temperature);
  figures.ceiling = bound.microseconds / figures.step.median;
  figures.memory_bound = bound.memory;
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
  Json rounds = Json::object();
  int64_t family = 0;
  for (const Measured& one : measured) {
    for (const Series& series : one.series) {
      runs.push_back(run_of(one, series, family++));
      if (!series.rounds.empty()) rounds[result_name(one.shape, series)] = series.rounds;
    }
  }
  reporter.ReportRuns(runs);
  reporter.Finalize();
  // Kept in the library's order of fields, which people know by heart.
  auto json = nlohmann::ordered_json::parse(text.str());
  for (const auto& [name, value] : facts) json["context"][name] = value;
  if (!json.contains("benchmarks")) json["benchmarks"] = Json::array();
  json["attest"] = {{"format", 1}, {"unit", "us"}, {"rounds", rounds}};
  return json.dump(1) + "\n";
}

std::vector<double> Result::medians() const {
  std::vector<double> all;
  for (const auto& round : rounds) all.push_back(median(round));
  return all;
}

Results parse_results(std::string_view text, std::string_view place) {
  const Json json = parse_json(text, place);
  const auto wanted = [&](bool holds, const std::string& what) {
    if (!holds) throw Error::at(place, "{}", what);
  };
  wanted(json.is_object() && json.contains("benchmarks") && json["benchmarks"].is_array(),
         "has no array \"benchmarks\": not a file of attest bench");
  Results results;
  if (json.contains("context") && json["context"].is_object()) {
    for (const auto& [name, value] : json["context"].items()) {
      if (value.is_string()) results.context[name] = value.get<std::string>();
      if (value.is_number()) results.context[name] = value.dump();
    }
  }
  const Json none = Json::object();
  const Json& own = json.contains("attest") && json["attest"].is_object() ? json["attest"] : none;
  const Json& rounds = own.contains("rounds") && own["rounds"].is_object() ? own["rounds"] : none;
  size_t index = 0;
  for (const Json& entry : json["benchmarks"]) {
    const std::string where = fmt::format("{}: benchmarks[{}]", place, index++);
    if (!entry.is_object() || !entry.contains("name")) throw Error::at(where, "has no name");
    Result result;
    result.name = json_to<std::string>(entry["name"], where + ".name");
    // From the end: a backend's name is not ours.
    std::string rest = result.name;
    for (std::string* part : {&result.temperature, &result.shape, &result.set}) {
      const size_t slash = rest.rfind('/');
      if (slash == std::string::npos) throw Error::at(where, "its name \"{}\" is none of attest bench", result.name);
      *part = rest.substr(slash + 1);
      rest.resize(slash);
    }
    result.backend = rest;
    if (entry.value("error_occurred", false)) result.wrong = entry.value("error_message", "an error");
    for (const auto& [name, value] : entry.items()) {
      if (value.is_number()) result.counters[name] = value.get<double>();
    }
    if (rounds.contains(result.name)) {
      try {
        result.rounds = rounds[result.name].get<std::vector<std::vector<double>>>();
      } catch (const Json::exception&) {
        throw Error::at(where, "its rounds are no arrays of numbers");
      }
    }
    results.list.push_back(std::move(result));
  }
  return results;
}

Results read_results(const std::filesystem::path& path) {
  return parse_results(read_file(path), path.string());
}

}  // namespace attest::bench
