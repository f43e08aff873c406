// SPDX-License-Identifier: Apache-2.0
#include "golden/safetensors.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "cases/json.h"

namespace attest {

static_assert(std::endian::native == std::endian::little, "safetensors data is little-endian and copied as it is");

std::string SafetensorsWriter::bytes() const {
  Json header = Json::object();
  if (!metadata_.empty()) header["__metadata__"] = metadata_;
  size_t offset = 0;
  for (const auto& [name, tensor] : tensors_) {
    header[name] = {{"dtype", info(tensor.dtype).safetensors},
                    {"shape", tensor.shape},
                    {"data_offsets", {offset, offset + tensor.data.size()}}};
    offset += tensor.data.size();
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');  // the format allows trailing spaces; data stays 8-byte aligned
  const uint64_t length = text.size();
  std::string out(sizeof length, '\0');
  std::memcpy(out.data(), &length, sizeof length);
  out += text;
  for (const auto& [name, tensor] : tensors_) out += tensor.data;
  return out;
}

SafetensorsFile::SafetensorsFile(std::string bytes, std::string place)
    : bytes_(std::move(bytes)), place_(std::move(place)) {
  uint64_t length = 0;
  if (bytes_.size() < sizeof length) throw Error::at(place_, "is no safetensors file: {} bytes", bytes_.size());
  std::memcpy(&length, bytes_.data(), sizeof length);
  if (length > bytes_.size() - sizeof length) {
    throw Error::at(place_, "is truncated: its header wants {} bytes, {} are there", length,
                    bytes_.size() - sizeof length);
  }
  data_start_ = sizeof length + length;
  const size_t available = bytes_.size() - data_start_;
  const Json header = parse_json(std::string_view(bytes_).substr(sizeof length, length), place_);
  if (!header.is_object()) throw Error::at(place_, "its header is no object");
  for (const auto& [name, json] : header.items()) {
    if (name == "__metadata__") continue;
    Fields fields(json, place_ + ": " + name);
    Entry entry;
    entry.dtype = fields.required<std::string>("dtype");
    entry.shape = fields.required<std::vector<int64_t>>("shape");
    const auto offsets = fields.required<std::vector<int64_t>>("data_offsets");
    fields.finish();
    if (offsets.size() != 2 || offsets[0] < 0 || offsets[1] < offsets[0] ||
        static_cast<uint64_t>(offsets[1]) > available) {
      throw Error::at(fields.place("data_offsets"), "do not lie within the {} bytes of data", available);
    }
    entry.begin = static_cast<size_t>(offsets[0]);
    entry.end = static_cast<size_t>(offsets[1]);
    uint64_t count = 1;
    for (const int64_t extent : entry.shape) {
      if (extent < 0 || (extent > 0 && count > available / static_cast<uint64_t>(extent))) {
        throw Error::at(fields.place("shape"), "is larger than the file");
      }
      count *= static_cast<uint64_t>(extent);
    }
    uint64_t size = 0;
    for (const DType dtype : {DType::f32, DType::f64, DType::f16, DType::bf16, DType::i32, DType::u8}) {
      if (info(dtype).safetensors == entry.dtype) size = static_cast<uint64_t>(info(dtype).size);
    }
    if (size == 0 || count * size != entry.end - entry.begin) {
      throw Error::at(fields.place(), "dtype {} and shape do not fit its {} bytes", entry.dtype,
                      entry.end - entry.begin);
    }
    tensors_[name] = std::move(entry);
  }
}

std::vector<std::string> SafetensorsFile::names() const {
  std::vector<std::string> names;
  for (const auto& [name, entry] : tensors_) names.push_back(name);
  return names;
}

const SafetensorsFile::Entry& SafetensorsFile::find(const std::string& name) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) throw Error::at(place_, "the tensor \"{}\" is missing", name);
  return found->second;
}

std::string_view SafetensorsFile::data(const std::string& name, DType dtype) const {
  const Entry& entry = find(name);
  if (entry.dtype != info(dtype).safetensors) {
    throw Error::at(place_, "the tensor \"{}\" has dtype {}, wanted {}", name, entry.dtype, info(dtype).safetensors);
  }
  return std::string_view(bytes_).substr(data_start_ + entry.begin, entry.end - entry.begin);
}

}  // namespace attest
