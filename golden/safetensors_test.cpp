// SPDX-License-Identifier: Apache-2.0
#include "golden/safetensors.h"

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <cstring>

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
