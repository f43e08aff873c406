// SPDX-License-Identifier: Apache-2.0
#include "cases/catalogue.h"

#include "runner/fuzz/targets.h"

void attest::fuzz::catalogue(std::string_view bytes) {
  try {
    const Catalogue catalogue = catalogue_from_json(parse_json(bytes, "fuzz"), "fuzz");
    for (const Bug& bug : catalogue.bugs) {
      for (const std::string& name : bug.names()) want(catalogue.find(bug_of(name)) != nullptr, "a bug is found");
    }
  } catch (const Error&) {
  }
}
