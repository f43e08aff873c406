// SPDX-License-Identifier: Apache-2.0
#include "runner/grade_batch.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <set>

#include "cases/sha256.h"
#include "runner/forked.h"
#include "runner/markup.h"

namespace attest {
namespace fs = std::filesystem;
namespace {

constexpr std::string_view kSchema = "attest/grades/1";
constexpr const char* kJournal = "journal.jsonl";
constexpr const char* kTable = "grades.csv";
constexpr const char* kForGraders = "for_graders";
constexpr const char* kHoldsGrades = "ignored, it is a folder of grades";
constexpr size_t kChunk = 30000;  // of a grade on its way from a child; a message holds 32 KiB

bool is_submission(const fs::path& path) {
  const std::string ending = path.extension().string();
  return !path.filename().string().starts_with('.') && (ending == ".py" || ending == ".so");
}

/// Calls `look` for each entry of a folder; answers what went wrong.
std::error_code each_entry(const fs::path& folder, const std::function<void(const fs::directory_entry&)>& look) {
  std::error_code failed;
  for (fs::directory_iterator it(folder, failed); !failed && it != fs::directory_iterator(); it.increment(failed))
    look(*it);
  return failed;
}

/// Whether a batch has kept its journal here.
bool has_journal(const fs::path& folder) {
  const std::string start = fmt::format("{{\"schema\":\"{}", kSchema);
  const UniqueFd fd(::open((folder / kJournal).c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
  struct stat facts {};
  if (!fd || ::fstat(fd.get(), &facts) != 0 || !S_ISREG(facts.st_mode)) return false;
  std::string read(start.size(), '\0');
  return ::read(fd.get(), read.data(), read.size()) == static_cast<ssize_t>(start.size()) && read == start;
}

/// What a student's folder holds.
void look_inside(BatchSubmission& one) {
  std::vector<fs::path> found;
  const std::error_code failed = each_entry(one.entry, [&](const fs::directory_entry& entry) {
    if (entry.path().filename() == "kv_attention.py") one.file = entry.path();
    if (is_submission(entry.path())) found.push_back(entry.path());
  });
  if (!one.file.empty()) return;
  if (failed) {
    one.problem = fmt::format("the folder cannot be read: {}", failed.message());
  } else if (found.size() == 1) {
    one.file = found.front();
  } else if (!found.empty()) {
    one.problem = fmt::format("the folder has {} files that may be meant, and no kv_attention.py", found.size());
  } else if (has_journal(one.entry)) {
    one.problem = kHoldsGrades;
    one.ignored = true;
  } else {
    one.problem = "the folder has no kv_attention.py";
  }
}

/// Gives each its name. One that cannot be printed as it is could look like another's.
void name_all(std::vector<BatchSubmission>& list) {
  std::set<std::string> taken;
  for (BatchSubmission& one : list) {
    const std::string raw = one.entry.filename().string();
    if (printable(raw) == raw) one.name = *taken.insert(raw).first;
  }
  for (BatchSubmission& one : list) {
    if (!one.name.empty()) continue;
    const std::string raw = one.entry.filename().string(), hash = sha256(raw);
    // Somebody may bear the name with the short hash on purpose.
    for (size_t size = 8; size <= hash.size(); size *= 2) {
      one.name = fmt::format("{}-{}", printable(raw), hash.substr(0, size));
      if (taken.insert(one.name).second) break;
    }
  }
}

void only_owner(const fs::path& path, fs::perms may) {
  std::error_code failed;
  if (!fs::exists(path, failed) && !failed) return;
  if (!failed) fs::permissions(path, may, failed);
  if (failed) throw Error::at(path.string(), "cannot be kept from others: {}", failed.message());
}

}  // namespace

std::vector<BatchSubmission> find_submissions(const fs::path& folder) {
  std::vector<BatchSubmission> list;
  const std::error_code failed = each_entry(folder, [&](const fs::directory_entry& entry) {
    BatchSubmission one;
    one.entry = entry.path();
    const std::string raw = one.entry.filename().string();
    if (raw.starts_with('.')) return;
    std::error_code unknown;
    const fs::file_status status = entry.symlink_status(unknown);
    if (unknown) {
      one.problem = fmt::format("cannot be looked at: {}", unknown.message());
    } else if (fs::is_symlink(status)) {
      one.problem = "is a symbolic link, wanted a file or a folder";  // it could lead anywhere
    } else if (fs::is_directory(status)) {
      if (raw == "__pycache__") return;
      look_inside(one);
    } else if (is_submission(one.entry)) {
      one.file = one.entry;
    } else {
      one.problem = "ignored, it ends in neither .py nor .so";
      one.ignored = true;
    }
    list.push_back(std::move(one));
  });
  if (failed) throw Error::at(folder.string(), "cannot be read: {}", failed.message());
  if (std::all_of(list.begin(), list.end(), [](const BatchSubmission& one) { return one.ignored; }))
    throw Error::at(folder.string(), "has no submission: no .py or .so file, no folder with one");
  name_all(list);
  std::sort(list.begin(), list.end(),
            [](const BatchSubmission& a, const BatchSubmission& b) { return a.name < b.name; });
  for (const BatchSubmission& one : list) {
    if (one.ignored) std::fprintf(stderr, "attest: %s: %s\n", one.name.c_str(), one.problem.c_str());
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
  only_owner(path_ / kForGraders, fs::perms::owner_all);
  only_owner(path_ / kTable, fs::perms::owner_read | fs::perms::owner_write);  // of an earlier run
}

BatchFolder::~BatchFolder() {
  // However the table was written.
  ::chmod((path_ / kTable).c_str(), 0600);
}

void BatchFolder::write(const std::string& name, std::string_view bytes) const {
  const fs::path path = path_ / name, temporary = path_ / (name + ".tmp");  // the folder is locked: one writer
  ::unlink(temporary.c_str());
  const UniqueFd fd(::open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  bool good = static_cast<bool>(fd);
  while (good && !bytes.empty()) {
    const ssize_t size = ::write(fd.get(), bytes.data(), bytes.size());
    if (size < 0 && errno == EINTR) continue;
    good = size >= 0;
    if (good) bytes.remove_prefix(static_cast<size_t>(size));
  }
  if (!good || ::rename(temporary.c_str(), path.c_str()) != 0)
    throw Error::at(path.string(), "cannot be written: {}", std::strerror(errno));
}

Batch::Batch(const BatchFolder& folder, const std::string& terms) : path_(folder.path() / kJournal) {
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
  std::vector<std::pair<const BatchSubmission*, std::string>> ignored;
  const auto is_ours = [&](const fs::path& place) {
    std::error_code failure;
    return !place.empty() && fs::equivalent(place, path_.parent_path(), failure);
  };
  if (!submissions.empty() && is_ours(submissions.front().entry.parent_path()))
    throw Error::at(path_.parent_path().string(), "is the folder of the submissions. Give --out another folder");
  const fs::path for_graders = path_.parent_path() / kForGraders;
  std::error_code unmade;
  fs::create_directory(for_graders, unmade);
  if (unmade) throw Error::at(for_graders.string(), "cannot be made: {}", unmade.message());
  only_owner(for_graders, fs::perms::owner_all);
  for (const BatchSubmission& one : submissions) {
    if (one.ignored || (one.file.empty() && is_ours(one.entry))) {
      ignored.emplace_back(&one, one.ignored ? one.problem : kHoldsGrades);
    } else if (const Grade* known = find(one.name, hash(one)); known != nullptr) {
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
  for (const auto& [one, why] : ignored) told({++done, submissions.size(), one, nullptr, false, why});
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
