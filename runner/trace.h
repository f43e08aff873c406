// SPDX-License-Identifier: Apache-2.0
// A trace of a case, as one would print it when debugging a cache: which position a query has, which keys it sees and
// how much each of them weighs, and what came out, beside what should have. The numbers are from a plain evaluation of
// the clauses in double, which shares nothing with the oracle or a backend.
#pragma once

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "runner/rehearsal.h"

namespace attest {

/// The operator of spec/attention.md in double, row by row.
class Evaluation {
 public:
  /// All must outlive this.
  Evaluation(const Case& c, const Timeline& timeline, const Inputs& inputs);

  /// One query head of one row.
  struct Head {
    std::vector<double> weight;  ///< Of the keys [Row::begin, Row::end); 0 where a mask hides one.
    std::vector<bool> masked;    ///< By the mask (M6).
    double sink = 0;             ///< The share that the sink takes.
    double lse = 0;
    std::vector<double> output;  ///< Dv channels.
  };
  [[nodiscard]] Head head(size_t step, const Row& row, int64_t head);
  /// What a step writes for a row: all heads side by side, or (layer) their projection.
  [[nodiscard]] std::vector<double> output(size_t step, const Row& row);
  /// The value of a token that its step has brought, as attention reads it.
  [[nodiscard]] const std::vector<double>& value(const Token& token, int64_t kv_head);

 private:
  struct Stored {
    std::vector<std::vector<double>> key, value;  ///< By KV head.
  };
  [[nodiscard]] std::vector<double> take(const Dense<float>& tensor, int64_t index, int64_t width,
                                         const Dense<float>& weight, const Dense<float>& bias) const;
  void normalise(std::vector<double>& head, const Dense<float>& weight) const;
  void turn(std::vector<double>& head, int64_t angle) const;
  void quantise(std::vector<double>& head, const Dense<float>& scale, int64_t kv_head) const;
  const Stored& stored(const Token& token);
  [[nodiscard]] double logit(const std::vector<double>& query, const std::vector<double>& key, int64_t head,
                             int64_t distance) const;

  const Case& c_;
  const Timeline& timeline_;
  const Inputs& inputs_;
  std::vector<double> frequency_;
  double magnitude_ = 1;  ///< YaRN's factor on cos and sin.
  std::vector<double> slopes_;
  std::map<std::pair<int64_t, int64_t>, Stored> stored_;  ///< By origin and serial number.
};

struct TraceChoice {
  size_t sequences = 3, heads = 4, channels = 3, weights = 4;  ///< At most so many of each.
  size_t decode_steps = 3;
};

/// One row a sequence of the first prefill and the first decode steps of a case: the one that is most wrong, else the
/// last. `actual`: what a backend did, or null.
std::string trace(const Script& script, const Performance* actual, const Conventions& conventions,
                  const TraceChoice& choice = {});

}  // namespace attest
