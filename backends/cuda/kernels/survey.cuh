// SPDX-License-Identifier: Apache-2.0
// The first kernel of a step: reads the lengths, which only the device knows, checks them, and tells the other kernels
// what there is to do; it advances the lengths itself. A step that is to be refused is refused here: the others then
// find `go` to be 0 and do nothing (clause P5), and the host learns why when it synchronises. Only page numbers are not
// looked at, there may be very many: a wrong one is found where it is used (Slots).
#pragma once

#include "arguments.h"
#include "device.cuh"

namespace attest::cuda {

struct Survey {
  static constexpr int threads = 256, blocks = 1, shared_bytes = threads / 32 * 4;
  using Arguments = SurveyArguments;

  ATTEST_DEVICE static void run(const Arguments& a, std::byte* shared) {
    auto* const notes = reinterpret_cast<std::int32_t*>(shared);
    Report mine{};
    std::int32_t most = 0;
    for (std::int32_t b = thread_index(); b < a.batch && mine.fault == Fault::none; b += threads) {
      const Sequence s = read(a, b, mine);
      a.sequences[b] = s;
      most = larger(most, static_cast<std::int32_t>(s.total()));
    }
    bool good = agree(a, mine, notes);
    if (good && a.mask_extent >= 0) {
      most = largest(most, notes);
      if (thread_index() == 0) check(mine, Fault::mask_extent, 0, 0, a.mask_extent, most, most);
      good = agree(a, mine, notes);
    }
    if (thread_index() == 0) *a.go = good ? 1 : 0;
    if (!good || a.cached == 0) return;
    for (std::int32_t b = thread_index(); b < a.batch; b += threads) {
      a.lengths[b * a.lengths_stride] = static_cast<std::int32_t>(a.sequences[b].total());
    }
  }

 private:
  /// The same number in all threads: the largest that any of them has.
  ATTEST_DEVICE static std::int32_t largest(std::int32_t mine, std::int32_t* notes) {
    for (int mask = 16; mask > 0; mask /= 2) mine = larger(mine, shuffle_xor(mine, mask));
    barrier();  // The notes before have been read.
    if (thread_index() % 32 == 0) notes[thread_index() / 32] = mine;
    barrier();
    for (std::int32_t w = 0; w < threads / 32; ++w) mine = larger(mine, notes[w]);
    return mine;
  }

  /// Whether no thread has found a fault; the first one that has reports it.
  ATTEST_DEVICE static bool agree(const Arguments& a, const Report& mine, std::int32_t* notes) {
    const std::int32_t first = largest(mine.fault == Fault::none ? 0 : threads - thread_index(), notes);
    if (first == 0) return true;
    if (threads - thread_index() == first && a.report->fault == Fault::none) *a.report = mine;
    return false;
  }

  ATTEST_DEVICE static void check(Report& report, Fault fault, std::int32_t b, std::int32_t index, std::int64_t got,
                                  std::int64_t low, std::int64_t high) {
    if ((got < low || got > high) && report.fault == Fault::none) report = {fault, b, index, got, low, high};
  }

  ATTEST_DEVICE static Sequence read(const Arguments& a, std::int32_t b, Report& report) {
    Sequence s{0, 0, 0, 0, 0, 0};
    if (a.packed != 0) {
      starts(a, a.query_start, a.query_start_stride, Fault::query_start, b, a.query_axis, s.query_start, s.queries,
             report);
      starts(a, a.key_start, a.key_start_stride, Fault::key_start, b, a.key_axis, s.key_start, s.keys, report);
    } else {
      s.queries = a.query_lengths == nullptr ? a.query_axis : a.query_lengths[b * a.query_lengths_stride];
      s.keys = a.key_lengths == nullptr ? a.key_axis : a.key_lengths[b * a.key_lengths_stride];
      check(report, Fault::query_length, b, b, s.queries, 0, a.query_axis);
      check(report, Fault::key_length, b, b, s.keys, 0, a.key_axis);
    }
    check(report, Fault::longest_query, b, b, s.queries, 0, a.grid_queries);
    if (a.cached != 0) {
      s.past = a.lengths[b * a.lengths_stride];
      check(report, Fault::length, b, b, s.past, 0, a.limit);
      if (report.fault != Fault::none) return s;
      if (static_cast<std::int64_t>(s.past) + s.keys > a.limit) {
        report = {Fault::overflow, b, b, a.limit, s.past, s.keys};
      }
    }
    check(report, Fault::longest_total, b, b, s.total(), 0, a.grid_keys);
    if (report.fault != Fault::none) return s;
    if (a.positions != 0) check(report, Fault::position_count, b, b, s.keys, 0, s.queries);
    s.cached = a.cached == 0 ? 0 : a.ring != 0 ? s.past : static_cast<std::int32_t>(s.total());
    return s;
  }

  ATTEST_DEVICE static void starts(const Arguments& a, const std::int32_t* given, std::int64_t stride, Fault fault,
                                   std::int32_t b, std::int32_t tokens, std::int32_t& start, std::int32_t& count,
                                   Report& report) {
    if (given == nullptr) return;
    start = given[b * stride];
    const std::int32_t end = given[(b + 1) * stride];
    check(report, fault, b, b, start, 0, b == 0 ? 0 : tokens);
    check(report, fault, b, b + 1, end, b + 1 == a.batch ? tokens : start, tokens);
    count = end - start;
  }
};

}  // namespace attest::cuda
