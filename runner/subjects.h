// SPDX-License-Identifier: Apache-2.0
// Cases with what they are judged by: their goldens, from the suite on disk, and all else that is the same whenever
// they are played.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "cases/inputs.h"
#include "cases/suite.h"
#include "cases/timeline.h"
#include "golden/golden.h"

namespace attest {

/// A case with what it is judged by.
struct Subject {
  const Case* c = nullptr;
  Golden golden;
  double worst_radius = 0;                         ///< The golden's.
  std::string inputs_hash;                         ///< Of the inputs that the golden was made from; empty: not checked.
  std::shared_ptr<const Inputs> inputs = nullptr;  ///< Of a case that brings its own; null: its recipe makes them.
};

/// Finds a case that another one names: those it runs alongside, those whose rows must have the same bits. Called from
/// several threads; throws Error if there is no such case. What it answers lives as long as whoever asks.
using FindSubject = std::function<const Subject&(const std::string& id)>;

/// The suite's cases with their goldens. Also of cases that are in no plan, since others may name them.
class Subjects {
 public:
  /// Throws Error if the manifest has a case that the suite has not: a suite that has lost cases would certify too
  /// easily. The suite must outlive this.
  explicit Subjects(const Suite& suite);

  [[nodiscard]] Subject load(const Case& c) const;
  /// As FindSubject.
  const Subject& find(const std::string& id);
  /// The same as a function, which this must outlive.
  [[nodiscard]] FindSubject finder() {
    return [this](const std::string& id) -> const Subject& { return find(id); };
  }

 private:
  const Suite& suite_;
  Manifest manifest_;
  std::mutex mutex_;
  std::map<std::string, Subject> named_;
};

/// A case and what it is played with. All must outlive the playing.
struct Script {
  const Case* c = nullptr;
  const Timeline* timeline = nullptr;
  const Inputs* inputs = nullptr;
  const Golden* golden = nullptr;  ///< Null: nothing is judged.
};

/// A subject with what is the same in every run of it, the subject itself excepted, which must outlive this.
struct Material {
  /// Throws Error if the inputs are not those that the golden was made from.
  explicit Material(const Subject& subject);
  explicit Material(Subject&& subject) = delete;
  [[nodiscard]] Script script() const { return {subject.c, &timeline, &inputs, &subject.golden}; }

  const Subject& subject;
  const Timeline timeline;
  const Inputs inputs;
};

/// Materials by the id of their case, made when they are first asked for. Subjects must outlive this. One thread.
class Materials {
 public:
  explicit Materials(FindSubject find) : find_(std::move(find)) {}
  const Material& operator[](const std::string& id);

 private:
  FindSubject find_;
  std::map<std::string, Material> made_;
};

}  // namespace attest
