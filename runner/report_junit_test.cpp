// SPDX-License-Identifier: Apache-2.0
#include "runner/report_junit.h"

#include <catch2/catch_test_macros.hpp>

#include "runner/report_test_support.h"

namespace attest {
namespace {

// Checks every count against the elements that it counts, then prints one line per test.
constexpr const char* kReader = R"py(
import sys, xml.etree.ElementTree as et
root = et.parse(sys.argv[1]).getroot()
assert root.tag == "testsuites", root.tag
kinds = {"failures": "failure", "errors": "error", "skipped": "skipped"}
for holder in [root, *root]:
    cases = list(holder.iter("testcase"))
    assert int(holder.get("tests")) == len(cases), holder.attrib
    for count, tag in kinds.items():
        assert int(holder.get(count)) == sum(case.find(tag) is not None for case in cases), (count, holder.attrib)
    assert abs(float(holder.get("time")) - sum(float(case.get("time")) for case in cases)) < 1e-3
for suite in root:
    assert suite.tag == "testsuite" and suite.find("properties/property[@name='Backend']") is not None
    for case in suite.iter("testcase"):
        assert case.get("classname") == "attest." + suite.get("name")
        verdict = next((tag for tag in kinds.values() if case.find(tag) is not None), "pass")
        message = case.find(verdict).get("message") if verdict != "pass" else ""
        print(case.get("name"), verdict, message, sep="|")
        if "--out" in sys.argv or case.get("name") == "with_cache/poison_huge":
            print(case.findtext("system-out"))
)py";

TEST_CASE("JUnit: a certified run has no failure, and what is not claimed is skipped") {
  const std::string printed = python(kReader, junit_report(test_records("records_certified")));
  CAPTURE(printed);
  CHECK(printed.find("Traceback") == std::string::npos);
  CHECK(printed.find("|failure|") == std::string::npos);
  CHECK(printed.find("|error|") == std::string::npos);
  CHECK(printed.find("rope/half|skipped|rotary position embedding is not implemented\n") != std::string::npos);
  CHECK(printed.ends_with("certificate|pass|\n"));
}

TEST_CASE("JUnit: every way to fail") {
  const Records records = test_records("records_failing");
  const std::string report = junit_report(records);
  const std::string printed = python(kReader, report);
  CAPTURE(printed);
  CHECK(printed.find("Traceback") == std::string::npos);
  CHECK(printed.find("with_cache/append_chunks_7_5_4|failure|step 2, output: differs") != std::string::npos);
  CHECK(printed.find("with_cache/poison_huge|error|step 0: during run: the worker was killed by signal 11") !=
        std::string::npos);
  CHECK(printed.find("stress/steps_hang|error|") != std::string::npos);
  CHECK(printed.find("single_head/scale_explicit|failure|only the default scale is supported") != std::string::npos);
  CHECK(printed.find("rope/half|skipped|") != std::string::npos);
  CHECK(printed.find("certificate|failure|NOT CERTIFIED  mine 1.0") != std::string::npos);
  // what the worker printed, an escape sequence and markup, came through as text
  CHECK(printed.find("it last printed: \"\\x1B[31mboom <b>&amp;</b>\"") != std::string::npos);
  CHECK(report.find('\x1B') == std::string::npos);
}

TEST_CASE("JUnit: a run that broke off is red though every case passed") {
  const std::string printed = python(kReader, junit_report(test_records("records_incomplete")));
  CAPTURE(printed);
  CHECK(printed.find("certificate|failure|NOT CERTIFIED  onednn 2.6.3 · incomplete: 4 of 132") != std::string::npos);
}

TEST_CASE("JUnit: a subset is green if its cases are") {
  Records records = test_records("records_certified");
  records.run.subset = true;
  const std::string printed = python(kReader, junit_report(records));
  CAPTURE(printed);
  CHECK(printed.find("certificate|skipped|NOT CERTIFIED  onednn 2.6.3 · certifies nothing") != std::string::npos);
  CHECK(printed.find("|failure|") == std::string::npos);
}

TEST_CASE("JUnit: no case at all") {
  const std::string printed = python(kReader, junit_report([] {
                                       Records records;
                                       records.run.backend = "mine";
                                       return records;
                                     }()));
  CAPTURE(printed);
  CHECK(printed.starts_with("certificate|failure|NOT CERTIFIED  mine"));
}

}  // namespace
}  // namespace attest
