// SPDX-License-Identifier: Apache-2.0
#include "cases/json.h"

#include <fmt/ranges.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstring>
#include <fstream>
#include <sstream>

namespace attest {
namespace {

// Deeper than anything that is written here. What walks a value does so by recursion: dump() too, for a message.
constexpr int kMaxDepth = 64;

std::string shown(const Json& value) {
  std::string text = value.dump(-1, ' ', false, Json::error_handler_t::replace);
  return text.size() > 60 ? text.substr(0, 57) + "..." : text;
}

}  // namespace

std::string read_file(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in || std::filesystem::is_directory(path)) {
    throw Error::at(path.string(), "cannot be read: {}", errno != 0 ? std::strerror(errno) : "not a file");
  }
  std::ostringstream bytes;
  bytes << in.rdbuf();
  if (in.bad()) throw Error::at(path.string(), "cannot be read: {}", std::strerror(errno));
  return std::move(bytes).str();
}

void write_file(const std::filesystem::path& path, std::string_view bytes) {
  if (path.has_parent_path()) {
    std::error_code made;
    std::filesystem::create_directories(path.parent_path(), made);
    if (made) throw Error::at(path.parent_path().string(), "cannot be made: {}", made.message());
  }
  const std::filesystem::path temporary = path.string() + fmt::format(".{}.tmp", ::getpid());
  std::ofstream out(temporary, std::ios::binary | std::ios::trunc);
  out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  out.close();
  std::error_code failed;
  if (!out) {
    failed.assign(errno != 0 ? errno : EIO, std::generic_category());
  } else {
    std::filesystem::rename(temporary, path, failed);
  }
  if (failed) {
    std::error_code ignored;
    std::filesystem::remove(temporary, ignored);
    throw Error::at(path.string(), "cannot be written: {}", failed.message());
  }
}

Json parse_json(std::string_view text, std::string_view place) {
  // A key that is there twice would silently win over the first: one set of keys per object that is open.
  std::vector<std::set<std::string>> keys;
  const auto watch = [&](int depth, Json::parse_event_t event, Json& parsed) {
    const bool opens = event == Json::parse_event_t::object_start || event == Json::parse_event_t::array_start;
    if (opens && depth >= kMaxDepth) throw Error::at(place, "arrays and objects are nested deeper than {}", kMaxDepth);
    if (event == Json::parse_event_t::object_start) keys.emplace_back();
    if (event == Json::parse_event_t::object_end) keys.pop_back();
    if (event == Json::parse_event_t::key && !keys.back().insert(parsed.get<std::string>()).second) {
      throw Error::at(place, "the key {} is there twice in one object", shown(parsed));
    }
    return true;
  };
  try {
    return Json::parse(text, watch);
  } catch (const Json::exception& broken) {
    // "[json.exception.parse_error.101] parse error at line 3, column 9: ..." without its bracket
    std::string_view reason = broken.what();
    if (const auto bracket = reason.find("] "); bracket != std::string_view::npos) reason.remove_prefix(bracket + 2);
    throw Error::at(place, "{}", reason);
  }
}

Json read_json_file(const std::filesystem::path& path) {
  return parse_json(read_file(path), path.string());
}

namespace {

template <typename T>
std::vector<T> array_of(const Json& value, std::string_view place) {
  if (!value.is_array()) throw Error::at(place, "got {}, wanted an array", shown(value));
  std::vector<T> items;
  for (size_t i = 0; i < value.size(); ++i) items.push_back(json_to<T>(value[i], fmt::format("{}[{}]", place, i)));
  return items;
}

}  // namespace

template <>
bool json_to<bool>(const Json& value, std::string_view place) {
  if (!value.is_boolean()) throw Error::at(place, "got {}, wanted true or false", shown(value));
  return value.get<bool>();
}

template <>
int64_t json_to<int64_t>(const Json& value, std::string_view place) {
  const bool too_large = value.is_number_unsigned() && value.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX);
  if (!value.is_number_integer() || too_large) throw Error::at(place, "got {}, wanted an integer", shown(value));
  return value.get<int64_t>();
}

template <>
double json_to<double>(const Json& value, std::string_view place) {
  if (!value.is_number()) throw Error::at(place, "got {}, wanted a number", shown(value));
  return value.get<double>();
}

template <>
std::string json_to<std::string>(const Json& value, std::string_view place) {
  if (!value.is_string()) throw Error::at(place, "got {}, wanted a string", shown(value));
  return value.get<std::string>();
}

template <>
std::vector<int64_t> json_to<std::vector<int64_t>>(const Json& value, std::string_view place) {
  return array_of<int64_t>(value, place);
}

template <>
std::vector<std::string> json_to<std::vector<std::string>>(const Json& value, std::string_view place) {
  return array_of<std::string>(value, place);
}

Fields::Fields(const Json& object, std::string place) : object_(object), place_(std::move(place)) {
  if (!object.is_object()) throw Error::at(place_, "got {}, wanted an object", shown(object));
}

const Json& Fields::at(std::string_view name) {
  const auto found = object_.find(name);
  if (found == object_.end()) throw Error::at(place_, "the field \"{}\" is missing", name);
  read_.emplace(name);
  return *found;
}

const Json& Fields::array(std::string_view name) {
  const Json& value = at(name);
  if (!value.is_array()) throw Error::at(place(name), "got {}, wanted an array", shown(value));
  return value;
}

const Json& Fields::object(std::string_view name) {
  const Json& value = at(name);
  if (!value.is_object()) throw Error::at(place(name), "got {}, wanted an object", shown(value));
  return value;
}

int Fields::choice_index(std::string_view name, const std::vector<std::string>& names) {
  const auto value = required<std::string>(name);
  for (size_t i = 0; i < names.size(); ++i) {
    if (names[i] == value) return static_cast<int>(i);
  }
  throw Error::at(place(name), "got \"{}\", wanted one of: {}", value, fmt::join(names, ", "));
}

void Fields::finish() const {
  for (const auto& [name, value] : object_.items()) {
    if (!read_.contains(name)) throw Error::at(place_, "unknown field \"{}\" = {}", name, shown(value));
  }
}

}  // namespace attest
