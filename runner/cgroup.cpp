// SPDX-License-Identifier: Apache-2.0
#include "runner/cgroup.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <charconv>
#include <csignal>
#include <cstring>
#include <fstream>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <sstream>
#include <system_error>
#include <thread>

#include "cases/error.h"
#include "runner/unique_fd.h"

namespace attest {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;
using namespace std::chrono_literals;

constexpr auto kPatience = 2s;
constexpr std::string_view kPrefix = "attest-";
constexpr std::string_view kOwnLeaf = "-own";

bool is_there(const fs::path& path) {
  std::error_code ignored;
  return fs::exists(path, ignored);
}

/// The whole file, or nothing. Files of the kernel have no size, so they are read to their end.
std::optional<std::string> text_of(const fs::path& path) {
  const UniqueFd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file) return std::nullopt;
  std::string text;
  std::array<char, 4096> bytes;  // NOLINT: read() fills it
  while (true) {
    const ssize_t got = ::read(file.get(), bytes.data(), bytes.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return std::nullopt;
    if (got == 0) return text;
    text.append(bytes.data(), static_cast<size_t>(got));
  }
}

/// 0, or the errno. One write call, as the kernel wants it.
int put(const fs::path& path, std::string_view text) {
  const UniqueFd file(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
  if (!file) return errno;
  return ::write(file.get(), text.data(), text.size()) < 0 ? errno : 0;
}

std::set<std::string, std::less<>> words(const std::string& text) {
  std::istringstream stream(text);
  std::set<std::string, std::less<>> found;
  for (std::string word; stream >> word;) found.insert(word);
  return found;
}

/// The number behind `key` in a file of "key number" lines.
int64_t counted(const fs::path& path, std::string_view key) {
  std::istringstream lines(text_of(path).value_or(""));
  std::string name;
  for (int64_t number = 0; lines >> name >> number;) {
    if (name == key) return number;
  }
  return 0;
}

std::vector<pid_t> processes_in(const fs::path& directory) {
  std::istringstream lines(text_of(directory / "cgroup.procs").value_or(""));
  std::vector<pid_t> processes;
  for (pid_t pid = 0; lines >> pid;) processes.push_back(pid);
  return processes;
}

// ------------------------------------------------------------------------------------------------ where groups lie

struct Tree {
  bool version_2 = false;
  std::set<std::string, std::less<>> controllers;  // version 1; a named tree without controllers has none
  fs::path mount;
  fs::path own;  // the directory of the group that this process is in
};

/// \040 and the like, as in /proc/self/mountinfo.
std::string unescaped(std::string_view text) {
  std::string plain;
  for (size_t i = 0; i < text.size(); ++i) {
    int code = 0;
    if (text[i] == '\\' && i + 3 < text.size() &&
        std::from_chars(text.data() + i + 1, text.data() + i + 4, code, 8).ptr == text.data() + i + 4) {
      plain += static_cast<char>(code);
      i += 3;
    } else {
      plain += text[i];
    }
  }
  return plain;
}

std::set<std::string, std::less<>> split(const std::string& text, char separator) {
  std::istringstream stream(text);
  std::set<std::string, std::less<>> parts;
  for (std::string part; std::getline(stream, part, separator);) parts.insert(part);
  return parts;
}

std::vector<Tree> read_trees() {
  static const std::set<std::string, std::less<>> known{"memory", "pids", "cpu", "cpuacct", "freezer"};
  std::map<std::string, std::string, std::less<>> own;  // path by controller; version 2 has no name
  std::istringstream groups(text_of("/proc/self/cgroup").value_or(""));
  for (std::string line; std::getline(groups, line);) {
    const size_t first = line.find(':');
    const size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string path = line.substr(second + 1);
    if (second == first + 1) own[""] = path;
    for (const std::string& name : split(line.substr(first + 1, second - first - 1), ',')) own[name] = path;
  }

  std::vector<Tree> trees;
  std::istringstream mounts(text_of("/proc/self/mountinfo").value_or(""));
  for (std::string line; std::getline(mounts, line);) {
    std::istringstream fields(line);
    std::string skip, root, mount, type, source, options;
    fields >> skip >> skip >> skip >> root >> mount;
    while (fields >> skip && skip != "-") {
    }
    fields >> type >> source >> options;
    Tree tree;
    tree.version_2 = type == "cgroup2";
    if (!tree.version_2 && type != "cgroup") continue;
    if (!tree.version_2) {
      for (const std::string& option : split(options, ',')) {
        if (known.contains(option)) tree.controllers.insert(option);
      }
      if (tree.controllers.empty()) continue;
    }
    tree.mount = unescaped(mount);
    std::string path = own[tree.version_2 ? "" : *tree.controllers.begin()];
    const std::string base = unescaped(root);
    // A group outside of what is mounted here (another namespace's) is shown as /..: the mount's top is nearest.
    if (base != "/" && (path == base || path.starts_with(base + "/"))) path = path.substr(base.size());
    tree.own = tree.mount / fs::path(path).relative_path();
    if (path.starts_with("/..") || !is_there(tree.own / "cgroup.procs")) tree.own = tree.mount;
    trees.push_back(std::move(tree));
  }
  return trees;
}

/// Where a group with these controllers of version 2 can be made: the nearest group from the own one up that hands all
/// of them on.
std::optional<fs::path> handing_on(const Tree& tree, const std::set<std::string, std::less<>>& wanted) {
  const auto has_all = [&](const fs::path& directory, const char* file) {
    const auto there = words(text_of(directory / file).value_or(""));
    return std::includes(there.begin(), there.end(), wanted.begin(), wanted.end());
  };
  for (fs::path place = tree.own;; place = place.parent_path()) {
    if (::access(place.c_str(), W_OK) == 0 && has_all(place, "cgroup.subtree_control")) return place;
    if (place == tree.mount || !place.has_relative_path()) return std::nullopt;
  }
}

// ----------------------------------------------------------------------------------------------------------- names

std::string start_of(pid_t pid) {
  const std::string stat = text_of(fmt::format("/proc/{}/stat", pid)).value_or("");
  const size_t name_end = stat.rfind(')');  // the name itself may hold anything
  if (name_end == std::string::npos) return "";
  std::istringstream fields(stat.substr(name_end + 1));
  std::string field;
  for (int i = 3; i <= 22; ++i) fields >> field;
  return field;
}

std::string pid_namespace() {
  std::error_code ignored;
  const std::string link = fs::read_symlink("/proc/self/ns/pid", ignored).string();  // pid:[4026531836]
  const size_t open = link.find('[');
  return open == std::string::npos ? "0" : link.substr(open + 1, link.size() - open - 2);
}

std::string own_name() {
  static std::atomic<int> serial{0};
  return fmt::format("{}{}-{}-{}-{}", kPrefix, pid_namespace(), ::getpid(), start_of(::getpid()), ++serial);
}

/// Whether a group's name is that of an attest process that has ended. Another pid namespace's are not ours to judge.
bool is_stale(const std::string& name) {
  if (!name.starts_with(kPrefix)) return false;
  std::vector<std::string> parts;
  std::istringstream stream(name.substr(kPrefix.size()));
  for (std::string part; std::getline(stream, part, '-');) parts.push_back(part);
  if (parts.size() < 4 || parts[0] != pid_namespace()) return false;
  pid_t pid = 0;
  const char* end = parts[1].data() + parts[1].size();
  if (std::from_chars(parts[1].data(), end, pid).ptr != end || pid <= 0) return false;
  return start_of(pid) != parts[2];
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------- making

namespace {

/// Everything about a group that is being made.
struct Making {
  std::string name = own_name();
  std::vector<fs::path> directories;
  std::map<std::string, fs::path, std::less<>> by_controller;  // of version 1
  std::optional<fs::path> version_2;
  std::set<std::string, std::less<>> controllers_2;  // that it has
  std::map<std::string, std::string, std::less<>> why_not;

  /// The group's directory below `parent`, made where it is not there yet.
  std::optional<fs::path> directory(const fs::path& parent, std::string& why) {
    const fs::path path = parent / name;
    if (::mkdir(path.c_str(), 0755) == 0) {
      directories.push_back(path);
    } else if (errno != EEXIST) {
      why = fmt::format("{}: {}", parent.string(), std::strerror(errno));
      return std::nullopt;
    }
    return path;
  }

  bool set(const fs::path& file, std::string_view value, const std::string& limit) {
    const int error = put(file, value);
    if (error != 0) why_not[limit] = fmt::format("{}: {}", file.string(), std::strerror(error));
    return error == 0;
  }
};

/// A group that holds nothing but this process, and was given to it (systemd-run --scope -p Delegate=yes): moves into a
/// leaf of its own, so that the group may hand its controllers on. Version 2 lets no group do both.
void become_manager(const Tree& tree, const std::set<std::string, std::less<>>& wanted, const std::string& name) {
  if (tree.own == tree.mount || ::access(tree.own.c_str(), W_OK) != 0) return;
  const auto there = words(text_of(tree.own / "cgroup.controllers").value_or(""));
  if (!std::includes(there.begin(), there.end(), wanted.begin(), wanted.end())) return;
  if (processes_in(tree.own) != std::vector<pid_t>{::getpid()}) return;
  const fs::path leaf = tree.own / (name + std::string(kOwnLeaf));
  if (::mkdir(leaf.c_str(), 0755) != 0) return;
  std::string grant;
  for (const std::string& controller : wanted) grant += (grant.empty() ? "+" : " +") + controller;
  if (put(leaf / "cgroup.procs", "0") == 0 && put(tree.own / "cgroup.subtree_control", grant) == 0) {
    put(tree.own / "cgroup.subtree_control", "+cpu");
    return;
  }
  put(tree.own / "cgroup.procs", "0");
  ::rmdir(leaf.c_str());
}

void make_version_1(Making& making, const std::vector<Tree>& trees, const std::string& controller) {
  for (const Tree& tree : trees) {
    if (tree.version_2 || !tree.controllers.contains(controller)) continue;
    std::string why;
    if (auto path = making.directory(tree.own, why)) {
      making.by_controller.emplace(controller, *path);
      making.why_not.erase(controller);
      return;
    }
    making.why_not[controller] = why;
  }
}

void make_version_2(Making& making, std::vector<Tree>& trees) {
  const auto tree = std::find_if(trees.begin(), trees.end(), [](const Tree& t) { return t.version_2; });
  if (tree == trees.end()) return;
  // A controller belongs to one version at a time.
  const auto offered = words(text_of(tree->mount / "cgroup.controllers").value_or(""));
  std::set<std::string, std::less<>> wanted;  // the processor's is taken where it is had for nothing
  for (const char* controller : {"memory", "pids"}) {
    if (offered.contains(controller)) wanted.insert(controller);
  }
  std::optional<fs::path> parent = handing_on(*tree, wanted);
  if (!parent) {
    static std::mutex one_at_a_time;
    const std::scoped_lock lock(one_at_a_time);
    become_manager(*tree, wanted, making.name);
    for (Tree& again : trees = read_trees()) {
      if (again.version_2) parent = handing_on(again, wanted);
    }
  }
  std::string why;
  if (parent) {
    making.version_2 = making.directory(*parent, why);
  } else {
    why = fmt::format(
        "no group from {} up is writable and hands {} on; as a user, put "
        "`systemd-run --user --scope -p Delegate=yes` before attest",
        tree->own.string(), fmt::join(wanted, ", "));
  }
  if (making.version_2) {
    making.controllers_2 = words(text_of(*parent / "cgroup.subtree_control").value_or(""));
  } else {
    for (const std::string& controller : wanted) making.why_not[controller] = why;
    making.why_not["freezer"] = why;
  }
}

}  // namespace

ControlGroup ControlGroup::make(const GroupLimits& limits, Freezer freezer) {
  Making making;
  std::vector<Tree> trees = read_trees();
  for (const char* controller : {"memory", "pids", "cpu", "freezer"}) {
    making.why_not[controller] = trees.empty() ? "no cgroup file system is mounted" : "no mounted tree has it";
  }
  make_version_2(making, trees);
  const bool controls =
      making.version_2 && (making.controllers_2.contains("memory") || making.controllers_2.contains("pids"));
  if (freezer == Freezer::version_1 && making.version_2 && !controls) {
    ::rmdir(making.version_2->c_str());  // it was made for nothing but its freezer
    making.directories.clear();
    making.version_2.reset();
  }
  std::vector<std::string> of_1, of_2;

  for (const std::string controller : {"memory", "pids", "cpu", "cpuacct"}) {
    const bool second = making.controllers_2.contains(controller);
    if (controller == "cpuacct" && making.version_2) continue;  // every group of version 2 counts its time
    if (!second) make_version_1(making, trees, controller);
    if (!second && !making.by_controller.contains(controller)) continue;
    const fs::path& place = second ? *making.version_2 : making.by_controller[controller];
    bool good = true;
    if (controller == "memory") {
      const std::string bytes = std::to_string(limits.memory_bytes);
      good = making.set(place / (second ? "memory.max" : "memory.limit_in_bytes"), bytes, controller);
      // No swap; a kernel without swap accounting has no such file, and a limit that holds without it.
      const fs::path swap = place / (second ? "memory.swap.max" : "memory.memsw.limit_in_bytes");
      if (good && is_there(swap)) good = making.set(swap, second ? "0" : bytes, controller);
      if (second) put(place / "memory.oom.group", "1");
    } else if (controller == "pids") {
      good = making.set(place / "pids.max", std::to_string(limits.processes), controller);
    } else if (controller == "cpu" && limits.cores > 0) {
      const std::string quota = std::to_string(limits.cores * 100000);
      if (second) {
        good = making.set(place / "cpu.max", quota + " 100000", controller);
      } else {
        good = making.set(place / "cpu.cfs_period_us", "100000", controller) &&
               making.set(place / "cpu.cfs_quota_us", quota, controller);
      }
    }
    if (good && controller != "cpuacct") {
      (second ? of_2 : of_1).push_back(controller);
      making.why_not.erase(controller);
    }
  }

  ControlGroup group;
  if (freezer == Freezer::best && making.version_2 && is_there(*making.version_2 / "cgroup.freeze")) {
    of_2.emplace_back("freezer");
    making.why_not.erase("freezer");
  } else {
    make_version_1(making, trees, "freezer");
    if (making.by_controller.contains("freezer")) of_1.emplace_back("freezer");
  }
  group.directories_ = std::move(making.directories);
  if (!of_2.empty()) group.description_ = fmt::format("v2: {}", fmt::join(of_2, ", "));
  if (!of_1.empty()) {
    group.description_ += fmt::format("{}v1: {}", of_2.empty() ? "" : "; ", fmt::join(of_1, ", "));
  }
  for (const char* limit : {"memory", "pids"}) {
    if (const auto why = making.why_not.find(limit); why != making.why_not.end()) {
      group.missing_ += fmt::format("{}{} ({})", group.missing_.empty() ? "" : "; ", limit, why->second);
    }
  }
  if (const auto why = making.why_not.find("freezer"); why != making.why_not.end()) group.no_freezer_ = why->second;
  return group;
}

ControlGroup::ControlGroup(std::vector<fs::path> directories) : directories_(std::move(directories)) {}

// ------------------------------------------------------------------------------------------------------------- use

const fs::path* ControlGroup::with(std::string_view file) const {
  const auto found = std::find_if(directories_.begin(), directories_.end(),
                                  [&](const fs::path& directory) { return is_there(directory / file); });
  return found == directories_.end() ? nullptr : &*found;
}

void ControlGroup::join() const {
  for (const fs::path& directory : directories_) {
    if (const int error = put(directory / "cgroup.procs", "0"); error != 0) {
      throw Error::at(directory.string(), "cannot be joined: {}", std::strerror(error));
    }
  }
}

void ControlGroup::freeze() const {
  const Clock::time_point deadline = Clock::now() + kPatience;
  if (const fs::path* second = with("cgroup.freeze")) {
    const UniqueFd events(::open((*second / "cgroup.events").c_str(), O_RDONLY | O_CLOEXEC));
    if (const int error = put(*second / "cgroup.freeze", "1"); error != 0 || !events) {
      throw Error::at(second->string(), "cannot be frozen: {}", std::strerror(error != 0 ? error : ENOENT));
    }
    for (int round = 0;; ++round) {
      std::array<char, 256> text{};
      const ssize_t got = ::pread(events.get(), text.data(), text.size() - 1, 0);
      if (got > 0 && std::strstr(text.data(), "frozen 1") != nullptr) return;
      if (Clock::now() >= deadline) break;
      // The kernel tells of changes of this file at most every 10 ms: too late for each of a thousand calls.
      if (round < 50) {
        std::this_thread::yield();
      } else {
        std::this_thread::sleep_for(20us);
      }
    }
    throw Error::at(second->string(), "cannot be frozen within {} s", kPatience.count());
  }
  const fs::path* first = with("freezer.state");
  if (first == nullptr) throw Error("sandbox: there is no freezer");
  if (const int error = put(*first / "freezer.state", "FROZEN"); error != 0) {
    throw Error::at(first->string(), "cannot be frozen: {}", std::strerror(error));
  }
  while (text_of(*first / "freezer.state") != "FROZEN\n") {
    if (Clock::now() >= deadline) throw Error::at(first->string(), "cannot be frozen within {} s", kPatience.count());
    std::this_thread::sleep_for(50us);
  }
}

void ControlGroup::thaw() const {
  const fs::path* second = with("cgroup.freeze");
  const fs::path* place = second != nullptr ? second : with("freezer.state");
  if (place == nullptr) throw Error("sandbox: there is no freezer");
  const int error = second != nullptr ? put(*place / "cgroup.freeze", "0") : put(*place / "freezer.state", "THAWED");
  if (error != 0) throw Error::at(place->string(), "cannot be thawed: {}", std::strerror(error));
}

bool ControlGroup::kill() const {
  if (directories_.empty()) return true;
  const Clock::time_point deadline = Clock::now() + kPatience;
  const fs::path* at_once = with("cgroup.kill");
  const fs::path* frozen = with("freezer.state");
  while (true) {
    if (at_once != nullptr) put(*at_once / "cgroup.kill", "1");
    // Also where there is cgroup.kill: a process that was killed while it moved in may be in one group and not yet in
    // another. While they are frozen they cannot fork faster than they are killed, nor can their numbers be reused.
    if (frozen != nullptr) put(*frozen / "freezer.state", "FROZEN");
    bool any = false;
    for (const fs::path& directory : directories_) {
      for (const pid_t pid : processes_in(directory)) {
        any = true;
        if (pid > 0) ::kill(pid, SIGKILL);
      }
    }
    if (frozen != nullptr) put(*frozen / "freezer.state", "THAWED");
    if (!any) return true;
    if (Clock::now() >= deadline) return false;
    std::this_thread::sleep_for(500us);
  }
}

bool ControlGroup::remove() const {
  const Clock::time_point deadline = Clock::now() + kPatience;
  while (true) {
    bool gone = true;
    for (const fs::path& directory : directories_) {
      if (::rmdir(directory.c_str()) != 0 && errno != ENOENT) gone = false;
    }
    if (gone || Clock::now() >= deadline) return gone;
    std::this_thread::sleep_for(1ms);
  }
}

GroupEvents ControlGroup::events() const {
  GroupEvents events;
  for (const fs::path& directory : directories_) {
    events.out_of_memory += counted(directory / "memory.events", "oom_kill");
    events.out_of_memory += counted(directory / "memory.oom_control", "oom_kill");
    events.forks_refused += counted(directory / "pids.events", "max");
  }
  if (const fs::path* first = with("cpuacct.usage")) {
    int64_t nanoseconds = 0;
    std::istringstream(text_of(*first / "cpuacct.usage").value_or("")) >> nanoseconds;
    events.cpu = std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::nanoseconds(nanoseconds));
  } else if (const fs::path* second = with("cpu.stat")) {
    events.cpu = std::chrono::microseconds(counted(*second / "cpu.stat", "usage_usec"));
  }
  return events;
}

int ControlGroup::sweep() {
  std::map<std::string, std::vector<fs::path>> stale;  // by name
  for (const Tree& tree : read_trees()) {
    for (fs::path place = tree.own;; place = place.parent_path()) {
      std::error_code none;
      for (const fs::directory_entry& entry : fs::directory_iterator(place, none)) {
        const std::string name = entry.path().filename().string();
        if (is_stale(name)) stale[name].push_back(entry.path());
      }
      if (place == tree.mount || !place.has_relative_path()) break;
    }
  }
  for (const auto& [name, directories] : stale) {
    const ControlGroup group(directories);
    if (group.with("cgroup.freeze") != nullptr) put(*group.with("cgroup.freeze") / "cgroup.freeze", "0");
    group.kill();
    group.remove();
  }
  return static_cast<int>(stale.size());
}

}  // namespace attest
