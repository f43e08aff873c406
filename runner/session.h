// SPDX-License-Identifier: Apache-2.0
// The memory of a case while it is played through once: its tensors in an arena, in every dtype and form that the
// interface has (packed, paged, quantised), filled before a step and read after it. No worker and no verdict.
//
//   Session session(c, timeline, inputs);
//   worker.prepare(c.problem, session.arena(), session.problem_tensors(), limit);
//   for each step: attend → RunRequest request = session.begin(s); ... ; StepOutcome outcome = session.end(s, reply);
//                  others → session.apply(s);
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "cases/inputs.h"
#include "cases/timeline.h"
#include "runner/judge.h"
#include "runner/placement.h"
#include "runner/worker_client.h"

namespace attest {

class Session {
 public:
  /// All must outlive this.
  Session(const Case& c, const Timeline& timeline, const Inputs& inputs);
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  [[nodiscard]] const Arena& arena() const { return arena_; }
  /// What `prepare` is given.
  [[nodiscard]] protocol::Tensors problem_tensors() const;

  /// Does a step of the suite's own (anything but attend) in the memory that the backend will see.
  void apply(size_t s);
  /// Fills the memory for an attend, and notes what may not change.
  RunRequest begin(size_t s);
  /// What the attend that begun last has left behind.
  StepOutcome end(size_t s, const Reply& reply);

 private:
  /// A tensor of a step, by its name in the protocol. Several may share a block.
  struct Argument {
    std::string name;
    const Block* block;
    Elements elements;
  };
  using Arguments = std::vector<Argument>;

  void place_cache();
  void place_step(size_t s);
  void fill_cache();
  void fill_tokens(const Block& block, Dense<float> tensor, const std::vector<int64_t>& used);
  void fill_mask(const Block& block, const Moment& moment, Dense<float> mask);
  void fill_positions(const Block& block, const Moment& moment);
  void fill_table(const Moment& moment);
  /// P8: puts given keys and values into their slots.
  void load(size_t s);
  /// Calls `copy(from, to)` for slots in every tensor of the cache that has them.
  template <typename Move>
  void move_slots(const Move& move);
  [[nodiscard]] CacheImage read_cache() const;
  /// A step's result with the shape of its padded form, and kUnwritten in the padding of a packed one.
  [[nodiscard]] Dense<float> read_rows(size_t s, const Block& block, bool lse) const;
  /// Blocks of a step, each once.
  [[nodiscard]] std::vector<std::pair<const Block*, Elements>> watched(size_t s) const;
  void note_foreign(StepOutcome& outcome, const Block& block, const std::vector<std::byte>& before,
                    Elements elements) const;
  [[nodiscard]] const Block* find(size_t s, std::string_view name) const;

  const Case& c_;
  const Timeline& timeline_;
  const Inputs& inputs_;
  Arena arena_;
  Placement placement_;
  std::vector<std::pair<const Block*, const Dense<float>*>> weights_;
  std::vector<std::vector<std::byte>> weight_images_;
  Arguments cache_;                                ///< In every step.
  std::vector<Arguments> steps_;                   ///< Of attends; empty for others.
  std::vector<std::vector<std::byte>> snapshots_;  ///< Of watched(), before the step that begun last.
  CacheImage image_;                               ///< The cache as the last step or operation left it.
};

}  // namespace attest
