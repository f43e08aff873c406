// SPDX-License-Identifier: Apache-2.0
#include "runner/arena.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstring>
#include <numeric>

#include "cases/error.h"
#include "cases/storage.h"

namespace attest {
namespace {

// Far above any case, far below where sums of sizes overflow.
constexpr int64_t kMaxBytes = int64_t{1} << 40;

int64_t aligned(int64_t bytes) {
  return (bytes + kBlockAlignment - 1) / kBlockAlignment * kBlockAlignment;
}

// The product of two extents, kept away from overflow; blocks of such a size are refused anyway.
int64_t times(int64_t stride, int64_t extent) {
  const int64_t factor = std::max<int64_t>(extent, 1);
  return stride > kMaxBytes / factor ? kMaxBytes : stride * factor;
}

// The axes with more than one index, outermost in memory first.
std::vector<size_t> axes_in_memory_order(const Block& block) {
  std::vector<size_t> axes;
  for (size_t axis = 0; axis < block.shape.size(); ++axis) {
    if (block.shape[axis] != 1) axes.push_back(axis);
  }
  std::stable_sort(axes.begin(), axes.end(), [&](size_t a, size_t b) { return block.strides[a] > block.strides[b]; });
  return axes;
}

// Counts through all indices of some extents, the last one fastest, and keeps the sum of index * step.
class Odometer {
 public:
  void add_axis(int64_t extent, int64_t step) { axes_.push_back({extent, step, 0}); }
  [[nodiscard]] int64_t sum() const { return sum_; }
  /// False after the last index.
  bool next() {
    for (size_t i = axes_.size(); i-- > 0;) {
      Axis& axis = axes_[i];
      sum_ += axis.step;
      if (++axis.index < axis.extent) return true;
      sum_ -= axis.step * axis.extent;
      axis.index = 0;
    }
    return false;
  }

 private:
  struct Axis {
    int64_t extent, step, index;
  };
  std::vector<Axis> axes_;
  int64_t sum_ = 0;
};

// A block's elements as runs of equal length without gaps, in memory order.
struct Runs {
  Odometer starts;    // byte offset of a run from the first element
  int64_t bytes = 0;  // of each run
};

Runs runs_of(const Block& block) {
  const int64_t size = info(block.dtype).size;
  Runs runs{{}, size};
  std::vector<size_t> axes = axes_in_memory_order(block);
  while (!axes.empty() && block.strides[axes.back()] * size == runs.bytes) {
    runs.bytes *= block.shape[axes.back()];
    axes.pop_back();
  }
  for (const size_t axis : axes) runs.starts.add_axis(block.shape[axis], block.strides[axis] * size);
  return runs;
}

// Calls visit(memory offset from element 0 in bytes, dense offset in bytes, bytes, memory step in bytes): the elements
// of one innermost logical row, `bytes / size` of them, `step` apart. A row-major block is a single row.
template <typename Visit>
void for_each_row(const Block& block, Visit visit) {
  const int64_t size = info(block.dtype).size;
  if (block.elements() == 0) return;
  // Trailing axes that are row-major among themselves form one long row.
  size_t outer = block.shape.size();
  int64_t count = 1;
  int64_t step = 1;
  while (outer > 0) {
    const int64_t extent = block.shape[outer - 1];
    const int64_t stride = block.strides[outer - 1];
    if (extent != 1) {
      if (count == 1) {
        step = stride;
      } else if (stride != step * count) {
        break;
      }
      count *= extent;
    }
    --outer;
  }
  Odometer rows;
  for (size_t axis = 0; axis < outer; ++axis) {
    if (block.shape[axis] != 1) rows.add_axis(block.shape[axis], block.strides[axis] * size);
  }
  int64_t dense = 0;
  do {
    visit(rows.sum(), dense, count * size, step * size);
    dense += count * size;
  } while (rows.next());
}

template <typename T>
void copy_strided(std::byte* to, int64_t to_step, const std::byte* from, int64_t from_step, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    T element;
    std::memcpy(&element, from + i * from_step, sizeof(T));
    std::memcpy(to + i * to_step, &element, sizeof(T));
  }
}

void copy_row(std::byte* to, int64_t to_step, const std::byte* from, int64_t from_step, int64_t bytes, int64_t size) {
  if (to_step == size && from_step == size) {
    std::memcpy(to, from, static_cast<size_t>(bytes));
    return;
  }
  switch (size) {
    case 1:
      return copy_strided<uint8_t>(to, to_step, from, from_step, bytes / size);
    case 2:
      return copy_strided<uint16_t>(to, to_step, from, from_step, bytes / size);
    case 4:
      return copy_strided<uint32_t>(to, to_step, from, from_step, bytes / size);
    case 8:
      return copy_strided<uint64_t>(to, to_step, from, from_step, bytes / size);
    default:
      throw std::logic_error("an element type of unforeseen size");
  }
}

void fill_sentinel(std::byte* memory, int64_t bytes) {
  // Blocks start and end on kBlockAlignment, so the pattern always fits.
  auto* words = reinterpret_cast<uint16_t*>(memory);
  std::fill_n(words, bytes / 2, kSentinel);
}

// What each pattern of bits of a type of 8 or 16 stands for. Caches are read after every step, so this is looked up.
const std::vector<float>& numbers_of(DType dtype) {
  static const std::array<std::vector<float>, kDTypeCount> tables = [] {
    std::array<std::vector<float>, kDTypeCount> made;
    for (int d = 0; d < kDTypeCount; ++d) {
      const auto type = static_cast<DType>(d);
      if (info(type).size > 2) continue;
      const uint32_t count = 1U << (8 * info(type).size);
      for (uint32_t bits = 0; bits < count; ++bits) made[static_cast<size_t>(d)].push_back(decode(type, bits));
      if (is_half(type)) made[static_cast<size_t>(d)][kHalfSentinel] = std::bit_cast<float>(kUnwritten);
    }
    return made;
  }();
  return tables[static_cast<size_t>(dtype)];
}

// Logical index of the element at or before a byte of the span.
std::vector<int64_t> index_at(const Block& block, int64_t byte) {
  std::vector<int64_t> index(block.shape.size(), 0);
  int64_t element = byte / info(block.dtype).size;
  for (const size_t axis : axes_in_memory_order(block)) {
    index[axis] = std::min(element / block.strides[axis], block.shape[axis] - 1);
    element -= index[axis] * block.strides[axis];
  }
  return index;
}

}  // namespace

int64_t Block::elements() const {
  return std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<int64_t>());
}

int64_t Block::span_bytes() const {
  if (elements() == 0) return 0;
  int64_t last = 0;
  for (size_t axis = 0; axis < shape.size(); ++axis) {
    if (shape[axis] > 1) last += (shape[axis] - 1) * strides[axis];
  }
  return (last + 1) * info(dtype).size;
}

std::vector<int64_t> strides_for(const std::vector<int64_t>& shape, std::string_view letters, const Layout& layout) {
  if (letters.size() != shape.size()) throw std::logic_error("strides_for: one letter an axis");
  const std::string order = layout.order.empty() ? std::string(letters) : layout.order;
  if (!std::is_permutation(order.begin(), order.end(), letters.begin(), letters.end())) {
    throw Error::at("layout", "got order \"{}\", wanted each of \"{}\" once", order, letters);
  }
  if (layout.pad < 0) throw Error::at("layout", "got pad {}, wanted 0 or more", layout.pad);
  for (const auto& [letter, unused] : layout.pads) {
    if (unused < 0 || letters.find(letter) == std::string_view::npos) {
      throw Error::at("layout", "got {} unused of axis {}, wanted 0 or more of an axis of \"{}\"", unused, letter,
                      letters);
    }
  }
  std::vector<int64_t> strides(shape.size());
  int64_t stride = 1;
  int64_t pad = layout.pad;
  for (size_t i = order.size(); i-- > 0;) {
    const size_t axis = letters.find(order[i]);
    const auto unused = layout.pads.find(order[i]);
    strides[axis] = layout.absurd && shape[axis] == 1 ? kAbsurdStride : stride;
    stride =
        times(stride, std::max<int64_t>(shape[axis], 1) + pad + (unused != layout.pads.end() ? unused->second : 0));
    pad = 0;
  }
  return strides;
}

const Block& Arena::add(std::string name, DType dtype, std::vector<int64_t> shape, std::vector<int64_t> strides) {
  if (memory_ != nullptr) throw std::logic_error("Arena::add after commit");
  if (shape.size() != strides.size()) throw std::logic_error("Arena::add: one stride an axis");
  Block block{std::move(name), dtype, std::move(shape), std::move(strides)};
  for (const int64_t extent : block.shape) {
    if (extent < 0) throw Error::at(block.name, "got shape [{}]", fmt::join(block.shape, ", "));
  }
  const bool empty = std::find(block.shape.begin(), block.shape.end(), 0) != block.shape.end();
  int64_t span = 1;  // elements, of the axes seen so far
  const std::vector<size_t> axes = axes_in_memory_order(block);
  for (auto axis = axes.rbegin(); axis != axes.rend() && !empty; ++axis) {
    const int64_t extent = block.shape[*axis];
    const int64_t stride = block.strides[*axis];
    if (stride < span) {
      throw Error::at(block.name, "strides [{}] let elements of shape [{}] share memory",
                      fmt::join(block.strides, ", "), fmt::join(block.shape, ", "));
    }
    if (extent > kMaxBytes / stride) {
      throw Error::at(block.name, "shape [{}] is too large", fmt::join(block.shape, ", "));
    }
    span += (extent - 1) * stride;
  }
  block.begin = bytes_;
  block.offset = block.begin + kGuardBytes;
  block.size = aligned(kGuardBytes + block.span_bytes() + kGuardBytes);
  if (block.size > kMaxBytes - bytes_) throw Error::at(block.name, "the case is too large");
  bytes_ += block.size;
  return blocks_.emplace_back(std::move(block));
}

const Block& Arena::add(std::string name, DType dtype, std::vector<int64_t> shape) {
  std::vector<int64_t> strides(shape.size());
  int64_t stride = 1;
  for (size_t axis = shape.size(); axis-- > 0;) {
    strides[axis] = stride;
    stride = times(stride, shape[axis]);
  }
  return add(std::move(name), dtype, std::move(shape), std::move(strides));
}

void Arena::commit() {
  if (memory_ != nullptr) throw std::logic_error("Arena::commit twice");
  if (bytes_ == 0) throw std::logic_error("Arena::commit without a block");
  const auto fail = [&](const char* call) {
    throw Error::at("shared memory", "{} of {} bytes: {}", call, bytes_, std::strerror(errno));
  };
  UniqueFd fd(::memfd_create("attest", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd) fail("memfd_create");
  if (::ftruncate(fd.get(), bytes_) != 0) fail("ftruncate");
  // A worker that shrank the file would kill the parent with SIGBUS.
  if (::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) fail("sealing");
  void* memory = ::mmap(nullptr, static_cast<size_t>(bytes_), PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  if (memory == MAP_FAILED) fail("mmap");
  memory_ = static_cast<std::byte*>(memory);
  fd_ = std::move(fd);
  fill_sentinel(memory_, bytes_);
}

Arena::Arena(Arena&& other) noexcept {
  *this = std::move(other);
}

Arena& Arena::operator=(Arena&& other) noexcept {
  std::swap(blocks_, other.blocks_);
  std::swap(bytes_, other.bytes_);
  std::swap(fd_, other.fd_);
  std::swap(memory_, other.memory_);
  return *this;
}

Arena::~Arena() {
  if (memory_ != nullptr) ::munmap(memory_, static_cast<size_t>(bytes_));
}

void Arena::check(const Block& block, size_t element_bytes, size_t count) {
  if (element_bytes != static_cast<size_t>(info(block.dtype).size) || count != static_cast<size_t>(block.elements())) {
    throw std::logic_error(fmt::format("block {}: {} values of {} bytes for shape [{}] of {}", block.name, count,
                                       element_bytes, fmt::join(block.shape, ", "), info(block.dtype).name));
  }
}

void Arena::reset(const Block& block) {
  fill_sentinel(memory_ + block.begin, block.size);
}

void Arena::put(const Block& block, const std::vector<float>& values) {
  const std::vector<uint8_t> bytes = encode_all(block.dtype, values);
  check(block, static_cast<size_t>(info(block.dtype).size), values.size());
  scatter_bytes(block, std::as_bytes(std::span(bytes)));
}

void Arena::put_everywhere(const Block& block, float value) {
  const uint32_t bits = encode(block.dtype, value);
  switch (info(block.dtype).size) {
    case 1:
      return fill(block, static_cast<uint8_t>(bits));
    case 2:
      return fill(block, static_cast<uint16_t>(bits));
    default:
      return fill(block, bits);
  }
}

void Arena::blank(const Block& block) {
  if (is_half(block.dtype)) return fill(block, kHalfSentinel);
  fill(block, kUnwritten);
}

std::vector<float> Arena::values(const Block& block) const {
  const int64_t size = info(block.dtype).size;
  std::vector<float> values;
  if (size == 4) return gather<float>(block);
  const std::vector<float>& table = numbers_of(block.dtype);
  values.reserve(static_cast<size_t>(block.elements()));
  if (size == 1) {
    for (const uint8_t bits : gather<uint8_t>(block)) values.push_back(table[bits]);
  } else {
    for (const uint16_t bits : gather<uint16_t>(block)) values.push_back(table[bits]);
  }
  return values;
}

std::vector<std::byte> Arena::stored(const Block& block) const {
  std::vector<std::byte> elements(static_cast<size_t>(block.elements() * info(block.dtype).size));
  gather_bytes(block, elements);
  return elements;
}

void Arena::store(const Block& block, const std::vector<std::byte>& elements) {
  check(block, static_cast<size_t>(info(block.dtype).size),
        elements.size() / static_cast<size_t>(info(block.dtype).size));
  scatter_bytes(block, elements);
}

void Arena::scatter_bytes(const Block& block, std::span<const std::byte> values) {
  const int64_t size = info(block.dtype).size;
  std::byte* memory = memory_ + block.offset;
  for_each_row(block, [&](int64_t offset, int64_t dense, int64_t bytes, int64_t step) {
    copy_row(memory + offset, step, values.data() + dense, size, bytes, size);
  });
}

void Arena::gather_bytes(const Block& block, std::span<std::byte> values) const {
  const int64_t size = info(block.dtype).size;
  const std::byte* memory = memory_ + block.offset;
  for_each_row(block, [&](int64_t offset, int64_t dense, int64_t bytes, int64_t step) {
    copy_row(values.data() + dense, size, memory + offset, step, bytes, size);
  });
}

std::vector<std::byte> Arena::snapshot(const Block& block) const {
  return {memory_ + block.begin, memory_ + block.begin + block.size};
}

void Arena::restore(const Block& block, const std::vector<std::byte>& image) {
  if (image.size() != static_cast<size_t>(block.size)) throw std::logic_error("a snapshot of another block");
  std::memcpy(memory_ + block.begin, image.data(), image.size());
}

std::optional<std::string> Arena::intact(const Block& block, const std::vector<std::byte>& before,
                                         Elements elements) const {
  if (before.size() != static_cast<size_t>(block.size)) throw std::logic_error("a snapshot of another block");
  const std::byte* now = memory_ + block.begin;
  const int64_t first = block.offset - block.begin;
  const int64_t end = first + block.span_bytes();

  // The first byte of [from, to) that differs, or -1.
  const auto differs = [&](int64_t from, int64_t to) -> int64_t {
    const auto bytes = static_cast<size_t>(to - from);
    if (bytes == 0 || std::memcmp(now + from, before.data() + from, bytes) == 0) return -1;
    const auto found = std::mismatch(now + from, now + to, before.data() + from);
    // A worker that writes right now can make the two looks disagree; it is foreign all the same.
    return found.first == now + to ? from : found.first - now;
  };

  int64_t byte = -1;
  if (elements == Elements::must_stay || block.elements() == 0) {
    byte = differs(0, block.size);
  } else {
    Runs runs = runs_of(block);
    int64_t checked = 0;  // everything before it is checked or an element
    do {
      const int64_t run = first + runs.starts.sum();
      byte = differs(checked, run);
      checked = run + runs.bytes;
    } while (byte < 0 && runs.starts.next());
    if (byte < 0) byte = differs(checked, block.size);
  }
  if (byte < 0) return std::nullopt;
  if (byte < first) return fmt::format("byte {} before the start", first - byte);
  if (byte >= end) return fmt::format("byte {} past the end", byte - end + 1);

  const std::vector<int64_t> index = index_at(block, byte - first);
  int64_t element = first;
  for (size_t axis = 0; axis < index.size(); ++axis)
    element += index[axis] * block.strides[axis] * info(block.dtype).size;
  const bool gap = byte >= element + info(block.dtype).size;
  return fmt::format("{}element [{}]", gap ? "the gap after " : "", fmt::join(index, ", "));
}

}  // namespace attest
