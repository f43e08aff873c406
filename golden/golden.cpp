// SPDX-License-Identifier: Apache-2.0
#include "golden/golden.h"

#include <algorithm>

#include "cases/inputs.h"
#include "cases/sha256.h"
#include "cases/timeline.h"
#include "golden/safetensors.h"

namespace attest {
namespace fs = std::filesystem;
namespace {

void add(SafetensorsWriter& writer, const std::string& name, const GoldenTensor& tensor) {
  if (tensor.empty()) return;
  writer.add(name, DType::f64, tensor.shape, tensor.value);
  writer.add(name + ".allowed", DType::f32, tensor.shape, tensor.allowed);
  if (std::any_of(tensor.mark.begin(), tensor.mark.end(), [](Mark mark) { return mark != Mark::proven; })) {
    writer.add(name + ".mark", DType::u8, tensor.shape, tensor.mark);
  }
}

GoldenTensor read_tensor(const SafetensorsFile& file, const std::string& name, const std::string& place,
                         const std::vector<int64_t>& wanted) {
  GoldenTensor tensor;
  tensor.shape = file.shape(name);
  if (tensor.shape != wanted || file.shape(name + ".allowed") != wanted) {
    throw Error::at(place, "the tensor \"{}\" has not the shape that its case asks for", name);
  }
  tensor.value = file.read<double>(name, DType::f64);
  tensor.allowed = file.read<float>(name + ".allowed", DType::f32);
  if (file.has(name + ".mark")) {
    if (file.shape(name + ".mark") != wanted) {
      throw Error::at(place, "the tensor \"{}.mark\" has not the shape that its case asks for", name);
    }
    for (const uint8_t mark : file.read<uint8_t>(name + ".mark", DType::u8)) {
      if (mark > static_cast<uint8_t>(Mark::zero)) {
        throw Error::at(place, "the tensor \"{}.mark\" has the mark {}, which there is not", name, mark);
      }
      tensor.mark.push_back(static_cast<Mark>(mark));
    }
  }
  tensor.mark.resize(tensor.value.size(), Mark::proven);
  return tensor;
}

void add_inputs(SafetensorsWriter& writer, const Inputs& inputs, size_t most) {
  size_t bytes = 0;
  std::vector<std::pair<std::string, const Dense<float>*>> tensors;
  for (size_t i = 0; i < inputs.steps.size(); ++i) {
    const StepInputs& step = inputs.steps[i];
    tensors.emplace_back(fmt::format("input.step{}.query", i), &step.query);
    tensors.emplace_back(fmt::format("input.step{}.key", i), &step.key);
    tensors.emplace_back(fmt::format("input.step{}.value", i), &step.value);
    tensors.emplace_back(fmt::format("input.step{}.mask", i), &step.mask);
  }
  for (const auto& [name, tensor] : named(inputs.weights)) tensors.emplace_back(std::string("input.") + name, tensor);
  tensors.emplace_back("input.key_scale", &inputs.key_scale);
  tensors.emplace_back("input.value_scale", &inputs.value_scale);
  for (const auto& [name, tensor] : tensors) bytes += tensor->data.size() * sizeof(float);
  if (bytes > most) return;
  for (const auto& [name, tensor] : tensors) {
    if (!tensor->data.empty()) writer.add(name, DType::f32, tensor->shape, tensor->data);
  }
}

std::vector<int32_t> wanted_rows(const Case& c, const Moment& moment) {
  std::vector<int32_t> rows;
  for (const size_t r : moment.rows.empty() ? std::vector<size_t>{} : checked_rows(c, moment)) {
    rows.push_back(static_cast<int32_t>(moment.rows[r].sequence));
    rows.push_back(static_cast<int32_t>(moment.rows[r].index));
  }
  return rows;
}

/// Whether the cache holds something that has to be computed first.
bool caches_results(const Problem& p) {
  return p.cache != CacheKind::none && (p.transforms_keys() || p.transforms_values());
}

std::vector<int32_t> wanted_tokens(const Case& c, const Moment& moment) {
  std::vector<int32_t> tokens;
  if (!caches_results(c.problem) || moment.rows.empty()) return tokens;
  for (const auto& sequence : moment.incoming) {
    for (const Token& token : sequence) {
      tokens.push_back(static_cast<int32_t>(token.origin));
      tokens.push_back(static_cast<int32_t>(token.index));
    }
  }
  return tokens;
}

}  // namespace

fs::path manifest_path(const fs::path& root) {
  return root / "golden" / "manifest.json";
}
fs::path golden_path(const fs::path& root, const std::string& case_id) {
  return root / "golden" / "data" / (case_id + ".safetensors");
}

Manifest read_manifest(const fs::path& root) {
  Manifest manifest;
  const fs::path path = manifest_path(root);
  if (!fs::exists(path)) return manifest;
  const Json json = read_json_file(path);
  Fields fields(json, path.string());
  if (const auto schema = fields.required<std::string>("schema"); schema != "attest/goldens/1") {
    throw Error::at(fields.place("schema"), "got \"{}\", wanted \"attest/goldens/1\"", schema);
  }
  manifest.oracle = fields.required<std::string>("oracle");
  for (const auto& [id, entry] : fields.object("cases").items()) {
    Fields one(entry, fmt::format("{}: cases.{}", path.string(), id));
    manifest.cases[id] = {
        one.required<std::string>("case"), one.required<std::string>("inputs"), one.required<std::string>("file"),
        one.required<int64_t>("bytes"),    one.required<int64_t>("values"),     one.required<int64_t>("proven"),
        one.required<int64_t>("tie"),      one.required<int64_t>("zero"),       one.required<double>("worst_radius")};
    one.finish();
  }
  fields.finish();
  return manifest;
}

std::string dump(const Manifest& manifest) {
  Json cases = Json::object();
  for (const auto& [id, entry] : manifest.cases) {
    cases[id] = {{"case", entry.case_hash}, {"inputs", entry.inputs_hash}, {"file", entry.file_hash},
                 {"bytes", entry.bytes},    {"values", entry.values},      {"proven", entry.proven},
                 {"tie", entry.tie},        {"zero", entry.zero},          {"worst_radius", entry.worst_radius}};
  }
  return Json{{"schema", "attest/goldens/1"}, {"oracle", manifest.oracle}, {"cases", cases}}.dump(1) + "\n";
}

std::string suite_hash(const fs::path& root) {
  std::vector<fs::path> files{fs::path("golden") / "manifest.json", fs::path("spec") / "attention.md"};
  for (const auto& entry : fs::recursive_directory_iterator(root / "cases")) {
    const fs::path file = fs::relative(entry.path(), root);
    const bool of_the_suite = *std::next(file.begin()) != "challenge";  // see case_files in cases/suite.cpp
    if (of_the_suite && file.extension() == ".json") files.push_back(file);
  }
  std::sort(files.begin(), files.end());
  Sha256 hash;
  for (const fs::path& file : files) {
    const std::string bytes = read_file(root / file);
    hash.add(fmt::format("{} {}\n", file.string(), bytes.size()));
    hash.add(bytes);
  }
  return hash.hex().substr(0, 12);
}

std::string encode(const Case& c, const Inputs& inputs, const Golden& golden, size_t most_inputs) {
  SafetensorsWriter writer;
  writer.metadata("case", c.id);
  writer.metadata("case_hash", c.hash);
  for (size_t i = 0; i < golden.steps.size(); ++i) {
    const GoldenStep& step = golden.steps[i];
    const std::string name = fmt::format("step{}.", i);
    if (!step.rows.empty())
      writer.add(name + "rows", DType::i32, {static_cast<int64_t>(step.rows.size() / 2), 2}, step.rows);
    add(writer, name + "output", step.output);
    add(writer, name + "lse", step.lse);
    if (!step.tokens.empty()) {
      writer.add(name + "tokens", DType::i32, {static_cast<int64_t>(step.tokens.size() / 2), 2}, step.tokens);
    }
    add(writer, name + "cache.key", step.cache_key);
    add(writer, name + "cache.value", step.cache_value);
    add(writer, name + "cache.key_scale", step.key_scale);
    add(writer, name + "cache.value_scale", step.value_scale);
  }
  add_inputs(writer, inputs, most_inputs);
  return writer.bytes();
}

Golden load_golden(const fs::path& root, const Manifest& manifest, const Case& c) {
  const std::string place = golden_path(root, c.id).string();
  const auto entry = manifest.cases.find(c.id);
  if (entry == manifest.cases.end()) {
    throw Error::at(manifest_path(root).string(), "has no golden for {}; run `attest golden make`", c.id);
  }
  if (entry->second.case_hash != c.hash) {
    throw Error::at(place,
                    "belongs to another version of {} (case hash {:.12}, wanted {:.12}); run `attest golden make`",
                    c.id, entry->second.case_hash, c.hash);
  }
  std::string bytes = read_file(place);
  if (const std::string got = sha256(bytes); got != entry->second.file_hash) {
    throw Error::at(place, "is corrupted: SHA-256 {:.12}..., the manifest says {:.12}...", got,
                    entry->second.file_hash);
  }
  return decode_golden(SafetensorsFile(std::move(bytes), place), place, c);
}

Golden decode_golden(const SafetensorsFile& file, const std::string& place, const Case& c) {
  const Problem& p = c.problem;
  const Timeline timeline = play(c);
  Golden golden;
  for (size_t i = 0; i < c.steps.size(); ++i) {
    const std::string name = fmt::format("step{}.", i);
    GoldenStep step;
    if (file.has(name + "rows")) {
      step.rows = file.read<int32_t>(name + "rows", DType::i32);
      const auto rows = static_cast<int64_t>(step.rows.size() / 2);
      const std::vector<int64_t> shape = p.level == Level::core
                                             ? std::vector<int64_t>{rows, p.query_heads, p.v_head_dim}
                                             : std::vector<int64_t>{rows, p.d_model};
      step.output = read_tensor(file, name + "output", place, shape);
      if (p.lse) step.lse = read_tensor(file, name + "lse", place, {rows, p.query_heads});
    }
    if (file.has(name + "tokens")) {
      step.tokens = file.read<int32_t>(name + "tokens", DType::i32);
      const auto tokens = static_cast<int64_t>(step.tokens.size() / 2);
      const auto read = [&](bool wanted, GoldenTensor& tensor, const std::string& key,
                            const std::vector<int64_t>& shape) {
        if (wanted) tensor = read_tensor(file, name + key, place, shape);
      };
      const bool scales = p.kv_scale == KvScale::token;
      read(p.transforms_keys(), step.cache_key, "cache.key", {tokens, p.kv_heads, p.qk_head_dim});
      read(p.transforms_values(), step.cache_value, "cache.value", {tokens, p.kv_heads, p.v_head_dim});
      read(scales, step.key_scale, "cache.key_scale", {tokens, p.kv_heads});
      read(scales, step.value_scale, "cache.value_scale", {tokens, p.kv_heads});
    }
    // A golden that covers less than its case asks for would let anything pass.
    if (step.rows != wanted_rows(c, timeline[i]) || step.tokens != wanted_tokens(c, timeline[i])) {
      throw Error::at(place, "does not cover the rows and tokens of step {}", i);
    }
    golden.steps.push_back(std::move(step));
  }
  return golden;
}

}  // namespace attest
