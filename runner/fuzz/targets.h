// SPDX-License-Identifier: Apache-2.0
// The fuzz targets: each feeds bytes that nobody vouches for to the parsers that meet such bytes. A parser may refuse
// them with an Error (or a Failure); anything else that comes out, and any sanitizer's complaint, is a bug.
#pragma once

#include <string_view>

namespace attest::fuzz {

void golden(std::string_view bytes);     ///< A case as JSON, a line feed, a safetensors file: its golden.
void frames(std::string_view bytes);     ///< What comes through a control socket.
void requests(std::string_view bytes);   ///< Requests to a worker, one a line; the library that it opens is ours.
void replies(std::string_view bytes);    ///< A reply to a request, as the parent reads it.
void cases(std::string_view bytes);      ///< A case as JSON: read, played, and its inputs made.
void catalogue(std::string_view bytes);  ///< bugs.json.
void records(std::string_view bytes);    ///< The records of a run, JSON lines.
void grades(std::string_view bytes);     ///< A grade, or a person's points.
void challenge(std::string_view bytes);  ///< The challenge's case files.
void pack(std::string_view bytes);       ///< The cases of pack.json, a line feed, the file of the first.

struct Target {
  std::string_view name;
  void (*run)(std::string_view);
};
inline constexpr Target kTargets[] = {
    {"golden", golden},       {"frames", frames},   {"requests", requests}, {"replies", replies},     {"cases", cases},
    {"catalogue", catalogue}, {"records", records}, {"grades", grades},     {"challenge", challenge}, {"pack", pack}};

/// A property that must hold whatever the bytes were.
void want(bool holds, const char* what);

}  // namespace attest::fuzz
