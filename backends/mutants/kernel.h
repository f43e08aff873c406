// SPDX-License-Identifier: Apache-2.0
// A model attention kernel: built like real ones, so that every known bug has its natural place in it, and correct as
// long as none is put there.
//
// A step goes through these stages, each a file:
//
//     arguments  check, and where each sequence stands         kernel.cpp
//     project    one merged QKV weight, heads split            project.cpp
//     rotate     QK-norm, RoPE                                  rotate.cpp
//     store      quantise, append to the cache                  store.cpp
//     address    block tables, rings, strides; read K and V     address.cpp
//     rows       tiles of one head's queries in a prefill, one group's heads in a decode   rows.cpp
//     attend     splits of tiles of keys; logits; online softmax   attend.cpp, logits.cpp, softmax.cpp
//     merge      the splits' partial results by their LSE      merge.cpp
//     output     output projection                              project.cpp
//
// Wherever a stage decides something it asks a hook (struct Hooks). The functions in namespace stage are the correct
// answers; a bug replaces one or wraps it (bugs/bugs.h). Each plan has hooks of its own, so a bug may keep state there.
#pragma once

#include <attest/backend.hpp>
#include <cstdint>
#include <functional>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include "numerics.h"

namespace mutants {

using namespace attest::abi;

constexpr float minus_infinity = -std::numeric_limits<float>::infinity();
constexpr float lowest = std::numeric_limits<float>::lowest();
/// What scratch memory holds before it is written.
constexpr float poison = std::numeric_limits<float>::quiet_NaN();

/// As memory of this format would hold it.
inline float round_to(Storage storage, float x) {
  float element = 0;
  store(storage, x, &element);
  return load(storage, &element);
}

enum class Role : std::uint8_t { query, key, value };

/// Some numbers for each head of each token. Token t of sequence b has the number start[b] + t, padded or packed.
struct Heads {
  Heads(std::int64_t tokens_, std::int64_t heads_, std::int64_t width_)
      : tokens(tokens_),
        heads(heads_),
        width(width_),
        memory(static_cast<std::size_t>(tokens * heads * width), poison) {}
  float* at(std::int64_t token, std::int64_t head) { return memory.data() + (token * heads + head) * width; }
  [[nodiscard]] const float* at(std::int64_t token, std::int64_t head) const {
    return memory.data() + (token * heads + head) * width;
  }
  std::int64_t tokens, heads, width;
  std::vector<float> memory;
};

/// y = W x + bias.
struct Linear {
  std::int64_t rows = 0, columns = 0;
  std::vector<float> weight, bias;
  /// Puts the rows of another weight below.
  void append(const DLTensor& more, const DLTensor* more_bias);
};

/// The elements of one row of a weight: first, first + step, …
struct WeightRow {
  std::int64_t first, step;
};

/// The channels of a head in memory, `step` bytes apart.
struct Channels {
  const char* first;
  std::int64_t step;
};

/// One sequence as the attention sees it.
struct Sequence {
  std::int64_t b;
  std::int64_t queries;
  std::int64_t total;           ///< Keys.
  std::int64_t first_position;  ///< Of query 0 (clause M2).
  bool decode;                  ///< Which of the two paths its rows take.
  float scale;
};

/// One query of one head on its way through the keys of a split.
struct Row {
  Row(std::int64_t i_, std::int64_t head_, std::vector<float> query_, KeyRange keys_, std::size_t width, Summing how)
      : i(i_), head(head_), query(std::move(query_)), keys(keys_), sum(1, how), output(width, how) {}
  std::int64_t i, head;
  std::vector<float> query;
  KeyRange keys;  ///< Visible by position.
  float maximum = minus_infinity;
  Sums sum, output;
};

/// Keys or values: those of the step on their way to the cache, and those in it. Each is a code times a scale; where
/// nothing is quantised, the code is the value itself.
struct Side {
  Heads staged;
  std::vector<float> staged_scales;  ///< Of each head of each token; empty where nothing is quantised.
  std::optional<NumberView<4>> cache;
  View<float, 3> scales;
  Storage storage;
};

/// The results of all splits for some rows, in scratch memory: a normalised output and its LSE each.
struct Partials {
  Partials(std::int64_t splits, std::int64_t rows, std::int64_t width);
  [[nodiscard]] float* output(std::int64_t split, std::int64_t row, std::int64_t stride) {
    return memory.data() + (split == 0 ? 0 : rows * width + (split - 1) * rows * padded) + row * stride;
  }
  [[nodiscard]] float& lse(std::int64_t split, std::int64_t row) {
    return lses[static_cast<std::size_t>(split * rows + row)];
  }
  /// Of the rows of a split. Split 0 lies where the only split would, without gaps; the others are padded to vectors.
  [[nodiscard]] std::int64_t stride(std::int64_t split) const { return split == 0 ? width : padded; }
  std::int64_t splits, rows, width, padded;
  std::vector<float> memory, lses;
};

struct Kernel;
struct Hooks;

/// One step under way.
struct Call {
  Call(const Kernel& kernel_, const attest_step& step_, Extents extents);
  [[nodiscard]] Side& side(Role role) { return role == Role::key ? keys : values; }
  [[nodiscard]] const Side& side(Role role) const { return role == Role::key ? keys : values; }
  /// Number of a sequence's token on the query or key axis.
  [[nodiscard]] std::int64_t query_token(std::int64_t b, std::int64_t i) const { return e.query_start[b] + i; }
  [[nodiscard]] std::int64_t key_token(std::int64_t b, std::int64_t n) const { return e.key_start[b] + n; }
  /// Pages of a block table's entry, whatever it holds.
  [[nodiscard]] std::int64_t page(std::int64_t b, std::int64_t column) const;

  const Kernel& kernel;
  const attest_problem& p;
  const Hooks& hooks;
  const Numerics& numerics;
  const attest_step& step;
  const Extents e;                           ///< As the arguments say.
  Counts past;                               ///< Tokens in the cache, as the kernel takes them.
  std::vector<RopeFrequencies> frequencies;  ///< Of each sequence.
  std::optional<Positions> positions;
  Heads query;
  Side keys, values;
  View<const std::int32_t, 2> table;
  Heads output, lse;
  std::vector<char> written;  ///< Of output and lse, each head of each token.
};

/// The correct answers.
namespace stage {

Extents check(const attest_problem& p, attest_step& step);
Sequence sequence(const Call& c, std::int64_t b);

Channels input(const Call& c, Role role, const Tokens& tokens, std::int64_t b, std::int64_t t, std::int64_t h);
std::int64_t first_row(const Kernel& k, Role role);
WeightRow weight_row(std::int64_t rows, std::int64_t columns, std::int64_t row);
std::int64_t bias_row(std::int64_t row, std::int64_t rows, std::int64_t width);
std::int64_t split_head(const Call& c, Role role, std::int64_t tokens, std::int64_t t, std::int64_t h);
float* projected(float* input, float* output);

RopeFrequencies frequencies(const attest_problem& p, std::int64_t length);
std::pair<std::int64_t, std::int64_t> rope_pair(const attest_problem& p, std::int64_t pair);
double rope_angle(const Numerics& n, std::int64_t position, double frequency);
std::int64_t rope_position(const Call& c, Role role, std::int64_t b, std::int64_t t);
bool normalises(const Call& c, std::int64_t b);
float norm_root(float mean, double epsilon);
void normalise(const Call& c, Role role, std::int64_t b, float* head);
void turn(const Call& c, std::int64_t b, std::int64_t position, float* head);
void transform(const Call& c, Role role, std::int64_t b, std::int64_t t, float* head);

float token_scale(const Call& c, const Heads& x, Storage storage, std::int64_t token, std::int64_t head);
bool append_first(const Call& c);
std::int64_t append_position(const Call& c, std::int64_t b, std::int64_t n);

Slot slot(const Call& c, std::int64_t b, std::int64_t t);
std::int64_t element(const Call& c, const NumberView<4>& cache, Slot slot, std::int64_t head, bool writing);
std::int64_t scale_element(const View<float, 3>& scales, Slot slot, std::int64_t head);
bool fresh(const Call& c, std::int64_t b, std::int64_t j);
void fetch(const Call& c, const Sequence& s, std::int64_t j, Role role, std::int64_t head, float* to);

double scale(const attest_problem& p, bool decode);
std::int64_t kv_head(const attest_problem& p, std::int64_t h, bool decode);
const float* decode_query(const Call& c, const Sequence& s, std::int64_t h);
std::int64_t causal_end(const Call& c, const Sequence& s, std::int64_t i);
std::int64_t window_begin(const Call& c, const Sequence& s, std::int64_t i);
std::int64_t window_end(const Call& c, const Sequence& s, std::int64_t i);
bool sees(const Call& c, KeyRange keys, std::int64_t j);
KeyRange walked(const Call& c, const Sequence& s, const std::vector<Row>& rows);
float mask(const Call& c, const Sequence& s, std::int64_t h, std::int64_t i, std::int64_t j);

bool loads(const Call& c, const Sequence& s, KeyRange walked, Role role, std::int64_t j);
float dot(const Call& c, const float* query, const float* key);
float cap(const Call& c, float logit);
float unscaled(const Call& c, const Sequence& s, float dot);
float scaled(const Call& c, const Sequence& s, float dot);
float uncapped(const Call& c, const Sequence& s, float dot);
float soften(const Call& c, const Sequence& s, float dot);
float in_units(const Call& c, float logit);
std::int64_t distance(const Call& c, const Sequence& s, std::int64_t i, std::int64_t j);
float maximum(const Call& c, float before, float of_tile);
float reference(float maximum);
void rescale(Row& row, float factor);
float weight_of_value(const Call& c, float weight);
void weigh(const Call& c, Row& row, float weight, const float* value);
void update(const Call& c, std::vector<Row>& rows, const float* logits, const float* values, std::int64_t n);
std::int64_t sink_head(const Call& c, const Sequence& s, const Row& row);
void start(const Call& c, const Sequence& s, Row& row, std::int64_t split);
void finish(const Call& c, const Sequence& s, Row& row, std::int64_t split);
float partial_lse(const Call& c, float maximum, float sum);

}  // namespace stage

/// Every decision of a step.
struct Hooks {
  // Arguments, lengths.
  std::function<void(attest_problem&)> problem = [](attest_problem&) {};
  std::function<Extents(const attest_problem&, attest_step&)> check = stage::check;
  std::function<void(Call&)> lengths = [](Call&) {};  ///< Corrects Call::past.
  std::function<Sequence(const Call&, std::int64_t)> sequence = stage::sequence;
  std::function<void(const Call&)> finished = [](const Call&) {};  ///< At the end of a step.

  // Projection.
  std::function<Channels(const Call&, Role, const Tokens&, std::int64_t, std::int64_t, std::int64_t)> input =
      stage::input;                                                               ///< Of head h of token t.
  std::function<std::int64_t(const Kernel&, Role)> first_row = stage::first_row;  ///< In the merged weight.
  std::function<WeightRow(std::int64_t, std::int64_t, std::int64_t)> weight_row = stage::weight_row;
  std::function<std::int64_t(std::int64_t, std::int64_t, std::int64_t)> bias_row =
      stage::bias_row;  ///< Row, all rows, width of a head.
  std::function<std::int64_t(const Call&, Role, std::int64_t, std::int64_t, std::int64_t)> split_head =
      stage::split_head;                                               ///< Place of (t, h) among all vectors.
  std::function<float*(float*, float*)> projected = stage::projected;  ///< Where the output projection writes.

  // Norm and RoPE.
  std::function<float(float, double)> norm_root = stage::norm_root;  ///< Of the mean of squares, and epsilon.
  std::function<bool(const Call&, std::int64_t)> normalises = stage::normalises;
  std::function<void(const Call&, Role, std::int64_t, std::int64_t, float*)> transform = stage::transform;
  std::function<RopeFrequencies(const attest_problem&, std::int64_t)> frequencies = stage::frequencies;
  std::function<std::pair<std::int64_t, std::int64_t>(const attest_problem&, std::int64_t)> rope_pair =
      stage::rope_pair;
  std::function<double(const Numerics&, std::int64_t, double)> rope_angle = stage::rope_angle;
  std::function<std::int64_t(const Call&, Role, std::int64_t, std::int64_t)> rope_position = stage::rope_position;

  // Quantised codes.
  std::function<float(const Call&, const Heads&, Storage, std::int64_t, std::int64_t)> token_scale = stage::token_scale;
  std::function<float(float)> used_scale = [](float x) { return x; };  ///< Before it divides or multiplies.
  std::function<float(Role, bool, float, float)> dequantise = [](Role, bool, float code, float x) {
    return code * x;
  };  ///< Of a token of the step or of the cache.

  // The cache.
  std::function<bool(const Call&)> append_first = stage::append_first;  ///< Or after the attention.
  std::function<std::int64_t(const Call&, std::int64_t, std::int64_t)> append_position = stage::append_position;
  std::function<std::pair<std::int64_t, std::int64_t>(const Call&, std::int64_t, std::int64_t, std::int64_t)>
      append_place = [](const Call&, std::int64_t, std::int64_t t, std::int64_t h) { return std::pair(t, h); };
  std::function<Slot(const Call&, std::int64_t, std::int64_t)> write_slot = stage::slot, read_slot = stage::slot;
  std::function<std::int64_t(const Call&, const NumberView<4>&, Slot, std::int64_t, bool)> element = stage::element;
  std::function<std::int64_t(const View<float, 3>&, Slot, std::int64_t)> scale_element = stage::scale_element;
  std::function<bool(const Call&, std::int64_t, std::int64_t)> fresh = stage::fresh;  ///< Staged, not in the cache.
  std::function<void(const Call&, const Sequence&, std::int64_t, Role, std::int64_t, float*)> fetch = stage::fetch;

  // Rows, and what they see.
  std::function<double(const attest_problem&, bool)> scale = stage::scale;
  std::function<std::int64_t(const attest_problem&, std::int64_t, bool)> kv_head = stage::kv_head;
  std::function<const float*(const Call&, const Sequence&, std::int64_t)> decode_query = stage::decode_query;
  std::function<std::int64_t(const Call&, const Sequence&, std::int64_t)> causal_end = stage::causal_end,
                                                                          window_begin = stage::window_begin,
                                                                          window_end = stage::window_end;
  std::function<bool(const Call&, KeyRange, std::int64_t)> sees = stage::sees;  ///< By position.
  std::function<KeyRange(const Call&, const Sequence&, const std::vector<Row>&)> walked = stage::walked;
  std::function<float(const Call&, const Sequence&, std::int64_t, std::int64_t, std::int64_t)> mask = stage::mask;
  std::function<float(const Call&, bool, float)> masked = [](const Call&, bool, float) {
    return minus_infinity;
  };  ///< By position, or by this mask value; in the softmax's units.
  /// Whether a logit that is masked, by position or by a mask's -inf, is replaced; else the -inf is added to it.
  std::function<bool(bool)> replaces = [](bool) { return true; };

  // Tiles of keys.
  std::function<std::int64_t(const Numerics&, std::int64_t)> split_of = [](const Numerics& n, std::int64_t tile) {
    return n.split_of(tile);
  };
  std::function<bool(const Call&, const Sequence&, KeyRange, Role, std::int64_t)> loads = stage::loads;
  std::function<bool(const Call&, std::int64_t, std::int64_t)> arrives = [](const Call&, std::int64_t, std::int64_t) {
    return true;
  };                                                            ///< Slot of the split's n-th tile.
  std::function<float()> tail = [] { return minus_infinity; };  ///< Logit from the last key to the tile's end.
  std::function<float(const Call&, const float*, const float*)> dot = stage::dot;
  std::function<float(const Call&, float)> cap = stage::cap;
  std::function<float(const Call&, const Sequence&, float)> soften = stage::soften;  ///< Scale, then cap.
  std::function<std::vector<float>(const attest_problem&)> slopes = alibi_slopes;
  std::function<std::int64_t(const Call&, const Sequence&, std::int64_t, std::int64_t)> distance = stage::distance;

  // Online softmax.
  std::function<void(const Call&, const Sequence&, Row&, std::int64_t)> start = stage::start, finish = stage::finish;
  std::function<std::int64_t(const Call&, const Sequence&, const Row&)> sink_head = stage::sink_head;
  std::function<float(const Call&, float, float)> maximum = stage::maximum;
  std::function<float(float)> reference = stage::reference;  ///< What is subtracted for a maximum.
  std::function<void(Row&, float)> rescale = stage::rescale;
  std::function<void(Row&, float)> add_weight = [](Row& row, float x) { row.sum.add(x); };
  std::function<float(float)> kept_weight = [](float x) { return x; };  ///< Of a weight that multiplies V.
  std::function<void(const Call&, Row&, float, const float*)> weigh = stage::weigh;
  std::function<void(const Call&, std::vector<Row>&, const float*, const float*, std::int64_t)> update = stage::update;

  // Merge.
  std::function<float(const Call&, float, float)> partial_lse = stage::partial_lse;
  std::function<std::vector<std::int64_t>(const std::vector<std::int64_t>&, std::int64_t)> merged_splits =
      [](const std::vector<std::int64_t>& computed, std::int64_t) { return computed; };
  std::function<std::int64_t(const Partials&, std::int64_t)> merge_stride =
      [](const Partials& partials, std::int64_t split) { return partials.stride(split); };
  std::function<float(float, std::size_t)> merge_reference =  ///< Also of how many splits.
      [](float largest, std::size_t) { return stage::reference(largest); };
  std::function<float()> empty_lse = [] { return minus_infinity; };
  std::function<bool(bool)> writes = [](bool) { return true; };  ///< The row, which may be empty.
};

/// A prepared problem.
struct Kernel {
  Kernel(const attest_problem& problem, const Numerics& numerics_, Hooks hooks_);
  void run(attest_step step) const;

  attest_problem p;
  Numerics numerics;
  Hooks hooks;
  Linear qkv, out;
  std::vector<float> q_norm, k_norm, sinks, slopes;
  float prefill_scale, decode_scale;
};

// The stages.
void stage_tokens(Call& c);
void append(const Call& c);
void attend(Call& c);
void attend_rows(Call& c, const Sequence& s, std::int64_t kv_head, std::vector<Row>& rows);
void merge(Call& c, const Sequence& s, const std::vector<Row>& rows, Partials& partials,
           const std::vector<std::int64_t>& computed);
void give(Call& c);
/// What a query sees by position (clauses M1 to M5).
KeyRange visible(const Call& c, const Sequence& s, std::int64_t i);
/// One logit, or what stands for it where it is masked.
float logit(const Call& c, const Sequence& s, const Row& row, const float* key, std::int64_t j);
/// Takes the maxima of a tile, in the first of two passes.
void find_maxima(const Call& c, std::vector<Row>& rows, const float* logits);
/// Puts one head of a side's staged token into codes (and its scale) as the cache stores them.
void quantise(Call& c, Role role);

}  // namespace mutants
