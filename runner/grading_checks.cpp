// SPDX-License-Identifier: Apache-2.0
#include "runner/grading_checks.h"

#include <algorithm>

#include "runner/markup.h"

namespace attest {
namespace {

constexpr size_t kSaid = 200;  // characters of what a submission says

/// What a call did, for a sentence: "raised TypeError (...)", "returned 3".
std::string did(const Json& call) {
  if (!call.is_object()) return "gave no answer";
  if (call.value("missing", Json()) == true) return "is missing";
  if (const Json raised = call.value("raised", Json()); raised.is_string()) {
    const Json error = call.value("error", Json());
    const std::string words = error.is_string() ? error.get<std::string>() : "";
    const std::string type = raised.get<std::string>();
    // A worker's words begin with the type themselves.
    if (words.starts_with(type + ":")) return "raised " + shortened(words, kSaid);
    return fmt::format("raised {}{}{}", type, words.empty() ? "" : ": ", shortened(words, kSaid));
  }
  return "returned " +
         shortened(call.value("returned", Json()).dump(-1, ' ', false, Json::error_handler_t::replace), kSaid);
}

bool missing(const Json& call) {
  return !call.is_object() || call.value("missing", Json()) == true;
}

bool raised(const Json& call, std::string_view type) {
  return call.is_object() && call.value("raised", Json()) == type;
}

bool returned(const Json& call) {
  return call.is_object() && !missing(call) && call.value("raised", Json()).is_null();
}

/// The one call of a probe; null if there are others or none.
Json only(const Json& calls) {
  return calls.is_array() && calls.size() == 1 ? calls[0] : Json();
}

/// A field of a returned dictionary; null without one.
Json item(const Json& call, const char* key) {
  if (!returned(call)) return {};
  const Json value = call.value("returned", Json());
  if (!value.is_object() || value.value("type", Json()) != "dict") return {};
  const Json items = value.value("items", Json());
  return items.is_object() && items.contains(key) ? items[key] : Json();
}

bool has_item(const Json& call, const char* key) {
  if (!returned(call)) return false;
  const Json value = call.value("returned", Json());
  return value.is_object() && value.value("type", Json()) == "dict" && value.contains("items") &&
         value["items"].is_object() && value["items"].contains(key);
}

std::string judge_overflow(const std::vector<Json>& calls) {
  const Json full = only(calls[0]), beyond = only(calls[1]);
  if (!returned(full)) return fmt::format("a cache that gets exactly full: forward {}", did(full));
  if (!raised(beyond, "ValueError")) {
    return fmt::format("a cache that gets longer than max_cache_len: wanted ValueError, forward {}", did(beyond));
  }
  return "";
}

constexpr const char* kShapes[] = {"a query of 2 axes", "a key of 2 axes", "a value of 2 axes",
                                   "a key of another batch", "a key and a value of different lengths"};

std::string judge_validation(const std::vector<Json>& calls) {
  const Json& all = calls[0];
  if (!all.is_array() || all.size() != 1 + std::size(kShapes)) return "its answers are incomplete";
  if (!returned(all[0])) return fmt::format("good tensors: validate_inputs {}", did(all[0]));
  for (size_t i = 0; i < std::size(kShapes); ++i) {
    if (raised(all[i + 1], "ValueError")) continue;
    return fmt::format("{}: wanted ValueError, validate_inputs {}", kShapes[i], did(all[i + 1]));
  }
  return "";
}

std::string judge_reset(const std::vector<Json>& calls) {
  const Json call = only(calls[0]);
  for (const char* key : {"key", "value"}) {
    if (!has_item(call, key) || !item(call, key).is_null()) {
      return fmt::format("wanted {{'key': None, 'value': None}}, reset_cache {}", did(call));
    }
  }
  return "";
}

std::string judge_info(const std::vector<Json>& calls, int64_t capacity) {
  for (size_t i = 0; i < 3; ++i) {
    const Json call = only(calls[i]);
    const int64_t length = i == 0 ? 0 : i == 1 ? 2 : capacity;
    const std::string of = i == 0 ? "no cache" : fmt::format("a cache of {} of {} tokens", length, capacity);
    const Json got = item(call, "cache_length"), size = item(call, "cache_size_mb"), full = item(call, "is_full");
    if (!got.is_number() || got != length) {
      return fmt::format("{}: wanted cache_length {}, get_cache_info {}", of, length, did(call));
    }
    if (full != (i == 2)) {
      return fmt::format("{}: wanted is_full {}, get_cache_info {}", of, i == 2 ? "True" : "False", did(call));
    }
    if (!size.is_number() || (length > 0) != (size > 0)) {
      return fmt::format("{}: wanted a size in cache_size_mb, get_cache_info {}", of, did(call));
    }
  }
  return "";
}

/// The numbers of a returned tensor or list.
std::vector<double> numbers(const Json& call) {
  std::vector<double> list;
  if (!returned(call)) return list;
  Json value = call.value("returned", Json());
  if (!value.is_object()) return list;
  value = value.contains("values") ? value["values"] : value.value("items", Json());
  if (!value.is_array()) return list;
  for (const Json& one : value) {
    if (!one.is_number()) return {};
    list.push_back(one.get<double>());
  }
  return list;
}

std::string judge_positions(const std::vector<Json>& calls) {
  const std::vector<std::pair<std::vector<double>, const char*>> wanted{
      {{0, 1, 2, 3}, "4 tokens behind none: wanted positions 0 to 3"},
      {{3, 4, 5, 6, 7}, "5 tokens behind 3: wanted positions 3 to 7"}};
  for (size_t i = 0; i < wanted.size(); ++i) {
    const Json call = only(calls[i]);
    if (numbers(call) != wanted[i].first)
      return fmt::format("{}, compute_position_ids {}", wanted[i].second, did(call));
  }
  return "";
}

std::string judge_sample(const std::vector<Json>& calls) {
  const Json& all = calls[0];
  if (!all.is_array() || all.size() != 3) return "its answers are incomplete";
  for (const Json& call : all) {
    if (!returned(call)) return fmt::format("create_sample_input {}", did(call));
  }
  const Json first = all[0].value("returned", Json()), again = all[1].value("returned", Json()),
             other = all[2].value("returned", Json());
  if (first != again) return "the same seed gives different tensors";
  if (first == other) return "another seed gives the same tensors";
  return "";
}

Json shape(int64_t a, int64_t b, int64_t c) {
  return Json::array({a, b, c});
}

Json shapes(const Json& query, const Json& key, const Json& value) {
  return {{"query", query}, {"key", key}, {"value", value}};
}

}  // namespace

std::vector<InterfaceCheck> interface_checks(int64_t d_model, int64_t capacity) {
  const Json good = shape(2, 3, d_model), flat = Json::array({3, d_model});
  const Json invalid = Json::array({shapes(good, good, good), shapes(flat, good, good), shapes(good, flat, good),
                                    shapes(good, good, flat), shapes(good, shape(1, 3, d_model), good),
                                    shapes(good, good, shape(2, 4, d_model))});
  return {
      {"overflow",
       "A cache beyond max_cache_len raises ValueError",
       true,
       {{"overflow", {{"cached", capacity - 2}, {"tokens", 2}}},
        {"overflow", {{"cached", capacity - 2}, {"tokens", 3}}}},
       judge_overflow},
      {"validate_inputs",
       "validate_inputs raises ValueError",
       true,
       {{"validate_inputs", {{"shapes", invalid}}}},
       judge_validation},
      {"reset_cache", "reset_cache gives an empty cache", true, {{"reset_cache", Json::object()}}, judge_reset},
      {"cache_info",
       "get_cache_info knows length and fill",
       true,
       {{"cache_info", {{"cached", nullptr}}},
        {"cache_info", {{"cached", 2}}},
        {"cache_info", {{"cached", capacity}, {"use_cache", false}}}},
       [capacity](const std::vector<Json>& calls) { return judge_info(calls, capacity); }},
      {"position_ids",
       "compute_position_ids goes on behind the cache",
       true,
       {{"position_ids", {{"seq_len", 4}, {"cache_len", 0}}}, {"position_ids", {{"seq_len", 5}, {"cache_len", 3}}}},
       judge_positions},
      {"sample_input",
       "create_sample_input repeats what a seed gave",
       false,
       {{"sample_input", {{"batch_size", 2}, {"seq_len", 3}, {"d_model", d_model}, {"seeds", {7, 7, 8}}}}},
       judge_sample},
  };
}

CheckResult judge_check(const InterfaceCheck& check, const std::vector<Json>& details) {
  CheckResult result{check.name, check.about, check.counts, Status::pass, ""};
  std::vector<Json> calls;
  for (const Json& one : details) calls.push_back(one.is_object() ? one.value("calls", Json()) : Json());
  if (calls.size() != check.probes.size()) {
    result.reason = "its answers are incomplete";
  } else {
    result.reason = check.judge(calls);
  }
  if (!result.reason.empty()) result.status = Status::fail;
  return result;
}

CheckResult library_check(bool overflow) {
  if (overflow) return {"overflow", "A cache beyond its capacity is refused as OVERFLOW", true, Status::pass, ""};
  return {"invalid", "A query of the wrong rank is refused as INVALID", true, Status::pass, ""};
}

}  // namespace attest
