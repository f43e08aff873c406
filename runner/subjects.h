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

/// What is the same in every run of a case.
struct Props {
  /// Throws Error if the inputs are not those that the golden was made from.
  explicit Props(const Subject& subject);

  const Timeline timeline;
  const Inputs inputs;
};

}  // namespace attest
