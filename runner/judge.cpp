// SPDX-License-Identifier: Apache-2.0
#include "runner/judge.h"

#include <algorithm>
#include <cctype>
#include <set>

#include "runner/comparison.h"

namespace attest {
namespace {

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

/// Whether a mask hides the key j from query i of sequence b in head h (clause M6).
bool hides(const Problem& p, const Dense<float>& mask, int64_t b, int64_t h, int64_t i, int64_t j) {
  const auto at = [&](size_t axis, int64_t index) { return mask.shape[axis] == 1 ? 0 : index; };
  const float value = mask.data[flat(mask.shape, {at(0, b), at(1, h), at(2, i), j})];
  return p.mask == MaskKind::boolean ? value == 0 : value == -std::numeric_limits<float>::infinity();
}

}  // namespace

Judge::Judge(const Case& c, const Timeline& timeline, const Inputs& inputs, const Golden& golden,
             Conventions conventions)
    : c_(c), timeline_(timeline), inputs_(inputs), golden_(golden), conventions_(std::move(conventions)) {
  for (const Moment& moment : timeline) {
    for (const size_t part : moment.parts) parts_[part];
  }
}

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
  if (const auto part = parts_.find(s); part != parts_.end()) part->second = {outcome.output, outcome.lse};
  judge_rows(s, outcome);
  if (c_.problem.cache != CacheKind::none) {
    judge_lengths(s, outcome);
    judge_cache(s, outcome);
  }
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
  const auto unchanged = [&](const char* name, std::string_view what, const Dense<float> CacheImage::*tensor) {
    const auto &before = (outcome.before.*tensor).data, &after = (outcome.after.*tensor).data;
    if (std::equal(before.begin(), before.end(), after.begin(), after.end(), same_bits)) return;
    add("refusal", "P5", s, name, fmt::format("the step was refused, but had already changed the cached {}", what));
  };
  unchanged("cache.key", "keys", &CacheImage::key);
  unchanged("cache.value", "values", &CacheImage::value);
  unchanged("cache.key_scale", "keys' scales", &CacheImage::key_scale);
  unchanged("cache.value_scale", "values' scales", &CacheImage::value_scale);
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

template <typename Output, typename Lse>
void Judge::compare_rows(size_t s, const std::string& clause, const Output& output, const Lse& lse) {
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

  Comparison outputs(s, "output", layer ? "sequence,token,channel" : "sequence,token,head,channel");
  Comparison lses(s, "lse", "sequence,head,token");
  for (size_t r = 0; 2 * r < golden.rows.size(); ++r) {
    const int64_t b = golden.rows[2 * r];
    const int64_t i = golden.rows[2 * r + 1];
    for (int64_t h = 0; h < heads; ++h) {
      double& worst = map.ratio[static_cast<size_t>((b * heads + h) * map.positions + i)];
      for (int64_t d = 0; d < channels; ++d) {
        const size_t at = (r * static_cast<size_t>(heads) + static_cast<size_t>(h)) * static_cast<size_t>(channels) +
                          static_cast<size_t>(d);
        const auto index = layer ? std::vector<int64_t>{b, i, d} : std::vector<int64_t>{b, i, h, d};
        worst = std::max(worst, outputs.add(output(index, at), index));
      }
    }
    for (int64_t h = 0; h < c_.problem.query_heads && c_.problem.lse; ++h) {
      const std::vector<int64_t> index{b, h, i};
      lses.add(lse(index, r * static_cast<size_t>(c_.problem.query_heads) + static_cast<size_t>(h)), index);
    }
  }
  close(outputs, clause);
  if (findings_.size() > findings && !error_map_) error_map_ = std::move(map);
  close(lses, clause == "E2" ? "E2" : "E1");
}

void Judge::judge_rows(size_t s, const StepOutcome& outcome) {
  const GoldenStep& golden = golden_.steps[s];
  const auto got = [](const Dense<float>& tensor, const std::vector<int64_t>& index) {
    const float x = tensor.data[flat(tensor.shape, index)];
    return Element{static_cast<double>(x), 0, 0, std::bit_cast<uint32_t>(x) == kUnwritten};
  };
  // Elements that are NaN by declaration, by sequence, query and head.
  std::set<std::vector<int64_t>> nan;
  if (conventions_.empty_output_is_nan) {
    for (const Row& row : timeline_[s].rows) {
      for (int64_t h = 0; h < c_.problem.query_heads; ++h) {
        if (wants_nan(s, row, h)) nan.insert({row.sequence, row.index, h});
      }
    }
  }
  const auto is_nan = [&](const std::vector<int64_t>& index) {
    return !nan.empty() && nan.contains({index[0], index[1], index.size() == 4 ? index[2] : 0});
  };
  compare_rows(
      s, c_.clauses.front(),
      [&](const std::vector<int64_t>& index, size_t at) {
        Element element = got(outcome.output, index);
        element.wanted = is_nan(index) ? std::numeric_limits<double>::quiet_NaN() : golden.output.value[at];
        element.allowed = static_cast<double>(golden.output.allowed[at]);
        return element;
      },
      [&](const std::vector<int64_t>& index, size_t at) {
        Element element = got(outcome.lse, index);
        element.wanted = conventions_.lse_from_natural(golden.lse.value[at]);
        element.allowed = conventions_.lse_allowed(golden.lse.value[at], static_cast<double>(golden.lse.allowed[at]));
        return element;
      });
}

void Judge::merge(size_t s) {
  const Moment& moment = timeline_[s];
  const GoldenStep& golden = golden_.steps[s];
  struct Merged {
    double lse = -kInfinity;
    std::vector<double> share;   ///< Of each part in the softmax's sum ...
    std::vector<double> unsure;  ///< ... and what a conversion from another base may have moved its LSE by.
  };
  const auto merged_at = [&](int64_t b, int64_t h, int64_t i) {
    Merged merged;
    std::vector<double> lse;
    double most = -kInfinity;
    for (const size_t part : moment.parts) {
      const Dense<float>& tensor = parts_.at(part).lse;
      lse.push_back(conventions_.lse_to_natural(static_cast<double>(tensor.data[flat(tensor.shape, {b, h, i})])));
      most = lse.back() > most || std::isnan(lse.back()) ? lse.back() : most;
      merged.unsure.push_back(conventions_.lse_allowed(lse.back(), 0));
    }
    if (most == -kInfinity) {  // no part has a key: nothing to weigh
      merged.share.assign(lse.size(), 0);
      return merged;
    }
    double sum = 0;
    for (const double x : lse) sum += std::exp(x - most);
    for (const double x : lse) merged.share.push_back(std::exp(x - most) / sum);
    merged.lse = most + std::log(sum);
    return merged;
  };
  compare_rows(
      s, "E2",
      [&](const std::vector<int64_t>& index, size_t at) {
        const Merged merged = merged_at(index[0], index[2], index[1]);
        Element element{0, golden.output.value[at], static_cast<double>(golden.output.allowed[at])};
        double largest = 0;
        for (size_t k = 0; k < moment.parts.size(); ++k) {
          if (merged.share[k] == 0) continue;  // an empty part, whose output may be NaN by declaration
          const Dense<float>& tensor = parts_.at(moment.parts[k]).output;
          const auto value = static_cast<double>(tensor.data[flat(tensor.shape, index)]);
          element.got += merged.share[k] * value;
          largest = std::max(largest, std::fabs(value));
        }
        for (size_t k = 0; k < moment.parts.size(); ++k) {
          element.allowed += 2 * merged.share[k] * merged.unsure[k] * largest;
        }
        return element;
      },
      [&](const std::vector<int64_t>& index, size_t at) {
        const Merged merged = merged_at(index[0], index[1], index[2]);
        Element element{merged.lse, golden.lse.value[at], static_cast<double>(golden.lse.allowed[at])};
        for (size_t k = 0; k < moment.parts.size(); ++k) element.allowed += merged.share[k] * merged.unsure[k];
        return element;
      });
}

bool Judge::is_empty(size_t s, const Row& row, int64_t head) const {
  const Dense<float>& mask = inputs_.steps[s].mask;
  if (mask.data.empty()) return row.begin == row.end;
  for (int64_t j = row.begin; j < row.end; ++j) {
    if (!hides(c_.problem, mask, row.sequence, head, row.index, j)) return false;
  }
  return true;
}

bool Judge::wants_nan(size_t s, const Row& row, int64_t head) const {
  // A sink leaves no row without a weight.
  if (!conventions_.empty_output_is_nan || c_.problem.sinks) return false;
  if (c_.problem.level == Level::core) return is_empty(s, row, head);
  for (int64_t h = 0; h < c_.problem.query_heads; ++h) {
    if (is_empty(s, row, h)) return true;
  }
  return false;
}

std::vector<double> Judge::reach(const Moment& moment) const {
  const Problem& p = c_.problem;
  const DTypeInfo& codes = info(p.cache_dtype);
  double scale = 0;
  for (const float x : inputs_.value_scale.data) scale = std::max(scale, static_cast<double>(x));
  std::vector<double> reach(static_cast<size_t>(p.batch), 0);
  for (size_t b = 0; b < reach.size(); ++b) {
    float most = 0;
    for (const Token& token : moment.tokens[b]) {
      const StepInputs& in = inputs_.steps[static_cast<size_t>(token.step)];
      const int64_t width = p.kv_heads * p.v_head_dim;
      const auto begin = in.value.data.begin() + (token.origin * in.value.shape[1] + token.index) * width;
      for (auto v = begin; v != begin + width; ++v) most = std::max(most, std::fabs(*v));
    }
    reach[b] = static_cast<double>(most);
    if (p.quantised()) {
      // A code may be the larger neighbour.
      const double step = p.kv_scale == KvScale::token ? reach[b] / codes.largest : scale;
      reach[b] +=
          reach[b] * codes.unit_roundoff + step * std::max(codes.half_subnormal, p.cache_dtype == DType::i8 ? 0.5 : 0);
    }
  }
  // Weights, dequantised values and the result are each rounded to 16 bits.
  for (double& most : reach) most *= 1.001 + 8 * info(p.dtype).unit_roundoff;
  return reach;
}

/// Rows without a golden: written, finite, and (an average of values cannot leave their range) within the hull of the
/// sequence's values.
void Judge::judge_unchecked_rows(size_t s, const StepOutcome& outcome) {
  const Moment& moment = timeline_[s];
  const GoldenStep& golden = golden_.steps[s];
  if (golden.rows.size() / 2 == moment.rows.size()) return;
  const Problem& p = c_.problem;
  const bool layer = p.level == Level::layer;
  const std::vector<double> limit = layer ? std::vector<double>() : reach(moment);
  const int64_t heads = layer ? 1 : p.query_heads;
  const int64_t channels = layer ? p.d_model : p.v_head_dim;
  int64_t bad = 0;
  std::string first;
  for (const Row& row : moment.rows) {
    for (int64_t h = 0; h < heads; ++h) {
      const bool nan = wants_nan(s, row, h);
      const bool zero = !layer && !nan && is_empty(s, row, h);
      const auto start = static_cast<size_t>(((row.sequence * moment.max_queries + row.index) * heads + h) * channels);
      for (size_t d = start; d < start + static_cast<size_t>(channels); ++d) {
        const float x = outcome.output.data[d];
        const auto size = static_cast<double>(std::fabs(x));
        const bool right = nan    ? std::isnan(x) && std::bit_cast<uint32_t>(x) != kUnwritten
                           : zero ? x == 0
                                  : std::isfinite(x) && (layer || size <= limit[static_cast<size_t>(row.sequence)]);
        if (right) continue;
        if (bad++ == 0) first = fmt::format("sequence {}, token {}: {}", row.sequence, row.index, x);
      }
    }
  }
  if (p.lse) judge_unchecked_lse(s, outcome);
  if (bad > 0) {
    Finding& finding =
        add("invariant", "A6", s, "output",
            fmt::format("{} elements of rows are not finite or larger than every value they average; first {}", bad,
                        first));
    finding.bad = bad;
    finding.total = static_cast<int64_t>(moment.rows.size()) * heads * channels;
  }
}

void Judge::judge_unchecked_lse(size_t s, const StepOutcome& outcome) {
  for (const Row& row : timeline_[s].rows) {
    for (int64_t h = 0; h < c_.problem.query_heads; ++h) {
      const float x = outcome.lse.data[flat(outcome.lse.shape, {row.sequence, h, row.index})];
      const bool empty = !c_.problem.sinks && is_empty(s, row, h);
      if (empty ? static_cast<double>(x) == conventions_.empty_lse() : std::isfinite(x)) continue;
      Finding& finding = add("invariant", empty ? "M7" : "T4", s, "lse",
                             empty ? "a row without a golden sees no key, but its log-sum-exp says otherwise"
                                   : "a row without a golden has no finite log-sum-exp");
      finding.index = {row.sequence, h, row.index};
      finding.index_names = "sequence,head,token";
      finding.got = static_cast<double>(x);
      return;
    }
  }
}

}  // namespace attest
