// SPDX-License-Identifier: Apache-2.0
#include "cases/case.h"

#include <algorithm>

#include "cases/mask.h"
#include "cases/recipes.h"
#include "cases/sha256.h"

namespace attest {
namespace {

const std::vector<std::string> kPoisons{"nan", "huge", "inf", "zero"};
const std::vector<std::string> kWeights{"uniform", "permutation"};
const std::vector<std::string> kExpects{"ok", "invalid", "overflow"};
const std::vector<std::string> kArguments{"query",     "key",         "value",         "output",           "mask",
                                          "cache.key", "cache.value", "cache.lengths", "cache.block_table"};
const std::vector<std::string> kChanges{"dtype", "rank", "batch", "heads", "head_dim"};

constexpr int64_t kMaxRepeat = 4096;
// A slip of the keyboard in an extent must be an error, not a machine without memory.
constexpr int64_t kMaxElements = int64_t{1} << 26;
// What is kept for each sequence of each step, and for each token of any, counts too where a token has few channels.
constexpr int64_t kMaxMoments = int64_t{1} << 20, kMaxTokens = int64_t{1} << 22;

/// `elements` is a product of extents, each of which is legal; as a double it cannot overflow.
void check_size(double elements, const std::string& place, std::string_view what) {
  if (elements > static_cast<double>(kMaxElements)) {
    throw Error::at(place, "{} has {:.3g} elements, wanted at most {} (2^26)", what, elements, kMaxElements);
  }
}

void check_moments(int64_t batch, size_t steps, const std::string& place) {
  if (static_cast<double>(batch) * static_cast<double>(steps) > static_cast<double>(kMaxMoments)) {
    throw Error::at(place, "got {} steps of {} sequences, wanted at most {} (2^20) in all", steps, batch, kMaxMoments);
  }
}

void check_tokens(const std::vector<Step>& steps, const std::string& place) {
  double tokens = 0;
  for (const Step& step : steps) {
    for (const auto* counts : {&step.queries, &step.keys}) {
      for (const int64_t count : *counts) tokens += static_cast<double>(count);
    }
  }
  if (tokens > static_cast<double>(kMaxTokens)) {
    throw Error::at(place, "got {:.3g} query and key tokens, wanted at most {} (2^22)", tokens, kMaxTokens);
  }
}

double product(std::initializer_list<int64_t> extents) {
  double elements = 1;
  for (const int64_t extent : extents) elements *= static_cast<double>(extent);
  return elements;
}

/// Elements of the largest tensor of the problem whose extents grow with `tokens` a sequence.
double token_elements(const Problem& p, int64_t tokens) {
  const double heads = product({p.batch, tokens, p.query_heads, std::max(p.qk_head_dim, p.v_head_dim)});
  return p.level == Level::layer ? std::max(heads, product({p.batch, tokens, p.d_model})) : heads;
}

void check_problem_size(const Problem& p, const std::string& place) {
  check_size(token_elements(p, 1), place, "a token of each sequence");
  const int64_t dim = std::max(p.qk_head_dim, p.v_head_dim);
  if (p.level == Level::layer) check_size(product({p.query_heads, dim, p.d_model}), place, "a weight");
  if (p.cache != CacheKind::none) {
    check_size(product({p.batch, p.capacity + p.page_size, p.kv_heads, dim}), place, "the cache");
  }
}

/// A number for all sequences, or one number per sequence.
std::vector<int64_t> per_sequence(Fields& fields, std::string_view name, int64_t batch) {
  const Json& value = fields.at(name);
  auto counts = value.is_array()
                    ? json_to<std::vector<int64_t>>(value, fields.place(name))
                    : std::vector<int64_t>(static_cast<size_t>(batch), json_to<int64_t>(value, fields.place(name)));
  if (counts.size() != static_cast<size_t>(batch)) {
    throw Error::at(fields.place(name), "got {} entries, wanted {} (the batch)", counts.size(), batch);
  }
  for (const int64_t count : counts) {
    if (count < 0 || count > (int64_t{1} << 24)) throw Error::at(fields.place(name), "got {}, wanted 0 to 2^24", count);
  }
  return counts;
}

int64_t sequence_index(int64_t value, int64_t batch, const std::string& place) {
  if (value < 0 || value >= batch)
    throw Error::at(place, "got {}, wanted 0 to {} (the batch is {})", value, batch - 1, batch);
  return value;
}

MaskSpec mask_from_json(const Json& json, const std::string& place, const Problem& problem) {
  Fields fields(json, place);
  MaskSpec mask;
  mask.pattern = fields.required<std::string>("pattern");
  if (!has_mask_pattern(mask.pattern, problem.mask)) {
    throw Error::at(fields.place("pattern"), "got \"{}\", wanted one of: {}", mask.pattern,
                    mask_pattern_names(problem.mask));
  }
  const auto axes = fields.required<std::string>("axes");
  std::string known;
  for (const auto& [letter, member] :
       {std::pair{'b', &MaskSpec::batch}, {'h', &MaskSpec::heads}, {'q', &MaskSpec::queries}}) {
    mask.*member = axes.find(letter) != std::string::npos;
    if (mask.*member) known += letter;
  }
  if (axes != known)
    throw Error::at(fields.place("axes"), "got \"{}\", wanted letters of \"bhq\", in this order", axes);
  if (mask_pattern_needs_queries(mask.pattern) && !mask.queries) {
    throw Error::at(fields.place("axes"), "got \"{}\", wanted a q: the pattern \"{}\" differs from query to query",
                    axes, mask.pattern);
  }
  fields.finish();
  return mask;
}

InputSpec inputs_from_json(const Json& json, const std::string& place, const Problem& problem) {
  Fields fields(json, place);
  InputSpec spec;
  if (fields.has("given")) {
    spec.recipe = "given";
    spec.given = fields.required<std::string>("given");
    if (spec.given.size() != 64 || spec.given.find_first_not_of("0123456789abcdef") != std::string::npos) {
      throw Error::at(fields.place("given"), "got \"{}\", wanted a SHA-256: 64 digits 0-9 and a-f", spec.given);
    }
  } else {
    spec.recipe = fields.required<std::string>("recipe");
    if (!has_recipe(spec.recipe)) {
      throw Error::at(fields.place("recipe"), "got \"{}\", wanted one of: {}", spec.recipe, recipe_names());
    }
    spec.seed = fields.optional<int64_t>("seed", 1);
  }
  spec.poison = fields.choice("poison", kPoisons, Poison::nan);
  if (problem.level == Level::layer) {
    spec.weights = fields.choice("weights", kWeights, WeightKind::uniform);
    spec.self = fields.optional<bool>("self", spec.weights == WeightKind::uniform);
    spec.bias_outliers = fields.optional<bool>("bias_outliers", false);
    if (spec.bias_outliers && !problem.bias.k) {
      throw Error::at(fields.place("bias_outliers"), "got true, wanted a problem with a bias of k");
    }
    if (spec.weights == WeightKind::permutation) {
      const int64_t widest = std::max(problem.query_heads * std::max(problem.qk_head_dim, problem.v_head_dim),
                                      problem.kv_heads * std::max(problem.qk_head_dim, problem.v_head_dim));
      if (spec.self) throw Error::at(fields.place("self"), "got true, wanted false with permutation weights");
      if (problem.d_model < widest) {
        throw Error::at(fields.place("weights"), "got d_model {}, wanted at least {} for permutation weights",
                        problem.d_model, widest);
      }
    }
  }
  if (problem.mask != MaskKind::none) {
    spec.mask = mask_from_json(fields.at("mask"), fields.place("mask"), problem);
  }
  if (fields.has("slots")) {
    spec.slots = per_sequence(fields, "slots", problem.batch);
    for (const int64_t slot : spec.slots) {
      if (slot > 1000) throw Error::at(fields.place("slots"), "got {}, wanted 0 to 1000", slot);
    }
  }
  if (problem.cache == CacheKind::paged) spec.pages = fields.optional<int64_t>("pages", 1);
  if (problem.quantised()) spec.saturate = fields.optional<bool>("saturate", false);
  fields.finish();
  return spec;
}

Layout layout_from_json(const Json& json, const std::string& place, std::string_view letters) {
  Fields fields(json, place);
  Layout layout;
  layout.order = fields.optional<std::string>("order", "");
  if (!layout.order.empty() &&
      !std::is_permutation(layout.order.begin(), layout.order.end(), letters.begin(), letters.end())) {
    throw Error::at(fields.place("order"), "got \"{}\", wanted each letter of \"{}\" once", layout.order, letters);
  }
  const auto check_unused = [](int64_t unused, const std::string& at) {
    if (unused < 0 || unused > 4096) throw Error::at(at, "got {}, wanted 0 to 4096", unused);
  };
  layout.pad = fields.optional<int64_t>("pad", 0);
  check_unused(layout.pad, fields.place("pad"));
  if (fields.has("pads")) {
    for (const auto& [letter, unused] : fields.object("pads").items()) {
      const std::string at = fields.place("pads") + "." + letter;
      if (letter.size() != 1 || letters.find(letter) == std::string_view::npos) {
        throw Error::at(at, "wanted a letter of \"{}\"", letters);
      }
      check_unused(layout.pads[letter[0]] = json_to<int64_t>(unused, at), at);
    }
  }
  layout.absurd = fields.optional<bool>("absurd", false);
  fields.finish();
  return layout;
}

Layouts layouts_from_json(const Json& json, const std::string& place, const Problem& problem) {
  Fields fields(json, place);
  Layouts layouts;
  std::string_view tokens = problem.level == Level::layer ? "bsd" : "bshd";
  if (problem.packed) tokens.remove_prefix(1);
  const auto read = [&](std::string_view name, Layout& layout, std::string_view letters) {
    if (fields.has(name)) layout = layout_from_json(fields.at(name), fields.place(name), letters);
  };
  read("query", layouts.query, tokens);
  read("key", layouts.key, tokens);
  read("value", layouts.value, tokens);
  read("output", layouts.output, tokens);
  read("cache", layouts.cache, "bshd");
  fields.finish();
  return layouts;
}

Step attend_from_json(Fields& fields, const Problem& problem) {
  Step step;
  step.queries = per_sequence(fields, "attend", problem.batch);
  step.keys = fields.has("keys") ? per_sequence(fields, "keys", problem.batch) : step.queries;
  step.expect = fields.choice("expect", kExpects, Expect::ok);
  step.again = fields.optional<bool>("again", false);
  if (fields.has("positions")) {
    if (!problem.rope) throw Error::at(fields.place("positions"), "wanted a problem with RoPE");
    step.positions = per_sequence(fields, "positions", problem.batch);
    for (size_t b = 0; b < step.keys.size(); ++b) {
      if (step.keys[b] <= step.queries[b]) continue;
      throw Error::at(fields.place("positions"),
                      "wanted no more keys than queries: a query and a key share each number");
    }
  }
  if (fields.has("malform")) {
    Fields malform(fields.at("malform"), fields.place("malform"));
    step.malformed = Malformed{kArguments[malform.choice<size_t>("argument", kArguments)],
                               kChanges[malform.choice<size_t>("change", kChanges)]};
    malform.finish();
    const auto& [argument, change] = *step.malformed;
    const bool no_heads = change == "heads" && problem.level == Level::layer && !argument.starts_with("cache.");
    if (no_heads || (argument == "cache.lengths" && (change == "heads" || change == "head_dim"))) {
      throw Error::at(fields.place("malform"), "{} has no axis of {} that could be wrong", argument, change);
    }
  }
  if (step.malformed.has_value() != (step.expect == Expect::invalid)) {
    throw Error::at(fields.place(), "\"malform\" and \"expect\": \"invalid\" go together");
  }
  return step;
}

Step load_from_json(Fields& fields, const Problem& problem) {
  Step step;
  step.kind = StepKind::load;
  step.keys = per_sequence(fields, "load", problem.batch);
  const int64_t tokens = *std::max_element(step.keys.begin(), step.keys.end());
  if (tokens == 0) throw Error::at(fields.place("load"), "got no token, wanted one or more");
  if (problem.cache != CacheKind::none && problem.cache != CacheKind::contiguous) {
    throw Error::at(fields.place("load"), "got a {} cache, wanted a contiguous one",
                    problem.cache == CacheKind::paged ? "paged" : "ring");
  }
  if (problem.quantised()) throw Error::at(fields.place("load"), "wanted a cache of the problem's dtype, not of codes");
  check_size(token_elements(problem, tokens), fields.place("load"), "a tensor of the step");
  return step;
}

/// One JSON step; `repeat` makes several.
std::vector<Step> steps_from_json(const Json& json, const std::string& place, const Problem& problem) {
  Fields fields(json, place);
  Step step;
  int64_t repeat = 1;
  if (fields.has("attend")) {
    step = attend_from_json(fields, problem);
    repeat = fields.optional<int64_t>("repeat", 1);
    if (repeat < 1 || repeat > kMaxRepeat) {
      throw Error::at(fields.place("repeat"), "got {}, wanted 1 to {}", repeat, kMaxRepeat);
    }
    check_moments(problem.batch, static_cast<size_t>(repeat), fields.place("repeat"));
    // All repetitions together: the inputs of a case are in memory at once.
    const int64_t tokens = std::max(*std::max_element(step.queries.begin(), step.queries.end()),
                                    *std::max_element(step.keys.begin(), step.keys.end()));
    check_size(token_elements(problem, tokens) * static_cast<double>(repeat), place, "a tensor of the step");
  } else if (fields.has("load")) {
    step = load_from_json(fields, problem);
  } else if (fields.has("truncate")) {
    step.kind = StepKind::truncate;
    step.lengths = per_sequence(fields, "truncate", problem.batch);
  } else if (fields.has("reset")) {
    step.kind = StepKind::reset;
    step.sequences = fields.required<std::vector<int64_t>>("reset");
    for (const int64_t b : step.sequences) sequence_index(b, problem.batch, fields.place("reset"));
  } else if (fields.has("fork")) {
    step.kind = StepKind::fork;
    Fields fork(fields.at("fork"), fields.place("fork"));
    step.from = sequence_index(fork.required<int64_t>("from"), problem.batch, fork.place("from"));
    step.to = sequence_index(fork.required<int64_t>("to"), problem.batch, fork.place("to"));
    fork.finish();
  } else if (fields.has("reorder")) {
    step.kind = StepKind::reorder;
    step.sequences = per_sequence(fields, "reorder", problem.batch);
    for (const int64_t b : step.sequences) sequence_index(b, problem.batch, fields.place("reorder"));
  } else if (fields.has("merge")) {
    step.kind = StepKind::merge;
    step.parts = fields.required<int64_t>("merge");
    if (step.parts < 2 || step.parts > kMaxRepeat) {
      throw Error::at(fields.place("merge"), "got {}, wanted 2 to {}", step.parts, kMaxRepeat);
    }
  } else {
    throw Error::at(place, "wanted a step: one of attend, load, truncate, reset, fork, reorder, merge");
  }
  fields.finish();
  const bool cached = problem.cache != CacheKind::none;
  // A split of the keys is only a split if nothing depends on where a key stands.
  const bool splits = !cached && problem.lse && problem.level == Level::core && problem.causal == Causal::none &&
                      !problem.window_left && !problem.window_right && problem.alibi == Alibi::none && !problem.sinks &&
                      problem.mask == MaskKind::none && !problem.rope;
  if ((step.kind == StepKind::merge || step.again) && !splits) {
    throw Error::at(place,
                    "wanted a problem of the core level with lse and nothing that depends on a key's position, "
                    "to split its keys");
  }
  if (step.kind != StepKind::attend && step.kind != StepKind::merge && !cached) {
    throw Error::at(place, "wanted a problem with a cache for this step");
  }
  return std::vector<Step>(static_cast<size_t>(repeat), step);
}

Json to_json(const Step& step) {
  switch (step.kind) {
    case StepKind::attend: {
      Json json{{"attend", step.queries}, {"keys", step.keys}, {"expect", kExpects[static_cast<size_t>(step.expect)]}};
      if (step.malformed) json["malform"] = {step.malformed->argument, step.malformed->change};
      if (step.again) json["again"] = true;
      if (!step.positions.empty()) json["positions"] = step.positions;
      return json;
    }
    case StepKind::truncate:
      return {{"truncate", step.lengths}};
    case StepKind::reset:
      return {{"reset", step.sequences}};
    case StepKind::fork:
      return {{"fork", {step.from, step.to}}};
    case StepKind::reorder:
      return {{"reorder", step.sequences}};
    case StepKind::merge:
      return {{"merge", step.parts}};
    case StepKind::load:
      return {{"load", step.keys}};
  }
  return {};
}

/// Over all that a golden depends on, and nothing else: prose, poison and memory layouts may change freely.
std::string golden_hash(const Case& c) {
  Json steps = Json::array();
  for (const Step& step : c.steps) steps.push_back(to_json(step));
  Json inputs{{"recipe", c.inputs.recipe},
              {"seed", c.inputs.seed},
              {"self", c.inputs.self},
              {"weights", kWeights[static_cast<size_t>(c.inputs.weights)]},
              {"bias_outliers", c.inputs.bias_outliers}};
  const MaskSpec& mask = c.inputs.mask;
  if (!mask.pattern.empty()) inputs["mask"] = {mask.pattern, mask.batch, mask.heads, mask.queries};
  if (!c.inputs.slots.empty()) inputs["slots"] = c.inputs.slots;
  if (c.inputs.saturate) inputs["saturate"] = true;
  if (!c.inputs.given.empty()) inputs["given"] = c.inputs.given;
  const Json json{{"problem", to_json(c.problem)}, {"inputs", inputs}, {"steps", steps}, {"rows", c.checked_rows}};
  return sha256(json.dump());
}

void check_unique(const std::vector<std::string>& list, const std::string& place) {
  for (size_t i = 0; i < list.size(); ++i) {
    if (std::find(list.begin(), list.begin() + static_cast<std::ptrdiff_t>(i), list[i]) !=
        list.begin() + static_cast<std::ptrdiff_t>(i)) {
      throw Error::at(place, "got \"{}\" twice, wanted it once", list[i]);
    }
  }
}

/// What a problem asks for whatever else its case is about, so that a backend may have a feature in one dtype, or at
/// the core level, and decline it elsewhere.
void add_implied_profiles(const Problem& problem, std::vector<std::string>& profiles) {
  const auto add = [&](const char* profile) {
    if (std::find(profiles.begin(), profiles.end(), profile) == profiles.end()) profiles.emplace_back(profile);
  };
  add(problem.dtype == DType::f16 ? "fp16" : problem.dtype == DType::bf16 ? "bf16" : "fp32");
  if (problem.level == Level::layer) add("layer");
  if (problem.causal == Causal::top_left) add("top_left");
  if (problem.lse) add("lse");
}

Bitwise bitwise_from_json(const Json& json, const std::string& place) {
  Fields fields(json, place);
  Bitwise bitwise;
  bitwise.with = fields.optional<std::vector<std::string>>("with", {});
  bitwise.runs = fields.optional<int64_t>("runs", 1);
  if (bitwise.runs < 1 || bitwise.runs > kMaxRepeat) {
    throw Error::at(fields.place("runs"), "got {}, wanted 1 to {}", bitwise.runs, kMaxRepeat);
  }
  fields.finish();
  if (!bitwise.wanted())
    throw Error::at(place, "got 1 run and no other case, wanted \"with\", or \"runs\" of 2 or more");
  return bitwise;
}

}  // namespace

Case case_from_json(const Json& json, const std::string& family, const std::string& place) {
  Fields fields(json, place);
  Case c;
  const auto name = fields.required<std::string>("id");
  const auto legal = [](char letter) {
    return (letter >= 'a' && letter <= 'z') || (letter >= '0' && letter <= '9') || letter == '_';
  };
  if (name.empty() || !std::all_of(name.begin(), name.end(), legal)) {
    throw Error::at(fields.place("id"), "got \"{}\", wanted letters a-z, digits and _", name);
  }
  c.id = family + "/" + name;
  c.family = family;
  c.about = fields.required<std::string>("about");
  c.source = fields.optional<std::string>("source", "");
  c.profiles = fields.optional<std::vector<std::string>>("profiles", {"core"});
  c.clauses = fields.required<std::vector<std::string>>("clauses");
  c.kills = fields.required<std::vector<std::string>>("kills");
  if (c.profiles.empty()) throw Error::at(fields.place("profiles"), "got [], wanted at least one profile");
  check_unique(c.profiles, fields.place("profiles"));
  if (c.clauses.empty()) throw Error::at(fields.place("clauses"), "got [], wanted at least one clause");
  c.problem = problem_from_json(fields.at("problem"), fields.place("problem"));
  add_implied_profiles(c.problem, c.profiles);
  check_problem_size(c.problem, fields.place("problem"));
  c.inputs = inputs_from_json(fields.at("inputs"), fields.place("inputs"), c.problem);
  if (fields.has("layouts")) c.layouts = layouts_from_json(fields.at("layouts"), fields.place("layouts"), c.problem);
  const Json& steps = fields.at("steps");
  if (!steps.is_array() || steps.empty()) throw Error::at(fields.place("steps"), "wanted an array of steps");
  check_moments(c.problem.batch, steps.size(), fields.place("steps"));
  for (size_t i = 0; i < steps.size(); ++i) {
    for (Step& step : steps_from_json(steps[i], fmt::format("{}[{}]", fields.place("steps"), i), c.problem)) {
      c.steps.push_back(std::move(step));
    }
    check_moments(c.problem.batch, c.steps.size(), fields.place("steps"));
  }
  check_tokens(c.steps, fields.place("steps"));
  c.checked_rows = fields.optional<int64_t>("rows", 0);
  if (c.checked_rows < 0) throw Error::at(fields.place("rows"), "got {}, wanted 0 (all) or more", c.checked_rows);
  c.equals = fields.optional<std::string>("equals", "");
  if (fields.has("bitwise")) c.bitwise = bitwise_from_json(fields.at("bitwise"), fields.place("bitwise"));
  c.alongside = fields.optional<std::vector<std::string>>("alongside", {});
  fields.finish();
  c.hash = golden_hash(c);
  return c;
}

std::string identity(const Case& c) {
  std::string steps;
  for (size_t i = 0; i < c.steps.size();) {
    const Step& step = c.steps[i];
    if (step.kind != StepKind::attend) {
      static const std::vector<std::string> names{"attend", "truncate", "reset", "fork", "reorder", "merge", "load"};
      steps += " " + names[static_cast<size_t>(step.kind)];
      if (step.kind == StepKind::load) steps += std::to_string(*std::max_element(step.keys.begin(), step.keys.end()));
      ++i;
      continue;
    }
    size_t repeat = 1;
    while (i + repeat < c.steps.size() && c.steps[i + repeat].kind == StepKind::attend &&
           c.steps[i + repeat].queries == step.queries && c.steps[i + repeat].keys == step.keys &&
           c.steps[i + repeat].expect == step.expect && c.steps[i + repeat].again == step.again) {
      ++repeat;
    }
    const int64_t queries = *std::max_element(step.queries.begin(), step.queries.end());
    const int64_t keys = *std::max_element(step.keys.begin(), step.keys.end());
    const bool ragged = std::any_of(step.queries.begin(), step.queries.end(), [&](int64_t n) { return n != queries; });
    steps += fmt::format(" {}{}{}{}{}", ragged ? "<=" : "", queries, keys != queries ? fmt::format(":{}", keys) : "",
                         repeat > 1 ? fmt::format("x{}", repeat) : "",
                         step.expect == Expect::ok ? "" : "!" + kExpects[static_cast<size_t>(step.expect)]);
    i += repeat;
  }
  return fmt::format("{} [{} {} steps{}]", c.id, identity(c.problem), c.inputs.recipe, steps);
}

}  // namespace attest
