// SPDX-License-Identifier: Apache-2.0
#include "runner/judge.h"

#include <algorithm>
#include <bit>
#include <cctype>
#include <cmath>
#include <limits>

namespace attest {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

std::string_view status_name(attest_status status) {
  switch (status) {
    case ATTEST_OK:
      return "OK";
    case ATTEST_UNSUPPORTED:
      return "UNSUPPORTED";
    case ATTEST_INVALID:
      return "INVALID";
    case ATTEST_OVERFLOW:
      return "OVERFLOW";
    case ATTEST_ERROR:
      return "ERROR";
  }
  return "an unknown status";
}

size_t flat(const std::vector<int64_t>& shape, const std::vector<int64_t>& index) {
  int64_t at = 0;
  for (size_t a = 0; a < shape.size(); ++a) at = at * shape[a] + index[a];
  return static_cast<size_t>(at);
}

/// Whether the text has the word, not as a part of a longer one: "8" is not in "18".
bool has_word(const std::string& text, const std::string& word) {
  const auto inside = [&](size_t at) {
    return at < text.size() && (std::isalnum(static_cast<unsigned char>(text[at])) != 0 || text[at] == '_');
  };
  for (size_t at = text.find(word); at != std::string::npos; at = text.find(word, at + 1)) {
    if ((at == 0 || !inside(at - 1)) && !inside(at + word.size())) return true;
  }
  return false;
}

bool same_bits(float a, float b) {
  return std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b);
}

}  // namespace

/// Elements of one tensor compared with their goldens; keeps the worst and the counts.
struct Judge::Comparison {
  Comparison(size_t step_, std::string tensor_, std::string index_names_)
      : step(step_), tensor(std::move(tensor_)), index_names(std::move(index_names_)) {}

  size_t step;
  std::string tensor, index_names;
  int64_t bad = 0, unwritten = 0, not_a_number = 0, total = 0;
  double worst_ratio = -1, got = 0, wanted = 0, allowed = 0;
  std::vector<int64_t> worst_index, first_unwritten;

  /// The ratio error / allowed; infinite where no finite error is right.
  /// With `other_bits`, equal values are wrong too: a zero of the other sign where a copy was wanted.
  double add(float actual, double golden, double tolerance, const std::vector<int64_t>& index,
             bool other_bits = false) {
    const auto value = static_cast<double>(actual);
    double ratio = 0;
    if (std::isinf(golden)) {
      ratio = value == golden ? 0 : kInfinity;
    } else if (!std::isfinite(value) || other_bits) {
      ratio = kInfinity;
    } else if (value != golden) {
      ratio = std::fabs(value - golden) / tolerance;
    }
    ++total;
    if (!(ratio <= 1)) {
      ++bad;
      if (std::bit_cast<uint32_t>(actual) == kUnwritten) {
        if (unwritten++ == 0) first_unwritten = index;
      } else if (std::isnan(value)) {
        ++not_a_number;
      }
    }
    if (!(ratio <= worst_ratio)) {
      worst_ratio = ratio;
      got = value;
      wanted = golden;
      allowed = tolerance;
      worst_index = index;
    }
    return ratio;
  }
};

Judge::Judge(const Case& c, const Timeline& timeline, const Inputs& inputs, const Golden& golden)
    : c_(c), timeline_(timeline), inputs_(inputs), golden_(golden) {}

Finding& Judge::add(std::string kind, std::string clause, size_t s, std::string tensor, std::string text) {
  Finding finding;
  finding.kind = std::move(kind);
  finding.clause = std::move(clause);
  finding.step = static_cast<int64_t>(s);
  finding.tensor = std::move(tensor);
  finding.text = std::move(text);
  findings_.push_back(std::move(finding));
  return findings_.back();
}

bool Judge::step(size_t s, const StepOutcome& outcome) {
  const bool refused = timeline_[s].step.expect != Expect::ok;
  const bool status_right = judge_status(s, outcome);
  judge_foreign(s, outcome);
  if (!status_right) return false;
  if (refused) {
    judge_refusal(s, outcome);
    return true;
  }
  judge_rows(s, outcome);
  judge_cache(s, outcome);
  judge_unchecked_rows(s, outcome);
  return true;
}

bool Judge::judge_status(size_t s, const StepOutcome& outcome) {
  const Expect expect = timeline_[s].step.expect;
  const attest_status wanted = expect == Expect::ok        ? ATTEST_OK
                               : expect == Expect::invalid ? ATTEST_INVALID
                                                           : ATTEST_OVERFLOW;
  if (outcome.status == wanted) return true;
  const char* clause = expect == Expect::ok ? "P1" : expect == Expect::invalid ? "V1" : "V2";
  std::string text = fmt::format("answered {}, wanted {}", status_name(outcome.status), status_name(wanted));
  if (!outcome.message.empty()) text += fmt::format("; it says: {}", outcome.message);
  add("status", clause, s, "", std::move(text));
  return false;
}

void Judge::judge_foreign(size_t s, const StepOutcome& outcome) {
  for (const auto& foreign : outcome.foreign) {
    add(foreign.input ? "input" : "guard", "T3", s, foreign.tensor, foreign.text);
  }
}

void Judge::judge_refusal(size_t s, const StepOutcome& outcome) {
  const Step& step = timeline_[s].step;
  // V3: whoever reads the message must find the place.
  const std::string wanted = step.malformed ? step.malformed->argument : std::to_string(c_.problem.capacity);
  if (!has_word(outcome.message, wanted)) {
    add("message", "V3", s, "",
        fmt::format("its message should name {} \"{}\"; it says: \"{}\"",
                    step.malformed ? "the argument" : "the capacity", wanted, outcome.message));
  }
  const auto changed = [](const Dense<float>& before, const Dense<float>& after) {
    return !std::equal(before.data.begin(), before.data.end(), after.data.begin(), after.data.end(), same_bits);
  };
  if (changed(outcome.before.key, outcome.after.key)) {
    add("refusal", "P5", s, "cache.key", "the step was refused, but had already changed the cached keys");
  }
  if (changed(outcome.before.value, outcome.after.value)) {
    add("refusal", "P5", s, "cache.value", "the step was refused, but had already changed the cached values");
  }
  if (outcome.before.lengths != outcome.after.lengths) {
    add("refusal", "P5", s, "cache.lengths", "the step was refused, but had already advanced the lengths");
  }
  for (const auto& [name, tensor] : {std::pair{"output", &outcome.output}, {"lse", &outcome.lse}}) {
    const auto written = std::count_if(tensor->data.begin(), tensor->data.end(),
                                       [](float x) { return std::bit_cast<uint32_t>(x) != kUnwritten; });
    if (written > 0) {
      add("refusal", "P5", s, name, fmt::format("the step was refused, but had already written {} elements", written));
    }
  }
}

void Judge::close(Comparison& comparison, const std::string& clause) {
  if (comparison.total == 0) return;
  worst_ = std::max(worst_.value_or(0), comparison.worst_ratio);
  if (comparison.bad == 0) return;
  std::string kind = "value";
  std::string cited = clause;
  std::string text = "beyond the allowed error";
  if (comparison.tensor.starts_with("cache")) {
    kind = "cache";
    text = "the cache holds something else than what was appended";
  } else if (comparison.unwritten > 0) {
    kind = "unwritten";
    cited = "T4";
    text = fmt::format("{} elements were never written", comparison.unwritten);
    if (comparison.unwritten < comparison.bad)
      text += fmt::format(", {} others are wrong", comparison.bad - comparison.unwritten);
  } else if (comparison.not_a_number > 0) {
    kind = "nan";
    cited = "D2";
    text = fmt::format("{} elements are NaN where the golden is a number", comparison.not_a_number);
  }
  Finding& finding = add(std::move(kind), std::move(cited), comparison.step, comparison.tensor, std::move(text));
  finding.index = comparison.unwritten > 0 ? comparison.first_unwritten : comparison.worst_index;
  finding.index_names = comparison.index_names;
  finding.got = comparison.got;
  finding.wanted = comparison.wanted;
  finding.allowed = comparison.allowed;
  finding.ratio = comparison.worst_ratio;
  finding.bad = comparison.bad;
  finding.total = comparison.total;
}

void Judge::judge_rows(size_t s, const StepOutcome& outcome) {
  const GoldenStep& golden = golden_.steps[s];
  const Moment& moment = timeline_[s];
  const bool layer = c_.problem.level == Level::layer;
  const int64_t heads = layer ? 1 : c_.problem.query_heads;
  const int64_t channels = layer ? c_.problem.d_model : c_.problem.v_head_dim;
  const size_t findings = findings_.size();

  ErrorMap map;
  map.step = static_cast<int64_t>(s);
  map.sequences = c_.problem.batch;
  map.heads = heads;
  map.positions = moment.max_queries;
  map.first_position = *std::max_element(moment.before.begin(), moment.before.end());
  map.ratio.assign(static_cast<size_t>(map.sequences * heads * map.positions), -1);

  Comparison output(s, "output", layer ? "sequence,token,channel" : "sequence,token,head,channel");
  Comparison lse(s, "lse", "sequence,head,token");
  for (size_t r = 0; 2 * r < golden.rows.size(); ++r) {
    const int64_t b = golden.rows[2 * r];
    const int64_t i = golden.rows[2 * r + 1];
    for (int64_t h = 0; h < heads; ++h) {
      double& worst = map.ratio[static_cast<size_t>((b * heads + h) * map.positions + i)];
      for (int64_t d = 0; d < channels; ++d) {
        const size_t at = (r * static_cast<size_t>(heads) + static_cast<size_t>(h)) * static_cast<size_t>(channels) +
                          static_cast<size_t>(d);
        const auto index = layer ? std::vector<int64_t>{b, i, d} : std::vector<int64_t>{b, i, h, d};
        const double ratio = output.add(outcome.output.data[flat(outcome.output.shape, index)], golden.output.value[at],
                                        static_cast<double>(golden.output.allowed[at]), index);
        worst = std::max(worst, ratio);
      }
    }
    for (int64_t h = 0; h < c_.problem.query_heads && c_.problem.lse; ++h) {
      const size_t at = r * static_cast<size_t>(c_.problem.query_heads) + static_cast<size_t>(h);
      const std::vector<int64_t> index{b, h, i};
      lse.add(outcome.lse.data[flat(outcome.lse.shape, index)], golden.lse.value[at],
              static_cast<double>(golden.lse.allowed[at]), index);
    }
  }
  close(output, c_.clauses.front());
  if (findings_.size() > findings && !error_map_) error_map_ = std::move(map);
  close(lse, "E1");
}

/// Rows without a golden: written, finite, and (an average of values cannot leave their range) within the hull of the
/// sequence's values.
void Judge::judge_unchecked_rows(size_t s, const StepOutcome& outcome) {
  const Moment& moment = timeline_[s];
  const GoldenStep& golden = golden_.steps[s];
  if (golden.rows.size() / 2 == moment.rows.size()) return;
  const Problem& p = c_.problem;
  std::vector<float> reach(static_cast<size_t>(p.batch), 0);
  if (p.level == Level::core) {
    for (size_t b = 0; b < reach.size(); ++b) {
      for (const Token& token : moment.tokens[b]) {
        const StepInputs& in = inputs_.steps[static_cast<size_t>(token.step)];
        const int64_t width = p.kv_heads * p.v_head_dim;
        const auto begin = in.value.data.begin() + (token.origin * in.value.shape[1] + token.index) * width;
        for (auto v = begin; v != begin + width; ++v) reach[b] = std::max(reach[b], std::fabs(*v));
      }
    }
  }
  const auto width = static_cast<int64_t>(outcome.output.data.size()) / (p.batch * moment.max_queries);
  int64_t bad = 0;
  std::string first;
  for (const Row& row : moment.rows) {
    const auto start = static_cast<size_t>((row.sequence * moment.max_queries + row.index) * width);
    const float limit = reach[static_cast<size_t>(row.sequence)] * 1.001F;
    for (size_t d = start; d < start + static_cast<size_t>(width); ++d) {
      const float x = outcome.output.data[d];
      if (std::isfinite(x) && (p.level == Level::layer || std::fabs(x) <= limit)) continue;
      if (bad++ == 0) first = fmt::format("sequence {}, token {}: {}", row.sequence, row.index, x);
    }
  }
  if (p.lse) judge_unchecked_lse(s, outcome);
  if (bad > 0) {
    Finding& finding =
        add("invariant", "A6", s, "output",
            fmt::format("{} elements of rows are not finite or larger than every value they average; first {}", bad,
                        first));
    finding.bad = bad;
    finding.total = static_cast<int64_t>(moment.rows.size()) * width;
  }
}

void Judge::judge_unchecked_lse(size_t s, const StepOutcome& outcome) {
  for (const Row& row : timeline_[s].rows) {
    for (int64_t h = 0; h < c_.problem.query_heads; ++h) {
      const float x = outcome.lse.data[flat(outcome.lse.shape, {row.sequence, h, row.index})];
      const bool empty = row.begin == row.end && std::isinf(x) && x < 0;
      if (std::isfinite(x) || empty) continue;
      Finding& finding = add("invariant", "T4", s, "lse", "a row without a golden has no finite log-sum-exp");
      finding.index = {row.sequence, h, row.index};
      finding.index_names = "sequence,head,token";
      finding.got = static_cast<double>(x);
      return;
    }
  }
}

void Judge::judge_cache(size_t s, const StepOutcome& outcome) {
  if (c_.problem.cache == CacheKind::none) return;
  const Moment& moment = timeline_[s];
  for (size_t b = 0; b < moment.after.size(); ++b) {
    if (outcome.after.lengths[b] != moment.after[b]) {
      Finding& finding = add("length", "C2", s, "cache.lengths", "the length was not advanced by the appended tokens");
      finding.index = {static_cast<int64_t>(b)};
      finding.index_names = "sequence";
      finding.got = static_cast<double>(outcome.after.lengths[b]);
      finding.wanted = static_cast<double>(moment.after[b]);
      break;
    }
  }
  const StepInputs& in = inputs_.steps[s];
  judge_cache_tensor(s, "cache.key", outcome.before.key, outcome.after.key, in.key, golden_.steps[s].cache_key);
  judge_cache_tensor(s, "cache.value", outcome.before.value, outcome.after.value, in.value,
                     golden_.steps[s].cache_value);
}

void Judge::judge_cache_tensor(size_t s, const char* name, const Dense<float>& before, const Dense<float>& after,
                               const Dense<float>& input, const GoldenTensor& golden) {
  const Moment& moment = timeline_[s];
  const auto slot = static_cast<size_t>(after.shape[2] * after.shape[3]);
  const auto capacity = static_cast<size_t>(after.shape[1]);
  // C5, T3: all but the appended slots stay as they were, bit for bit.
  const auto changed = [&](size_t e) {
    if (same_bits(before.data[e], after.data[e])) return false;
    const auto b = static_cast<int64_t>(e / (capacity * slot));
    const auto position = static_cast<int64_t>(e / slot % capacity);
    const auto sequence = static_cast<size_t>(b);
    const bool appended = position >= moment.before[sequence] && position < moment.after[sequence];
    if (appended) return false;
    const bool cached = position < moment.before[sequence];
    Finding& finding = add("cache", cached ? "C5" : "T3", s, name,
                           cached ? "a token that was cached before this step has changed"
                                  : "a slot that no token was appended to was written");
    finding.index = {b, position, static_cast<int64_t>(e % slot) / after.shape[3],
                     static_cast<int64_t>(e) % after.shape[3]};
    finding.index_names = "sequence,slot,head,channel";
    finding.got = static_cast<double>(after.data[e]);
    finding.wanted = static_cast<double>(before.data[e]);
    return true;
  };
  for (size_t e = 0; e < after.data.size() && !changed(e);) ++e;
  // C1: the step's tokens lie where they belong: exactly what was given, or (L4) its projection within the allowed
  // error.
  Comparison comparison(s, name, "sequence,slot,head,channel");
  size_t golden_at = 0;
  for (const auto& sequence : moment.incoming) {
    for (const Token& token : sequence) {
      const auto source = static_cast<size_t>(token.origin * moment.max_keys + token.index) * slot;
      for (int64_t h = 0; h < after.shape[2]; ++h) {
        for (int64_t d = 0; d < after.shape[3]; ++d) {
          const std::vector<int64_t> index{token.origin, token.position, h, d};
          const float got = after.data[flat(after.shape, index)];
          const auto element = static_cast<size_t>(h * after.shape[3] + d);
          if (golden.empty()) {
            const float wanted = input.data[source + element];
            comparison.add(got, static_cast<double>(wanted), std::numeric_limits<double>::denorm_min(), index,
                           got == wanted && !same_bits(got, wanted));
          } else {
            comparison.add(got, golden.value[golden_at + element],
                           static_cast<double>(golden.allowed[golden_at + element]), index);
          }
        }
      }
      golden_at += slot;
    }
  }
  // An exact copy has no error to relate; it enters the worst ratio only where it is wrong.
  if (!golden.empty() || comparison.bad > 0) close(comparison, golden.empty() ? "C1" : "L4");
}

}  // namespace attest
