// SPDX-License-Identifier: Apache-2.0
// The template with every legal alternative to the spec's conventions, declared: rows that see no key have NaN and an
// LSE of +inf, and the LSE is to base 2. For tests: as right as the template, once its declarations are heeded.
#include <attest/backend.hpp>

#undef ATTEST_REGISTER_BACKEND
#define ATTEST_REGISTER_BACKEND(Class)
#include "../template/template.cpp"

namespace {

class Alternative : public Template {
 public:
  static constexpr const char* name = "alternative";
  static constexpr const char* version = "1.0";
  static constexpr const char* declarations = R"({"empty_lse": "+inf", "empty_output": "nan", "lse_base": "2"})";
  static std::string description() { return "the template, with every alternative that can be declared"; }

  explicit Alternative(Options& options) : Template(options) {}

  class Plan {
   public:
    Plan(Alternative& alternative, const attest_problem& problem) : problem_(problem), plan_(alternative, problem) {
      if (problem.wants_lse == 0) throw Unsupported("not implemented: finding empty rows without the LSE");
    }
    void run(const attest_step& step) {
      const Extents e = check_step(problem_, step);
      plan_.run(step);
      const Tokens lse = Tokens::of_lse(problem_, e, *step.lse);
      const Tokens output = Tokens::of_queries(problem_, e, *step.output);
      const bool layer = problem_.level == ATTEST_LEVEL_LAYER;
      const int64_t channels = layer ? problem_.d_model : problem_.v_head_dim;
      for (int64_t b = 0; b < problem_.batch; ++b) {
        for (int64_t i = 0; i < e.queries[b]; ++i) {
          for (int64_t h = 0; h < problem_.query_heads; ++h) {
            const float natural = lse(b, i, h, 0);
            const bool empty = natural == minus_infinity;
            lse.set(empty ? -minus_infinity : natural * 1.44269504F, b, i, h, 0);
            for (int64_t d = 0; empty && d < channels; ++d) {
              output.set(std::numeric_limits<float>::quiet_NaN(), b, i, layer ? 0 : h, d);
            }
          }
        }
      }
    }

   private:
    attest_problem problem_;
    Template::Plan plan_;
  };
};

}  // namespace

ATTEST_EXPORT const attest_backend* attest_get_backend(void) {
  return table_of<Alternative>();
}
