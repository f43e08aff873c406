// SPDX-License-Identifier: Apache-2.0
// The memory that a case shares with a worker: one memfd with every tensor of the case in it, each between guards.
//
//   Arena arena;
//   const Block& query = arena.add("query", DType::f32, {2, 5, 4, 16}, strides_for({2, 5, 4, 16}, "bshd", layout));
//   const Block& output = arena.add(...);
//   arena.commit();                                     // makes the memfd; every byte holds the sentinel
//   arena.put(query, values);
//   const auto before = arena.snapshot(output);
//   ...                                                 // a worker writes into arena.fd()
//   if (auto foreign = arena.intact(output, before, Elements::may_change)) ...   // "byte 12 past the end"
//   const std::vector<float> result = arena.values(output);
//
// A block is [guard | elements and the gaps between them | guard]. Everything that is no element holds the sentinel, a
// NaN in every floating format, so a backend that reads there computes NaN, and one that writes there is noticed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "cases/case.h"
#include "cases/dtype.h"
#include "runner/unique_fd.h"

namespace attest {

/// 16 bits that, repeated, are a NaN in f64, f32, f16, bf16 and both fp8 formats, and a large integer. No instruction
/// makes this NaN in f32, so an output that still holds it was not written.
inline constexpr uint16_t kSentinel = 0x7fff;

/// The same for outputs of 16 bits, a NaN in f16 and bf16: 0x7fff is the NaN that GPUs make there.
inline constexpr uint16_t kHalfSentinel = 0x7fa5;

/// The bits of the value that an element has which was not written: Arena::blank before, Arena::values after.
inline constexpr uint32_t kUnwritten = kSentinel * 0x10001U;

/// The stride that axes of extent 1 may have.
inline constexpr int64_t kAbsurdStride = 1'000'003;

/// Bytes of sentinel before and after a block's elements, at least.
inline constexpr int64_t kGuardBytes = 1024;

/// Alignment in bytes of blocks and of their first elements; what DLPack promises to consumers.
inline constexpr int64_t kBlockAlignment = 256;

/// One tensor in the arena. Strides are in elements, all else in bytes from the start of the memfd.
struct Block {
  std::string name;
  DType dtype = DType::f32;
  std::vector<int64_t> shape;
  std::vector<int64_t> strides;
  int64_t offset = 0;  ///< Of the element with index 0.
  int64_t begin = 0;   ///< Of the whole block, guards included ...
  int64_t size = 0;    ///< ... and its bytes. Blocks lie one after the other without holes.

  /// Product of the shape.
  [[nodiscard]] int64_t elements() const;
  /// Bytes from the first element to the end of the last one, gaps included.
  [[nodiscard]] int64_t span_bytes() const;
};

/// Strides, in elements, of a tensor with this logical shape. `letters` names its axes in logical order ("bshd");
/// `layout.order` has the same letters in memory order, outermost first, or is empty for the logical order. Throws
/// Error on an order that is no permutation of the letters, and on a negative unused extent or one of a letter that is
/// no axis.
std::vector<int64_t> strides_for(const std::vector<int64_t>& shape, std::string_view letters, const Layout& layout);

/// What a backend was allowed to do to a block.
enum class Elements : int { must_stay, may_change };

class Arena {
 public:
  /// Declares a block; the reference stays valid as long as the arena. Throws Error on a negative extent, and when the
  /// strides let two elements share memory. Strides of axes with extent 1 may be anything.
  const Block& add(std::string name, DType dtype, std::vector<int64_t> shape, std::vector<int64_t> strides);
  /// Declares a block in row-major order.
  const Block& add(std::string name, DType dtype, std::vector<int64_t> shape);

  /// Makes the memfd and fills it with the sentinel; no blocks can be added afterwards. Throws Error when the system
  /// has no memory for it.
  void commit();

  Arena() = default;
  Arena(Arena&& other) noexcept;
  Arena& operator=(Arena&& other) noexcept;
  ~Arena();

  /// The memfd. It can be neither shrunk nor grown, so that no worker takes memory away under the parent.
  [[nodiscard]] int fd() const { return fd_.get(); }
  /// Its size.
  [[nodiscard]] int64_t bytes() const { return bytes_; }
  [[nodiscard]] const std::deque<Block>& blocks() const { return blocks_; }

  /// Fills a whole block with the sentinel.
  void reset(const Block& block);

  /// Writes the elements from dense row-major numbers, each rounded to the block's dtype (cases/storage.h): one that
  /// holds numbers of f32 at most, so neither f64 nor i32.
  void put(const Block& block, const std::vector<float>& values);
  /// Writes one number to every element.
  void put_everywhere(const Block& block, float value);
  /// Marks every element of an output (f32, f16, bf16) as not written.
  void blank(const Block& block);
  /// Reads the elements as dense row-major numbers. Different bits give different values; one that blank() has marked
  /// has the bits kUnwritten.
  [[nodiscard]] std::vector<float> values(const Block& block) const;

  /// The elements as they are stored, dense and row-major.
  [[nodiscard]] std::vector<std::byte> stored(const Block& block) const;
  void store(const Block& block, const std::vector<std::byte>& elements);

  /// Writes the elements from dense row-major values. T has the size of the block's type (uint16_t for f16 and bf16).
  template <typename T>
  void scatter(const Block& block, const std::vector<T>& values) {
    check(block, sizeof(T), values.size());
    scatter_bytes(block, std::as_bytes(std::span(values)));
  }
  /// Writes one value to every element.
  template <typename T>
  void fill(const Block& block, T value) {
    scatter(block, std::vector<T>(static_cast<size_t>(block.elements()), value));
  }
  /// Reads the elements as dense row-major values.
  template <typename T>
  [[nodiscard]] std::vector<T> gather(const Block& block) const {
    std::vector<T> values(static_cast<size_t>(block.elements()));
    check(block, sizeof(T), values.size());
    gather_bytes(block, std::as_writable_bytes(std::span(values)));
    return values;
  }

  /// The whole block's bytes, guards and gaps included.
  [[nodiscard]] std::vector<std::byte> snapshot(const Block& block) const;
  /// Writes a snapshot back.
  void restore(const Block& block, const std::vector<std::byte>& image);

  /// Compares a block with its image of before. Nothing: only elements differ, and only if they may. Otherwise the
  /// first byte that differs, for a person: "byte 12 past the end", "byte 1 before the start", "the gap after element
  /// [0, 2, 1]", "element [0, 2, 1]".
  [[nodiscard]] std::optional<std::string> intact(const Block& block, const std::vector<std::byte>& before,
                                                  Elements elements) const;

  /// The arena in this process, for whoever plays the backend's part there.
  [[nodiscard]] std::byte* data() const { return memory_; }
  /// The first byte of a block in this process.
  [[nodiscard]] const std::byte* data(const Block& block) const { return memory_ + block.begin; }

 private:
  static void check(const Block& block, size_t element_bytes, size_t count);
  void scatter_bytes(const Block& block, std::span<const std::byte> values);
  void gather_bytes(const Block& block, std::span<std::byte> values) const;

  std::deque<Block> blocks_;  // references to its elements survive push_back and moves
  int64_t bytes_ = 0;
  UniqueFd fd_;
  std::byte* memory_ = nullptr;
};

}  // namespace attest
