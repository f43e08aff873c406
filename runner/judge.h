// SPDX-License-Identifier: Apache-2.0
// The judge: what a backend did in one step, against what the spec and the golden say. Pure: no worker, no clock.
// Order of the checks: status, guards and inputs, written and finite, values, cache and lengths, row invariants.
#pragma once

#include <attest/backend.h>

#include <string>
#include <vector>

#include "cases/inputs.h"
#include "golden/golden.h"
#include "runner/arena.h"
#include "runner/record.h"

namespace attest {

/// A KV cache as it lies in memory, gathered into logical order.
struct CacheImage {
  Dense<float> key;    ///< [B, C, Hk, Dk]
  Dense<float> value;  ///< [B, C, Hk, Dv]
  std::vector<int32_t> lengths;
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

/// The bit pattern that fills outputs before a step; a NaN, so an element that still has it was never written.
constexpr uint32_t kUnwritten = kSentinel * 0x10001U;

/// Judges a case step by step.
class Judge {
 public:
  /// All must outlive this.
  Judge(const Case& c, const Timeline& timeline, const Inputs& inputs, const Golden& golden);

  /// Judges step `s`; false if going on makes no sense (the step did not do what it should, or was refused wrongly).
  bool step(size_t s, const StepOutcome& outcome);

  [[nodiscard]] const std::vector<Finding>& findings() const { return findings_; }
  [[nodiscard]] const std::optional<ErrorMap>& error_map() const { return error_map_; }
  /// Largest error / allowed so far; nothing compared: no value.
  [[nodiscard]] std::optional<double> worst_ratio() const { return worst_; }

 private:
  struct Comparison;

  bool judge_status(size_t s, const StepOutcome& outcome);
  void judge_foreign(size_t s, const StepOutcome& outcome);
  void judge_refusal(size_t s, const StepOutcome& outcome);
  void judge_rows(size_t s, const StepOutcome& outcome);
  void judge_unchecked_rows(size_t s, const StepOutcome& outcome);
  void judge_unchecked_lse(size_t s, const StepOutcome& outcome);
  void judge_cache(size_t s, const StepOutcome& outcome);
  void judge_cache_tensor(size_t s, const char* name, const Dense<float>& before, const Dense<float>& after,
                          const Dense<float>& input, const GoldenTensor& golden);
  Finding& add(std::string kind, std::string clause, size_t s, std::string tensor, std::string text);
  void close(Comparison& comparison, const std::string& clause);

  const Case& c_;
  const Timeline& timeline_;
  const Inputs& inputs_;
  const Golden& golden_;
  std::vector<Finding> findings_;
  std::optional<ErrorMap> error_map_;
  std::optional<double> worst_;
};

}  // namespace attest
