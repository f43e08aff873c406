// SPDX-License-Identifier: Apache-2.0
// The template with what a benchmark must stand: right in its first steps, then it leaves work out; or, at a chosen
// step, it refuses, leaves the process, or never comes back. For tests: attest bench must give it no number.
#include <attest/backend.hpp>

#undef ATTEST_REGISTER_BACKEND
#define ATTEST_REGISTER_BACKEND(Class)
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string_view>

#include "../template/template.cpp"

namespace {

size_t size_of(const DLTensor& tensor) {
  size_t bytes = bytes_of(NumberView<4>(tensor).storage());
  for (int i = 0; i < tensor.ndim; ++i) bytes *= static_cast<size_t>(tensor.shape[i]);
  return bytes;
}
char* data_of(const DLTensor& tensor) {
  return static_cast<char*>(tensor.data) + tensor.byte_offset;
}

constexpr std::string_view kTricks[] = {"repeat",     "append_once", "every_second", "refuse",    "exit",
                                        "quick_exit", "_exit",       "hang",         "hang_close"};

[[noreturn]] void hang() {
  std::fputs("lazy: hangs\n", stderr);  // for those who wait for it
  while (true) ::pause();
}

class Lazy : public Template {
 public:
  static constexpr const char* name = "lazy";
  static constexpr const char* version = "1.0";
  static constexpr const char* declarations = "{}";
  static std::string description() { return "the template, but it leaves work out: option trick"; }

  explicit Lazy(Options& options) : Template(options), trick_(options.take("trick", "repeat")) {
    if (std::find(std::begin(kTricks), std::end(kTricks), trick_) == std::end(kTricks)) {
      throw Invalid("option trick: got \"" + trick_ + "\", wanted a name of README.md");
    }
    plan_ = options.take_count("plan", 1);
    at_ = options.take_count("at", 1);
  }
  ~Lazy() {
    if (trick_ == "hang_close") hang();
  }

  class Plan {
   public:
    Plan(Lazy& lazy, const attest_problem& problem) : problem_(problem), plan_(lazy, problem), trick_(lazy.trick_) {
      if (++lazy.plans_ == lazy.plan_) strikes_at_ = lazy.at_;
    }

    void run(const attest_step& step) {
      const Extents extents = check_step(problem_, step);
      if (++steps_ == strikes_at_) strike();
      const DLTensor &key = *step.cache->key, &output = *step.output;
      const std::vector<char> slots(data_of(key), data_of(key) + size_of(key));
      std::vector<char>& answer = answers_[step.cache->key->data];
      const bool again = !answer.empty();
      if (steps_ > 2 && steps_ % 2 == 0 && trick_ == "every_second") {
        const View<int32_t, 1> lengths(*step.cache->lengths);
        for (int64_t b = 0; b < problem_.batch; ++b) lengths(b) += static_cast<int32_t>(extents.keys[b]);
        return;
      }
      plan_.run(step);
      // What the cache was given by the step of the same memory before this one is taken for granted; so is the answer.
      if (again && trick_ == "append_once") std::memcpy(data_of(key), slots.data(), slots.size());
      if (again && trick_ == "repeat") std::memcpy(data_of(output), answer.data(), answer.size());
      answer.assign(data_of(output), data_of(output) + size_of(output));
    }

   private:
    void strike() const {
      if (trick_ == "refuse") throw Unsupported("this step is not to its taste");
      if (trick_ == "exit") std::exit(0);
      if (trick_ == "quick_exit") std::quick_exit(0);
      if (trick_ == "_exit") ::_exit(0);
      if (trick_ == "hang") hang();
    }

    attest_problem problem_;
    Template::Plan plan_;
    std::string trick_;
    std::map<const void*, std::vector<char>> answers_;  ///< By the cache that they came from.
    int64_t steps_ = 0, strikes_at_ = 0;
  };

 private:
  std::string trick_;
  int plan_ = 1, at_ = 1, plans_ = 0;
};

}  // namespace

ATTEST_EXPORT const attest_backend* attest_get_backend(void) {
  return table_of<Lazy>();
}
