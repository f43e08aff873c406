// SPDX-License-Identifier: Apache-2.0
// The memory of a shape: its tensors in rotating copies, and the step over each. All host backends work in the same
// memory; one with memory of its own has a twin of it (twin.h).
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <vector>

#include "attest/backend.h"
#include "bench/shape.h"
#include "bench/team.h"

namespace attest::bench {

/// Pages from the system, huge ones if it has them to give; not touched yet.
class Memory {
 public:
  explicit Memory(size_t bytes);
  ~Memory();
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  [[nodiscard]] std::byte* data() const { return data_; }
  [[nodiscard]] size_t size() const { return size_; }

 private:
  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

/// A compact tensor and its memory.
class HostTensor {
 public:
  /// `order`: its axes, the outermost in memory first; empty: as they are numbered.
  HostTensor(DType dtype, std::vector<int64_t> shape, const std::vector<size_t>& order = {});
  [[nodiscard]] DLTensor* get() { return &tensor_; }
  [[nodiscard]] DType dtype() const { return dtype_; }
  [[nodiscard]] std::span<std::byte> bytes() const { return {memory_.data(), used_}; }
  [[nodiscard]] int64_t elements() const;
  /// Elements [begin, begin + count) as numbers; codes are not scaled.
  [[nodiscard]] std::vector<double> numbers(int64_t begin, int64_t count) const;
  template <typename T>
  [[nodiscard]] T* as() const {
    return reinterpret_cast<T*>(memory_.data());
  }

 private:
  DType dtype_;
  std::vector<int64_t> shape_, strides_;
  size_t used_;
  Memory memory_;
  DLTensor tensor_{};
};

/// Normally distributed numbers times `size`, in a dtype: what all memory is filled with, over and over.
const std::vector<uint8_t>& noise(DType dtype, float size);

class Workload {
 public:
  /// Every copy of the cache holds the same. Throws std::bad_alloc.
  Workload(const Shape& shape, Team& team, size_t copies);
  Workload(const Workload&) = delete;
  Workload& operator=(const Workload&) = delete;

  [[nodiscard]] const Shape& shape() const { return shape_; }
  [[nodiscard]] const attest_problem& problem() const { return problem_; }
  [[nodiscard]] size_t copies() const { return copies_.size(); }
  [[nodiscard]] const attest_step& step(size_t copy) const { return copies_[copy]->step; }
  /// Takes back what a step has appended: by the lengths alone.
  void rewind(size_t copy);
  /// Fills the output with NaN, and a copy's slots that its step appends to with what no step writes there: so a step
  /// that leaves something out is seen.
  void poison(size_t copy);
  /// Some bytes of a tensor's memory.
  struct Run {
    size_t begin, size;
  };
  /// The slots that a step appends to, in every copy's keys or in its values: in order, and none touches the next.
  [[nodiscard]] std::vector<Run> appended(int64_t head_dim) const;
  /// Gives the steps other queries, keys and values: so a backend that repeats an old answer is seen.
  void renew(Team& team);
  /// What a step has to read, in runs: the visible part of a copy's cache and the weights.
  [[nodiscard]] const std::vector<std::span<const std::byte>>& reads(size_t copy) const { return copies_[copy]->reads; }

  // For the reference.
  /// First element of a cache row: a token of a sequence, its KV head.
  [[nodiscard]] int64_t cache_row(int64_t sequence, int64_t token, int64_t head) const;
  /// Number of a step's token on the flattened token axes of its tensors.
  [[nodiscard]] int64_t token_number(int64_t sequence, int64_t index) const;
  [[nodiscard]] const HostTensor& query() const { return *query_; }
  [[nodiscard]] const HostTensor& key() const { return *key_; }
  [[nodiscard]] const HostTensor& value() const { return *value_; }
  [[nodiscard]] const HostTensor& output() const { return *output_; }
  [[nodiscard]] const HostTensor& cache_key(size_t copy) const { return *copies_[copy]->key; }
  [[nodiscard]] const HostTensor& cache_value(size_t copy) const { return *copies_[copy]->value; }
  [[nodiscard]] const HostTensor& lengths(size_t copy) const { return *copies_[copy]->lengths; }
  /// q, k, v and out, in this order; empty at the core level.
  [[nodiscard]] const std::vector<std::unique_ptr<HostTensor>>& weights() const { return weights_; }
  /// Of a quantised cache, the same for all heads; else 1.
  [[nodiscard]] double kv_scale() const;

 private:
  struct Copy {
    std::unique_ptr<HostTensor> key, value, lengths;
    attest_cache cache{};
    attest_step step{};
    std::vector<std::span<const std::byte>> reads;
  };
  void fill_inputs(Team& team, uint64_t seed);
  void make_copy(Team& team);
  void note_reads(Copy& copy) const;

  Shape shape_;
  int64_t padded_ = 0;  ///< Tokens of a sequence in the padded form.
  attest_problem problem_{};
  std::vector<std::unique_ptr<HostTensor>> weights_;
  std::unique_ptr<HostTensor> query_, key_, value_, output_, query_lengths_, start_, table_, key_scale_, value_scale_;
  std::vector<std::unique_ptr<Copy>> copies_;
};

}  // namespace attest::bench
