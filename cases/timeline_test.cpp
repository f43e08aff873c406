// SPDX-License-Identifier: Apache-2.0
#include "cases/timeline.h"

#include <algorithm>
#include <catch2/catch_test_macros.hpp>

using attest::Case;
using attest::Error;
using attest::Json;
using attest::Timeline;

namespace {

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
