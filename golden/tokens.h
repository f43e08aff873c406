// SPDX-License-Identifier: Apache-2.0
// What attention reads of a case's tokens, in balls: queries, and the keys and values of all tokens ever appended,
// after projection, bias, norm, RoPE and quantisation (clauses L1, N1, R1, Q1). And what a cache must hold of them.
#pragma once

#include <map>
#include <utility>
#include <vector>

#include "cases/inputs.h"
#include "golden/heads.h"

namespace attest {

/// How the oracle is run: for a golden, or to see what a feature changes (check_binding).
enum class Purpose {
  golden,
  probe,     ///< Codes may lie near a middle.
  unscaled,  ///< A probe that reads codes as if their scales were 1.
};

Balls exact(const std::vector<float>& values);
/// L1: y = W x + bias, W [out, in].
Balls project(const Balls& w, const Balls& bias, const Balls& x, slong precision);

class TokenStore {
 public:
  /// The keys or the values of one token.
  struct Side {
    Heads heads;                      ///< As attention reads them.
    std::vector<double> codes;        ///< Quantised: the codes' numbers.
    Balls scale;                      ///< Scales per token: one a KV head ...
    std::vector<double> scale_error;  ///< ... and what a backend's may be off by; infinite for a vector of zeros.
  };
  struct Entry {
    Side key, value;
  };

  TokenStore(const Case& c, const Timeline& timeline, const Inputs& inputs, Purpose purpose, slong precision);
  TokenStore(const TokenStore&) = delete;  // its parts know each other
  TokenStore& operator=(const TokenStore&) = delete;

  /// A query's heads, [Hq * Dk].
  [[nodiscard]] Heads query(size_t step, const Row& row);
  /// Takes in a token that an attend appends or a load puts there.
  const Entry& learn(size_t step, const Token& token);
  [[nodiscard]] const Entry& at(const Token& token) const { return entries_.at({token.origin, token.serial}); }

  [[nodiscard]] const RopeTable& rope() const { return rope_; }

 private:
  struct Projection {
    Balls w, bias;
    const Dense<float>*weights, *biases;
  };
  [[nodiscard]] static Heads given(const Dense<float>& tensor, int64_t index, int64_t width);
  [[nodiscard]] Heads take(const Dense<float>& tensor, int64_t index, int64_t width, const Projection& by) const;
  void quantise(Side& side, const Dense<float>& scales, int64_t width, bool keys, const Token& token) const;

  const Case& c_;
  const Problem& p_;
  const Timeline& timeline_;
  const Inputs& inputs_;
  Purpose purpose_;
  slong precision_;
  Projection q_, k_, v_;
  RopeTable rope_;
  HeadTransform transform_query_, transform_key_;
  std::map<std::pair<int64_t, int64_t>, Entry> entries_;  ///< By (origin, serial).
};

}  // namespace attest
