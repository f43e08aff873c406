// SPDX-License-Identifier: Apache-2.0
// For the judge's own files: elements of one tensor compared with their goldens, and indices.
#pragma once

#include <bit>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "runner/judge.h"

namespace attest {

inline constexpr double kInfinity = std::numeric_limits<double>::infinity();

inline size_t flat(const std::vector<int64_t>& shape, const std::vector<int64_t>& index) {
  int64_t at = 0;
  for (size_t a = 0; a < shape.size(); ++a) at = at * shape[a] + index[a];
  return static_cast<size_t>(at);
}

inline bool same_bits(float a, float b) {
  return std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b);
}

/// Keeps the worst element and the counts.
struct Judge::Comparison {
  Comparison(size_t step_, std::string tensor_, std::string index_names_)
      : step(step_), tensor(std::move(tensor_)), index_names(std::move(index_names_)) {}

  size_t step;
  std::string tensor, index_names;
  int64_t bad = 0, unwritten = 0, not_a_number = 0, total = 0;
  double worst_ratio = -1, got = 0, wanted = 0, allowed = 0;
  std::vector<int64_t> worst_index, first_unwritten;

  /// The ratio error / allowed; infinite where no finite error is right.
  double add(const Element& element, const std::vector<int64_t>& index) {
    const double ratio = ratio_of(element);
    count(element, index, ratio);
    return ratio;
  }

  /// The same for a copy: other bits are wrong, also those of a zero of the other sign.
  void add_copy(float got_, float wanted_, const std::vector<int64_t>& index) {
    count({static_cast<double>(got_), static_cast<double>(wanted_), 0}, index,
          same_bits(got_, wanted_) ? 0 : kInfinity);
  }

 private:
  static double ratio_of(const Element& element) {
    if (element.unwritten) return kInfinity;
    if (std::isnan(element.wanted)) return std::isnan(element.got) ? 0 : kInfinity;
    if (element.got == element.wanted) return 0;
    if (!std::isfinite(element.got) || std::isinf(element.wanted)) return kInfinity;
    return std::fabs(element.got - element.wanted) / element.allowed;
  }

  void count(const Element& element, const std::vector<int64_t>& index, double ratio) {
    ++total;
    if (!(ratio <= 1)) {
      ++bad;
      if (element.unwritten) {
        if (unwritten++ == 0) first_unwritten = index;
      } else if (std::isnan(element.got)) {
        ++not_a_number;
      }
    }
    if (!(ratio <= worst_ratio)) {
      worst_ratio = ratio;
      got = element.got;
      wanted = element.wanted;
      allowed = element.allowed;
      worst_index = index;
    }
  }
};

}  // namespace attest
