// SPDX-License-Identifier: Apache-2.0
// A backend that is correct until a chosen call, and then does one thing that no backend may do. It is there to test
// the runner: whatever happens here must become the right verdict of that case, and of no other. README.md lists the
// faults with their verdicts.
//
// Options: `fault` (a name of the table below, default none), `at` (the call that misbehaves, counted from 1 in each
// process), `where` (open, prepare or run; default run). A fault strikes once a process: at call `at`, or at the first
// one after it where it can (a history can only be changed where there is one).
#include <attest/backend.hpp>

// The template computes; its own table would be a second one.
#undef ATTEST_REGISTER_BACKEND
#define ATTEST_REGISTER_BACKEND(Class)
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <bit>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string_view>
#include <thread>

#include "../template/template.cpp"

namespace {

// All that a fault touches in a tensor is 4 bytes wide; where it is not, the fault cannot strike.
using Word = uint32_t;
using Words = std::vector<Word*>;

// ------------------------------------------------------------------------------------------------- faults of a process
// Each answers the status to return instead of working, or kGoOn.

constexpr int kGoOn = -1;

int crash() {
  std::signal(SIGSEGV, SIG_DFL);    // a sanitizer's handler would turn the death into an exit
  volatile uintptr_t nowhere = 64;  // a null pointer would be seen by compilers and sanitizers
  *reinterpret_cast<volatile Word*>(nowhere) = 1;
  return kGoOn;
}

int abort_process() {
  std::signal(SIGABRT, SIG_DFL);
  std::abort();
}

int exit_process() {
  ::_exit(0);
}

int hang() {
  const volatile bool forever = true;
  while (forever) {
  }
  return kGoOn;
}

int be_slow() {
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  return kGoOn;
}

// The sockets of this process: one is the control socket.
std::vector<int> sockets() {
  std::vector<int> found;
  for (int fd = 0; fd < 256; ++fd) {
    struct stat file {};
    if (::fstat(fd, &file) == 0 && S_ISSOCK(file.st_mode)) found.push_back(fd);
  }
  return found;
}

void send_everywhere(std::string_view bytes) {
  for (const int fd : sockets()) {
    [[maybe_unused]] const ssize_t sent = ::send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL);
  }
}

int send_garbage() {
  std::string bytes;
  uint32_t state = 0x9e3779b9;  // xorshift: the same garbage each time, and no small number in front
  for (int i = 0; i < 256; ++i) {
    state ^= state << 13;
    state ^= state >> 17;
    state ^= state << 5;
    bytes += static_cast<char>(state | 0x80U);
  }
  send_everywhere(bytes);
  return kGoOn;
}

int forge_reply() {
  const std::string reply = R"({"nonce":"0123456789abcdef","status":"ok","message":"","seconds":0.000001})";
  std::string frame(4, '\0');
  frame[0] = static_cast<char>(reply.size());
  send_everywhere(frame + reply);
  return kGoOn;
}

int close_sockets() {
  for (const int fd : sockets()) ::close(fd);
  return kGoOn;
}

// Leaves a child behind that keeps the socket open, so that its end is not seen there.
int leave_orphan() {
  if (::fork() == 0) {
    ::sleep(60);
    ::_exit(0);
  }
  ::_exit(3);
}

int flood_stdout() {
  const std::string line(99, 'x');
  for (int i = 0; i < 1'000'000; ++i) std::puts(line.c_str());
  return kGoOn;
}

int print_noise() {
  static constexpr char kReply[] = R"({"nonce":"0123456789abcdef","status":"error","message":"noise","seconds":0})";
  std::puts(kReply);
  std::fputs("\xff\xfe\x1b[31m\n", stderr);
  return kGoOn;
}

int throw_exception() {
  throw std::runtime_error("thrown through a C interface");
}

int return_unknown_status() {
  return 99;
}

// ------------------------------------------------------------------------------------------- faults of a step's memory
// Each answers the words that it is about; none where the step has no such thing.

struct Scene {
  const attest_problem& problem;
  const attest_step& step;
  const Extents& extents;
};

Word* word(const DLTensor& tensor, std::initializer_list<int64_t> index) {
  int64_t offset = 0;
  int axis = 0;
  for (const int64_t i : index) offset += i == 0 ? 0 : i * tensor.strides[axis], ++axis;
  return reinterpret_cast<Word*>(static_cast<char*>(tensor.data) + tensor.byte_offset) + offset;
}

bool has_words(const DLTensor& tensor) {
  return tensor.dtype.bits == 32;
}

bool is_empty(const DLTensor& tensor) {
  return std::find(tensor.shape, tensor.shape + tensor.ndim, 0) != tensor.shape + tensor.ndim;
}

// All elements of the last row that belongs to a query.
Words last_row(const Scene& scene) {
  const DLTensor& output = *scene.step.output;
  const Tokens tokens = Tokens::of_queries(scene.problem, scene.extents, output);
  const bool layer = scene.problem.level == ATTEST_LEVEL_LAYER;
  Words words;
  for (int64_t b = scene.problem.batch; has_words(output) && b-- > 0 && words.empty();) {
    const int64_t i = scene.extents.queries[b] - 1;
    if (i < 0) continue;
    for (int64_t h = 0; h < (layer ? 1 : scene.problem.query_heads); ++h) {
      for (int64_t d = 0; d < output.shape[output.ndim - 1]; ++d) {
        words.push_back(static_cast<Word*>(tokens.address(b, i, h, d)));
      }
    }
  }
  return words;
}

Words first_of_last_row(const Scene& scene) {
  Words words = last_row(scene);
  words.resize(std::min<size_t>(words.size(), 1));
  return words;
}

Words past_the_end(const DLTensor& tensor) {
  int64_t last = 0;
  for (int axis = 0; axis < tensor.ndim; ++axis) {
    if (tensor.shape[axis] > 1) last += (tensor.shape[axis] - 1) * tensor.strides[axis];
  }
  return {word(tensor, {}) + last + 1};
}

Words output_end(const Scene& scene) {
  return has_words(*scene.step.output) ? past_the_end(*scene.step.output) : Words{};
}

Words output_start(const Scene& scene) {
  return has_words(*scene.step.output) ? Words{word(*scene.step.output, {}) - 1} : Words{};
}

// Between the output's elements where its strides leave room; else behind the lengths.
Words gap(const Scene& scene) {
  const DLTensor& output = *scene.step.output;
  if (is_empty(output) || !has_words(output)) return {};
  std::vector<std::pair<int64_t, int64_t>> axes;  // stride, extent
  for (int axis = 0; axis < output.ndim; ++axis) {
    if (output.shape[axis] > 1) axes.emplace_back(output.strides[axis], output.shape[axis]);
  }
  std::sort(axes.begin(), axes.end());
  int64_t span = 1;
  for (const auto& [stride, extent] : axes) {
    if (stride > span) return {word(output, {}) + span};
    span += (extent - 1) * stride;
  }
  return scene.step.cache != nullptr ? past_the_end(*scene.step.cache->lengths) : Words{};
}

Words query(const Scene& scene) {
  const DLTensor& query = *scene.step.query;
  return is_empty(query) || !has_words(query) ? Words{} : Words{word(query, {})};
}

Words weight(const Scene& scene) {
  const DLTensor* weight = scene.problem.q_weight;
  return weight == nullptr || !has_words(*weight) ? Words{} : Words{word(*weight, {})};
}

Words cached_token(const Scene& scene) {
  if (scene.step.cache == nullptr || !has_words(*scene.step.cache->key)) return {};
  const Slots slots(scene.problem, *scene.step.cache);
  for (int64_t b = 0; b < scene.problem.batch; ++b) {
    // Of a ring the last token: the first may be overwritten by this step.
    const int64_t past = scene.extents.past[b];
    if (past == 0) continue;
    const Slot slot = slots(b, scene.problem.cache == ATTEST_CACHE_RING ? past - 1 : 0);
    return {word(*scene.step.cache->key, {slot.outer, slot.inner, 0, 0})};
  }
  return {};
}

Words appended_tokens(const Scene& scene) {
  Words words;
  if (scene.step.cache == nullptr || !has_words(*scene.step.cache->key)) return words;
  const Slots slots(scene.problem, *scene.step.cache);
  for (int64_t b = 0; b < scene.problem.batch; ++b) {
    for (int64_t t = scene.extents.past[b]; t < scene.extents.total(b); ++t) {
      const Slot slot = slots(b, t);
      for (DLTensor* tensor : {scene.step.cache->key, scene.step.cache->value}) {
        for (int64_t h = 0; h < tensor->shape[2]; ++h) {
          for (int64_t d = 0; d < tensor->shape[3]; ++d) {
            words.push_back(word(*tensor, {slot.outer, slot.inner, h, d}));
          }
        }
      }
    }
  }
  return words;
}

Words table_entry(const Scene& scene) {
  const attest_cache* cache = scene.step.cache;
  return cache != nullptr && cache->block_table != nullptr ? Words{word(*cache->block_table, {})} : Words{};
}

// Of the first token that is cached already; else the scale of all.
Words old_scale(const Scene& scene) {
  const attest_cache* cache = scene.step.cache;
  if (cache == nullptr || cache->key_scale == nullptr) return {};
  if (scene.problem.kv_scale != ATTEST_KV_SCALE_PER_TOKEN) return {word(*cache->key_scale, {})};
  const Slots slots(scene.problem, *cache);
  for (int64_t b = 0; b < scene.problem.batch; ++b) {
    if (scene.extents.past[b] == 0) continue;
    const Slot slot = slots(b, 0);
    return {word(*cache->key_scale, {slot.outer, slot.inner, 0})};
  }
  return {};
}

// The lengths that this step advances.
Words lengths(const Scene& scene) {
  Words words;
  for (int64_t b = 0; scene.step.cache != nullptr && b < scene.problem.batch; ++b) {
    if (scene.extents.keys[b] > 0) words.push_back(word(*scene.step.cache->lengths, {b}));
  }
  return words;
}

Word other_bits(Word word) {
  return word ^ 0x00400001U;
}
Word next(Word word) {
  return word ^ 1U;
}
Word nan(Word) {
  return 0x7fc00000U;
}
Word larger(Word word) {
  const auto value = std::bit_cast<float>(word);
  return std::bit_cast<Word>(value + 1 + std::fabs(value));
}

// --------------------------------------------------------------------------------------------------------- the faults

enum class Refusing { no, refuses_legal, accepts_illegal, refuses_dirty };

struct Fault {
  std::string_view name;
  int (*act)() = nullptr;                  ///< At the beginning of the call.
  Words (*words)(const Scene&) = nullptr;  ///< Words that keep what they held before the step ...
  Word (*change)(Word) = nullptr;          ///< ... or, with this, are changed after it.
  Refusing refusing = Refusing::no;
  bool in_company = false;  ///< Only while another call is at work in this process; it waits a while for one.
};

constexpr Fault kFaults[] = {
    {.name = "none"},
    {.name = "no_device"},
    {.name = "slow", .act = be_slow},
    {.name = "stdout_flood", .act = flood_stdout},
    {.name = "stdout_noise", .act = print_noise},
    {.name = "crash", .act = crash},
    {.name = "abort", .act = abort_process},
    {.name = "exit", .act = exit_process},
    {.name = "orphan", .act = leave_orphan},
    {.name = "hang", .act = hang},
    {.name = "garbage", .act = send_garbage},
    {.name = "forge", .act = forge_reply},
    {.name = "close_socket", .act = close_sockets},
    {.name = "throw", .act = throw_exception},
    {.name = "status99", .act = return_unknown_status},
    {.name = "overrun", .words = output_end, .change = other_bits},
    {.name = "underrun", .words = output_start, .change = other_bits},
    {.name = "gap", .words = gap, .change = other_bits},
    {.name = "modify_input", .words = query, .change = other_bits},
    {.name = "modify_weights", .words = weight, .change = other_bits},
    {.name = "cache_history", .words = cached_token, .change = other_bits},
    {.name = "nan", .words = first_of_last_row, .change = nan},
    {.name = "wrong", .words = first_of_last_row, .change = larger},
    {.name = "last_bit", .words = first_of_last_row, .change = next},
    {.name = "overlap", .words = first_of_last_row, .change = larger, .in_company = true},
    {.name = "modify_table", .words = table_entry, .change = other_bits},
    {.name = "modify_scale", .words = old_scale, .change = other_bits},
    {.name = "unwritten", .words = last_row},
    {.name = "cache_skip", .words = appended_tokens},
    {.name = "length", .words = lengths},
    {.name = "refuse", .refusing = Refusing::refuses_legal},
    {.name = "accept", .refusing = Refusing::accepts_illegal},
    {.name = "refuse_dirty", .refusing = Refusing::refuses_dirty},
};

enum class Entry : size_t { open, prepare, run };
constexpr std::string_view kEntries[] = {"open", "prepare", "run"};

// One a process, as in the options: a fault strikes once, whatever is prepared again.
struct State {
  const Fault* fault = &kFaults[0];
  Entry where = Entry::run;
  int at = 1;
  std::array<std::atomic<int>, std::size(kEntries)> calls{};
  std::atomic<bool> struck{false};
  std::atomic<int> at_work{0};  ///< Calls of `run` that have not returned.

  // Counts the call; whether the fault may strike in it.
  bool count(Entry entry) { return ++calls[static_cast<size_t>(entry)] >= at && entry == where && !struck; }
};
State state;

// Whether another call is at work at the same time as this one, or soon.
bool in_company() {
  for (int i = 0; i < 200 && state.at_work < 2; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  return state.at_work > 1;
}

class Hostile : public Template {
 public:
  static constexpr const char* name = "hostile";
  static constexpr const char* version = "1.0";
  static constexpr const char* declarations = R"({"determinism": ["d0", "d1"]})";
  static std::string description() { return "the template, with one fault at a chosen call"; }

  explicit Hostile(Options& options) : Template(options) {
    const std::string fault = options.take("fault", "none");
    const std::string where = options.take("where", "run");
    const auto* const found =
        std::find_if(std::begin(kFaults), std::end(kFaults), [&](const Fault& f) { return f.name == fault; });
    if (found == std::end(kFaults)) throw Invalid("option fault: got \"" + fault + "\", wanted a name of README.md");
    const auto* const entry = std::find(std::begin(kEntries), std::end(kEntries), where);
    if (entry == std::end(kEntries)) throw Invalid("option where: got \"" + where + "\", wanted open, prepare or run");
    if (fault == "no_device") throw Unsupported("no device: it was left at home");
    if (where != "run" && found->act == nullptr) throw Invalid("option where: fault " + fault + " needs a step");
    state.fault = found;
    state.where = static_cast<Entry>(entry - std::begin(kEntries));
    state.at = options.take_count("at", 1);
  }

  class Plan {
   public:
    Plan(Hostile& hostile, const attest_problem& problem) : problem_(problem), plan_(hostile, problem) {}

    void run(const attest_step& step) {
      const Fault& fault = *state.fault;
      const bool due = state.calls[static_cast<size_t>(Entry::run)] >= state.at && !state.struck;
      try {
        const Extents extents = check_step(problem_, step);
        if (due && fault.refusing == Refusing::refuses_legal) {
          state.struck = true;
          throw Invalid("query: got a legal step, wanted none");
        }
        const bool strikes = due && fault.words != nullptr && (!fault.in_company || in_company());
        run_legal(step, strikes ? fault.words({problem_, step, extents}) : Words());
      } catch (const Refusal&) {
        if (due && !state.struck && fault.refusing == Refusing::accepts_illegal) {
          state.struck = true;
          return;
        }
        if (due && !state.struck && fault.refusing == Refusing::refuses_dirty) {
          state.struck = true;
          *word(*step.output, {}) = 0;
        }
        throw;
      }
    }

   private:
    void run_legal(const attest_step& step, const Words& words) {
      std::vector<Word> before;
      for (const Word* place : words) before.push_back(*place);
      plan_.run(step);
      for (size_t i = 0; i < words.size(); ++i) {
        *words[i] = state.fault->change != nullptr ? state.fault->change(*words[i]) : before[i];
      }
      if (!words.empty()) state.struck = true;
    }

    attest_problem problem_;
    Template::Plan plan_;
  };
};

// The adapter's table catches exceptions and returns good statuses; what goes wrong there goes wrong around it.
attest_backend honest;

template <typename Call>
attest_status misbehave(Entry entry, Call call) {
  if (state.count(entry) && state.fault->act != nullptr) {
    state.struck = true;
    const int status = state.fault->act();
    if (status != kGoOn) return static_cast<attest_status>(status);
  }
  return call();
}

const attest_backend* hostile_table() {
  static const attest_backend table = [] {
    honest = *table_of<Hostile>();
    attest_backend t = honest;
    t.open = [](const char* options, attest_context** context, attest_message* message) {
      const attest_status status = honest.open(options, context, message);  // reads the options first
      return misbehave(Entry::open, [&] { return status; });
    };
    t.prepare = [](attest_context* context, const attest_problem* problem, attest_plan** plan,
                   attest_message* message) {
      return misbehave(Entry::prepare, [&] { return honest.prepare(context, problem, plan, message); });
    };
    t.run = [](attest_plan* plan, const attest_step* step, attest_message* message) {
      ++state.at_work;
      const attest_status status = misbehave(Entry::run, [&] { return honest.run(plan, step, message); });
      --state.at_work;
      return status;
    };
    return t;
  }();
  return &table;
}

}  // namespace

ATTEST_EXPORT const attest_backend* attest_get_backend(void) {
  return hostile_table();
}
