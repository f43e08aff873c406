// SPDX-License-Identifier: Apache-2.0
#include "runner/machine.h"

#include <fmt/chrono.h>
#include <sys/utsname.h>

#include <chrono>
#include <fstream>
#include <thread>

namespace attest {

Machine this_machine() {
  Machine machine;
  utsname names{};
  if (::uname(&names) == 0) {
    machine.host = names.nodename;
    machine.system = fmt::format("{} {} {}", names.sysname, names.release, names.machine);
  }
  std::ifstream cpuinfo("/proc/cpuinfo");
  for (std::string line; std::getline(cpuinfo, line);) {
    if (line.starts_with("model name") && line.find(": ") != std::string::npos) {
      machine.cpu = line.substr(line.find(": ") + 2);
      break;
    }
  }
  if (machine.cpu.empty()) machine.cpu = "unknown CPU";
  machine.cores = std::thread::hardware_concurrency();
  return machine;
}

std::string utc_now() {
  const auto now = std::chrono::system_clock::to_time_t(std::chrono::system_clock::now());
  return fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(now));
}

}  // namespace attest
