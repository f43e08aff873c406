// SPDX-License-Identifier: Apache-2.0
#include "cases/timeline.h"

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <map>

using attest::Case;
using attest::Error;
using attest::Json;
using attest::Timeline;

namespace {

Case make_with(const std::string& problem, const std::string& steps) {
  Json json = Json::parse(R"({"id": "one", "about": "", "clauses": ["A1"], "kills": [],
                              "problem": {"batch": 2, "head_dim": 8}, "inputs": {"recipe": "gaussian"}})");
  json["problem"].update(Json::parse(problem));
  json["steps"] = Json::parse(steps);
  return attest::case_from_json(json, "family", "test");
}

Case make(const std::string& steps, const std::string& causal = "bottom_right", bool cache = true) {
  Json json =
      Json::parse(R"({"id": "one", "about": "", "clauses": ["A1"], "kills": [], "problem": {"batch": 2, "head_dim": 8},
                              "inputs": {"recipe": "gaussian"}})");
  json["problem"]["causal"] = causal;
  if (cache) json["problem"].update({{"cache", "contiguous"}, {"capacity", 8}});
  json["steps"] = Json::parse(steps);
  return attest::case_from_json(json, "family", "test");
}

std::vector<int64_t> serials(const std::vector<attest::Token>& tokens) {
  std::vector<int64_t> list;
  for (const auto& token : tokens) list.push_back(token.origin * 100 + token.serial);
  return list;
}

}  // namespace

TEST_CASE("appending advances each sequence by its own tokens") {
  const Timeline timeline = play(make(R"([{"attend": [3, 1]}, {"attend": [1, 0]}])"));
  CHECK(timeline[0].after == std::vector<int64_t>{3, 1});
  CHECK(timeline[1].before == std::vector<int64_t>{3, 1});
  CHECK(timeline[1].after == std::vector<int64_t>{4, 1});
  REQUIRE(timeline[1].rows.size() == 1);
  CHECK(timeline[1].rows[0].position == 3);
  CHECK(timeline[1].rows[0].end == 4);
}

TEST_CASE("what is appended after a rollback is new content at an old position") {
  const Timeline timeline = play(make(R"([{"attend": 3}, {"truncate": [1, 3]}, {"attend": 1}])"));
  CHECK(serials(timeline[2].tokens[0]) == std::vector<int64_t>{0, 3});
  CHECK(timeline[2].tokens[0][1].position == 1);
}

TEST_CASE("fork, reorder and reset move references to tokens") {
  const Timeline timeline = play(make(
      R"([{"attend": [2, 1]}, {"fork": {"from": 0, "to": 1}}, {"attend": 1}, {"reorder": [1, 1]}, {"reset": [0]}])"));
  CHECK(serials(timeline[1].tokens[1]) == std::vector<int64_t>{0, 1});
  CHECK(serials(timeline[2].tokens[1]) == std::vector<int64_t>{0, 1, 101});
  CHECK(serials(timeline[3].tokens[0]) == std::vector<int64_t>{0, 1, 101});
  CHECK(timeline[4].after == std::vector<int64_t>{0, 3});
}

TEST_CASE("a refused step leaves everything as it was") {
  const Timeline timeline = play(make(R"([{"attend": 6}, {"attend": 3, "expect": "overflow"}, {"attend": 2}])"));
  CHECK(timeline[1].after == timeline[1].before);
  CHECK(timeline[1].rows.empty());
  CHECK(timeline[1].incoming[0].size() == 3);
  CHECK(timeline[2].after == std::vector<int64_t>{8, 8});
}

TEST_CASE("steps that cannot be are errors") {
  CHECK_THROWS_AS(play(make(R"([{"attend": 9}])")), Error);
  CHECK_THROWS_AS(play(make(R"([{"attend": 2, "expect": "overflow"}])")), Error);
  CHECK_THROWS_AS(play(make(R"([{"attend": 2}, {"truncate": [3, 0]}])")), Error);
  CHECK_THROWS_AS(play(make(R"([{"attend": 0}])")), Error);
}

TEST_CASE("a decode whose steps keep too many tokens is refused") {
  const std::string steps = R"([{"load": 8192}, {"attend": 1, "repeat": 2000}])";
  CHECK_THROWS_AS(attest::play(make_with(R"({"cache": "contiguous", "capacity": 16384})", steps)), Error);
}

TEST_CASE("visible keys: none, bottom-right and top-left, more and fewer queries than keys") {
  attest::Problem problem;
  const auto end = [&](int64_t total, int64_t queries, int64_t index) {
    return attest::visible_keys(problem, total, queries, index).end;
  };
  problem.causal = attest::Causal::none;
  CHECK(end(5, 2, 0) == 5);
  problem.causal = attest::Causal::bottom_right;
  CHECK(end(5, 2, 0) == 4);
  CHECK(end(5, 2, 1) == 5);
  CHECK(end(2, 5, 2) == 0);  // more queries than keys: the first rows see nothing
  CHECK(end(2, 5, 3) == 1);
  problem.causal = attest::Causal::top_left;
  CHECK(end(5, 2, 0) == 1);
  CHECK(end(2, 5, 4) == 2);
}

TEST_CASE("sampled rows hold the first and last row of every sequence, and as many as asked for") {
  Case c = make(R"([{"attend": [100, 50]}])", "none", false);
  c.checked_rows = 10;
  const Timeline timeline = play(c);
  const auto rows = checked_rows(c, timeline[0]);
  CHECK(rows.size() == 10);
  for (const size_t wanted : {0, 99, 100, 149}) CHECK(std::find(rows.begin(), rows.end(), wanted) != rows.end());
  CHECK(std::is_sorted(rows.begin(), rows.end()));
  c.checked_rows = 0;
  CHECK(checked_rows(c, timeline[0]).size() == 150);
}

TEST_CASE("pages: no two tokens share a slot but those of a common prefix") {
  const Case c = make_with(
      R"({"causal": "bottom_right", "cache": "paged", "capacity": 14, "page_size": 3})",
      R"([{"attend": [7, 2]}, {"fork": {"from": 0, "to": 1}}, {"attend": 1}, {"attend": [2, 0], "keys": [2, 0]},
          {"truncate": [5, 8]}, {"attend": 2}, {"reorder": [1, 1]}, {"attend": 1}, {"reset": [0]}, {"attend": 1}])");
  const Timeline timeline = play(c);
  // What every slot holds, by playing the copies and appends; a token must find itself there at every step.
  std::map<int64_t, std::pair<int64_t, int64_t>> memory;
  for (const attest::Moment& moment : timeline) {
    for (const auto& [from, to] : moment.pages.copies) {
      for (int64_t i = 0; i < 3; ++i) memory[to * 3 + i] = memory[from * 3 + i];
    }
    for (const auto& sequence : moment.incoming) {
      for (const attest::Token& token : sequence) {
        memory[slot_of(c.problem, moment, token.origin, token.position)] = {token.origin, token.serial};
      }
    }
    for (size_t b = 0; b < 2; ++b) {
      for (const attest::Token& token : moment.tokens[b]) {
        const int64_t slot = slot_of(c.problem, moment, static_cast<int64_t>(b), token.position);
        CHECK(memory[slot] == std::pair{token.origin, token.serial});
      }
    }
  }
  // After the fork both share the full pages, and the partial one until someone writes to it.
  CHECK(timeline[1].pages.table[0] == timeline[1].pages.table[1]);
  REQUIRE(timeline[2].pages.copies.size() == 1);
  CHECK(timeline[2].pages.table[0][0] == timeline[2].pages.table[1][0]);
  CHECK(timeline[2].pages.table[0][2] != timeline[2].pages.table[1][2]);
}

TEST_CASE("pages are out of order, and another seed gives another order") {
  const auto pages = [](int64_t seed) {
    Case c = make_with(R"({"cache": "paged", "capacity": 30, "page_size": 2})", R"([{"attend": 30}])");
    c.inputs.pages = seed;
    return play(c)[0].pages.table;
  };
  CHECK(pages(1) == pages(1));
  CHECK(pages(1) != pages(2));
  CHECK_FALSE(std::is_sorted(pages(1)[0].begin(), pages(1)[0].end()));
}

TEST_CASE("a ring has no overflow, and cannot be cut to what it has lost") {
  const std::string problem = R"({"causal": "bottom_right", "window": {"left": 3}, "cache": "ring", "capacity": 5})";
  const Case c = make_with(problem, R"([{"attend": 4}, {"attend": 9}, {"truncate": [12, 13]}, {"attend": 1}])");
  const Timeline timeline = play(c);
  CHECK(timeline[1].after == std::vector<int64_t>{13, 13});
  CHECK(slot_of(c.problem, timeline[1], 1, 12) == 5 + 12 % 5);
  // 13 tokens: 8 to 12 are there. Cut to 10, the next query would want 7.
  CHECK_THROWS_AS(play(make_with(problem, R"([{"attend": 13}, {"truncate": 10}])")), Error);
  CHECK_NOTHROW(play(make_with(problem, R"([{"attend": 13}, {"truncate": 11}])")));
  CHECK_NOTHROW(play(make_with(problem, R"([{"attend": 4}, {"truncate": 1}])")));
}

TEST_CASE("no query sees what a ring has overwritten") {
  const std::string ring = R"("window": {"left": 3}, "cache": "ring", "capacity": 5})";
  const std::string wrap = R"([{"attend": 9}, {"attend": 1}])";
  CHECK_NOTHROW(play(make_with(R"({"causal": "bottom_right", )" + ring, wrap)));
  CHECK_THROWS_AS(play(make_with(R"({"causal": "top_left", )" + ring, wrap)), Error);
  // The first of four queries without a new key wants the tokens 2 to 5.
  CHECK_THROWS_AS(
      play(make_with(R"({"causal": "bottom_right", )" + ring, R"([{"attend": 9}, {"attend": 4, "keys": 0}])")), Error);
  CHECK_NOTHROW(
      play(make_with(R"({"causal": "bottom_right", )" + ring, R"([{"attend": 9}, {"attend": 2, "keys": 0}])")));
}

TEST_CASE("parts of a split have the same queries, and their merge sees all keys") {
  const Case c = make_with(
      R"({"lse": true})",
      R"([{"attend": [3, 2], "keys": [5, 0]}, {"attend": [3, 2], "keys": [1, 4], "again": true}, {"merge": 2}])");
  const Timeline timeline = play(c);
  CHECK(timeline[1].query_step == 0);
  CHECK(timeline[1].rows[0].serial == timeline[0].rows[0].serial);
  const attest::Moment& merged = timeline[2];
  CHECK(merged.parts == std::vector<size_t>{0, 1});
  CHECK(merged.query_step == 0);
  REQUIRE(merged.rows.size() == 5);
  CHECK(merged.rows[0].end == 6);
  CHECK(merged.rows[4].end == 4);
  CHECK(serials(merged.tokens[0]) == std::vector<int64_t>{0, 1, 2, 3, 4, 5});
  CHECK_THROWS_AS(play(make_with(R"({"lse": true})", R"([{"attend": 3}, {"attend": 3}, {"merge": 2}])")), Error);
  CHECK_THROWS_AS(play(make_with(R"({"lse": true})", R"([{"attend": 3}, {"merge": 2}])")), Error);
  CHECK_THROWS_AS(play(make_with(R"({"lse": true})", R"([{"attend": 3}, {"attend": 2, "again": true}])")), Error);
}

TEST_CASE("RoPE positions count on from the step's number, or are the places in the sequence") {
  const Timeline timeline = play(make_with(
      R"({"causal": "bottom_right", "rope": {"style": "half", "base": 10000}, "cache": "contiguous", "capacity": 9})",
      R"([{"attend": 2}, {"attend": 2, "positions": [300, 7]}])"));
  CHECK(timeline[0].rows[1].angle == 1);
  CHECK(timeline[1].rows[0].angle == 300);
  CHECK(timeline[1].rows[3].angle == 8);
  CHECK(timeline[1].rows[3].position == 3);
  CHECK(timeline[1].incoming[1][1].angle == 8);
  CHECK(timeline[1].tokens[0][1].angle == 1);
}

TEST_CASE("a sequence in another slot has the same data") {
  Case c = make_with(R"({"batch": 3})", R"([{"attend": 2}])");
  c.inputs.slots = {4, 0, 4};
  const Timeline timeline = play(c);
  CHECK(timeline[0].rows[0].data == 4);
  CHECK(timeline[0].incoming[2][0].data == 4);
  CHECK(timeline[0].incoming[2][0].origin == 2);
}

TEST_CASE("loaded tokens lie behind those that are there, and rows follow behind them") {
  const Timeline timeline = play(make(R"([{"attend": 2}, {"load": [3, 0]}, {"attend": 1}])"));
  CHECK(timeline[1].before == std::vector<int64_t>{2, 2});
  CHECK(timeline[1].after == std::vector<int64_t>{5, 2});
  CHECK(timeline[1].rows.empty());
  CHECK(timeline[1].max_keys == 3);
  CHECK(timeline[1].incoming[0][2].position == 4);
  CHECK(serials(timeline[2].tokens[0]) == std::vector<int64_t>{0, 1, 2, 3, 4, 5});
  CHECK(timeline[2].rows[0].position == 5);
  CHECK(timeline[2].rows[0].serial == 5);  // as if the loaded tokens had had queries: a layer's input has both
  CHECK(timeline[2].rows[1].serial == 2);
  CHECK_THROWS_AS(play(make(R"([{"attend": 6}, {"load": 3}])")), Error);
}
