// SPDX-License-Identifier: Apache-2.0
#include "runner/subjects.h"

namespace attest {
namespace {

Inputs checked_inputs(const Subject& subject, const Timeline& timeline) {
  Inputs made = subject.inputs ? *subject.inputs : generate_inputs(*subject.c, timeline);
  if (made.steps.size() != timeline.size()) {
    throw Error::at(subject.c->id, "comes with inputs of {} steps, wanted {}", made.steps.size(), timeline.size());
  }
  if (subject.inputs_hash.empty()) return made;
  if (const std::string got = hash(made); got != subject.inputs_hash) {
    throw Error::at(subject.c->id,
                    "its inputs are not those that its golden was made from (hash {:.12}, the manifest says {:.12}); "
                    "run `attest golden make`",
                    got, subject.inputs_hash);
  }
  return made;
}

}  // namespace

Subjects::Subjects(const Suite& suite) : suite_(suite), manifest_(read_manifest(suite.root)) {
  for (const auto& [id, entry] : manifest_.cases) {
    if (find_case(suite, id) == nullptr) {
      throw Error::at(manifest_path(suite.root).string(), "has a golden for {}, but that case is not in the suite", id);
    }
  }
}

Subject Subjects::load(const Case& c) const {
  Golden golden = load_golden(suite_.root, manifest_, c);
  const ManifestEntry& entry = manifest_.cases.at(c.id);
  return {&c, std::move(golden), entry.worst_radius, entry.inputs_hash};
}

const Subject& Subjects::find(const std::string& id) {
  const std::lock_guard lock(mutex_);
  const auto found = named_.find(id);
  if (found != named_.end()) return found->second;
  const Case* c = find_case(suite_, id);
  if (c == nullptr) throw Error::at(id, "is named by another case, but is not in the suite");
  return named_.emplace(id, load(*c)).first->second;
}

Material::Material(const Subject& of) : subject(of), timeline(play(*of.c)), inputs(checked_inputs(of, timeline)) {}

const Material& Materials::operator[](const std::string& id) {
  const auto found = made_.find(id);
  return found != made_.end() ? found->second : made_.try_emplace(id, find_(id)).first->second;
}

}  // namespace attest
