// SPDX-License-Identifier: Apache-2.0
#include "runner/challenge.h"

#include "runner/fuzz/targets.h"

void attest::fuzz::challenge(std::string_view bytes) {
  try {
    const ChallengeFile file = challenge_from_json(parse_json(bytes, "fuzz"), "fuzz");
    for (const ChallengeTest& test : file.tests) {
      want(test.head_dim() * test.num_heads == test.d_model, "heads share the model's width");
      want(test.cached() + test.keys() <= test.max_cache_len, "the cache holds what comes");
    }
    const Json written = to_json(file);
    want(to_json(challenge_from_json(Json::parse(written.dump()), "fuzz, again")) == written,
         "a challenge file survives a round trip");
  } catch (const Error& error) {
    want(std::string_view(error.what()).substr(0, 11) != "fuzz, again", "what was written can be read");
  }
}
