// SPDX-License-Identifier: Apache-2.0
#include "runner/forked.h"

#include <unistd.h>

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <csignal>
#include <map>
#include <set>
#include <thread>
#include <vector>

#include "cases/error.h"

using namespace attest;

namespace {

/// Tasks of four parts, each of which says where it is, and what became of them.
struct Run {
  Run() {
    forked.received = [this](size_t task, std::string_view message) {
      heard[task] += message;
      total += message.size();
    };
    forked.lost = [this](size_t task, size_t part, const std::string& how) { lost[{task, part}] = how; };
    forked.finished = [this](size_t task) { finished.insert(task); };
  }
  void play(const std::function<void(size_t task, size_t part)>& mischief) {
    forked.work = [&](size_t task, Stage& stage) {
      for (size_t part = 0; part < 4; ++part) {
        if (!stage.enter(part)) continue;
        mischief(task, part);
        stage.send(std::to_string(part));
      }
    };
    forked.run(5, 2);
  }

  Forked forked;
  std::map<size_t, std::string> heard;
  std::map<std::pair<size_t, size_t>, std::string> lost;
  std::set<size_t> finished;
  size_t total = 0;
};

}  // namespace

TEST_CASE("forked work: all that the children say arrives, in order") {
  Run run;
  run.play([](size_t, size_t) {});
  CHECK(run.finished.size() == 5);
  for (size_t task = 0; task < 5; ++task) CHECK(run.heard[task] == "0123");
  CHECK(run.lost.empty());
}

TEST_CASE("forked work: a part that ends its process is told, and the next ones are done all the same") {
  Run run;
  run.play([](size_t task, size_t part) {
    if (task == 1 && part == 1) std::raise(SIGKILL);
    if (task == 1 && part == 2) std::_Exit(3);
    if (task == 3 && part == 0) std::_Exit(0);
  });
  CHECK(run.finished.size() == 5);
  CHECK(run.heard[1] == "03");
  CHECK(run.heard[3] == "123");
  CHECK(run.heard[4] == "0123");
  CHECK(run.lost.size() == 3);
  CHECK(run.lost.at({1, 1}) == "killed by SIGKILL");
  CHECK(run.lost.at({1, 2}) == "exited with code 3");
  CHECK(run.lost.at({3, 0}) == "exited with code 0");
}

TEST_CASE("forked work: a part that does not end is ended") {
  Run run;
  run.forked.limit = std::chrono::seconds(1);
  run.play([](size_t task, size_t part) {
    if (task == 2 && part == 2) std::this_thread::sleep_for(std::chrono::hours(1));
  });
  CHECK(run.heard[2] == "013");
  CHECK(run.lost.size() == 1);
  CHECK(run.lost.at({2, 2}).starts_with("ran for more than"));
}

TEST_CASE("forked work: what a child throws is thrown here") {
  Run run;
  CHECK_THROWS_WITH(run.play([](size_t task, size_t part) {
    if (task == 2 && part == 1) throw Error("the golden is stale");
  }),
                    Catch::Matchers::Equals("the golden is stale"));
}

TEST_CASE("forked work: a process that ends outside of any part is nobody's fault but the suite's") {
  Forked forked;
  forked.received = [](size_t, std::string_view) {};
  forked.lost = [](size_t, size_t, const std::string&) {};
  forked.work = [](size_t task, Stage&) {
    if (task == 1) std::raise(SIGKILL);
  };
  CHECK_THROWS_WITH(forked.run(3, 1), Catch::Matchers::Equals("a process of the run killed by SIGKILL"));
}

TEST_CASE("forked work: state is each child's own, and long messages pass") {
  Run run;
  int counter = 0;
  run.forked.work = [&](size_t, Stage& stage) {
    stage.enter(0);
    ++counter;
    stage.send(std::string(20000, 'x'));
  };
  run.forked.run(40, 3);
  CHECK(counter == 0);
  CHECK(run.total == 40 * 20000);
}
