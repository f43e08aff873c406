// SPDX-License-Identifier: Apache-2.0
// Making packs: what is drawn from a secret, the parts of a case, and their goldens.
#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <exception>
#include <functional>
#include <map>
#include <mutex>
#include <numeric>
#include <thread>

#include "cases/philox.h"
#include "cases/sha256.h"
#include "golden/oracle.h"
#include "runner/challenge.h"
#include "runner/pack.h"
#include "runner/pack_slips.h"

namespace attest {
namespace fs = std::filesystem;
namespace {

constexpr int kAttempts = 12;        // draws until a fresh case notices every slip
constexpr int64_t kOwnSteps = 3;     // that continue each other, at least
constexpr int64_t kSingleSteps = 6;  // up to this many tokens come one by one
constexpr std::string_view kPublic = "attest: the visible case is the same for everybody";

/// HMAC-SHA256 (RFC 2104).
std::string hmac(std::string_view key, std::string_view message) {
  const auto raw = [](const std::string& hex) {
    std::string bytes;
    for (size_t i = 0; i < hex.size(); i += 2) bytes += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
    return bytes;
  };
  std::string block = key.size() > 64 ? raw(sha256(key)) : std::string(key);
  block.resize(64, '\0');
  std::string inner = block, outer = block;
  for (char& byte : inner) byte = static_cast<char>(byte ^ 0x36);
  for (char& byte : outer) byte = static_cast<char>(byte ^ 0x5c);
  return raw(sha256(outer + raw(sha256(inner + std::string(message)))));
}

/// Numbers that follow from a key and a label, and that nobody without the key can tell.
class Draws {
 public:
  Draws(std::string_view key, const std::string& label) : stream_(seed(hmac(key, label)), 0) {}

  /// lo to hi, both included.
  int64_t number(int64_t lo, int64_t hi) {
    return lo + static_cast<int64_t>(stream_.words(next_++)[0] % static_cast<uint64_t>(hi - lo + 1));
  }
  /// -1 to 1, on a grid of 2^-23.
  float uniform() {
    return static_cast<float>(static_cast<int64_t>(stream_.words(next_++)[0] >> 8) - (int64_t{1} << 23)) * 0x1p-23F;
  }
  /// Nearly normal, standard deviation 0.816.
  float normal() { return stream_.normal(next_++); }

 private:
  static uint64_t seed(const std::string& bytes) {
    uint64_t seed = 0;
    for (size_t i = 0; i < 8; ++i) seed = seed << 8 | static_cast<unsigned char>(bytes[i]);
    return seed;
  }
  PhiloxStream stream_;
  uint64_t next_ = 0;
};

/// Inputs of the layer for some tokens of every sequence: [B, tokens, d_model] each.
struct Tokens {
  Dense<float> query, key, value;
};

/// One case of the challenge with all its numbers.
struct Plan {
  int number = 0;
  std::string name, category, about;
  double weight = 0;
  bool hidden = true;
  int64_t heads = 1, head_dim = 1, capacity = 0;
  bool causal = true;
  Tokens tokens;
  Dense<float> cached_keys, cached_values;  ///< [B, L, H, D]; L may be 0.
  Tokens prefix;                            ///< The tokens whose keys and values these are; or empty.
  Tokens more;                              ///< That come behind the case's own, where these are too few.
  Weights weights;
  std::vector<int64_t> chunks;  ///< How the steps of "own cache" share out its tokens; empty: no such part.

  [[nodiscard]] int64_t batch() const { return tokens.query.shape[0]; }
  [[nodiscard]] int64_t d_model() const { return heads * head_dim; }
  [[nodiscard]] int64_t cached() const { return cached_keys.shape.empty() ? 0 : cached_keys.shape[1]; }
};

Dense<float> empty_tensor(std::vector<int64_t> shape) {
  const int64_t count = std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
  return {std::move(shape), std::vector<float>(static_cast<size_t>(count))};
}

/// Axis 1 from `begin` on.
Dense<float> slice(const Dense<float>& from, int64_t begin, int64_t count) {
  Dense<float> to;
  to.shape = from.shape;
  to.shape[1] = count;
  const int64_t width = static_cast<int64_t>(from.data.size()) / (from.shape[0] * from.shape[1]);
  for (int64_t b = 0; b < from.shape[0]; ++b) {
    const auto first = from.data.begin() + (b * from.shape[1] + begin) * width;
    to.data.insert(to.data.end(), first, first + count * width);
  }
  return to;
}

Tokens slice(const Tokens& from, int64_t begin, int64_t count) {
  return {slice(from.query, begin, count), slice(from.key, begin, count), slice(from.value, begin, count)};
}

/// Side by side along axis 1.
Dense<float> join(const Dense<float>& one, const Dense<float>& other) {
  if (one.data.empty()) return other;
  if (other.data.empty()) return one;
  Dense<float> all;
  all.shape = one.shape;
  all.shape[1] += other.shape[1];
  for (int64_t b = 0; b < one.shape[0]; ++b) {
    for (const auto* part : {&one, &other}) {
      const auto width = static_cast<int64_t>(part->data.size()) / part->shape[0];
      all.data.insert(all.data.end(), part->data.begin() + b * width, part->data.begin() + (b + 1) * width);
    }
  }
  return all;
}

Tokens join(const Tokens& one, const Tokens& other) {
  return {join(one.query, other.query), join(one.key, other.key), join(one.value, other.value)};
}

/// What the step has put into the cache, in f32: [B, tokens, H, D].
Dense<float> cached_by(const GoldenTensor& made, int64_t batch) {
  return {{batch, made.shape[0] / batch, made.shape[1], made.shape[2]},
          std::vector<float>(made.value.begin(), made.value.end())};
}

// Values that show a slip: queries, keys and values of different numbers, values loud at every other position so that
// a key lost or gained at an edge counts, logits some units apart so that a scale counts and no key has it all.

/// Values at position `first` and on are loud and quiet in turn.
void make_loud(Dense<float>& value, int64_t first) {
  const int64_t width = static_cast<int64_t>(value.data.size()) / (value.shape[0] * value.shape[1]);
  for (size_t i = 0; i < value.data.size(); ++i) {
    const int64_t token = static_cast<int64_t>(i) / width % value.shape[1];
    value.data[i] *= (first + token) % 2 != 0 ? 2.5F : 0.5F;
  }
}

Dense<float> drawn(Draws draws, std::vector<int64_t> shape) {
  Dense<float> tensor = empty_tensor(std::move(shape));
  for (float& x : tensor.data) x = draws.normal();
  return tensor;
}

Tokens drawn_tokens(std::string_view key, const std::string& label, const std::vector<int64_t>& shape, int64_t first) {
  Tokens tokens{drawn({key, label + " query"}, shape), drawn({key, label + " key"}, shape),
                drawn({key, label + " value"}, shape)};
  make_loud(tokens.value, first);
  return tokens;
}

/// `steep`: logits are near 150, where exp without its maximum is infinite in f32.
Weights drawn_weights(std::string_view key, const std::string& label, int64_t heads, int64_t head_dim, bool steep) {
  const int64_t d_model = heads * head_dim;
  // Of normal inputs, a projection with gain g has elements of standard deviation 0.8 g, and logits of 0.67 g^2.
  const auto matrix = [&](const char* name, double gain) {
    Draws draws(key, label + " " + name);
    const auto bound = static_cast<float>(gain * std::sqrt(3.0 / static_cast<double>(d_model)));
    Dense<float> weight = empty_tensor({d_model, d_model});
    for (float& x : weight.data) x = bound * draws.uniform();
    return weight;
  };
  const auto bias = [&](const char* name, float bound) {
    Draws draws(key, label + " " + name);
    Dense<float> tensor = empty_tensor({d_model});
    for (float& x : tensor.data) x = bound * draws.uniform();
    return tensor;
  };
  Weights w;
  w.q = matrix("query weight", steep ? 1.0 : 1.75);
  w.k = matrix("key weight", steep ? 0.25 : 1.75);
  w.v = matrix("value weight", 1.25);
  w.out = matrix("output weight", 1.25);
  w.q_bias = bias("query bias", 0.5F);
  w.k_bias = bias("key bias", 0.5F);
  w.v_bias = bias("value bias", 0.5F);
  w.out_bias = bias("output bias", 0.5F);
  if (steep) {
    // Equal for all keys of a query, so that nothing but their size changes.
    const auto size = static_cast<float>(std::sqrt(150.0 / std::sqrt(static_cast<double>(head_dim))));
    for (auto* tensor : {&w.q_bias, &w.k_bias}) {
      for (size_t i = 0; i < tensor->data.size(); ++i) tensor->data[i] += i % 2 == 0 ? size : -size;
    }
  }
  return w;
}

const char* category_of(int64_t number) {
  static constexpr std::array<const char*, 11> kCategories{"Other",
                                                           "Basic attention without cache",
                                                           "Attention with cached context",
                                                           "Multi-batch attention",
                                                           "No causal mask",
                                                           "Single head attention",
                                                           "Many heads attention",
                                                           "Long sequence",
                                                           "Incremental generation",
                                                           "Large batch stress test",
                                                           "Single token generation"};
  return kCategories[static_cast<size_t>(number >= 1 && number <= 10 ? number : 0)];
}

/// The parts of a plan, one after the other: later ones need what the oracle says of earlier ones.
class Parts {
 public:
  explicit Parts(const Plan& plan) : plan_(plan), keys_(plan.cached_keys), values_(plan.cached_values) {}

  std::vector<PackCase> make() {
    const int64_t queries = plan_.tokens.query.shape[1];
    std::vector<PackCase> parts;
    if (!plan_.chunks.empty()) parts = in_steps();
    Inputs inputs = start();
    Json steps = Json::array();
    load(inputs, steps, keys_, values_);
    attend(inputs, steps, plan_.tokens);
    const std::vector<std::string> clauses = keys_.data.empty()
                                                 ? std::vector<std::string>{"L3", "A3", plan_.causal ? "M3" : "A2"}
                                                 : std::vector<std::string>{"P8", "L4", plan_.causal ? "M3" : "A2"};
    parts.insert(parts.begin(), finish("whole", "whole", fmt::format("{} tokens at once. {}", queries, plan_.about),
                                       clauses, std::move(inputs), steps));
    return parts;
  }

 private:
  [[nodiscard]] Inputs start() const {
    Inputs inputs;
    inputs.weights = plan_.weights;
    return inputs;
  }

  static void load(Inputs& inputs, Json& steps, const Dense<float>& keys, const Dense<float>& values) {
    if (keys.data.empty()) return;
    steps.push_back({{"load", keys.shape[1]}});
    inputs.steps.push_back({{}, keys, values, {}});
  }
  static void attend(Inputs& inputs, Json& steps, const Tokens& tokens) {
    steps.push_back({{"attend", tokens.query.shape[1]}});
    if (tokens.key.shape[1] != tokens.query.shape[1]) steps.back()["keys"] = tokens.key.shape[1];
    inputs.steps.push_back({tokens.query, tokens.key, tokens.value, {}});
  }

  /// "own cache" and "canonical cache".
  std::vector<PackCase> in_steps() {
    const Tokens all = join(plan_.tokens, plan_.more);
    const bool prefilled = !plan_.prefix.query.data.empty();
    Inputs inputs = start();
    Json steps = Json::array();
    if (prefilled) {
      attend(inputs, steps, plan_.prefix);
    } else {
      load(inputs, steps, keys_, values_);
    }
    std::vector<Tokens> chunks;
    int64_t done = 0;
    for (const int64_t count : plan_.chunks) {
      chunks.push_back(slice(all, done, count));
      attend(inputs, steps, chunks.back());
      done += count;
    }
    std::vector<PackCase> parts;
    parts.push_back(
        finish("own cache", "own",
               fmt::format("Each step continues from the cache that the one before returned. {}", plan_.about),
               {"P1", "C1", plan_.causal ? "M3" : "A2"}, std::move(inputs), steps));
    const Golden golden = parts.back().golden;
    const auto take = [&](size_t s, Dense<float>& keys, Dense<float>& values) {
      keys = join(keys, cached_by(golden.steps[s].cache_key, plan_.batch()));
      values = join(values, cached_by(golden.steps[s].cache_value, plan_.batch()));
    };
    if (prefilled) take(0, keys_, values_);

    inputs = start();
    steps = Json::array();
    std::vector<int64_t> everyone(static_cast<size_t>(plan_.batch()));
    std::iota(everyone.begin(), everyone.end(), int64_t{0});
    Dense<float> keys = keys_, values = values_;
    for (size_t i = 0; i < chunks.size(); ++i) {
      if (i > 0) {
        steps.push_back({{"reset", everyone}});
        inputs.steps.emplace_back();
      }
      load(inputs, steps, keys, values);
      attend(inputs, steps, chunks[i]);
      take(i + 1, keys, values);
    }
    parts.push_back(finish("canonical cache", "canonical",
                           fmt::format("Each step is given a right cache. {}", plan_.about),
                           {"P8", "M2", plan_.causal ? "M3" : "A2"}, std::move(inputs), steps));
    return parts;
  }

  [[nodiscard]] PackCase finish(const std::string& part, const char* slug, const std::string& about,
                                const std::vector<std::string>& clauses, Inputs inputs, const Json& steps) const {
    const Json json{{"id", fmt::format("{}_{:02}_{}", plan_.hidden ? "hidden" : "visible", plan_.number, slug)},
                    {"about", about},
                    {"clauses", clauses},
                    {"kills", Json::array()},
                    {"problem",
                     {{"level", "layer"},
                      {"batch", plan_.batch()},
                      {"query_heads", plan_.heads},
                      {"head_dim", plan_.head_dim},
                      {"d_model", plan_.d_model()},
                      {"bias", true},
                      {"causal", plan_.causal ? "bottom_right" : "none"},
                      {"cache", "contiguous"},
                      {"capacity", plan_.capacity}}},
                    {"inputs", {{"given", hash(inputs)}, {"self", false}}},
                    {"steps", steps}};
    PackCase one;
    one.number = plan_.number;
    one.name = plan_.name;
    one.category = plan_.category;
    one.weight = plan_.weight;
    one.hidden = plan_.hidden;
    one.part = part;
    auto c =
        std::make_shared<Case>(case_from_json(json, "challenge", fmt::format("case {} of the pack", plan_.number)));
    c->file = "pack.json";
    OracleResult result = compute_golden(*c, play(*c), inputs);
    check_binding(*c, inputs, result.golden);
    one.golden = std::move(result.golden);
    one.worst_radius = result.worst_radius;
    one.inputs = std::make_shared<Inputs>(std::move(inputs));
    one.c = std::move(c);
    return one;
  }

  const Plan& plan_;
  Dense<float> keys_, values_;  ///< Of the cached tokens.
};

/// What no element shows, as a line for a person; empty: nothing.
std::string unnoticed(const std::vector<PackCase>& parts) {
  for (const PackCase& one : parts) {
    const auto names = unnoticed_slips(*one.c, *one.inputs, one.golden);
    if (names.empty()) continue;
    std::string list;
    for (const std::string& name : names) list += (list.empty() ? "" : ", ") + name;
    return fmt::format("{} case {}, {}: does not show: {}", one.hidden ? "hidden" : "visible", one.number, one.part,
                       list);
  }
  return {};
}

/// Shares `count` tokens out: one by one where there are few, else in as many steps with a chunk among them.
std::vector<int64_t> shared_out(int64_t count, Draws draws) {
  if (count <= kSingleSteps) return std::vector<int64_t>(static_cast<size_t>(count), 1);
  std::vector<int64_t> chunks(static_cast<size_t>(kOwnSteps + 1), 1);
  for (int64_t rest = count - kOwnSteps - 1; rest > 0; --rest)
    ++chunks[static_cast<size_t>(draws.number(0, kOwnSteps))];
  return chunks;
}

struct FreshShape {
  std::array<int64_t, 2> batch, heads, head_dim, cached, tokens;
  double weight;
};

/// Inclusive ranges; a case of no cache has none. Weights are those of the organisers' file.
constexpr std::array<FreshShape, 10> kFresh{{{{1, 2}, {2, 4}, {5, 11}, {0, 0}, {4, 7}, 10},
                                             {{1, 3}, {2, 4}, {5, 11}, {4, 9}, {3, 5}, 15},
                                             {{3, 6}, {3, 5}, {5, 9}, {0, 0}, {6, 9}, 10},
                                             {{1, 3}, {2, 4}, {5, 11}, {0, 0}, {5, 8}, 10},
                                             {{2, 3}, {1, 1}, {16, 36}, {0, 0}, {4, 7}, 5},
                                             {{1, 2}, {8, 13}, {4, 6}, {0, 0}, {8, 12}, 10},
                                             {{1, 1}, {3, 5}, {5, 9}, {0, 0}, {57, 73}, 10},
                                             {{1, 2}, {2, 4}, {5, 11}, {7, 13}, {4, 6}, 15},
                                             {{12, 17}, {3, 5}, {7, 11}, {0, 0}, {7, 11}, 5},
                                             {{1, 3}, {3, 5}, {5, 9}, {15, 24}, {1, 1}, 10}}};

Plan fresh_plan(std::string_view key, int number, int attempt) {
  const FreshShape& range = kFresh[static_cast<size_t>(number - 1)];
  const std::string label = fmt::format("fresh case {} draw {}", number, attempt);
  Draws draws(key, label);
  const auto pick = [&](const std::array<int64_t, 2>& r) { return draws.number(r[0], r[1]); };
  Plan plan;
  plan.number = number;
  plan.name = plan.category = category_of(number);
  plan.weight = range.weight;
  plan.heads = pick(range.heads);
  plan.head_dim = pick(range.head_dim);
  plan.causal = number != 4;
  const int64_t batch = pick(range.batch), cached = pick(range.cached), tokens = pick(range.tokens);
  const int64_t d_model = plan.d_model();
  plan.tokens = drawn_tokens(key, label, {batch, tokens, d_model}, cached);
  plan.weights = drawn_weights(key, label, plan.heads, plan.head_dim, number == 6);
  plan.capacity = cached + tokens + draws.number(3, 90);
  plan.about = plan.name + ".";
  if (cached == 0) return plan;
  int64_t more = std::max<int64_t>(0, kOwnSteps + draws.number(0, 2) - tokens);
  if (more > 0) plan.more = drawn_tokens(key, label + " more", {batch, more, d_model}, cached + tokens);
  plan.chunks = shared_out(tokens + more, {key, label + " chunks"});
  if (number == 10) plan.capacity = cached + tokens + more;  // filled to the last token
  if (number == 8) {
    plan.prefix = drawn_tokens(key, label + " prefix", {batch, cached, d_model}, 0);
    return plan;
  }
  plan.cached_keys = drawn({key, label + " cached keys"}, {batch, cached, plan.heads, plan.head_dim});
  plan.cached_values = drawn({key, label + " cached values"}, {batch, cached, plan.heads, plan.head_dim});
  for (float& x : plan.cached_keys.data) x *= 1.75F;
  make_loud(plan.cached_values, 0);
  return plan;
}

/// The visible case is public, and its weights too; a hidden one is the secret's.
std::string key_of(const ChallengeTest& test, bool hidden, std::string_view secret) {
  return hidden ? std::string(secret) : fmt::format("{}, seed {}", kPublic, test.seed);
}

Dense<float> filled(const ChallengeTensor& tensor, const ChallengeTensor* visible, const Dense<float>& made,
                    const std::string& place) {
  if (tensor.source == ChallengeValues::numbers) return {tensor.shape, tensor.data};
  if (tensor.source == ChallengeValues::generated) return made;
  if (visible == nullptr) throw Error::at(place, "takes the visible case's values: give its file (--visible)");
  if (visible->source != ChallengeValues::numbers) {
    throw Error::at(place, "takes the visible case's values, which are a placeholder themselves");
  }
  if (visible->shape != tensor.shape) {
    throw Error::at(place, "takes the visible case's values, which have another shape");
  }
  return {visible->shape, visible->data};
}

Dense<float> split(Dense<float> merged, const Plan& plan) {
  merged.shape = {merged.shape[0], merged.shape[1], plan.heads, plan.head_dim};
  return merged;
}

/// Fills one case of a file. `visible` is the visible case, `first` the whole of case 1, or null.
Plan filled_plan(const ChallengeTest& test, bool hidden, std::string_view secret, const ChallengeTest* visible,
                 const PackCase* first, int attempt) {
  const std::string key = key_of(test, hidden, secret);
  const std::string label = fmt::format("case {} draw {}", test.id, attempt);
  Plan plan;
  plan.number = static_cast<int>(test.id);
  plan.name = test.name;
  plan.category = hidden ? category_of(test.id) : test.name;
  plan.about = test.description;
  plan.weight = test.weight;
  plan.hidden = hidden;
  plan.heads = test.num_heads;
  plan.head_dim = test.head_dim();
  plan.capacity = test.max_cache_len;
  plan.causal = test.causal;
  const Tokens made = drawn_tokens(key, label, test.key.shape, test.cached());
  const Dense<float> queries =
      test.query.shape == test.key.shape ? made.query : drawn({key, label + " query"}, test.query.shape);
  const std::string place = test.place + ".inputs";
  plan.tokens = {filled(test.query, visible == nullptr ? nullptr : &visible->query, queries, place + ".query"),
                 filled(test.key, visible == nullptr ? nullptr : &visible->key, made.key, place + ".key"),
                 filled(test.value, visible == nullptr ? nullptr : &visible->value, made.value, place + ".value")};
  plan.weights = test.weights ? *test.weights : drawn_weights(key, label, plan.heads, plan.head_dim, false);
  if (test.cache && test.cache->first.source == ChallengeValues::from_test_1) {
    const Problem& p = first->c->problem;
    const GoldenStep& golden = first->golden.steps.back();
    plan.cached_keys = cached_by(golden.cache_key, p.batch);
    plan.cached_values = cached_by(golden.cache_value, p.batch);
    const std::vector<int64_t> wanted{test.batch(), test.cached(), plan.heads, plan.head_dim};
    if (first->inputs->steps.size() > 1 || plan.cached_keys.shape != wanted) {
      throw Error::at(place + ".cache", "takes the cache that case 1 returned, which has another shape");
    }
    if (!test.weights) plan.weights = first->inputs->weights;  // the same model goes on
  } else if (test.cache) {
    Dense<float> keys = drawn({key, label + " cached keys"}, test.cache->first.shape);
    Dense<float> values = drawn({key, label + " cached values"}, test.cache->first.shape);
    for (float& x : keys.data) x *= 1.75F;
    make_loud(values, 0);
    plan.cached_keys = split(filled(test.cache->first, nullptr, keys, place + ".cache.key"), plan);
    plan.cached_values = split(filled(test.cache->second, nullptr, values, place + ".cache.value"), plan);
  }
  if (!test.cache || test.queries() != test.keys()) return plan;
  const int64_t room = plan.capacity - test.cached() - test.keys();
  const int64_t more = std::clamp<int64_t>(kOwnSteps - test.keys(), 0, room);
  if (more > 0) {
    plan.more = drawn_tokens(key, label + " more", {test.batch(), more, plan.d_model()}, test.cached() + test.keys());
  }
  plan.chunks = shared_out(test.keys() + more, {key, label + " chunks"});
  return plan;
}

/// Where a file's expected numbers are not what the oracle says.
void compare_expected(const ChallengeTest& test, const PackCase& whole, std::vector<std::string>& warnings) {
  const bool output = test.output && test.output->source == ChallengeValues::numbers;
  const bool cache = test.expected_cache && test.expected_cache->first.source == ChallengeValues::numbers &&
                     test.expected_cache->second.source == ChallengeValues::numbers;
  if (!output && !cache) return;
  const GoldenStep& golden = whole.golden.steps.back();
  const auto hold = [&](const std::string& name, const std::vector<float>& given, size_t given_at,
                        const GoldenTensor& wanted, size_t at, size_t count) {
    for (size_t i = 0; i < count; ++i) {
      const auto got = static_cast<double>(given[given_at + i]);
      // They may be rounded to a few decimals.
      const double allowed = static_cast<double>(wanted.allowed[at + i]) + 1e-5 + 1e-5 * std::fabs(got);
      if (std::fabs(got - wanted.value[at + i]) <= allowed) continue;
      const std::string reason = test.weights ? "" : "; the file gives no weights, so that its numbers fit others";
      warnings.push_back(fmt::format("{}.expected.{}: element {} is {}, the oracle says {:.9g}, which is used{}",
                                     test.place, name, given_at + i, got, wanted.value[at + i], reason));
      return false;
    }
    return true;
  };
  const auto width = static_cast<size_t>(test.d_model);
  if (output && !hold("output", test.output->data, 0, golden.output, 0, golden.output.value.size())) return;
  if (!cache) return;
  const auto past = static_cast<size_t>(test.cached()), fresh = static_cast<size_t>(test.keys());
  for (size_t b = 0; b < static_cast<size_t>(test.batch()); ++b) {
    const size_t at = (b * (past + fresh) + past) * width;
    if (!hold("cache.key", test.expected_cache->first.data, at, golden.cache_key, b * fresh * width, fresh * width) ||
        !hold("cache.value", test.expected_cache->second.data, at, golden.cache_value, b * fresh * width,
              fresh * width)) {
      return;
    }
  }
}

/// Does every job on `jobs` threads; throws what the first of them threw.
void in_parallel(size_t count, int jobs, const std::function<void(size_t)>& job) {
  std::atomic<size_t> next{0};
  std::mutex mutex;
  std::exception_ptr failure;
  const auto work = [&] {
    for (size_t i = next++; i < count; i = next++) {
      try {
        job(i);
      } catch (...) {
        const std::lock_guard lock(mutex);
        if (!failure) failure = std::current_exception();
        next = count;
      }
    }
    release_oracle_thread();
  };
  std::vector<std::thread> threads;
  for (int t = 0; t < std::clamp<int>(jobs, 1, static_cast<int>(std::max<size_t>(1, count))); ++t) {
    threads.emplace_back(work);
  }
  for (std::thread& thread : threads) thread.join();
  if (failure) std::rethrow_exception(failure);
}

struct Filled {
  std::vector<PackCase> parts;
  std::vector<std::string> warnings;
};

/// Draws what the file leaves open until every slip shows. What the file itself has cannot be drawn again.
Filled fill(const ChallengeTest& test, bool hidden, std::string_view secret, const ChallengeTest* visible,
            const PackCase* first) {
  Filled filled;
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    filled.parts = Parts(filled_plan(test, hidden, secret, visible, first, attempt)).make();
    const std::string missed = unnoticed(filled.parts);
    if (missed.empty()) break;
    if (attempt + 1 == kAttempts || test.weights) {
      filled.warnings.push_back(missed);
      break;
    }
  }
  compare_expected(test, filled.parts.front(), filled.warnings);
  return filled;
}

bool takes_first(const ChallengeTest& test) {
  return test.cache && test.cache->first.source == ChallengeValues::from_test_1;
}

std::string_view text_of(std::span<const std::byte> secret) {
  return {reinterpret_cast<const char*>(secret.data()), secret.size()};
}

/// The cases of a file, in its order.
void add_file(Pack& pack, const ChallengeFile& file, const ChallengeTest* visible, std::string_view secret, int jobs) {
  std::vector<Filled> all(file.tests.size());
  std::vector<size_t> free, bound;
  const PackCase* first = nullptr;
  for (size_t i = 0; i < file.tests.size(); ++i) (takes_first(file.tests[i]) ? bound : free).push_back(i);
  const auto make = [&](const std::vector<size_t>& some) {
    in_parallel(some.size(), jobs,
                [&](size_t n) { all[some[n]] = fill(file.tests[some[n]], !file.visible, secret, visible, first); });
  };
  make(free);
  for (const size_t i : free) {
    if (file.tests[i].id == 1) first = &all[i].parts.front();
  }
  if (!bound.empty() && first == nullptr) {
    throw Error::at(file.tests[bound.front()].place + ".inputs.cache",
                    "takes the cache that case 1 returned, and there is no case 1 that could");
  }
  make(bound);
  for (Filled& filled : all) {
    for (PackCase& one : filled.parts) pack.cases.push_back(std::move(one));
    pack.warnings.insert(pack.warnings.end(), filled.warnings.begin(), filled.warnings.end());
  }
}

ChallengeFile read_kind(const fs::path& path, bool visible) {
  ChallengeFile file = read_challenge(path);
  if (file.visible != visible) {
    throw Error::at(path.string(), "has \"{}\", wanted \"{}\", as the file of {} has it",
                    file.visible ? "test_case" : "test_cases", visible ? "test_case" : "test_cases",
                    visible ? "the visible case" : "hidden cases");
  }
  return file;
}

}  // namespace

Pack make_pack(std::span<const std::byte> secret, const fs::path& visible, int jobs) {
  if (secret.empty()) throw Error::at("the secret", "is empty");
  Pack pack;
  if (!visible.empty()) add_file(pack, read_kind(visible, true), nullptr, text_of(secret), jobs);
  // The expensive ones first.
  constexpr std::array<int, 10> kOrder{9, 7, 3, 6, 8, 10, 2, 5, 4, 1};
  std::array<std::vector<PackCase>, 10> made;
  in_parallel(kOrder.size(), jobs, [&](size_t n) {
    const int number = kOrder[n];
    auto& parts = made[static_cast<size_t>(number - 1)];
    std::string missed = "-";
    for (int attempt = 0; attempt < kAttempts && !missed.empty(); ++attempt) {
      parts = Parts(fresh_plan(text_of(secret), number, attempt)).make();
      missed = unnoticed(parts);
    }
    if (!missed.empty()) throw Error(missed);
  });
  for (auto& parts : made) {
    for (PackCase& one : parts) pack.cases.push_back(std::move(one));
  }
  pack.id = pack_id(pack);
  return pack;
}

Pack fill_challenge(const fs::path& visible, const fs::path& hidden, std::span<const std::byte> secret, int jobs) {
  if (secret.empty()) throw Error::at("the secret", "is empty");
  if (visible.empty() && hidden.empty()) throw Error::at("the pack", "wanted a file of cases");
  Pack pack;
  ChallengeFile open;
  if (!visible.empty()) {
    open = read_kind(visible, true);
    add_file(pack, open, nullptr, text_of(secret), jobs);
  }
  if (!hidden.empty()) {
    add_file(pack, read_kind(hidden, false), open.tests.empty() ? nullptr : &open.tests.front(), text_of(secret), jobs);
  }
  pack.id = pack_id(pack);
  return pack;
}

}  // namespace attest
