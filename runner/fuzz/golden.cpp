// SPDX-License-Identifier: Apache-2.0
#include "golden/golden.h"

#include "golden/safetensors.h"
#include "runner/fuzz/small_case.h"
#include "runner/fuzz/targets.h"

// The hash that the manifest has of a golden is no part of this: it says that the file is the one that was made, and a
// reader must survive the others too (attest golden check, a pack of somebody else's).
void attest::fuzz::golden(std::string_view bytes) {
  const size_t line = std::min(bytes.find('\n'), bytes.size());
  const std::string_view rest = bytes.substr(std::min(line + 1, bytes.size()));
  try {
    const SafetensorsFile file(std::string(rest), "fuzz");
    size_t elements = 0;
    for (const std::string& name : file.names()) {
      for (const DType dtype : {DType::f32, DType::f64, DType::u8, DType::i32}) {
        try {
          elements += file.read<uint8_t>(name, dtype).size();
        } catch (const Error&) {  // of another dtype
        }
      }
    }
    want(elements <= rest.size() * file.names().size(), "tensors are no larger than their file");
    const Case c = case_from_json(parse_json(bytes.substr(0, line), "fuzz"), "fuzz", "fuzz");
    if (!is_small(c)) return;
    const Golden golden = decode_golden(file, "fuzz", c);
    want(golden.steps.size() == c.steps.size(), "a golden has every step");
    for (const GoldenStep& step : golden.steps) {
      for (const GoldenTensor* tensor :
           {&step.output, &step.lse, &step.cache_key, &step.cache_value, &step.key_scale, &step.value_scale}) {
        want(tensor->value.size() == tensor->allowed.size() && tensor->value.size() == tensor->mark.size(),
             "every value of a golden has its allowed error and its mark");
        for (const Mark mark : tensor->mark) want(mark <= Mark::zero, "a mark is one of three");
      }
    }
  } catch (const Error&) {
  }
}
