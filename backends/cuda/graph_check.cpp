// SPDX-License-Identifier: Apache-2.0
// Whether a step can be captured in a CUDA graph: captured once and replayed as the sequences grow, it must do bit for
// bit what the same steps do one by one. A serving engine replays its decode step so; a backend that reads a length on
// the host replays the first one for ever. A larger step between capture and replays must not take away the memory that
// the captured one uses, and a replay that finds a cache full must be refused as a step is.
//
//   attest-cuda-graph path/to/attest-backend-cuda.so
//
// Exit code: 0 the same, 1 not, 2 it could not be tried; without a GPU the backend says "no CUDA device".
#include <attest/backend.h>
#include <cuda_runtime.h>
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

namespace {

constexpr int steps = 40;

[[noreturn]] void give_up(const char* what, const char* why) {
  std::fprintf(stderr, "attest-cuda-graph: %s: %s\n", what, why);
  std::exit(2);
}

void check(const char* what, cudaError_t status) {
  if (status != cudaSuccess) give_up(what, cudaGetErrorString(status));
}

/// Calls an entry of the table, which takes a message last.
template <class Call>
void check_call(const char* what, Call call) {
  attest_message message{};
  message.struct_size = sizeof message;
  if (call(&message) != ATTEST_OK) give_up(what, message.text);
}

/// A tensor on the device, with what it held at first.
class Tensor {
 public:
  Tensor(DLDataType dtype, std::vector<std::int64_t> shape, std::vector<std::byte> first)
      : shape_(std::move(shape)), first_(std::move(first)) {
    check("cudaMalloc", cudaMalloc(&tensor_.data, first_.size()));
    tensor_.device = {kDLCUDA, 0};
    tensor_.ndim = static_cast<int>(shape_.size());
    tensor_.dtype = dtype;
    tensor_.shape = shape_.data();
    strides_.assign(shape_.size(), 1);
    for (std::size_t i = shape_.size() - 1; i > 0; --i) strides_[i - 1] = strides_[i] * shape_[i];
    tensor_.strides = strides_.data();
    reset();
  }
  ~Tensor() { (void)cudaFree(tensor_.data); }
  Tensor(const Tensor&) = delete;
  Tensor& operator=(const Tensor&) = delete;

  DLTensor* get() { return &tensor_; }
  void reset() const { put(first_); }
  void put(const std::vector<std::byte>& bytes) const {
    check("upload", cudaMemcpy(tensor_.data, bytes.data(), bytes.size(), cudaMemcpyHostToDevice));
    check("cudaStreamSynchronize", cudaStreamSynchronize(nullptr));  // Steps are in a stream that does not wait for it.
  }
  [[nodiscard]] std::vector<std::byte> now() const {
    std::vector<std::byte> bytes(first_.size());
    check("download", cudaMemcpy(bytes.data(), tensor_.data, bytes.size(), cudaMemcpyDeviceToHost));
    return bytes;
  }

 private:
  std::vector<std::int64_t> shape_, strides_;
  std::vector<std::byte> first_;
  DLTensor tensor_{};
};

std::int64_t product(const std::vector<std::int64_t>& shape) {
  std::int64_t all = 1;
  for (const std::int64_t extent : shape) all *= extent;
  return all;
}

/// Numbers between -1 and 1 in bf16.
Tensor numbers(const std::vector<std::int64_t>& shape) {
  static std::uint32_t state = 1;
  std::vector<std::byte> bytes(static_cast<std::size_t>(product(shape)) * 2);
  for (std::size_t i = 0; i < bytes.size(); i += 2) {
    state = state * 1664525U + 1013904223U;
    const float number = static_cast<float>(state >> 8) / 0x1p23f - 1;
    std::uint32_t bits;
    std::memcpy(&bits, &number, sizeof bits);
    const auto code = static_cast<std::uint16_t>(bits >> 16);
    std::memcpy(&bytes[i], &code, sizeof code);
  }
  return {{kDLBfloat, 16, 1}, shape, bytes};
}

std::vector<std::byte> bytes_of(const std::vector<std::int32_t>& values) {
  std::vector<std::byte> bytes(values.size() * sizeof(std::int32_t));
  std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}
Tensor integers(const std::vector<std::int64_t>& shape, const std::vector<std::int32_t>& values) {
  return {{kDLInt, 32, 1}, shape, bytes_of(values)};
}

/// Whether replays answer what single steps do, and are refused as those are.
bool same(const attest_backend& table, attest_context* context, bool paged) {
  constexpr std::int64_t batch = 3, query_heads = 8, kv_heads = 2, dim = 64, capacity = 1024, page = 16;
  constexpr std::int64_t most = 400;  // Tokens of all steps but the larger one.
  constexpr std::int64_t pages = batch * capacity / page;
  Tensor query = numbers({batch, 1, query_heads, dim}), key = numbers({batch, 1, kv_heads, dim}),
         value = numbers({batch, 1, kv_heads, dim}), output = numbers({batch, 1, query_heads, dim});
  const std::vector<std::int64_t> shape = paged ? std::vector<std::int64_t>{pages, page, kv_heads, dim}
                                                : std::vector<std::int64_t>{batch, capacity, kv_heads, dim};
  Tensor key_cache = numbers(shape), value_cache = numbers(shape), lengths = integers({batch}, {5, 100, 300});
  std::vector<std::int32_t> table_of_pages(pages);
  for (std::int64_t i = 0; i < pages; ++i) {
    table_of_pages[static_cast<std::size_t>(i)] = static_cast<std::int32_t>(i * 7 % pages);  // each of them once
  }
  Tensor block_table = integers({batch, capacity / page}, table_of_pages);

  attest_problem problem{};
  problem.struct_size = sizeof problem;
  problem.batch = batch, problem.query_heads = query_heads, problem.kv_heads = kv_heads;
  problem.qk_head_dim = problem.v_head_dim = dim;
  problem.dtype = problem.cache_dtype = {kDLBfloat, 16, 1};
  problem.causal = ATTEST_CAUSAL_BOTTOM_RIGHT;
  problem.window_left = problem.window_right = -1;
  problem.cache = paged ? ATTEST_CACHE_PAGED : ATTEST_CACHE_CONTIGUOUS;
  problem.capacity = capacity, problem.page_size = paged ? page : 0;
  attest_plan* plan = nullptr;
  check_call("prepare", [&](attest_message* m) { return table.prepare(context, &problem, &plan, m); });

  attest_cache cache{};
  cache.struct_size = sizeof cache;
  cache.key = key_cache.get(), cache.value = value_cache.get(), cache.lengths = lengths.get();
  cache.block_table = paged ? block_table.get() : nullptr;
  attest_step step{};
  step.struct_size = sizeof step;
  step.query = query.get(), step.key = key.get(), step.value = value.get(), step.output = output.get();
  step.cache = &cache;
  step.max_query_length = 1, step.max_total_length = most;
  cudaStream_t stream = nullptr;
  check("cudaStreamCreate", cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  step.stream = stream;
  const auto run = [&] { check_call("run", [&](attest_message* m) { return table.run(plan, &step, m); }); };
  const auto wait = [&] {
    check("cudaStreamSynchronize", cudaStreamSynchronize(stream));
    check_call("synchronize", [&](attest_message* m) { return table.synchronize(context, m); });
  };

  std::vector<std::vector<std::byte>> wanted;
  for (int i = 0; i < steps; ++i) {
    run();
    wait();
    wanted.push_back(output.now());
  }
  const std::vector<std::byte> wanted_key = key_cache.now(), wanted_lengths = lengths.now();
  for (const Tensor* tensor : {&key_cache, &value_cache, &lengths, &output}) tensor->reset();

  cudaGraph_t graph = nullptr;
  cudaGraphExec_t replay = nullptr;
  check("cudaStreamBeginCapture", cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  run();
  check("cudaStreamEndCapture", cudaStreamEndCapture(stream, &graph));
  check("cudaGraphInstantiate", cudaGraphInstantiate(&replay, graph, 0));
  step.max_total_length = capacity;
  run();
  wait();
  for (const Tensor* tensor : {&key_cache, &value_cache, &lengths, &output}) tensor->reset();
  bool right = true;
  for (int i = 0; i < steps && right; ++i) {
    check("cudaGraphLaunch", cudaGraphLaunch(replay, stream));
    wait();
    right = output.now() == wanted[static_cast<std::size_t>(i)];
    if (!right) std::printf("%s: replay %d of %d has another output\n", paged ? "paged" : "contiguous", i + 1, steps);
  }
  if (right && (key_cache.now() != wanted_key || lengths.now() != wanted_lengths)) {
    std::printf("%s: replays leave another cache\n", paged ? "paged" : "contiguous");
    right = false;
  }
  if (right) {
    const std::vector<std::byte> full = bytes_of({5, static_cast<std::int32_t>(capacity), 5});
    lengths.put(full);
    check("cudaGraphLaunch", cudaGraphLaunch(replay, stream));
    check("cudaStreamSynchronize", cudaStreamSynchronize(stream));
    attest_message message{};
    message.struct_size = sizeof message;
    const attest_status status = table.synchronize(context, &message);
    right = status == ATTEST_OVERFLOW && key_cache.now() == wanted_key && lengths.now() == full;
    if (!right) {
      std::printf(
          "%s: a replay over a full cache answers %d, wanted %d (OVERFLOW), and must leave the cache as it was\n",
          paged ? "paged" : "contiguous", static_cast<int>(status), static_cast<int>(ATTEST_OVERFLOW));
    }
  }
  table.release(plan);
  (void)cudaGraphExecDestroy(replay);
  (void)cudaGraphDestroy(graph);
  (void)cudaStreamDestroy(stream);
  return right;
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 2) give_up("usage", "attest-cuda-graph path/to/attest-backend-cuda.so");
  void* const library = dlopen(arguments[1], RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) give_up(arguments[1], dlerror());
  const auto get = reinterpret_cast<const attest_backend* (*)()>(dlsym(library, "attest_get_backend"));
  if (get == nullptr) give_up(arguments[1], "exports no attest_get_backend");
  const attest_backend& table = *get();
  attest_context* context = nullptr;
  check_call("open", [&](attest_message* m) { return table.open("{}", &context, m); });
  const bool right = same(table, context, false) && same(table, context, true);
  table.close(context);
  if (right) std::printf("%d replays of a captured step are the same steps: contiguous and paged\n", steps);
  return right ? 0 : 1;
}
