// SPDX-License-Identifier: Apache-2.0
#include "heads.h"

#include <algorithm>

#include "convert.h"

namespace attest::onednn {

namespace {

/// `count` elements, so many elements apart.
struct Run {
  Storage storage;
  char* data;
  std::int64_t stride;
};
void copy_run(const Run& from, const Run& to, std::int64_t count) {
  if (from.storage == to.storage) {
    copy_elements(from.storage, from.data, from.stride, to.data, to.stride, count);
  } else if (to.storage == Storage::f32) {
    decode(from.storage, from.data, from.stride, count, 1, reinterpret_cast<float*>(to.data));
  } else {
    encode(to.storage, reinterpret_cast<const float*>(from.data), count, 1, to.data, to.stride);
  }
}

}  // namespace

Heads heads_of(const abi::Tokens& tokens, const Counts& counts, std::int64_t heads, std::int64_t width) {
  Heads found{tokens.storage(), {}, tokens.token_stride(), tokens.head_stride(), tokens.channel_stride(), heads, width};
  for (std::int64_t b = 0; b < counts.batch(); ++b) {
    found.first.push_back(counts[b] == 0 ? nullptr : static_cast<char*>(tokens.address(b, 0, 0, 0)));
  }
  return found;
}

Heads heads_of_cache(const DLTensor& tensor) {
  const abi::NumberView<4> view(tensor);
  Heads found{view.storage(), {}, view.stride(1), view.stride(2), view.stride(3), view.shape(2), view.shape(3)};
  for (std::int64_t b = 0; b < view.shape(0); ++b) found.first.push_back(static_cast<char*>(view.address(b, 0, 0, 0)));
  return found;
}

Heads packed_heads(float* data, const Counts& counts, std::int64_t heads, std::int64_t width) {
  Heads packed{Storage::f32, {}, heads * width, width, 1, heads, width};
  for (std::int64_t b = 0; b < counts.batch(); ++b) {
    packed.first.push_back(counts[b] == 0 ? nullptr : reinterpret_cast<char*>(data));
    data += counts[b] * packed.token;
  }
  return packed;
}

std::int64_t sum(const Counts& counts) {
  std::int64_t total = 0;
  for (std::int64_t b = 0; b < counts.batch(); ++b) total += counts[b];
  return total;
}

std::vector<char*> rows_of(const Heads& heads, const Counts& first, const Counts& counts) {
  std::vector<char*> rows;
  rows.reserve(static_cast<std::size_t>(sum(counts)));
  for (std::int64_t b = 0; b < counts.batch(); ++b) {
    for (std::int64_t t = 0; t < counts[b]; ++t) rows.push_back(static_cast<char*>(heads.at(b, first[b] + t, 0)));
  }
  return rows;
}

void copy_rows(const Heads& from, const std::vector<char*>& from_rows, const Heads& to,
               const std::vector<char*>& to_rows) {
  const auto count = static_cast<std::int64_t>(from_rows.size());
  const bool dense = from.row_dense() && to.row_dense();
#pragma omp parallel for schedule(static) if (count * from.row() > 65536)
  for (std::int64_t i = 0; i < count; ++i) {
    Run source{from.storage, from_rows[static_cast<std::size_t>(i)], 1};
    Run target{to.storage, to_rows[static_cast<std::size_t>(i)], 1};
    if (dense) {
      copy_run(source, target, from.row());
      continue;
    }
    source.stride = from.channel, target.stride = to.channel;
    for (std::int64_t h = 0; h < from.heads; ++h) {
      copy_run(source, target, from.width);
      source.data += from.head * from.element(), target.data += to.head * to.element();
    }
  }
}

}  // namespace attest::onednn
