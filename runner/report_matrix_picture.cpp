// SPDX-License-Identifier: Apache-2.0
#include "runner/report_matrix_picture.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <string_view>

#include "runner/markup.h"

namespace attest {
namespace {

constexpr int kColumn = 10, kRow = 15, kGap = 5;  // of a cell, and between areas
constexpr int kLeft = 112, kTop = 138, kLegend = 34;

struct Colour {
  std::string_view fill, meaning;
};
// From pale to dark as a kill becomes clearer; the page's colours.
constexpr std::array<Colour, 7> kColours{{{"#edf0f3", "passes"},
                                          {"#f2b13c", "below 20"},
                                          {"#a9d8bd", "below 10³"},
                                          {"#5fb488", "below 10⁵"},
                                          {"#2c8a5d", "below 10⁷"},
                                          {"#105a3b", "beyond"},
                                          {"#7a5bd0", "NaN, status, guard"}}};

size_t colour_of(double margin) {
  if (margin == 0) return 0;
  if (std::isinf(margin)) return 6;
  return margin < kClearMargin ? 1 : margin < 1e3 ? 2 : margin < 1e5 ? 3 : margin < 1e7 ? 4 : 5;
}

std::string label(double x, double y, std::string_view attributes, std::string_view text) {
  return fmt::format("<text x=\"{}\" y=\"{}\" {}>{}</text>\n", x, y, attributes, escape_text(text));
}

}  // namespace

std::string matrix_picture(const KillMatrix& matrix) {
  std::vector<std::string> families;
  std::map<std::string, size_t> row;
  for (const MatrixCase& c : matrix.cases) {
    if (row.emplace(c.family, families.size()).second) families.push_back(c.family);
  }
  const int bottom = kTop + static_cast<int>(families.size()) * kRow;

  // All cells of a colour are one path.
  std::array<std::string, kColours.size()> paths;
  std::string names, areas;
  int x = kLeft;
  const Mutant* before = nullptr;
  for (size_t m = 0; m < matrix.mutants.size(); ++m) {
    const Mutant& bug = matrix.mutants[m];
    if (bug.correct || bug.id.find('@') != std::string::npos) continue;
    if (before != nullptr && before->area != bug.area) x += kGap;
    before = &bug;
    std::vector<double> best(families.size(), -1);  // not played
    for (size_t c = 0; c < matrix.cases.size(); ++c) {
      const Cell& cell = matrix.at(m, c);
      double& margin = best[row[matrix.cases[c].family]];
      if (cell.state == Cell::State::passed) margin = std::max(margin, 0.0);
      if (cell.state == Cell::State::failed) margin = std::max(margin, cell.margin);
    }
    for (size_t f = 0; f < families.size(); ++f) {
      if (best[f] < 0) continue;
      paths[colour_of(best[f])] +=
          fmt::format("M{} {}h{}v{}h-{}z", x, kTop + static_cast<int>(f) * kRow, kColumn - 1, kRow - 1, kColumn - 1);
    }
    names += label(0, 0,
                   fmt::format("transform=\"translate({} {}) rotate(-74)\" font-size=\"9\"", x + kColumn - 2, kTop - 5),
                   bug.id);
    x += kColumn;
  }

  const int width = x + 70, height = bottom + kLegend;
  std::string text = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0} {1}\" width=\"{0}\" height=\"{1}\" "
      "font-family=\"system-ui, sans-serif\" font-size=\"11\" fill=\"#3c4650\">\n<title>Kill matrix: which family of "
      "cases "
      "catches which bug</title>\n<rect width=\"{0}\" height=\"{1}\" fill=\"#ffffff\"/>\n",
      width, height);
  text += names;
  for (size_t f = 0; f < families.size(); ++f) {
    text += label(kLeft - 6, kTop + static_cast<double>(f) * kRow + 11, "text-anchor=\"end\"", families[f]);
  }
  for (size_t i = 0; i < kColours.size(); ++i) {
    if (!paths[i].empty()) text += fmt::format("<path fill=\"{}\" d=\"{}\"/>\n", kColours[i].fill, paths[i]);
  }
  int at = kLeft;
  text += label(kLeft - 6, bottom + 22, "text-anchor=\"end\"", "error / allowed");
  for (const Colour& colour : kColours) {
    text +=
        fmt::format("<rect x=\"{}\" y=\"{}\" width=\"11\" height=\"11\" fill=\"{}\"/>\n", at, bottom + 12, colour.fill);
    text += label(at + 16, bottom + 22, "", colour.meaning);
    at += 40 + 6 * static_cast<int>(colour.meaning.size());
  }
  return text + "</svg>\n";
}

}  // namespace attest
