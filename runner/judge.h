// SPDX-License-Identifier: Apache-2.0
// The judge: what a backend did in one step, against what the spec and the golden say. Pure: no worker, no clock.
// Order of the checks: status, guards and inputs, written and finite, values, cache and lengths, row invariants.
// It sees values and logical shapes only: a packed step's results come padded, a cache's elements as the numbers that
// they are.
#pragma once

#include <attest/backend.h>

#include <map>
#include <string>
#include <vector>

#include "cases/inputs.h"
#include "golden/golden.h"
#include "runner/arena.h"
#include "runner/conventions.h"
#include "runner/record.h"

namespace attest {

/// A KV cache as it lies in memory: slots, not tokens (slot_of in cases/timeline.h).
struct CacheImage {
  Dense<float>
      key;  ///< [B, C, Hk, Dk]; paged [pages, page_size, Hk, Dk]. Codes of a quantised cache, not their values.
  Dense<float> value;  ///< The same with Dv.
  std::vector<int32_t> lengths;
  Dense<float> key_scale = {}, value_scale = {};  ///< Per token: [B, C, Hk] or [pages, page_size, Hk]; else empty.
};

/// What one attend step left behind.
struct StepOutcome {
  attest_status status = ATTEST_OK;
  std::string message;
  Dense<float> output;       ///< Core [B, Sq, Hq, Dv]; layer [B, Sq, d_model].
  Dense<float> lse;          ///< [B, Hq, Sq]; empty if not asked for.
  CacheImage before, after;  ///< Empty without a cache.
  /// Bytes that are not the step's to write but changed: "query: element 17 changed", "output: byte 4 past the end".
  struct Foreign {
    std::string tensor, text;
    bool input = false;  ///< An input was modified; else memory around an output was.
  };
  std::vector<Foreign> foreign;
};

/// Judges a case step by step.
class Judge {
 public:
  /// All must outlive this.
  Judge(const Case& c, const Timeline& timeline, const Inputs& inputs, const Golden& golden,
        Conventions conventions = {});

  /// Judges step `s`, an attend; false if going on makes no sense (the step did not do what it should, or was refused
  /// wrongly).
  bool step(size_t s, const StepOutcome& outcome);
  /// Merges the results of the attends that step `s` names, and judges what comes out (clause E2).
  void merge(size_t s);

  [[nodiscard]] const std::vector<Finding>& findings() const { return findings_; }
  [[nodiscard]] const std::optional<ErrorMap>& error_map() const { return error_map_; }
  /// Largest error / allowed so far; nothing compared: no value.
  [[nodiscard]] std::optional<double> worst_ratio() const { return worst_; }

 private:
  struct Comparison;
  struct CacheTensor;
  /// An element that was computed, the golden that it is compared with, and what it may differ by.
  struct Element {
    double got, wanted, allowed;
    bool unwritten = false;
  };
  struct Part {
    Dense<float> output, lse;
  };

  bool judge_status(size_t s, const StepOutcome& outcome);
  void judge_foreign(size_t s, const StepOutcome& outcome);
  void judge_refusal(size_t s, const StepOutcome& outcome);
  void judge_rows(size_t s, const StepOutcome& outcome);
  void judge_unchecked_rows(size_t s, const StepOutcome& outcome);
  void judge_unchecked_lse(size_t s, const StepOutcome& outcome);
  void judge_lengths(size_t s, const StepOutcome& outcome);
  void judge_cache(size_t s, const StepOutcome& outcome);
  void judge_untouched(size_t s, const CacheTensor& tensor);
  void judge_appended(size_t s, const CacheTensor& tensor);

  /// Compares the rows that have goldens. `output(index, golden's element)` answers an element of the output, index
  /// being that of the padded tensor; `lse` likewise.
  template <typename Output, typename Lse>
  void compare_rows(size_t s, const std::string& clause, const Output& output, const Lse& lse);
  /// Whether the query sees no key in this head, masks included.
  [[nodiscard]] bool is_empty(size_t s, const Row& row, int64_t head) const;
  /// Whether a row's output (of a head; at the layer level of all) is NaN by declaration.
  [[nodiscard]] bool wants_nan(size_t s, const Row& row, int64_t head) const;
  /// Per sequence, the size of the largest value that its rows average.
  [[nodiscard]] std::vector<double> reach(const Moment& moment) const;

  Finding& add(std::string kind, std::string clause, size_t s, std::string tensor, std::string text);
  void close(Comparison& comparison, const std::string& clause);

  const Case& c_;
  const Timeline& timeline_;
  const Inputs& inputs_;
  const Golden& golden_;
  Conventions conventions_;
  std::map<size_t, Part> parts_;  ///< Results that a later step merges.
  std::vector<Finding> findings_;
  std::optional<ErrorMap> error_map_;
  std::optional<double> worst_;
};

}  // namespace attest
