// SPDX-License-Identifier: Apache-2.0
// Strict reading of JSON objects: every error names the file and the field, and a field that nobody asked for is one.
//
//   Fields fields(json, "cases/no_cache/mha.json: cases[3]");
//   auto id = fields.required<std::string>("id");
//   auto seed = fields.optional<int64_t>("seed", 1);
//   fields.finish();                       // throws if a field was left unread
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "cases/error.h"

namespace attest {

using Json = nlohmann::json;

/// Reads and parses a file; the error of a broken one has its line and column.
Json read_json_file(const std::filesystem::path& path);

/// Parses text; `place` names it in errors. A key that an object has twice is one, and so is nesting beyond 64 levels.
Json parse_json(std::string_view text, std::string_view place);

/// Reads a whole file as bytes.
std::string read_file(const std::filesystem::path& path);

/// Writes a whole file, through a temporary name so that a reader never sees half of it.
void write_file(const std::filesystem::path& path, std::string_view bytes);

/// Value conversions with strict types: an integer field takes no 3.5, a string field takes no number.
template <typename T>
T json_to(const Json& value, std::string_view place);
template <>
bool json_to<bool>(const Json& value, std::string_view place);
template <>
int64_t json_to<int64_t>(const Json& value, std::string_view place);
template <>
double json_to<double>(const Json& value, std::string_view place);
template <>
std::string json_to<std::string>(const Json& value, std::string_view place);
template <>
std::vector<int64_t> json_to<std::vector<int64_t>>(const Json& value, std::string_view place);
template <>
std::vector<std::string> json_to<std::vector<std::string>>(const Json& value, std::string_view place);

/// One object, read field by field.
class Fields {
 public:
  /// Throws unless `object` is an object. Both must outlive this.
  Fields(const Json& object, std::string place);

  [[nodiscard]] bool has(std::string_view name) const { return object_.contains(name); }
  /// The raw value; throws if it is missing.
  const Json& at(std::string_view name);
  /// The same, and throws if it is no array, or no object.
  const Json& array(std::string_view name);
  const Json& object(std::string_view name);
  /// What `read(element, place)` makes of each element of an array; the place is "place.name[2]".
  template <typename Read>
  auto list(std::string_view name, Read&& read) {
    const Json& elements = array(name);
    std::vector<decltype(read(elements, std::string()))> made;
    made.reserve(elements.size());
    for (size_t i = 0; i < elements.size(); ++i) {
      made.push_back(read(elements[i], fmt::format("{}[{}]", place(name), i)));
    }
    return made;
  }
  /// "place.name", for messages about a field.
  [[nodiscard]] std::string place(std::string_view name) const { return place_ + "." + std::string(name); }
  [[nodiscard]] const std::string& place() const { return place_; }

  template <typename T>
  T required(std::string_view name) {
    return json_to<T>(at(name), place(name));
  }
  template <typename T>
  T optional(std::string_view name, T otherwise) {
    return has(name) ? required<T>(name) : otherwise;
  }
  /// One of the given names, as its index.
  template <typename Enum>
  Enum choice(std::string_view name, const std::vector<std::string>& names) {
    return static_cast<Enum>(choice_index(name, names));
  }
  template <typename Enum>
  Enum choice(std::string_view name, const std::vector<std::string>& names, Enum otherwise) {
    return has(name) ? choice<Enum>(name, names) : otherwise;
  }
  /// Throws if a field was not read.
  void finish() const;

 private:
  int choice_index(std::string_view name, const std::vector<std::string>& names);

  const Json& object_;
  std::string place_;
  std::set<std::string, std::less<>> read_;
};

}  // namespace attest
