// SPDX-License-Identifier: Apache-2.0
// The oneDNN CPU backend. It computes in f32 and converts at the border. This file holds what the suite talks to and
// the order of a step: intake.h makes f32 heads of what a step is given, kv.h joins them with the cache, attention.h
// does the work, flash_decode.h that of decode steps, both with kernels of our own (tiles.h, rows.h), and projection.h
// asks oneDNN for a layer's products; heads.h says where heads lie.
#include <omp.h>

#include <attest/backend.hpp>
#include <memory>
#include <oneapi/dnnl/dnnl.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "attention.h"
#include "heads.h"
#include "intake.h"
#include "kv.h"
#include "projection.h"
#include "rows.h"
#include "threads.h"

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
  // Page order, capacity and padding change neither the shapes nor the leading dimensions of any product (d3). The
  // batch changes those of projections, and with them oneDNN's kernels and threads (no d1); the number of queries
  // decides between the two ways to attend (no d2).
  static constexpr const char* declarations = R"({"determinism": ["d0", "d3"]})";
  static std::string version() { return library_version(); }
  static std::string description() {
    return "oneDNN " + library_version() + " projections, " + runtime_name() + " runtime, " + isa_name() +
           "; own attention in tiles and flash decoding, f32 inside, " + row_kernels().front()->name;
  }

  explicit OneDnn(abi::Options& options)
      : threads_(options.take_count("threads", omp_get_max_threads())), kernels_(kernels(options.take("rows", ""))) {}

  class Plan {
   public:
    Plan(OneDnn& backend, const attest_problem& problem)
        : problem_(checked(problem)),
          threads_(backend.threads_),
          query_(problem.query_heads, problem.qk_head_dim, projection(backend, problem.q_weight, problem.q_bias),
                 RopeNorm(problem, problem.q_norm_weight)),
          key_(problem, {problem.kv_heads, problem.qk_head_dim, projection(backend, problem.k_weight, problem.k_bias),
                         RopeNorm(problem, problem.k_norm_weight)}),
          value_(problem, {problem.kv_heads, problem.v_head_dim, projection(backend, problem.v_weight, problem.v_bias),
                           std::nullopt}),
          attention_(problem, threads_, *backend.kernels_),
          out_(projection(backend, problem.out_weight, problem.out_bias)) {}

    void run(const attest_step& step) {
      const abi::Extents extents = abi::check_step(problem_, step);
      const ThreadScope scope(threads_);  // For the copies; attention and projections set their own.
      const Counts& queries = extents.queries;
      const auto [query_positions, key_positions] = positions(step, extents);
      const attest_cache cache = step.cache != nullptr ? *step.cache : attest_cache{};

      const Heads query =
          query_.take(abi::Tokens::of_queries(problem_, extents, *step.query), queries, query_positions);
      const KvRows key = key_.take(step, extents, step.key, cache.key, cache.key_scale, key_positions);
      const KvRows value = value_.take(step, extents, step.value, cache.value, cache.value_scale, {});

      const std::int64_t heads = out_ ? 1 : problem_.query_heads, width = out_ ? problem_.d_model : problem_.v_head_dim;
      const Heads output = heads_of(abi::Tokens::of_queries(problem_, extents, *step.output), queries, heads, width);
      const bool as_it_is = output.storage == Storage::f32;
      const Heads result =
          as_it_is ? output : packed_heads(result_.get(sum(queries) * output.row()), queries, heads, width);
      const Heads attended = out_ ? scratch_heads(queries) : result;
      std::optional<abi::Tokens> lse;
      if (step.lse != nullptr) lse = abi::Tokens::of_lse(problem_, extents, *step.lse);
      attention_.run({query, key, value, Mask(problem_, step.mask), extents, attended, lse});

      const Counts from_zero(problem_.batch, 0);
      if (out_) out_->apply(attended, queries, result, from_zero);
      if (!as_it_is) {
        copy_rows(result, rows_of(result, from_zero, queries), output, rows_of(output, from_zero, queries));
      }

      // Last, so that a step that failed on the way has appended nothing: what lies beyond a length does not count.
      if (step.cache == nullptr) return;
      key_.append(extents);
      value_.append(extents);
      const abi::View<std::int32_t, 1> lengths(*cache.lengths);
      for (std::int64_t b = 0; b < problem_.batch; ++b) lengths(b) = static_cast<std::int32_t>(extents.total(b));
    }

   private:
    static const attest_problem& checked(const attest_problem& problem) {
      abi::check_problem(problem);
      abi::require_only(problem, {.f32 = true,
                                  .f16 = true,
                                  .bf16 = true,
                                  .layer = true,
                                  .causal_bottom_right = true,
                                  .causal_top_left = true,
                                  .mask_boolean = true,
                                  .mask_additive = true,
                                  .window = true,
                                  .softcap = true,
                                  .alibi = true,
                                  .sinks = true,
                                  .rope = true,
                                  .rope_scaling = true,
                                  .qk_norm = true,
                                  .packed = true,
                                  .contiguous_cache = true,
                                  .paged_cache = true,
                                  .ring_cache = true,
                                  .int8_cache = true,
                                  .fp8_cache = true,
                                  .lse = true});
      return problem;
    }

    static std::optional<Projection> projection(OneDnn& backend, const DLTensor* weight, const DLTensor* bias) {
      if (weight == nullptr) return std::nullopt;
      return Projection(backend.engine_, *weight, bias, backend.threads_, *backend.kernels_);
    }

    /// RoPE's positions of all queries and of all keys; none where nothing turns.
    [[nodiscard]] std::pair<std::vector<std::int64_t>, std::vector<std::int64_t>> positions(
        const attest_step& step, const abi::Extents& extents) const {
      std::vector<std::int64_t> queries, keys;
      if (problem_.rope.style == ATTEST_ROPE_NONE) return {};
      const abi::Positions of(problem_, extents, step);
      for (std::int64_t b = 0; b < problem_.batch; ++b) {
        for (std::int64_t i = 0; i < extents.queries[b]; ++i) queries.push_back(of.query(b, i));
        for (std::int64_t n = 0; n < extents.keys[b]; ++n) keys.push_back(of.key(b, n));
      }
      return {std::move(queries), std::move(keys)};
    }

    /// Where the heads' outputs wait for their projection.
    Heads scratch_heads(const Counts& queries) {
      const std::int64_t heads = problem_.query_heads, width = problem_.v_head_dim;
      return packed_heads(attended_.get(sum(queries) * heads * width), queries, heads, width);
    }

    attest_problem problem_;
    int threads_;
    Intake query_;
    KvSide key_, value_;
    Attention attention_;
    std::optional<Projection> out_;  ///< Layer level.
    Scratch attended_, result_;
  };

 private:
  /// Option `rows`: the kernels of attention, for tests; by default the best ones.
  static const RowKernels* kernels(const std::string& wanted) {
    std::string known;
    for (const RowKernels* const each : row_kernels()) {
      if (wanted.empty() || wanted == each->name) return each;
      known += std::string(known.empty() ? "" : ", ") + each->name;
    }
    throw abi::Invalid("option rows: got \"" + wanted + "\", wanted one of " + known);
  }

  int threads_;
  const RowKernels* kernels_;
  dnnl::engine engine_{dnnl::engine::kind::cpu, 0};
};

}  // namespace

}  // namespace attest::onednn

ATTEST_REGISTER_BACKEND(attest::onednn::OneDnn)
