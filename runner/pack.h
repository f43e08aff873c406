// SPDX-License-Identifier: Apache-2.0
// A pack: the cases by which submissions to the challenge are graded, with their inputs and goldens. Made from a secret
// that only graders know, in seconds; or read from the organisers' files, whose placeholders it fills.
//
//   const Pack pack = make_pack(read_secret("secret.bin"), "cases/challenge/test_cases.json");
//   write_pack(pack, "pack");            // pack/pack.json, pack/data/*.safetensors, pack/challenge/*.json
//   for (const PackCase& one : read_pack("pack").cases) executor.run(subject_of(one), ...);
//
// Equal secrets give equal packs on every machine. Who has a pack or its secret has the answers.
#pragma once

#include <cstddef>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "cases/case.h"
#include "cases/inputs.h"
#include "golden/golden.h"
#include "runner/subjects.h"

namespace attest {

/// One part of a case of the challenge. A case with a cache has several, and earns the share of those that pass.
struct PackCase {
  int number = 0;        ///< The challenge's: 1 to 10 if hidden.
  std::string name;      ///< For graders.
  std::string category;  ///< All that a student may see of a hidden case.
  double weight = 0;     ///< Of the whole case, in the organisers' file; every part of a case has the same.
  bool hidden = true;
  std::string part;  ///< "whole", "own cache" (steps that continue each other) or "canonical cache" (right ones).
  std::shared_ptr<const Case> c;
  std::shared_ptr<const Inputs> inputs;
  Golden golden;
  double worst_radius = 0;  ///< The golden's.
};

struct Pack {
  std::string id;  ///< First 16 hex digits of a hash over all cases, inputs and goldens.
  std::vector<PackCase> cases;
  std::vector<std::string> warnings;  ///< What was odd in the files that it was filled from.
};

/// The id that belongs to a pack's cases.
std::string pack_id(const Pack& pack);

/// The bytes of a secret's file; throws Error if there are fewer than 16 or they are all the same.
std::vector<std::byte> read_secret(const std::filesystem::path& file);

/// Ten fresh hidden cases, and the visible one of a file; an empty path: no visible case. Throws Error if a case would
/// not notice one of the bugs that it is there for.
Pack make_pack(std::span<const std::byte> secret, const std::filesystem::path& visible, int jobs = 1);

/// The cases of the organisers' files, their placeholders filled from the secret. Either path may be empty.
Pack fill_challenge(const std::filesystem::path& visible, const std::filesystem::path& hidden,
                    std::span<const std::byte> secret, int jobs = 1);

/// Writes into a new or empty folder. Its challenge/ holds the cases once more, in the organisers' format.
void write_pack(const Pack& pack, const std::filesystem::path& dir);
/// Reads and checks every hash; throws Error on anything that is missing, changed or too much.
Pack read_pack(const std::filesystem::path& dir);

/// What an Executor is given; it refers to the pack's case, so the pack must outlive it.
Subject subject_of(const PackCase& one);

}  // namespace attest
