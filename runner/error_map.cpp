// SPDX-License-Identifier: Apache-2.0
#include "runner/error_map.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>

#include "runner/report_text.h"

namespace attest {
namespace {

constexpr int64_t kMaxColumns = 256;
constexpr int64_t kMaxRows = 64;
constexpr int64_t kMaxHeads = 32;

// Pixels. A figure is as wide as its panels need, and at most this.
constexpr int64_t kWidth = 960;
constexpr int64_t kGutter = 40;       // row labels, left of a panel
constexpr int64_t kTitle = 18;        // above a panel
constexpr int64_t kAxis = 16;         // column labels, below a panel
constexpr int64_t kAxisName = 16;     // "position", below those
constexpr int64_t kSpace = 14;        // between panels
constexpr int64_t kLeastPanel = 112;  // as wide as its title
constexpr int64_t kLeastCell = 3;
constexpr int64_t kMostCell = 22;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

struct Colour {
  double most;  ///< Largest ratio of the class.
  const char* label;
};
// 1 is the limit between right and wrong: r0 to r3 pass, r4 to r9 do not.
constexpr std::array<Colour, 10> kColours{{{0.01, "≤ 0.01"},
                                           {0.1, "≤ 0.1"},
                                           {0.5, "≤ 0.5"},
                                           {1, "≤ 1"},
                                           {2, "≤ 2"},
                                           {10, "≤ 10"},
                                           {100, "≤ 100"},
                                           {1e4, "≤ 10⁴"},
                                           {std::numeric_limits<double>::max(), "> 10⁴"},
                                           {kInfinity, "NaN or infinite"}}};
constexpr size_t kFirstWrong = 4;
constexpr size_t kUnchecked = kColours.size();

size_t colour_of(double ratio) {
  if (ratio < 0) return kUnchecked;
  size_t c = 0;
  while (c + 1 < kColours.size() && !(ratio <= kColours[c].most)) ++c;
  return c;
}

int64_t divided_up(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

/// Cells of one panel, after several positions or sequences became one cell: the worst of them.
struct Grid {
  int64_t rows = 0, columns = 0;
  std::vector<double> ratio;
  double worst = -1;

  [[nodiscard]] double at(int64_t r, int64_t c) const { return ratio[static_cast<size_t>(r * columns + c)]; }
  void put(int64_t r, int64_t c, double value) {
    if (std::isnan(value)) value = kInfinity;
    double& cell = ratio[static_cast<size_t>(r * columns + c)];
    cell = std::max(cell, value);
    worst = std::max(worst, value);
  }
};

struct Picture {
  std::string svg;

  void text(int64_t x, int64_t y, std::string_view anchor, std::string_view text, std::string_view css = "") {
    svg += fmt::format("<text x=\"{}\" y=\"{}\" text-anchor=\"{}\"{}>{}</text>", x, y, anchor,
                       css.empty() ? "" : fmt::format(" class=\"{}\"", css), text);
  }
};

/// One path per colour; neighbours of one colour become one rectangle.
std::string cells(const Grid& grid, int64_t x, int64_t y, int64_t width, int64_t height, bool rows_apart) {
  // Large cells get a line between them; small ones would drown in it.
  const int64_t gap_x = width >= 10 ? 1 : 0;
  const int64_t gap_y = gap_x == 1 || rows_apart ? 1 : 0;
  std::array<std::string, kColours.size() + 1> paths;
  for (int64_t r = 0; r < grid.rows; ++r) {
    for (int64_t c = 0; c < grid.columns;) {
      const size_t colour = colour_of(grid.at(r, c));
      int64_t end = c + 1;
      while (gap_x == 0 && end < grid.columns && colour_of(grid.at(r, end)) == colour) ++end;
      const int64_t run = (end - c) * width - gap_x;
      paths[colour] += fmt::format("M{} {}h{}v{}h-{}z", x + c * width, y + r * height, run, height - gap_y, run);
      c = end;
    }
  }
  std::string svg;
  for (size_t c = 0; c < paths.size(); ++c) {
    if (paths[c].empty()) continue;
    if (c == kUnchecked) {
      svg += fmt::format("<path class=\"unchecked\" d=\"{}\"><title>not checked</title></path>", paths[c]);
    } else {
      svg += fmt::format("<path class=\"r{}\" d=\"{}\"><title>{}</title></path>", c, paths[c], kColours[c].label);
    }
  }
  return svg;
}

/// A distance between labels, a power of two, so that at most `most` of them stand on `count`.
int64_t label_step(int64_t count, int64_t most) {
  int64_t step = 1;
  while (divided_up(count, step) > std::max<int64_t>(1, most)) step *= 2;
  return step;
}

void position_labels(Picture& picture, const ErrorMap& map, int64_t factor, int64_t x, int64_t y, int64_t width) {
  const int64_t columns = divided_up(map.positions, factor);
  const int64_t step = label_step(map.positions, columns * width / 48);
  const auto place = [&](int64_t position) { return x + (position - map.first_position) / factor * width + width / 2; };
  const int64_t first = divided_up(map.first_position, step) * step;
  const int64_t end = map.first_position + map.positions;
  if (first >= end || place(first) - place(map.first_position) > 40) {
    picture.text(place(map.first_position), y, "middle", std::to_string(map.first_position));
  }
  for (int64_t position = first; position < end; position += step) {
    picture.text(place(position), y, "middle", std::to_string(position));
  }
}

std::string legend() {
  std::string text = "<ul class=\"legend\"><li class=\"what\">error / allowed</li>";
  for (size_t c = 0; c < kColours.size(); ++c) {
    if (c == kFirstWrong) text += "<li class=\"limit\" title=\"the limit\"></li>";
    text += fmt::format("<li><i class=\"r{}\"></i>{}</li>", c, kColours[c].label);
  }
  return text + "<li><i class=\"hatched\"></i>not checked</li></ul>";
}

}  // namespace

std::string error_map_definitions() {
  return "<svg class=\"definitions\" aria-hidden=\"true\"><defs><pattern id=\"unchecked\" width=\"5\" height=\"5\" "
         "patternUnits=\"userSpaceOnUse\" patternTransform=\"rotate(45)\"><line x1=\"0\" y1=\"0\" x2=\"0\" y2=\"5\" "
         "class=\"hatch\"/></pattern></defs></svg>\n";
}

std::string error_map_figure(const ErrorMap& map) {
  if (map.ratio.empty()) return "";
  // Which heads, and how many positions and sequences make a cell.
  std::vector<double> worst_of_head(static_cast<size_t>(map.heads), -1);
  for (size_t i = 0; i < map.ratio.size(); ++i) {
    const size_t head = i / static_cast<size_t>(map.positions) % static_cast<size_t>(map.heads);
    const double ratio = std::isnan(map.ratio[i]) ? kInfinity : map.ratio[i];
    worst_of_head[head] = std::max(worst_of_head[head], ratio);
  }
  std::vector<int64_t> heads(static_cast<size_t>(map.heads));
  std::iota(heads.begin(), heads.end(), 0);
  std::string left_out;
  if (map.heads > kMaxHeads) {
    std::stable_sort(heads.begin(), heads.end(), [&](int64_t a, int64_t b) {
      return worst_of_head[static_cast<size_t>(a)] > worst_of_head[static_cast<size_t>(b)];
    });
    heads.resize(kMaxHeads);
    std::sort(heads.begin(), heads.end());
    left_out += fmt::format(" The {} worst of {} heads are shown.", kMaxHeads, map.heads);
  }
  const int64_t factor = divided_up(map.positions, kMaxColumns);
  if (factor > 1) left_out += fmt::format(" A cell is the worst of {} positions.", factor);
  const int64_t row_factor = divided_up(map.sequences, kMaxRows);
  if (row_factor > 1) left_out += fmt::format(" A row is the worst of {} sequences.", row_factor);

  // With one sequence the heads are the rows of a single panel; else each head has a panel of its own.
  const bool one_panel = map.sequences == 1;
  const auto panels = one_panel ? int64_t{1} : static_cast<int64_t>(heads.size());
  std::vector<Grid> grids;
  for (int64_t p = 0; p < panels; ++p) {
    Grid grid;
    grid.rows = one_panel ? static_cast<int64_t>(heads.size()) : divided_up(map.sequences, row_factor);
    grid.columns = divided_up(map.positions, factor);
    grid.ratio.assign(static_cast<size_t>(grid.rows * grid.columns), -1);
    grids.push_back(std::move(grid));
  }
  for (int64_t b = 0; b < map.sequences; ++b) {
    for (size_t h = 0; h < heads.size(); ++h) {
      const auto begin = static_cast<size_t>((b * map.heads + heads[h]) * map.positions);
      for (int64_t position = 0; position < map.positions; ++position) {
        const double ratio = map.ratio[begin + static_cast<size_t>(position)];
        grids[one_panel ? 0 : h].put(one_panel ? static_cast<int64_t>(h) : b / row_factor, position / factor, ratio);
      }
    }
  }

  // As many panels beside each other, up to four, as leave cells of a fair size.
  const int64_t columns = grids[0].columns, rows = grids[0].rows;
  int64_t across = std::min<int64_t>(panels, 4);
  int64_t cell = 0;
  for (; across >= 1; --across) {
    cell = (kWidth - (across - 1) * kSpace) / across - kGutter;
    cell = std::min(cell / columns, kMostCell);
    if (cell >= 6 || across == 1) break;
  }
  cell = std::max(cell, kLeastCell);
  const int64_t cell_height = rows <= 12 ? 16 : rows <= 24 ? 12 : 8;
  const int64_t plot = columns * cell;
  const int64_t panel_width = kGutter + std::max(plot, panels > 1 ? kLeastPanel : plot);
  // Narrow panels leave room for more of them in a line.
  across = std::min(panels, std::max<int64_t>(1, (kWidth + kSpace) / (panel_width + kSpace)));
  const int64_t title = panels > 1 ? kTitle : 4;
  const int64_t panel_height = title + rows * cell_height + kAxis;
  const int64_t lines = divided_up(panels, across);
  const int64_t total_width = std::max<int64_t>(across * (panel_width + kSpace) - kSpace + 16, 220);
  const int64_t total_height = lines * (panel_height + kSpace) - kSpace + kAxisName;

  const std::string_view row_name = one_panel && map.heads > 1 ? "head" : "sequence";
  const bool upright = rows * cell_height >= 48;
  Picture picture;
  for (int64_t p = 0; p < panels; ++p) {
    const Grid& grid = grids[static_cast<size_t>(p)];
    const int64_t x = p % across * (panel_width + kSpace) + kGutter;
    const int64_t y = p / across * (panel_height + kSpace) + title;
    if (panels > 1) {
      const bool wrong = !(grid.worst <= 1);
      picture.svg +=
          fmt::format("<text x=\"{}\" y=\"{}\" class=\"title\">head {}<tspan dx=\"6\" class=\"{}\">{}</tspan></text>",
                      x, y - 6, heads[static_cast<size_t>(p)], wrong ? "wrong" : "right",
                      grid.worst < 0 ? "not checked" : ratio_text(grid.worst));
    }
    picture.svg += cells(grid, x, y, cell, cell_height, one_panel);
    position_labels(picture, map, factor, x, y + rows * cell_height + 12, cell);
    const int64_t step = label_step(rows, rows * cell_height / 11);
    for (int64_t r = 0; r < rows; r += step) {
      const int64_t label = one_panel ? heads[static_cast<size_t>(r)] : r * row_factor;
      picture.text(x - 5, y + r * cell_height + cell_height / 2 + 3, "end", std::to_string(label));
    }
    if (p % across == 0 && upright) {
      const int64_t middle = y + rows * cell_height / 2;
      picture.svg += fmt::format(
          "<text x=\"10\" y=\"{0}\" text-anchor=\"middle\" class=\"axis\" transform=\"rotate(-90 10 {0})\">{1}</text>",
          middle, row_name);
    }
  }
  // Too few rows for an upright name: it goes beside that of the columns.
  picture.text(kGutter, total_height - 3, "start", upright ? "position" : fmt::format("position, {} down", row_name),
               "axis");

  const double worst = *std::max_element(worst_of_head.begin(), worst_of_head.end());
  return fmt::format(
      "<figure class=\"map\"><figcaption><b>Step {}: error / allowed</b> Worst over channels{}; the largest is {}.{}"
      "</figcaption>{}<div class=\"scroll\"><svg viewBox=\"0 0 {} {}\" width=\"{}\" height=\"{}\" role=\"img\" "
      "aria-label=\"Error map of step {}\">{}</svg></div></figure>\n",
      map.step, one_panel && map.heads > 1 ? ", a row per head" : "",
      worst < 0           ? "not known"
      : std::isinf(worst) ? "NaN or infinite"
                          : ratio_text(worst),
      left_out, legend(), total_width, total_height, total_width, total_height, map.step, picture.svg);
}

}  // namespace attest
