// SPDX-License-Identifier: Apache-2.0
#include "cases/mask.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <map>

#include "cases/philox.h"
#include "cases/recipes.h"
#include "cases/storage.h"

namespace attest {
namespace {

constexpr float kMasked = -std::numeric_limits<float>::infinity();

/// One element: the sequence's data slot, the head and the query's position, each 0 where the mask is broadcast, and
/// the key's position; `word` is 32 random bits of these four.
struct Place {
  int64_t sequence, head, query, key;
  uint32_t word;
  float lowest;  ///< The dtype's lowest finite number.

  [[nodiscard]] bool hole() const { return word % 4 == 0; }
};

struct Pattern {
  bool additive_only, needs_queries;
  std::function<float(const Place&)> value;  ///< What is added to the logit; -infinity masks.
};

float unless(bool masked) {
  return masked ? kMasked : 0.0F;
}

float bias(const Place& at) {
  return static_cast<float>(static_cast<int32_t>(at.word >> 8 & 127) - 64) * 0x1p-4F;
}

const std::map<std::string, Pattern>& patterns() {
  static const std::map<std::string, Pattern> table{
      {"padding_left", {false, false, [](const Place& at) { return unless(at.key < left_padding(at.sequence)); }}},
      {"padding_right", {false, false, [](const Place& at) { return unless(at.key >= 4 + 3 * at.sequence); }}},
      {"holes", {false, false, [](const Place& at) { return unless(at.hole()); }}},
      {"blocks", {false, true, [](const Place& at) { return unless(at.query / 5 != at.key / 5); }}},
      {"rows", {false, true, [](const Place& at) { return unless(at.query % 3 == 1); }}},
      {"prefix", {false, true, [](const Place& at) { return unless(at.key > at.query && at.key >= 4 + at.sequence); }}},
      {"bias", {true, false, bias}},
      {"bias_holes", {true, false, [](const Place& at) { return at.hole() ? kMasked : bias(at); }}},
      {"sentinel", {true, false, [](const Place& at) { return at.hole() ? -10000.0F : 0.0F; }}},
      {"lowest", {true, false, [](const Place& at) { return at.hole() ? at.lowest : 0.0F; }}},
  };
  return table;
}

}  // namespace

bool has_mask_pattern(const std::string& name, MaskKind kind) {
  const auto found = patterns().find(name);
  return found != patterns().end() && (kind == MaskKind::additive || !found->second.additive_only);
}

std::string mask_pattern_names(MaskKind kind) {
  std::string names;
  for (const auto& [name, pattern] : patterns()) {
    if (has_mask_pattern(name, kind)) names += (names.empty() ? "" : ", ") + name;
  }
  return names;
}

bool mask_pattern_needs_queries(const std::string& name) {
  return patterns().at(name).needs_queries;
}

int64_t left_padding(int64_t data) {
  return 2 * data + 1;
}

Dense<float> make_mask(const Case& c, const Moment& moment) {
  const Problem& p = c.problem;
  const MaskSpec& spec = c.inputs.mask;
  const Pattern& pattern = patterns().at(spec.pattern);
  int64_t keys = 0;
  for (size_t b = 0; b < moment.before.size(); ++b) keys = std::max(keys, moment.before[b] + moment.step.keys[b]);
  Dense<float> mask;
  mask.shape = {spec.batch ? p.batch : 1, spec.heads ? p.query_heads : 1, spec.queries ? moment.max_queries : 1, keys};
  mask.data.resize(static_cast<size_t>(mask.shape[0] * mask.shape[1] * mask.shape[2] * keys));
  const auto lowest = static_cast<float>(-info(p.dtype).largest);
  const PhiloxStream stream(static_cast<uint64_t>(c.inputs.seed), static_cast<uint32_t>(Role::mask));
  auto out = mask.data.begin();
  for (int64_t b = 0; b < mask.shape[0]; ++b) {
    const auto sequence = static_cast<size_t>(b);
    const int64_t data = !spec.batch ? 0 : c.inputs.slots.empty() ? b : c.inputs.slots[sequence];
    for (int64_t h = 0; h < mask.shape[1]; ++h) {
      for (int64_t i = 0; i < mask.shape[2]; ++i) {
        // A mask that is the same for all sequences has one position a query: that of the longest sequence.
        const int64_t total = spec.batch ? moment.before[sequence] + moment.step.keys[sequence] : keys;
        const int64_t queries = spec.batch ? moment.step.queries[sequence] : moment.max_queries;
        const int64_t position = spec.queries ? std::max<int64_t>(total - queries + i, 0) : 0;
        for (int64_t j = 0; j < keys; ++j) {
          const auto index = static_cast<uint64_t>(data) << 56 ^ static_cast<uint64_t>(h) << 44 ^
                             static_cast<uint64_t>(position) << 22 ^ static_cast<uint64_t>(j);
          const float value = pattern.value({data, h, position, j, stream.words(index)[0], lowest});
          *out++ = p.mask == MaskKind::boolean ? (value == 0 ? 1.0F : 0.0F) : round_to(p.dtype, value);
        }
      }
    }
  }
  return mask;
}

}  // namespace attest
