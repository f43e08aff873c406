// SPDX-License-Identifier: Apache-2.0
#include "runner/pack.h"

#include <unistd.h>

#include "cases/json.h"
#include "cases/sha256.h"
#include "runner/fuzz/small_case.h"
#include "runner/fuzz/targets.h"

namespace {

namespace fs = std::filesystem;

// A pack's folder, in memory where that can be; gone with the process.
class Folder {
 public:
  Folder() {
    const fs::path memory = "/dev/shm";
    path_ = (fs::is_directory(memory) ? memory : fs::temp_directory_path()) /
            fmt::format("attest-fuzz-pack-{}", ::getpid());
    fs::create_directories(path_ / "data");
  }
  ~Folder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  [[nodiscard]] const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

bool all_small(const attest::Json& list) {
  for (const attest::Json& one : list) {
    if (!one.is_object() || !one.contains("case")) continue;
    try {
      if (!attest::fuzz::is_small(attest::case_from_json(one["case"], "challenge", "fuzz"))) return false;
    } catch (const attest::Error&) {  // read_pack will say the same
    }
  }
  return true;
}

}  // namespace

// Every hash is made to fit, so that what lies behind them is reached.
void attest::fuzz::pack(std::string_view bytes) {
  static const Folder folder;
  const size_t line = std::min(bytes.find('\n'), bytes.size());
  const std::string_view data = bytes.substr(std::min(line + 1, bytes.size()));
  try {
    Json list = parse_json(bytes.substr(0, line), "fuzz");
    if (!list.is_array() || !all_small(list)) return;
    std::string name;
    if (!list.empty() && list[0].is_object() && list[0].contains("file") && list[0]["file"].is_string()) {
      name = list[0]["file"].get<std::string>();
      list[0]["sha256"] = sha256(data);
    }
    // Written only under a name that read_pack may take.
    const bool legal = name.size() < 100 && !name.empty() && name.find('/') == std::string::npos &&
                       name.find('\0') == std::string::npos && name.ends_with(".safetensors");
    if (legal) write_file(folder.path() / "data" / name, data);
    const Json json{{"schema", "attest/pack/1"},
                    {"id", sha256(list.dump()).substr(0, 16)},
                    {"warnings", Json::array()},
                    {"cases", list}};
    write_file(folder.path() / "pack.json", json.dump());
    try {
      const Pack pack = read_pack(folder.path());
      want(pack.cases.size() == list.size(), "a pack has all of its cases");
    } catch (const Error&) {
    }
    if (legal) fs::remove(folder.path() / "data" / name);
  } catch (const Error&) {
  }
}
