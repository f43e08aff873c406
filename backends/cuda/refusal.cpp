// SPDX-License-Identifier: Apache-2.0
#include "refusal.h"

#include <attest/backend.hpp>
#include <string>

namespace attest::cuda {

void refuse(const Report& report) {
  const auto at = [&](const char* name) { return std::string(name) + "[" + std::to_string(report.index) + "]"; };
  const auto range = [&](const std::string& name) {
    throw abi::Invalid(name + ": got " + std::to_string(report.got) + ", wanted " + std::to_string(report.low) + ".." +
                       std::to_string(report.high));
  };
  switch (report.fault) {
    case Fault::none:
      return;
    case Fault::query_length:
      return range(at("query_lengths"));
    case Fault::key_length:
      return range(at("key_lengths"));
    case Fault::query_start:
      return range(at("query_start"));
    case Fault::key_start:
      return range(at("key_start"));
    case Fault::length:
      return range(at("cache.lengths"));
    case Fault::overflow:
      throw abi::Overflow(at("cache.lengths") + ": " + std::to_string(report.low) + " cached + " +
                          std::to_string(report.high) + " new tokens = " + std::to_string(report.low + report.high) +
                          ", capacity is " + std::to_string(report.got));
    case Fault::position_count:
      throw abi::Invalid("positions: got " + std::to_string(report.high) + " of sequence " +
                         std::to_string(report.sequence) + ", wanted one for each of its " +
                         std::to_string(report.got) + " keys");
    case Fault::page:
      return range("cache.block_table[" + std::to_string(report.sequence) + ", " + std::to_string(report.index) + "]");
    case Fault::mask_extent:
      throw abi::Invalid("mask: got " + std::to_string(report.got) + " keys on its last axis, wanted " +
                         std::to_string(report.low));
    case Fault::longest_query:
      throw abi::Invalid("max_query_length: got " + std::to_string(report.high) + ", sequence " +
                         std::to_string(report.sequence) + " has " + std::to_string(report.got) + " queries");
    case Fault::longest_total:
      throw abi::Invalid("max_total_length: got " + std::to_string(report.high) + ", sequence " +
                         std::to_string(report.sequence) + " has " + std::to_string(report.got) + " keys");
  }
}

}  // namespace attest::cuda
