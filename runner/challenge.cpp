// SPDX-License-Identifier: Apache-2.0
#include "runner/challenge.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <set>

namespace attest {
namespace {

constexpr int64_t kMaxTests = 100;
constexpr double kMaxNumber = 1e9;
constexpr int64_t kMaxElements = int64_t{1} << 22;
// Of a case the oracle computes every element with proof, and its noise model runs a hundred times.
constexpr int64_t kMaxWidth = 512, kMaxTokens = 4096;

constexpr std::array<std::pair<const char*, ChallengeValues>, 3> kPlaceholders{
    {{"_PLACEHOLDER_USE_VISIBLE_TEST_", ChallengeValues::visible},
     {"_TO_BE_GENERATED_", ChallengeValues::generated},
     {"_FROM_TEST_1_OUTPUT_", ChallengeValues::from_test_1}}};

const char* placeholder(ChallengeValues source) {
  for (const auto& [text, value] : kPlaceholders) {
    if (value == source) return text;
  }
  return "";
}

std::string shape_text(const std::vector<int64_t>& shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

int64_t count_in(Fields& fields, std::string_view name, int64_t least, int64_t most) {
  const auto value = fields.required<int64_t>(name);
  if (value < least || value > most) {
    throw Error::at(fields.place(name), "got {}, wanted {} to {}", value, least, most);
  }
  return value;
}

/// A string of the organisers: shown to graders, so no control characters and no novel.
std::string words_in(Fields& fields, std::string_view name, const std::string& otherwise = "") {
  auto text = fields.optional<std::string>(name, otherwise);
  if (text.size() > 2000) throw Error::at(fields.place(name), "has {} bytes, wanted at most 2000", text.size());
  const auto control = [](char letter) { return static_cast<unsigned char>(letter) < 0x20 && letter != '\n'; };
  if (std::any_of(text.begin(), text.end(), control)) throw Error::at(fields.place(name), "has a control character");
  return text;
}

std::vector<int64_t> shape_in(Fields& fields, size_t rank) {
  auto shape = fields.required<std::vector<int64_t>>("shape");
  const std::string place = fields.place("shape");
  if (shape.size() != rank) {
    throw Error::at(place, "got {}, wanted {} extents", shape_text(shape), rank);
  }
  double elements = 1;
  for (const int64_t extent : shape) {
    if (extent < 1 || extent > kMaxElements) throw Error::at(place, "got {}, wanted extents of 1 and more", extent);
    elements *= static_cast<double>(extent);
  }
  if (elements > static_cast<double>(kMaxElements)) {
    throw Error::at(place, "got {}, wanted at most {} elements", shape_text(shape), kMaxElements);
  }
  return shape;
}

/// Nested arrays of the shape's extents. As deep as the shape is long, which is three at most.
void read_numbers(const Json& json, const std::string& place, const std::vector<int64_t>& shape, size_t axis,
                  std::vector<float>& data) {
  if (axis == shape.size()) {
    if (!json.is_number()) throw Error::at(place, "got {}, wanted a number", json.type_name());
    const auto number = json.get<double>();
    if (!(std::fabs(number) <= kMaxNumber)) {
      throw Error::at(place, "got {}, wanted at most {:.0e} in size, so that a layer in f32 stays finite", json.dump(),
                      kMaxNumber);
    }
    data.push_back(static_cast<float>(number));
    return;
  }
  if (!json.is_array()) throw Error::at(place, "got {}, wanted an array: axis {} of the shape", json.type_name(), axis);
  if (json.size() != static_cast<size_t>(shape[axis])) {
    throw Error::at(place, "got {} entries, wanted {}: axis {} of the shape {}", json.size(), shape[axis], axis,
                    shape_text(shape));
  }
  for (size_t i = 0; i < json.size(); ++i) {
    read_numbers(json[i], fmt::format("{}[{}]", place, i), shape, axis + 1, data);
  }
}

ChallengeTensor tensor_in(const Json& json, const std::string& place, size_t rank = 3) {
  Fields fields(json, place);
  ChallengeTensor tensor;
  tensor.shape = shape_in(fields, rank);
  const Json& values = fields.at("values");
  if (values.is_string()) {
    const auto text = values.get<std::string>();
    const auto known =
        std::find_if(kPlaceholders.begin(), kPlaceholders.end(), [&](const auto& one) { return text == one.first; });
    if (known == kPlaceholders.end()) {
      throw Error::at(fields.place("values"), "got \"{:.60}\", wanted numbers, or \"{}\", \"{}\" or \"{}\"", text,
                      kPlaceholders[0].first, kPlaceholders[1].first, kPlaceholders[2].first);
    }
    tensor.source = known->second;
  } else {
    read_numbers(values, fields.place("values"), tensor.shape, 0, tensor.data);
  }
  fields.finish();
  return tensor;
}

ChallengeCache cache_in(const Json& json, const std::string& place) {
  Fields fields(json, place);
  ChallengeCache cache{tensor_in(fields.at("key"), fields.place("key")),
                       tensor_in(fields.at("value"), fields.place("value"))};
  fields.finish();
  return cache;
}

void want_shape(const ChallengeTensor& tensor, const std::vector<int64_t>& wanted, const std::string& place) {
  if (tensor.shape != wanted) {
    throw Error::at(place + ".shape", "got {}, wanted {}", shape_text(tensor.shape), shape_text(wanted));
  }
}

Weights weights_in(const Json& json, const std::string& place, int64_t d_model) {
  Fields fields(json, place);
  Weights weights;
  const auto read = [&](const char* name, Dense<float>& matrix, Dense<float>& bias) {
    Fields layer(fields.at(name), fields.place(name));
    ChallengeTensor w = tensor_in(layer.at("weight"), layer.place("weight"), 2);
    ChallengeTensor b = tensor_in(layer.at("bias"), layer.place("bias"), 1);
    want_shape(w, {d_model, d_model}, layer.place("weight"));
    want_shape(b, {d_model}, layer.place("bias"));
    if (w.data.empty() || b.data.empty()) throw Error::at(layer.place(), "wanted numbers, not a placeholder");
    layer.finish();
    matrix = {std::move(w.shape), std::move(w.data)};
    bias = {std::move(b.shape), std::move(b.data)};
  };
  read("q_proj", weights.q, weights.q_bias);
  read("k_proj", weights.k, weights.k_bias);
  read("v_proj", weights.v, weights.v_bias);
  read("out_proj", weights.out, weights.out_bias);
  fields.finish();
  return weights;
}

/// Where a placeholder may stand.
void allow(const ChallengeTensor& tensor, std::initializer_list<ChallengeValues> allowed, const std::string& place) {
  if (tensor.source == ChallengeValues::numbers) return;
  if (std::find(allowed.begin(), allowed.end(), tensor.source) != allowed.end()) return;
  throw Error::at(place + ".values", "got \"{}\", which has no meaning here", placeholder(tensor.source));
}

void read_config(Fields& fields, ChallengeTest& test) {
  Fields config(fields.object("config"), fields.place("config"));
  test.d_model = count_in(config, "d_model", 1, kMaxWidth);
  test.num_heads = count_in(config, "num_heads", 1, kMaxWidth);
  if (test.d_model % test.num_heads != 0) {
    throw Error::at(config.place("num_heads"), "got {}, wanted a divisor of d_model, which is {}", test.num_heads,
                    test.d_model);
  }
  test.max_cache_len = count_in(config, "max_cache_len", 1, kMaxElements);
  const auto dropout = config.required<double>("dropout");
  if (!(dropout >= 0 && dropout < 1)) throw Error::at(config.place("dropout"), "got {}, wanted 0 to 1", dropout);
  config.finish();
}

void read_inputs(Fields& fields, ChallengeTest& test) {
  Fields inputs(fields.object("inputs"), fields.place("inputs"));
  const auto read = [&](const char* name, ChallengeTensor& tensor) {
    tensor = tensor_in(inputs.at(name), inputs.place(name));
    allow(tensor, {ChallengeValues::visible, ChallengeValues::generated}, inputs.place(name));
    if (tensor.shape[1] > kMaxTokens) {
      throw Error::at(inputs.place(name) + ".shape", "got {} tokens, wanted at most {}", tensor.shape[1], kMaxTokens);
    }
  };
  read("query", test.query);
  read("key", test.key);
  read("value", test.value);
  want_shape(test.query, {test.batch(), test.queries(), test.d_model}, inputs.place("query"));
  want_shape(test.key, {test.batch(), test.keys(), test.d_model}, inputs.place("key"));
  want_shape(test.value, {test.batch(), test.keys(), test.d_model}, inputs.place("value"));
  const Json& cache = inputs.at("cache");
  const std::string place = inputs.place("cache");
  if (!cache.is_null()) {
    test.cache = cache_in(cache, place);
    const auto& [key, value] = *test.cache;
    for (const auto& [tensor, name] : {std::pair{&key, ".key"}, {&value, ".value"}}) {
      allow(*tensor, {ChallengeValues::generated, ChallengeValues::from_test_1}, place + name);
      want_shape(*tensor, {test.batch(), test.cached(), test.d_model}, place + name);
    }
    if (key.source != value.source) throw Error::at(place, "wanted numbers for both tensors, or the same placeholder");
  }
  if (test.cached() + test.keys() > test.max_cache_len) {
    throw Error::at(place, "has {} tokens, {} with the new ones, wanted at most {} (max_cache_len)", test.cached(),
                    test.cached() + test.keys(), test.max_cache_len);
  }
  test.causal = inputs.required<bool>("use_causal_mask");
  inputs.finish();
}

void read_expected(Fields& fields, ChallengeTest& test) {
  if (!fields.has("expected") || fields.at("expected").is_null()) return;
  Fields expected(fields.at("expected"), fields.place("expected"));
  if (expected.has("output") && !expected.at("output").is_null()) {
    test.output = tensor_in(expected.at("output"), expected.place("output"));
    allow(*test.output, {ChallengeValues::generated}, expected.place("output"));
    want_shape(*test.output, test.query.shape, expected.place("output"));
  }
  if (expected.has("cache") && !expected.at("cache").is_null()) {
    test.expected_cache = cache_in(expected.at("cache"), expected.place("cache"));
    const std::vector<int64_t> wanted{test.batch(), test.cached() + test.keys(), test.d_model};
    const auto& [key, value] = *test.expected_cache;
    for (const auto& [tensor, name] : {std::pair{&key, ".key"}, {&value, ".value"}}) {
      allow(*tensor, {ChallengeValues::generated}, expected.place("cache") + name);
      want_shape(*tensor, wanted, expected.place("cache") + name);
    }
  }
  expected.finish();
}

ChallengeTest test_in(const Json& json, const std::string& place) {
  Fields fields(json, place);
  ChallengeTest test;
  test.place = place;
  test.id = count_in(fields, "id", 1, 9999);
  test.name = words_in(fields, "name");
  test.description = words_in(fields, "description");
  test.weight = fields.required<double>("weight");
  if (!(test.weight >= 0 && test.weight <= 1e6)) {
    throw Error::at(fields.place("weight"), "got {}, wanted 0 or more", test.weight);
  }
  read_config(fields, test);
  test.seed = fields.required<int64_t>("seed");
  read_inputs(fields, test);
  read_expected(fields, test);
  if (fields.has("weights")) test.weights = weights_in(fields.at("weights"), fields.place("weights"), test.d_model);
  fields.finish();
  return test;
}

/// What the organisers' scoring says is theirs; ours are the weights of the cases. It must be numbers all the same.
void check_scoring(Fields& fields) {
  if (!fields.has("scoring")) return;
  for (const auto& [name, value] : fields.object("scoring").items()) {
    if (!value.is_number()) throw Error::at(fields.place("scoring") + "." + name, "wanted a number");
  }
}

Json nested(const std::vector<float>& data, const std::vector<int64_t>& shape, size_t axis, size_t& next) {
  // As a double, whose decimals are read back as the same float by any reader.
  if (axis == shape.size()) return static_cast<double>(data[next++]);
  Json list = Json::array();
  for (int64_t i = 0; i < shape[axis]; ++i) list.push_back(nested(data, shape, axis + 1, next));
  return list;
}

Json json_of(const ChallengeTensor& tensor) {
  size_t next = 0;
  return {{"shape", tensor.shape},
          {"values", tensor.source == ChallengeValues::numbers ? nested(tensor.data, tensor.shape, 0, next)
                                                               : Json(placeholder(tensor.source))}};
}

Json json_of(const ChallengeCache& cache) {
  return {{"key", json_of(cache.first)}, {"value", json_of(cache.second)}};
}

Json json_of(const Weights& w) {
  const auto layer = [](const Dense<float>& matrix, const Dense<float>& bias) {
    return Json{{"weight", json_of(ChallengeTensor{matrix.shape, {}, matrix.data})},
                {"bias", json_of(ChallengeTensor{bias.shape, {}, bias.data})}};
  };
  return {{"q_proj", layer(w.q, w.q_bias)},
          {"k_proj", layer(w.k, w.k_bias)},
          {"v_proj", layer(w.v, w.v_bias)},
          {"out_proj", layer(w.out, w.out_bias)}};
}

Json json_of(const ChallengeTest& test) {
  Json json{{"id", test.id},
            {"name", test.name},
            {"description", test.description},
            {"weight", test.weight},
            {"config",
             {{"d_model", test.d_model},
              {"num_heads", test.num_heads},
              {"max_cache_len", test.max_cache_len},
              {"dropout", 0.1}}},
            {"seed", test.seed},
            {"inputs",
             {{"query", json_of(test.query)},
              {"key", json_of(test.key)},
              {"value", json_of(test.value)},
              {"cache", test.cache ? json_of(*test.cache) : Json()},
              {"use_causal_mask", test.causal}}}};
  if (test.output) json["expected"]["output"] = json_of(*test.output);
  if (test.expected_cache) json["expected"]["cache"] = json_of(*test.expected_cache);
  if (test.weights) json["weights"] = json_of(*test.weights);
  return json;
}

}  // namespace

ChallengeFile challenge_from_json(const Json& json, const std::string& place) {
  Fields fields(json, place + ": the file");
  ChallengeFile file;
  file.description = words_in(fields, "description");
  file.note = words_in(fields, "note");
  file.visible = fields.has("test_case");
  if (file.visible == fields.has("test_cases")) {
    throw Error::at(place, "wanted \"test_case\", as the visible file has, or \"test_cases\", as the hidden one has");
  }
  if (file.visible) {
    file.tests.push_back(test_in(fields.at("test_case"), place + ": test_case"));
  } else {
    const size_t count = fields.array("test_cases").size();
    if (count == 0 || count > static_cast<size_t>(kMaxTests)) {
      throw Error::at(fields.place("test_cases"), "got {} cases, wanted 1 to {}", count, kMaxTests);
    }
    file.tests = fields.list("test_cases", test_in);
  }
  check_scoring(fields);
  fields.finish();
  std::set<int64_t> ids;
  for (const ChallengeTest& test : file.tests) {
    if (!ids.insert(test.id).second) throw Error::at(test.place + ".id", "got {} twice, wanted it once", test.id);
  }
  return file;
}

ChallengeFile read_challenge(const std::filesystem::path& file) {
  return challenge_from_json(read_json_file(file), file.string());
}

Json to_json(const ChallengeFile& file) {
  Json json{{"description", file.description}, {"note", file.note}};
  if (file.visible) {
    json["test_case"] = json_of(file.tests.front());
    return json;
  }
  json["test_cases"] = Json::array();
  for (const ChallengeTest& test : file.tests) json["test_cases"].push_back(json_of(test));
  return json;
}

}  // namespace attest
