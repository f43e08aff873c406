// SPDX-License-Identifier: Apache-2.0
#include "runner/explain_agreement.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <map>
#include <set>

#include "runner/comparison.h"

namespace attest {
namespace {

// Elements that are further off than this many times what rounding may do are surely something else.
constexpr double kSurely = 4;
// A pass cannot hide a bug that shows with this many times the allowed error.
constexpr double kShows = 8;
// What another choice of roundings has moved in a row, a third one may move so many times as far.
constexpr double kMoved = 8;
// The prediction has to leave less than this part of the error.
constexpr double kLeft = 0.5;
constexpr double kNear = 1.2;
// Errors that look like noise may differ by this factor in size.
constexpr double kAlike = 2.5;
constexpr double kAlikeByLuck = 5;
constexpr double kSurelyNear = 1000;  // times nearer to the bug than to the golden, at the worst elements

/// Beyond any number that a case computes with: NaN, infinity, or what poison has become.
bool is_wild(float x, DType dtype, double golden) {
  if (!std::isfinite(x)) return true;
  const auto size = static_cast<double>(std::fabs(x));
  if (dtype == DType::f16) return size >= 0.9 * info(dtype).largest && std::fabs(golden) < 0.45 * info(dtype).largest;
  return size > 1e30;
}

/// One comparison of a case.
class Holding {
 public:
  Holding(const Script& script, const Conventions& conventions, const Performance& actual, const Prediction& prediction)
      : c_(*script.c),
        timeline_(*script.timeline),
        golden_(*script.golden),
        conventions_(conventions),
        actual_(actual),
        prediction_(prediction.made),
        other_(prediction.other),
        random_(prediction.random) {
    const DType dtype = c_.problem.dtype;
    relative_ = (is_half(dtype) ? 4 : 64) * info(dtype).unit_roundoff;
  }

  Agreement answer() {
    const size_t steps = std::min(actual_.outcomes.size(), prediction_.outcomes.size());
    for (size_t s = 0; s < steps; ++s) {
      if (timeline_[s].step.kind == StepKind::attend) hold_step(s);
    }
    if (actual_.outcomes.size() != prediction_.outcomes.size()) {
      differ(fmt::format("it ends after {} steps, the bug lets it end after {}", actual_.outcomes.size(),
                         prediction_.outcomes.size()));
    }
    if (steps == 0) compare_words();
    compare_repetition();
    for (const Finding& finding : actual_.findings) {
      if (finding.kind == "value" || finding.kind == "message") continue;
      if (finding.ratio && std::isfinite(*finding.ratio)) {
        error_ = std::max(error_, *finding.ratio);
      } else {
        shapeless_ = true;
      }
    }
    return conclude();
  }

 private:
  void differ(const std::string& where) {
    structure_ = true;
    if (answer_.where.empty()) answer_.where = where;
  }

  [[nodiscard]] const StepOutcome* other(size_t s) const {
    return other_ != nullptr && s < other_->outcomes.size() ? &other_->outcomes[s] : nullptr;
  }

  void hold_step(size_t s) {
    const StepOutcome &got = actual_.outcomes[s], &made = prediction_.outcomes[s];
    if (got.status != made.status) {
      return differ(fmt::format("step {}: it answers {}, the bug lets it answer {}", s, static_cast<int>(got.status),
                                static_cast<int>(made.status)));
    }
    const attest_status wanted = timeline_[s].step.expect == Expect::ok        ? ATTEST_OK
                                 : timeline_[s].step.expect == Expect::invalid ? ATTEST_INVALID
                                                                               : ATTEST_OVERFLOW;
    if (got.status != wanted) shapeless_ = true;
    if (got.status == ATTEST_OK && wanted == ATTEST_OK) {
      hold_rows(s, got, made);
    } else if (has_written(got) != has_written(made)) {
      differ(fmt::format("step {}, output: refused, it has{} written, the bug has{}", s, has_written(got) ? "" : " not",
                         has_written(made) ? "" : " not"));
    }
    hold_cache(s, got.after, made.after);
    hold_foreign(s, got, made);
  }

  static bool has_written(const StepOutcome& outcome) {
    const auto written = [](const Dense<float>& tensor) {
      return std::any_of(tensor.data.begin(), tensor.data.end(),
                         [](float x) { return std::bit_cast<uint32_t>(x) != kUnwritten; });
    };
    return written(outcome.output) || written(outcome.lse);
  }

  void hold_rows(size_t s, const StepOutcome& got, const StepOutcome& made) {
    const GoldenStep& golden = golden_.steps[s];
    const StepOutcome* const second = other(s);
    // Where luck decides, any row may get what another one got.
    const double lucky = random_ && second != nullptr
                             ? moved_by(made.output.data.data(), second->output.data.data(), made.output.data.size())
                             : 0;
    const bool layer = c_.problem.level == Level::layer;
    const int64_t heads = layer ? 1 : c_.problem.query_heads;
    const auto channels = static_cast<size_t>(layer ? c_.problem.d_model : c_.problem.v_head_dim);
    const auto query_heads = static_cast<size_t>(c_.problem.query_heads);
    for (size_t r = 0; 2 * r < golden.rows.size(); ++r) {
      const int64_t b = golden.rows[2 * r], i = golden.rows[2 * r + 1];
      for (int64_t h = 0; h < heads; ++h) {
        const auto from = static_cast<size_t>((b * timeline_[s].max_queries + i) * heads + h) * channels;
        const size_t at = (r * static_cast<size_t>(heads) + static_cast<size_t>(h)) * channels;
        const double moved = random_ ? lucky
                             : second != nullptr
                                 ? moved_by(&made.output.data[from], &second->output.data[from], channels)
                                 : 0;
        for (size_t d = 0; d < channels; ++d) {
          const float x = got.output.data[from + d], p = made.output.data[from + d];
          const double wanted = golden.output.value[at + d];
          if (conventions_.empty_output_is_nan && wanted == 0 && std::isnan(x) && p == 0) continue;
          hold(s, "output", {b, i, h, static_cast<int64_t>(d)}, x, static_cast<double>(x), p, wanted,
               static_cast<double>(golden.output.allowed[at + d]), moved);
        }
      }
      for (size_t h = 0; h < query_heads && c_.problem.lse; ++h) {
        const size_t from = flat(got.lse.shape, {b, static_cast<int64_t>(h), i});
        const float x = got.lse.data[from], p = made.lse.data[from];
        if (conventions_.empty_lse_is_positive && std::isinf(x) && x > 0 && std::isinf(p) && p < 0) continue;
        if (random_) continue;
        const double moved = second == nullptr ? 0 : moved_by(&p, &second->lse.data[from], 1);
        hold(s, "lse", {b, static_cast<int64_t>(h), i}, x, conventions_.lse_to_natural(static_cast<double>(x)), p,
             golden.lse.value[r * query_heads + h], static_cast<double>(golden.lse.allowed[r * query_heads + h]),
             moved);
      }
    }
  }

  static double moved_by(const float* one, const float* two, size_t count) {
    double moved = 0;
    for (size_t d = 0; d < count; ++d) {
      const double by = std::fabs(static_cast<double>(one[d]) - static_cast<double>(two[d]));
      if (std::isfinite(by)) moved = std::max(moved, by);
    }
    return kMoved * moved;
  }

  /// One element: `x` in natural units what the backend has, stored as `bits`, `p` what the bug makes of it.
  void hold(size_t s, const char* tensor, const std::vector<int64_t>& index, float bits, double x, float p,
            double wanted, double allowed, double moved) {
    const auto predicted = static_cast<double>(p);
    const bool is_right = x == wanted || std::fabs(x - wanted) <= allowed;
    if (!is_right) ++answer_.wrong;
    if (same_bits(bits, p)) {
      if (!is_right) {
        ++answer_.matched;
        note_error(x, wanted, allowed);
      }
      if (std::isfinite(x)) note_spread(x, predicted, wanted, allowed);
      return;
    }
    const DType dtype = *tensor == 'l' ? DType::f32 : c_.problem.dtype;
    const bool wild = is_wild(bits, dtype, wanted);
    if (wild || is_wild(p, dtype, wanted)) {
      // Where the golden is infinite too (an LSE without keys), only the same will do.
      if (wild && is_wild(p, dtype, wanted) && std::isfinite(wanted)) {
        ++answer_.matched;
        shapeless_ = true;
        return;
      }
      if (x == predicted) return;
      // What becomes of a sum with huge numbers in it hangs on its order and width.
      if (c_.inputs.poison == Poison::huge) {
        ++undefined_;
        return;
      }
      return differ(place(s, tensor, index, x, predicted, wanted));
    }
    note_spread(x, predicted, wanted, allowed);
    const double error = std::fabs(x - predicted);
    const double may = 2 * allowed + relative_ * std::fabs(predicted) + moved;
    const double residual = error == 0 ? 0 : error / may;
    if (moved > 0 && error > may - moved) moved_ = true;
    if (!is_right) {
      if (residual <= 1) ++answer_.matched;
      note_error(x, wanted, allowed);
    }
    if (allowed > 0) left_ = std::max(left_, error / (allowed + moved));
    if (residual > kSurely && answer_.where.empty()) answer_.where = place(s, tensor, index, x, predicted, wanted);
    answer_.residual = std::max(answer_.residual, residual);
  }

  /// How far and how often both are off.
  void note_spread(double x, double predicted, double wanted, double allowed) {
    if (!(allowed > 0) || !std::isfinite(wanted)) return;
    const double got = std::fabs(x - wanted) / allowed, made = std::fabs(predicted - wanted) / allowed;
    got_off_ += got > 1 ? 1 : 0;
    made_off_ += made > 1 ? 1 : 0;
    both_off_ += got > 1 && made > 1 ? 1 : 0;
    got_square_ += got * got;
    made_square_ += made * made;
  }

  /// A bug whose errors look like noise is told from other noise by where and how large they are.
  [[nodiscard]] bool is_alike() const {
    if (!moved_ && !random_) return true;
    const bool same_places = random_ || 2 * both_off_ >= std::max(got_off_, made_off_);
    const double factor = random_ ? kAlikeByLuck : kAlike;
    return same_places && got_square_ < factor * factor * made_square_ && made_square_ < factor * factor * got_square_;
  }

  void note_error(double x, double wanted, double allowed) {
    const double ratio = std::fabs(x - wanted) / allowed;
    if (std::isfinite(ratio)) {
      error_ = std::max(error_, ratio);
    } else {
      shapeless_ = true;
    }
  }

  static std::string place(size_t s, const char* tensor, const std::vector<int64_t>& index, double x, double predicted,
                           double wanted) {
    return fmt::format("step {}, {}[{}]: it has {:.6g}, the bug makes {:.6g}, right is {:.6g}", s, tensor,
                       fmt::join(index, ", "), x, predicted, wanted);
  }

  /// The cache as a whole: the golden knows what was appended, and what lies elsewhere has to be the same in both.
  void hold_cache(size_t s, const CacheImage& got, const CacheImage& made) {
    const GoldenStep& golden = golden_.steps[s];
    const DType dtype = c_.problem.cache_dtype;
    hold_tensor(s, "cache.key", got.key, made.key, golden.cache_key, dtype);
    hold_tensor(s, "cache.value", got.value, made.value, golden.cache_value, dtype);
    hold_tensor(s, "cache.key_scale", got.key_scale, made.key_scale, golden.key_scale, DType::f32);
    hold_tensor(s, "cache.value_scale", got.value_scale, made.value_scale, golden.value_scale, DType::f32);
    if (got.lengths != made.lengths) {
      differ(fmt::format("step {}, cache.lengths: it has [{}], the bug makes [{}]", s, fmt::join(got.lengths, ", "),
                         fmt::join(made.lengths, ", ")));
    }
    const Moment& moment = timeline_[s];
    if (!std::equal(got.lengths.begin(), got.lengths.end(), moment.after.begin(), moment.after.end()) &&
        !got.lengths.empty()) {
      shapeless_ = true;
    }
  }

  void hold_tensor(size_t s, const char* name, const Dense<float>& got, const Dense<float>& made,
                   const GoldenTensor& golden, DType dtype) {
    double& allowed = cached_[name];  // of all tokens so far
    for (const float a : golden.allowed) {
      if (std::isfinite(a)) allowed = std::max(allowed, static_cast<double>(a));
    }
    // A code may be the neighbour of the other's: numbers near the middle of two are not avoided for wrong scales.
    const double unit = dtype == DType::i8        ? 1
                        : dtype == DType::f8_e4m3 ? 0.125
                        : dtype == DType::f8_e5m2 ? 0.25
                        : is_half(dtype)          ? 4 * info(dtype).unit_roundoff
                                                  : 64 * info(dtype).unit_roundoff;
    const auto vector = static_cast<size_t>(got.shape.empty() ? 1 : std::max<int64_t>(1, got.shape.back()));
    for (size_t e = 0; e < got.data.size() && e < made.data.size(); ++e) {
      const float x = got.data[e], p = made.data[e];
      if (same_bits(x, p)) continue;
      if (is_wild(x, dtype, 0) && is_wild(p, dtype, 0)) continue;
      // A projection's errors go with its terms, so small elements of a vector may be as far off as large ones.
      double size = 0;
      for (size_t d = e / vector * vector; d < (e / vector + 1) * vector && d < made.data.size(); ++d) {
        const auto part = static_cast<double>(std::fabs(made.data[d]));
        if (std::isfinite(part)) size = std::max(size, part);
      }
      const double may = 2 * allowed + (dtype == DType::i8 ? unit : unit * size);
      const double error = std::fabs(static_cast<double>(x) - static_cast<double>(p));
      if (allowed > 0) left_ = std::max(left_, error / allowed);
      if (error <= may) continue;
      return differ(fmt::format("step {}, {}: element {} is {:.6g}, the bug makes {:.6g}", s, name, e,
                                static_cast<double>(x), static_cast<double>(p)));
    }
  }

  void hold_foreign(size_t s, const StepOutcome& got, const StepOutcome& made) {
    const auto tensors = [](const StepOutcome& outcome) {
      std::set<std::string> names;
      for (const auto& foreign : outcome.foreign) names.insert(foreign.tensor);
      return names;
    };
    const auto here = tensors(got), there = tensors(made);
    if (!here.empty()) shapeless_ = true;
    if (here != there) {
      differ(fmt::format("step {}: memory that is not the step's has changed in [{}]; the bug changes [{}]", s,
                         fmt::join(here, ", "), fmt::join(there, ", ")));
    }
  }

  /// A case that ended before its first step.
  void compare_words() {
    if (actual_.status != prediction_.status) differ("prepare answers otherwise");
    shapeless_ = true;
  }

  /// What is only wrong in a repetition, or beside other cases, has no elements to compare here.
  void compare_repetition() {
    const auto repeated = [](const Performance& performance) {
      return std::any_of(performance.findings.begin(), performance.findings.end(),
                         [](const Finding& finding) { return finding.kind == "bitwise"; });
    };
    if (repeated(actual_) != repeated(prediction_)) {
      return differ(repeated(actual_) ? "its bits change from run to run or case to case, the bug's do not"
                                      : "its bits stay, the bug's change from run to run or case to case");
    }
    if (repeated(actual_)) shapeless_ = true;
  }

  Agreement conclude() {
    answer_.gain = shapeless_ && !structure_ ? kInfinity : left_ > 0 ? error_ / left_ : kInfinity;
    // So much nearer to the bug than to what is right: whatever is still between them, it is not another bug.
    const bool near = !structure_ && answer_.matched > 0 && answer_.gain >= kSurelyNear;
    if (near && answer_.residual > kSurely) {
      answer_.match = Match::unclear;
    } else if (structure_ || answer_.residual > kSurely) {
      answer_.match = Match::differs;
      if (structure_) answer_.gain = 0;
    } else if (answer_.residual <= 1 && is_alike() && (shapeless_ || left_ <= kLeft * error_)) {
      answer_.match = Match::agrees;
    } else {
      answer_.match = Match::unclear;
    }
    const bool has_error = answer_.matched > 0 || shapeless_;
    if (answer_.match == Match::agrees && (!has_error || 2 * undefined_ > answer_.wrong))
      answer_.match = Match::unclear;
    return answer_;
  }

  const Case& c_;
  const Timeline& timeline_;
  const Golden& golden_;
  const Conventions& conventions_;
  const Performance &actual_, &prediction_;
  const Performance* other_;
  bool random_;
  std::map<std::string, double> cached_;  ///< Largest allowed error of a cached element, by tensor.
  double relative_ = 0;
  double error_ = 0;  ///< Largest |got - golden| / allowed ...
  double left_ = 0;   ///< ... and |got - predicted| over the same and what moves.
  int64_t got_off_ = 0, made_off_ = 0, both_off_ = 0;
  double got_square_ = 0, made_square_ = 0;
  bool moved_ = false;      ///< Some element agrees only because roundings move it.
  int64_t undefined_ = 0;   ///< Elements that tell nothing.
  bool structure_ = false;  ///< Differs in something that no rounding explains.
  bool shapeless_ = false;  ///< Is wrong in something that has no size.
  Agreement answer_;
};

}  // namespace

Agreement compare(const Script& script, const Performance& actual, const Conventions& conventions,
                  const Prediction& prediction) {
  if (prediction.made.status == Status::unsupported) {
    Agreement agreement;
    agreement.match = Match::differs;
    agreement.where = "the mutant does not support the case: " + prediction.made.reason;
    return agreement;
  }
  if (!prediction.made.failed()) return {};
  return Holding(script, conventions, actual, prediction).answer();
}

bool is_repeated(const Performance& one, const Performance& two) {
  const auto same = [](const Dense<float>& a, const Dense<float>& b) {
    return std::equal(a.data.begin(), a.data.end(), b.data.begin(), b.data.end(), same_bits);
  };
  return std::equal(one.outcomes.begin(), one.outcomes.end(), two.outcomes.begin(), two.outcomes.end(),
                    [&](const StepOutcome& a, const StepOutcome& b) {
                      return a.status == b.status && same(a.output, b.output) && same(a.lse, b.lse) &&
                             same(a.after.key, b.after.key) && same(a.after.value, b.after.value);
                    });
}

Agreement compare_with_pass(const Case& c, const Performance& prediction) {
  Agreement agreement;
  if (!prediction.failed()) return agreement;
  const double margin = prediction.margin();
  agreement.match = margin > kShows ? Match::differs : Match::unclear;
  // A kernel that reads what it must not is right if what it reads is lost in a sum, and huge numbers may be.
  const bool hangs_on_sums =
      c.inputs.poison == Poison::huge && !prediction.findings.empty() &&
      std::all_of(prediction.findings.begin(), prediction.findings.end(), [](const Finding& finding) {
        return finding.kind == "nan" || (finding.kind == "value" && finding.got && std::fabs(*finding.got) > 1e6);
      });
  if (hangs_on_sums) agreement.match = Match::unclear;
  agreement.residual = margin;
  if (agreement.match == Match::differs) agreement.where = "it passes, the bug would fail in " + prediction.reason;
  return agreement;
}

bool is_near(const Agreement& agreement) {
  return agreement.match == Match::unclear || (agreement.match == Match::differs && agreement.gain >= kNear);
}

}  // namespace attest
