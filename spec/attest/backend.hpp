// SPDX-License-Identifier: Apache-2.0
// attest/backend.hpp: write an attention backend as a small C++20 class.
//
// Who includes it: backends written in C++, one file of theirs at least. It needs attest/backend.h, DLPack and the
// standard library only. It fills the C table from a class, turns exceptions into statuses, parses options, checks
// arguments, and finds tokens: padded or packed, in a contiguous, paged or ring cache. attest/backend_math.hpp, which
// it includes, has the storage formats and RoPE's frequencies.
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
// `void download(void*, const void*, size_t)` and `void synchronize()`. Its constructor throws Unsupported where the
// machine has no such device.
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
#include <limits>
#include <map>
#include <memory>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "attest/backend.h"
#include "attest/backend_math.hpp"
#include "attest/ceilings.h"

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
inline constexpr DLDataType i8{kDLInt, 8, 1};
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
    return data_[offset(index...)];
  }

  /// Of an element from data(), in elements.
  template <class... Index>
  [[nodiscard]] std::int64_t offset(Index... index) const {
    static_assert(sizeof...(Index) == Rank, "one index an axis");
    std::size_t axis = 0;
    std::int64_t sum = 0;
    ((sum += static_cast<std::int64_t>(index) * strides_[axis++]), ...);
    return sum;
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

/// A strided view whose elements are stored in any format, read as float and rounded where they are written.
template <int Rank>
class NumberView {
 public:
  /// Of a tensor of exactly this rank; `fp8` (an attest_fp8) says what uint8 stands for.
  explicit NumberView(const DLTensor& tensor, int fp8 = ATTEST_FP8_NONE)
      : bytes_(tensor), storage_(storage_of(tensor.dtype, fp8)), size_(static_cast<std::int64_t>(bytes_of(storage_))) {}

  template <class... Index>
  float operator()(Index... index) const {
    return load(storage_, address(index...));
  }
  template <class... Index>
  void set(float value, Index... index) const {
    store(storage_, value, address(index...));
  }
  template <class... Index>
  [[nodiscard]] void* address(Index... index) const {
    return bytes_.data() + bytes_.offset(index...) * size_;
  }
  [[nodiscard]] std::int64_t shape(int axis) const { return bytes_.shape(axis); }
  [[nodiscard]] std::int64_t stride(int axis) const { return bytes_.stride(axis); }
  [[nodiscard]] Storage storage() const { return storage_; }

 private:
  View<char, Rank> bytes_;  // its strides count elements, not bytes
  Storage storage_;
  std::int64_t size_;
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

inline void check_positive(const std::string& name, double got) {
  check_finite(name, got);
  if (got <= 0) throw Invalid(name + ": got " + std::to_string(got) + ", wanted more than 0");
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

namespace detail {

inline void check_cache(const attest_problem& p) {
  if (p.cache == ATTEST_CACHE_NONE) {
    check_equals("capacity", p.capacity, 0, "the problem has no cache");
    check_equals("cache_fp8", p.cache_fp8, ATTEST_FP8_NONE, "the problem has no cache");
    check_equals("kv_scale", p.kv_scale, ATTEST_KV_SCALE_NONE, "the problem has no cache");
  } else {
    check_at_least("capacity", p.capacity, 1);
    const bool coded = same(p.cache_dtype, i8) || same(p.cache_dtype, u8);
    if (!coded && !same(p.cache_dtype, p.dtype)) {
      throw Invalid("cache_dtype: got " + to_string(p.cache_dtype) + ", wanted " + to_string(p.dtype) + ", i8 or u8");
    }
    if (coded) {
      check_range("kv_scale", p.kv_scale, ATTEST_KV_SCALE_PER_TENSOR, ATTEST_KV_SCALE_PER_TOKEN);
    } else {
      check_equals("kv_scale", p.kv_scale, ATTEST_KV_SCALE_NONE, "the cache has the problem's dtype");
    }
    if (same(p.cache_dtype, u8)) {
      check_range("cache_fp8", p.cache_fp8, ATTEST_FP8_E4M3, ATTEST_FP8_E5M2);
    } else {
      check_equals("cache_fp8", p.cache_fp8, ATTEST_FP8_NONE, "the cache's dtype is not u8");
    }
  }
  if (p.cache == ATTEST_CACHE_PAGED) {
    check_at_least("page_size", p.page_size, 1);
  } else {
    check_equals("page_size", p.page_size, 0, "the cache is not paged");
  }
  if (p.cache == ATTEST_CACHE_RING && (p.window_left < 0 || p.window_left >= p.capacity)) {
    throw Invalid("window_left: got " + std::to_string(p.window_left) + ", wanted 0.." +
                  std::to_string(p.capacity - 1) + ": a ring keeps no more tokens");
  }
}

inline void check_rope(const attest_problem& p) {
  const attest_rope& rope = p.rope;
  if (rope.style == ATTEST_ROPE_NONE) return;
  check_range("rope.rotary_dim", rope.rotary_dim, 2, p.qk_head_dim);
  if (rope.rotary_dim % 2 != 0) {
    throw Invalid("rope.rotary_dim: got " + std::to_string(rope.rotary_dim) + ", wanted an even number");
  }
  check_positive("rope.base", rope.base);
  if (rope.scaling == ATTEST_ROPE_SCALING_NONE) return;
  check_positive("rope.factor", rope.factor);
  if (rope.scaling == ATTEST_ROPE_SCALING_NTK) check_at_least("rope.rotary_dim", rope.rotary_dim, 4);
  if (!is_yarn(rope) && rope.scaling != ATTEST_ROPE_SCALING_LLAMA3) return;
  check_positive("rope.original_length", rope.original_length);
  check_positive("rope.low_frequency", rope.low_frequency);
  check_finite("rope.high_frequency", rope.high_frequency);
  if (rope.high_frequency <= rope.low_frequency) {
    throw Invalid("rope.high_frequency: got " + std::to_string(rope.high_frequency) +
                  ", wanted more than the low one's " + std::to_string(rope.low_frequency));
  }
  if (is_yarn(rope)) {
    check_finite("rope.attention_factor", rope.attention_factor);
    if (rope.base <= 1) throw Invalid("rope.base: got " + std::to_string(rope.base) + ", wanted more than 1");
  }
}

}  // namespace detail

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
  check_range("rope.scaling", p.rope.scaling, ATTEST_ROPE_SCALING_NONE, ATTEST_ROPE_SCALING_YARN_UNROUNDED);

  if (!same(p.dtype, f32) && !same(p.dtype, f16) && !same(p.dtype, bf16)) {
    throw Invalid("dtype: got " + to_string(p.dtype) + ", wanted f32, f16 or bf16");
  }
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

  if (p.packed != 0) check_equals("mask", p.mask, ATTEST_MASK_NONE, "the problem is packed");
  check_cache(p);
  check_rope(p);
  if (p.q_norm_weight != nullptr || p.k_norm_weight != nullptr) check_positive("norm_epsilon", p.norm_epsilon);

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
  bool f32 = false, f16 = false, bf16 = false;  ///< dtype; the cache's is the same, or see int8_cache and fp8_cache.
  bool layer = false;
  bool causal_bottom_right = false, causal_top_left = false;
  bool mask_boolean = false, mask_additive = false;
  bool window = false, softcap = false, alibi = false, sinks = false;
  bool rope = false, rope_scaling = false, qk_norm = false;
  bool packed = false;
  bool contiguous_cache = false, paged_cache = false, ring_cache = false;
  bool int8_cache = false, fp8_cache = false;  ///< With scales of every kind, under each dtype and cache above.
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
  if (p.cache != ATTEST_CACHE_NONE && !same(p.cache_dtype, p.dtype)) {
    if (!has.int8_cache && same(p.cache_dtype, i8)) refuse("an int8 cache");
    if (!has.fp8_cache && same(p.cache_dtype, u8)) refuse("an fp8 cache");
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
  for (std::int64_t h = 0; h < p.query_heads; ++h) {
    slopes.push_back(p.alibi == ATTEST_ALIBI_SLOPES ? View<const float, 1>(*p.alibi_slopes)(h)
                                                    : static_cast<float>(standard_alibi_slope(h, p.query_heads)));
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

/// How many tokens a step has, and where they lie on the token axes.
struct Extents {
  Counts queries;  ///< Query tokens.
  Counts past;     ///< Tokens in the cache before the step; 0 without a cache.
  Counts keys;     ///< Key tokens of this step.
  /// Number of a sequence's first token if all are counted through: packed `start[b]`, padded `b * S`.
  Counts query_start, key_start;
  /// Tokens on the query and on the key axes of the tensors, padding included.
  std::int64_t query_tokens = 0, key_tokens = 0;
  /// Keys of sequence b after the step, of which its last query may see all.
  [[nodiscard]] std::int64_t total(std::int64_t b) const { return past[b] + keys[b]; }
  /// Of the longest sequence.
  [[nodiscard]] std::int64_t largest_total() const {
    std::int64_t largest = 0;
    for (std::int64_t b = 0; b < past.batch(); ++b) largest = std::max(largest, total(b));
    return largest;
  }
};

namespace detail {

inline std::int64_t pages_per_sequence(const attest_problem& p) {
  return (p.capacity + p.page_size - 1) / p.page_size;
}

/// Of the query or key axis of a checked step; 0 without the tensor.
inline std::int64_t tokens_on_axis(const attest_problem& p, const DLTensor* tensor) {
  return tensor == nullptr ? 0 : tensor->shape[p.packed != 0 ? 0 : 1];
}

inline void check_cache_tensors(const attest_problem& p, const attest_cache& cache, DLDeviceType device) {
  const bool paged = p.cache == ATTEST_CACHE_PAGED;
  const std::int64_t inner = paged ? p.page_size : p.capacity;
  check_tensor("cache.key", cache.key, p.cache_dtype, {paged ? any_extent : p.batch, inner, p.kv_heads, p.qk_head_dim},
               device);
  const std::int64_t outer = cache.key->shape[0];
  check_tensor("cache.value", cache.value, p.cache_dtype, {outer, inner, p.kv_heads, p.v_head_dim}, device);
  check_tensor("cache.lengths", cache.lengths, i32, {p.batch}, device);
  if (paged) {
    check_tensor("cache.block_table", cache.block_table, i32, {p.batch, pages_per_sequence(p)}, device);
  } else {
    check_absent("cache.block_table", cache.block_table, "the cache is not paged");
  }
  const std::pair<const char*, const DLTensor*> scales[] = {{"cache.key_scale", cache.key_scale},
                                                            {"cache.value_scale", cache.value_scale}};
  for (const auto& [name, scale] : scales) {
    switch (p.kv_scale) {
      case ATTEST_KV_SCALE_PER_TENSOR:
        check_tensor(name, scale, f32, {1}, device);
        break;
      case ATTEST_KV_SCALE_PER_HEAD:
        check_tensor(name, scale, f32, {p.kv_heads}, device);
        break;
      case ATTEST_KV_SCALE_PER_TOKEN:
        check_tensor(name, scale, f32, {outer, inner, p.kv_heads}, device);
        break;
      default:
        check_absent(name, scale, "the cache is not quantised");
    }
  }
}

/// The starts of packed sequences, whose tokens fill the axis.
inline Counts read_starts(const std::string& name, const DLTensor& tensor, Counts& counts, std::int64_t tokens) {
  const View<const std::int32_t, 1> starts(tensor);
  const auto at = [&](std::int64_t b) { return name + "[" + std::to_string(b) + "]"; };
  check_range(at(0), starts(0), 0, 0);
  Counts first(counts.batch(), 0);
  for (std::int64_t b = 0; b < counts.batch(); ++b) {
    check_range(at(b + 1), starts(b + 1), starts(b), tokens);
    first[b] = starts(b);
    counts[b] = starts(b + 1) - starts(b);
  }
  check_equals(at(counts.batch()), starts(counts.batch()), tokens, "the number of tokens");
  return first;
}

}  // namespace detail

/// The half of check_step that needs no tensor's contents: presence, shapes, dtypes and memory of all arguments. It
/// takes a mask's last axis as it is. Throws Invalid.
inline void check_step_tensors(const attest_problem& p, const attest_step& step, DLDeviceType device = kDLCPU) {
  using namespace detail;
  const bool layer = p.level == ATTEST_LEVEL_LAYER, packed = p.packed != 0;
  const auto tokens = [&](const char* name, const DLTensor* tensor, std::int64_t count, std::int64_t heads,
                          std::int64_t dim) {
    if (layer && packed) check_tensor(name, tensor, p.dtype, {count, p.d_model}, device);
    if (layer && !packed) check_tensor(name, tensor, p.dtype, {p.batch, count, p.d_model}, device);
    if (!layer && packed) check_tensor(name, tensor, p.dtype, {count, heads, dim}, device);
    if (!layer && !packed) check_tensor(name, tensor, p.dtype, {p.batch, count, heads, dim}, device);
  };
  tokens("query", step.query, any_extent, p.query_heads, p.qk_head_dim);
  const std::int64_t query_tokens = tokens_on_axis(p, step.query);
  if (step.key != nullptr || p.cache == ATTEST_CACHE_NONE) {
    tokens("key", step.key, any_extent, p.kv_heads, p.qk_head_dim);
    tokens("value", step.value, tokens_on_axis(p, step.key), p.kv_heads, p.v_head_dim);
  } else {
    check_absent("value", step.value, "there is no key");
  }
  if (packed) {
    check_absent("query_lengths", step.query_lengths, "the problem is packed");
    check_absent("key_lengths", step.key_lengths, "the problem is packed");
    check_tensor("query_start", step.query_start, i32, {p.batch + 1}, device);
    if (step.key != nullptr || step.key_start != nullptr) {
      check_tensor("key_start", step.key_start, i32, {p.batch + 1}, device);
    }
  } else {
    if (step.query_lengths != nullptr) check_tensor("query_lengths", step.query_lengths, i32, {p.batch}, device);
    if (step.key_lengths != nullptr) check_tensor("key_lengths", step.key_lengths, i32, {p.batch}, device);
    check_absent("query_start", step.query_start, "the problem is not packed");
    check_absent("key_start", step.key_start, "the problem is not packed");
  }
  if (step.positions != nullptr) {
    if (p.rope.style == ATTEST_ROPE_NONE) check_absent("positions", step.positions, "the problem has no RoPE");
    if (packed) check_tensor("positions", step.positions, i32, {query_tokens}, device);
    if (!packed) check_tensor("positions", step.positions, i32, {p.batch, query_tokens}, device);
  }
  if (p.mask == ATTEST_MASK_NONE) {
    check_absent("mask", step.mask, "the problem has no mask");
  } else {
    // Each of the first three axes may be 1 and then serves all.
    const auto extent = [&](int axis, std::int64_t whole) {
      const bool one = step.mask != nullptr && step.mask->ndim == 4 && step.mask->shape[axis] == 1;
      return one ? 1 : whole;
    };
    check_tensor("mask", step.mask, p.mask == ATTEST_MASK_BOOLEAN ? u8 : p.dtype,
                 {extent(0, p.batch), extent(1, p.query_heads), extent(2, query_tokens), any_extent}, device);
  }
  if (p.cache == ATTEST_CACHE_NONE) {
    if (step.cache != nullptr) throw Invalid("cache: got a cache, wanted none: the problem has no cache");
  } else {
    if (step.cache == nullptr) throw Invalid("cache: got none, wanted one: the problem has a cache");
    check_cache_tensors(p, *step.cache, device);
  }
  tokens("output", step.output, query_tokens, p.query_heads, p.v_head_dim);
  if (p.wants_lse == 0) {
    check_absent("lse", step.lse, "the problem wants none");
  } else if (packed) {
    check_tensor("lse", step.lse, f32, {p.query_heads, query_tokens}, device);
  } else {
    check_tensor("lse", step.lse, f32, {p.batch, p.query_heads, query_tokens}, device);
  }
}

/// Checks all arguments of a step in host memory and answers its extents. It writes nothing, so a step that it refuses
/// has changed nothing. Throws Invalid, or Overflow beyond the capacity.
inline Extents check_step(const attest_problem& p, const attest_step& step) {
  using namespace detail;
  check_step_tensors(p, step);
  const Counts zero(p.batch, 0);
  Extents e{zero, zero, zero, zero, zero, tokens_on_axis(p, step.query), tokens_on_axis(p, step.key)};
  const auto read = [&](const char* name, const DLTensor* tensor, std::int64_t most, Counts& counts) {
    if (tensor == nullptr) return;
    const View<const std::int32_t, 1> view(*tensor);
    for (std::int64_t b = 0; b < p.batch; ++b) {
      counts[b] = view(b);
      check_range(name + ("[" + std::to_string(b) + "]"), counts[b], 0, most);
    }
  };
  // A ring's length counts on beyond its capacity, as far as an int32 goes.
  const std::int64_t limit = p.cache == ATTEST_CACHE_RING ? INT32_MAX : p.capacity;
  if (p.packed != 0) {
    e.query_start = read_starts("query_start", *step.query_start, e.queries, e.query_tokens);
    if (step.key_start != nullptr) e.key_start = read_starts("key_start", *step.key_start, e.keys, e.key_tokens);
  } else {
    const std::int64_t query_extent = e.query_tokens, key_extent = e.key_tokens;
    for (std::int64_t b = 0; b < p.batch; ++b) {
      e.queries[b] = query_extent, e.query_start[b] = b * query_extent;
      e.keys[b] = key_extent, e.key_start[b] = b * key_extent;
    }
    e.query_tokens *= p.batch, e.key_tokens *= p.batch;
    read("query_lengths", step.query_lengths, query_extent, e.queries);
    read("key_lengths", step.key_lengths, key_extent, e.keys);
  }
  if (step.cache != nullptr) read("cache.lengths", step.cache->lengths, limit, e.past);
  for (std::int64_t b = 0; b < p.batch; ++b) {
    if (step.cache != nullptr && e.total(b) > limit) {
      throw Overflow("cache.lengths[" + std::to_string(b) + "]: " + std::to_string(e.past[b]) + " cached + " +
                     std::to_string(e.keys[b]) + " new tokens = " + std::to_string(e.total(b)) + ", capacity is " +
                     std::to_string(limit));
    }
    if (step.positions != nullptr && e.keys[b] > e.queries[b]) {
      throw Invalid("positions: got " + std::to_string(e.queries[b]) + " of sequence " + std::to_string(b) +
                    ", wanted one for each of its " + std::to_string(e.keys[b]) + " keys");
    }
  }
  if (step.mask != nullptr) {
    const std::int64_t* const shape = step.mask->shape;
    check_tensor("mask", step.mask, step.mask->dtype, {shape[0], shape[1], shape[2], e.largest_total()});
  }
  if (p.cache == ATTEST_CACHE_PAGED) {
    const View<const std::int32_t, 2> table(*step.cache->block_table);
    for (std::int64_t b = 0; b < p.batch; ++b) {
      for (std::int64_t page = 0; page * p.page_size < e.total(b); ++page) {
        check_range("cache.block_table[" + std::to_string(b) + ", " + std::to_string(page) + "]", table(b, page), 0,
                    step.cache->key->shape[0] - 1);
      }
    }
  }
  return e;
}

// ---------------------------------------------------------------------------------------------------------------------
// Tokens and slots: one way to address what lies in several. All of it is for checked steps in host memory.

/// The numbers of a step's tokens, padded or packed, of any dtype: element (sequence b, its token t, head h, channel
/// c). A layer's tensor is one head of d_model channels.
class Tokens {
 public:
  /// Of a step's query or output.
  static Tokens of_queries(const attest_problem& p, const Extents& e, const DLTensor& tensor) {
    return of_heads(p, e.queries, e.query_start, tensor);
  }
  /// Of a step's key or value.
  static Tokens of_keys(const attest_problem& p, const Extents& e, const DLTensor& tensor) {
    return of_heads(p, e.keys, e.key_start, tensor);
  }
  /// Of a step's LSE: t counts queries, h query heads, and there is one channel.
  static Tokens of_lse(const attest_problem& p, const Extents& e, const DLTensor& tensor) {
    const int token_axis = p.packed != 0 ? 1 : 2;
    return {p, e.queries, e.query_start, tensor, token_axis, token_axis - 1, no_axis};
  }

  float operator()(std::int64_t b, std::int64_t t, std::int64_t h, std::int64_t c) const {
    return load(storage_, address(b, t, h, c));
  }
  void set(float value, std::int64_t b, std::int64_t t, std::int64_t h, std::int64_t c) const {
    store(storage_, value, address(b, t, h, c));
  }
  [[nodiscard]] void* address(std::int64_t b, std::int64_t t, std::int64_t h, std::int64_t c) const {
    return data_ + (first_[b] + t * token_ + h * head_ + c * channel_) * size_;
  }

  [[nodiscard]] std::int64_t batch() const { return counts_.batch(); }
  /// Tokens of a sequence; what a padded tensor holds behind them must not be read.
  [[nodiscard]] std::int64_t count(std::int64_t b) const { return counts_[b]; }
  /// Which token of the step it is, if all are counted through, padding included: from 0 to numbers() - 1.
  [[nodiscard]] std::int64_t number(std::int64_t b, std::int64_t t) const { return start_[b] + t; }
  [[nodiscard]] std::int64_t numbers() const { return numbers_; }

  [[nodiscard]] Storage storage() const { return storage_; }
  /// In elements.
  [[nodiscard]] std::int64_t token_stride() const { return token_; }
  [[nodiscard]] std::int64_t head_stride() const { return head_; }
  [[nodiscard]] std::int64_t channel_stride() const { return channel_; }

 private:
  static constexpr int no_axis = -1;

  static Tokens of_heads(const attest_problem& p, const Counts& counts, const Counts& start, const DLTensor& tensor) {
    const bool layer = p.level == ATTEST_LEVEL_LAYER;
    const int token_axis = p.packed != 0 ? 0 : 1;
    return {p, counts, start, tensor, token_axis, layer ? no_axis : token_axis + 1, tensor.ndim - 1};
  }

  Tokens(const attest_problem& p, const Counts& counts, const Counts& start, const DLTensor& tensor, int token_axis,
         int head_axis, int channel_axis)
      : data_(tensor.data == nullptr ? nullptr : static_cast<char*>(tensor.data) + tensor.byte_offset),
        storage_(storage_of(tensor.dtype)),
        size_(static_cast<std::int64_t>(bytes_of(storage_))),
        counts_(counts),
        start_(start),
        first_(start),
        numbers_(tensor.shape[token_axis] * (p.packed != 0 ? 1 : p.batch)) {
    // A stride may be anything where the extent is 1.
    const auto stride = [&](int axis) { return axis == no_axis || tensor.shape[axis] == 1 ? 0 : tensor.strides[axis]; };
    token_ = stride(token_axis), head_ = stride(head_axis), channel_ = stride(channel_axis);
    for (std::int64_t b = 0; b < p.batch; ++b) first_[b] = p.packed != 0 ? start[b] * token_ : b * stride(0);
  }

  char* data_;
  Storage storage_;
  std::int64_t size_;
  Counts counts_, start_;
  Counts first_;  // the element offset of a sequence's first token
  std::int64_t numbers_;
  std::int64_t token_ = 0, head_ = 0, channel_ = 0;
};

/// What a step's mask adds to the logit of query i of sequence b and the key at position j, -inf where it masks (clause
/// M6); 0 without a mask. Ask it only for queries and keys that are there.
class Mask {
 public:
  Mask(const attest_problem& p, const attest_step& step) {
    if (p.mask == ATTEST_MASK_BOOLEAN) boolean_ = View<const std::uint8_t, 4>(*step.mask);
    if (p.mask == ATTEST_MASK_ADDITIVE) additive_.emplace(*step.mask);
  }
  float operator()(std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j) const {
    // A view reads an axis of extent 1 as if it were whole.
    if (additive_) return (*additive_)(b, h, i, j);
    const bool sees = boolean_.data() == nullptr || boolean_(b, h, i, j) != 0;
    return sees ? 0 : -std::numeric_limits<float>::infinity();
  }

 private:
  View<const std::uint8_t, 4> boolean_;
  std::optional<NumberView<4>> additive_;
};

/// RoPE's position of a token (clause R2), which the step may give.
class Positions {
 public:
  Positions(const attest_problem& p, const Extents& e, const attest_step& step)
      : first_query_(e.past), first_key_(e.past) {
    for (std::int64_t b = 0; b < p.batch; ++b) first_query_[b] = e.total(b) - e.queries[b];
    if (step.positions == nullptr) return;
    if (p.packed != 0) {
      const View<const std::int32_t, 1> view(*step.positions);
      given_ = {view.data(), {1, view.shape(0)}, {0, view.stride(0)}};
      first_given_ = e.query_start;
    } else {
      given_ = View<const std::int32_t, 2>(*step.positions);
    }
  }
  [[nodiscard]] std::int64_t query(std::int64_t b, std::int64_t i) const { return position(first_query_, b, i); }
  [[nodiscard]] std::int64_t key(std::int64_t b, std::int64_t n) const { return position(first_key_, b, n); }

 private:
  [[nodiscard]] std::int64_t position(const Counts& first, std::int64_t b, std::int64_t t) const {
    if (given_.data() == nullptr) return first[b] + t;
    return first_given_.batch() == 0 ? given_(b, t) : given_(0, first_given_[b] + t);
  }

  Counts first_query_, first_key_;
  View<const std::int32_t, 2> given_;
  Counts first_given_{0, 0};  // packed: of a sequence's first query
};

/// Where a token lies in the cache: indices of the first two axes of its tensors.
struct Slot {
  std::int64_t outer, inner;
};

/// The slots of a step's cache, of any kind (clauses C6 to C8).
class Slots {
 public:
  Slots(const attest_problem& p, const attest_cache& cache)
      : kind_(p.cache), divisor_(p.cache == ATTEST_CACHE_PAGED ? p.page_size : p.capacity) {
    if (kind_ == ATTEST_CACHE_PAGED) table_ = View<const std::int32_t, 2>(*cache.block_table);
  }
  /// Of the token at position t of sequence b.
  Slot operator()(std::int64_t b, std::int64_t t) const {
    if (kind_ == ATTEST_CACHE_PAGED) return {table_(b, t / divisor_), t % divisor_};
    return {b, t % divisor_};
  }

 private:
  int kind_;
  std::int64_t divisor_;  // of a contiguous cache t is smaller than its capacity
  View<const std::int32_t, 2> table_;
};

/// The scales of a quantised cache, whatever they span: element (slot.outer, slot.inner, KV head).
inline View<float, 3> scale_view(const attest_problem& p, const DLTensor& scale) {
  if (p.kv_scale == ATTEST_KV_SCALE_PER_TOKEN) return View<float, 3>(scale);
  const View<float, 1> each(scale);
  return {each.data(), {1, 1, each.shape(0)}, {0, 0, each.stride(0)}};
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

/// What `Class`'s device can do, by its own `std::int64_t last_cache()`, `void copy(void* to, const void* from,
/// std::size_t bytes)` and `void multiply(DLDataType, std::int64_t n, const void* a, const void* b, void* c)`.
template <class Class>
const attest_ceilings* ceilings_of() noexcept {
  static const attest_ceilings table{
      sizeof table, 0,
      [](attest_context* context) -> std::int64_t {
        std::int64_t bytes = 0;
        attest_message unread{};
        (void)guarded(&unread, [&] { bytes = reinterpret_cast<Class*>(context)->last_cache(); });
        return bytes;
      },
      [](attest_context* context, void* to, const void* from, std::size_t bytes, attest_message* message) {
        return guarded(message, [&] { reinterpret_cast<Class*>(context)->copy(to, from, bytes); });
      },
      [](attest_context* context, DLDataType dtype, std::int64_t n, const void* a, const void* b, void* c,
         attest_message* message) {
        return guarded(message, [&] { reinterpret_cast<Class*>(context)->multiply(dtype, n, a, b, c); });
      }};
  return &table;
}

}  // namespace attest::abi

#if defined(__GNUC__)
#pragma GCC visibility pop
#endif

/// Exports what `Class`'s device can do (attest/ceilings.h); once a library, beside ATTEST_REGISTER_BACKEND.
#define ATTEST_REGISTER_CEILINGS(Class)                            \
  ATTEST_EXPORT const attest_ceilings* attest_get_ceilings(void) { \
    return ::attest::abi::ceilings_of<Class>();                    \
  }

/// Exports `Class` as this library's backend; once a library, outside of any function.
#define ATTEST_REGISTER_BACKEND(Class)                           \
  ATTEST_EXPORT const attest_backend* attest_get_backend(void) { \
    return ::attest::abi::table_of<Class>();                     \
  }

#endif  // ATTEST_BACKEND_HPP
