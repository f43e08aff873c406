// SPDX-License-Identifier: Apache-2.0
// What `attest-cage` is told to do: its only argument, as JSON. Sandbox writes it, the cage reads it.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "cases/json.h"

namespace attest {

struct CagePlan {
  /// A file that the worker gets a copy of: `from`, or `text` where `from` is empty.
  struct Copy {
    std::string from, text, to;
    bool executable = false;
    bool optional = false;  ///< Left out where there is no such file.
  };
  /// Mounted read-only.
  struct Mount {
    std::string from, to;
    bool optional = false;  ///< Left out where there is no such place.
    bool closed = false;    ///< The cage's user cannot get there by itself: a directory above it is closed.
  };

  int64_t parent = 0;  ///< Process that has to be alive.
  std::string status;  ///< A pipe of the parent's, as a path: what became of the start, a line of JSON each.
  std::vector<std::string> groups;  ///< Directories of control groups to join.
  std::string bubblewrap;           ///< Its path, or empty: none.
  int64_t uid = 0;                  ///< User and group to become first; 0: stays as it is.
  bool filter = false;              ///< System calls are filtered.
  bool may_fork = false;
  bool limited = false;  ///< The limits below are set.
  int64_t cpu_seconds = 0, processes = 0, file_bytes = 0, data_bytes = 0;
  int64_t tmpfs_bytes = 0;
  std::vector<Mount> mounts;
  std::vector<Copy> copies;
  std::vector<std::string> command;
};

Json to_json(const CagePlan& plan);
/// Throws Error.
CagePlan cage_plan_from_json(const Json& json);

}  // namespace attest
