// SPDX-License-Identifier: Apache-2.0
#include "runner/playing.h"

namespace attest {

Playing::Playing(const Script& script, std::string who) : script_(script), who_(std::move(who)), bits_(*script.c) {}

void Playing::start(const Conventions& conventions) {
  session_.emplace(*script_.c, *script_.timeline, *script_.inputs);
  if (script_.golden == nullptr) return;
  judge_.emplace(*script_.c, *script_.timeline, *script_.inputs, *script_.golden, conventions);
}

void Playing::apply(size_t s) {
  if (moment(s).step.kind != StepKind::merge) {
    session_->apply(s);
  } else if (judge_) {
    judge_->merge(s);
  }
  if (keeps_outcomes_) outcomes_.emplace_back();
}

bool Playing::end(size_t s, const Reply& reply) {
  StepOutcome outcome = session_->end(s, reply);
  if (keeps_bits_) bits_.add(moment(s), s, outcome);
  const bool going = !judge_ || judge_->step(s, outcome);
  if (keeps_outcomes_) outcomes_.push_back(std::move(outcome));
  return going;
}

std::vector<Finding> Playing::findings() const {
  if (!judge_) return {};
  std::vector<Finding> findings = judge_->findings();
  for (Finding& finding : findings) finding.text = named(finding.text);
  return findings;
}

std::optional<double> Playing::worst_ratio() const {
  return judge_ ? judge_->worst_ratio() : std::nullopt;
}

std::optional<ErrorMap> Playing::error_map() const {
  return judge_ ? judge_->error_map() : std::nullopt;
}

std::optional<Finding> compare_bits(
    const Case& c, const RunBits& reference, int64_t runs,
    const std::function<std::optional<RunBits>(const std::string& id, const std::string& who)>& again) {
  for (int64_t run = 2; run <= runs; ++run) {
    const std::string who = fmt::format("run {} of {}", run, runs);
    const std::optional<RunBits> bits = again("", who);
    if (!bits) return std::nullopt;
    if (auto difference = compare_again(reference, *bits, c.clauses.front(), who); difference.finding) {
      return std::move(difference.finding);
    }
  }
  for (const std::string& id : c.bitwise.with) {
    const std::optional<RunBits> bits = again(id, id);
    if (!bits) return std::nullopt;
    BitDifference difference = compare_with(reference, *bits, c.clauses.front(), id);
    if (difference.rows == 0) throw Error::at(c.id, "has no row in common with {}", id);
    if (difference.finding) return std::move(difference.finding);
  }
  return std::nullopt;
}

void refuse(const Playing& playing, attest_status answer, const std::string& message, Status& status,
            std::string& reason) {
  if (answer == ATTEST_UNSUPPORTED) {
    status = Status::unsupported;
    reason = playing.named(message.empty() ? "it gives no reason" : message);
  } else {
    status = answer == ATTEST_ERROR ? Status::error : Status::fail;
    reason = playing.named(fmt::format("prepare refused a legal problem: {}", message));
  }
}

std::string reason_of(const Finding& finding) {
  std::string reason =
      fmt::format("step {}{}: {}", finding.step, finding.tensor.empty() ? "" : ", " + finding.tensor, finding.text);
  if (finding.ratio) reason += fmt::format(" ({}, {:.2g} times it)", finding.clause, *finding.ratio);
  return reason;
}

}  // namespace attest
