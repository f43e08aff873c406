// SPDX-License-Identifier: Apache-2.0
#include "runner/sandbox.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <mutex>
#include <optional>
#include <sstream>
#include <system_error>
#include <thread>

#include "cases/error.h"
#include "runner/cage_plan.h"
#include "runner/cage_trial.h"
#include "runner/cgroup.h"
#include "runner/places.h"
#include "runner/protocol.h"
#include "runner/unique_fd.h"

namespace attest {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;

constexpr const char* kInside = "/attest";

/// Every layer, in the order in which they are listed.
constexpr std::array kLayers{"bubblewrap", "seccomp", "cgroup", "freezer", "rlimits", "uid", "network"};

struct Ends {
  UniqueFd read, write;
};

Ends make_pipe() {
  std::array<int, 2> ends{};
  if (::pipe2(ends.data(), O_CLOEXEC | O_NONBLOCK) != 0) throw Error::at("sandbox", "pipe: {}", std::strerror(errno));
  return {UniqueFd(ends[0]), UniqueFd(ends[1])};
}

bool is_executable(const fs::path& path) {
  std::error_code ignored;
  return fs::is_regular_file(path, ignored) && ::access(path.c_str(), X_OK) == 0;
}

fs::path find_bubblewrap() {
  std::string places = "/usr/bin:/usr/local/bin:";
  if (const char* path = std::getenv("PATH")) places += path;
  std::istringstream stream(places);
  for (std::string place; std::getline(stream, place, ':');) {
    if (!place.empty() && place[0] == '/' && is_executable(fs::path(place) / "bwrap")) return fs::path(place) / "bwrap";
  }
  return {};
}

fs::path find_cage() {
  const fs::path here = executable_directory();
  for (const char* place : {".", "../libexec/attest", "../bin"}) {
    fs::path cage = (here / place / "attest-cage").lexically_normal();
    if (is_executable(cage)) return cage;
  }
  throw Error::at("attest-cage", "found neither in {0}, nor in {0}/../libexec/attest, nor in {0}/../bin",
                  here.string());
}

bool below(const fs::path& path, const fs::path& directory) {
  const auto difference = std::mismatch(directory.begin(), directory.end(), path.begin(), path.end());
  return difference.first == directory.end();
}

/// A user that no other process has, now or soon: numbers far above those that systems hand out, one a sandbox. Where a
/// container maps few numbers, those that systemd keeps for the same purpose.
std::optional<int64_t> fresh_uid(int64_t serial) {
  std::ifstream map("/proc/self/uid_map");
  int64_t top = 0;
  for (int64_t inside = 0, outside = 0, count = 0; map >> inside >> outside >> count;)
    top = std::max(top, inside + count);
  constexpr int64_t kBase = 0x50000000, kRoom = int64_t{1} << 29, kEach = 4096;
  constexpr int64_t kSmallBase = 61184, kSmallRoom = 4096;
  const int64_t pid = ::getpid();
  if (top >= kBase + kRoom) return kBase + (pid * kEach + serial % kEach) % kRoom;
  if (top >= kSmallBase + kSmallRoom) return kSmallBase + (pid * 61 + serial) % kSmallRoom;
  return std::nullopt;
}

/// The first on the way to a path that lets no other user through; the path itself, if it cannot be read; else nothing.
std::optional<fs::path> closed_at(const fs::path& path) {
  std::optional<fs::path> found;
  for (fs::path place = path;; place = place.parent_path()) {
    struct stat status {};
    const bool there = ::stat(place.c_str(), &status) == 0;
    mode_t wanted = S_IXOTH;
    if (place == path) wanted = S_ISDIR(status.st_mode) ? S_IROTH | S_IXOTH : S_IROTH;
    if (!there || (status.st_mode & wanted) != wanted) found = place;
    if (found == path || !place.has_relative_path()) return found;
  }
}

std::string closed_text(const fs::path& place) {
  return fmt::format("{} is closed to other users", place.string());
}

/// The files of a directory that is small enough to be copied, by their path in it; nothing if it is not.
std::optional<std::vector<fs::path>> few_files(const fs::path& directory) {
  constexpr size_t kMostFiles = 256;
  constexpr uintmax_t kMostBytes = uintmax_t{8} << 20;
  std::vector<fs::path> files;
  uintmax_t bytes = 0;
  std::error_code failed;
  for (auto it = fs::recursive_directory_iterator(directory, failed);
       !failed && it != fs::recursive_directory_iterator(); it.increment(failed)) {
    if (it->is_directory(failed) && !it->is_symlink(failed)) {
      if (it->path().filename() == "__pycache__") it.disable_recursion_pending();
      continue;
    }
    if (it->is_symlink(failed) || !it->is_regular_file(failed)) return std::nullopt;
    files.push_back(it->path().lexically_relative(directory));
    bytes += it->file_size(failed);
    if (files.size() > kMostFiles || bytes > kMostBytes) return std::nullopt;
  }
  if (failed) return std::nullopt;
  return files;
}

std::string gibibytes(int64_t bytes) {
  return bytes >= int64_t{1} << 30 ? fmt::format("{:g} GiB", static_cast<double>(bytes) / (1 << 30))
                                   : fmt::format("{:g} MiB", static_cast<double>(bytes) / (1 << 20));
}

}  // namespace

// -------------------------------------------------------------------------------------------------------- the cage

/// What a worker needs as long as it lives: the groups, and what is known of its start.
class Sandbox::Cage : public Confinement {
 public:
  /// `grouped`: processes and threads in its groups; absent: those of the policy, and bubblewrap's two.
  Cage(const SandboxPolicy& policy, std::vector<SandboxLayer> layers, std::optional<int64_t> grouped = std::nullopt)
      : policy_(policy), layers_(std::move(layers)), status_(make_pipe()) {
    static std::atomic<int64_t> serial{0};
    if (has("uid") && ::geteuid() == 0) uid_ = fresh_uid(++serial).value_or(0);
    for (const fs::path& path : policy.read_only) admit(path);
    for (const auto& [path, to] : inside_) keep_reachable(path);
    for (const fs::path& path : directories_) keep_reachable(path);
    if (has("cgroup") || has("freezer")) {
      group_ = ControlGroup::make({.memory_bytes = policy.memory_bytes,
                                   .processes = grouped.value_or(policy.processes + 2),
                                   .cores = policy.threads});
    }
    if (has("cgroup") && !group_.missing().empty()) lost("cgroup", group_.missing());
    if (has("freezer") && !group_.no_freezer().empty()) lost("freezer", group_.no_freezer());
  }

  ~Cage() override {
    group_.kill();
    group_.remove();
  }
  Cage(const Cage&) = delete;
  Cage& operator=(const Cage&) = delete;

  [[nodiscard]] bool has(std::string_view name) const {
    const auto layer = std::find_if(layers_.begin(), layers_.end(), [&](const auto& l) { return l.name == name; });
    return layer != layers_.end() && layer->active;
  }
  [[nodiscard]] const std::vector<SandboxLayer>& layers() const { return layers_; }

  [[nodiscard]] fs::path inside(const fs::path& path) const {
    const auto found = inside_.find(fs::absolute(path).lexically_normal());
    return found == inside_.end() || !has("bubblewrap") ? path : found->second;
  }

  [[nodiscard]] int64_t threads() const { return policy_.threads; }
  /// The whole command line.
  std::vector<std::string> arguments(std::vector<std::string> command);

  void freeze() override {
    if (!has("freezer")) return;
    frozen_ = true;
    group_.freeze();
    // Of one process its own limit takes care; children are only counted here.
    if (policy_.may_fork && group_.events().cpu > policy_.cpu) throw Error(explanation(""));
  }
  void thaw() override {
    if (!std::exchange(frozen_, false)) return;
    group_.thaw();
  }
  void kill() override {
    frozen_ = false;
    group_.kill();
  }
  std::string explanation(const std::string& output) override;

  /// What the cage has told so far, by name.
  const Json& told();

 private:
  void copy(const fs::path& from, const fs::path& to);
  void admit(const fs::path& path);
  void keep_reachable(const fs::path& path);
  void lost(std::string_view name, const std::string& why);
  void provide_program(std::string& program);

  SandboxPolicy policy_;
  std::vector<SandboxLayer> layers_;
  Ends status_;
  std::string heard_;
  Json told_ = Json::object();
  ControlGroup group_;
  CagePlan plan_;
  std::map<fs::path, fs::path> inside_;  // files that are copied
  std::vector<fs::path> directories_;    // that are mounted in their place
  int64_t uid_ = 0;
  bool frozen_ = false;
  bool wrapped_ = false;
};

/// Without bubblewrap there are no copies: a user of the worker's own would not get at what others may not.
void Sandbox::Cage::keep_reachable(const fs::path& path) {
  if (uid_ == 0 || has("bubblewrap")) return;
  std::error_code missing;
  const fs::path real = fs::canonical(path, missing);
  if (missing) return;  // Its start will say so.
  auto closed = closed_at(fs::absolute(path).lexically_normal());
  if (!closed) closed = closed_at(real);  // Of a link, the way to what it leads to as well.
  if (!closed) return;
  lost("uid", closed_text(*closed));
  uid_ = 0;
}

void Sandbox::Cage::lost(std::string_view name, const std::string& why) {
  for (SandboxLayer& layer : layers_) {
    if (layer.name == name) layer = {layer.name, false, why};
  }
  if (!policy_.insecure) throw Error::at("sandbox", "no {}: {}", name, why);
}

/// The worker finds a copy of a regular file in a place of its own.
void Sandbox::Cage::copy(const fs::path& from, const fs::path& to) {
  struct stat found {};
  if (::lstat(from.c_str(), &found) != 0) return;
  plan_.copies.push_back({from.string(), "", to.string(), (found.st_mode & S_IXUSR) != 0, false});
  plan_.file_bytes = std::max<int64_t>(plan_.file_bytes, found.st_size);
}

void Sandbox::Cage::admit(const fs::path& path) {
  fs::path whole = fs::absolute(path).lexically_normal();
  if (!whole.has_filename()) whole = whole.parent_path();
  struct stat status {};
  if (::lstat(whole.c_str(), &status) != 0) throw Error::at(path.string(), "{}", std::strerror(errno));
  if (S_ISLNK(status.st_mode)) {
    throw Error::at(path.string(), "is a symbolic link, which could lead anywhere; wanted the file itself");
  }
  if (inside_.contains(whole)) return;
  const auto taken = [&](const fs::path& place) {
    return std::any_of(inside_.begin(), inside_.end(), [&](const auto& one) { return one.second == place; });
  };
  fs::path to = fs::path(kInside) / whole.filename();
  for (int number = 2; taken(to); ++number) to = fs::path(kInside) / std::to_string(number) / whole.filename();

  if (S_ISREG(status.st_mode)) {
    inside_.emplace(whole, to);
    copy(whole, to);
  } else if (!S_ISDIR(status.st_mode)) {
    throw Error::at(path.string(), "is neither a regular file nor a directory");
  } else if (!whole.has_filename()) {
    throw Error::at(path.string(), "is everything; a sandbox shows what is needed");
  } else if (whole == "/usr" || below(whole, "/usr/lib")) {
    // Where the system's Python says that it lives. Its libraries are shown in any case, the rest is not needed.
  } else if (whole == "/usr/local") {
    plan_.mounts.push_back({"/usr/local/lib", "/usr/local/lib", true, false});
    directories_.emplace_back("/usr/local/lib");
  } else if (const auto files = few_files(whole)) {
    inside_.emplace(whole, to);
    for (const fs::path& file : *files) {
      inside_.emplace(whole / file, to / file);
      copy(whole / file, to / file);
    }
  } else {
    const auto closed = uid_ != 0 && has("bubblewrap") ? closed_at(whole) : std::nullopt;
    if (closed == whole) throw Error::at(path.string(), "cannot be shown: {}", closed_text(whole));
    plan_.mounts.push_back({whole.string(), whole.string(), false, closed.has_value()});
    directories_.push_back(whole);
  }
}

/// The program itself: where it lies for the worker, and everything on the way to it.
void Sandbox::Cage::provide_program(std::string& program) {
  const fs::path path = fs::absolute(program).lexically_normal();
  if (inside_.contains(path)) return;
  std::error_code missing;
  const fs::path real = fs::canonical(path, missing);
  if (missing) throw Error::at(program, "{}", missing.message());
  const auto shown = [&](const fs::path& place) {
    return below(place, "/usr/lib") || std::any_of(directories_.begin(), directories_.end(),
                                                   [&](const fs::path& directory) { return below(place, directory); });
  };
  if (shown(path)) {
    // A virtual environment's interpreter is a link to a link: each must lead somewhere in there too.
    std::set<fs::path> places{real};
    for (fs::path at = path; fs::is_symlink(fs::symlink_status(at));) {
      at = (at.parent_path() / fs::read_symlink(at)).lexically_normal();
      if (!places.insert(at).second) break;
    }
    const bool closed = uid_ != 0 && closed_at(real);
    for (const fs::path& place : places) {
      if (shown(place)) continue;
      if (closed) {
        copy(real, place);
      } else {
        plan_.mounts.push_back({real.string(), place.string(), false, false});
      }
    }
    return;
  }
  const bool of_the_system = below(path, "/usr") || below(path, "/bin") || below(path, "/sbin");
  if (!of_the_system) {
    admit(real);
    inside_[path] = inside_[real];
    return;
  }
  plan_.mounts.push_back({real.string(), path.string(), false, false});
  // An interpreter there has its library beside it.
  if (below(path, "/usr/local")) plan_.mounts.push_back({"/usr/local/lib", "/usr/local/lib", true, false});
}

std::vector<std::string> Sandbox::Cage::arguments(std::vector<std::string> command) {
  if (command.empty()) throw std::logic_error("Sandbox::wrap: no command");
  if (std::exchange(wrapped_, true)) throw std::logic_error("Sandbox::wrap: called twice; one worker a sandbox");
  keep_reachable(command[0]);
  plan_.parent = ::getpid();
  plan_.status = fmt::format("/proc/{}/fd/{}", ::getpid(), status_.write.get());
  for (const fs::path& directory : group_.directories()) plan_.groups.push_back(directory.string());
  plan_.uid = uid_;
  plan_.filter = has("seccomp");
  plan_.may_fork = policy_.may_fork;
  plan_.limited = has("rlimits");
  plan_.cpu_seconds = std::max<int64_t>(1, std::chrono::ceil<std::chrono::seconds>(policy_.cpu).count());
  plan_.processes = policy_.processes;
  // Address space that is reserved and never used is no harm; the control group counts what is used.
  plan_.data_bytes = 2 * policy_.memory_bytes;
  plan_.tmpfs_bytes = policy_.tmpfs_bytes;
  if (has("bubblewrap")) {
    plan_.bubblewrap = find_bubblewrap().string();
    provide_program(command[0]);
    for (const char* directory : {"/usr/lib", "/usr/lib32", "/usr/lib64"}) {
      plan_.mounts.push_back({directory, directory, true, false});
    }
    // Names of libraries, and what Debian's alternatives for BLAS lead through.
    plan_.mounts.push_back({"/etc/ld.so.cache", "/etc/ld.so.cache", true, false});
    plan_.mounts.push_back({"/etc/alternatives", "/etc/alternatives", true, false});
    plan_.copies.push_back({"", "attest:x:1000:1000::/tmp:/none\n", "/etc/passwd", false, false});
    plan_.copies.push_back({"", "attest:x:1000:\n", "/etc/group", false, false});
    // What libraries ask to choose their kernels by: all that there is of /proc and /sys.
    for (const char* file : {"/proc/cpuinfo", "/sys/devices/system/cpu/possible", "/sys/devices/system/cpu/present",
                             "/sys/devices/system/cpu/online", "/sys/devices/system/cpu/kernel_max"}) {
      plan_.copies.push_back({file, "", file, false, true});
    }
    for (std::string& argument : command) argument = inside(argument).string();
  }
  plan_.file_bytes = std::max(plan_.file_bytes, policy_.file_bytes);
  plan_.command = std::move(command);
  return {find_cage().string(), to_json(plan_).dump()};
}

const Json& Sandbox::Cage::told() {
  std::array<char, 4096> bytes;  // NOLINT: read() fills it
  for (ssize_t got = 0; (got = ::read(status_.read.get(), bytes.data(), bytes.size())) > 0;) {
    heard_.append(bytes.data(), static_cast<size_t>(got));
  }
  for (size_t end = 0; (end = heard_.find('\n')) != std::string::npos;) {
    const Json line = Json::parse(heard_.substr(0, end), nullptr, false);
    heard_.erase(0, end + 1);
    if (line.is_object()) told_.update(line);
  }
  return told_;
}

std::string Sandbox::Cage::explanation(const std::string& output) {
  if (const auto failed = told().find("failed"); failed != told().end() && failed->is_string()) {
    throw Error::at("sandbox", "the worker could not be started: {}{}{}", failed->get<std::string>(),
                    output.empty() ? "" : ": ", protocol::printable(output, 500));
  }
  const GroupEvents events = group_.events();
  if (events.out_of_memory > 0) return fmt::format("it may use {} of memory", gibibytes(policy_.memory_bytes));
  if (events.cpu >= policy_.cpu) {
    return fmt::format("it may use {:g} s of processor time", std::chrono::duration<double>(policy_.cpu).count());
  }
  if (events.forks_refused > 0) return fmt::format("it may have {} processes and threads", policy_.processes);
  return "";
}

// -------------------------------------------------------------------------------------------------------- the trial

namespace {

SandboxLayer layer(std::string_view name, const std::string& missing, const std::string& what) {
  return {std::string(name), missing.empty(), missing.empty() ? what : missing};
}

std::string own_network() {
  std::error_code ignored;
  return fs::read_symlink("/proc/self/ns/net", ignored).string();
}

}  // namespace

std::vector<SandboxLayer> Sandbox::probe() {
  static const std::vector<SandboxLayer> found = [] {
    TrialLimits limits;
    SandboxPolicy policy;
    policy.insecure = true;
    policy.memory_bytes = limits.memory_bytes;
    policy.processes = limits.processes;
    std::map<std::string, std::string> missing;
    const fs::path bubblewrap = find_bubblewrap();
    if (bubblewrap.empty()) missing["bubblewrap"] = "bwrap is not installed (Debian: bubblewrap)";
#ifndef ATTEST_HAS_SECCOMP
    missing["seccomp"] = "attest was built without libseccomp (Debian: libseccomp-dev)";
#endif
    if (::geteuid() == 0 && !fresh_uid(0)) missing["uid"] = "this container maps too few users";
    limits.by_user = ::geteuid() == 0 && !missing.contains("uid");
    std::string groups;
    {
      const ControlGroup group = ControlGroup::make(
          {.memory_bytes = limits.memory_bytes, .processes = limits.grouped, .cores = policy.threads});
      groups = group.description();
      if (!group.missing().empty()) {
        missing["cgroup"] = group.missing() + (::geteuid() == 0 ? "" : "; root may");
      }
      if (!group.no_freezer().empty()) {
        missing["freezer"] = group.no_freezer();
      } else {
        try {
          group.freeze();
          group.thaw();
        } catch (const Error& error) {
          missing["freezer"] = error.what();
        }
      }
      group.remove();
    }

    Trial trial;
    Json told;
    const auto begins = [&] {
      try {
        std::vector<SandboxLayer> assumed;
        for (const char* name : kLayers) assumed.push_back({name, !missing.contains(name), ""});
        const auto cage = std::make_shared<Cage>(policy, assumed, limits.grouped);
        const std::string program = find_cage().string();
        Worker worker({cage->arguments({program, "--inside"}), std::vector<std::string>{}, cage});
        const auto thaw = [&] {
          cage->thaw();
          // The cage tells what bubblewrap told it, at its own pace; and bubblewrap is frozen with the worker.
          const auto deadline = std::chrono::steady_clock::now() + 2s;
          while (!(told = cage->told()).contains("network") && cage->has("bubblewrap") &&
                 std::chrono::steady_clock::now() < deadline) {
            std::this_thread::sleep_for(1ms);
          }
        };
        for (const SandboxLayer& layer : cage->layers()) {
          if (!layer.active) missing.emplace(layer.name, layer.why);
        }
        limits.by_user = limits.by_user && cage->has("uid");
        trial = try_out(worker, thaw, limits);
      } catch (const Error& error) {
        trial.failed = error.what();
      }
      return trial.failed.empty();
    };
    bool begun = begins();
    if (!begun && !missing.contains("bubblewrap")) {
      missing["bubblewrap"] = fmt::format("{} does not work here: {}", bubblewrap.string(), trial.failed);
      begun = begins();
    }
    for (const char* name : kLayers) {
      if (!begun) missing.emplace(name, "the trial did not start: " + trial.failed);
      if (const std::string how = trial.got_past(name); !how.empty()) missing.emplace(name, how);
    }
    const bool caged = !missing.contains("bubblewrap");
    if (const std::string how = trial.got_past("capabilities"); caged && !how.empty()) missing.emplace("uid", how);
    if (!missing.contains("network")) {
      const int64_t inside = told.value("network", int64_t{-1});
      if (!caged) {
        missing["network"] = "it takes bubblewrap";
      } else if (inside <= 0 || own_network() == fmt::format("net:[{}]", inside)) {
        missing["network"] = "a confined process has the network of this one";
      }
    }

    const std::string user = ::geteuid() == 0
                                 ? "every worker gets a user of its own, without capabilities, no_new_privs"
                                 : "the user of attest itself, without capabilities, no_new_privs";
    return std::vector<SandboxLayer>{
        layer("bubblewrap", missing["bubblewrap"],
              bubblewrap.string() + ": own users, processes, mounts, IPC; read-only but for /tmp"),
        layer("seccomp", missing["seccomp"], "only the system calls that computing takes"),
        layer("cgroup", missing["cgroup"], groups),
        layer("freezer", missing["freezer"], "a worker runs only while a request is open"),
        layer("rlimits", missing["rlimits"], "processor time, data, stack, file size, open files, no core files"),
        layer("uid", missing["uid"], user),
        layer("network", missing["network"], "a namespace with nothing in it"),
    };
  }();
  return found;
}

// ------------------------------------------------------------------------------------------------------- the sandbox

Sandbox::Sandbox(const SandboxPolicy& policy) {
  std::vector<SandboxLayer> layers = probe();
  for (SandboxLayer& one : layers) {
    if (std::find(policy.without.begin(), policy.without.end(), one.name) != policy.without.end()) {
      one = {one.name, false, "left out on request"};
    }
    if (!one.active && !policy.insecure) {
      throw Error::at("sandbox", "no {}: {}. `attest doctor` lists what is missing; --insecure goes on without",
                      one.name, one.why);
    }
  }
  static std::once_flag once;
  std::call_once(once, [] { ControlGroup::sweep(); });
  cage_ = std::make_shared<Cage>(policy, std::move(layers));
}

Sandbox::~Sandbox() = default;

WorkerOptions Sandbox::wrap(std::vector<std::string> command) {
  WorkerOptions options;
  options.command = cage_->arguments(std::move(command));
  options.environment = {"PATH=/usr/bin:/bin", "HOME=/tmp", "TMPDIR=/tmp", "LANG=C.UTF-8", "LC_ALL=C.UTF-8"};
  for (const char* name : {"OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"}) {
    options.environment->push_back(fmt::format("{}={}", name, cage_->threads()));
  }
  options.confinement = cage_;
  return options;
}

fs::path Sandbox::inside(const fs::path& path) const {
  return cage_->inside(path);
}
void Sandbox::freeze() {
  cage_->freeze();
}
void Sandbox::thaw() {
  cage_->thaw();
}
void Sandbox::kill() {
  cage_->kill();
}
const std::vector<SandboxLayer>& Sandbox::layers() const {
  return cage_->layers();
}

}  // namespace attest
