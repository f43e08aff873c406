// SPDX-License-Identifier: Apache-2.0
// The template with tricks that a benchmark may fall for: right in its first steps, then it leaves work out. For tests:
// attest bench must give it no number.
#include <attest/backend.hpp>

#undef ATTEST_REGISTER_BACKEND
#define ATTEST_REGISTER_BACKEND(Class)
#include <cstring>
#include <map>

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

class Lazy : public Template {
 public:
  static constexpr const char* name = "lazy";
  static constexpr const char* version = "1.0";
  static constexpr const char* declarations = "{}";
  static std::string description() { return "the template, but it leaves work out: option trick"; }

  explicit Lazy(Options& options) : Template(options), trick_(options.take("trick", "repeat")) {
    if (trick_ != "repeat" && trick_ != "append_once" && trick_ != "every_second") {
      throw Invalid("option trick: got \"" + trick_ + "\", wanted repeat, append_once or every_second");
    }
  }

  class Plan {
   public:
    Plan(Lazy& lazy, const attest_problem& problem) : problem_(problem), plan_(lazy, problem), trick_(lazy.trick_) {}

    void run(const attest_step& step) {
      const Extents extents = check_step(problem_, step);
      const DLTensor &key = *step.cache->key, &output = *step.output;
      const std::vector<char> slots(data_of(key), data_of(key) + size_of(key));
      std::vector<char>& answer = answers_[step.cache->key->data];
      const bool again = !answer.empty();
      if (++steps_ > 2 && steps_ % 2 == 0 && trick_ == "every_second") {
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
    attest_problem problem_;
    Template::Plan plan_;
    std::string trick_;
    std::map<const void*, std::vector<char>> answers_;  ///< By the cache that they came from.
    int64_t steps_ = 0;
  };

 private:
  std::string trick_;
};

}  // namespace

ATTEST_EXPORT const attest_backend* attest_get_backend(void) {
  return table_of<Lazy>();
}
