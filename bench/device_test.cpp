// SPDX-License-Identifier: Apache-2.0
// Backends with memory of their own, measured end to end on a device that is none. It aborts if it is not given back
// whatever it gave.
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include "bench/measure.h"

namespace attest::bench {
namespace {

using Catch::Matchers::ContainsSubstring;

Shape shape_of(const std::string& fields) {
  return shapes_from_json("{\"shapes\": [{" + fields + "}]}", "test").front();
}

const std::string kDevice = ATTEST_DETACHED;
const std::string kSmall = R"("query_heads": 4, "kv_heads": 2, "head_dim": 16, "context": 40)";
const std::string kDecode = R"("set": "decode", "batch": 2, )" + kSmall;

/// Backends that stay open from one shape to the next.
struct Stand {
  explicit Stand(const std::vector<std::string>& given) : backends(open_all(given, cores)), team(cores) {
    settings.seconds = 0.01;
    settings.rounds = 6;
    settings.memory = 1 << 20;
  }
  ~Stand() { cores.release(0); }
  Measured measured(const std::string& fields) {
    return measure(shape_of(fields), backends, cores, team, settings, [](const auto&...) {});
  }
  Cores cores;
  std::vector<std::unique_ptr<Participant>> backends;
  Team team;
  Settings settings;
};

TEST_CASE("A right device gets a number in every kind of shape, beside a host backend") {
  for (const std::string& kind : std::vector<std::string>{
           R"("set": "decode")", R"("set": "decode", "dtype": "f16", "batch": 3, "lengths": "skewed")",
           R"("set": "decode", "dtype": "bf16", "cache": "paged", "batch": 2)",
           R"("set": "decode", "kv": "int8", "dtype": "f16")", R"("set": "prefill")",
           R"("set": "prefill", "chunk": 8, "batch": 2)",
           R"("set": "mixed", "batch": 3, "cache": "paged", "lengths": "skewed", "chunk": 7)",
           R"("set": "decode", "batch": 2, "order": "heads")",
           R"("set": "decode", "batch": 2, "cache": "paged", "order": "heads")",
           R"("set": "layer", "batch": 2, "d_model": 48)"}) {
    Stand stand({kDevice, kDevice + ",late=1", ATTEST_TEMPLATE});
    for (const Series& series : stand.measured(kind + ", " + kSmall).series) {
      INFO(kind << ": " << series.backend);
      CHECK(series.wrong == "");
      CHECK(series.rounds.size() == 6);
    }
  }
}

TEST_CASE("A wrong device gets no number, with the reason, and those beside it do") {
  const std::vector<std::pair<std::string, std::string>> faults{
      {"output", "wrong before the timed loop: output[sequence 0, token 0, head 0] channel 0"},
      {"stale", "wrong after the timed loop: output of sequence 0 holds what is no number, or was not written"},
      {"synchronize", "a step failed: the device has fallen off the bus"},
      {"upload", "upload failed: the device has fallen off the bus"}};
  for (const auto& [fault, finding] : faults) {
    for (const std::string late : {"1", "2"}) {
      INFO(fault << ", late=" << late);
      Stand stand({kDevice + ",fault=" + fault + ",late=" + late, kDevice});
      const Measured result = stand.measured(kDecode);
      REQUIRE(result.series.size() == 4);
      for (size_t i = 0; i < 2; ++i) {
        CHECK_THAT(result.series[i].wrong, ContainsSubstring(finding));
        CHECK(result.series[i].rounds.empty());
        CHECK(result.series[i + 2].wrong == "");
      }
    }
  }
}

TEST_CASE("A download that fails ends a device's turn, not the run") {
  Stand stand({kDevice + ",fault=download", ATTEST_TEMPLATE});
  for (int i = 0; i < 20; ++i) {
    const Measured result = stand.measured(kDecode);
    CHECK(result.series.at(2).wrong == "");
    if (result.series[0].wrong.empty()) continue;
    CHECK(result.series[0].wrong == "download failed: the device has fallen off the bus");
    CHECK(i > 0);
    return;
  }
  FAIL("it had no 100 downloads");
}

TEST_CASE("What does not fit into a device is not measured, and says so") {
  Stand stand({kDevice + ",memory=40", ATTEST_TEMPLATE});
  const Measured result = stand.measured(R"("set": "decode", "batch": 8, )" + kSmall);
  CHECK_THAT(result.series.at(0).wrong, ContainsSubstring("there is not enough memory on the device") &&
                                            ContainsSubstring("cache.") && ContainsSubstring("out of memory"));
  CHECK(result.series.at(2).wrong == "");
}

TEST_CASE("A device has its memory back after each shape") {
  Stand stand({kDevice + ",memory=1600"});  // one shape's copies are about 1 MiB
  for (int i = 0; i < 3; ++i) CHECK(stand.measured(kDecode).series.at(0).wrong == "");
}

}  // namespace
}  // namespace attest::bench
