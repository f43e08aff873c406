// SPDX-License-Identifier: Apache-2.0
#include "runner/bitwise.h"

#include <algorithm>

#include "runner/comparison.h"

namespace attest {
namespace {

/// Gathers what differs.
class Differences {
 public:
  Differences(const RunBits& reference, const RunBits& other, std::string clause, std::string who)
      : reference_(reference), other_(other), clause_(std::move(clause)), who_(std::move(who)) {}

  void compare(const RunBits::Row& a, const RunBits::Row& b) {
    ++result_.rows;
    const int64_t heads = std::min(reference_.heads(), other_.heads());
    const int64_t channels = std::min(reference_.channels(), other_.channels());
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t d = 0; d < channels; ++d) {
        const float wanted = a.output[static_cast<size_t>(h * reference_.channels() + d)];
        const float got = b.output[static_cast<size_t>(h * other_.channels() + d)];
        if (reference_.is_layer()) {
          count(a, b, got, wanted, "output", {a.sequence, a.index, d}, "sequence,token,channel");
        } else {
          count(a, b, got, wanted, "output", {a.sequence, a.index, h, d}, "sequence,token,head,channel");
        }
      }
    }
    for (size_t h = 0; h < std::min(a.lse.size(), b.lse.size()); ++h) {
      count(a, b, b.lse[h], a.lse[h], "lse", {a.sequence, static_cast<int64_t>(h), a.index}, "sequence,head,token");
    }
  }

  BitDifference take() {
    if (result_.finding) {
      result_.finding->bad = bad_;
      result_.finding->total = total_;
    }
    return std::move(result_);
  }

 private:
  void count(const RunBits::Row& a, const RunBits::Row& b, float got, float wanted, const char* tensor,
             std::vector<int64_t> index, const char* names) {
    ++total_;
    if (same_bits(got, wanted)) return;
    if (bad_++ > 0) return;
    Finding finding;
    finding.kind = "bitwise";
    finding.clause = clause_;
    finding.step = a.step;
    finding.tensor = tensor;
    finding.index = std::move(index);
    finding.index_names = names;
    finding.got = static_cast<double>(got);
    finding.wanted = static_cast<double>(wanted);
    finding.text = fmt::format("{} (its step {}, sequence {}, token {}) has other bits than the judged run", who_,
                               b.step, b.sequence, b.index);
    result_.finding = std::move(finding);
  }

  const RunBits &reference_, &other_;
  std::string clause_, who_;
  int64_t bad_ = 0, total_ = 0;
  BitDifference result_;
};

}  // namespace

RunBits::RunBits(const Case& c)
    : layer_(c.problem.level == Level::layer),
      heads_(layer_ ? 1 : c.problem.query_heads),
      channels_(layer_ ? c.problem.d_model : c.problem.v_head_dim) {}

void RunBits::add(const Moment& moment, size_t s, const StepOutcome& outcome) {
  const int64_t width = heads_ * channels_;
  for (const attest::Row& from : moment.rows) {
    Row row{static_cast<int64_t>(s), from.sequence, from.index, {}, {}};
    const auto begin = outcome.output.data.begin() + (from.sequence * moment.max_queries + from.index) * width;
    row.output.assign(begin, begin + width);
    for (int64_t h = 0; !outcome.lse.data.empty() && h < outcome.lse.shape[1]; ++h) {
      row.lse.push_back(outcome.lse.data[flat(outcome.lse.shape, {from.sequence, h, from.index})]);
    }
    rows_[{from.data, from.serial}].push_back(std::move(row));
  }
}

BitDifference compare_again(const RunBits& reference, const RunBits& again, const std::string& clause,
                            const std::string& who) {
  Differences differences(reference, again, clause, who);
  for (const auto& [data, rows] : reference.rows()) {
    const auto found = again.rows().find(data);
    for (size_t r = 0; found != again.rows().end() && r < std::min(rows.size(), found->second.size()); ++r) {
      differences.compare(rows[r], found->second[r]);
    }
  }
  return differences.take();
}

BitDifference compare_with(const RunBits& reference, const RunBits& other, const std::string& clause,
                           const std::string& who) {
  Differences differences(reference, other, clause, who);
  for (const auto& [data, rows] : reference.rows()) {
    const auto found = other.rows().find(data);
    if (found == other.rows().end()) continue;
    for (const RunBits::Row& row : found->second) differences.compare(rows.front(), row);
  }
  return differences.take();
}

}  // namespace attest
