// SPDX-License-Identifier: Apache-2.0
#include "runner/pack.h"

#include <algorithm>
#include <limits>
#include <map>
#include <set>
#include <system_error>
#include <tuple>

#include "cases/json.h"
#include "cases/sha256.h"
#include "cases/timeline.h"
#include "golden/safetensors.h"
#include "runner/challenge.h"

namespace attest {
namespace fs = std::filesystem;
namespace {

constexpr const char* kSchema = "attest/pack/1";
constexpr int64_t kMaxParts = 1000;

/// A case of the kinds of steps that packs have, in the form that case_from_json reads.
Json case_json(const Case& c) {
  Json steps = Json::array();
  for (const Step& step : c.steps) {
    switch (step.kind) {
      case StepKind::attend: {
        Json attend{{"attend", step.queries}};
        if (step.keys != step.queries) attend["keys"] = step.keys;
        steps.push_back(std::move(attend));
        break;
      }
      case StepKind::load:
        steps.push_back({{"load", step.keys}});
        break;
      case StepKind::reset:
        steps.push_back({{"reset", step.sequences}});
        break;
      default:
        throw Error::at(c.id, "has a step that no pack has");
    }
  }
  return {{"id", c.id.substr(c.family.size() + 1)},
          {"about", c.about},
          {"clauses", c.clauses},
          {"kills", c.kills},
          {"problem", to_json(c.problem)},
          {"inputs", {{"given", c.inputs.given}, {"self", false}}},
          {"steps", steps}};
}

std::string file_name(const Case& c) {
  return c.id.substr(c.family.size() + 1) + ".safetensors";
}

/// What ties the pack together: hashed, it is the pack's id.
Json entries(const std::vector<PackCase>& cases, const std::vector<std::string>& hashes) {
  Json list = Json::array();
  for (size_t i = 0; i < cases.size(); ++i) {
    const PackCase& one = cases[i];
    list.push_back({{"number", one.number},
                    {"name", one.name},
                    {"category", one.category},
                    {"weight", one.weight},
                    {"hidden", one.hidden},
                    {"part", one.part},
                    {"case", case_json(*one.c)},
                    {"worst_radius", one.worst_radius},
                    {"file", file_name(*one.c)},
                    {"sha256", hashes[i]}});
  }
  return list;
}

std::string bytes_of(const PackCase& one) {
  return encode(*one.c, *one.inputs, one.golden, std::numeric_limits<size_t>::max());
}

Inputs decode_inputs(const SafetensorsFile& file, const std::string& place, const Case& c) {
  const Problem& p = c.problem;
  const auto read = [&](const std::string& name, const std::vector<int64_t>& shape) {
    if (file.shape("input." + name) != shape) {
      throw Error::at(place, "the tensor \"input.{}\" has not the shape that its case asks for", name);
    }
    return Dense<float>{shape, file.read<float>("input." + name, DType::f32)};
  };
  Inputs inputs;
  const Timeline timeline = play(c);
  for (size_t s = 0; s < timeline.size(); ++s) {
    const Moment& moment = timeline[s];
    StepInputs step;
    const std::string name = fmt::format("step{}.", s);
    if (moment.step.kind == StepKind::attend) {
      step.query = read(name + "query", {p.batch, moment.max_queries, p.d_model});
      step.key = read(name + "key", {p.batch, moment.max_keys, p.d_model});
      step.value = read(name + "value", {p.batch, moment.max_keys, p.d_model});
    } else if (moment.step.kind == StepKind::load) {
      step.key = read(name + "key", {p.batch, moment.max_keys, p.kv_heads, p.qk_head_dim});
      step.value = read(name + "value", {p.batch, moment.max_keys, p.kv_heads, p.v_head_dim});
    }
    inputs.steps.push_back(std::move(step));
  }
  Weights& w = inputs.weights;
  for (const auto& [weight, bias, name] : {std::tuple{&w.q, &w.q_bias, "q"},
                                           {&w.k, &w.k_bias, "k"},
                                           {&w.v, &w.v_bias, "v"},
                                           {&w.out, &w.out_bias, "out"}}) {
    *weight = read(fmt::format("{}_weight", name), {p.d_model, p.d_model});
    *bias = read(fmt::format("{}_bias", name), {p.d_model});
  }
  return inputs;
}

/// Packs are of layers as the challenge has them; what is read may be of no other kind.
void check_problem(const Case& c, const std::string& place) {
  const Problem& p = c.problem;
  const bool challenge = p.level == Level::layer && p.dtype == DType::f32 && p.query_heads == p.kv_heads &&
                         p.qk_head_dim == p.v_head_dim && p.d_model == p.query_heads * p.qk_head_dim && p.bias.all() &&
                         p.cache == CacheKind::contiguous && !p.quantised() && !p.scale && !p.lse && !p.packed &&
                         p.mask == MaskKind::none && !p.rope && p.norm_epsilon == 0 && !p.sinks && p.softcap == 0 &&
                         p.alibi == Alibi::none && !p.window_left && !p.window_right && p.causal != Causal::top_left &&
                         !c.inputs.given.empty();
  if (!challenge) throw Error::at(place, "is no problem of the challenge");
}

PackCase read_entry(const Json& json, const std::string& place, const fs::path& data, std::set<std::string>& files) {
  Fields fields(json, place);
  PackCase one;
  const auto number = fields.required<int64_t>("number");
  if (number < 1 || number > 9999) throw Error::at(fields.place("number"), "got {}, wanted 1 to 9999", number);
  one.number = static_cast<int>(number);
  one.name = fields.required<std::string>("name");
  one.category = fields.required<std::string>("category");
  one.weight = fields.required<double>("weight");
  if (!(one.weight >= 0 && one.weight <= 1e6)) throw Error::at(fields.place("weight"), "got {}", one.weight);
  one.hidden = fields.required<bool>("hidden");
  one.part = fields.required<std::string>("part");
  auto c = std::make_shared<Case>(case_from_json(fields.at("case"), "challenge", fields.place("case")));
  c->file = data.parent_path() / "pack.json";
  check_problem(*c, fields.place("case.problem"));
  one.worst_radius = fields.required<double>("worst_radius");
  const auto name = fields.required<std::string>("file");
  if (name != file_name(*c)) throw Error::at(fields.place("file"), "got \"{}\", wanted \"{}\"", name, file_name(*c));
  if (!files.insert(name).second) throw Error::at(fields.place("file"), "got \"{}\" twice, wanted it once", name);
  const auto wanted = fields.required<std::string>("sha256");
  fields.finish();
  const std::string path = (data / name).string();
  std::string bytes = read_file(path);
  if (const std::string got = sha256(bytes); got != wanted) {
    throw Error::at(path, "has changed: SHA-256 {:.12}..., pack.json says {:.12}...", got, wanted);
  }
  const SafetensorsFile file(std::move(bytes), path);
  one.golden = decode_golden(file, path, *c);
  one.inputs = std::make_shared<Inputs>(decode_inputs(file, path, *c));
  if (const std::string got = hash(*one.inputs); got != c->inputs.given) {
    throw Error::at(path, "its inputs are not those of its case: {:.12}..., wanted {:.12}...", got, c->inputs.given);
  }
  one.c = std::move(c);
  return one;
}

/// Merged, as the challenge has caches: heads side by side.
ChallengeTensor merged(const Dense<float>& tensor) {
  return {{tensor.shape[0], tensor.shape[1], tensor.shape[2] * tensor.shape[3]}, ChallengeValues::numbers, tensor.data};
}

ChallengeTensor plain(const Dense<float>& tensor) {
  return {tensor.shape, ChallengeValues::numbers, tensor.data};
}

/// A whole case in the organisers' format, with what is expected of it.
ChallengeTest challenge_test(const PackCase& one) {
  const Problem& p = one.c->problem;
  const StepInputs& in = one.inputs->steps.back();
  const GoldenStep& golden = one.golden.steps.back();
  ChallengeTest test;
  test.id = test.seed = one.number;
  test.name = one.name;
  test.description = one.c->about;
  test.weight = one.weight;
  test.d_model = p.d_model;
  test.num_heads = p.query_heads;
  test.max_cache_len = p.capacity;
  test.query = plain(in.query);
  test.key = plain(in.key);
  test.value = plain(in.value);
  test.causal = p.causal != Causal::none;
  test.weights = one.inputs->weights;
  const auto numbers = [](const std::vector<double>& values) {
    return std::vector<float>(values.begin(), values.end());
  };
  test.output = ChallengeTensor{in.query.shape, ChallengeValues::numbers, numbers(golden.output.value)};
  const auto expect = [&](const GoldenTensor& made, const Dense<float>* loaded) {
    const std::vector<float> fresh = numbers(made.value);
    const int64_t past = loaded == nullptr ? 0 : loaded->shape[1];
    ChallengeTensor all{{p.batch, past + test.keys(), p.d_model}, ChallengeValues::numbers, {}};
    for (int64_t b = 0; b < p.batch; ++b) {
      const int64_t old_width = past * p.d_model, width = test.keys() * p.d_model;
      if (past > 0) {
        all.data.insert(all.data.end(), loaded->data.begin() + b * old_width,
                        loaded->data.begin() + (b + 1) * old_width);
      }
      all.data.insert(all.data.end(), fresh.begin() + b * width, fresh.begin() + (b + 1) * width);
    }
    return all;
  };
  const StepInputs* load = one.inputs->steps.size() > 1 ? &one.inputs->steps.front() : nullptr;
  if (load != nullptr) test.cache = ChallengeCache{merged(load->key), merged(load->value)};
  test.expected_cache = ChallengeCache{expect(golden.cache_key, load == nullptr ? nullptr : &load->key),
                                       expect(golden.cache_value, load == nullptr ? nullptr : &load->value)};
  return test;
}

void write_challenge(const Pack& pack, const fs::path& dir) {
  for (const bool hidden : {false, true}) {
    ChallengeFile file;
    file.visible = !hidden;
    file.description = hidden ? "Hidden cases with everything filled in" : "The visible case with everything filled in";
    file.note = fmt::format("Pack {}. Holds the answers: for graders only.", pack.id);
    for (const PackCase& one : pack.cases) {
      if (one.hidden == hidden && one.part == "whole") file.tests.push_back(challenge_test(one));
    }
    if (file.tests.empty()) continue;
    write_file(dir / (hidden ? "test_cases_hidden.json" : "test_cases.json"), to_json(file).dump() + "\n");
  }
}

}  // namespace

std::vector<std::byte> read_secret(const fs::path& file) {
  const std::string bytes = read_file(file);
  if (bytes.size() < 16) {
    throw Error::at(file.string(), "has {} bytes, wanted a secret of 16 or more: head -c 32 /dev/urandom > {}",
                    bytes.size(), file.string());
  }
  if (std::all_of(bytes.begin(), bytes.end(), [&](char byte) { return byte == bytes[0]; })) {
    throw Error::at(file.string(), "has {} equal bytes, wanted a secret", bytes.size());
  }
  std::vector<std::byte> secret(bytes.size());
  std::transform(bytes.begin(), bytes.end(), secret.begin(), [](char byte) { return static_cast<std::byte>(byte); });
  return secret;
}

std::string pack_id(const Pack& pack) {
  std::vector<std::string> hashes;
  for (const PackCase& one : pack.cases) hashes.push_back(sha256(bytes_of(one)));
  return sha256(entries(pack.cases, hashes).dump()).substr(0, 16);
}

void write_pack(const Pack& pack, const fs::path& dir) {
  std::error_code none;
  if (fs::exists(dir, none) && !(fs::is_directory(dir, none) && fs::is_empty(dir, none))) {
    throw Error::at(dir.string(), "is there already, wanted a new or empty folder");
  }
  std::error_code failed;
  fs::create_directories(dir / "data", failed);
  if (!failed) fs::create_directories(dir / "challenge", failed);
  // It holds the answers.
  if (!failed) fs::permissions(dir, fs::perms::owner_all, failed);
  if (failed) throw Error::at(dir.string(), "cannot be made: {}", failed.message());
  std::vector<std::string> hashes;
  for (const PackCase& one : pack.cases) {
    const std::string bytes = bytes_of(one);
    hashes.push_back(sha256(bytes));
    write_file(dir / "data" / file_name(*one.c), bytes);
  }
  write_challenge(pack, dir / "challenge");
  // Last, so that a pack that is not whole is none.
  const Json json{
      {"schema", kSchema}, {"id", pack.id}, {"warnings", pack.warnings}, {"cases", entries(pack.cases, hashes)}};
  write_file(dir / "pack.json", json.dump(1) + "\n");
}

Pack read_pack(const fs::path& dir) {
  const fs::path path = dir / "pack.json";
  std::error_code none;
  if (!fs::exists(path, none)) {
    throw Error::at(dir.string(), "is no pack: pack.json is not there; `attest pack make` makes one");
  }
  const Json json = read_json_file(path);
  Fields fields(json, path.string());
  if (const auto schema = fields.required<std::string>("schema"); schema != kSchema) {
    throw Error::at(fields.place("schema"), "got \"{}\", wanted \"{}\"", schema, kSchema);
  }
  Pack pack;
  pack.id = fields.required<std::string>("id");
  pack.warnings = fields.required<std::vector<std::string>>("warnings");
  const Json& list = fields.array("cases");
  fields.finish();
  if (list.empty() || list.size() > static_cast<size_t>(kMaxParts)) {
    throw Error::at(fields.place("cases"), "got {} entries, wanted 1 to {}", list.size(), kMaxParts);
  }
  if (const std::string got = sha256(list.dump()).substr(0, 16); got != pack.id) {
    throw Error::at(fields.place("id"), "got \"{}\", but the cases have \"{}\": the pack has changed", pack.id, got);
  }
  std::set<std::string> files;
  pack.cases = fields.list("cases", [&](const Json& element, const std::string& place) {
    return read_entry(element, place, dir / "data", files);
  });
  for (const auto& entry : fs::directory_iterator(dir / "data")) {
    if (!files.contains(entry.path().filename().string())) {
      throw Error::at(entry.path().string(), "is in no case of pack.json");
    }
  }
  return pack;
}

Subject subject_of(const PackCase& one) {
  return {one.c.get(), one.golden, one.worst_radius, one.c->inputs.given, one.inputs};
}

#ifndef ATTEST_HAS_ORACLE
namespace {
Error no_oracle() {
  return Error::at("pack make", "this program was built without Arb, which makes goldens; it can only read packs");
}
}  // namespace
Pack make_pack(std::span<const std::byte>, const fs::path&, int) {
  throw no_oracle();
}
Pack fill_challenge(const fs::path&, const fs::path&, std::span<const std::byte>, int) {
  throw no_oracle();
}
#endif

}  // namespace attest
