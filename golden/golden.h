// SPDX-License-Identifier: Apache-2.0
// What the oracle says of a case: for every checked element its value, how that value is proven, and the error that a
// correct backend may make. Plain data, kept in golden/data/<case id>.safetensors.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "cases/case.h"

namespace attest {

/// How a stored double relates to the exact real number (spec/tolerance.md).
enum class Mark : uint8_t {
  proven = 0,  ///< It is the correctly rounded value: both ends of the enclosing ball round to it.
  tie = 1,     ///< Within one ulp: the exact value lies too near to the middle of two doubles to decide.
  zero = 2,    ///< The enclosing ball contains 0 and nothing larger than 2^-100 times the terms it was summed from.
};

/// One tensor of checked elements.
struct GoldenTensor {
  std::vector<int64_t> shape;
  std::vector<double> value;
  std::vector<float> allowed;  ///< Absolute error that a correct backend may make; rounded up.
  std::vector<Mark> mark;

  [[nodiscard]] bool empty() const { return value.empty(); }
};

/// The goldens of one step; empty for steps that are no attend or must be refused.
struct GoldenStep {
  std::vector<int32_t> rows;  ///< [R][2]: sequence and query index of every checked row.
  GoldenTensor output;        ///< Core [R, Hq, Dv]; layer [R, d_model].
  GoldenTensor lse;           ///< [R, Hq] if the problem wants it.
  std::vector<int32_t>
      tokens;              ///< [T][2], a cache that holds no copies: sequence and key index of every appended token.
  GoldenTensor cache_key;  ///< [T, Hk, Dk] if keys are transformed (Problem::transforms_keys). Of codes their numbers.
  GoldenTensor cache_value;  ///< [T, Hk, Dv] likewise.
  GoldenTensor key_scale;    ///< [T, Hk] of a quantised cache with a scale per token. A zero vector's allows anything.
  GoldenTensor value_scale;  ///< [T, Hk]
};

struct Golden {
  std::vector<GoldenStep> steps;  ///< One per step of the case.
};

/// A line of golden/manifest.json: what ties a golden to its case, its inputs and its file.
struct ManifestEntry {
  std::string case_hash, inputs_hash, file_hash;
  int64_t bytes = 0;
  int64_t values = 0, proven = 0, tie = 0, zero = 0;
  double worst_radius = 0;  ///< Largest (proof radius / allowed error) of any element.
};

struct Manifest {
  std::string oracle;  ///< Version of the oracle; goldens of another one must be made again.
  std::map<std::string, ManifestEntry> cases;
};

std::filesystem::path manifest_path(const std::filesystem::path& root);
std::filesystem::path golden_path(const std::filesystem::path& root, const std::string& case_id);

/// An empty manifest if there is no file.
Manifest read_manifest(const std::filesystem::path& root);
std::string dump(const Manifest& manifest);
/// First 12 hex digits of a hash over all case files, the operator's text and the manifest: what a certificate is for.
std::string suite_hash(const std::filesystem::path& root);

/// Bytes of a golden file. Inputs travel along when they are small, so that any language can use the case.
struct Inputs;
inline constexpr size_t kSmallInputs = 40 * 1024;  ///< Bytes; larger ones are generated again (recipes, Philox).
std::string encode(const Case& c, const Inputs& inputs, const Golden& golden, size_t most_inputs = kSmallInputs);
/// Reads such bytes and checks them against the case; throws if they do not cover what it asks for.
class SafetensorsFile;
Golden decode_golden(const SafetensorsFile& file, const std::string& place, const Case& c);
/// Reads a golden and checks it against the case and the manifest; throws if it is missing, stale or corrupted.
Golden load_golden(const std::filesystem::path& root, const Manifest& manifest, const Case& c);

}  // namespace attest
