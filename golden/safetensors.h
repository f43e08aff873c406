// SPDX-License-Identifier: Apache-2.0
// The safetensors format: u64 little-endian header length, JSON header, raw little-endian data without holes.
#pragma once

#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "cases/dtype.h"
#include "cases/error.h"

namespace attest {

/// Collects tensors and writes them in the order of their names, so equal content gives equal bytes.
class SafetensorsWriter {
 public:
  template <typename T>
  void add(const std::string& name, DType dtype, std::vector<int64_t> shape, const std::vector<T>& data) {
    tensors_[name] = {dtype, std::move(shape),
                      std::string(reinterpret_cast<const char*>(data.data()), data.size() * sizeof(T))};
  }
  void metadata(const std::string& key, const std::string& value) { metadata_[key] = value; }
  [[nodiscard]] std::string bytes() const;

 private:
  struct Tensor {
    DType dtype = DType::f32;
    std::vector<int64_t> shape;
    std::string data;
  };
  std::map<std::string, Tensor> tensors_;
  std::map<std::string, std::string> metadata_;
};

/// A parsed file; every length and offset has been checked against the bytes that are there.
class SafetensorsFile {
 public:
  /// `place` names the file in errors.
  SafetensorsFile(std::string bytes, std::string place);

  [[nodiscard]] bool has(const std::string& name) const { return tensors_.contains(name); }
  [[nodiscard]] const std::vector<int64_t>& shape(const std::string& name) const { return find(name).shape; }
  [[nodiscard]] std::vector<std::string> names() const;

  /// The elements; throws if the tensor is missing or has another dtype.
  template <typename T>
  [[nodiscard]] std::vector<T> read(const std::string& name, DType dtype) const {
    const std::string_view raw = data(name, dtype);
    std::vector<T> values(raw.size() / sizeof(T));
    raw.copy(reinterpret_cast<char*>(values.data()), values.size() * sizeof(T));
    return values;
  }

 private:
  struct Entry {
    std::string dtype;
    std::vector<int64_t> shape;
    size_t begin = 0, end = 0;  ///< Within the data section.
  };
  [[nodiscard]] const Entry& find(const std::string& name) const;
  [[nodiscard]] std::string_view data(const std::string& name, DType dtype) const;

  std::string bytes_, place_;
  size_t data_start_ = 0;
  std::map<std::string, Entry> tensors_;
};

}  // namespace attest
