// SPDX-License-Identifier: Apache-2.0
// Plays the mutants backend against the suite: every bug of the catalogue and every correct variant on every case, in
// forked processes of this one (runner/forked.h), each of which plays all of them on one case after the other.
#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "cases/catalogue.h"
#include "cases/suite.h"
#include "runner/kill_matrix.h"
#include "runner/rehearsal.h"

namespace attest {

/// The options that make the backend a mutant.
std::map<std::string, std::string> options_of(const Mutant& mutant);

/// A cell from how a case went.
Cell cell_of(const Performance& performance);
/// A cell on its way from one process to another.
std::string pack(size_t mutant, const Cell& cell);
std::pair<size_t, Cell> unpack(std::string_view packet);

/// The mutants of a list, opened when they are first asked for.
class Troupe {
 public:
  /// Both must outlive this.
  Troupe(const BackendLibrary& library, const std::vector<Mutant>& mutants)
      : library_(library), mutants_(mutants), open_(mutants.size()) {}
  const Rehearsal& operator[](size_t mutant) {
    auto& one = open_[mutant];
    if (!one) one = std::make_unique<Rehearsal>(library_, options_of(mutants_[mutant]));
    return *one;
  }

 private:
  const BackendLibrary& library_;
  const std::vector<Mutant>& mutants_;
  std::vector<std::unique_ptr<Rehearsal>> open_;
};

/// About how many multiplications a plain backend does for a case, all its runs and partners included.
double cost(const Case& c, const Timeline& timeline);

struct MatrixChoice {
  std::vector<std::string> bugs, variants;  ///< Both empty: all. Else those that are named; a bug's id, all of it.
  Selection selection;
  bool fast = false;        ///< Of each bug only as many of the cases that name it as it takes to be sure.
  bool everything = false;  ///< Plays the few costly cases with every mutant too, not only with the bugs they name.
  int jobs = 1;
};

/// The mutants of a choice: bugs, areas together, then correct ones, the plain backend first. Throws Error on an id
/// that the catalogue does not have.
std::vector<Mutant> choose_mutants(const Catalogue& catalogue, const MatrixChoice& choice);
/// The correct ones of them.
std::vector<Mutant> correct_ones(const Catalogue& catalogue, const MatrixChoice& choice);

/// Plays them. `progress` is told how many cases of how many are done.
KillMatrix play_matrix(const Suite& suite, const Catalogue& catalogue, const BackendLibrary& library,
                       const MatrixChoice& choice, const std::function<void(size_t done, size_t planned)>& progress);

}  // namespace attest
