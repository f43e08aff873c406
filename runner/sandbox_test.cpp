// SPDX-License-Identifier: Apache-2.0
// Each layer is made to bite, where need be with the others left out. ATTEST_PRISONER is the worker that tries to get
// out.
#include "runner/sandbox.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/matchers/catch_matchers_exception.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <csignal>
#include <fstream>
#include <map>
#include <memory>
#include <set>
#include <thread>

#include "cases/error.h"
#include "cases/json.h"
#include "runner/cage_plan.h"
#include "runner/cage_trial.h"

namespace attest {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;
using Catch::Matchers::ContainsSubstring;
using Catch::Matchers::MessageMatches;
using Catch::Matchers::StartsWith;
using Clock = std::chrono::steady_clock;
using Kind = WorkerFailure::Kind;

constexpr auto kLimit = 30s;

/// Skips where a layer is missing: what it keeps out cannot be shown then.
void need_all_layers() {
  for (const SandboxLayer& layer : Sandbox::probe()) {
    if (!layer.active) SKIP("no " << layer.name << ": " << layer.why);
  }
}

/// A policy with all layers but some.
SandboxPolicy without(std::vector<std::string> layers) {
  SandboxPolicy policy;
  policy.insecure = true;
  policy.without = std::move(layers);
  return policy;
}

/// The prisoner in its sandbox.
class Prison {
 public:
  explicit Prison(const SandboxPolicy& policy = {}) : sandbox(policy), worker(sandbox.wrap({ATTEST_PRISONER})) {}

  Worker::Result<Json> ask(const std::string& deed, Json arguments = Json::object(), Worker::Duration limit = kLimit,
                           std::optional<int> fd = std::nullopt) {
    arguments["op"] = deed;
    auto reply = worker.call(std::move(arguments), fd, limit);
    if (!reply) return reply;
    return (*reply)["result"];
  }
  /// The deed's result, which must come.
  Json result(const std::string& deed, Json arguments = Json::object()) {
    const auto answer = ask(deed, std::move(arguments));
    if (!answer) FAIL(deed << ": " << answer.error().text << "; " << worker.output());
    return *answer;
  }

  Sandbox sandbox;
  Worker worker;
};

/// Memory that is shared with a worker, with a number in it that it can count up.
struct Shared {
  Shared() : fd(::memfd_create("test", MFD_CLOEXEC)) {
    REQUIRE(::ftruncate(fd.get(), 4096) == 0);
    void* mapped = ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
    REQUIRE(mapped != MAP_FAILED);
    counter = static_cast<std::atomic<uint64_t>*>(mapped);
  }
  ~Shared() { ::munmap(counter, 4096); }
  Shared(const Shared&) = delete;
  Shared& operator=(const Shared&) = delete;

  UniqueFd fd;
  std::atomic<uint64_t>* counter = nullptr;
};

template <typename Condition>
bool soon(Condition condition) {
  for (const auto end = Clock::now() + 5s; Clock::now() < end; std::this_thread::sleep_for(1ms)) {
    if (condition()) return true;
  }
  return false;
}

/// A folder that is gone afterwards.
struct Folder {
  Folder() : path(fs::temp_directory_path() / fmt::format("attest-sandbox-test-{}", ::getpid())) {
    fs::create_directories(path);
  }
  ~Folder() { fs::remove_all(path); }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  fs::path file(const std::string& name, const std::string& text) const {
    std::ofstream(path / name) << text;
    return path / name;
  }
  fs::path path;
};

/// The directories of the groups that this process has made, in all trees.
std::vector<fs::path> own_groups() {
  std::vector<fs::path> found;
  const std::string mark = fmt::format("-{}-", ::getpid());
  std::error_code none;
  for (auto it =
           fs::recursive_directory_iterator("/sys/fs/cgroup", fs::directory_options::skip_permission_denied, none);
       it != fs::recursive_directory_iterator(); it.increment(none)) {
    const std::string name = it->path().filename().string();
    if (name.starts_with("attest-") && name.find(mark) != std::string::npos) found.push_back(it->path());
  }
  return found;
}

bool is_refusal(const Json& result) {
  const int64_t number = result;
  return number == -EPERM || number == -ENOSYS;
}

// ------------------------------------------------------------------------------------------------------------- layers

TEST_CASE("every layer is listed, with what it is or what is missing") {
  const auto& layers = Sandbox::probe();
  std::vector<std::string> names;
  for (const SandboxLayer& layer : layers) {
    names.push_back(layer.name);
    CHECK_FALSE(layer.why.empty());
  }
  CHECK(names == std::vector<std::string>{"bubblewrap", "seccomp", "cgroup", "freezer", "rlimits", "uid", "network"});
}

TEST_CASE("a missing layer refuses, whichever it is") {
  need_all_layers();
  const auto name = GENERATE("bubblewrap", "seccomp", "cgroup", "freezer", "rlimits", "uid", "network");
  SandboxPolicy policy;
  policy.without = {name};
  CHECK_THROWS_MATCHES(Sandbox(policy), Error, MessageMatches(StartsWith(fmt::format("sandbox: no {}: ", name))));
  policy.insecure = true;
  const Sandbox sandbox(policy);
  for (const SandboxLayer& layer : sandbox.layers()) CHECK(layer.active == (layer.name != name));
}

TEST_CASE("a worker works without any layer, if that is wanted") {
  const auto missing =
      GENERATE(std::vector<std::string>{"bubblewrap", "network"},
               std::vector<std::string>{"bubblewrap", "seccomp", "cgroup", "freezer", "rlimits", "uid", "network"});
  Prison prison(without(missing));
  CHECK(prison.result("nothing") == 0);
  CHECK(prison.ask("exit", {{"code", 3}}).error().text == "exited with code 3");
}

// ---------------------------------------------------------------------------------------------------------- its trial

TEST_CASE("without a sandbox the trial gets past every layer") {
  Worker worker({{ATTEST_CAGE, "--inside"}, std::vector<std::string>{}});
  const Trial trial = try_out(
      worker, [] {}, TrialLimits{});
  REQUIRE(trial.failed.empty());
  for (const char* name : {"bubblewrap", "seccomp", "cgroup", "freezer", "rlimits", "uid"}) {
    CAPTURE(name);
    CHECK_FALSE(trial.got_past(name).empty());
  }
  CHECK_THAT(trial.got_past("cgroup"), ContainsSubstring("40 threads"));
  CHECK_THAT(trial.got_past("rlimits"), ContainsSubstring("processor time, data, "));
}

TEST_CASE("the trial gets past a layer that is not there, and past no other") {
  need_all_layers();
  using Names = std::vector<std::string>;
  // A group of a freezer alone would still have its limits.
  const auto left_out =
      GENERATE(Names{}, Names{"seccomp"}, Names{"freezer"}, Names{"rlimits"}, Names{"cgroup", "freezer"});
  TrialLimits limits;
  limits.by_user = ::geteuid() == 0;
  SandboxPolicy policy = without(left_out);
  policy.memory_bytes = limits.memory_bytes;
  policy.processes = limits.grouped - 2;
  Sandbox sandbox(policy);
  Worker worker(sandbox.wrap({ATTEST_CAGE, "--inside"}));
  const Trial trial = try_out(
      worker, [&] { sandbox.thaw(); }, limits);
  REQUIRE(trial.failed.empty());
  Names past;
  for (const auto& [name, how] : trial.past) {
    UNSCOPED_INFO(name << ": " << how);
    past.push_back(name);
  }
  CHECK(past == left_out);
  if (limits.by_user && trial.past.contains("cgroup"))
    CHECK_THAT(trial.got_past("cgroup"), ContainsSubstring("fills more than 64 MiB"));
}

// ------------------------------------------------------------------------------------------------- a worker, as before

TEST_CASE("a real worker loads a backend in there, and closes in order") {
  need_all_layers();
  const fs::path library = ATTEST_TEST_BACKENDS "/attest-backend-hostile.so";
  SandboxPolicy policy;
  policy.read_only = {library};
  Sandbox sandbox(policy);
  CHECK(sandbox.inside(library) == "/attest/attest-backend-hostile.so");
  Worker worker(sandbox.wrap({ATTEST_WORKER}));
  const auto opened = worker.open(sandbox.inside(library).string(), {}, kLimit);
  if (!opened) FAIL(opened.error().text << "; " << worker.output());
  CHECK(opened->reply.status == ATTEST_OK);
  const auto closed = worker.close(kLimit);
  REQUIRE(closed);
  CHECK(closed->status == ATTEST_OK);
  CHECK_FALSE(worker.alive());
}

TEST_CASE("descriptors 0 to 3 are there and no others, the environment is empty but for a few names") {
  need_all_layers();
  ::setenv("ATTEST_SECRET", "hidden", 1);
  Prison prison;
  const Json who = prison.result("identity");
  ::unsetenv("ATTEST_SECRET");
  CHECK(who["descriptors"] == Json{0, 1, 2, 3});
  CHECK(who["uid"] != 0);
  CHECK(who["gid"] != 0);
  CHECK(who["pid"] == 2);
  for (const std::string entry : who["environment"]) {
    const std::string name = entry.substr(0, entry.find('='));
    CAPTURE(name);
    const std::vector<std::string> wanted{
        "PATH", "HOME", "TMPDIR", "LANG", "LC_ALL", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS",
        "PWD"};
    CHECK(std::find(wanted.begin(), wanted.end(), name) != wanted.end());
  }
}

TEST_CASE("the end of a worker is told as if there were no sandbox") {
  need_all_layers();
  CHECK(Prison().ask("exit", {{"code", 0}}).error().text == "exited with code 0");
  CHECK(Prison().ask("exit", {{"code", 3}}).error().text == "exited with code 3");
  CHECK(Prison().ask("raise", {{"signal", SIGSEGV}}).error().text == "killed by SIGSEGV");
  CHECK(Prison().ask("raise", {{"signal", SIGABRT}}).error().text == "killed by SIGABRT");
  CHECK(Prison().ask("raise", {{"signal", SIGKILL}}).error().text == "killed by SIGKILL");
}

TEST_CASE("a program that cannot be started is the grader's problem, not the submission's") {
  need_all_layers();
  const Folder folder;
  const fs::path broken = folder.file("program", "#!/nowhere/interpreter\n");
  fs::permissions(broken, fs::perms::owner_all | fs::perms::others_exec | fs::perms::others_read);
  Sandbox sandbox(SandboxPolicy{});
  Worker worker(sandbox.wrap({broken.string()}));
  CHECK_THROWS_MATCHES(
      worker.call(Json{{"op", "nothing"}}, std::nullopt, kLimit), Error,
      MessageMatches(StartsWith("sandbox: the worker could not be started: ") && ContainsSubstring("bwrap")));
  Sandbox other(SandboxPolicy{});
  CHECK_THROWS_AS(other.wrap({"/nowhere/program"}), Error);
}

// ------------------------------------------------------------------------------------------------------------- mounts

TEST_CASE("what is outside cannot be read, and nothing but /tmp can be written") {
  need_all_layers();
  const Folder folder;
  const fs::path secret = folder.file("golden.json", "expected");
  const fs::path shown = folder.file("kv_attention.py", "print(1)");
  SandboxPolicy policy;
  policy.read_only = {shown};
  Prison prison(policy);
  CHECK(prison.result("read", {{"path", prison.sandbox.inside(shown).string()}}) == "print(1)");
  for (const std::string& path :
       {secret.string(), shown.string(), std::string(ATTEST_PRISONER), std::string("/etc/shadow"),
        std::string("/proc/self/maps"), std::string("/proc/1/environ"), std::string("/etc/hostname"),
        std::string("/sys/fs/cgroup"), std::string("/bin/sh"), std::string("/usr/bin/env")}) {
    CAPTURE(path);
    CHECK(prison.result("read", {{"path", path}}) == -ENOENT);
  }
  Json root = prison.result("list", {{"path", "/"}});
  std::sort(root.begin(), root.end());
  CHECK(root == Json{"attest", "dev", "etc", "lib", "lib64", "proc", "sys", "tmp", "usr"});
  CHECK(prison.result("list", {{"path", "/proc"}}) == Json{"cpuinfo"});
  // As spec/sandbox.md lists it.
  CHECK(prison.result("list", {{"path", "/sys"}}) == Json{"devices"});
  CHECK(prison.result("list", {{"path", "/sys/devices"}}) == Json{"system"});
  CHECK(prison.result("list", {{"path", "/sys/devices/system"}}) == Json{"cpu"});
  const std::map<std::string, std::set<std::string>> listed{
      {"/sys/devices/system/cpu", {"possible", "present", "online", "kernel_max"}},
      {"/etc", {"passwd", "group", "ld.so.cache", "alternatives"}},
      {"/dev", {"null", "zero", "full", "random", "urandom"}}};
  for (const auto& [path, names] : listed) {
    for (const std::string name : prison.result("list", {{"path", path}})) {
      CAPTURE(path, name);
      CHECK(names.contains(name));
    }
  }
  CHECK(prison.result("list", {{"path", "/tmp"}}) == Json::array());
  for (const char* path : {"/x", "/attest/x", "/usr/lib/x", "/etc/passwd", "/dev/x", "/attest/kv_attention.py"}) {
    CAPTURE(path);
    const Json result = prison.result("write", {{"path", path}});
    CHECK((result == -EROFS || result == -EACCES));
  }
  const std::string written = fmt::format("/tmp/attest-sandbox-test-written-{}", ::getpid());
  CHECK(prison.result("write", {{"path", written}}) == 1);
  CHECK_FALSE(fs::exists(written));
  CHECK(prison.result("execute", {{"path", "/bin/sh"}}) == -ENOENT);
  CHECK(Prison().result("list", {{"path", "/tmp"}}) == Json::array());  // nothing is left to the next one
}

TEST_CASE("a link is not followed, a pipe is not waited for, files of one name stay two") {
  need_all_layers();
  const Folder folder;
  const fs::path secret = folder.file("golden.json", "expected");
  const fs::path link = folder.path / "kv_attention.py";
  fs::create_symlink(secret, link);
  SandboxPolicy policy;
  policy.read_only = {link};
  CHECK_THROWS_MATCHES(Sandbox(policy), Error, MessageMatches(ContainsSubstring("is a symbolic link")));
  const fs::path pipe = folder.path / "pipe";
  REQUIRE(::mkfifo(pipe.c_str(), 0666) == 0);
  policy.read_only = {pipe};
  CHECK_THROWS_MATCHES(Sandbox(policy), Error, MessageMatches(ContainsSubstring("is neither")));
  policy.read_only = {folder.path / "none"};
  CHECK_THROWS_MATCHES(Sandbox(policy), Error, MessageMatches(ContainsSubstring("No such file")));

  fs::create_directory(folder.path / "other");
  const fs::path first = folder.file("worker.py", "first"), second = folder.file("other/worker.py", "second");
  policy.read_only = {first, second, first};
  Prison prison(policy);
  CHECK(prison.result("read", {{"path", prison.sandbox.inside(first).string()}}) == "first");
  CHECK(prison.result("read", {{"path", prison.sandbox.inside(second).string()}}) == "second");
  CHECK(prison.sandbox.inside("/elsewhere") == "/elsewhere");
}

TEST_CASE("a file that only its owner may read can be a submission, a closed directory is refused") {
  need_all_layers();
  const Folder folder;
  const fs::path file = folder.file("kv_attention.py", "mine");
  fs::permissions(file, fs::perms::owner_read);
  fs::permissions(folder.path, fs::perms::owner_all);
  SandboxPolicy policy;
  policy.read_only = {file};
  Prison prison(policy);
  CHECK(prison.result("read", {{"path", "/attest/kv_attention.py"}}) == "mine");
  for (int i = 0; i < 300; ++i) folder.file("big" + std::to_string(i), "");  // too many to be copied
  fs::permissions(file, fs::perms::owner_all | fs::perms::others_read);
  policy.read_only = {folder.path};
  if (::geteuid() == 0) {
    CHECK_THROWS_MATCHES(Sandbox(policy), Error, MessageMatches(ContainsSubstring("is closed to other users")));
  }
  fs::permissions(folder.path, fs::perms::owner_all | fs::perms::others_exec | fs::perms::others_read);
  Prison open(policy);
  CHECK(open.result("read", {{"path", file.string()}}) == "mine");
  CHECK(open.result("write", {{"path", file.string()}}) != 1);
  CHECK(open.result("write", {{"path", (folder.path / "new").string()}}) != 1);
}

TEST_CASE("a directory below a closed one can be shown, and nothing beside it") {
  need_all_layers();
  if (::geteuid() != 0) SKIP("only root can");
  const Folder folder;
  fs::create_directory(folder.path / "venv");
  for (int i = 0; i < 300; ++i) folder.file("venv/big" + std::to_string(i), "shown");
  folder.file("beside", "hidden");
  fs::permissions(folder.path, fs::perms::owner_all);
  SandboxPolicy policy;
  policy.read_only = {folder.path / "venv"};
  Prison prison(policy);
  CHECK(prison.result("read", {{"path", (folder.path / "venv/big7").string()}}) == "shown");
  CHECK(prison.result("write", {{"path", (folder.path / "venv/big7").string()}}) != 1);
  CHECK(prison.result("list", {{"path", folder.path.string()}}) == Json{"venv"});
  CHECK(prison.result("list", {{"path", "/mnt"}}) == -ENOENT);
}

TEST_CASE("a program in a directory that is shown may be a link to a link, as in a virtual environment") {
  need_all_layers();
  const Folder folder;
  fs::create_directories(folder.path / "venv");
  fs::create_directories(folder.path / "system");
  for (int i = 0; i < 300; ++i) folder.file("venv/big" + std::to_string(i), "shown");  // More than would be copied.
  fs::create_symlink(ATTEST_PRISONER, folder.path / "system/program-3.1");
  fs::create_symlink("program-3.1", folder.path / "system/program");
  fs::create_symlink(folder.path / "system/program", folder.path / "venv/program");
  fs::create_symlink("program", folder.path / "venv/alias");
  SandboxPolicy policy;
  policy.read_only = {folder.path / "venv"};
  Sandbox sandbox(policy);
  Worker worker(sandbox.wrap({(folder.path / "venv/alias").string()}));
  const auto reply =
      worker.call(Json{{"op", "read"}, {"path", (folder.path / "venv/big7").string()}}, std::nullopt, kLimit);
  REQUIRE(reply);
  CHECK(reply->at("result") == "shown");
}

TEST_CASE("a program below a closed directory runs, with and without bubblewrap, by its name and by a link") {
  need_all_layers();
  if (::geteuid() != 0) SKIP("only root can");
  const Folder folder;
  fs::create_directories(folder.path / "closed");
  fs::create_directories(folder.path / "venv");
  for (int i = 0; i < 300; ++i) folder.file("venv/big" + std::to_string(i), "shown");  // More than would be copied.
  const fs::path program = folder.path / "closed/program", link = folder.path / "venv/program";
  fs::copy_file(ATTEST_PRISONER, program);
  fs::create_symlink(program, link);
  fs::permissions(folder.path / "closed", fs::perms::owner_all);

  const auto name = GENERATE_REF(program, link);
  CAPTURE(name);
  const auto runs = [&](SandboxPolicy policy) {
    policy.read_only = {folder.path / "venv"};
    Sandbox sandbox(policy);
    Worker worker(sandbox.wrap({name.string()}));
    const auto reply = worker.call(Json{{"op", "nothing"}}, std::nullopt, kLimit);
    if (!reply) FAIL(reply.error().text << "; " << worker.output());
    CHECK(reply->at("result") == 0);
    return sandbox.layers();
  };
  for (const SandboxLayer& layer : runs({})) CHECK(layer.active);
  // Nothing is copied there: the worker stays the user who may go through, and the layers say so.
  for (const SandboxLayer& layer : runs(without({"bubblewrap", "network"}))) {
    if (layer.name != "uid") continue;
    CHECK_FALSE(layer.active);
    CHECK(layer.why == (folder.path / "closed").string() + " is closed to other users");
  }
}

TEST_CASE("a small directory is copied, without its surroundings") {
  need_all_layers();
  const Folder folder;
  fs::create_directories(folder.path / "code/part/__pycache__");
  const fs::path code = folder.path / "code";
  const fs::path worker = folder.file("code/worker.py", "worker"), part = folder.file("code/part/one.py", "one");
  folder.file("code/part/__pycache__/one.pyc", "");
  folder.file("golden.json", "expected");
  SandboxPolicy policy;
  policy.read_only = {code, "/usr", "/usr/lib/python3"};
  Prison prison(policy);
  CHECK(prison.sandbox.inside(worker) == "/attest/code/worker.py");
  CHECK(prison.result("read", {{"path", prison.sandbox.inside(worker).string()}}) == "worker");
  CHECK(prison.result("read", {{"path", prison.sandbox.inside(part).string()}}) == "one");
  CHECK(prison.result("list", {{"path", "/attest/code/part"}}) == Json{"one.py"});
  CHECK(prison.result("list", {{"path", folder.path.string()}}) == -ENOENT);
  CHECK(prison.result("list", {{"path", "/usr/bin"}}) == -ENOENT);
  policy.read_only = {"/"};
  CHECK_THROWS_MATCHES(Sandbox(policy), Error, MessageMatches(ContainsSubstring("is everything")));
}

TEST_CASE("/tmp has a size") {
  need_all_layers();
  SandboxPolicy policy;
  policy.tmpfs_bytes = 8 << 20;
  policy.file_bytes = 4 << 20;
  Prison prison(policy);
  const int64_t filled = prison.result("fill", {{"path", "/tmp"}, {"each", 16 << 20}});
  CHECK(filled == policy.file_bytes);  // a file first
  Prison again(policy);
  const int64_t all = again.result("fill", {{"path", "/tmp"}, {"each", 2 << 20}});
  CHECK(all > 0);
  CHECK(all <= policy.tmpfs_bytes);
  CHECK(again.result("fill", {{"path", "/dev/shm"}, {"each", 1 << 20}}) == -ENOENT);
}

// ------------------------------------------------------------------------------------------------------------- network

TEST_CASE("no network: neither a namespace nor a filter lets it through") {
  need_all_layers();
  const UniqueFd listener(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  REQUIRE(::bind(listener.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
  REQUIRE(::listen(listener.get(), 1) == 0);
  socklen_t size = sizeof address;
  REQUIRE(::getsockname(listener.get(), reinterpret_cast<sockaddr*>(&address), &size) == 0);
  const Json here{{"address", "127.0.0.1"}, {"port", ntohs(address.sin_port)}};
  const Json far{{"address", "192.0.2.1"}, {"port", 80}};

  // The prisoner does get through where nothing stops it.
  CHECK(Prison(without({"bubblewrap", "network", "seccomp"})).result("connect", here) == 0);
  Prison filtered;
  CHECK(filtered.result("connect", here) == -EPERM);
  for (const int family : {AF_UNIX, AF_INET, AF_INET6, AF_NETLINK, AF_PACKET, 38 /* AF_ALG */, 40 /* AF_VSOCK */}) {
    CHECK(filtered.result("socket", {{"family", family}}) == -EPERM);
  }
  Prison unfiltered(without({"seccomp"}));
  CHECK(unfiltered.result("connect", here) == -ECONNREFUSED);  // a loopback of its own, where nobody listens
  CHECK(unfiltered.result("connect", far) == -ENETUNREACH);
}

// --------------------------------------------------------------------------------------------------- what it may call

TEST_CASE("calls that are no computing are refused") {
  need_all_layers();
  Prison prison;
  for (const char* deed : {"ptrace", "process_vm_readv", "unshare", "clone with a namespace", "mount", "become root"}) {
    CAPTURE(deed);
    CHECK(prison.result(deed) == -EPERM);
  }
  CHECK(prison.result("clone3") == -ENOSYS);  // the C library falls back to clone then
  const std::map<std::string, long> calls{{"bpf", SYS_bpf},
                                          {"perf_event_open", SYS_perf_event_open},
                                          {"keyctl", SYS_keyctl},
                                          {"userfaultfd", SYS_userfaultfd},
                                          {"setns", SYS_setns},
                                          {"io_uring_setup", SYS_io_uring_setup},
                                          {"kexec_load", SYS_kexec_load},
                                          {"init_module", SYS_init_module},
                                          {"pidfd_open", SYS_pidfd_open},
                                          {"pidfd_getfd", SYS_pidfd_getfd},
                                          {"memfd_create", SYS_memfd_create},
                                          {"open_by_handle_at", SYS_open_by_handle_at},
                                          {"shmget", SYS_shmget},
                                          {"personality", SYS_personality},
                                          {"seccomp", SYS_seccomp},
                                          {"execveat", SYS_execveat},
                                          {"mount_setattr", SYS_mount_setattr},
                                          {"syslog", SYS_syslog},
                                          {"landlock", 444},
                                          {"one that does not exist yet", 2000}};
  for (const auto& [name, number] : calls) {
    CAPTURE(name);
    CHECK(is_refusal(prison.result("call", {{"number", number}})));
  }
  CHECK(is_refusal(prison.result("ioctl", {{"request", 0x5412 /* TIOCSTI */}})));
  // Neither with bits that the kernel does not look at.
  CHECK(is_refusal(prison.result("ioctl", {{"request", 0x100005412}})));
  CHECK(prison.result("ioctl", {{"request", 0x5401 /* TCGETS */}}) == -ENOTTY);
  CHECK(is_refusal(prison.result("another's limit")));
  CHECK(prison.result("raise a limit") == -EPERM);
}

TEST_CASE("calls with another architecture's numbers end the process") {
  need_all_layers();
#ifdef __x86_64__
  Prison prison;
  const auto answer = prison.ask("call", {{"number", 0x40000000 + 39 /* getpid of x32 */}});
  REQUIRE_FALSE(answer);
  CHECK(answer.error().text == "killed by SIGSYS");
#endif
}

TEST_CASE("nothing of the sandbox can be killed from inside") {
  need_all_layers();
  Prison prison;
  CHECK(prison.result("kill init") == 0);  // the kernel drops it: it is the first process of that namespace
  CHECK(prison.result("nothing") == 0);
  const Json result = prison.result("kill everybody");
  CHECK((result == 0 || result == -ESRCH));
  CHECK(prison.result("nothing") == 0);
}

// ------------------------------------------------------------------------------------------------------------- amounts

TEST_CASE("a fork bomb: no processes at all, or as many as are allowed") {
  need_all_layers();
  Prison prison;
  CHECK(prison.result("fork") == 0);
  SandboxPolicy policy;
  policy.processes = 16;
  CHECK(Prison(policy).result("threads") <= 15);
  policy.may_fork = true;
  CHECK(Prison(policy).result("fork") == 15);
  // The control group does that alone, and so does the limit.
  SandboxPolicy group = without({"rlimits"});
  group.may_fork = true;
  group.processes = 16;
  CHECK(Prison(group).result("fork") == 15);
  if (::geteuid() == 0) {
    SandboxPolicy limit = without({"cgroup"});
    limit.may_fork = true;
    limit.processes = 16;
    CHECK(Prison(limit).result("fork") <= 15);
  }
}

TEST_CASE("a memory bomb is killed, and the reason is told") {
  need_all_layers();
  SandboxPolicy policy;
  policy.memory_bytes = 128 << 20;
  Prison prison(policy);
  CHECK(prison.result("memory", {{"bytes", 32 << 20}}) == (32 << 20));
  const auto answer = prison.ask("memory", {{"bytes", 192 << 20}});
  REQUIRE_FALSE(answer);
  CHECK(answer.error().kind == Kind::died);
  CHECK(answer.error().text == "killed by SIGKILL (it may use 128 MiB of memory)");
  // A reservation far beyond it is refused outright.
  Prison other(policy);
  CHECK(other.result("memory", {{"bytes", int64_t{1} << 40}}) == -ENOMEM);
}

TEST_CASE("files in /tmp count as memory") {
  need_all_layers();
  SandboxPolicy policy;
  policy.memory_bytes = 64 << 20;
  policy.tmpfs_bytes = int64_t{1} << 30;
  policy.file_bytes = int64_t{1} << 30;
  const auto answer = Prison(policy).ask("fill", {{"path", "/tmp"}, {"each", 512 << 20}});
  REQUIRE_FALSE(answer);
  CHECK_THAT(answer.error().text, ContainsSubstring("64 MiB of memory"));
}

TEST_CASE("processor time is limited, also for whom ignores the signal") {
  need_all_layers();
  SandboxPolicy policy;
  policy.cpu = 1000ms;
  Prison prison(policy);
  const auto begin = Clock::now();
  const auto answer = prison.ask("spin");
  REQUIRE_FALSE(answer);
  CHECK(Clock::now() - begin < 10s);
  CHECK(answer.error().text == "killed by SIGKILL (it may use 1 s of processor time)");
}

// -------------------------------------------------------------------------------------------------------------- frozen

TEST_CASE("nobody writes after the reply") {
  need_all_layers();
  const auto deed = GENERATE("thread that writes", "grandchild that writes");
  CAPTURE(deed);
  const Shared shared;
  SandboxPolicy policy;
  policy.may_fork = true;
  policy.threads = 2;
  Prison prison(policy);
  for (int round = 0; round < 3; ++round) {
    REQUIRE(prison.ask(round == 0 ? deed : "nothing", Json::object(), kLimit, shared.fd.get()));
    const uint64_t then = *shared.counter;
    std::this_thread::sleep_for(30ms);
    CHECK(*shared.counter == then);
  }
  prison.sandbox.thaw();
  const uint64_t then = *shared.counter;
  CHECK(soon([&] { return *shared.counter > then; }));
}

TEST_CASE("without a freezer it would have written: the test above can fail") {
  need_all_layers();
  const Shared shared;
  Prison prison(without({"freezer"}));
  REQUIRE(prison.ask("thread that writes", Json::object(), kLimit, shared.fd.get()));
  CHECK(soon([&] { return *shared.counter > 0; }));
  const uint64_t then = *shared.counter;
  CHECK(soon([&] { return *shared.counter > then; }));
}

/// Has a grandchild of the worker count, from now on and for ever.
std::unique_ptr<Prison> with_grandchild(const Shared& shared) {
  SandboxPolicy policy;
  policy.may_fork = true;
  auto prison = std::make_unique<Prison>(policy);
  REQUIRE(prison->ask("grandchild that writes", Json::object(), kLimit, shared.fd.get()));
  prison->sandbox.thaw();
  REQUIRE(soon([&] { return *shared.counter > 0; }));
  return prison;
}

TEST_CASE("a grandchild in a session of its own dies with the worker") {
  need_all_layers();
  const Shared shared;
  with_grandchild(shared).reset();
  const uint64_t then = *shared.counter;
  std::this_thread::sleep_for(30ms);
  CHECK(*shared.counter == then);
  CHECK(own_groups().empty());
}

TEST_CASE("a worker that hangs is ended in time, frozen or not, and leaves no group") {
  need_all_layers();
  {
    Prison prison;
    const auto begin = Clock::now();
    const auto answer = prison.ask("spin", Json::object(), 200ms);
    CHECK(answer.error().kind == Kind::timed_out);
    CHECK(Clock::now() - begin < 3s);
    Prison frozen;
    REQUIRE(frozen.ask("nothing"));
    CHECK_FALSE(own_groups().empty());
  }
  CHECK(own_groups().empty());
}

TEST_CASE("the parent dies: its worker, frozen as it is, and its groups go too") {
  need_all_layers();
  std::array<int, 2> ends{};
  REQUIRE(::pipe(ends.data()) == 0);
  const pid_t parent = ::fork();
  if (parent == 0) {
    ::close(ends[0]);
    auto* prison = new Prison;  // NOLINT: never to be taken down in order
    const auto answer = prison->ask("nothing");
    std::string text = answer ? "" : "no answer";
    for (const fs::path& group : own_groups()) text += group.string() + "\n";
    if (::write(ends[1], text.data(), text.size()) < 0) ::_exit(1);
    ::raise(SIGKILL);
  }
  ::close(ends[1]);
  std::string text(8192, '\0');
  text.resize(static_cast<size_t>(std::max<ssize_t>(0, ::read(ends[0], text.data(), text.size()))));
  ::close(ends[0]);
  int status = 0;
  ::waitpid(parent, &status, 0);
  REQUIRE(WIFSIGNALED(status));
  std::istringstream lines(text);
  std::vector<fs::path> groups;
  for (std::string line; std::getline(lines, line);) groups.emplace_back(line);
  REQUIRE_FALSE(groups.empty());
  for (const fs::path& group : groups) CHECK(soon([&] { return !fs::exists(group); }));
}

TEST_CASE("the cage itself is killed: so is what was in it") {
  need_all_layers();
  const Shared shared;
  const auto prison = with_grandchild(shared);
  ::kill(prison->worker.pid(), SIGKILL);
  CHECK(soon([&] {
    const uint64_t then = *shared.counter;
    std::this_thread::sleep_for(20ms);
    return *shared.counter == then;
  }));
  CHECK_FALSE(prison->ask("nothing"));
}

// -------------------------------------------------------------------------------------------------------------- plan

TEST_CASE("a plan survives its way to the cage, and a broken one is refused") {
  CagePlan plan;
  plan.parent = 7;
  plan.groups = {"/a", "/b"};
  plan.command = {"/bin/true", "x y"};
  plan.mounts = {{"/from", "/to", true, true}};
  plan.copies = {{"/file", "", "/attest/file", true, false}, {"", "text", "/etc/passwd", false, false}};
  const Json json = to_json(plan);
  CHECK(to_json(cage_plan_from_json(json)) == json);
  for (const auto& [field, value] : json.items()) {
    Json broken = json;
    broken.erase(field);
    CAPTURE(field);
    CHECK_THROWS_AS(cage_plan_from_json(broken), Error);
    broken = json;
    broken[field] = nullptr;
    CHECK_THROWS_AS(cage_plan_from_json(broken), Error);
  }
  Json empty = json;
  empty["command"] = Json::array();
  CHECK_THROWS_AS(cage_plan_from_json(empty), Error);
}

TEST_CASE("what it costs", "[.benchmark]") {
  need_all_layers();
  const auto milliseconds = [](Clock::duration d) { return std::chrono::duration<double, std::milli>(d).count(); };
  std::vector<double> start, plain, call, bare;
  for (int i = 0; i < 20; ++i) {
    auto begin = Clock::now();
    Prison prison;
    REQUIRE(prison.ask("nothing"));
    start.push_back(milliseconds(Clock::now() - begin));
    begin = Clock::now();
    Worker worker({{ATTEST_PRISONER}, std::nullopt});
    REQUIRE(worker.call(Json{{"op", "nothing"}}, std::nullopt, kLimit));
    plain.push_back(milliseconds(Clock::now() - begin));
    for (int k = 0; k < 50; ++k) {
      begin = Clock::now();
      REQUIRE(prison.ask("nothing"));
      call.push_back(1000 * milliseconds(Clock::now() - begin));
      begin = Clock::now();
      REQUIRE(worker.call(Json{{"op", "nothing"}}, std::nullopt, kLimit));
      bare.push_back(1000 * milliseconds(Clock::now() - begin));
    }
  }
  const auto median = [](std::vector<double> values) {
    std::sort(values.begin(), values.end());
    return fmt::format("{:.2f} (p95 {:.2f})", values[values.size() / 2], values[values.size() * 95 / 100]);
  };
  WARN("start to first reply, ms: " << median(start) << ", without a sandbox " << median(plain));
  WARN("a call, us: " << median(call) << ", without a sandbox " << median(bare));
}

}  // namespace
}  // namespace attest
