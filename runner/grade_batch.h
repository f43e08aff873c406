// SPDX-License-Identifier: Apache-2.0
// Grades a class: many submissions in several processes, with a journal so that a run that was killed goes on where it
// was. The journal is the only truth; the table and the reports are made from it.
//
//   const BatchFolder folder("out");                       // locked for this process
//   Batch batch(folder, "pack 9f2c..., weights");          // reads its journal
//   batch.run(find_submissions("class"), 4, grade_one, told);
//   folder.write("grades.csv", grades_csv(grades));
#pragma once

#include <chrono>
#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "runner/grade.h"
#include "runner/unique_fd.h"

namespace attest {

struct BatchSubmission {
  std::string name;            ///< What it is called in every list: the file, or the student's folder.
  std::filesystem::path file;  ///< Empty: there is none, `problem` says why.
  std::string problem;
  bool ignored = false;              ///< No submission at all, `problem` says why: it is told of, and gets no grade.
  std::filesystem::path entry = {};  ///< In the folder of the class.
};

/// The submissions of a folder, by name: each file that ends in .py or .so, and each folder with a kv_attention.py, or
/// with a single .py or .so file. What cannot be one, such as a link, is there with its problem. Other files and
/// folders of grades are there as ignored, and said on stderr; hidden files are left out. A name that cannot be printed
/// as it is has a hash of itself behind it. Throws Error if there are none.
std::vector<BatchSubmission> find_submissions(const std::filesystem::path& folder);

/// A folder for grades, made if it is not there and locked. Throws Error if another process has it. What is for graders
/// (for_graders/, grades.csv) is its owner's alone, whoever may look into the folder.
class BatchFolder {
 public:
  explicit BatchFolder(std::filesystem::path path);
  ~BatchFolder();
  BatchFolder(const BatchFolder&) = delete;
  BatchFolder& operator=(const BatchFolder&) = delete;

  /// Writes a file of it that nobody else can read, not even while it is written.
  void write(const std::string& name, std::string_view bytes) const;
  [[nodiscard]] const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
  UniqueFd lock_;
};

class Batch {
 public:
  /// `terms` is all that grades depend on beside the submission. Throws Error if what the folder holds was graded on
  /// other terms, and if its journal is broken anywhere but at its end, where a killed run may have left half a line.
  /// The folder must outlive this.
  Batch(const BatchFolder& folder, const std::string& terms);

  /// Of a submission with this name and hash; null if it has not been graded.
  [[nodiscard]] const Grade* find(const std::string& name, const std::string& sha256) const;

  /// What became of a submission. `grade` is null if it could not be graded, and `problem` says why.
  struct Told {
    size_t done = 0, all = 0;
    const BatchSubmission* submission = nullptr;
    const Grade* grade = nullptr;
    bool resumed = false;  ///< By an earlier run.
    std::string problem;
  };
  /// Grades what has no grade yet, in so many processes. `grade` is called there, once for each; `hash` here. A grade
  /// is on disk before `told` hears of it. Answers how many could not be graded: the suite's failure, tried again by
  /// the next run. What is ignored, this batch's folder too, is told last and not counted there. Throws Error if the
  /// submissions lie in that folder itself.
  size_t run(const std::vector<BatchSubmission>& submissions, int jobs, std::chrono::milliseconds limit,
             const std::function<std::string(const BatchSubmission&)>& hash,
             const std::function<Grade(const BatchSubmission&)>& grade, const std::function<void(const Told&)>& told);

 private:
  void append(const std::string& line);

  std::filesystem::path path_;
  UniqueFd journal_;
  std::map<std::string, Grade> grades_;  ///< By name; the last one counts.
};

/// A name for a file: letters, digits and "._-" stay; what was changed gets a hash behind it, so that two names never
/// become one.
std::string file_name(const std::string& submission);

}  // namespace attest
