// SPDX-License-Identifier: Apache-2.0
#include "bench/page.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "bench/table.h"
#include "runner/markup.h"

namespace attest::bench {
namespace {

constexpr double kWidth = 520, kHeight = 280, kLeft = 52, kRight = 16, kTop = 14, kBottom = 40;

constexpr std::string_view kStyle = R"css(
:root { color-scheme: light dark; --page: #f5f6f8; --card: #fff; --ink: #1a1f26; --soft: #5b6672; --line: #dfe3e8;
  --bad: #c2272d; --b0: #2f5fd0; --b1: #c2632d; --b2: #3f8f5b; --b3: #8a5fc0; --b4: #b8586b; --b5: #59a5a0; }
@media (prefers-color-scheme: dark) { :root { --page: #12161b; --card: #1a2027; --ink: #e4e9ef; --soft: #a2adb9;
  --line: #2d353f; --bad: #ff7b78; --b0: #86a9ff; --b1: #f0a070; --b2: #5bb37b; --b3: #b79af0; --b4: #d8788b;
  --b5: #62b8b2; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; }
main { max-width: 1160px; margin: 0 auto; padding: 28px 24px 60px; }
h1 { margin: 0 0 4px; font-size: 26px; } h2 { margin: 36px 0 12px; font-size: 18px; }
h3 { margin: 0 0 4px; font-size: 14px; overflow-wrap: anywhere; } p { margin: 0; color: var(--soft); }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(480px, 100%), 1fr)); gap: 16px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 14px 16px; }
.wide { overflow-x: auto; padding: 0; }
svg { display: block; width: 100%; height: auto; } svg text { fill: var(--soft); font-size: 11px; }
circle.warm { fill: var(--card); stroke-width: 2; }
.rule { stroke: var(--line); } .ceiling { stroke: var(--ink); stroke-dasharray: 5 4; fill: none; }
.legend { font-size: 13px; color: var(--soft); display: flex; flex-wrap: wrap; gap: 0 14px; }
.legend i { display: inline-block; width: 14px; height: 3px; margin-right: 5px; vertical-align: middle; }
table { border-collapse: collapse; width: 100%; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 9px; text-align: left; border-top: 1px solid var(--line); white-space: nowrap; }
thead th { border-top: 0; color: var(--soft); font-weight: 600; } .n { text-align: right; }
.bad { color: var(--bad); white-space: normal; }
)css";

std::string safe(const std::string& text) {
  return escape_text(printable(text));
}

/// A shape's name without its context: what makes one line of a chart.
std::string without_context(const std::string& shape) {
  const size_t begin = shape.find("_c", shape.find("_chunk") == std::string::npos ? 0 : shape.find("_chunk") + 6);
  if (begin == std::string::npos) return shape;
  const size_t end = shape.find('_', begin + 1);
  return shape.substr(0, begin) + (end == std::string::npos ? "" : shape.substr(end));
}

struct Point {
  double context, value;
  double ceiling;    ///< 0: none.
  bool device;       ///< The ceiling is that of this backend's device, not the host's.
  std::string warm;  ///< What is to be said of cold steps over too few copies.
};
struct Chart {
  std::string title;
  bool memory = true;
  std::map<std::string, std::vector<Point>> lines;  // by backend
};

/// Above the largest value, and round.
double round_top(double largest) {
  if (!(largest > 0)) return 1;
  const double unit = std::pow(10, std::floor(std::log10(largest)));
  for (const double factor : {1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0}) {  // a quarter of each is round, too
    if (factor * unit >= largest * 1.04) return factor * unit;
  }
  return 15 * unit;
}

size_t colour_of(const std::set<std::string>& backends, const std::string& backend) {
  return static_cast<size_t>(std::distance(backends.begin(), backends.find(backend))) % 6;
}

/// "5 copies of 16, may be warm"
std::string warmth(const Result& result) {
  if (!result.maybe_warm()) return {};
  return fmt::format("{} copies of {}, may be warm", result.counter("copies"), result.counter("copies_wanted"));
}

std::string draw(const Chart& chart, const std::set<std::string>& backends) {
  double first = INFINITY, last = 0, largest = 0;
  std::set<double> contexts;
  std::map<std::string, std::map<double, double>> ceilings;  // by backend of a device; "": the host's
  for (const auto& [backend, points] : chart.lines) {
    for (const Point& point : points) {
      first = std::min(first, point.context);
      last = std::max(last, point.context);
      largest = std::max({largest, point.value, point.ceiling});
      contexts.insert(point.context);
      if (point.ceiling > 0) ceilings[point.device ? backend : ""][point.context] = point.ceiling;
    }
  }
  const double top = round_top(largest);
  const auto x = [&](double context) {
    if (last <= first) return kLeft + (kWidth - kLeft - kRight) / 2;
    return kLeft + (kWidth - kLeft - kRight) * std::log(context / first) / std::log(last / first);
  };
  const auto y = [&](double value) { return kHeight - kBottom - (kHeight - kTop - kBottom) * value / top; };
  std::string text = fmt::format("<svg viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"{}\">\n", kWidth, kHeight,
                                 escape_attribute(printable(chart.title)));
  for (int i = 0; i <= 4; ++i) {
    const double value = top * i / 4;
    text += fmt::format("<line class=\"rule\" x1=\"{}\" x2=\"{}\" y1=\"{:.1f}\" y2=\"{:.1f}\"/>", kLeft,
                        kWidth - kRight, y(value), y(value));
    text +=
        fmt::format("<text x=\"{}\" y=\"{:.1f}\" text-anchor=\"end\">{:g}</text>\n", kLeft - 6, y(value) + 4, value);
  }
  for (const double context : contexts) {
    text += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"middle\">{:g}</text>", x(context),
                        kHeight - kBottom + 16, context);
  }
  text += fmt::format("<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">context, tokens</text>\n",
                      (kLeft + kWidth - kRight) / 2, kHeight - 6);
  const auto line = [&](const std::string& style, const std::vector<std::pair<double, double>>& points) {
    std::string path;
    for (const auto& [context, value] : points) path += fmt::format("{:.1f},{:.1f} ", x(context), y(value));
    text += fmt::format("<polyline {} points=\"{}\"/>\n", style, path);
  };
  for (const auto& [backend, ceiling] : ceilings) {
    std::string style = "class=\"ceiling\"";
    if (!backend.empty()) style += fmt::format(" style=\"stroke:var(--b{})\"", colour_of(backends, backend));
    // One context alone is a line across, so that it is seen.
    if (ceiling.size() == 1) {
      text += fmt::format("<line {} x1=\"{}\" x2=\"{}\" y1=\"{:.1f}\" y2=\"{:.1f}\"/>\n", style, kLeft, kWidth - kRight,
                          y(ceiling.begin()->second), y(ceiling.begin()->second));
    } else {
      line(style, {ceiling.begin(), ceiling.end()});
    }
  }
  for (const auto& [backend, points] : chart.lines) {
    const size_t colour = colour_of(backends, backend);
    std::vector<Point> places = points;
    std::sort(places.begin(), places.end(), [](const Point& a, const Point& b) { return a.context < b.context; });
    std::vector<std::pair<double, double>> corners;
    for (const Point& point : places) corners.emplace_back(point.context, point.value);
    line(fmt::format("fill=\"none\" stroke=\"var(--b{})\" stroke-width=\"2\"", colour), corners);
    for (const Point& point : places) {
      text += fmt::format(
          "<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3.5\" {}=\"var(--b{})\"><title>{}: {:.1f} {} at {:g}{}"
          "</title></circle>\n",
          x(point.context), y(point.value), point.warm.empty() ? "fill" : "class=\"warm\" stroke", colour,
          safe(backend), point.value, chart.memory ? "GB/s" : "GFLOP/s", point.context,
          point.warm.empty() ? "" : ": " + point.warm);
    }
  }
  return text + "</svg>\n";
}

std::string legend(const Chart& chart, const std::set<std::string>& backends) {
  std::string text = "<div class=\"legend\">";
  for (const auto& [backend, points] : chart.lines) {
    text += fmt::format("<span><i style=\"background:var(--b{})\"></i>{}</span>", colour_of(backends, backend),
                        safe(backend));
  }
  const bool warm = std::any_of(chart.lines.begin(), chart.lines.end(), [](const auto& line) {
    return std::any_of(line.second.begin(), line.second.end(), [](const Point& p) { return !p.warm.empty(); });
  });
  const auto any = [&](bool device) {
    return std::any_of(chart.lines.begin(), chart.lines.end(), [&](const auto& its) {
      return std::any_of(its.second.begin(), its.second.end(),
                         [&](const Point& p) { return p.ceiling > 0 && p.device == device; });
    });
  };
  if (any(false)) text += "<span>┄ ceiling of the same run</span>";
  if (any(true)) text += "<span>┄ in colour: a device's own ceiling</span>";
  return text + (warm ? "<span>○ too few copies of the cache: may be warm</span>" : "") + "</div>";
}

std::vector<Chart> charts_of(const Results& results) {
  std::vector<Chart> charts;
  for (const Result& result : results.list) {
    if (!result.wrong.empty() || result.counter("real_time") <= 0) continue;
    const bool memory = result.set == "decode" || result.set == "layer";
    const std::string title =
        fmt::format("{} · {} · {}", result.set, without_context(result.shape), result.temperature);
    auto found = std::find_if(charts.begin(), charts.end(), [&](const Chart& chart) { return chart.title == title; });
    if (found == charts.end()) found = charts.insert(charts.end(), Chart{title, memory, {}});
    // Bytes that must move over the time; the ceiling in the same unit, whichever of the two it comes from.
    const double work = result.counter(memory ? "bytes" : "flops") / 1e3;
    const double value = work / result.counter("real_time"), share = result.counter("ceiling_share");
    const double ceiling = result.counter("ceiling_us");
    const bool shown = ceiling > 0 && share > 0 && share <= kMostShare;
    found->lines[result.backend].push_back({result.counter("context"), value, shown ? work / ceiling : 0,
                                            result.counter("ceiling_is_device") > 0, warmth(result)});
  }
  return charts;
}

std::string table(const Results& results) {
  std::string text =
      "<div class=\"card wide\"><table><thead><tr><th>shape</th><th>backend</th><th></th><th class=\"n\">median µs</th>"
      "<th class=\"n\">p95</th><th class=\"n\">p99</th><th class=\"n\">min</th><th class=\"n\">n</th>"
      "<th class=\"n\">tokens/s</th><th class=\"n\">KV GB/s</th><th class=\"n\">GFLOP/s</th><th class=\"n\">of ceiling"
      "</th></tr></thead><tbody>\n";
  std::string last;
  bool warm = false;
  for (const Result& result : results.list) {
    const std::string shape = safe(result.set) + "/" + safe(result.shape);
    text += fmt::format("<tr><td>{}</td><td>{}</td><td>{}", shape == last ? "" : shape, safe(result.backend),
                        safe(result.temperature));
    if (result.maybe_warm()) {
      text += fmt::format(" * <small>{} of {}</small>", result.counter("copies"), result.counter("copies_wanted"));
      warm = true;
    }
    text += "</td>";
    last = shape;
    if (!result.wrong.empty()) {
      text += fmt::format("<td class=\"bad\" colspan=\"9\">no number: {}</td></tr>\n", safe(result.wrong));
      continue;
    }
    for (const char* name : {"real_time", "p95_us", "p99_us", "min_us"}) {
      text += fmt::format("<td class=\"n\">{}</td>", digits(result.counter(name)));
    }
    text += fmt::format("<td class=\"n\">{:.0f}</td>", result.counter("n"));
    for (const char* name : {"tokens_per_second", "kv_gb_per_second", "gflops"}) {
      text += fmt::format("<td class=\"n\">{}</td>", digits(result.counter(name)));
    }
    text += fmt::format("<td class=\"n\">{}</td></tr>\n", share_of_ceiling(result));
  }
  text += "</tbody></table></div>\n";
  if (warm) {
    text +=
        "<p>* So many copies of the cache only, of those that make it cold (five times the last cache): may be "
        "warm.</p>\n";
  }
  return text;
}

}  // namespace

std::string results_page(const Results& results) {
  std::set<std::string> backends;
  for (const Result& result : results.list) backends.insert(result.backend);
  const auto fact = [&](const char* name) {
    const auto found = results.context.find(name);
    return found == results.context.end() ? std::string("unknown") : found->second;
  };
  std::string text = fmt::format(
      "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" "
      "content=\"width=device-width\">\n<title>attest "
      "bench</title>\n<style>{}</style></head>\n<body><main>\n<h1>attest "
      "bench</h1>\n<p>{} · {} · {} cores</p>\n",
      kStyle, safe(fact("date")), safe(fact("cpu")), safe(fact("num_cpus")));
  text +=
      "<p>Every number is of a backend whose outputs were right before and after it was timed. Append and attend "
      "are both timed; medians.</p>\n";
  for (const bool memory : {true, false}) {
    std::string cards;
    for (const Chart& chart : charts_of(results)) {
      if (chart.memory != memory) continue;
      cards += fmt::format("<div class=\"card\"><h3>{}</h3>\n{}{}</div>\n", safe(chart.title), draw(chart, backends),
                           legend(chart, backends));
    }
    if (cards.empty()) continue;
    text += fmt::format("<h2>{}</h2>\n<div class=\"grid\">\n{}</div>\n",
                        memory ? "Decode: GB/s that a step must read and write" : "Prefill: GFLOP/s of visible keys",
                        cards);
  }
  text += "<h2>All results</h2>\n" + table(results) + "<h2>Run</h2>\n<div class=\"card wide\"><table><tbody>\n";
  for (const auto& [name, value] : results.context) {
    text += fmt::format("<tr><td>{}</td><td>{}</td></tr>\n", safe(name), safe(value));
  }
  return text + "</tbody></table></div>\n</main></body></html>\n";
}

}  // namespace attest::bench
