// SPDX-License-Identifier: Apache-2.0
#include "golden/safetensors.h"

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <cstring>

#include "cases/json.h"
#include "golden/golden.h"

using namespace attest;
using Catch::Matchers::ContainsSubstring;

namespace {

std::string example() {
  SafetensorsWriter writer;
  writer.metadata("case", "a/b");
  writer.add("x", DType::f64, {2, 3}, std::vector<double>{1, 2, 3, 4, 5, 6});
  writer.add("n", DType::i32, {2}, std::vector<int32_t>{7, -8});
  writer.add("empty", DType::f32, {0, 4}, std::vector<float>{});
  return writer.bytes();
}

std::string with_header(const std::string& header, const std::string& data) {
  const uint64_t length = header.size();
  std::string bytes(8, '\0');
  std::memcpy(bytes.data(), &length, 8);
  return bytes + header + data;
}

}  // namespace

TEST_CASE("tensors come back as they went in") {
  const SafetensorsFile file(example(), "f");
  CHECK(file.names() == std::vector<std::string>{"empty", "n", "x"});
  CHECK(file.shape("x") == std::vector<int64_t>{2, 3});
  CHECK(file.read<double>("x", DType::f64) == std::vector<double>{1, 2, 3, 4, 5, 6});
  CHECK(file.read<int32_t>("n", DType::i32) == std::vector<int32_t>{7, -8});
  CHECK(file.read<float>("empty", DType::f32).empty());
  CHECK_THROWS_WITH((file.read<float>("x", DType::f32)), ContainsSubstring("has dtype F64, wanted F32"));
  CHECK_THROWS_WITH((file.read<float>("y", DType::f32)), ContainsSubstring("\"y\" is missing"));
}

TEST_CASE("the same tensors give the same bytes, data aligned to 8") {
  CHECK(example() == example());
  uint64_t length = 0;
  std::memcpy(&length, example().data(), 8);
  CHECK(length % 8 == 0);
}

TEST_CASE("a file cut anywhere is refused, never read past its end") {
  const std::string whole = example();
  for (size_t size = 0; size < whole.size(); ++size) {
    INFO(size);
    CHECK_THROWS_AS(SafetensorsFile(whole.substr(0, size), "f"), Error);
  }
}

TEST_CASE("lying headers are refused") {
  const auto refused = [](const std::string& header, const std::string& why) {
    CHECK_THROWS_WITH(SafetensorsFile(with_header(header, std::string(8, 'x')), "f"), ContainsSubstring(why));
  };
  refused(R"({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 16]}})", "do not lie within the 8 bytes");
  refused(R"({"x": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}})", "do not lie within");
  refused(R"({"x": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}})", "do not fit its 8 bytes");
  refused(R"({"x": {"dtype": "F99", "shape": [2], "data_offsets": [0, 8]}})", "dtype F99");
  refused(R"({"x": {"dtype": "F32", "shape": [4611686018427387904, 8], "data_offsets": [0, 8]}})",
          "larger than the file");
  refused(R"({"x": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}})", "larger than the file");
  refused(R"({"x": {"dtype": "F32", "data_offsets": [0, 8]}})", "\"shape\" is missing");
  refused(R"([1])", "no object");
  refused(R"({"x")", "parse error");
}

TEST_CASE("a golden whose marks are none is refused") {
  const Case c = case_from_json(parse_json(R"({"id": "one", "about": "", "clauses": ["A1"], "kills": [],
                                              "problem": {"head_dim": 1}, "inputs": {"recipe": "gaussian"},
                                              "steps": [{"attend": 1}]})",
                                           "test"),
                                "family", "test");
  const auto decode = [&](uint8_t mark, std::vector<int64_t> shape) {
    SafetensorsWriter writer;
    writer.add("step0.rows", DType::i32, {1, 2}, std::vector<int32_t>{0, 0});
    writer.add("step0.output", DType::f64, {1, 1, 1}, std::vector<double>{0.5});
    writer.add("step0.output.allowed", DType::f32, {1, 1, 1}, std::vector<float>{0});
    writer.add("step0.output.mark", DType::u8, std::move(shape), std::vector<uint8_t>{mark});
    return decode_golden(SafetensorsFile(writer.bytes(), "f"), "f", c);
  };
  CHECK(decode(2, {1, 1, 1}).steps[0].output.mark == std::vector<Mark>{Mark::zero});
  CHECK_THROWS_WITH(decode(3, {1, 1, 1}), ContainsSubstring("has the mark 3, which there is not"));
  CHECK_THROWS_WITH(decode(2, {1}), ContainsSubstring("has not the shape that its case asks for"));
}
