// SPDX-License-Identifier: Apache-2.0
// One prepared problem: what stays on the device between its steps, and the launches of a step.
//
//   survey       reads and checks the lengths, advances them, decides whether the step is played
//   (projections, by cuBLASLt)
//   intake       norm, RoPE, quantisation; appends to the cache, or for a ring to memory of the plan's
//   attend       and, with splits, combine
//   (output projection, and intake once more to put its rows where they belong)
//   store        a ring's new tokens
//
// run() reads nothing from the device and waits for nothing: a step may be captured in a CUDA graph, once a step of its
// size has been run.
#pragma once

#include <attest/backend.hpp>
#include <memory>
#include <optional>

#include "linear.h"
#include "machine.h"
#include "memory.h"
#include "shape.h"

namespace attest::cuda {

/// What is chosen when the backend is opened.
struct Settings {
  Machine machine;
  int split_keys;       ///< Keys of a split; 0: as is best.
  DLDeviceType memory;  ///< Of all tensors.
};

class StepPlan {
 public:
  /// Throws abi::Invalid or abi::Unsupported.
  StepPlan(const Settings& settings, const attest_problem& problem);

  /// Queues a step. Throws abi::Invalid for what can be seen without the tensors' contents; the rest comes to `report`.
  void run(const attest_step& step);

  /// What the device found wrong with steps that have been waited for.
  [[nodiscard]] std::shared_ptr<Visible<Report>> report() const { return report_; }

 private:
  struct Step;

  [[nodiscard]] Heads heads() const;
  void survey(const attest_step& step, const Step& s);
  void copy(const Tokens& from, const Tokens& to, bool query, std::int64_t width, const Step& s);
  Tokens project(Linear& linear, const DLTensor& given, bool query, Scratch& gathered, Scratch& made,
                 std::int64_t heads, std::int64_t width, const Step& s);
  IntakeSide intake_query(const Tokens& given, Tokens& query, const Step& s);
  IntakeSide intake_side(bool key, const attest_step& step, const Tokens& given, const Step& s);
  void attend(const attest_step& step, const Step& s, const Tokens& query, const KvSide& key, const KvSide& value,
              const Tokens& output);
  void launch_intake_of(IntakeArguments& arguments, const attest_step* step, const Step& s);

  Settings settings_;
  attest_problem problem_;
  Storage dtype_, cache_dtype_;
  Visibility visibility_;
  bool turns_query_, turns_key_;  ///< Norm or RoPE.
  std::optional<Linear> q_, k_, v_, out_;
  Uploaded<double> frequency_;
  double magnitude_;
  Uploaded<float> slopes_;
  std::shared_ptr<Visible<Report>> report_;
  Scratch sequences_, go_, projected_q_, projected_k_, projected_v_;
  Scratch query_, key_, value_, key_scales_, value_scales_, projected_out_, sums_, weights_;
  // What projections read: all rows, also of tokens that are not there.
  Scratch gathered_q_{Scratch::First::zeros}, gathered_k_{Scratch::First::zeros}, gathered_v_{Scratch::First::zeros};
  Scratch attended_{Scratch::First::zeros};
};

}  // namespace attest::cuda
