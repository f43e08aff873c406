/* SPDX-License-Identifier: Apache-2.0
 *
 * attest/backend.h: the C ABI between the attest suite and an attention backend.
 *
 * Who includes it: every backend, the worker that loads one, and the bench. It needs DLPack's `DLTensor` only and
 * compiles alone as C11 and as C++20. C++ authors include `attest/backend.hpp` instead, which turns a small class into
 * the table below and its exceptions into statuses.
 *
 * A backend is one shared library with one exported symbol:
 *
 *     static const attest_backend table = { sizeof(attest_backend), ATTEST_ABI_VERSION, "mine", "1.0", ... };
 *     ATTEST_EXPORT const attest_backend *attest_get_backend(void) { return &table; }
 *
 * Terms and units (spec/attention.md defines the operator; its clause numbers are cited here):
 *   B batch: sequences in one step          Sq, Sk  query and key tokens of one step (padded maximum)
 *   Hq, Hk   query heads and KV heads       Dk, Dv  channels of a query/key head and of a value head
 *   C        cache capacity in tokens       d_model width of the layer's input and output
 * Shapes are logical and always in the order written here; memory order is given by `strides` (in elements, never NULL,
 * may be padded or permuted, and may be anything on an axis of extent 1). `data` + `byte_offset` is the first element.
 *
 * Ownership: the suite owns every tensor, cache included. Pointers in a problem stay valid until `release`, those in
 * a step until `run` returns (device backends: until the next `synchronize`). Input tensors are read-only.
 *
 * Growing the ABI: structs start with their size; a field is only ever appended, and 0 or NULL means "not used" (only
 * the window's limits use -1). The version changes when that promise is broken. A reader looks at a field only if
 * `struct_size` covers it. A struct smaller than version 1's is INVALID; one that is larger than the reader knows is
 * refused if a byte beyond what it knows is not 0, because then something that it does not know is asked for.
 */
#ifndef ATTEST_BACKEND_H
#define ATTEST_BACKEND_H

#include <dlpack/dlpack.h>
#include <stddef.h>
#include <stdint.h>

/* The columns of comments are set by hand. */
/* clang-format off */

#if defined(__GNUC__)
#define ATTEST_EXPORT_ATTRIBUTE __attribute__((visibility("default")))
#else
#define ATTEST_EXPORT_ATTRIBUTE
#endif
#ifdef __cplusplus
#define ATTEST_EXPORT extern "C" ATTEST_EXPORT_ATTRIBUTE
extern "C" {
#else
#define ATTEST_EXPORT ATTEST_EXPORT_ATTRIBUTE
#endif

/** Version of this header. Checked when a backend is loaded; both numbers are printed when they differ. */
#define ATTEST_ABI_VERSION 1u

/** What a call answers. Anything but OK comes with a message, and a refused step has changed nothing (clause P5). */
typedef enum attest_status {
  ATTEST_OK = 0,          /**< Done. */
  ATTEST_UNSUPPORTED = 1, /**< `prepare`: a legal problem that this backend does not implement; `open`: this machine has
                           *   not the device that it runs on. Say why. */
  ATTEST_INVALID = 2,     /**< A wrong shape, dtype or value: name the argument, what was got and what was wanted. */
  ATTEST_OVERFLOW = 3,    /**< `run`, or `synchronize` after it: the step would pass the cache's capacity. */
  ATTEST_ERROR = 4        /**< The backend itself failed (out of memory, a driver error). */
} attest_status;

/** Where a call writes its message: NUL-terminated UTF-8, one line, empty when there is nothing to say. */
typedef struct attest_message {
  uint32_t struct_size;
  char text[1020];
} attest_message;

/** Which operator is asked for (clauses A*, L*). */
typedef enum attest_level {
  ATTEST_LEVEL_CORE = 0, /**< Q, K and V are given, split into heads. */
  ATTEST_LEVEL_LAYER = 1 /**< d_model-wide inputs are given; the backend projects them and the result. */
} attest_level;

/** Which keys a query sees by position (clauses M*). */
typedef enum attest_causal {
  ATTEST_CAUSAL_NONE = 0,         /**< All keys. */
  ATTEST_CAUSAL_BOTTOM_RIGHT = 1, /**< The last query sees the last key: j <= total - Sq + i. */
  ATTEST_CAUSAL_TOP_LEFT = 2      /**< The first query sees the first key only: j <= i. */
} attest_causal;

/** What `attest_step.mask` holds (clause M6). */
typedef enum attest_mask_kind {
  ATTEST_MASK_NONE = 0,    /**< No mask. */
  ATTEST_MASK_BOOLEAN = 1, /**< uint8, 1 = attend, 0 = masked. */
  ATTEST_MASK_ADDITIVE = 2 /**< The problem's dtype, added to the scaled (and capped) logit. */
} attest_mask_kind;

/** How the cache's slots are addressed (clauses C*). */
typedef enum attest_cache_kind {
  ATTEST_CACHE_NONE = 0,       /**< No cache: the step's keys and values are attended directly. */
  ATTEST_CACHE_CONTIGUOUS = 1, /**< key/value [B, C, Hk, D]; token t of sequence b lies in slot (b, t). */
  ATTEST_CACHE_PAGED = 2,      /**< key/value [pages, page_size, Hk, D]; token t in (table[b][t / ps], t % ps). */
  ATTEST_CACHE_RING = 3        /**< key/value [B, C, Hk, D]; token t in (b, t % C); only the last C tokens are kept. */
} attest_cache_kind;

/** Rotary position embedding: which channels form a pair (clause R1). */
typedef enum attest_rope_style {
  ATTEST_ROPE_NONE = 0,
  ATTEST_ROPE_HALF = 1,       /**< (c, c + rotary_dim / 2): Llama, GPT-NeoX. */
  ATTEST_ROPE_INTERLEAVED = 2 /**< (2c, 2c + 1): GPT-J, the original paper. */
} attest_rope_style;

/** How RoPE's frequencies are stretched beyond the trained length (clause R3). */
typedef enum attest_rope_scaling {
  ATTEST_ROPE_SCALING_NONE = 0,
  ATTEST_ROPE_SCALING_LINEAR = 1, /**< positions / factor. */
  ATTEST_ROPE_SCALING_NTK = 2,    /**< base * factor^(r / (r - 2)), r = rotary_dim. */
  ATTEST_ROPE_SCALING_YARN = 3,   /**< NTK by parts, with the attention factor. */
  ATTEST_ROPE_SCALING_LLAMA3 = 4, /**< Llama 3.1's smoothed split of low and high frequencies. */
  ATTEST_ROPE_SCALING_YARN_UNROUNDED = 5 /**< YARN whose ramp does not begin and end at whole pairs: gpt-oss. */
} attest_rope_scaling;

/** Linear position bias (clause B1). */
typedef enum attest_alibi_kind {
  ATTEST_ALIBI_NONE = 0,
  ATTEST_ALIBI_STANDARD = 1, /**< The backend derives the slopes from Hq, as in the ALiBi paper. */
  ATTEST_ALIBI_SLOPES = 2    /**< The slopes are given: `alibi_slopes`. */
} attest_alibi_kind;

/** Over what one scale of a quantised cache spans (clause Q2). */
typedef enum attest_kv_scale_kind {
  ATTEST_KV_SCALE_NONE = 0,
  ATTEST_KV_SCALE_PER_TENSOR = 1, /**< key_scale, value_scale: f32 [1]. */
  ATTEST_KV_SCALE_PER_HEAD = 2,   /**< f32 [Hk]. */
  ATTEST_KV_SCALE_PER_TOKEN = 3   /**< f32 [B, C, Hk] or [pages, page_size, Hk]; written by the backend on append. */
} attest_kv_scale_kind;

/** Storage type of an fp8 cache, whose tensors travel as uint8 (DLPack 0.6 has no fp8 code). */
typedef enum attest_fp8 { ATTEST_FP8_NONE = 0, ATTEST_FP8_E4M3 = 1, ATTEST_FP8_E5M2 = 2 } attest_fp8;

/** Rotary embedding's parameters; `style` NONE switches it off. Applied to Q and K before the cache write. It lies inside
 * attest_problem and so never grows: a new parameter will be a field at that struct's end. */
typedef struct attest_rope {
  int32_t style;                  /**< attest_rope_style. */
  int32_t scaling;                /**< attest_rope_scaling. */
  int64_t rotary_dim;             /**< Even, <= Dk: the first rotary_dim channels turn. */
  double base;                    /**< theta; 10000 in the paper. */
  double factor;                  /**< Stretch factor of `scaling`. */
  double original_length;         /**< Trained length (YARN, LLAMA3). */
  double low_frequency, high_frequency; /**< LLAMA3: low/high_freq_factor. YARN: beta_slow/beta_fast. */
  double attention_factor;        /**< YARN: multiplies cos and sin; 0 = 0.1 ln(factor) + 1. */
} attest_rope;

/**
 * One problem: everything that stays the same over its steps. `prepare` reads it once.
 * Layer weights follow torch.nn.Linear: y = x W^T + bias, W is [out, in]; biases are NULL where there are none.
 */
typedef struct attest_problem {
  uint32_t struct_size;
  int32_t level;                  /**< attest_level. */
  int64_t batch;                  /**< B. */
  int64_t query_heads;            /**< Hq, a multiple of Hk; query head h reads KV head h / (Hq / Hk) (clause A4). */
  int64_t kv_heads;               /**< Hk. */
  int64_t qk_head_dim;            /**< Dk. */
  int64_t v_head_dim;             /**< Dv. */
  int64_t d_model;                /**< Layer level: input and output width; else 0. */
  DLDataType dtype;               /**< Query, key, value, weights and output. */
  DLDataType cache_dtype;         /**< `dtype`; quantised (`kv_scale`): int8, or uint8 with `cache_fp8`. */
  double scale;                   /**< Multiplies q.k, exactly this value; 0 = the real 1 / sqrt(Dk) (clause A1). */
  int32_t causal;                 /**< attest_causal. */
  int32_t mask;                   /**< attest_mask_kind. */
  int64_t window_left;            /**< Keys j < position - window_left are masked; < 0 = no limit (clause M5).
                                   *   A ring needs one from 0 to C - 1 (clause C8). */
  int64_t window_right;           /**< Keys j > position + window_right are masked; < 0 = no limit. */
  double softcap;                 /**< s -> cap * tanh(s / cap) after the scale, before masks; 0 = none (clause A5). */
  int32_t alibi;                  /**< attest_alibi_kind. */
  int32_t wants_lse;              /**< 1: every step has an `lse` output. */
  attest_rope rope;
  int32_t cache;                  /**< attest_cache_kind. */
  int32_t cache_fp8;              /**< attest_fp8; else NONE. */
  int32_t kv_scale;               /**< attest_kv_scale_kind. */
  int32_t packed;                 /**< 1: ragged tokens are packed, see attest_step (clause G2); no mask then. */
  int64_t capacity;               /**< C: tokens per sequence that the cache holds; 0 without a cache. */
  int64_t page_size;              /**< Tokens per page; 0 unless PAGED. */
  double norm_epsilon;            /**< RMS epsilon of QK-norm (clause N1). */
  const DLTensor *q_weight;       /**< Layer: [Hq * Dk, d_model]. */
  const DLTensor *k_weight;       /**< Layer: [Hk * Dk, d_model]. */
  const DLTensor *v_weight;       /**< Layer: [Hk * Dv, d_model]. */
  const DLTensor *out_weight;     /**< Layer: [d_model, Hq * Dv]. */
  const DLTensor *q_bias;         /**< (optional) [Hq * Dk]. */
  const DLTensor *k_bias;         /**< (optional) [Hk * Dk]. */
  const DLTensor *v_bias;         /**< (optional) [Hk * Dv]. */
  const DLTensor *out_bias;       /**< (optional) [d_model]. */
  const DLTensor *sinks;          /**< (optional) f32 [Hq]: a logit that joins the denominator only (clause S1). */
  const DLTensor *alibi_slopes;   /**< f32 [Hq] when alibi is SLOPES. */
  const DLTensor *q_norm_weight;  /**< (optional) [Dk]: QK-norm on queries, before RoPE. */
  const DLTensor *k_norm_weight;  /**< (optional) [Dk]: QK-norm on keys, before RoPE. */
} attest_problem;

/** The KV cache of a step. The backend writes the appended tokens and advances `lengths`; it keeps no copy. */
typedef struct attest_cache {
  uint32_t struct_size;
  uint32_t reserved;
  DLTensor *key;                  /**< cache_dtype, [B, C, Hk, Dk] or [pages, page_size, Hk, Dk]. In and out. */
  DLTensor *value;                /**< cache_dtype, [B, C, Hk, Dv] or [pages, page_size, Hk, Dv]. In and out. */
  DLTensor *lengths;              /**< int32 [B]: tokens in the cache; in: before the step, out: after it. */
  const DLTensor *block_table;    /**< PAGED: int32 [B, ceil(C / page_size)], page numbers; else NULL. Entries that
                                   *   no token needs after the step may be any number. */
  DLTensor *key_scale;            /**< Quantised caches; see attest_kv_scale_kind; else NULL. */
  DLTensor *value_scale;          /**< Likewise. */
} attest_cache;

/**
 * One step. With a cache: append the keys and values at [length_b, length_b + keys_b), advance the lengths, attend.
 * Without one: attend to the step's keys and values.
 *
 * Padded form (packed = 0): token axes are [B, S]; sequence b uses its first query_lengths[b] / key_lengths[b] tokens.
 * Packed form (packed = 1): token axes are [tokens]; sequence b owns [start[b], start[b + 1]), from start[0] = 0 to
 * start[B] = tokens.
 * Output rows beyond a sequence's queries may hold anything afterwards; padded inputs may hold anything, NaN included.
 */
typedef struct attest_step {
  uint32_t struct_size;
  uint32_t reserved;
  const DLTensor *query;          /**< Core: [B, Sq, Hq, Dk]. Layer: [B, Sq, d_model]. */
  const DLTensor *key;            /**< Core: [B, Sk, Hk, Dk]. Layer: [B, Sk, d_model]. NULL: nothing is appended. */
  const DLTensor *value;          /**< Core: [B, Sk, Hk, Dv]. Layer: [B, Sk, d_model]. NULL with `key`. */
  const DLTensor *query_lengths;  /**< (optional) int32 [B], 0..Sq; NULL: all Sq. */
  const DLTensor *key_lengths;    /**< (optional) int32 [B], 0..Sk; NULL: all Sk. */
  const DLTensor *query_start;    /**< Packed form: int32 [B + 1]; else NULL. */
  const DLTensor *key_start;      /**< Packed form: int32 [B + 1], NULL without keys; else NULL. */
  const DLTensor *positions;      /**< (optional) int32 [B, Sq] (packed: [tokens]): RoPE positions; NULL: index in the
                                   *   sequence. Each serves the query and the key of that index, so no
                                   *   sequence has more keys than queries (clause R2). */
  const DLTensor *mask;           /**< [B or 1, Hq or 1, Sq or 1, most keys after the step]; NULL when mask is
                                   *   NONE. Rows of no query and columns of no key may hold anything. */
  const attest_cache *cache;      /**< NULL when the problem has no cache. */
  int64_t max_query_length;       /**< Host-side: max over b of the queries (graph replay: an upper bound). */
  int64_t max_total_length;       /**< Host-side: max over b of the keys after the step (likewise). */
  DLTensor *output;               /**< Core: [B, Sq, Hq, Dv]. Layer: [B, Sq, d_model]. Never aliases an input. */
  DLTensor *lse;                  /**< f32 [B, Hq, Sq] (packed: [Hq, tokens]), natural log (clause E1); or NULL. */
  void *stream;                   /**< (optional) the device's stream or queue; NULL: the default one. */
} attest_step;

typedef struct attest_context attest_context; /**< An open backend; its own type. */
typedef struct attest_plan attest_plan;       /**< A prepared problem; its own type. */

/**
 * The table. `message` is never NULL. No entry throws, exits, prints, or keeps a pointer to a step's memory.
 * One context may be used by several threads, one plan by one thread at a time.
 */
typedef struct attest_backend {
  uint32_t struct_size;           /**< sizeof(attest_backend) as the backend was compiled. */
  uint32_t abi_version;           /**< ATTEST_ABI_VERSION as the backend was compiled. */
  const char *name;               /**< Short and stable: [a-z0-9_-]+. */
  const char *version;            /**< The backend's own version. */
  const char *description;        /**< One line: algorithm, library and version, instruction set. */
  const char *declarations;       /**< (optional) JSON object of declared conventions (spec/conformance.md); NULL = none. */
  int32_t device_type;            /**< DLDeviceType of the tensors it takes. */
  int32_t reserved;

  /** Open with options, a JSON object of strings such as {"threads":"2"}; an unknown option is INVALID. UNSUPPORTED
   *  where the machine has not what the backend runs on: nothing is certified then, and nothing fails. */
  attest_status (*open)(const char *options, attest_context **context, attest_message *message);
  /** Close; every plan has been released before. */
  void (*close)(attest_context *context);

  /** (optional, all five or none: NULL = host memory) Device memory of at least `bytes`, 256-byte aligned. */
  attest_status (*allocate)(attest_context *context, size_t bytes, void **memory, attest_message *message);
  /** (optional) Give back what `allocate` gave. */
  void (*deallocate)(attest_context *context, void *memory);
  /** (optional) Host to device; complete on return. */
  attest_status (*upload)(attest_context *context, void *device, const void *host, size_t bytes, attest_message *message);
  /** (optional) Device to host; complete on return. */
  attest_status (*download)(attest_context *context, void *host, const void *device, size_t bytes,
                            attest_message *message);
  /** (optional) Wait for all work of this context, and report its errors. A backend that leaves lengths on the device
   *  learns there that a step is to be refused: the INVALID or OVERFLOW of a step is then answered here, to the thread
   *  that called `run`; of several, the first. */
  attest_status (*synchronize)(attest_context *context, attest_message *message);

  /** Read a problem; OK with a plan, UNSUPPORTED with the reason, or INVALID. The only support query there is. */
  attest_status (*prepare)(attest_context *context, const attest_problem *problem, attest_plan **plan,
                           attest_message *message);
  /** Run one step. Host backends have finished on return; device backends may still be at it until `synchronize`. */
  attest_status (*run)(attest_plan *plan, const attest_step *step, attest_message *message);
  /** Release a plan. */
  void (*release)(attest_plan *plan);
} attest_backend;

/** The one symbol that a backend exports; the table lives as long as the library is loaded. */
ATTEST_EXPORT_ATTRIBUTE const attest_backend *attest_get_backend(void);

/** Its name, for dlsym. */
#define ATTEST_ENTRY_POINT "attest_get_backend"

#ifdef __cplusplus
} /* extern "C" */
#endif
#endif /* ATTEST_BACKEND_H */
