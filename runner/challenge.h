// SPDX-License-Identifier: Apache-2.0
// The challenge's own case files, test_cases.json and test_cases_hidden.json, as they are: numbers, or placeholders
// that a pack fills (runner/pack.h). Read strictly: an error names the file, the field, what is there and what should.
//
//   const ChallengeFile file = read_challenge("test_cases_hidden.json");
//   file.tests[1].cache->first.source;     // ChallengeValues::from_test_1
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "cases/inputs.h"
#include "cases/json.h"

namespace attest {

/// Where a tensor's values come from.
enum class ChallengeValues : int {
  numbers,      ///< They are there.
  visible,      ///< "_PLACEHOLDER_USE_VISIBLE_TEST_": those of the visible case.
  generated,    ///< "_TO_BE_GENERATED_"
  from_test_1,  ///< "_FROM_TEST_1_OUTPUT_": the cache that case 1 returned.
};

struct ChallengeTensor {
  std::vector<int64_t> shape;
  ChallengeValues source = ChallengeValues::numbers;
  std::vector<float> data;  ///< Row-major; empty unless `source` is numbers.
};

/// Keys and values, merged: [batch, tokens, d_model] each.
using ChallengeCache = std::pair<ChallengeTensor, ChallengeTensor>;

struct ChallengeTest {
  std::string place;  ///< File and field, for messages.
  int64_t id = 0;
  std::string name, description;
  double weight = 0;
  int64_t d_model = 0, num_heads = 0, max_cache_len = 0;
  int64_t seed = 0;
  ChallengeTensor query, key, value;
  std::optional<ChallengeCache> cache;
  bool causal = true;
  std::optional<ChallengeTensor> output;         ///< Expected, if the file says anything of it.
  std::optional<ChallengeCache> expected_cache;  ///< Likewise.
  /// Of the four projections, in the names of Inputs. Our addition to the format: packs write it, so that their
  /// expected values mean something; the organisers' files have none.
  std::optional<Weights> weights;

  [[nodiscard]] int64_t batch() const { return query.shape[0]; }
  [[nodiscard]] int64_t queries() const { return query.shape[1]; }
  [[nodiscard]] int64_t keys() const { return key.shape[1]; }
  [[nodiscard]] int64_t cached() const { return cache ? cache->first.shape[1] : 0; }
  [[nodiscard]] int64_t head_dim() const { return d_model / num_heads; }
};

struct ChallengeFile {
  std::string description, note;
  bool visible = false;  ///< One "test_case", not "test_cases".
  std::vector<ChallengeTest> tests;
};

/// Throws Error on anything that is not such a file: unknown fields, wrong types, shapes that do not fit together,
/// numbers too large for f32, placeholders where there is nothing to take.
ChallengeFile challenge_from_json(const Json& json, const std::string& place);
ChallengeFile read_challenge(const std::filesystem::path& file);

/// The format again. Placeholders stay.
Json to_json(const ChallengeFile& file);

}  // namespace attest
