// SPDX-License-Identifier: Apache-2.0
#include "runner/arena.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <bit>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/matchers/catch_matchers_exception.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "cases/error.h"

namespace attest {
namespace {

using Catch::Matchers::ContainsSubstring;
using Catch::Matchers::MessageMatches;

std::vector<float> counted(int64_t count) {
  std::vector<float> values(static_cast<size_t>(count));
  std::iota(values.begin(), values.end(), 1.0F);
  return values;
}

// Another mapping of the arena's memory, as a worker has it.
class OtherSide {
 public:
  explicit OtherSide(const Arena& arena) : bytes_(static_cast<size_t>(arena.bytes())) {
    void* memory = ::mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, arena.fd(), 0);
    REQUIRE(memory != MAP_FAILED);
    memory_ = static_cast<unsigned char*>(memory);
  }
  OtherSide(const OtherSide&) = delete;
  OtherSide& operator=(const OtherSide&) = delete;
  ~OtherSide() { ::munmap(memory_, bytes_); }
  unsigned char& operator[](int64_t byte) { return memory_[byte]; }
  float& element(const Block& block, int64_t index) {
    return *reinterpret_cast<float*>(memory_ + block.offset + index * 4);
  }

 private:
  size_t bytes_;
  unsigned char* memory_ = nullptr;
};

TEST_CASE("strides follow the memory order and the pad") {
  const std::vector<int64_t> shape{2, 5, 4, 16};
  CHECK(strides_for(shape, "bshd", {}) == std::vector<int64_t>{320, 64, 16, 1});
  CHECK(strides_for(shape, "bshd", {"bshd", 0}) == std::vector<int64_t>{320, 64, 16, 1});
  CHECK(strides_for(shape, "bshd", {"bhsd", 0}) == std::vector<int64_t>{320, 16, 80, 1});
  CHECK(strides_for(shape, "bshd", {"bhsd", 3}) == std::vector<int64_t>{4 * 5 * 19, 19, 5 * 19, 1});
  CHECK(strides_for(shape, "bshd", {"dhsb", 0}) == std::vector<int64_t>{1, 2, 10, 40});
  CHECK(strides_for({3, 0, 2}, "bsd", {}) == std::vector<int64_t>{2, 2, 1});
  CHECK_THROWS_MATCHES(strides_for(shape, "bshd", {"bsh", 0}), Error,
                       MessageMatches(ContainsSubstring("got order \"bsh\", wanted each of \"bshd\" once")));
  CHECK_THROWS_AS(strides_for(shape, "bshd", {"bshh", 0}), Error);
  CHECK_THROWS_AS(strides_for(shape, "bshd", {"bshx", 0}), Error);
  CHECK_THROWS_AS(strides_for(shape, "bshd", {"", -1}), Error);
}

TEST_CASE("unused extents make a view into a larger tensor") {
  // K of a buffer [B, S, 3 + 1 + 1 heads, D] of Q with 3 heads, K and V with one each.
  CHECK(strides_for({2, 5, 1, 16}, "bshd", {"", 0, {{'h', 4}}}) == std::vector<int64_t>{5 * 5 * 16, 5 * 16, 16, 1});
  // Heads first, with room for a longer sequence.
  CHECK(strides_for({2, 5, 4, 16}, "bshd", {"bhsd", 2, {{'s', 3}}}) == std::vector<int64_t>{4 * 8 * 18, 18, 8 * 18, 1});
  CHECK(strides_for({2, 1, 1, 16}, "bshd", {"", 0, {}, true}) ==
        std::vector<int64_t>{16, kAbsurdStride, kAbsurdStride, 1});
  CHECK_THROWS_AS(strides_for({2, 5}, "sd", {"", 0, {{'h', 1}}}), Error);
  CHECK_THROWS_AS(strides_for({2, 5}, "sd", {"", 0, {{'s', -1}}}), Error);

  Arena arena;
  const Block& block = arena.add("t", DType::f32, {2, 3, 2}, strides_for({2, 3, 2}, "shd", {"", 0, {{'h', 2}}}));
  arena.commit();
  arena.put_everywhere(block, 1);
  OtherSide worker(arena);
  for (const int64_t gap : {6, 7, 9}) {  // between the two tokens; an element stands at 10
    const auto before = arena.snapshot(block);
    worker.element(block, gap) = 5;
    CHECK(arena.intact(block, before, Elements::may_change) == "the gap after element [0, 2, 1]");
    arena.restore(block, before);
  }
  const auto before = arena.snapshot(block);
  worker.element(block, 10) = 5;
  CHECK_FALSE(arena.intact(block, before, Elements::may_change));
  worker.element(block, 16) = 5;  // the last token's unused heads lie behind the end
  CHECK(arena.intact(block, before, Elements::may_change) == "byte 1 past the end");
}

TEST_CASE("numbers are stored in every dtype, and what was not written shows") {
  const auto dtype =
      GENERATE(DType::f32, DType::f16, DType::bf16, DType::i8, DType::u8, DType::f8_e4m3, DType::f8_e5m2);
  CAPTURE(info(dtype).name);
  Arena arena;
  const Block& block = arena.add("t", dtype, {2, 3}, {1, 4});
  const Block& other = arena.add("o", dtype, {4});
  arena.commit();
  const std::vector<float> numbers{0, 1, 2, 3, 4, 5};
  arena.put(block, numbers);
  CHECK(arena.values(block) == numbers);
  const auto stored = arena.stored(block);
  CHECK(stored.size() == 6 * static_cast<size_t>(info(dtype).size));
  arena.put_everywhere(block, 7);
  CHECK(arena.values(block) == std::vector<float>(6, 7));
  arena.store(block, stored);
  CHECK(arena.values(block) == numbers);
  CHECK_THROWS_AS(arena.put(block, {1}), std::logic_error);
  if (info(dtype).size == 1) return;  // never an output
  arena.blank(other);
  for (const float value : arena.values(other)) CHECK(std::bit_cast<uint32_t>(value) == kUnwritten);
  // A device's NaN of 16 bits is one that was written.
  arena.put_everywhere(other, std::numeric_limits<float>::quiet_NaN());
  if (is_half(dtype)) arena.fill(other, kSentinel);
  for (const float value : arena.values(other)) {
    CHECK(std::isnan(value));
    CHECK(std::bit_cast<uint32_t>(value) != kUnwritten);
  }
}

TEST_CASE("blocks are aligned, guarded and without holes") {
  Arena arena;
  arena.add("one", DType::f32, {3, 7});
  arena.add("two", DType::i32, {1});
  arena.add("empty", DType::f32, {2, 0, 4});
  arena.add("scalar", DType::f64, {});
  arena.add("half", DType::f16, {5}, {3});
  arena.commit();
  int64_t end = 0;
  for (const Block& block : arena.blocks()) {
    CAPTURE(block.name);
    CHECK(block.begin == end);
    CHECK(block.begin % kBlockAlignment == 0);
    CHECK(block.offset % kBlockAlignment == 0);
    CHECK(block.offset - block.begin >= kGuardBytes);
    CHECK(block.begin + block.size - (block.offset + block.span_bytes()) >= kGuardBytes);
    end = block.begin + block.size;
  }
  CHECK(end == arena.bytes());
  struct stat file {};
  REQUIRE(::fstat(arena.fd(), &file) == 0);
  CHECK(file.st_size == arena.bytes());
}

TEST_CASE("nobody can change the size of the memory") {
  Arena arena;
  arena.add("one", DType::f32, {1000});
  arena.commit();
  CHECK(::ftruncate(arena.fd(), 0) != 0);
  CHECK(::ftruncate(arena.fd(), arena.bytes() + 4096) != 0);
  CHECK(::fcntl(arena.fd(), F_ADD_SEALS, F_SEAL_WRITE) != 0);
}

TEST_CASE("what is no element is NaN in every floating format") {
  Arena arena;
  const Block& single = arena.add("f32", DType::f32, {4});
  const Block& doubles = arena.add("f64", DType::f64, {4});
  const Block& halves = arena.add("f16", DType::f16, {4});
  arena.commit();
  for (const float value : arena.gather<float>(single)) CHECK(std::isnan(value));
  for (const double value : arena.gather<double>(doubles)) CHECK(std::isnan(value));
  for (const uint16_t value : arena.gather<uint16_t>(halves)) {
    CHECK((value & 0x7c00) == 0x7c00);  // f16: exponent of all ones
    CHECK((value & 0x03ff) != 0);
    CHECK((value & 0x7f80) == 0x7f80);  // bf16
    CHECK((value & 0x007f) != 0);
  }
}

TEST_CASE("scatter and gather are inverse in every memory order") {
  const auto order = GENERATE(as<std::string>{}, "bshd", "bhsd", "sbhd", "dhsb", "hdbs", "bsdh");
  const auto pad = GENERATE(0, 1, 5);
  const std::vector<int64_t> shape{2, 5, 3, 4};
  CAPTURE(order, pad);
  Arena arena;
  const Block& block = arena.add("t", DType::f32, shape, strides_for(shape, "bshd", {order, pad}));
  arena.commit();
  const auto untouched = arena.snapshot(block);
  const std::vector<float> values = counted(block.elements());
  arena.scatter(block, values);
  CHECK(arena.gather<float>(block) == values);
  CHECK_FALSE(arena.intact(block, untouched, Elements::may_change));
  CHECK(arena.intact(block, untouched, Elements::must_stay) == "element [0, 0, 0, 0]");

  OtherSide other(arena);
  float expected = 0;
  for (int64_t b = 0; b < 2; ++b) {
    for (int64_t s = 0; s < 5; ++s) {
      for (int64_t h = 0; h < 3; ++h) {
        for (int64_t d = 0; d < 4; ++d) {
          const int64_t element =
              b * block.strides[0] + s * block.strides[1] + h * block.strides[2] + d * block.strides[3];
          CHECK(other.element(block, element) == ++expected);
        }
      }
    }
  }
  arena.reset(block);
  CHECK(arena.snapshot(block) == untouched);
}

TEST_CASE("every byte of a block that is no element is guarded") {
  const auto order = GENERATE(as<std::string>{}, "bshd", "bhsd", "dhsb");
  const auto pad = GENERATE(0, 3);
  const std::vector<int64_t> shape{2, 3, 1, 4};
  CAPTURE(order, pad);
  Arena arena;
  arena.add("before", DType::f32, {1});
  const Block& block = arena.add("t", DType::f32, shape, strides_for(shape, "bshd", {order, pad}));
  arena.add("after", DType::f32, {1});
  arena.commit();
  arena.scatter(block, counted(block.elements()));
  const auto before = arena.snapshot(block);
  const std::vector<float> values = arena.gather<float>(block);
  OtherSide other(arena);
  int64_t elements = 0;
  for (int64_t byte = block.begin; byte < block.begin + block.size; ++byte) {
    other[byte] ^= 0x40U;
    const bool is_element = arena.gather<float>(block) != values;
    elements += is_element ? 1 : 0;
    const auto foreign = arena.intact(block, before, Elements::may_change);
    REQUIRE(foreign.has_value() == !is_element);
    REQUIRE(arena.intact(block, before, Elements::must_stay).has_value());
    if (byte < block.offset) REQUIRE(foreign == "byte " + std::to_string(block.offset - byte) + " before the start");
    const int64_t end = block.offset + block.span_bytes();
    if (byte >= end) REQUIRE(foreign == "byte " + std::to_string(byte - end + 1) + " past the end");
    other[byte] ^= 0x40U;
  }
  CHECK(elements == block.elements() * 4);
  CHECK_FALSE(arena.intact(block, before, Elements::must_stay));
}

TEST_CASE("a foreign byte in a gap is named by its neighbour") {
  Arena arena;
  const Block& block = arena.add("t", DType::f32, {2, 3}, {5, 1});
  arena.commit();
  const auto before = arena.snapshot(block);
  OtherSide other(arena);
  other.element(block, 4) = 1;
  CHECK(arena.intact(block, before, Elements::may_change) == "the gap after element [0, 2]");
  other.element(block, 1) = 1;
  CHECK(arena.intact(block, before, Elements::must_stay) == "element [0, 1]");
  arena.restore(block, before);
  CHECK_FALSE(arena.intact(block, before, Elements::must_stay));
}

TEST_CASE("axes of one element may have any stride, and no elements are no trouble") {
  Arena arena;
  const Block& odd = arena.add("odd", DType::f32, {1, 3, 1}, {INT64_MAX, 1, -7});
  const Block& empty = arena.add("empty", DType::f32, {0, 4});
  arena.commit();
  arena.scatter(odd, counted(3));
  CHECK(arena.gather<float>(odd) == counted(3));
  CHECK_FALSE(arena.intact(odd, arena.snapshot(odd), Elements::may_change));
  arena.scatter(empty, std::vector<float>{});
  CHECK(arena.gather<float>(empty).empty());
  const auto before = arena.snapshot(empty);
  OtherSide other(arena);
  other[empty.offset] = 1;
  CHECK(arena.intact(empty, before, Elements::may_change) == "byte 1 past the end");
}

TEST_CASE("impossible blocks are refused with their name") {
  Arena arena;
  CHECK_THROWS_MATCHES(arena.add("t", DType::f32, {2, 3}, {2, 1}), Error,
                       MessageMatches(ContainsSubstring("t: strides [2, 1]")));
  CHECK_THROWS_AS(arena.add("t", DType::f32, {2}, {0}), Error);
  CHECK_THROWS_AS(arena.add("t", DType::f32, {2}, {-1}), Error);
  CHECK_THROWS_AS(arena.add("t", DType::f32, {-1}), Error);
  CHECK_THROWS_MATCHES(arena.add("t", DType::f32, {int64_t{1} << 24, int64_t{1} << 24, int64_t{1} << 24}), Error,
                       MessageMatches(ContainsSubstring("too large")));
  CHECK(arena.blocks().empty());
}

TEST_CASE("an arena can be moved") {
  Arena arena;
  const Block& block = arena.add("t", DType::i32, {3});
  arena.commit();
  arena.scatter(block, std::vector<int32_t>{1, 2, 3});
  Arena moved = std::move(arena);
  CHECK(moved.gather<int32_t>(block) == std::vector<int32_t>{1, 2, 3});
  moved.fill<int32_t>(block, 9);
  CHECK(moved.gather<int32_t>(block) == std::vector<int32_t>{9, 9, 9});
}

}  // namespace
}  // namespace attest
