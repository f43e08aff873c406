// SPDX-License-Identifier: Apache-2.0
#include "runner/grade_batch.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "cases/sha256.h"
#include "runner/forked.h"
#include "runner/markup.h"

namespace attest {
namespace fs = std::filesystem;
namespace {

constexpr std::string_view kSchema = "attest/grades/1";
constexpr size_t kChunk = 30000;  // of a grade on its way from a child; a message holds 32 KiB

bool is_submission(const fs::path& path) {
  const std::string ending = path.extension().string();
  return !path.filename().string().starts_with('.') && (ending == ".py" || ending == ".so");
}

/// The submission in a student's folder.
BatchSubmission in_folder(const fs::path& folder) {
  BatchSubmission one{printable(folder.filename().string()), {}, ""};
  std::error_code failed;
  std::vector<fs::path> found;
  for (const auto& entry : fs::directory_iterator(folder, failed)) {
    if (entry.path().filename() == "kv_attention.py") {
      one.file = entry.path();
      return one;
    }
    if (is_submission(entry.path())) found.push_back(entry.path());
  }
  if (failed) {
    one.problem = fmt::format("the folder cannot be read: {}", failed.message());
  } else if (found.size() == 1) {
    one.file = found.front();
  } else {
    one.problem = found.empty()
                      ? "the folder has no kv_attention.py"
                      : fmt::format("the folder has {} files that may be meant, and no kv_attention.py", found.size());
  }
  return one;
}

}  // namespace

std::vector<BatchSubmission> find_submissions(const fs::path& folder) {
  std::error_code failed;
  std::vector<BatchSubmission> list;
  for (const auto& entry : fs::directory_iterator(folder, failed)) {
    const fs::path& path = entry.path();
    if (path.filename().string().starts_with('.') || path.filename() == "__pycache__") continue;
    // A link to a folder would be followed to wherever it leads.
    if (entry.is_directory() && !entry.is_symlink()) {
      list.push_back(in_folder(path));
    } else if (is_submission(path)) {
      list.push_back({printable(path.filename().string()), path, ""});
    }
  }
  if (failed) throw Error::at(folder.string(), "cannot be read: {}", failed.message());
  if (list.empty()) throw Error::at(folder.string(), "has no submission: no .py or .so file, no folder with one");
  std::sort(list.begin(), list.end(),
            [](const BatchSubmission& a, const BatchSubmission& b) { return a.name < b.name; });
  for (size_t i = 1; i < list.size(); ++i) {
    if (list[i].name == list[i - 1].name) throw Error::at(folder.string(), "has \"{}\" twice", list[i].name);
  }
  return list;
}

BatchFolder::BatchFolder(fs::path path) : path_(std::move(path)) {
  std::error_code failed;
  const bool made = fs::create_directories(path_, failed);
  if (failed) throw Error::at(path_.string(), "cannot be made: {}", failed.message());
  // What lies here would give hidden cases away.
  if (made) fs::permissions(path_, fs::perms::owner_all, failed);
  const fs::path lock = path_ / "lock";
  lock_.reset(::open(lock.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (!lock_) throw Error::at(lock.string(), "cannot be made: {}", std::strerror(errno));
  if (::flock(lock_.get(), LOCK_EX | LOCK_NB) != 0)
    throw Error::at(path_.string(), "another attest grade is at work here");
}

Batch::Batch(const BatchFolder& folder, const std::string& terms) : path_(folder.path() / "journal.jsonl") {
  const fs::path& path = path_;
  journal_.reset(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (!journal_) throw Error::at(path.string(), "cannot be opened: {}", std::strerror(errno));
  std::string text = read_file(path);
  const size_t whole = text.rfind('\n') == std::string::npos ? 0 : text.rfind('\n') + 1;
  if (whole < text.size()) {
    text.resize(whole);
    if (::ftruncate(journal_.get(), static_cast<off_t>(whole)) != 0) {
      throw Error::at(path.string(), "cannot be cut back to its last whole line: {}", std::strerror(errno));
    }
  }
  if (::lseek(journal_.get(), 0, SEEK_END) < 0) throw Error::at(path.string(), "{}", std::strerror(errno));
  int64_t number = 0;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = text.find('\n', begin);
    const std::string_view line(text.data() + begin, end - begin);
    begin = end + 1;
    const std::string place = fmt::format("{}:{}", path.string(), ++number);
    const Json json = parse_json(line, place);
    if (number == 1) {
      Fields fields(json, place);
      const auto schema = fields.required<std::string>("schema");
      if (schema != kSchema) throw Error::at(fields.place("schema"), "got \"{}\", wanted \"{}\"", schema, kSchema);
      const auto before = fields.required<std::string>("terms");
      fields.finish();
      if (before != terms) {
        throw Error::at(place, "was graded on other terms: then {}; now {}. Give --out another folder", before, terms);
      }
      continue;
    }
    Grade grade = grade_from_json(json, place);
    const std::string name = grade.run.submission;
    grades_.insert_or_assign(name, std::move(grade));
  }
  if (number == 0) append(Json{{"schema", kSchema}, {"terms", terms}}.dump());
}

/// One line, and it is on the disk when this returns.
void Batch::append(const std::string& line) {
  const std::string text = line + "\n";
  size_t written = 0;
  while (written < text.size()) {
    const ssize_t size = ::write(journal_.get(), text.data() + written, text.size() - written);
    if (size < 0 && errno == EINTR) continue;
    if (size < 0) throw Error::at(path_.string(), "cannot be written: {}", std::strerror(errno));
    written += static_cast<size_t>(size);
  }
  if (::fdatasync(journal_.get()) != 0) {
    throw Error::at(path_.string(), "cannot be written: {}", std::strerror(errno));
  }
}

const Grade* Batch::find(const std::string& name, const std::string& sha256) const {
  const auto found = grades_.find(utf8(name));
  return found != grades_.end() && found->second.run.sha256 == sha256 ? &found->second : nullptr;
}

size_t Batch::run(const std::vector<BatchSubmission>& submissions, int jobs, std::chrono::milliseconds limit,
                  const std::function<std::string(const BatchSubmission&)>& hash,
                  const std::function<Grade(const BatchSubmission&)>& grade,
                  const std::function<void(const Told&)>& told) {
  size_t done = 0, failed = 0;
  std::vector<const BatchSubmission*> left;
  for (const BatchSubmission& one : submissions) {
    if (const Grade* known = find(one.name, hash(one)); known != nullptr) {
      told({++done, submissions.size(), &one, known, true, ""});
    } else {
      left.push_back(&one);
    }
  }
  const auto missed = [&](size_t task, const std::string& why) {
    ++failed;
    told({++done, submissions.size(), left[task], nullptr, false, why});
  };
  std::vector<std::string> arrived(left.size());
  std::vector<bool> is_told(left.size());
  Forked forked;
  forked.limit = limit;
  forked.work = [&](size_t task, Stage& stage) {
    if (!stage.enter(0)) return;
    // The first letter says what follows: a grade, or why there is none.
    std::string message;
    try {
      message = "g" + to_json(grade(*left[task])).dump();
    } catch (const std::exception& error) {
      message = std::string("e") + error.what();
    }
    for (size_t begin = 0; begin < message.size(); begin += kChunk)
      stage.send(std::string_view(message).substr(begin, kChunk));
  };
  forked.received = [&](size_t task, std::string_view message) { arrived[task] += message; };
  forked.lost = [&](size_t task, size_t, const std::string& how) {
    is_told[task] = true;
    arrived[task].clear();
    missed(task, fmt::format("the process that graded it {}", how));
  };
  forked.finished = [&](size_t task) {
    if (is_told[task]) return;
    is_told[task] = true;
    const std::string message = std::move(arrived[task]);
    arrived[task].clear();
    if (message.empty() || message.front() != 'g')
      return missed(task, message.empty() ? "no grade came" : message.substr(1));
    const std::string line = message.substr(1);
    append(line);
    Grade one = grade_from_json(parse_json(line, left[task]->name), left[task]->name);
    const std::string name = one.run.submission;
    const Grade& kept = grades_.insert_or_assign(name, std::move(one)).first->second;
    told({++done, submissions.size(), left[task], &kept, false, ""});
  };
  forked.run(left.size(), jobs);
  return failed;
}

std::string file_name(const std::string& submission) {
  std::string name;
  for (const char c : submission) {
    const bool plain =
        (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '-';
    name += plain || (c == '.' && !name.empty()) ? c : '_';
  }
  if (name.size() > 100) name.resize(100);
  return name == submission && !name.empty() ? name : fmt::format("{}-{}", name, sha256(submission).substr(0, 8));
}

}  // namespace attest
