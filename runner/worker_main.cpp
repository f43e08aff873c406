// SPDX-License-Identifier: Apache-2.0
// attest-worker: loads one backend and does what attest asks over the control socket (spec/protocol.md). It holds the
// inputs and outputs of a case and nothing else: no golden, no verdict. Whatever the backend does to this process, the
// parent sees only that it died, hung or answered nonsense.
#include <fcntl.h>
#include <fmt/core.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <latch>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "attest/backend.h"
#include "cases/error.h"
#include "cases/json.h"
#include "runner/backend_library.h"
#include "runner/protocol.h"
#include "runner/unique_fd.h"

namespace attest {
namespace {

namespace field = protocol::field;
namespace op = protocol::op;

// The case's memfd in this process.
class Mapping {
 public:
  Mapping(const UniqueFd& memory, int64_t bytes) : bytes_(bytes) {
    struct stat file {};
    if (!memory) throw Error("request: no descriptor came with it");
    if (::fstat(memory.get(), &file) != 0 || file.st_size != bytes || bytes <= 0) {
      throw Error::at("request.bytes", "got {}, the descriptor has {}", bytes, static_cast<int64_t>(file.st_size));
    }
    void* mapped = ::mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE, MAP_SHARED, memory.get(), 0);
    if (mapped == MAP_FAILED) throw Error::at("request", "mmap of {} bytes: {}", bytes, std::strerror(errno));
    data_ = static_cast<std::byte*>(mapped);
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping() { ::munmap(data_, static_cast<size_t>(bytes_)); }

  [[nodiscard]] std::byte* data() const { return data_; }
  [[nodiscard]] int64_t bytes() const { return bytes_; }

 private:
  int64_t bytes_;
  std::byte* data_ = nullptr;
};

// A refusal by the worker or the backend, on the way out to the reply.
struct Refused {
  Answer answer;
};

void require(const Answer& answer) {
  if (answer.status != ATTEST_OK) throw Refused{answer};
}

// Where blocks live for the backend: in the mapping itself, or in device buffers of the same size, guards included, so
// that an out-of-bounds write on the device comes back with the download.
class Blocks {
 public:
  Blocks(const BackendLibrary& library, attest_context* context, const Mapping& mapping)
      : library_(library), context_(context), mapping_(mapping) {}
  Blocks(const Blocks&) = delete;
  Blocks& operator=(const Blocks&) = delete;
  ~Blocks() {
    for (const auto& [begin, buffer] : buffers_) {
      void* memory = buffer.memory;  // clang 14 lets no lambda capture a structured binding
      ask([&](attest_message*) { return library_.table().deallocate(context_, memory), ATTEST_OK; });
    }
  }

  void* at(const protocol::Tensor& tensor) {
    if (!library_.has_device_memory()) return host(tensor);
    const auto found = buffers_.find(tensor.begin);
    if (found != buffers_.end()) {
      if (found->second.size != tensor.size) throw Error::at("request", "two sizes of block {}", tensor.begin);
      return found->second.memory;
    }
    void* memory = nullptr;
    require(ask([&](attest_message* m) {
      return library_.table().allocate(context_, static_cast<size_t>(tensor.size), &memory, m);
    }));
    if (memory == nullptr) throw Refused{{ATTEST_ERROR, "allocate answered OK without memory"}};
    buffers_.emplace(tensor.begin, Buffer{memory, tensor.size});
    return memory;
  }

  void upload(const protocol::Tensor& tensor) {
    if (!library_.has_device_memory()) return;
    void* memory = at(tensor);
    require(ask([&](attest_message* m) {
      return library_.table().upload(context_, memory, host(tensor), static_cast<size_t>(tensor.size), m);
    }));
  }

  void download(const protocol::Tensor& tensor) {
    if (!library_.has_device_memory()) return;
    void* memory = at(tensor);
    require(ask([&](attest_message* m) {
      return library_.table().download(context_, host(tensor), memory, static_cast<size_t>(tensor.size), m);
    }));
  }

 private:
  struct Buffer {
    void* memory;
    int64_t size;
  };

  [[nodiscard]] std::byte* host(const protocol::Tensor& tensor) const { return mapping_.data() + tensor.begin; }

  const BackendLibrary& library_;
  attest_context* context_;
  const Mapping& mapping_;
  std::map<int64_t, Buffer> buffers_;
};

// A prepared problem with all that its pointers point to.
class Plan {
 public:
  Plan(const BackendLibrary& library, attest_context* context, Fields& request, const UniqueFd& memory)
      : library_(library),
        context_(context),
        mapping_(memory, request.required<int64_t>(field::bytes)),
        blocks_(library, context, mapping_) {
    attest_problem problem = abi_problem(problem_from_json(request.at(field::problem), request.place(field::problem)));
    const std::string place = request.place(field::tensors);
    const protocol::Tensors tensors = protocol::tensors_from_json(request.at(field::tensors), place, mapping_.bytes());
    request.finish();
    for (const auto& [name, tensor] : tensors) {
      blocks_.upload(tensor);
      auto& argument =
          arguments_.emplace_back(std::make_unique<TensorArgument>(tensor, blocks_.at(tensor), library.device_type()));
      if (!set_tensor(problem, name, argument->get())) throw Error::at(place, "a problem has no tensor \"{}\"", name);
    }
    require(ask([&](attest_message* m) { return library.table().prepare(context, &problem, &plan_, m); }));
    if (plan_ == nullptr) throw Refused{{ATTEST_ERROR, "prepare answered OK without a plan"}};
  }
  Plan(const Plan&) = delete;
  Plan& operator=(const Plan&) = delete;
  ~Plan() {
    if (plan_ != nullptr) ask([&](attest_message*) { return library_.table().release(plan_), ATTEST_OK; });
  }

  // A step of this plan: its arguments, and the blocks to be copied around it.
  class Step {
   public:
    Step(Plan& plan, Fields& request)
        : plan_(plan),
          arguments_(request.required<int64_t>(field::max_query_length),
                     request.required<int64_t>(field::max_total_length)) {
      const std::string place = request.place(field::tensors);
      const protocol::Tensors tensors =
          protocol::tensors_from_json(request.at(field::tensors), place, plan.mapping_.bytes());
      upload_ = named(request, field::upload, tensors);
      download_ = named(request, field::download, tensors);
      request.finish();
      for (const auto& [name, tensor] : tensors) {
        auto& argument = tensors_.emplace_back(
            std::make_unique<TensorArgument>(tensor, plan.blocks_.at(tensor), plan.library_.device_type()));
        if (!arguments_.set(name, argument->get())) throw Error::at(place, "a step has no tensor \"{}\"", name);
      }
    }

    void upload() {
      for (const protocol::Tensor& tensor : upload_) plan_.blocks_.upload(tensor);
    }
    void download() {
      for (const protocol::Tensor& tensor : download_) plan_.blocks_.download(tensor);
    }
    // The backend's part, which threads may do for several plans at once. Throws nothing.
    void call() {
      const BackendLibrary& library = plan_.library_;
      const auto start = protocol::Clock::now();
      answer_ = ask([&](attest_message* m) { return library.table().run(plan_.plan_, arguments_.get(), m); });
      // After a refusal too: it may have come after some work was queued, which the download must show.
      if (library.has_device_memory()) {
        const Answer synchronised =
            ask([&](attest_message* m) { return library.table().synchronize(plan_.context_, m); });
        if (synchronised.status != ATTEST_OK && answer_.status == ATTEST_OK) answer_ = synchronised;
      }
      seconds_ = std::chrono::duration<double>(protocol::Clock::now() - start).count();
    }
    [[nodiscard]] const Answer& answer() const { return answer_; }
    [[nodiscard]] double seconds() const { return seconds_; }

   private:
    Plan& plan_;
    StepArguments arguments_;
    std::vector<std::unique_ptr<TensorArgument>> tensors_;
    std::vector<protocol::Tensor> upload_, download_;
    Answer answer_;
    double seconds_ = 0;
  };

 private:
  static std::vector<protocol::Tensor> named(Fields& request, const char* list, const protocol::Tensors& tensors) {
    std::vector<protocol::Tensor> chosen;
    for (const std::string& name : request.required<std::vector<std::string>>(list)) {
      const auto found = tensors.find(name);
      if (found == tensors.end()) throw Error::at(request.place(list), "\"{}\" is not among the tensors", name);
      chosen.push_back(found->second);
    }
    return chosen;
  }

  // In order of destruction, from the last: the plan first (in ~Plan), then what it points to.
  const BackendLibrary& library_;
  attest_context* context_;
  Mapping mapping_;
  Blocks blocks_;
  std::vector<std::unique_ptr<TensorArgument>> arguments_;
  attest_plan* plan_ = nullptr;
};

class Session {
 public:
  // Answers one request; what went wrong becomes the reply's status.
  Json answer(const Json& request, const UniqueFd& memory) {
    Json reply = Json::object();
    Answer answer;
    try {
      Fields fields(request, "request");
      fields.required<std::string>(field::nonce);
      answer = serve(fields, memory, reply);
    } catch (const Refused& refused) {
      answer = refused.answer;
    } catch (const std::exception& error) {
      answer = {ATTEST_ERROR, protocol::printable(error.what(), protocol::kMaxMessage)};
    }
    reply[field::status] = protocol::name_of(answer.status).value();
    reply[field::message] = answer.message;
    return reply;
  }

  [[nodiscard]] bool closed() const { return closed_; }

 private:
  Answer serve(Fields& fields, const UniqueFd& memory, Json& reply) {
    const auto name = fields.required<std::string>(field::op);
    if (name == op::open) return open(fields, reply);
    if (name == op::close) return close(fields);
    if (name == op::run) reply[field::seconds] = 0.0;  // there in every reply to run, refusals included
    if (name != op::prepare && name != op::run && name != op::run_together && name != op::release) {
      throw Error::at(fields.place(field::op), "got \"{}\", which this worker does not know", name);
    }
    if (context_ == nullptr) throw Error("request: no backend is open");
    if (name == op::run_together) return run_together(fields, reply);
    const auto number = fields.required<int64_t>(field::plan);
    if (name == op::prepare) {
      plans_.erase(number);
      plans_.emplace(number, std::make_unique<Plan>(*library_, context_, fields, memory));
      return {ATTEST_OK, ""};
    }
    if (name == op::run) {
      Plan::Step step(plan(fields, number), fields);
      step.upload();
      step.call();
      step.download();
      reply[field::seconds] = step.seconds();
      return step.answer();
    }
    fields.finish();
    plan(fields, number);
    plans_.erase(number);
    return {ATTEST_OK, ""};
  }

  Plan& plan(const Fields& fields, int64_t number) {
    const auto found = plans_.find(number);
    if (found == plans_.end()) throw Error::at(fields.place(field::plan), "got {}, which is not prepared", number);
    return *found->second;
  }

  // Steps of several plans, each in a thread of its own. All arguments are there and all threads are up before the
  // first call is made, so that the calls overlap.
  Answer run_together(Fields& fields, Json& reply) {
    std::map<int64_t, std::unique_ptr<Plan::Step>> steps;
    std::vector<Plan::Step*> order;
    const Json& runs = fields.array(field::runs);
    fields.finish();
    for (size_t i = 0; i < runs.size(); ++i) {
      Fields run(runs[i], fmt::format("{}[{}]", fields.place(field::runs), i));
      const auto number = run.required<int64_t>(field::plan);
      auto& step = steps[number];
      if (step != nullptr) throw Error::at(run.place(field::plan), "got {} twice; a plan runs in one thread", number);
      step = std::make_unique<Plan::Step>(plan(run, number), run);
      order.push_back(step.get());
    }
    for (Plan::Step* step : order) step->upload();
    std::latch start(static_cast<std::ptrdiff_t>(order.size()));
    std::vector<std::thread> threads;
    for (Plan::Step* step : order) {
      threads.emplace_back([&start, step] {
        start.arrive_and_wait();
        step->call();
      });
    }
    for (std::thread& thread : threads) thread.join();
    reply[field::replies] = Json::array();
    for (Plan::Step* step : order) {
      step->download();
      reply[field::replies].push_back({{field::status, protocol::name_of(step->answer().status).value()},
                                       {field::message, step->answer().message},
                                       {field::seconds, step->seconds()}});
    }
    return {ATTEST_OK, ""};
  }

  Answer open(Fields& fields, Json& reply) {
    if (library_) throw Error("request: a backend is open already");
    const auto version = fields.required<int64_t>(field::protocol);
    if (version != protocol::kVersion) {
      throw Error::at(fields.place(field::protocol), "got {}, this worker speaks {}", version, protocol::kVersion);
    }
    const auto path = fields.required<std::string>(field::library);
    const std::string options = fields.at(field::options).dump();
    fields.finish();
    library_.emplace(path);
    const attest_backend& table = library_->table();
    const Json declarations =
        table.declarations == nullptr ? Json::object() : parse_json(table.declarations, path + ": its declarations");
    if (!declarations.is_object()) throw Error::at(path, "its declarations are no JSON object");
    Answer answer = ask([&](attest_message* m) { return table.open(options.c_str(), &context_, m); });
    if (answer.status != ATTEST_OK && answer.status != ATTEST_UNSUPPORTED) return answer;
    if (answer.status == ATTEST_OK && context_ == nullptr) return {ATTEST_ERROR, "open answered OK without a context"};
    reply[field::name] = table.name;
    reply[field::version] = protocol::printable(table.version, protocol::kMaxMessage);
    reply[field::description] = protocol::printable(table.description, protocol::kMaxMessage);
    reply[field::device] = device_name(table.device_type);
    reply[field::own_memory] = library_->has_device_memory();
    reply[field::abi_version] = table.abi_version;
    reply[field::declarations] = declarations;
    return answer;
  }

  Answer close(Fields& fields) {
    fields.finish();
    closed_ = true;
    plans_.clear();
    if (context_ == nullptr) return {ATTEST_OK, ""};
    return ask([&](attest_message*) { return library_->table().close(std::exchange(context_, nullptr)), ATTEST_OK; });
  }

  std::optional<BackendLibrary> library_;
  attest_context* context_ = nullptr;
  std::map<int64_t, std::unique_ptr<Plan>> plans_;
  bool closed_ = false;
};

int serve() {
  // Programs that a backend starts have no business on this socket.
  if (::fcntl(protocol::kControlFd, F_SETFD, FD_CLOEXEC) != 0) {
    fmt::print(stderr, "attest-worker: descriptor {} is no socket; attest starts this program\n", protocol::kControlFd);
    return 2;
  }
  // What a backend printed last is worth most when it has crashed.
  std::setvbuf(stdout, nullptr, _IOLBF, 0);

  const protocol::Wait wait = protocol::wait_forever(protocol::kControlFd);
  Session session;
  while (!session.closed()) {
    UniqueFd memory;
    const auto payload = protocol::receive_frame(protocol::kControlFd, wait, &memory);
    // The parent is gone, or has had enough. There is nobody to close in order for.
    if (!payload && payload.error().kind == protocol::Failure::Kind::closed) std::_Exit(0);
    const auto request = payload ? protocol::parse_payload(*payload) : tl::unexpected(payload.error());
    if (!request) {
      fmt::print(stderr, "attest-worker: the request is {}\n", request.error().text);
      return 2;
    }
    Json reply = session.answer(*request, memory);
    if (const auto nonce = request->find(field::nonce); nonce != request->end()) reply[field::nonce] = *nonce;
    std::fflush(stdout);
    std::string text = reply.dump(-1, ' ', false, Json::error_handler_t::replace);
    if (text.size() > protocol::kMaxPayload) {
      const Json apology{{field::nonce, reply[field::nonce]},
                         {field::status, protocol::name_of(ATTEST_ERROR).value()},
                         {field::message, "the backend's declarations are too long"}};
      text = apology.dump();
    }
    if (!protocol::send_frame(protocol::kControlFd, text, -1, wait)) std::_Exit(2);
  }
  return 0;
}

}  // namespace
}  // namespace attest

int main() {
  return attest::serve();
}
