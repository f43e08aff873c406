// SPDX-License-Identifier: Apache-2.0
// A case: a problem, the recipe of its inputs, and the steps it takes. Plain data, read from
// cases/<family>/<topic>.json (schema: spec/schema/case.schema.json).
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "cases/problem.h"

namespace attest {

/// What fills slots beyond a sequence's length, padding and scratch, which must not matter (clause C3).
enum class Poison : int { nan, huge, inf, zero };

/// How the weights of a layer are made.
enum class WeightKind : int {
  uniform,      ///< Like torch.nn.Linear: uniform on +-1/sqrt(d_model), on a 2^-24 grid.
  permutation,  ///< Signed permutations: the projections return the recipe's Q, K and V exactly.
};

/// Which pattern a mask has, and the axes on which it differs; on the others it is broadcast (clause M6).
struct MaskSpec {
  std::string pattern;  ///< A name of cases/mask.cpp; empty without a mask.
  bool batch = false, heads = false, queries = false;
};

struct InputSpec {
  std::string recipe;  ///< A name of cases/recipes.cpp.
  std::string given;   ///< SHA-256 of inputs that come with the case, in place of a recipe; empty: none do.
  int64_t seed = 1;
  Poison poison = Poison::nan;
  bool self = true;  ///< Layer level: one tensor serves as query, key and value.
  WeightKind weights = WeightKind::uniform;
  bool bias_outliers = false;  ///< Layer level: K biases with a channel at -34 and others at -14.
  MaskSpec mask;
  std::vector<int64_t> slots;  ///< Sequence b takes the data of slot slots[b]; empty: of its own.
  int64_t pages = 1;           ///< Paged cache: seed of the order in which pages are given out.
  bool saturate = false;       ///< Quantised cache: scales so small that large elements are clamped.
};

/// What a step must answer.
enum class Expect : int { ok, invalid, overflow };

/// A defect put into one argument of a step that must be refused as INVALID.
struct Malformed {
  std::string argument;  ///< query, key, value, output, mask, cache.key, cache.value, cache.lengths, cache.block_table
  std::string change;    ///< dtype, rank, batch, heads, head_dim
};

enum class StepKind : int { attend, truncate, reset, fork, reorder, merge, load };

/// One step of the protocol (clauses P*). Only `attend` calls the backend; the others are the suite's own operations:
/// on the cache, or (`merge`, clause E2) on results.
struct Step {
  StepKind kind = StepKind::attend;
  std::vector<int64_t> queries;    ///< attend: query tokens per sequence.
  std::vector<int64_t> keys;       ///< attend: key tokens per sequence; with a cache, appended. load: tokens put there.
  std::vector<int64_t> lengths;    ///< truncate: new length per sequence.
  std::vector<int64_t> sequences;  ///< reset: which sequences. reorder: slot b takes what slot sequences[b] held.
  int64_t from = 0, to = 0;        ///< fork: slot `to` becomes a copy of slot `from`.
  int64_t parts = 0;               ///< merge: the results of this many attends, the last ones, become one.
  bool again = false;              ///< attend: the queries are those of the attend before.
  std::vector<int64_t> positions;  ///< attend: RoPE position of each sequence's first token; empty: its index.
  Expect expect = Expect::ok;
  std::optional<Malformed> malformed;
};

/// The memory order of a tensor's axes, e.g. "bhsd" for [B, S, H, D] stored heads-first. Letters: b batch (or page), s
/// token (or slot), h head, d channel; packed token axes have no b. Unused extents make a tensor a view into a larger
/// one, as of Q into a buffer that has Q, K and V.
struct Layout {
  std::string order;                  ///< Empty: the logical order.
  int64_t pad = 0;                    ///< Unused elements after the innermost stored axis.
  std::map<char, int64_t> pads = {};  ///< By letter: unused extent after that axis.
  bool absurd = false;                ///< Axes of extent 1 have a stride that nobody may use (clause T1).
};

struct Layouts {
  Layout query, key, value, output, cache;
};

/// What a backend that declares determinism must repeat bit for bit (clauses I1 to I4).
struct Bitwise {
  std::vector<std::string> with;  ///< Cases whose rows of the same data must have the same bits.
  int64_t runs = 1;               ///< How often the case itself is run.
  [[nodiscard]] bool wanted() const { return runs > 1 || !with.empty(); }
};

struct Case {
  std::string id;  ///< "family/name"
  std::string family;
  std::string about;
  std::string source;  ///< Where a real model's parameters are written down; empty for cases of no model.
  /// Must pass for a backend that claims all of these. Its dtype, level, alignment and LSE add some to those of the
  /// file: fp32, fp16 or bf16; layer; top_left; lse.
  std::vector<std::string> profiles;
  std::vector<std::string> clauses;  ///< Clauses of spec/attention.md that it tests.
  std::vector<std::string> kills;    ///< Bugs of cases/bugs.json that it is there to catch.
  Problem problem;
  InputSpec inputs;
  Layouts layouts;
  std::vector<Step> steps;
  int64_t checked_rows = 0;  ///< Rows (b, i) with a golden per step; 0 = all.
  std::string equals;        ///< Another case whose rows, in order, must have bit-identical goldens; or empty.
  Bitwise bitwise;
  std::vector<std::string> alongside;  ///< Cases that run at the same time, step by step, on the same open backend.
  std::filesystem::path file;
  std::string hash;  ///< SHA-256 over everything that a golden depends on.
};

/// Reads a case of a file; `place` is the file and index for errors.
Case case_from_json(const Json& json, const std::string& family, const std::string& place);
/// One line with its whole identity; `attest cases list` prints it and `--filter` matches it.
std::string identity(const Case& c);

}  // namespace attest
