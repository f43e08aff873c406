// SPDX-License-Identifier: Apache-2.0
// Determinism (clauses I1 to I4): the results of one run of a case, kept by what their rows were made from, and
// compared bit for bit with those of another run or another case.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "cases/timeline.h"
#include "runner/judge.h"

namespace attest {

/// The results of one run.
class RunBits {
 public:
  explicit RunBits(const Case& c);

  /// Takes what an attend has left behind.
  void add(const Moment& moment, size_t s, const StepOutcome& outcome);

  /// A row: where it is, its outputs [heads][channels] and LSE [heads].
  struct Row {
    int64_t step, sequence, index;
    std::vector<float> output, lse;
  };
  using Rows = std::vector<Row>;
  /// By the slot whose data a row takes, and its running number there; in the order in which they came.
  [[nodiscard]] const std::map<std::pair<int64_t, int64_t>, Rows>& rows() const { return rows_; }
  [[nodiscard]] int64_t heads() const { return heads_; }
  [[nodiscard]] int64_t channels() const { return channels_; }
  [[nodiscard]] bool is_layer() const { return layer_; }

 private:
  bool layer_;
  int64_t heads_, channels_;
  std::map<std::pair<int64_t, int64_t>, Rows> rows_;
};

/// What a comparison found.
struct BitDifference {
  int64_t rows = 0;                ///< That both have.
  std::optional<Finding> finding;  ///< The first difference, by the place in the reference; counts all of them.
};

/// Compares another run of the same case (its rows one by one) ...
BitDifference compare_again(const RunBits& reference, const RunBits& again, const std::string& clause,
                            const std::string& who);
/// ... or of another case: each of its rows with the first of the reference that is made from the same data, as far as
/// both have heads and channels.
BitDifference compare_with(const RunBits& reference, const RunBits& other, const std::string& clause,
                           const std::string& who);

}  // namespace attest
