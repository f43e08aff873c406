// SPDX-License-Identifier: Apache-2.0
// attest/backend.hpp: write an attention backend as a small C++20 class.
//
// Who includes it: backends written in C++, one file of theirs at least. It needs attest/backend.h and the standard
// library only. It fills the C table from a class, turns exceptions into statuses, parses options, and checks
// arguments.
//
//     class Mine {
//      public:
//       static constexpr const char* name = "mine";            // also possible: a static function name()
//       static constexpr const char* version = "1.0";          // likewise
//       static std::string description() { return "plain loops, f32"; }
//
//       explicit Mine(attest::abi::Options& options) : threads_(options.take_count("threads", 1)) {}
//
//       class Plan {
//        public:
//         Plan(Mine& mine, const attest_problem& problem) : problem_(problem) {
//           attest::abi::check_problem(problem);                                            // INVALID if malformed
//           attest::abi::require_only(problem, {.f32 = true, .contiguous_cache = true});    // UNSUPPORTED if more
//         }
//         void run(const attest_step& step) {
//           const auto extents = attest::abi::check_step(problem_, step);   // INVALID or OVERFLOW; nothing written yet
//           attest::abi::View<const float, 4> query(*step.query);
//           ... query(b, i, h, d) ...
//         }
//        private:
//         attest_problem problem_;
//       };
//     };
//     ATTEST_REGISTER_BACKEND(Mine)
//
// A backend with memory of its own also has `static constexpr DLDeviceType device_type` and the five members
// `void* allocate(size_t)`, `void deallocate(void*) noexcept`, `void upload(void*, const void*, size_t)`,
// `void download(void*, const void*, size_t)` and `void synchronize()`.
//
// A problem or step reaches the class complete: fields that an older suite does not have are 0 in it, and one from a
// newer suite is refused when it uses a field that this header does not have.
#ifndef ATTEST_BACKEND_HPP
#define ATTEST_BACKEND_HPP

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <initializer_list>
#include <map>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "attest/backend.h"

// Hidden whatever the flags: two backends in one process must not share this header's statics.
#if defined(__GNUC__)
#pragma GCC visibility push(hidden)
#endif

namespace attest::abi {

// ---------------------------------------------------------------------------------------------------------------------
// Refusals: throw one of these, with a one-line message, and the caller gets its status.

/// A refusal with the status it stands for.
class Refusal : public std::runtime_error {
 public:
  Refusal(attest_status status, const std::string& message) : std::runtime_error(message), status_(status) {}
  [[nodiscard]] attest_status status() const noexcept { return status_; }

 private:
  attest_status status_;
};

/// A legal problem that this backend does not implement; the message is the reason.
struct Unsupported : Refusal {
  explicit Unsupported(const std::string& message) : Refusal(ATTEST_UNSUPPORTED, message) {}
};

/// A wrong shape, dtype or value; the message names the argument, what was got and what was wanted.
struct Invalid : Refusal {
  explicit Invalid(const std::string& message) : Refusal(ATTEST_INVALID, message) {}
};

/// A step that would pass the cache's capacity.
struct Overflow : Refusal {
  explicit Overflow(const std::string& message) : Refusal(ATTEST_OVERFLOW, message) {}
};

/// Writes `text` as one line, cut to what `message` holds, never inside a UTF-8 character.
inline void write_message(attest_message* message, std::string_view text) noexcept {
  constexpr std::size_t header = offsetof(attest_message, text);
  if (message == nullptr || message->struct_size <= header) return;
  const std::size_t room = std::min<std::size_t>(message->struct_size - header, sizeof message->text) - 1;
  std::size_t length = std::min(text.size(), room);
  if (length < text.size()) {
    while (length > 0 && (static_cast<unsigned char>(text[length]) & 0xC0u) == 0x80u) --length;
  }
  for (std::size_t i = 0; i < length; ++i) {
    const bool control = static_cast<unsigned char>(text[i]) < 0x20u || text[i] == '\x7f';
    message->text[i] = control ? ' ' : text[i];
  }
  message->text[length] = '\0';
}

/// Runs `work` and answers its status; what it throws becomes a status and a message.
template <class Work>
attest_status guarded(attest_message* message, Work&& work) noexcept {
  write_message(message, "");
  try {
    work();
    return ATTEST_OK;
  } catch (const Refusal& refusal) {
    write_message(message, refusal.what());
    return refusal.status();
  } catch (const std::bad_alloc&) {
    write_message(message, "out of memory");
  } catch (const std::exception& error) {
    write_message(message, error.what());
  } catch (...) {
    write_message(message, "an exception that is no std::exception");
  }
  return ATTEST_ERROR;
}

// ---------------------------------------------------------------------------------------------------------------------
// Options

/// What `open` was given: a JSON object of strings. Take what the backend knows; what is left over is refused as
/// INVALID.
class Options {
 public:
  /// Parses `json`; NULL means no options. Throws Invalid with the place of the first error.
  explicit Options(const char* json) {
    if (json != nullptr) Parser{json, values_}.parse();
  }

  /// The option's value, or `fallback` where it was not given.
  std::string take(const std::string& name, const std::string& fallback) {
    const auto found = values_.find(name);
    if (found == values_.end()) return fallback;
    std::string value = std::move(found->second);
    values_.erase(found);
    return value;
  }

  /// The option's value as a whole number of at least 1, or `fallback` where it was not given. Throws Invalid
  /// otherwise.
  int take_count(const std::string& name, int fallback) {
    if (values_.find(name) == values_.end()) return fallback;
    const std::string text = take(name, "");
    const bool digits = !text.empty() && text.size() <= 6 && text.find_first_not_of("0123456789") == std::string::npos;
    const int value = digits ? std::stoi(text) : 0;
    if (value < 1) throw Invalid("option " + name + ": got \"" + text + "\", wanted a whole number from 1 to 999999");
    return value;
  }

  /// Throws Invalid if an option was not taken. The adapter calls it after the backend's constructor.
  void finish() const {
    if (!values_.empty()) throw Invalid("option " + values_.begin()->first + ": this backend has no such option");
  }

 private:
  using Values = std::map<std::string, std::string>;

  struct Parser {
    const char* const begin;
    Values& values;
    const char* at = begin;

    Parser(const char* json, Values& into) : begin(json), values(into) {}

    void parse() {
      expect('{');
      space();
      if (*at == '}') {
        ++at;
      } else {
        member();
        while (*at == ',') ++at, member();
        expect('}');
      }
      space();
      if (*at != '\0') fail("wanted the end");
    }

    void member() {
      space();
      const std::string name = string();
      expect(':');
      space();
      if (!values.emplace(name, string()).second) fail("option " + name + " stands there twice");
      space();
    }
    [[noreturn]] void fail(const std::string& what) const {
      throw Invalid("options: at character " + std::to_string(at - begin) + ": " + what);
    }
    void space() {
      while (*at == ' ' || *at == '\t' || *at == '\n' || *at == '\r') ++at;
    }
    void expect(char wanted) {
      space();
      if (*at != wanted) fail(std::string("wanted '") + wanted + "'");
      ++at;
    }
    std::string string() {
      if (*at != '"') fail("wanted a string");
      ++at;
      std::string text;
      while (*at != '"') {
        if (static_cast<unsigned char>(*at) < 0x20u) fail("a control character, or no closing '\"'");
        if (*at == '\\') {
          escape(text);
        } else {
          text += *at++;
        }
      }
      ++at;
      return text;
    }
    void escape(std::string& text) {
      static constexpr char letters[] = "\"\\/bfnrt";
      static constexpr char meanings[] = "\"\\/\b\f\n\r\t";
      ++at;
      if (*at == 'u') {
        ++at;
        append_utf8(text, code_point());
      } else if (const char* found = *at != '\0' ? std::strchr(letters, *at) : nullptr) {
        text += meanings[found - letters];
        ++at;
      } else {
        fail("an unknown escape");
      }
    }
    std::uint32_t hex4() {
      std::uint32_t value = 0;
      for (int i = 0; i < 4; ++i, ++at) {
        const char c = *at;
        const int digit = c >= '0' && c <= '9'   ? c - '0'
                          : c >= 'a' && c <= 'f' ? c - 'a' + 10
                          : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                                 : -1;
        if (digit < 0) fail("wanted four hexadecimal digits");
        value = value * 16 + static_cast<std::uint32_t>(digit);
      }
      return value;
    }
    std::uint32_t code_point() {
      const std::uint32_t first = hex4();
      if (first == 0) fail("\\u0000 has no place in an option");
      if (first < 0xD800u || first > 0xDFFFu) return first;
      if (first > 0xDBFFu || at[0] != '\\' || at[1] != 'u') fail("half of a surrogate pair");
      at += 2;
      const std::uint32_t second = hex4();
      if (second < 0xDC00u || second > 0xDFFFu) fail("half of a surrogate pair");
      return 0x10000u + ((first - 0xD800u) << 10) + (second - 0xDC00u);
    }
    static void append_utf8(std::string& text, std::uint32_t code) {
      const auto tail = [&](int shift) { text += static_cast<char>(0x80u | ((code >> shift) & 0x3Fu)); };
      if (code < 0x80u) {
        text += static_cast<char>(code);
      } else if (code < 0x800u) {
        text += static_cast<char>(0xC0u | (code >> 6));
        tail(0);
      } else if (code < 0x10000u) {
        text += static_cast<char>(0xE0u | (code >> 12));
        tail(6), tail(0);
      } else {
        text += static_cast<char>(0xF0u | (code >> 18));
        tail(12), tail(6), tail(0);
      }
    }
  };

  Values values_;
};

// ---------------------------------------------------------------------------------------------------------------------
// Tensors

inline constexpr DLDataType f32{kDLFloat, 32, 1};
inline constexpr DLDataType f16{kDLFloat, 16, 1};
inline constexpr DLDataType bf16{kDLBfloat, 16, 1};
inline constexpr DLDataType i32{kDLInt, 32, 1};
inline constexpr DLDataType u8{kDLUInt, 8, 1};

inline bool same(DLDataType a, DLDataType b) {
  return a.code == b.code && a.bits == b.bits && a.lanes == b.lanes;
}

/// "f32", "bf16", "i32", "u8x4"; an unknown code as "type7.16".
inline std::string to_string(DLDataType type) {
  const std::string bits = std::to_string(type.bits);
  const std::string lanes = type.lanes == 1 ? "" : "x" + std::to_string(type.lanes);
  switch (type.code) {
    case kDLFloat:
      return "f" + bits + lanes;
    case kDLBfloat:
      return "bf" + bits + lanes;
    case kDLInt:
      return "i" + bits + lanes;
    case kDLUInt:
      return "u" + bits + lanes;
    default:
      return "type" + std::to_string(type.code) + "." + bits + lanes;
  }
}

/// A strided view of a tensor's elements, axes in the logical order of backend.h. It borrows the memory, and does not
/// check an index. Make one from a tensor that has been checked.
template <class T, int Rank>
class View {
 public:
  /// Of a tensor of exactly this rank.
  explicit View(const DLTensor& tensor)
      : data_(tensor.data == nullptr
                  ? nullptr
                  : reinterpret_cast<T*>(
                        static_cast<std::conditional_t<std::is_const_v<T>, const char, char>*>(tensor.data) +
                        tensor.byte_offset)) {
    if (tensor.ndim != Rank) throw std::logic_error("a View of the wrong rank");
    for (std::size_t axis = 0; axis < Rank; ++axis) {
      shape_[axis] = tensor.shape[axis];
      // A stride may be anything where the extent is 1; 0 makes sums over it safe.
      strides_[axis] = tensor.shape[axis] == 1 ? 0 : tensor.strides[axis];
    }
  }

  /// Of nothing: no memory, all extents 0.
  View() : data_(nullptr) {}

  /// Of any memory; strides in elements.
  View(T* data, const std::array<std::int64_t, Rank>& shape, const std::array<std::int64_t, Rank>& strides)
      : data_(data), shape_(shape), strides_(strides) {}

  /// Of compact memory, last axis innermost.
  View(T* data, const std::array<std::int64_t, Rank>& shape) : data_(data), shape_(shape) {
    std::int64_t stride = 1;
    for (std::size_t axis = Rank; axis-- > 0; stride *= shape[axis]) strides_[axis] = stride;
  }

  template <class... Index>
  T& operator()(Index... index) const {
    static_assert(sizeof...(Index) == Rank, "one index an axis");
    std::size_t axis = 0;
    std::int64_t offset = 0;
    ((offset += static_cast<std::int64_t>(index) * strides_[axis++]), ...);
    return data_[offset];
  }

  /// The same elements, read-only.
  // NOLINTNEXTLINE(google-explicit-constructor): as a pointer turns into one to const
  operator View<const T, Rank>() const requires(!std::is_const_v<T>) { return {data_, shape_, strides_}; }

  [[nodiscard]] T* data() const { return data_; }
  /// Extent of an axis.
  [[nodiscard]] std::int64_t shape(int axis) const { return shape_[static_cast<std::size_t>(axis)]; }
  /// In elements; 0 on an axis of extent 1.
  [[nodiscard]] std::int64_t stride(int axis) const { return strides_[static_cast<std::size_t>(axis)]; }

 private:
  T* data_;
  std::array<std::int64_t, Rank> shape_{};
  std::array<std::int64_t, Rank> strides_{};
};

/// In a wanted shape: any extent will do.
inline constexpr std::int64_t any_extent = -1;

namespace detail {

inline std::string shape_text(const std::vector<std::int64_t>& shape) {
  std::string text = "[";
  for (const std::int64_t extent : shape) {
    text += (text.size() == 1 ? "" : ", ") + (extent == any_extent ? "any" : std::to_string(extent));
  }
  return text + "]";
}

inline void check_absent(const std::string& name, const void* argument, const char* why) {
  if (argument != nullptr) throw Invalid(name + ": got a tensor, wanted none: " + why);
}

inline void check_range(const std::string& name, std::int64_t got, std::int64_t low, std::int64_t high) {
  if (got < low || got > high) {
    throw Invalid(name + ": got " + std::to_string(got) + ", wanted " + std::to_string(low) + ".." +
                  std::to_string(high));
  }
}

inline void check_at_least(const std::string& name, std::int64_t got, std::int64_t low) {
  if (got < low) throw Invalid(name + ": got " + std::to_string(got) + ", wanted at least " + std::to_string(low));
}

inline void check_equals(const std::string& name, std::int64_t got, std::int64_t wanted, const char* why) {
  if (got != wanted) {
    throw Invalid(name + ": got " + std::to_string(got) + ", wanted " + std::to_string(wanted) + ": " + why);
  }
}

inline void check_finite(const std::string& name, double got) {
  if (!std::isfinite(got)) throw Invalid(name + ": got " + std::to_string(got) + ", wanted a finite number");
}

}  // namespace detail

/// Throws Invalid unless `tensor` is there, on `device`, with this dtype and this shape (`any_extent` matches any).
inline void check_tensor(const std::string& name, const DLTensor* tensor, DLDataType dtype,
                         std::initializer_list<std::int64_t> shape, DLDeviceType device = kDLCPU) {
  std::vector<std::int64_t> wanted_shape(shape);
  if (tensor == nullptr)
    throw Invalid(name + ": got none, wanted a tensor of shape " + detail::shape_text(wanted_shape));
  const auto rank = static_cast<std::size_t>(std::max(tensor->ndim, 0));
  if (rank > 0 && (tensor->shape == nullptr || tensor->strides == nullptr)) {
    throw Invalid(name + ": got no " + (tensor->shape == nullptr ? "shape" : "strides") + ", wanted a value per axis");
  }
  const bool matches = rank == shape.size() &&
                       std::equal(shape.begin(), shape.end(), tensor->shape, [](std::int64_t want, std::int64_t got) {
                         return got >= 0 && (want == any_extent || want == got);
                       });
  if (rank == shape.size()) {
    // Any extent means this tensor's own: the message then differs only where it is wrong.
    for (std::size_t axis = 0; axis < rank; ++axis) {
      if (wanted_shape[axis] == any_extent) wanted_shape[axis] = std::max<std::int64_t>(tensor->shape[axis], 0);
    }
  }
  const std::string wanted = detail::shape_text(wanted_shape);
  if (!matches) {
    throw Invalid(name + ": got shape " + detail::shape_text({tensor->shape, tensor->shape + rank}) + ", wanted " +
                  wanted);
  }
  if (!same(tensor->dtype, dtype)) {
    throw Invalid(name + ": got dtype " + to_string(tensor->dtype) + ", wanted " + to_string(dtype));
  }
  if (tensor->device.device_type != device) {
    throw Invalid(name + ": got memory of device type " + std::to_string(tensor->device.device_type) + ", wanted " +
                  std::to_string(device));
  }
  const bool empty = std::find(tensor->shape, tensor->shape + rank, 0) != tensor->shape + rank;
  if (empty) return;
  if (tensor->data == nullptr) throw Invalid(name + ": got a null pointer, wanted " + wanted + " elements");
  const std::uintptr_t address = reinterpret_cast<std::uintptr_t>(tensor->data) + tensor->byte_offset;
  const std::uintptr_t element = std::max<std::uintptr_t>(1, static_cast<std::uintptr_t>(dtype.bits) * dtype.lanes / 8);
  if (address % element != 0) {
    throw Invalid(name + ": got an address that is no multiple of its element's " + std::to_string(element) + " bytes");
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Problems

/// Throws Invalid unless the problem is a legal one, whether or not a backend implements it.
inline void check_problem(const attest_problem& p, DLDeviceType device = kDLCPU) {
  using namespace detail;
  check_range("level", p.level, ATTEST_LEVEL_CORE, ATTEST_LEVEL_LAYER);
  check_range("causal", p.causal, ATTEST_CAUSAL_NONE, ATTEST_CAUSAL_TOP_LEFT);
  check_range("mask", p.mask, ATTEST_MASK_NONE, ATTEST_MASK_ADDITIVE);
  check_range("cache", p.cache, ATTEST_CACHE_NONE, ATTEST_CACHE_RING);
  check_range("cache_fp8", p.cache_fp8, ATTEST_FP8_NONE, ATTEST_FP8_E5M2);
  check_range("kv_scale", p.kv_scale, ATTEST_KV_SCALE_NONE, ATTEST_KV_SCALE_PER_TOKEN);
  check_range("alibi", p.alibi, ATTEST_ALIBI_NONE, ATTEST_ALIBI_SLOPES);
  check_range("packed", p.packed, 0, 1);
  check_range("wants_lse", p.wants_lse, 0, 1);
  check_range("rope.style", p.rope.style, ATTEST_ROPE_NONE, ATTEST_ROPE_INTERLEAVED);
  check_range("rope.scaling", p.rope.scaling, ATTEST_ROPE_SCALING_NONE, ATTEST_ROPE_SCALING_LLAMA3);

  check_at_least("batch", p.batch, 1);
  check_at_least("query_heads", p.query_heads, 1);
  check_at_least("kv_heads", p.kv_heads, 1);
  check_at_least("qk_head_dim", p.qk_head_dim, 1);
  check_at_least("v_head_dim", p.v_head_dim, 1);
  if (p.query_heads % p.kv_heads != 0) {
    throw Invalid("kv_heads: got " + std::to_string(p.kv_heads) + ", wanted a divisor of the " +
                  std::to_string(p.query_heads) + " query heads");
  }
  check_finite("scale", p.scale);
  check_finite("softcap", p.softcap);
  if (p.softcap < 0) throw Invalid("softcap: got " + std::to_string(p.softcap) + ", wanted 0 or more");

  if (p.cache == ATTEST_CACHE_NONE) {
    check_equals("capacity", p.capacity, 0, "the problem has no cache");
  } else {
    check_at_least("capacity", p.capacity, 1);
  }
  if (p.cache == ATTEST_CACHE_PAGED) {
    check_at_least("page_size", p.page_size, 1);
  } else {
    check_equals("page_size", p.page_size, 0, "the cache is not paged");
  }
  if (p.rope.style != ATTEST_ROPE_NONE) {
    check_range("rope.rotary_dim", p.rope.rotary_dim, 2, p.qk_head_dim);
    if (p.rope.rotary_dim % 2 != 0) {
      throw Invalid("rope.rotary_dim: got " + std::to_string(p.rope.rotary_dim) + ", wanted an even number");
    }
    check_finite("rope.base", p.rope.base);
    if (p.rope.base <= 0) throw Invalid("rope.base: got " + std::to_string(p.rope.base) + ", wanted more than 0");
  }

  const auto optional = [&](const char* name, const DLTensor* tensor, DLDataType dtype, std::int64_t extent) {
    if (tensor != nullptr) check_tensor(name, tensor, dtype, {extent}, device);
  };
  if (p.level == ATTEST_LEVEL_LAYER) {
    check_at_least("d_model", p.d_model, 1);
    check_tensor("q_weight", p.q_weight, p.dtype, {p.query_heads * p.qk_head_dim, p.d_model}, device);
    check_tensor("k_weight", p.k_weight, p.dtype, {p.kv_heads * p.qk_head_dim, p.d_model}, device);
    check_tensor("v_weight", p.v_weight, p.dtype, {p.kv_heads * p.v_head_dim, p.d_model}, device);
    check_tensor("out_weight", p.out_weight, p.dtype, {p.d_model, p.query_heads * p.v_head_dim}, device);
    optional("q_bias", p.q_bias, p.dtype, p.query_heads * p.qk_head_dim);
    optional("k_bias", p.k_bias, p.dtype, p.kv_heads * p.qk_head_dim);
    optional("v_bias", p.v_bias, p.dtype, p.kv_heads * p.v_head_dim);
    optional("out_bias", p.out_bias, p.dtype, p.d_model);
  } else {
    static constexpr const char* why = "the problem is of the core level";
    check_equals("d_model", p.d_model, 0, why);
    const std::pair<const char*, const DLTensor*> weights[] = {
        {"q_weight", p.q_weight}, {"k_weight", p.k_weight}, {"v_weight", p.v_weight}, {"out_weight", p.out_weight},
        {"q_bias", p.q_bias},     {"k_bias", p.k_bias},     {"v_bias", p.v_bias},     {"out_bias", p.out_bias}};
    for (const auto& [name, tensor] : weights) check_absent(name, tensor, why);
  }
  optional("sinks", p.sinks, f32, p.query_heads);
  optional("q_norm_weight", p.q_norm_weight, p.dtype, p.qk_head_dim);
  optional("k_norm_weight", p.k_norm_weight, p.dtype, p.qk_head_dim);
  if (p.alibi == ATTEST_ALIBI_SLOPES) {
    check_tensor("alibi_slopes", p.alibi_slopes, f32, {p.query_heads}, device);
  } else {
    check_absent("alibi_slopes", p.alibi_slopes, "alibi is not SLOPES");
  }
}

/// What a backend implements beyond the core operator without a cache, a mask or anything else optional. Any grouping
/// of heads, any scale and any head dimensions belong to every backend; refuse what you cannot do by throwing
/// Unsupported.
struct Features {
  bool f32 = false, f16 = false, bf16 = false;  ///< dtype; the cache's dtype must be the same, or see quantized_cache.
  bool layer = false;
  bool causal_bottom_right = false, causal_top_left = false;
  bool mask_boolean = false, mask_additive = false;
  bool window = false, softcap = false, alibi = false, sinks = false;
  bool rope = false, rope_scaling = false, qk_norm = false;
  bool packed = false;
  bool contiguous_cache = false, paged_cache = false, ring_cache = false;
  bool quantized_cache = false;  ///< A cache dtype other than the problem's, fp8, or scales.
  bool lse = false;
};

/// Throws Unsupported, with the reason, if the problem uses a feature that is not in `has`.
inline void require_only(const attest_problem& p, const Features& has) {
  const auto refuse = [](const std::string& what) { throw Unsupported("not implemented: " + what); };
  const bool dtype =
      (has.f32 && same(p.dtype, f32)) || (has.f16 && same(p.dtype, f16)) || (has.bf16 && same(p.dtype, bf16));
  if (!dtype) refuse("dtype " + to_string(p.dtype));
  if (!has.layer && p.level == ATTEST_LEVEL_LAYER) refuse("the layer level");
  if (!has.causal_bottom_right && p.causal == ATTEST_CAUSAL_BOTTOM_RIGHT) refuse("causal, bottom-right");
  if (!has.causal_top_left && p.causal == ATTEST_CAUSAL_TOP_LEFT) refuse("causal, top-left");
  if (!has.mask_boolean && p.mask == ATTEST_MASK_BOOLEAN) refuse("a boolean mask");
  if (!has.mask_additive && p.mask == ATTEST_MASK_ADDITIVE) refuse("an additive mask");
  if (!has.window && (p.window_left >= 0 || p.window_right >= 0)) refuse("a sliding window");
  if (!has.softcap && p.softcap != 0) refuse("softcap");
  if (!has.alibi && p.alibi != ATTEST_ALIBI_NONE) refuse("ALiBi");
  if (!has.sinks && p.sinks != nullptr) refuse("attention sinks");
  if (!has.rope && p.rope.style != ATTEST_ROPE_NONE) refuse("RoPE");
  const bool rope_scaled = p.rope.style != ATTEST_ROPE_NONE && p.rope.scaling != ATTEST_ROPE_SCALING_NONE;
  if (!has.rope_scaling && rope_scaled) refuse("RoPE with scaled frequencies");
  if (!has.qk_norm && (p.q_norm_weight != nullptr || p.k_norm_weight != nullptr)) refuse("QK-norm");
  if (!has.packed && p.packed != 0) refuse("packed sequences");
  if (!has.contiguous_cache && p.cache == ATTEST_CACHE_CONTIGUOUS) refuse("a contiguous cache");
  if (!has.paged_cache && p.cache == ATTEST_CACHE_PAGED) refuse("a paged cache");
  if (!has.ring_cache && p.cache == ATTEST_CACHE_RING) refuse("a ring cache");
  if (!has.quantized_cache && p.cache != ATTEST_CACHE_NONE) {
    if (p.cache_fp8 != ATTEST_FP8_NONE) refuse("an fp8 cache");
    if (!same(p.cache_dtype, p.dtype)) refuse("a " + to_string(p.cache_dtype) + " cache under " + to_string(p.dtype));
    if (p.kv_scale != ATTEST_KV_SCALE_NONE) refuse("a scaled cache");
  }
  if (!has.lse && p.wants_lse != 0) refuse("the LSE output");
}

// ---------------------------------------------------------------------------------------------------------------------
// Positions

/// Keys [begin, end) of a sequence.
struct KeyRange {
  std::int64_t begin, end;
};

/// The keys that query `index` of `queries` sees by position, among `total` (clauses M1 to M5).
inline KeyRange visible_keys(const attest_problem& p, std::int64_t index, std::int64_t queries, std::int64_t total) {
  const std::int64_t position = p.causal == ATTEST_CAUSAL_TOP_LEFT ? index : total - queries + index;
  KeyRange keys{0, p.causal == ATTEST_CAUSAL_NONE ? total : position + 1};
  if (p.window_left >= 0) keys.begin = position - p.window_left;
  if (p.window_right >= 0) keys.end = std::min(keys.end, position + p.window_right + 1);
  keys.begin = std::clamp<std::int64_t>(keys.begin, 0, total);
  keys.end = std::clamp<std::int64_t>(keys.end, keys.begin, total);
  return keys;
}

/// ALiBi's slope of every query head (clause B1); empty without ALiBi. Host memory.
inline std::vector<float> alibi_slopes(const attest_problem& p) {
  std::vector<float> slopes;
  if (p.alibi == ATTEST_ALIBI_NONE) return slopes;
  std::int64_t n = 1;  // the largest power of two up to Hq
  while (2 * n <= p.query_heads) n *= 2;
  for (std::int64_t h = 0; h < p.query_heads; ++h) {
    const double exponent = h < n ? -8.0 * static_cast<double>(h + 1) : -4.0 * static_cast<double>(2 * (h - n) + 1);
    slopes.push_back(p.alibi == ATTEST_ALIBI_SLOPES ? View<const float, 1>(*p.alibi_slopes)(h)
                                                    : static_cast<float>(std::exp2(exponent / static_cast<double>(n))));
  }
  return slopes;
}

// ---------------------------------------------------------------------------------------------------------------------
// Steps

/// A number of tokens per sequence.
class Counts {
 public:
  Counts(std::int64_t batch, std::int64_t each) : values_(static_cast<std::size_t>(batch), each) {}
  std::int64_t& operator[](std::int64_t b) { return values_[static_cast<std::size_t>(b)]; }
  std::int64_t operator[](std::int64_t b) const { return values_[static_cast<std::size_t>(b)]; }
  [[nodiscard]] std::int64_t batch() const { return static_cast<std::int64_t>(values_.size()); }

 private:
  std::vector<std::int64_t> values_;
};

/// How many tokens a step has.
struct Extents {
  Counts queries;  ///< Query tokens.
  Counts past;     ///< Tokens in the cache before the step; 0 without a cache.
  Counts keys;     ///< Key tokens of this step.
  /// Keys of sequence b after the step, of which its last query may see all.
  [[nodiscard]] std::int64_t total(std::int64_t b) const { return past[b] + keys[b]; }
};

/// The half of check_step that needs no tensor's contents: presence, shapes, dtypes and memory of all arguments.
/// It covers padded steps (packed = 0) without a cache or with a contiguous or ring cache. Throws Invalid.
inline void check_step_tensors(const attest_problem& p, const attest_step& step, DLDeviceType device = kDLCPU) {
  using namespace detail;
  if (p.packed != 0 || p.cache == ATTEST_CACHE_PAGED) {
    throw std::logic_error("check_step does not cover packed steps and paged caches");
  }
  const bool layer = p.level == ATTEST_LEVEL_LAYER;
  const auto tokens = [&](const char* name, const DLTensor* tensor, std::int64_t count, std::int64_t heads,
                          std::int64_t dim) {
    if (layer) {
      check_tensor(name, tensor, p.dtype, {p.batch, count, p.d_model}, device);
    } else {
      check_tensor(name, tensor, p.dtype, {p.batch, count, heads, dim}, device);
    }
  };
  tokens("query", step.query, any_extent, p.query_heads, p.qk_head_dim);
  const std::int64_t query_tokens = step.query->shape[1];
  if (step.key != nullptr || p.cache == ATTEST_CACHE_NONE) {
    tokens("key", step.key, any_extent, p.kv_heads, p.qk_head_dim);
    const std::int64_t key_tokens = step.key != nullptr ? step.key->shape[1] : 0;  // it is there: check_tensor throws
    tokens("value", step.value, key_tokens, p.kv_heads, p.v_head_dim);
  } else {
    check_absent("value", step.value, "there is no key");
  }
  if (step.query_lengths != nullptr) check_tensor("query_lengths", step.query_lengths, i32, {p.batch}, device);
  if (step.key_lengths != nullptr) check_tensor("key_lengths", step.key_lengths, i32, {p.batch}, device);
  check_absent("query_start", step.query_start, "the problem is not packed");
  check_absent("key_start", step.key_start, "the problem is not packed");
  if (step.positions != nullptr) {
    if (p.rope.style == ATTEST_ROPE_NONE) check_absent("positions", step.positions, "the problem has no RoPE");
    check_tensor("positions", step.positions, i32, {p.batch, query_tokens}, device);
  }
  if (p.mask == ATTEST_MASK_NONE) check_absent("mask", step.mask, "the problem has no mask");

  if (p.cache == ATTEST_CACHE_NONE) {
    if (step.cache != nullptr) throw Invalid("cache: got a cache, wanted none: the problem has no cache");
  } else {
    if (step.cache == nullptr) throw Invalid("cache: got none, wanted one: the problem has a cache");
    check_tensor("cache.key", step.cache->key, p.cache_dtype, {p.batch, p.capacity, p.kv_heads, p.qk_head_dim}, device);
    check_tensor("cache.value", step.cache->value, p.cache_dtype, {p.batch, p.capacity, p.kv_heads, p.v_head_dim},
                 device);
    check_tensor("cache.lengths", step.cache->lengths, i32, {p.batch}, device);
    check_absent("cache.block_table", step.cache->block_table, "the cache is not paged");
    if (p.kv_scale == ATTEST_KV_SCALE_NONE) {
      check_absent("cache.key_scale", step.cache->key_scale, "the cache is not scaled");
      check_absent("cache.value_scale", step.cache->value_scale, "the cache is not scaled");
    }
  }
  tokens("output", step.output, query_tokens, p.query_heads, p.v_head_dim);
  if (p.wants_lse != 0) {
    check_tensor("lse", step.lse, f32, {p.batch, p.query_heads, query_tokens}, device);
  } else {
    check_absent("lse", step.lse, "the problem wants none");
  }
}

/// Checks all arguments of a step in host memory and answers its extents; see check_step_tensors for what it covers.
/// It writes nothing, so a step that it refuses has changed nothing. Throws Invalid, or Overflow beyond the capacity.
inline Extents check_step(const attest_problem& p, const attest_step& step) {
  check_step_tensors(p, step);
  const std::int64_t query_tokens = step.query->shape[1];
  const std::int64_t key_tokens = step.key == nullptr ? 0 : step.key->shape[1];
  const auto read = [&](const char* name, const DLTensor* tensor, std::int64_t most, std::int64_t otherwise) {
    Counts counts(p.batch, otherwise);
    if (tensor == nullptr) return counts;
    const View<const std::int32_t, 1> view(*tensor);
    for (std::int64_t b = 0; b < p.batch; ++b) {
      counts[b] = view(b);
      detail::check_range(name + ("[" + std::to_string(b) + "]"), counts[b], 0, most);
    }
    return counts;
  };
  // A ring's length counts on beyond its capacity, as far as an int32 goes.
  const std::int64_t limit = p.cache == ATTEST_CACHE_RING ? INT32_MAX : p.capacity;
  Extents extents{read("query_lengths", step.query_lengths, query_tokens, query_tokens),
                  read("cache.lengths", step.cache == nullptr ? nullptr : step.cache->lengths, limit, 0),
                  read("key_lengths", step.key_lengths, key_tokens, key_tokens)};
  for (std::int64_t b = 0; step.cache != nullptr && b < p.batch; ++b) {
    if (extents.total(b) > limit) {
      throw Overflow("cache.lengths[" + std::to_string(b) + "]: " + std::to_string(extents.past[b]) + " cached + " +
                     std::to_string(extents.keys[b]) + " new tokens = " + std::to_string(extents.total(b)) +
                     ", capacity is " + std::to_string(limit));
    }
  }
  return extents;
}

// ---------------------------------------------------------------------------------------------------------------------
// From a class to the table

namespace detail {

// What the first version of each struct had; a smaller struct_size is a mistake, not an older suite.
inline constexpr std::size_t first_problem = offsetof(attest_problem, k_norm_weight) + sizeof(void*);
inline constexpr std::size_t first_cache = offsetof(attest_cache, value_scale) + sizeof(void*);
inline constexpr std::size_t first_step = offsetof(attest_step, stream) + sizeof(void*);

/// A caller's struct as this header knows it: fields it lacks are 0. A field beyond this header's that is in use is
/// refused by `refuse`, because going on without it would answer another question.
template <class Struct, class Refuse>
Struct complete(const char* name, const Struct* given, std::size_t first, Refuse&& refuse) {
  if (given == nullptr) throw Invalid(std::string(name) + ": got a null pointer");
  const std::size_t size = given->struct_size;
  check_at_least(name + std::string(".struct_size"), static_cast<std::int64_t>(size), static_cast<std::int64_t>(first));
  Struct known{};
  std::memcpy(&known, given, std::min(size, sizeof known));
  const char* bytes = reinterpret_cast<const char*>(given);
  for (std::size_t i = sizeof known; i < size; ++i) {
    if (bytes[i] != 0) refuse(std::string(name) + ": it uses a field that is newer than this backend's backend.h");
  }
  known.struct_size = sizeof known;
  return known;
}

template <class Class>
std::string name_of() {
  if constexpr (requires { Class::name(); }) {
    return Class::name();
  } else {
    return Class::name;
  }
}

template <class Class>
std::string version_of() {
  if constexpr (requires { Class::version(); }) {
    return Class::version();
  } else {
    return Class::version;
  }
}

template <class Class>
struct Table {
  using Plan = typename Class::Plan;

  std::string name = name_of<Class>();
  std::string version = version_of<Class>();
  std::string description = Class::description();
  std::string declarations;
  attest_backend table{};

  static Class& self(attest_context* context) { return *reinterpret_cast<Class*>(context); }

  Table() {
    table.struct_size = sizeof table;
    table.abi_version = ATTEST_ABI_VERSION;
    table.name = name.c_str();
    table.version = version.c_str();
    table.description = description.c_str();
    if constexpr (requires { Class::declarations; }) {
      declarations = Class::declarations;
      table.declarations = declarations.c_str();
    }
    table.device_type = kDLCPU;
    if constexpr (requires { Class::device_type; }) table.device_type = Class::device_type;

    table.open = [](const char* text, attest_context** context, attest_message* message) {
      return guarded(message, [&] {
        Options options(text);
        auto made = std::make_unique<Class>(options);
        options.finish();
        *context = reinterpret_cast<attest_context*>(made.release());
      });
    };
    table.close = [](attest_context* context) { delete &self(context); };
    table.prepare = [](attest_context* context, const attest_problem* problem, attest_plan** plan,
                       attest_message* message) {
      return guarded(message, [&] {
        const auto known =
            complete("problem", problem, first_problem, [](const std::string& why) { throw Unsupported(why); });
        *plan = reinterpret_cast<attest_plan*>(std::make_unique<Plan>(self(context), known).release());
      });
    };
    table.run = [](attest_plan* plan, const attest_step* step, attest_message* message) {
      return guarded(message, [&] {
        const auto refuse = [](const std::string& why) { throw Invalid(why); };
        attest_step known = complete("step", step, first_step, refuse);
        attest_cache cache{};
        if (known.cache != nullptr) {
          cache = complete("cache", known.cache, first_cache, refuse);
          known.cache = &cache;
        }
        reinterpret_cast<Plan*>(plan)->run(known);
      });
    };
    table.release = [](attest_plan* plan) { delete reinterpret_cast<Plan*>(plan); };
    add_memory();
  }

  void add_memory() {
    constexpr bool allocates = requires(Class & c, std::size_t bytes) {
      c.allocate(bytes);
    };
    constexpr bool complete = requires(Class & c, void* device, const void* host, void* out, std::size_t bytes) {
      c.allocate(bytes);
      c.deallocate(device);
      c.upload(device, host, bytes);
      c.download(out, static_cast<const void*>(device), bytes);
      c.synchronize();
    };
    static_assert(allocates == complete,
                  "device memory needs all of allocate, deallocate, upload, download, synchronize");
    if constexpr (complete) {
      table.allocate = [](attest_context* context, std::size_t bytes, void** memory, attest_message* message) {
        return guarded(message, [&] { *memory = self(context).allocate(bytes); });
      };
      table.deallocate = [](attest_context* context, void* memory) { self(context).deallocate(memory); };
      table.upload = [](attest_context* context, void* device, const void* host, std::size_t bytes,
                        attest_message* message) {
        return guarded(message, [&] { self(context).upload(device, host, bytes); });
      };
      table.download = [](attest_context* context, void* host, const void* device, std::size_t bytes,
                          attest_message* message) {
        return guarded(message, [&] { self(context).download(host, device, bytes); });
      };
      table.synchronize = [](attest_context* context, attest_message* message) {
        return guarded(message, [&] { self(context).synchronize(); });
      };
    }
  }
};

}  // namespace detail

/// The table of `Class`, made on first use; nullptr if making its texts threw. It is never destroyed, because a caller
/// may hold it until the library is unloaded.
template <class Class>
const attest_backend* table_of() noexcept {
  static const attest_backend* const table = []() noexcept -> const attest_backend* {
    try {
      return &(new detail::Table<Class>)->table;
    } catch (...) {
      return nullptr;
    }
  }();
  return table;
}

}  // namespace attest::abi

#if defined(__GNUC__)
#pragma GCC visibility pop
#endif

/// Exports `Class` as this library's backend; once a library, outside of any function.
#define ATTEST_REGISTER_BACKEND(Class)                           \
  ATTEST_EXPORT const attest_backend* attest_get_backend(void) { \
    return ::attest::abi::table_of<Class>();                     \
  }

#endif  // ATTEST_BACKEND_HPP
