// SPDX-License-Identifier: Apache-2.0
// What a step must answer, for some of its rows, computed in double with the suite's own allowed error
// (spec/tolerance.md): a backend that is wrong gets no number.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "bench/workload.h"

namespace attest::bench {

class Reference {
 public:
  /// Reads the first copy's cache, which no step may have written to yet.
  explicit Reference(const Workload& workload);

  /// What is wrong after a step over this copy: a length, an appended key, an output that is no number or none of
  /// what it may be. Empty if nothing is.
  [[nodiscard]] std::string check(const Workload& workload, size_t copy) const;

 private:
  /// Some consecutive elements of a tensor, with what each may differ by.
  struct Wanted {
    std::string what;
    int64_t begin;
    std::vector<double> value, allowed;
  };

  void add_core(const Workload& workload, int64_t sequence, int64_t index, int64_t head);
  void add_layer(const Workload& workload, int64_t sequence);

  std::vector<Wanted> outputs_, keys_, values_;
};

}  // namespace attest::bench
