/* SPDX-License-Identifier: Apache-2.0
 *
 * The challenge's attention as a library with the interface of attest/backend.h: the base of the corpus's submissions
 * in C. Each includes it once, and either is honest or defines what a step does instead.
 *
 *   #define CORE_HONEST
 *   #include "library_core.h"
 *
 *   #include "library_core.h"
 *   static attest_status twist(const attest_problem *problem, const attest_step *step) { ... }
 *
 * Right, and slow: dot products in double precision, one element after the other.
 */
#include <attest/backend.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct attest_plan {
  attest_problem problem;
};

#ifndef CORE_HONEST
static attest_status twist(const attest_problem* problem, const attest_step* step);
#endif

static attest_status say(attest_message* message, attest_status status, const char* text) {
  snprintf(message->text, sizeof message->text, "%s", text);
  return status;
}

static float* at(const DLTensor* t, int64_t a, int64_t b, int64_t c, int64_t d) {
  const int64_t index[4] = {a, b, c, d};
  int64_t offset = 0;
  for (int axis = 0; axis < t->ndim; ++axis) offset += index[axis] * t->strides[axis];
  return (float*)((char*)t->data + t->byte_offset) + offset;
}

/* One channel of a projected token: W x + b. */
static double project(const DLTensor* weight, const DLTensor* bias, const DLTensor* x, int64_t b, int64_t t,
                      int64_t out) {
  double sum = bias != NULL ? *at(bias, out, 0, 0, 0) : 0;
  for (int64_t in = 0; in < x->shape[2]; ++in) sum += (double)*at(weight, out, in, 0, 0) * *at(x, b, t, in, 0);
  return sum;
}

static int32_t* length_of(const attest_cache* cache, int64_t b) {
  return (int32_t*)((char*)cache->lengths->data + cache->lengths->byte_offset) + b * cache->lengths->strides[0];
}

static void attend(const attest_problem* p, const attest_step* s, int64_t b, int64_t i, int64_t total, double* mixed) {
  const int64_t width = p->qk_head_dim, queries = s->query->shape[1];
  const int64_t end = p->causal == ATTEST_CAUSAL_BOTTOM_RIGHT ? total - queries + i + 1 : total;
  double *query = malloc(sizeof(double) * (size_t)width), *share = malloc(sizeof(double) * (size_t)total);
  for (int64_t h = 0; h < p->query_heads; ++h) {
    for (int64_t c = 0; c < width; ++c) {
      query[c] = project(p->q_weight, p->q_bias, s->query, b, i, h * width + c);
      mixed[h * width + c] = 0;
    }
    double most = -INFINITY, sum = 0;
    for (int64_t j = 0; j < end; ++j) {
      share[j] = 0;
      for (int64_t c = 0; c < width; ++c) share[j] += query[c] * *at(s->cache->key, b, j, h, c);
      share[j] /= sqrt((double)width);
      if (share[j] > most) most = share[j];
    }
    for (int64_t j = 0; j < end; ++j) sum += share[j] = exp(share[j] - most);
    for (int64_t j = 0; j < end; ++j) {
      for (int64_t c = 0; c < width; ++c) mixed[h * width + c] += share[j] / sum * *at(s->cache->value, b, j, h, c);
    }
  }
  free(query);
  free(share);
}

static attest_status honest(const attest_problem* p, const attest_step* s, attest_message* message) {
  if (s->query->ndim != 3 || s->cache == NULL || s->output->ndim != 3) {
    return say(message, ATTEST_INVALID, "query: wanted [batch, tokens, d_model], and a cache");
  }
  if (s->key != NULL && (s->key->ndim != 3 || s->value == NULL || s->value->ndim != 3)) {
    return say(message, ATTEST_INVALID, "key, value: wanted [batch, tokens, d_model]");
  }
  const int64_t width = p->qk_head_dim, queries = s->query->shape[1], keys = s->key != NULL ? s->key->shape[1] : 0;
  for (int64_t b = 0; b < p->batch; ++b) {
    if (*length_of(s->cache, b) + keys > p->capacity) return say(message, ATTEST_OVERFLOW, "the cache is full");
  }
  double* mixed = malloc(sizeof(double) * (size_t)(p->query_heads * width));
  for (int64_t b = 0; b < p->batch; ++b) {
    const int64_t past = *length_of(s->cache, b);
    for (int64_t t = 0; t < keys; ++t) {
      for (int64_t out = 0; out < p->kv_heads * width; ++out) {
        *at(s->cache->key, b, past + t, out / width, out % width) =
            (float)project(p->k_weight, p->k_bias, s->key, b, t, out);
        *at(s->cache->value, b, past + t, out / width, out % width) =
            (float)project(p->v_weight, p->v_bias, s->value, b, t, out);
      }
    }
    *length_of(s->cache, b) += (int32_t)keys;
    for (int64_t i = 0; i < queries; ++i) {
      attend(p, s, b, i, past + keys, mixed);
      for (int64_t out = 0; out < p->d_model; ++out) {
        double sum = p->out_bias != NULL ? *at(p->out_bias, out, 0, 0, 0) : 0;
        for (int64_t in = 0; in < p->query_heads * width; ++in) sum += *at(p->out_weight, out, in, 0, 0) * mixed[in];
        *at(s->output, b, i, out, 0) = (float)sum;
      }
    }
  }
  free(mixed);
  return ATTEST_OK;
}

static attest_status core_open(const char* options, attest_context** context, attest_message* message) {
  (void)options;
  (void)message;
  *context = (attest_context*)1;
  return ATTEST_OK;
}

static void core_close(attest_context* context) {
  (void)context;
}

static attest_status core_prepare(attest_context* context, const attest_problem* problem, attest_plan** plan,
                                  attest_message* message) {
  (void)context;
  if (problem->level != ATTEST_LEVEL_LAYER || problem->cache != ATTEST_CACHE_CONTIGUOUS || problem->packed != 0 ||
      problem->query_heads != problem->kv_heads || problem->qk_head_dim != problem->v_head_dim ||
      problem->dtype.code != kDLFloat || problem->dtype.bits != 32 || problem->mask != ATTEST_MASK_NONE) {
    return say(message, ATTEST_UNSUPPORTED, "only the challenge's layer, with a contiguous cache");
  }
  *plan = malloc(sizeof **plan);
  if (*plan == NULL) return say(message, ATTEST_ERROR, "out of memory");
  (*plan)->problem = *problem;
  return ATTEST_OK;
}

static attest_status core_run(attest_plan* plan, const attest_step* step, attest_message* message) {
#ifdef CORE_HONEST
  return honest(&plan->problem, step, message);
#else
  (void)message;
  return twist(&plan->problem, step);
#endif
}

static void core_release(attest_plan* plan) {
  free(plan);
}

ATTEST_EXPORT const attest_backend* attest_get_backend(void) {
  static const attest_backend table = {.struct_size = sizeof(attest_backend),
                                       .abi_version = ATTEST_ABI_VERSION,
                                       .name = "corpus",
                                       .version = "1",
                                       .description = "A submission of the corpus",
                                       .device_type = kDLCPU,
                                       .open = core_open,
                                       .close = core_close,
                                       .prepare = core_prepare,
                                       .run = core_run,
                                       .release = core_release};
  return &table;
}
