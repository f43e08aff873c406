// SPDX-License-Identifier: Apache-2.0
#include "runner/worker_client.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstring>

#include "cases/error.h"

namespace attest {
namespace {

using protocol::Clock;
namespace field = protocol::field;
namespace op = protocol::op;

constexpr size_t kTail = 4096;
// A worker that has closed its socket, or has been killed, gets this long to be gone. A process stuck in a driver call
// survives SIGKILL; it is left behind rather than waited for.
constexpr Worker::Duration kLastMoments{2000};

[[noreturn]] void fail_start(std::string_view what) {
  throw Error::at("worker", "{}: {}", what, std::strerror(errno));
}

struct Ends {
  UniqueFd first, second;
};

Ends make_socketpair() {
  std::array<int, 2> ends{};
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) != 0) fail_start("socketpair");
  return {UniqueFd(ends[0]), UniqueFd(ends[1])};
}

Ends make_pipe() {
  std::array<int, 2> ends{};
  if (::pipe2(ends.data(), O_CLOEXEC) != 0) fail_start("pipe");
  return {UniqueFd(ends[0]), UniqueFd(ends[1])};
}

// A copy with a number above those that the child assigns, so that assigning them overwrites no source.
UniqueFd raised(int fd) {
  UniqueFd copy(::fcntl(fd, F_DUPFD_CLOEXEC, 10));
  if (!copy) fail_start("dup");
  return copy;
}

std::vector<char*> c_strings(const std::vector<std::string>& texts) {
  std::vector<char*> pointers;
  for (const std::string& text : texts) pointers.push_back(const_cast<char*>(text.c_str()));
  pointers.push_back(nullptr);
  return pointers;
}

struct Child {
  char* const* argv;
  char* const* environment;
  int null, log, socket, failure;
  pid_t parent;
};

// Runs in the forked child of a process with threads: nothing but async-signal-safe calls.
[[noreturn]] void become(const Child& child) {
  constexpr int kFailureFd = protocol::kControlFd + 1;
  const auto give_up = [](int fd) {
    const int error = errno;
    [[maybe_unused]] const ssize_t written = ::write(fd, &error, sizeof error);
    ::_exit(127);
  };
  ::setpgid(0, 0);
  // The parent may have ended before the request was made; then nobody would ever kill this process.
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != child.parent) ::_exit(127);

  struct sigaction standard {};
  standard.sa_handler = SIG_DFL;
  for (int signal = 1; signal < NSIG; ++signal) ::sigaction(signal, &standard, nullptr);
  sigset_t none;
  ::sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);

  // Crashing is an expected way to end; a core file each time would fill the disk.
  const rlimit nothing{0, 0};
  ::setrlimit(RLIMIT_CORE, &nothing);

  if (::dup2(child.null, 0) < 0 || ::dup2(child.log, 1) < 0 || ::dup2(child.log, 2) < 0 ||
      ::dup2(child.socket, protocol::kControlFd) < 0 || ::dup3(child.failure, kFailureFd, O_CLOEXEC) < 0) {
    give_up(child.failure);
  }
  // Files that another part of the parent left open without close-on-exec are none of the worker's business.
  if (::syscall(SYS_close_range, kFailureFd + 1, ~0U, 0) != 0) {
    for (int fd = kFailureFd + 1; fd < 1024; ++fd) ::close(fd);
  }
  ::execve(child.argv[0], child.argv, child.environment);
  give_up(kFailureFd);
  ::_exit(127);
}

std::string text_of(const siginfo_t& end) {
  if (end.si_code == CLD_EXITED) return fmt::format("exited with code {}", end.si_status);
  const char* name = ::sigabbrev_np(end.si_status);
  return name != nullptr ? fmt::format("killed by SIG{}", name) : fmt::format("killed by signal {}", end.si_status);
}

double seconds(Clock::duration duration) {
  return std::chrono::duration<double>(duration).count();
}

// The fields that every reply has. Throws Error on what is not as agreed.
Reply read_reply(Fields& fields, bool timed) {
  Reply reply;
  const auto name = fields.required<std::string>(field::status);
  const auto status = protocol::status_named(name);
  if (!status) throw Error::at(fields.place(field::status), "got \"{}\", wanted a status", name);
  reply.status = *status;
  reply.message = protocol::printable(fields.required<std::string>(field::message), protocol::kMaxMessage);
  if (timed) {
    reply.seconds = fields.required<double>(field::seconds);
    if (!(reply.seconds >= 0)) throw Error::at(fields.place(field::seconds), "got {}", reply.seconds);
  }
  if (fields.has(field::details)) {
    reply.details = fields.at(field::details);
    if (!reply.details.is_object()) throw Error::at(fields.place(field::details), "wanted an object");
  }
  return reply;
}

// What `run` and each run of `run_together` say of a step.
Json run_fields(const RunRequest& request, int64_t plan) {
  return {{field::plan, plan},
          {field::tensors, protocol::to_json(request.tensors)},
          {field::max_query_length, request.max_query_length},
          {field::max_total_length, request.max_total_length},
          {field::upload, request.upload},
          {field::download, request.download}};
}

std::string not_as_agreed(const Error& error) {
  return fmt::format("not as agreed: {}", protocol::printable(error.what(), 300));
}

}  // namespace

Reply reply_from_json(const Json& json, bool timed) {
  Fields fields(json, "reply");
  Reply reply = read_reply(fields, timed);
  fields.finish();
  return reply;
}

Opened opened_from_json(const Json& json) {
  Fields fields(json, "reply");
  Opened opened;
  opened.reply = read_reply(fields, false);
  opened.declarations = Json::object();
  if (opened.reply.status == ATTEST_OK || opened.without_device()) {
    const auto text = [&](const char* name) {
      return protocol::printable(fields.required<std::string>(name), protocol::kMaxMessage);
    };
    opened.name = text(field::name);
    opened.version = text(field::version);
    opened.description = text(field::description);
    opened.device = text(field::device);
    opened.own_memory = fields.optional<bool>(field::own_memory, false);
    opened.abi_version = fields.required<int64_t>(field::abi_version);
    opened.declarations = fields.at(field::declarations);
    if (!opened.declarations.is_object()) throw Error::at(fields.place(field::declarations), "wanted an object");
  }
  fields.finish();
  return opened;
}

std::vector<Reply> replies_from_json(const Json& json, size_t count) {
  Fields fields(json, "reply");
  const Reply whole = read_reply(fields, false);
  if (whole.status != ATTEST_OK) throw Error("it cannot run together: " + whole.message);
  const size_t got = fields.array(field::replies).size();
  fields.finish();
  if (got != count) throw Error::at(fields.place(field::replies), "got {}, wanted {}", got, count);
  return fields.list(field::replies, [](const Json& element, const std::string& place) {
    Fields one(element, place);
    Reply reply = read_reply(one, true);
    one.finish();
    return reply;
  });
}

Worker::Worker(const WorkerOptions& options) {
  if (options.command.empty()) throw std::logic_error("Worker: no command");
  Ends socket = make_socketpair();
  Ends log = make_pipe();
  Ends failure = make_pipe();
  UniqueFd null(::open("/dev/null", O_RDWR | O_CLOEXEC));
  if (!null) fail_start("/dev/null");
  if (::fcntl(log.first.get(), F_SETFL, O_NONBLOCK) != 0) fail_start("fcntl");

  null = raised(null.get());
  log.second = raised(log.second.get());
  socket.second = raised(socket.second.get());
  failure.second = raised(failure.second.get());
  const std::vector<char*> argv = c_strings(options.command);
  const std::vector<char*> environment = options.environment ? c_strings(*options.environment) : std::vector<char*>{};
  const Child child{argv.data(),         options.environment ? environment.data() : environ,
                    null.get(),          log.second.get(),
                    socket.second.get(), failure.second.get(),
                    ::getpid()};

  // No signal handler of the parent may run in the child.
  sigset_t all;
  sigset_t before;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  const pid_t pid = ::fork();
  if (pid == 0) become(child);
  const int fork_error = errno;
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (pid < 0) {
    errno = fork_error;
    fail_start("fork");
  }
  ::setpgid(pid, pid);  // here and in the child: whichever comes first, it holds before the first kill

  // While the parent holds the child's ends, it would never see them close.
  socket.second.reset();
  log.second.reset();
  failure.second.reset();
  int exec_error = 0;
  ssize_t got = 0;
  do {
    got = ::read(failure.first.get(), &exec_error, sizeof exec_error);  // ends with the exec, or brings its errno
  } while (got < 0 && errno == EINTR);
  if (got != 0) {
    ::waitpid(pid, nullptr, 0);
    throw Error::at(options.command[0], "cannot be executed: {}", std::strerror(exec_error));
  }
  pid_ = pid;
  confinement_ = options.confinement;
  socket_ = std::move(socket.first);
  log_ = std::move(log.first);
  pidfd_.reset(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
}

Worker::~Worker() {
  end(Duration(0));
}

// Takes over what the worker has printed so far, and no more than some at a time: a worker that prints without end must
// not keep its parent from looking at the clock.
void Worker::drain() {
  std::array<char, 65536> bytes;  // NOLINT: read() fills it
  for (int round = 0; log_ && round < 16; ++round) {
    const ssize_t got = ::read(log_.get(), bytes.data(), bytes.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) {
      log_.reset();
      return;
    }
    const auto count = static_cast<size_t>(got);
    output_bytes_ += count;
    tail_.append(bytes.data(), count);
    if (tail_.size() > kTail) tail_.erase(0, tail_.size() - kTail);
  }
}

std::string Worker::output() const {
  std::string_view text = tail_;
  // The cut may have fallen into a code point; its rest is no text.
  while (output_bytes_ > kTail && !text.empty() && (static_cast<unsigned char>(text[0]) & 0xc0U) == 0x80) {
    text.remove_prefix(1);
  }
  return protocol::printable(text, kTail, true);
}

// Waits until the process has ended; it stays a zombie, so that its number and its group's cannot be used again.
bool Worker::ended(Duration limit) {
  const Clock::time_point deadline = Clock::now() + limit;
  while (true) {
    siginfo_t info{};
    const int result = ::waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOHANG | WNOWAIT);
    if (result == 0 && info.si_pid == pid_) return true;
    if (result != 0 && errno != EINTR) return true;
    const auto left = std::chrono::ceil<Duration>(deadline - Clock::now()).count();
    if (left <= 0) return false;
    // A process that prints its last words into a full pipe cannot end.
    drain();
    std::array<pollfd, 2> watched{{{pidfd_.get(), POLLIN, 0}, {log_.get(), POLLIN, 0}}};
    const int64_t patience = pidfd_ ? left : std::min<int64_t>(left, 2);
    ::poll(watched.data(), watched.size(), static_cast<int>(patience));
  }
}

// Ends the process and its group. How it ended, if it did so by itself within `grace`.
std::optional<std::string> Worker::end(Duration grace) {
  if (pid_ <= 0) return std::nullopt;
  const bool by_itself = ended(grace);
  // Its cage, if it has one, stays for as long as it takes to bury what was in there.
  if (confinement_) {
    confinement_->kill();
    ::kill(pid_, SIGTERM);
    if (!by_itself) ended(kLastMoments);
  }
  ::kill(-pid_, SIGKILL);
  ::kill(pid_, SIGKILL);  // should it have left its group
  std::optional<std::string> how;
  if (ended(kLastMoments)) {
    siginfo_t info{};
    if (::waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED) == 0 && by_itself) how = text_of(info);
  }
  drain();
  pid_ = -1;
  pidfd_.reset();
  socket_.reset();
  log_.reset();
  return how;
}

tl::expected<void, protocol::Failure> Worker::wait(short events, Clock::time_point deadline) {
  while (true) {
    const auto left = std::chrono::ceil<Duration>(deadline - Clock::now()).count();
    std::array<pollfd, 3> watched{{{socket_.get(), events, 0}, {log_.get(), POLLIN, 0}, {pidfd_.get(), POLLIN, 0}}};
    const int count = ::poll(watched.data(), watched.size(), static_cast<int>(std::clamp<int64_t>(left, 0, 1'000'000)));
    if (count < 0 && errno != EINTR) {
      return tl::unexpected(protocol::Failure{protocol::Failure::Kind::closed, std::strerror(errno)});
    }
    if (count > 0) {
      if (watched[1].revents != 0) drain();
      if (watched[0].revents != 0) return {};
      // A child that the worker left behind may hold the socket open, so its end alone would not be seen there.
      if (watched[2].revents != 0) return tl::unexpected(protocol::Failure{protocol::Failure::Kind::closed, ""});
    }
    if (left <= 0) return tl::unexpected(protocol::Failure{protocol::Failure::Kind::timed_out, ""});
  }
}

tl::unexpected<WorkerFailure> Worker::fail(WorkerFailure::Kind kind, std::string text) {
  end(Duration(0));
  failure_ = WorkerFailure{kind, std::move(text)};
  if (const std::string why = confinement_ ? confinement_->explanation(output()) : ""; !why.empty()) {
    failure_->text += fmt::format(" ({})", why);
  }
  return tl::unexpected(*failure_);
}

tl::unexpected<WorkerFailure> Worker::fail(const protocol::Failure& failure, Duration limit) {
  switch (failure.kind) {
    case protocol::Failure::Kind::timed_out:
      return fail(WorkerFailure::Kind::timed_out, fmt::format("no reply within {:g} s", seconds(limit)));
    case protocol::Failure::Kind::garbage:
      return fail(WorkerFailure::Kind::garbage, fmt::format("the reply is {}", failure.text));
    case protocol::Failure::Kind::closed:
      break;
  }
  const std::optional<std::string> how = end(std::min(limit, kLastMoments));
  return fail(WorkerFailure::Kind::died, how.value_or("closed its control socket"));
}

Worker::Result<Json> Worker::call(Json request, std::optional<int> fd, Duration limit) {
  if (failure_) return tl::unexpected(*failure_);
  const Clock::time_point deadline = Clock::now() + limit;
  const protocol::Wait patience = [&](short events) { return wait(events, deadline); };

  // What comes unasked was meant to pass for the reply; and a worker that has died meanwhile has closed the socket.
  char unasked = 0;
  const ssize_t peeked = ::recv(socket_.get(), &unasked, 1, MSG_PEEK | MSG_DONTWAIT);
  if (peeked > 0) return fail(WorkerFailure::Kind::garbage, "it sent bytes that nobody had asked for");
  if (confinement_) confinement_->thaw();
  if (peeked == 0) return fail({protocol::Failure::Kind::closed, ""}, limit);

  const std::string nonce = protocol::make_nonce();
  request[field::nonce] = nonce;
  const std::string payload = request.dump(-1, ' ', false, Json::error_handler_t::replace);
  if (payload.size() > protocol::kMaxPayload) {
    throw Error::at("worker", "a request of {} bytes, the limit is {}", payload.size(), protocol::kMaxPayload);
  }
  if (auto sent = protocol::send_frame(socket_.get(), payload, fd.value_or(-1), patience); !sent) {
    return fail(sent.error(), limit);
  }
  auto received = protocol::receive_frame(socket_.get(), patience);
  if (!received) return fail(received.error(), limit);
  drain();
  if (confinement_) {
    try {
      confinement_->freeze();
    } catch (const Error& error) {
      return fail(WorkerFailure::Kind::died, fmt::format("ended by attest: {}", error.what()));
    }
  }
  auto reply = protocol::parse_payload(*received);
  if (!reply) return fail(reply.error(), limit);
  const auto echoed = reply->find(field::nonce);
  if (echoed == reply->end() || !echoed->is_string() || echoed->get_ref<const std::string&>() != nonce) {
    return fail(WorkerFailure::Kind::garbage, "the reply's nonce is wrong");
  }
  reply->erase(field::nonce);
  return std::move(*reply);
}

Worker::Result<Reply> Worker::ask(Json request, std::optional<int> fd, Duration limit, bool timed) {
  const Clock::time_point start = Clock::now();
  const Result<Json> json = call(std::move(request), fd, limit);
  if (!json) return tl::unexpected(json.error());
  try {
    Reply reply = reply_from_json(*json, timed);
    reply.elapsed = seconds(Clock::now() - start);
    return reply;
  } catch (const Error& error) {
    return fail(WorkerFailure::Kind::garbage, not_as_agreed(error));
  }
}

Worker::Result<Opened> Worker::open(const std::string& library, const std::map<std::string, std::string>& options,
                                    Duration limit) {
  const Clock::time_point start = Clock::now();
  const Result<Json> json = call({{field::op, op::open},
                                  {field::protocol, protocol::kVersion},
                                  {field::library, library},
                                  {field::options, Json(options)}},
                                 std::nullopt, limit);
  if (!json) return tl::unexpected(json.error());
  try {
    Opened opened = opened_from_json(*json);
    opened.reply.elapsed = seconds(Clock::now() - start);
    return opened;
  } catch (const Error& error) {
    return fail(WorkerFailure::Kind::garbage, not_as_agreed(error));
  }
}

Worker::Result<Reply> Worker::prepare(const Problem& problem, const Arena& arena, const protocol::Tensors& tensors,
                                      Duration limit, int64_t plan) {
  return ask({{field::op, op::prepare},
              {field::plan, plan},
              {field::bytes, arena.bytes()},
              {field::problem, to_json(problem)},
              {field::tensors, protocol::to_json(tensors)}},
             arena.fd(), limit, false);
}

Worker::Result<Reply> Worker::run(const RunRequest& request, Duration limit, int64_t plan) {
  Json json = run_fields(request, plan);
  json[field::op] = op::run;
  return ask(std::move(json), std::nullopt, limit, true);
}

Worker::Result<std::vector<Reply>> Worker::run_together(const std::map<int64_t, RunRequest>& requests, Duration limit) {
  const Clock::time_point start = Clock::now();
  Json runs = Json::array();
  for (const auto& [plan, request] : requests) runs.push_back(run_fields(request, plan));
  const Result<Json> json = call({{field::op, op::run_together}, {field::runs, std::move(runs)}}, std::nullopt, limit);
  if (!json) return tl::unexpected(json.error());
  try {
    std::vector<Reply> replies = replies_from_json(*json, requests.size());
    for (Reply& reply : replies) reply.elapsed = seconds(Clock::now() - start);
    return replies;
  } catch (const Error& error) {
    return fail(WorkerFailure::Kind::garbage, not_as_agreed(error));
  }
}

Worker::Result<Reply> Worker::release(Duration limit, int64_t plan) {
  return ask({{field::op, op::release}, {field::plan, plan}}, std::nullopt, limit, false);
}

Worker::Result<Reply> Worker::probe(const std::string& what, const Json& arguments, Duration limit, int64_t plan) {
  return ask({{field::op, op::probe}, {field::plan, plan}, {field::what, what}, {field::arguments, arguments}},
             std::nullopt, limit, false);
}

Worker::Result<Reply> Worker::close(Duration limit) {
  Result<Reply> reply = ask({{field::op, op::close}}, std::nullopt, limit, false);
  if (!reply) return reply;
  if (confinement_) confinement_->thaw();
  const std::optional<std::string> how = end(limit);
  if (how == "exited with code 0") {
    failure_ = WorkerFailure{WorkerFailure::Kind::died, "it was closed"};
    return reply;
  }
  if (!how) return fail(WorkerFailure::Kind::timed_out, fmt::format("no end within {:g} s", seconds(limit)));
  return fail(WorkerFailure::Kind::died, *how);
}

}  // namespace attest
