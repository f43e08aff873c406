// SPDX-License-Identifier: Apache-2.0
#include "runner/challenge_bugs.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <memory>
#include <numeric>
#include <string_view>

#include "runner/report_text.h"

namespace attest {
namespace {

enum Place : unsigned {
  scale_by_d = 1U << 0,
  split_heads = 1U << 1,
  length_axis = 1U << 2,
  concat_axis = 1U << 3,
  k_transpose = 1U << 4,
  causal_strict = 1U << 5,
  mask_added = 1U << 6,
  softmax_axis = 1U << 7,
  dropout = 1U << 8,
  new_only = 1U << 9,
  positions_stuck = 1U << 10,
  row_maximum = 1U << 11,  // a decoy: subtracting it is no bug, but shows beside softmax_axis
};
constexpr unsigned kBugs = row_maximum - 1;

// What the submission's sums may differ from these by, of the largest value of a row. Bugs move far more than this.
constexpr float kNear = 2e-3F;
// Weights that dropout may have hit, of rows whose every outcome is tried.
constexpr int kDroppedBits = 12;
constexpr float kKept = 0.9F;        // the worker builds the layer with dropout 0.1
constexpr int64_t kDroppedRows = 4;  // of a step; a pattern is never found by chance

using Numbers = std::vector<float>;  // of one row

/// y = W x + b for rows of x.
std::vector<float> project(const std::vector<float>& x, int64_t rows, const Dense<float>& w, const Dense<float>& bias) {
  const auto out = static_cast<size_t>(w.shape[0]), in = static_cast<size_t>(w.shape[1]);
  std::vector<float> y(static_cast<size_t>(rows) * out);
  for (size_t r = 0; r < static_cast<size_t>(rows); ++r) {
    for (size_t o = 0; o < out; ++o) {
      float sum = bias.data.empty() ? 0 : bias.data[o];
      for (size_t i = 0; i < in; ++i) sum += w.data[o * in + i] * x[r * in + i];
      y[r * out + o] = sum;
    }
  }
  return y;
}

/// Tokens appended to each sequence: [B, T, D] and [B, N, D] to [B, T + N, D].
std::vector<float> appended(const std::vector<float>& past, const std::vector<float>& more, int64_t batch) {
  const auto b = static_cast<size_t>(batch);
  const size_t old_size = past.size() / b, new_size = more.size() / b;
  std::vector<float> all;
  all.reserve(past.size() + more.size());
  for (size_t i = 0; i < b; ++i) {
    all.insert(all.end(), past.begin() + static_cast<int64_t>(i * old_size),
               past.begin() + static_cast<int64_t>((i + 1) * old_size));
    all.insert(all.end(), more.begin() + static_cast<int64_t>(i * new_size),
               more.begin() + static_cast<int64_t>((i + 1) * new_size));
  }
  return all;
}

/// What a step has before the bugs come in, the same under each hypothesis.
struct Projected {
  std::vector<float> query, key, value;  ///< [B, S, D]; key and value of a load as they are.
  bool attends = false, empties = false;
  int64_t queries = 0, keys = 0;
};

/// How a step ends without an answer.
enum class Refusal {
  none,
  raises,  ///< forward does.
  cache,   ///< The worker takes no cache of that shape.
};
// What the Python worker begins with when it refuses a cache that forward returned.
constexpr std::string_view kCacheRefused = "new_cache";

class Layer {
 public:
  explicit Layer(const PlayedPart& part) : part_(part), p_(part.c->problem) {
    const Weights& w = part.inputs->weights;
    for (size_t s = 0; s < part.timeline->size(); ++s) {
      const Moment& moment = (*part.timeline)[s];
      const StepInputs& in = part.inputs->steps[s];
      Projected one;
      one.keys = in.key.shape.size() > 1 ? in.key.shape[1] : 0;
      if (moment.step.kind == StepKind::attend) {
        one.attends = true;
        one.queries = in.query.shape[1];
        one.query = project(in.query.data, p_.batch * one.queries, w.q, w.q_bias);
        one.key = project(in.key.data, p_.batch * one.keys, w.k, w.k_bias);
        one.value = project(in.value.data, p_.batch * one.keys, w.v, w.v_bias);
      } else if (moment.step.kind == StepKind::load) {
        one.key = in.key.data;
        one.value = in.value.data;
      } else {
        one.empties = true;
      }
      steps_.push_back(std::move(one));
    }
  }

  [[nodiscard]] size_t steps() const { return steps_.size(); }
  [[nodiscard]] bool attends(size_t s) const { return steps_[s].attends; }
  [[nodiscard]] int64_t queries(size_t s) const { return steps_[s].queries; }
  [[nodiscard]] int64_t batch() const { return p_.batch; }
  [[nodiscard]] size_t width() const { return static_cast<size_t>(p_.d_model); }

  /// A step's weights [B, H, S, T] and the values [B, H, T, d] that they go with.
  struct Attended {
    std::vector<float> weights, values;
    int64_t total = 0;
  };
  /// Calls `see(s, attended, refusal)` for each attend; without `attended` for the one that does not come to an end,
  /// the last. False from `see` ends it.
  template <typename See>
  void run(unsigned bugs, const See& see) const {
    std::vector<float> key, value;
    int64_t length = 0;
    for (size_t s = 0; s < steps_.size(); ++s) {
      const Projected& step = steps_[s];
      if (!step.attends) {
        if (step.empties) key.clear(), value.clear(), length = 0;
        key = appended(key, step.key, p_.batch);
        value = appended(value, step.value, p_.batch);
        length += step.keys;
        continue;
      }
      const bool cached = length > 0;
      const int64_t believed = cached && (bugs & length_axis) != 0 ? p_.d_model : length;
      Refusal refusal = Refusal::none;
      if (cached && (bugs & new_only) != 0) refusal = Refusal::cache;
      if (cached && (bugs & concat_axis) != 0) refusal = Refusal::raises;
      if (believed + step.keys > p_.capacity) refusal = Refusal::raises;
      if (refusal != Refusal::none) {
        see(s, nullptr, refusal);
        return;
      }
      key = appended(key, step.key, p_.batch);
      value = appended(value, step.value, p_.batch);
      length += step.keys;
      const Attended attended = attend(bugs, step, key, value, length, (bugs & positions_stuck) != 0 ? 0 : believed);
      if (!see(s, &attended, refusal)) return;
    }
  }

  /// out_proj of one row of heads [H, d].
  [[nodiscard]] Numbers out(const float* heads) const {
    const Weights& w = part_.inputs->weights;
    return project({heads, heads + width()}, 1, w.out, w.out_bias);
  }
  /// The row of heads that these weights average.
  [[nodiscard]] Numbers heads(const Attended& a, int64_t queries, int64_t b, int64_t i) const {
    const int64_t h_count = p_.query_heads, d = p_.v_head_dim;
    Numbers row(width(), 0);
    for (int64_t h = 0; h < h_count; ++h) {
      for (int64_t j = 0; j < a.total; ++j) {
        const float weight = a.weights[static_cast<size_t>(((b * h_count + h) * queries + i) * a.total + j)];
        if (weight == 0) continue;
        for (int64_t c = 0; c < d; ++c) {
          row[static_cast<size_t>(h * d + c)] +=
              weight * a.values[static_cast<size_t>(((b * h_count + h) * a.total + j) * d + c)];
        }
      }
    }
    return row;
  }
  /// The same, channel by channel, of one weight alone: what it adds to the output.
  [[nodiscard]] Numbers share(const Attended& a, int64_t queries, int64_t b, int64_t h, int64_t i, int64_t j) const {
    const int64_t h_count = p_.query_heads, d = p_.v_head_dim;
    const float weight = a.weights[static_cast<size_t>(((b * h_count + h) * queries + i) * a.total + j)];
    const Dense<float>& w = part_.inputs->weights.out;
    Numbers row(width(), 0);
    for (size_t o = 0; o < width(); ++o) {
      for (int64_t c = 0; c < d; ++c) {
        row[o] += w.data[o * width() + static_cast<size_t>(h * d + c)] * weight *
                  a.values[static_cast<size_t>(((b * h_count + h) * a.total + j) * d + c)];
      }
    }
    return row;
  }
  [[nodiscard]] const std::vector<float>& out_bias() const { return part_.inputs->weights.out_bias.data; }
  [[nodiscard]] int64_t head_count() const { return p_.query_heads; }

 private:
  /// [B, T, D] to [B, H, T, d].
  [[nodiscard]] std::vector<float> split(const std::vector<float>& x, int64_t tokens, unsigned bugs) const {
    if ((bugs & split_heads) != 0) return x;  // a view alone: the same numbers in the same order
    const int64_t heads = p_.query_heads, d = p_.qk_head_dim;
    std::vector<float> y(x.size());
    for (int64_t b = 0; b < p_.batch; ++b) {
      for (int64_t t = 0; t < tokens; ++t) {
        for (int64_t h = 0; h < heads; ++h) {
          for (int64_t c = 0; c < d; ++c) {
            y[static_cast<size_t>(((b * heads + h) * tokens + t) * d + c)] =
                x[static_cast<size_t>(((b * tokens + t) * heads + h) * d + c)];
          }
        }
      }
    }
    return y;
  }

  /// [B, H, T, d] with heads and tokens swapped, and read as [B, H, T, d] again.
  [[nodiscard]] std::vector<float> swapped(const std::vector<float>& x, int64_t tokens) const {
    const int64_t heads = p_.query_heads, d = p_.qk_head_dim;
    std::vector<float> y(x.size());
    for (int64_t b = 0; b < p_.batch; ++b) {
      for (int64_t h = 0; h < heads; ++h) {
        for (int64_t t = 0; t < tokens; ++t) {
          for (int64_t c = 0; c < d; ++c) {
            y[static_cast<size_t>(((b * tokens + t) * heads + h) * d + c)] =
                x[static_cast<size_t>(((b * heads + h) * tokens + t) * d + c)];
          }
        }
      }
    }
    return y;
  }

  [[nodiscard]] Attended attend(unsigned bugs, const Projected& step, const std::vector<float>& key,
                                const std::vector<float>& value, int64_t total, int64_t offset) const {
    const int64_t heads = p_.query_heads, d = p_.qk_head_dim, n = step.queries;
    const std::vector<float> q = split(step.query, n, bugs);
    std::vector<float> k = split(key, total, bugs);
    if ((bugs & k_transpose) != 0) k = swapped(k, total);
    Attended attended{std::vector<float>(static_cast<size_t>(p_.batch * heads * n * total)), split(value, total, bugs),
                      total};
    const float scale = 1.0F / ((bugs & scale_by_d) != 0 ? static_cast<float>(d) : std::sqrt(static_cast<float>(d)));
    for (int64_t bh = 0; bh < p_.batch * heads; ++bh) {
      float* scores = attended.weights.data() + bh * n * total;
      for (int64_t i = 0; i < n; ++i) {
        for (int64_t j = 0; j < total; ++j) {
          const float* a = q.data() + (bh * n + i) * d;
          const float* b = k.data() + (bh * total + j) * d;
          float score = std::inner_product(a, a + d, b, 0.0F) * scale;
          const bool hidden =
              p_.causal != Causal::none && ((bugs & causal_strict) != 0 ? j >= offset + i : j > offset + i);
          if (hidden) score = (bugs & mask_added) != 0 ? score + 1 : -std::numeric_limits<float>::infinity();
          scores[i * total + j] = score;
        }
      }
      if ((bugs & row_maximum) != 0) {
        for (int64_t i = 0; i < n; ++i) {
          const float most = *std::max_element(scores + i * total, scores + (i + 1) * total);
          for (int64_t j = 0; j < total; ++j) scores[i * total + j] -= most;
        }
      }
      if ((bugs & softmax_axis) != 0) {
        for (int64_t j = 0; j < total; ++j) softmax(scores + j, n, total);
      } else {
        for (int64_t i = 0; i < n; ++i) softmax(scores + i * total, total, 1);
      }
    }
    return attended;
  }

  static void softmax(float* x, int64_t count, int64_t stride) {
    float most = -std::numeric_limits<float>::infinity();
    for (int64_t i = 0; i < count; ++i) most = std::max(most, x[i * stride]);
    float sum = 0;
    for (int64_t i = 0; i < count; ++i) sum += x[i * stride] = std::exp(x[i * stride] - most);  // NaN without any
    for (int64_t i = 0; i < count; ++i) x[i * stride] /= sum;
  }

  const PlayedPart& part_;
  const Problem& p_;
  std::vector<Projected> steps_;
};

bool near(const float* got, const Numbers& wanted) {
  float size = 1;
  for (const float x : wanted) {
    if (std::isfinite(x)) size = std::max(size, std::fabs(x));
  }
  for (size_t i = 0; i < wanted.size(); ++i) {
    const bool same = std::isnan(wanted[i]) ? std::isnan(got[i]) : std::fabs(got[i] - wanted[i]) <= kNear * size;
    if (!same) return false;
  }
  return true;
}

/// What one hypothesis says of a part.
enum class Answer { agrees, unclear, differs };

/// Whether a row is what dropout may have left of these weights. Every outcome is tried, so only few weights are.
Answer dropped(const Layer& layer, const Layer::Attended& a, int64_t queries, int64_t b, int64_t i, const float* got) {
  std::vector<Numbers> shares;
  for (int64_t h = 0; h < layer.head_count(); ++h) {
    for (int64_t j = 0; j < a.total; ++j) {
      const float weight = a.weights[static_cast<size_t>(((b * layer.head_count() + h) * queries + i) * a.total + j)];
      if (std::isnan(weight)) return near(got, Numbers(layer.width(), weight)) ? Answer::agrees : Answer::differs;
      if (weight == 0) continue;
      if (shares.size() == kDroppedBits) return Answer::unclear;
      shares.push_back(layer.share(a, queries, b, h, i, j));
    }
  }
  Numbers row = layer.out_bias();
  row.resize(layer.width(), 0);
  unsigned kept = 0;
  // Gray code: one weight comes or goes from each outcome to the next.
  for (unsigned n = 0;; ++n) {
    if (near(got, row)) return Answer::agrees;
    if (n + 1 == 1U << shares.size()) return Answer::differs;
    const unsigned flipped = static_cast<unsigned>(std::countr_zero(n + 1));
    kept ^= 1U << flipped;
    const float sign = (kept >> flipped & 1U) != 0 ? 1 / kKept : -1 / kKept;
    for (size_t c = 0; c < row.size(); ++c) row[c] += sign * shares[flipped][c];
  }
}

Answer hold(const Layer& layer, const PlayedPart& part, unsigned bugs) {
  const bool drops = (bugs & dropout) != 0;
  Answer answer = drops ? Answer::unclear : Answer::agrees;
  size_t reached = 0;
  layer.run(bugs, [&](size_t s, const Layer::Attended* attended, Refusal refusal) {
    reached = s + 1;
    if (s >= part.outcomes->size()) return answer = Answer::differs, false;
    const StepOutcome& got = (*part.outcomes)[s];
    if ((attended == nullptr) != (got.status != ATTEST_OK)) return answer = Answer::differs, false;
    if (attended == nullptr) {
      if (got.message.starts_with(kCacheRefused) != (refusal == Refusal::cache)) return answer = Answer::differs, false;
      if (drops) answer = Answer::agrees;  // as far as it went
      return false;
    }
    const int64_t queries = layer.queries(s);
    if (got.output.data.size() != static_cast<size_t>(layer.batch() * queries) * layer.width()) {
      return answer = Answer::differs, false;
    }
    int64_t tried = 0;
    for (int64_t b = 0; b < layer.batch(); ++b) {
      for (int64_t i = 0; i < queries; ++i) {
        const float* row = got.output.data.data() + static_cast<size_t>(b * queries + i) * layer.width();
        if (drops && tried == kDroppedRows) return true;
        Answer one = drops ? dropped(layer, *attended, queries, b, i, row)
                     : near(row, layer.out(layer.heads(*attended, queries, b, i).data())) ? Answer::agrees
                                                                                          : Answer::differs;
        if (one == Answer::differs) return answer = one, false;
        if (drops && one == Answer::agrees) ++tried, answer = one;
      }
    }
    // The judge ends a part at its first wrong step; what would come later is not known.
    return s + 1 < part.outcomes->size();
  });
  if (answer != Answer::differs && reached < part.outcomes->size() && part.passed) return Answer::differs;
  // The layer's own outputs are the same whether or not dropout hits: a pass contradicts it.
  if (drops && part.passed) return Answer::differs;
  return answer;
}

std::vector<std::string> ids_of(unsigned bugs) {
  std::vector<std::string> ids;
  for (int i = 0; i < kChallengeBugs; ++i) {
    if ((bugs >> i & 1U) != 0) ids.push_back(challenge_bug_ids()[static_cast<size_t>(i)]);
  }
  return ids;
}

/// "a, b and c".
std::string listed(const std::vector<std::string>& ids) {
  if (ids.size() == 1) return ids.front();
  return fmt::format("{} and {}", fmt::join(ids.begin(), ids.end() - 1, ", "), ids.back());
}

}  // namespace

const std::vector<std::string>& challenge_bug_ids() {
  static const std::vector<std::string> ids{"scale-by-d",   "split-heads",    "cache-len-axis",  "cache-concat-dim",
                                            "k-transpose",  "causal-strict",  "mask-bool-added", "softmax-axis",
                                            "dropout-eval", "cache-new-only", "cache-pos-stuck"};
  return ids;
}

std::vector<std::optional<std::vector<float>>> challenge_outputs(const PlayedPart& part, unsigned bugs) {
  const Layer layer(part);
  std::vector<std::optional<std::vector<float>>> outputs(layer.steps());
  layer.run(bugs & ~static_cast<unsigned>(dropout), [&](size_t s, const Layer::Attended* attended, Refusal) {
    if (attended == nullptr) return false;
    std::vector<float>& output = outputs[s].emplace();
    for (int64_t b = 0; b < layer.batch(); ++b) {
      for (int64_t i = 0; i < layer.queries(s); ++i) {
        const Numbers row = layer.out(layer.heads(*attended, layer.queries(s), b, i).data());
        output.insert(output.end(), row.begin(), row.end());
      }
    }
    return true;
  });
  return outputs;
}

std::optional<Diagnosis> find_challenge_bugs(const Catalogue& catalogue, const std::vector<PlayedPart>& parts,
                                             std::chrono::steady_clock::time_point deadline) {
  bool in_time = true;
  struct Candidate {
    const PlayedPart* part;
    std::unique_ptr<const Layer> layer;
    double cost;
  };
  std::vector<Candidate> candidates;
  Diagnosis diagnosis;
  for (const PlayedPart& part : parts) {
    ++(part.passed ? diagnosis.passing : diagnosis.failing);
    if (!part.answered) continue;
    // None of the bugs puts a wrong token into the cache.
    if (!part.cache_is_right) return std::nullopt;
    double cost = part.passed ? 2 : 1;
    for (const Moment& moment : *part.timeline) cost *= 1 + static_cast<double>(moment.max_queries);
    candidates.push_back(
        {&part, std::make_unique<const Layer>(part), cost * static_cast<double>(part.c->problem.batch)});
    if (!part.passed) ++diagnosis.compared;
  }
  if (diagnosis.compared == 0) return std::nullopt;
  std::stable_sort(candidates.begin(), candidates.end(),
                   [](const Candidate& a, const Candidate& b) { return a.cost < b.cost; });

  const auto count = [](unsigned bugs) { return std::popcount(bugs & kBugs); };
  std::vector<unsigned> sets;
  for (unsigned bugs = 1; bugs <= (kBugs | row_maximum); ++bugs) {
    if ((bugs & row_maximum) == 0 || (bugs & softmax_axis) != 0) sets.push_back(bugs);
  }
  std::stable_sort(sets.begin(), sets.end(), [&](unsigned a, unsigned b) { return count(a) < count(b); });
  Explanation found;
  int size = kChallengeBugs;
  size_t tried = 0;
  for (const unsigned bugs : sets) {
    if (count(bugs) > size) break;
    int64_t explained = 0, unclear = 0;
    bool holds = true;
    for (size_t i = 0; i < candidates.size() && holds; ++i) {
      if (in_time = std::chrono::steady_clock::now() < deadline; !in_time) break;
      const Answer answer = hold(*candidates[i].layer, *candidates[i].part, bugs);
      ++diagnosis.predictions;
      holds = answer != Answer::differs;
      if (!candidates[i].part->passed) ++(answer == Answer::unclear ? unclear : explained);
    }
    if (!in_time) break;
    ++tried;
    if (!holds || explained == 0) continue;
    size = count(bugs);
    if (found.bugs.empty() || found.bugs.back() != ids_of(bugs)) found.bugs.push_back(ids_of(bugs));
    found.explained = explained;
    found.unclear = unclear;
  }
  if (!in_time && found.bugs.empty()) {
    diagnosis.verdict = Diagnosis::Verdict::unexplained;
    diagnosis.line = fmt::format(
        "ran out of time: {} of {} sets of the challenge's bugs were tried, those of few bugs first, and none of them "
        "explains the {} failing cases",
        tried, sets.size(), diagnosis.failing);
    return diagnosis;
  }
  if (found.bugs.empty()) return std::nullopt;
  if (!in_time) diagnosis.notes.emplace_back("ran out of time: other sets of as many bugs may explain it as well");

  found.whole = true;
  for (const Candidate& one : candidates) {
    if (!one.part->passed && found.cases.size() < 3) found.cases.push_back(one.part->c->id);
  }
  for (const auto& together : found.bugs) {
    for (const std::string& id : together) {
      const auto is_it = [&](const BugPortrait& portrait) { return portrait.id == id; };
      const Bug* bug = catalogue.find(id);
      if (bug == nullptr || std::any_of(found.portraits.begin(), found.portraits.end(), is_it)) continue;
      found.portraits.push_back({bug->id, bug->area, bug->fault, bug->symptom, bug->look_for, bug->links});
    }
  }
  diagnosis.verdict = Diagnosis::Verdict::explained;
  std::vector<std::string> texts;
  for (const auto& together : found.bugs) texts.push_back(listed(together));
  diagnosis.line =
      fmt::format("{} {} {} of {} failing cases, and {} passing ones are as they would be", fmt::join(texts, ", or "),
                  size == 1 ? "explains" : "together explain", found.explained, diagnosis.failing, diagnosis.passing);
  const bool raises = std::any_of(found.bugs.begin(), found.bugs.end(), [](const auto& together) {
    return std::any_of(together.begin(), together.end(),
                       [](const std::string& id) { return id == "cache-concat-dim" || id == "cache-new-only"; });
  });
  if (raises)
    diagnosis.notes.emplace_back("calls with a cache raise, so other bugs that only show there cannot be seen");
  if (found.bugs.front().size() > 1 || found.bugs.size() > 1) {
    diagnosis.notes.emplace_back("bugs that would not show beside these may be there too");
  }
  diagnosis.explanations.push_back(std::move(found));
  return diagnosis;
}

}  // namespace attest
