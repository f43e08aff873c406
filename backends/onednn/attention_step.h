// SPDX-License-Identifier: Apache-2.0
// What attention is given: f32 queries, keys and values by position, and where its results go.
#pragma once

#include <attest/backend.hpp>
#include <optional>

#include "heads.h"
#include "kv.h"
#include "logits.h"

namespace attest::onednn {

/// Query tokens [0, queries[b]) attend to positions [0, total[b]) of sequence b. Nothing beyond either is read or
/// written, so it may be NaN. `query` and `output` are f32.
struct AttentionStep {
  const Heads& query;
  const KvRows &key, &value;
  const Mask& mask;
  const abi::Extents& extents;
  const Heads& output;
  const std::optional<abi::Tokens>& lse;
};

/// All keys that any of a sequence's queries [begin, end), one at least, sees: from the first one's to the last one's.
inline abi::KeyRange seen_by(const attest_problem& problem, abi::KeyRange these, std::int64_t queries,
                             std::int64_t total) {
  return {abi::visible_keys(problem, these.begin, queries, total).begin,
          abi::visible_keys(problem, these.end - 1, queries, total).end};
}

}  // namespace attest::onednn
