// SPDX-License-Identifier: Apache-2.0
// The oneDNN CPU backend: fp32, core and layer level, contiguous cache or none. This file holds what the suite talks to
// and the order of a step; tokens.h says where heads lie, projection.h and attention.h do the work.
#include <omp.h>

#include <attest/backend.hpp>
#include <memory>
#include <oneapi/dnnl/dnnl.hpp>
#include <optional>
#include <string>

#include "attention.h"
#include "projection.h"
#include "threads.h"
#include "tokens.h"

namespace attest::onednn {

namespace {

std::string library_version() {
  const dnnl_version_t* const v = dnnl_version();
  return std::to_string(v->major) + "." + std::to_string(v->minor) + "." + std::to_string(v->patch);
}

std::string runtime_name() {
  switch (dnnl_version()->cpu_runtime) {
    case DNNL_RUNTIME_SEQ:
      return "sequential";
    case DNNL_RUNTIME_OMP:
      return "OpenMP";
    case DNNL_RUNTIME_TBB:
      return "TBB";
    case DNNL_RUNTIME_THREADPOOL:
      return "threadpool";
    default:
      return "another";
  }
}

std::string isa_name() {
  using dnnl::cpu_isa;
  // Those that both supported versions of oneDNN name.
  static constexpr std::pair<cpu_isa, const char*> names[] = {{cpu_isa::sse41, "SSE4.1"},
                                                              {cpu_isa::avx, "AVX"},
                                                              {cpu_isa::avx2, "AVX2"},
                                                              {cpu_isa::avx2_vnni, "AVX2 VNNI"},
                                                              {cpu_isa::avx512_core, "AVX-512"},
                                                              {cpu_isa::avx512_core_vnni, "AVX-512 VNNI"},
                                                              {cpu_isa::avx512_core_bf16, "AVX-512 bf16"},
                                                              {cpu_isa::avx512_core_amx, "AMX"}};
  const cpu_isa isa = dnnl::get_effective_cpu_isa();
  for (const auto& [known, text] : names) {
    if (known == isa) return text;
  }
  return "instruction set " + std::to_string(static_cast<int>(isa));
}

class OneDnn {
 public:
  static constexpr const char* name = "onednn";
  static std::string version() { return library_version(); }
  static std::string description() {
    return "oneDNN " + library_version() + ", sgemm over query blocks and matmul projections, fp32, " + runtime_name() +
           " runtime, " + isa_name();
  }

  explicit OneDnn(abi::Options& options) : threads_(options.take_count("threads", omp_get_max_threads())) {}

  class Plan {
   public:
    Plan(OneDnn& backend, const attest_problem& problem)
        : problem_(checked(problem)), threads_(backend.threads_), attention_(problem, backend.threads_) {
      if (problem_.level != ATTEST_LEVEL_LAYER) return;
      const dnnl::engine& engine = backend.engine_;
      query_.emplace(engine, *problem_.q_weight, problem_.q_bias, threads_);
      key_.emplace(engine, *problem_.k_weight, problem_.k_bias, threads_);
      value_.emplace(engine, *problem_.v_weight, problem_.v_bias, threads_);
      out_.emplace(engine, *problem_.out_weight, problem_.out_bias, threads_);
    }

    void run(const attest_step& step) {
      const abi::Extents extents = abi::check_step(problem_, step);
      const ThreadScope scope(threads_);  // For the copies; attention and projections set their own.
      const Counts from_zero(problem_.batch, 0);
      Counts total(problem_.batch, 0);
      for (std::int64_t b = 0; b < problem_.batch; ++b) total[b] = extents.total(b);

      const Tokens<const float> key =
          bring(extents, key_, step.key, cache_key(step), problem_.qk_head_dim, key_scratch_);
      const Tokens<const float> value =
          bring(extents, value_, step.value, cache_value(step), problem_.v_head_dim, value_scratch_);
      std::optional<abi::View<float, 3>> lse;
      if (step.lse != nullptr) lse.emplace(*step.lse);
      abi::View<float, 3>* const lse_or_null = lse ? &*lse : nullptr;

      if (problem_.level == ATTEST_LEVEL_CORE) {
        attention_.run(tokens_of<const float>(*step.query), key, value, extents.queries, total,
                       tokens_of<float>(*step.output), lse_or_null);
      } else {
        const std::int64_t tokens = sum(extents.queries), heads = problem_.query_heads;
        const std::int64_t qk_row = heads * problem_.qk_head_dim, v_row = heads * problem_.v_head_dim;
        const auto query =
            packed_tokens(query_scratch_.get(tokens * qk_row), extents.queries, heads, problem_.qk_head_dim);
        const auto attended =
            packed_tokens(out_scratch_.get(tokens * v_row), extents.queries, heads, problem_.v_head_dim);
        query_->apply(tokens_of<const float>(*step.query), extents.queries, query, from_zero);
        attention_.run(query, key, value, extents.queries, total, attended, lse_or_null);
        out_->apply(attended, extents.queries, tokens_of<float>(*step.output), from_zero);
      }

      // Last, so that a step that failed on the way has appended nothing: what lies beyond a length does not count.
      if (step.cache != nullptr) {
        const abi::View<std::int32_t, 1> lengths(*step.cache->lengths);
        for (std::int64_t b = 0; b < problem_.batch; ++b) lengths(b) = static_cast<std::int32_t>(total[b]);
      }
    }

   private:
    static const attest_problem& checked(const attest_problem& problem) {
      abi::check_problem(problem);
      abi::require_only(problem, {.f32 = true,
                                  .layer = true,
                                  .causal_bottom_right = true,
                                  .causal_top_left = true,
                                  .window = true,
                                  .softcap = true,
                                  .alibi = true,
                                  .sinks = true,
                                  .contiguous_cache = true,
                                  .lse = true});
      return problem;
    }

    static const DLTensor* cache_key(const attest_step& step) { return step.cache ? step.cache->key : nullptr; }
    static const DLTensor* cache_value(const attest_step& step) { return step.cache ? step.cache->value : nullptr; }

    /// Brings the step's new keys (or values) to where attention reads them, and answers where that is: appended to the
    /// cache if there is one, else the tensor itself or, at the layer level, its projection in scratch.
    Tokens<const float> bring(const abi::Extents& extents, std::optional<Projection>& projection, const DLTensor* given,
                              const DLTensor* cache, std::int64_t dim, Scratch& scratch) const {
      if (cache == nullptr && !projection) return tokens_of<const float>(*given);
      const std::int64_t heads = problem_.kv_heads;
      const Tokens<float> to =
          cache != nullptr ? tokens_of<float>(*cache)
                           : packed_tokens(scratch.get(sum(extents.keys) * heads * dim), extents.keys, heads, dim);
      if (given == nullptr) return to;
      const auto from = tokens_of<const float>(*given);
      if (projection) {
        projection->apply(from, extents.keys, to, extents.past);
      } else {
        const Counts from_zero(problem_.batch, 0);
        copy_rows(from, rows_of(from, from_zero, extents.keys), to, rows_of(to, extents.past, extents.keys));
      }
      return to;
    }

    attest_problem problem_;
    int threads_;
    Attention attention_;
    std::optional<Projection> query_, key_, value_, out_;  ///< Layer level.
    Scratch query_scratch_, key_scratch_, value_scratch_, out_scratch_;
  };

 private:
  int threads_;
  dnnl::engine engine_{dnnl::engine::kind::cpu, 0};
};

}  // namespace

}  // namespace attest::onednn

ATTEST_REGISTER_BACKEND(attest::onednn::OneDnn)
