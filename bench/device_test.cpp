// SPDX-License-Identifier: Apache-2.0
// Backends with memory of their own, measured end to end on a device that is none. It aborts if it is not given back
// whatever it gave.
#include <fmt/format.h>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_container_properties.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include "bench/measure_test_support.h"
#include "bench/results.h"
#include "bench/table.h"

namespace attest::bench {
namespace {

using Catch::Matchers::ContainsSubstring, Catch::Matchers::IsEmpty;

const std::string kDevice = ATTEST_DETACHED;
const std::string kDecode = R"("set": "decode", "batch": 2, )" + kSmall;

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
    for (const Series& series : stand.measured(fmt::format("{}, {}", kind, kSmall)).series) {
      INFO(kind << ": " << series.backend);
      CHECK_THAT(series.wrong, IsEmpty());
      CHECK(series.rounds.size() == 6);
    }
  }
}

TEST_CASE("A wrong device gets no number, with the reason, and those beside it do") {
  const std::vector<std::pair<std::string, std::string>> faults{
      {"output", "wrong before the timed loop: output[sequence 0, token 0, head 0] channel 0"},
      {"stale", "wrong after the timed loop: output of sequence 0 holds what is no number, or was not written"},
      {"synchronize", "a step failed: the device has fallen off the bus"},
      {"refuse", "a step failed: not today"},
      {"none_left", "allocate failed: 1 KiB for "},
      {"upload", "upload failed: the device has fallen off the bus"}};
  for (const auto& [fault, finding] : faults) {
    for (const std::string late : {"1", "2"}) {
      INFO(fault << ", late=" << late);
      Stand stand({fmt::format("{},fault={},late={}", kDevice, fault, late), kDevice});
      const Measured result = stand.measured(kDecode);
      REQUIRE(result.series.size() == 4);
      for (size_t i = 0; i < 2; ++i) {
        CHECK_THAT(result.series[i].wrong, ContainsSubstring(finding));
        CHECK(result.series[i].rounds.empty());
        CHECK_THAT(result.series[i + 2].wrong, IsEmpty());
      }
    }
  }
}

TEST_CASE("A download that fails ends a device's turn, not the run") {
  Stand stand({kDevice + ",fault=download", ATTEST_TEMPLATE});
  for (int i = 0; i < 20; ++i) {
    const Measured result = stand.measured(kDecode);
    CHECK_THAT(result.series.at(2).wrong, IsEmpty());
    if (result.series[0].wrong.empty()) continue;
    CHECK(result.series[0].wrong == "download failed: the device has fallen off the bus");
    return;
  }
  FAIL("it had no 100 downloads");
}

TEST_CASE("A device is measured beside its own ceilings, and a host nobody works on has none") {
  for (const std::string dtype : {"f32", "f16", "bf16"}) {
    Stand stand({kDevice, kDevice});
    const Measured result = stand.measured(fmt::format(R"("dtype": "{}", {})", dtype, kDecode));
    CHECK(result.ceiling.read_cold.empty());
    CHECK(result.ceiling.multiply_add.empty());
    REQUIRE(result.devices.size() == 2);
    for (const auto& [label, limit] : result.devices) {
      INFO(dtype << ", " << label << ": " << limit.wrong);
      CHECK_THAT(limit.wrong, IsEmpty());
      CHECK_THAT(limit.how, ContainsSubstring("copies of") && ContainsSubstring("products of"));
      CHECK(median(limit.ceiling.read_cold) > 0);
      CHECK(median(limit.ceiling.multiply_add) > 0);
      CHECK(limit.ceiling.read_cold.size() == result.series.at(0).rounds.size());
      CHECK(limit.ceiling.multiply_add.size() == result.series.at(0).rounds.size());
    }
    for (const Series& series : result.series) {
      CHECK_THAT(series.wrong, IsEmpty());
      const bool cold = series.temperature == Temperature::cold;
      CHECK((median(bound_of(result, series).microseconds) > 0) == cold);
    }
    const Results read = parse_results(results_json({result}, {}), "test");
    CHECK(read.list.at(0).counters.at("ceiling_is_device") == 1);
    CHECK_THAT(results_table(read), ContainsSubstring("no ceiling"));  // of the hot steps
    CHECK_THAT(read.context.at("ceilings of detached in " + dtype), ContainsSubstring("products of"));
  }
}

#if defined(ATTEST_CUDA_ON_HOST)
TEST_CASE("The CUDA backend's host side is measured beside its ceilings: a device") {
  for (const std::string& kind : std::vector<std::string>{R"("set": "decode", "dtype": "bf16", "cache": "paged")",
                                                          R"("set": "prefill", "dtype": "f16")"}) {
    Stand stand({ATTEST_CUDA_ON_HOST});
    const Measured result = stand.measured(fmt::format("{}, {}", kind, kSmall));
    INFO(kind << ": " << result.devices.at("cuda_on_host").wrong);
    CHECK(median(result.devices.at("cuda_on_host").ceiling.multiply_add) > 0);
    for (const Series& series : result.series) CHECK_THAT(series.wrong, IsEmpty());
  }
}
#endif

TEST_CASE("A ceiling that is missing, wrong or broken is none, and the reason is kept") {
  const std::vector<std::pair<std::string, std::string>> reasons{
      {ATTEST_UNLIMITED, "the library exports no attest_get_ceilings"},
      {kDevice + ",fault=copy", "the ceiling's copy leaves out byte"},
      {kDevice + ",fault=product", "the ceiling's product has"},
      {kDevice + ",fault=transposed", "the ceiling's product has"},
      {kDevice + ",fault=coarse", "the ceiling's product has"},
      {kDevice + ",fault=no_product", "the ceiling's product failed: no product here"},
      {kDevice + ",fault=tired", "the ceiling's product failed: the device has fallen off the bus"},
      {kDevice + ",memory=1700", "there is not enough memory on the device: 1 MiB for a copy"}};
  for (const auto& [backend, reason] : reasons) {
    INFO(backend);
    Stand stand({backend, ATTEST_TEMPLATE});
    const Measured result = stand.measured(kDecode);
    CHECK(median(result.ceiling.read_cold) > 0);
    REQUIRE(result.devices.size() == 1);
    CHECK_THAT(result.devices.begin()->second.wrong, ContainsSubstring(reason));
    for (const Series& series : result.series) CHECK_THAT(series.wrong, IsEmpty());
    CHECK(bound_of(result, result.series.at(0)).microseconds.empty());
    CHECK(median(bound_of(result, result.series.at(2)).microseconds) > 0);
    const Results read = parse_results(results_json({result}, {}), "test");
    CHECK_THAT(results_table(read), ContainsSubstring("no ceiling"));
  }
}

TEST_CASE("What does not fit into a device is not measured, and says so") {
  Stand stand({kDevice + ",memory=40", ATTEST_TEMPLATE});
  const Measured result = stand.measured(R"("set": "decode", "batch": 8, )" + kSmall);
  CHECK_THAT(result.series.at(0).wrong, ContainsSubstring("there is not enough memory on the device") &&
                                            ContainsSubstring("cache.") && ContainsSubstring("out of memory"));
  CHECK_THAT(result.series.at(2).wrong, IsEmpty());
}

TEST_CASE("A device that works when nobody looks at the clock gets no number") {
  Stand stand({kDevice + ",late=1,fault=lazy", kDevice + ",late=1", kDevice + ",late=1,fault=lazy_crowd"});
  stand.settings.memory = 4 << 20;
  const Measured result =
      stand.measured(R"("set": "decode", "query_heads": 4, "kv_heads": 2, "head_dim": 16, "context": 512)");
  CHECK_THAT(result.series.at(0).wrong, ContainsSubstring("its steps are not done when synchronize answers"));
  CHECK_THAT(result.series.at(2).wrong, IsEmpty());
  CHECK_THAT(result.series.at(4).wrong, ContainsSubstring("its steps are not done when synchronize answers"));
}

TEST_CASE("A device's steps are queued, and each of them is done") {
  const std::string host = ATTEST_TEMPLATE;
  Stand stand({kDevice + ",late=1", kDevice + ",late=1,fault=crowd", host});
  const Measured result = stand.measured(kDecode);
  CHECK_THAT(result.series.at(0).wrong, IsEmpty());
  CHECK(result.series.at(0).queued > 1);
  CHECK(result.series.at(1).queued == result.series.at(0).queued);
  CHECK_THAT(result.series.at(2).wrong, ContainsSubstring("wrong after the timed loop"));
  CHECK(result.series.at(4).queued == 1);
  const Results read = parse_results(results_json({result}, {}), "test");
  CHECK(read.list.at(0).counters.at("queued") == static_cast<double>(result.series.at(0).queued));
}

TEST_CASE("A last cache larger than any is bounded") {
  Stand stand({kDevice + ",fault=vast"});
  const Measured result = stand.measured(kDecode);
  CHECK_THAT(result.series.at(0).wrong, IsEmpty());
  CHECK(result.copies_wanted > result.copies);
}

TEST_CASE("A device has its memory back after each shape") {
  // Room for the workload once, and for it and the ceilings once.
  for (const std::string memory : {"40", "2600"}) {
    Stand stand({fmt::format("{},memory={}", kDevice, memory)});
    for (int i = 0; i < 3; ++i) {
      const Measured result = stand.measured(kDecode);
      INFO(memory << ", " << i);
      CHECK_THAT(result.series.at(0).wrong, IsEmpty());
      CHECK(result.devices.at("detached").wrong.empty() == (memory != "40"));
    }
  }
}

}  // namespace
}  // namespace attest::bench
