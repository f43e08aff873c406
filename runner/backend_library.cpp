// SPDX-License-Identifier: Apache-2.0
#include "runner/backend_library.h"

#include <dlfcn.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <system_error>
#include <utility>

#include "cases/error.h"

namespace attest {
namespace {

// The table as version 1 had it; later fields are appended.
constexpr size_t kFirstTable = offsetof(attest_backend, release) + sizeof(void*);

// dlerror() begins with the path, which the error has already.
std::string load_error(const std::string& path) {
  const char* text = ::dlerror();
  std::string_view reason = text != nullptr ? text : "unknown reason";
  if (reason.starts_with(path + ": ")) reason.remove_prefix(path.size() + 2);
  return std::string(reason);
}

bool is_name(const char* text) {
  const std::string_view name = text;
  return !name.empty() && std::all_of(name.begin(), name.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_' || c == '-';
  });
}

// The suite's enumerations have the ABI's values.
template <typename Enum>
int32_t abi(Enum value) {
  return static_cast<int32_t>(value);
}
template <typename Enum, typename AbiEnum>
constexpr bool agree(Enum value, AbiEnum wanted) {
  return static_cast<int>(value) == static_cast<int>(wanted);
}
static_assert(agree(Level::core, ATTEST_LEVEL_CORE) && agree(Level::layer, ATTEST_LEVEL_LAYER));
static_assert(agree(Causal::none, ATTEST_CAUSAL_NONE) && agree(Causal::bottom_right, ATTEST_CAUSAL_BOTTOM_RIGHT) &&
              agree(Causal::top_left, ATTEST_CAUSAL_TOP_LEFT));
static_assert(agree(MaskKind::none, ATTEST_MASK_NONE) && agree(MaskKind::boolean, ATTEST_MASK_BOOLEAN) &&
              agree(MaskKind::additive, ATTEST_MASK_ADDITIVE));
static_assert(agree(CacheKind::none, ATTEST_CACHE_NONE) && agree(CacheKind::contiguous, ATTEST_CACHE_CONTIGUOUS) &&
              agree(CacheKind::paged, ATTEST_CACHE_PAGED) && agree(CacheKind::ring, ATTEST_CACHE_RING));
static_assert(agree(RopeStyle::none, ATTEST_ROPE_NONE) && agree(RopeStyle::half, ATTEST_ROPE_HALF) &&
              agree(RopeStyle::interleaved, ATTEST_ROPE_INTERLEAVED));
static_assert(agree(RopeScaling::none, ATTEST_ROPE_SCALING_NONE) &&
              agree(RopeScaling::linear, ATTEST_ROPE_SCALING_LINEAR) &&
              agree(RopeScaling::ntk, ATTEST_ROPE_SCALING_NTK) && agree(RopeScaling::yarn, ATTEST_ROPE_SCALING_YARN) &&
              agree(RopeScaling::llama3, ATTEST_ROPE_SCALING_LLAMA3) &&
              agree(RopeScaling::yarn_unrounded, ATTEST_ROPE_SCALING_YARN_UNROUNDED));
static_assert(agree(Alibi::none, ATTEST_ALIBI_NONE) && agree(Alibi::standard, ATTEST_ALIBI_STANDARD) &&
              agree(Alibi::slopes, ATTEST_ALIBI_SLOPES));
static_assert(agree(KvScale::none, ATTEST_KV_SCALE_NONE) && agree(KvScale::tensor, ATTEST_KV_SCALE_PER_TENSOR) &&
              agree(KvScale::head, ATTEST_KV_SCALE_PER_HEAD) && agree(KvScale::token, ATTEST_KV_SCALE_PER_TOKEN));

}  // namespace

BackendLibrary::BackendLibrary(const std::filesystem::path& path) : path_(path) {
  const std::string place = path.string();
  std::error_code missing;
  if (!std::filesystem::exists(path, missing)) throw Error::at(place, "no such file");
  // A path without a slash would be looked for in the system's library folders.
  const std::string absolute = std::filesystem::absolute(path).string();
  library_ = ::dlopen(absolute.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
  if (library_ == nullptr) throw Error::at(place, "cannot be loaded: {}", load_error(absolute));
  const auto get_backend = reinterpret_cast<const attest_backend* (*)()>(::dlsym(library_, ATTEST_ENTRY_POINT));
  if (get_backend == nullptr) throw Error::at(place, "is no attest backend: it has no symbol {}", ATTEST_ENTRY_POINT);
  table_ = get_backend();
  if (table_ == nullptr) throw Error::at(place, "{} returned NULL", ATTEST_ENTRY_POINT);

  // The first two fields are the same in every version; nothing else may be read before they are known.
  if (table_->abi_version != ATTEST_ABI_VERSION) {
    throw Error::at(place, "has ABI version {}, this attest speaks {}", table_->abi_version, ATTEST_ABI_VERSION);
  }
  if (table_->struct_size < kFirstTable) {
    throw Error::at(place, "has a table of {} bytes, wanted at least {}", table_->struct_size, kFirstTable);
  }
  const attest_backend& t = *table_;
  const std::pair<const char*, bool> required[] = {
      {"name", t.name != nullptr}, {"version", t.version != nullptr}, {"description", t.description != nullptr},
      {"open", t.open != nullptr}, {"close", t.close != nullptr},     {"prepare", t.prepare != nullptr},
      {"run", t.run != nullptr},   {"release", t.release != nullptr},
  };
  for (const auto& [name, there] : required) {
    if (!there) throw Error::at(place, "has no {} in its table", name);
  }
  if (!is_name(t.name)) throw Error::at(place, "has a name that does not match [a-z0-9_-]+");

  const bool memory[] = {t.allocate != nullptr, t.deallocate != nullptr, t.upload != nullptr, t.download != nullptr,
                         t.synchronize != nullptr};
  const auto count = std::count(std::begin(memory), std::end(memory), true);
  if (count != 0 && count != 5) {
    throw Error::at(place, "has {} of the five memory functions, wanted all of them or none", count);
  }
  if (count == 0 && t.device_type != kDLCPU) {
    throw Error::at(place, "takes memory of {} without the memory functions", device_name(t.device_type));
  }
}

const attest_ceilings* BackendLibrary::ceilings() const {
  const auto get = reinterpret_cast<const attest_ceilings* (*)()>(::dlsym(library_, ATTEST_CEILINGS_POINT));
  if (get == nullptr) return nullptr;
  const attest_ceilings* const table = get();
  constexpr size_t first = offsetof(attest_ceilings, multiply) + sizeof(void*);
  if (table == nullptr || table->struct_size < first || table->last_cache == nullptr || table->copy == nullptr ||
      table->multiply == nullptr) {
    throw Error::at(path_.string(), "has an incomplete table of ceilings");
  }
  return table;
}

std::string device_name(int32_t device_type) {
  switch (device_type) {
    case kDLCPU:
      return "cpu";
    case kDLCUDA:
      return "cuda";
    case kDLCUDAHost:
      return "cuda_host";
    case kDLCUDAManaged:
      return "cuda_managed";
    case kDLOpenCL:
      return "opencl";
    case kDLVulkan:
      return "vulkan";
    case kDLMetal:
      return "metal";
    case kDLROCM:
      return "rocm";
    default:
      return fmt::format("device {}", device_type);
  }
}

Answer answer_of(int status, const attest_message& message) {
  const std::string_view text(message.text, ::strnlen(message.text, sizeof message.text));
  std::string line = protocol::printable(text, protocol::kMaxMessage);
  if (!protocol::name_of(status)) {
    return {ATTEST_ERROR, fmt::format("the backend returned status {}, which does not exist{}{}", status,
                                      line.empty() ? "" : ": ", line)};
  }
  return {static_cast<attest_status>(status), std::move(line)};
}

Answer answer_of_exception() {
  const std::string what = [] {
    try {
      throw;
    } catch (const std::exception& error) {
      return protocol::printable(error.what(), protocol::kMaxMessage);
    } catch (...) {
      return std::string("not a std::exception");
    }
  }();
  return {ATTEST_ERROR, fmt::format("an exception escaped the backend: {}", what)};
}

TensorArgument::TensorArgument(const protocol::Tensor& tensor, void* block, DLDeviceType device)
    : shape_(tensor.shape), strides_(tensor.strides) {
  // Never NULL, not even for a tensor without axes.
  shape_.reserve(1);
  strides_.reserve(1);
  tensor_.data = static_cast<std::byte*>(block) + (tensor.offset - tensor.begin - tensor.byte_offset);
  tensor_.device = {device, 0};
  tensor_.ndim = static_cast<int>(shape_.size());
  tensor_.dtype = info(tensor.dtype).dlpack;
  tensor_.shape = shape_.data();
  tensor_.strides = strides_.data();
  tensor_.byte_offset = static_cast<uint64_t>(tensor.byte_offset);
}

attest_problem abi_problem(const Problem& problem) {
  attest_problem p{};
  p.struct_size = sizeof p;
  p.level = abi(problem.level);
  p.batch = problem.batch;
  p.query_heads = problem.query_heads;
  p.kv_heads = problem.kv_heads;
  p.qk_head_dim = problem.qk_head_dim;
  p.v_head_dim = problem.v_head_dim;
  p.d_model = problem.level == Level::layer ? problem.d_model : 0;
  p.dtype = info(problem.dtype).dlpack;
  p.cache_dtype = p.dtype;
  p.scale = problem.scale.value_or(0);
  p.causal = abi(problem.causal);
  p.mask = abi(problem.mask);
  p.window_left = problem.window_left.value_or(-1);
  p.window_right = problem.window_right.value_or(-1);
  p.softcap = problem.softcap;
  p.alibi = abi(problem.alibi);
  p.wants_lse = problem.lse ? 1 : 0;
  if (problem.rope) {
    const Rope& rope = problem.rope;
    p.rope.style = abi(rope.style);
    p.rope.scaling = abi(rope.scaling);
    p.rope.rotary_dim = rope.dim;
    p.rope.base = rope.base;
    p.rope.factor = rope.factor;
    p.rope.original_length = rope.original_length;
    p.rope.low_frequency = rope.low_frequency;
    p.rope.high_frequency = rope.high_frequency;
    p.rope.attention_factor = rope.attention_factor;
  }
  p.norm_epsilon = problem.norm_epsilon;
  p.packed = problem.packed ? 1 : 0;
  p.cache = abi(problem.cache);
  if (problem.cache != CacheKind::none) {
    p.cache_dtype = info(problem.cache_dtype).dlpack;
    p.cache_fp8 = problem.cache_dtype == DType::f8_e4m3   ? ATTEST_FP8_E4M3
                  : problem.cache_dtype == DType::f8_e5m2 ? ATTEST_FP8_E5M2
                                                          : ATTEST_FP8_NONE;
    p.kv_scale = abi(problem.kv_scale);
    p.capacity = problem.capacity;
    p.page_size = problem.page_size;
  }
  return p;
}

bool set_tensor(attest_problem& problem, std::string_view name, const DLTensor* tensor) {
  using Member = const DLTensor* attest_problem::*;
  static constexpr std::pair<std::string_view, Member> kMembers[] = {
      {"q_weight", &attest_problem::q_weight},
      {"k_weight", &attest_problem::k_weight},
      {"v_weight", &attest_problem::v_weight},
      {"out_weight", &attest_problem::out_weight},
      {"q_bias", &attest_problem::q_bias},
      {"k_bias", &attest_problem::k_bias},
      {"v_bias", &attest_problem::v_bias},
      {"out_bias", &attest_problem::out_bias},
      {"sinks", &attest_problem::sinks},
      {"alibi_slopes", &attest_problem::alibi_slopes},
      {"q_norm_weight", &attest_problem::q_norm_weight},
      {"k_norm_weight", &attest_problem::k_norm_weight},
  };
  for (const auto& [member_name, member] : kMembers) {
    if (member_name == name) {
      problem.*member = tensor;
      return true;
    }
  }
  return false;
}

StepArguments::StepArguments(int64_t max_query_length, int64_t max_total_length) {
  step_.struct_size = sizeof step_;
  step_.max_query_length = max_query_length;
  step_.max_total_length = max_total_length;
  cache_.struct_size = sizeof cache_;
}

bool StepArguments::set(std::string_view name, DLTensor* tensor) {
  static constexpr std::pair<std::string_view, const DLTensor * attest_step::*> kInputs[] = {
      {"query", &attest_step::query},
      {"key", &attest_step::key},
      {"value", &attest_step::value},
      {"query_lengths", &attest_step::query_lengths},
      {"key_lengths", &attest_step::key_lengths},
      {"query_start", &attest_step::query_start},
      {"key_start", &attest_step::key_start},
      {"positions", &attest_step::positions},
      {"mask", &attest_step::mask},
  };
  static constexpr std::pair<std::string_view, DLTensor * attest_step::*> kOutputs[] = {
      {"output", &attest_step::output},
      {"lse", &attest_step::lse},
  };
  static constexpr std::pair<std::string_view, DLTensor * attest_cache::*> kCache[] = {
      {"cache.key", &attest_cache::key},
      {"cache.value", &attest_cache::value},
      {"cache.lengths", &attest_cache::lengths},
      {"cache.key_scale", &attest_cache::key_scale},
      {"cache.value_scale", &attest_cache::value_scale},
  };
  for (const auto& [member_name, member] : kInputs) {
    if (member_name == name) return step_.*member = tensor, true;
  }
  for (const auto& [member_name, member] : kOutputs) {
    if (member_name == name) return step_.*member = tensor, true;
  }
  for (const auto& [member_name, member] : kCache) {
    if (member_name == name) return cache_.*member = tensor, step_.cache = &cache_, true;
  }
  if (name == "cache.block_table") return cache_.block_table = tensor, step_.cache = &cache_, true;
  return false;
}

}  // namespace attest
