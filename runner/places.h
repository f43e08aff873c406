// SPDX-License-Identifier: Apache-2.0
// Where the programs and libraries of an installation lie, relative to the running executable. The build tree has the
// same layout.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace attest {

/// The directory of the running executable, symbolic links resolved.
std::filesystem::path executable_directory();

/// The worker program `attest-worker`: beside the executable, or in ../libexec/attest. Throws Error with the places.
std::filesystem::path find_worker();

/// Where backends are looked for by name, in order: $ATTEST_BACKEND_PATH (separated by colons), then
/// ../lib/attest/backends.
std::vector<std::filesystem::path> backend_places();

/// The library of a backend. What has a '/' or ends in ".so" is a path and is returned as it is, made absolute; else it
/// is a name, and attest-backend-NAME.so is looked for. Throws Error with the places and the names that are there.
std::filesystem::path find_backend(const std::string& name_or_path);

struct BackendPlace {
  std::string name;
  std::filesystem::path path;
};
/// All backends that `find_backend` finds by name, by name. Loads none of them.
std::vector<BackendPlace> list_backends();

}  // namespace attest
