// SPDX-License-Identifier: Apache-2.0
// The judge's part about the cache: lengths, appended tokens, and everything else staying as it was.
#include <algorithm>

#include "runner/comparison.h"
#include "runner/judge.h"

namespace attest {
namespace {

/// Which token a slot of the cache holds.
struct Slot {
  int64_t sequence = -1, position = -1;  ///< Of a token that was there before the step; -1: none.
  bool appended = false;                 ///< The step brings it a token.
};

/// Positions of the tokens that the cache holds of a sequence of `length`: from here on. A ring keeps the last ones.
int64_t first_kept(const Problem& p, int64_t length) {
  return p.cache == CacheKind::ring ? std::max<int64_t>(0, length - p.capacity) : 0;
}

std::vector<Slot> slots_of(const Problem& p, const Moment& moment, size_t count) {
  std::vector<Slot> slots(count);
  for (size_t b = 0; b < moment.before.size(); ++b) {
    const auto sequence = static_cast<int64_t>(b);
    for (int64_t t = first_kept(p, moment.before[b]); t < moment.before[b]; ++t) {
      Slot& slot = slots[static_cast<size_t>(slot_of(p, moment, sequence, t))];
      slot.sequence = sequence;
      slot.position = t;
    }
    for (int64_t t = std::max(moment.before[b], first_kept(p, moment.after[b])); t < moment.after[b]; ++t) {
      slots[static_cast<size_t>(slot_of(p, moment, sequence, t))].appended = true;
    }
  }
  return slots;
}

}  // namespace

/// A tensor of the cache with a step's tokens in it: [slots..., KV heads] or [slots..., KV heads, channels].
struct Judge::CacheTensor {
  const char* name;
  std::string clause;  ///< That an appended token breaks.
  const Dense<float>&before, &after;
  const Dense<float>& input;   ///< The step's keys or values; what the cache holds if `golden` is empty.
  const GoldenTensor& golden;  ///< Of all of the step's tokens, in order.
  bool scale = false;          ///< One number a KV head.

  [[nodiscard]] int64_t heads() const { return after.shape[2]; }
  [[nodiscard]] int64_t channels() const { return scale ? 1 : after.shape[3]; }
  [[nodiscard]] size_t slot_size() const { return static_cast<size_t>(heads() * channels()); }
  [[nodiscard]] std::vector<int64_t> index(int64_t first, int64_t second, size_t element) const {
    const auto at = static_cast<int64_t>(element);
    if (scale) return {first, second, at};
    return {first, second, at / channels(), at % channels()};
  }
  [[nodiscard]] std::string names(const std::string& first_two) const {
    return first_two + (scale ? ",head" : ",head,channel");
  }
};

void Judge::judge_lengths(size_t s, const StepOutcome& outcome) {
  const Moment& moment = timeline_[s];
  for (size_t b = 0; b < moment.after.size(); ++b) {
    if (outcome.after.lengths[b] == moment.after[b]) continue;
    Finding& finding = add("length", "C2", s, "cache.lengths", "the length was not advanced by the appended tokens");
    finding.index = {static_cast<int64_t>(b)};
    finding.index_names = "sequence";
    finding.got = static_cast<double>(outcome.after.lengths[b]);
    finding.wanted = static_cast<double>(moment.after[b]);
    return;
  }
}

void Judge::judge_cache(size_t s, const StepOutcome& outcome) {
  const GoldenStep& golden = golden_.steps[s];
  const StepInputs& in = inputs_.steps[s];
  const Problem& p = c_.problem;
  const auto clause = [&](bool transforms) { return p.quantised() ? "Q1" : transforms ? "L4" : "C1"; };
  std::vector<CacheTensor> tensors{
      {"cache.key", clause(p.transforms_keys()), outcome.before.key, outcome.after.key, in.key, golden.cache_key},
      {"cache.value", clause(p.transforms_values()), outcome.before.value, outcome.after.value, in.value,
       golden.cache_value}};
  if (p.kv_scale == KvScale::token) {
    tensors.push_back(
        {"cache.key_scale", "Q2", outcome.before.key_scale, outcome.after.key_scale, in.key, golden.key_scale, true});
    tensors.push_back({"cache.value_scale", "Q2", outcome.before.value_scale, outcome.after.value_scale, in.value,
                       golden.value_scale, true});
  }
  for (const CacheTensor& tensor : tensors) {
    judge_untouched(s, tensor);
    judge_appended(s, tensor);
  }
}

/// C5, T3: all but the appended tokens' slots stay as they were, bit for bit.
void Judge::judge_untouched(size_t s, const CacheTensor& tensor) {
  const size_t size = tensor.slot_size();
  const auto differs = [&](size_t e) { return !same_bits(tensor.before.data[e], tensor.after.data[e]); };
  std::vector<Slot> slots;
  for (size_t e = 0; e < tensor.after.data.size(); ++e) {
    if (!differs(e)) continue;
    if (slots.empty()) slots = slots_of(c_.problem, timeline_[s], tensor.after.data.size() / size);
    const Slot& slot = slots[e / size];
    if (slot.appended) continue;
    const bool cached = slot.sequence >= 0;
    Finding& finding = add("cache", cached ? "C5" : "T3", s, tensor.name,
                           cached ? "a token that was cached before this step has changed"
                                  : "a slot that no token was appended to was written");
    const auto row = static_cast<int64_t>(e / size);
    const int64_t inner = tensor.after.shape[1];
    finding.index = cached ? tensor.index(slot.sequence, slot.position, e % size)
                           : tensor.index(row / inner, row % inner, e % size);
    finding.index_names = tensor.names(cached                                 ? "sequence,position"
                                       : c_.problem.cache == CacheKind::paged ? "page,slot"
                                                                              : "sequence,slot");
    finding.got = static_cast<double>(tensor.after.data[e]);
    finding.wanted = static_cast<double>(tensor.before.data[e]);
    return;
  }
}

/// C1: the step's tokens lie where they belong: exactly what was given, or (L4, Q1, Q2) what was made of it within the
/// allowed error. Of a step longer than a ring, those that are left.
void Judge::judge_appended(size_t s, const CacheTensor& tensor) {
  const Moment& moment = timeline_[s];
  const size_t size = tensor.slot_size();
  const bool copied = tensor.golden.empty();
  Comparison comparison(s, tensor.name, tensor.names("sequence,position"));
  size_t golden_at = 0;
  for (size_t b = 0; b < moment.incoming.size(); ++b) {
    const int64_t first = first_kept(c_.problem, moment.after[b]);
    for (const Token& token : moment.incoming[b]) {
      const auto source = static_cast<size_t>(token.origin * moment.max_keys + token.index) * size;
      const auto slot = static_cast<size_t>(slot_of(c_.problem, moment, token.origin, token.position)) * size;
      for (size_t e = 0; e < size && token.position >= first; ++e) {
        const auto index = tensor.index(token.origin, token.position, e);
        const float got = tensor.after.data[slot + e];
        if (copied) {
          comparison.add_copy(got, tensor.input.data[source + e], index);
        } else {
          comparison.add({static_cast<double>(got), tensor.golden.value[golden_at + e],
                          static_cast<double>(tensor.golden.allowed[golden_at + e])},
                         index);
        }
      }
      golden_at += size;
    }
  }
  // An exact copy has no error to relate; it enters the worst ratio only where it is wrong.
  if (!copied || comparison.bad > 0) close(comparison, tensor.clause);
}

}  // namespace attest
