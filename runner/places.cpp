// SPDX-License-Identifier: Apache-2.0
#include "runner/places.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cstdlib>
#include <map>
#include <string_view>
#include <system_error>

#include "cases/error.h"

namespace attest {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kPrefix = "attest-backend-";
constexpr std::string_view kSuffix = ".so";

std::string joined(const std::vector<fs::path>& paths) {
  std::vector<std::string> texts;
  for (const fs::path& path : paths) texts.push_back(path.string());
  return fmt::format("{}", fmt::join(texts, ", "));
}

bool is_file(const fs::path& path) {
  std::error_code ignored;
  return fs::is_regular_file(path, ignored);
}

}  // namespace

fs::path executable_directory() {
  std::error_code failed;
  const fs::path executable = fs::read_symlink("/proc/self/exe", failed);
  if (failed) throw Error::at("/proc/self/exe", "cannot be read: {}", failed.message());
  return executable.parent_path();
}

fs::path find_worker() {
  const fs::path here = executable_directory();
  const std::vector<fs::path> places{here, (here / "../libexec/attest").lexically_normal()};
  for (const fs::path& place : places) {
    if (is_file(place / "attest-worker")) return place / "attest-worker";
  }
  throw Error::at("attest-worker", "found neither in {}",
                  fmt::join({places[0].string(), places[1].string()}, " nor in "));
}

std::vector<fs::path> backend_places() {
  std::vector<fs::path> places;
  if (const char* paths = std::getenv("ATTEST_BACKEND_PATH")) {
    std::string_view rest = paths;
    while (!rest.empty()) {
      const size_t colon = rest.find(':');
      if (colon != 0) places.emplace_back(rest.substr(0, colon));
      rest.remove_prefix(colon == std::string_view::npos ? rest.size() : colon + 1);
    }
  }
  places.push_back((executable_directory() / "../lib/attest/backends").lexically_normal());
  return places;
}

std::vector<BackendPlace> list_backends() {
  std::map<std::string, fs::path> found;
  for (const fs::path& place : backend_places()) {
    std::error_code none;
    for (const fs::directory_entry& entry : fs::directory_iterator(place, none)) {
      const std::string file = entry.path().filename().string();
      const bool named = file.size() > kPrefix.size() + kSuffix.size() && file.starts_with(kPrefix) &&
                         file.ends_with(kSuffix) && is_file(entry.path());
      // An earlier place wins, as in find_backend.
      if (named) {
        found.emplace(file.substr(kPrefix.size(), file.size() - kPrefix.size() - kSuffix.size()),
                      fs::absolute(entry.path()));
      }
    }
  }
  std::vector<BackendPlace> backends;
  for (const auto& [name, path] : found) backends.push_back({name, path});
  return backends;
}

fs::path find_backend(const std::string& name_or_path) {
  if (name_or_path.find('/') != std::string::npos || name_or_path.ends_with(kSuffix)) {
    if (fs::is_directory(name_or_path)) throw Error::at(name_or_path, "is a folder, wanted a shared library");
    if (!is_file(name_or_path)) throw Error::at(name_or_path, "no such file");
    return fs::absolute(name_or_path);
  }
  std::vector<std::string> names;
  for (const BackendPlace& backend : list_backends()) {
    if (backend.name == name_or_path) return backend.path;
    names.push_back(backend.name);
  }
  throw Error::at("--backend", "got \"{}\", which is in none of {}; there: {}", name_or_path, joined(backend_places()),
                  names.empty() ? "nothing" : fmt::format("{}", fmt::join(names, ", ")));
}

}  // namespace attest
