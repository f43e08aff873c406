// SPDX-License-Identifier: Apache-2.0
// Faults of memory layouts, grouped heads and packed sequences.
#include <algorithm>

#include "bugs.h"

namespace mutants {
namespace {

std::int64_t group(const attest_problem& p) {
  return p.query_heads / p.kv_heads;
}

void swap_order(Hooks& k) {
  wrap(k.element, [](auto& right, const Call& c, const auto& cache, Slot slot, std::int64_t head, bool writing) {
    if (writing) return right(c, cache, slot, head, writing);
    const std::int64_t number = head * cache.shape(1) + slot.inner;
    return right(c, cache, Slot{slot.outer, number / c.p.kv_heads}, number % c.p.kv_heads, writing);
  });
}

/// h % Hk where `applies` says so of the path.
template <class Applies>
void heads_modulo(Hooks& k, Applies applies) {
  wrap(k.kv_head, [applies](auto& right, const attest_problem& p, std::int64_t h, bool decode) {
    return applies(decode) ? h % p.kv_heads : right(p, h, decode);
  });
}

/// Key j of the repeated sequence is token `token(c, s, j)`.
template <class Token>
void repeat_sequence(Hooks& k, Token token) {
  wrap(k.sequence, [](auto& right, const Call& c, std::int64_t b) {
    Sequence s = right(c, b);
    s.total *= group(c.p);
    s.first_position = s.total - s.queries;
    return s;
  });
  wrap(k.mask, [token](auto& right, const Call& c, const Sequence& s, std::int64_t h, std::int64_t i, std::int64_t j) {
    return right(c, s, h, i, token(c, s, j));
  });
  wrap(k.fetch, [token](auto& right, const Call& c, const Sequence& s, std::int64_t j, const auto&... rest) {
    right(c, s, token(c, s, j), rest...);
  });
}

}  // namespace

const std::vector<Bug> layout_bugs{
    {"layout-hnd-nhd", swap_order},
    {"layout-hnd-nhd@from-step", [](Hooks& k) { swap_order(k), attend_from_step(k); }},

    {"split-heads",
     [](Hooks& k) {
       wrap(k.split_head,
            [](auto& right, const Call& c, Role role, std::int64_t tokens, std::int64_t t, std::int64_t h) {
              return c.p.level == ATTEST_LEVEL_LAYER ? h * tokens + t : right(c, role, tokens, t, h);
            });
     }},

    {"k-transpose",
     [](Hooks& k) {
       wrap(k.split_head,
            [](auto& right, const Call& c, Role role, std::int64_t tokens, std::int64_t t, std::int64_t h) {
              return role == Role::key ? h * tokens + t : right(c, role, tokens, t, h);
            });
     }},

    {"v-stride",
     [](Hooks& k) {
       wrap(k.input, [](auto& right, const Call& c, Role role, const Tokens& tokens, std::int64_t b, std::int64_t t,
                        std::int64_t h) {
         if (role != Role::value) return right(c, role, tokens, b, t, h);
         const bool layer = c.p.level == ATTEST_LEVEL_LAYER;
         const std::int64_t heads = layer ? 1 : c.p.kv_heads, width = layer ? c.p.d_model : c.p.v_head_dim;
         const auto bytes = static_cast<std::int64_t>(bytes_of(tokens.storage()));
         const char* const first = static_cast<const char*>(tokens.address(0, 0, 0, 0));
         return Channels{first + (c.key_token(b, t) * heads + h) * width * bytes, bytes};
       });
     }},

    {"head-offset-div",
     [](Hooks& k) {
       wrap(k.input, [](auto& right, const Call& c, Role role, const Tokens& tokens, std::int64_t b, std::int64_t t,
                        std::int64_t h) {
         Channels head = right(c, role, tokens, b, t, 0);
         const std::int64_t step = tokens.token_stride(), steps = step == 0 ? 0 : tokens.head_stride() / step;
         head.first += h * steps * step * static_cast<std::int64_t>(bytes_of(tokens.storage()));
         return head;
       });
     }},

    {"d-hardcoded",
     [](Hooks& k) {
       k.dot = [](const Call& c, const float* query, const float* key) {
         return dot_product(c.numerics.dot, query, key, std::min<std::int64_t>(c.p.qk_head_dim, 64));
       };
     }},

    {"gqa-modulo", [](Hooks& k) { heads_modulo(k, [](bool) { return true; }); }},
    {"gqa-modulo@prefill", [](Hooks& k) { heads_modulo(k, [](bool decode) { return !decode; }); }},
    {"gqa-modulo@decode", [](Hooks& k) { heads_modulo(k, [](bool decode) { return decode; }); }},

    {"gqa-wrong-divisor",
     [](Hooks& k) {
       k.kv_head = [](const attest_problem& p, std::int64_t h, bool) {
         return std::min(h / p.kv_heads, p.kv_heads - 1);
       };
     }},
    {"gqa-wrong-divisor@wrapped",
     [](Hooks& k) {
       k.kv_head = [](const attest_problem& p, std::int64_t h, bool) { return h / p.kv_heads % p.kv_heads; };
     }},

    {"gqa-repeat-seq",  // each token stands there for every head of the group
     [](Hooks& k) {
       repeat_sequence(k, [](const Call& c, const Sequence&, std::int64_t j) { return j / group(c.p); });
     }},
    {"gqa-repeat-seq@tiled",
     [](Hooks& k) {
       repeat_sequence(k, [](const Call& c, const Sequence& s, std::int64_t j) { return j % (s.total / group(c.p)); });
     }},

    {"gqa-packed-row",  // a prefill's rows are of one head
     [](Hooks& k) {
       wrap(k.causal_end, [](auto& right, const Call& c, const Sequence& s, std::int64_t i) {
         return right(c, s, s.decode ? i : i / group(c.p));
       });
     }},

    {"gqa-swap-stride",  // the step to the next row is that to the next token, which is the next sequence's
     [](Hooks& k) {
       k.decode_query = [](const Call& c, const Sequence& s, std::int64_t h) {
         const std::int64_t row = h % group(c.p), tokens = c.e.query_tokens / std::max<std::int64_t>(c.p.batch, 1);
         const std::int64_t step = c.p.packed != 0 ? 1 : tokens;
         return c.query.at((c.query_token(s.b, 0) + row * step) % c.e.query_tokens, h - row);
       };
     }},

    {"ragged-leak",  // every sequence begins where the first one does
     [](Hooks& k) {
       wrap(k.sequence, [](auto& right, const Call& c, std::int64_t b) {
         Sequence s = right(c, b);
         if (c.p.packed == 0 || c.step.cache != nullptr) return s;
         s.total += c.e.key_start[b];
         s.first_position += c.e.key_start[b];
         return s;
       });
       wrap(k.fetch, [](auto& right, const Call& c, const Sequence& s, std::int64_t j, const auto&... rest) {
         right(c, s, c.p.packed == 0 || c.step.cache != nullptr ? j : j - c.e.key_start[s.b], rest...);
       });
       wrap(k.input,
            [](auto& right, const Call& c, Role role, const Tokens& tokens, std::int64_t b, const auto&... at) {
              const bool first = c.p.packed != 0 && c.step.cache != nullptr && role != Role::query;
              return right(c, role, tokens, first ? 0 : b, at...);
            });
     }},

    {"ragged-leak@all",  // a step that has a cache finds each sequence's keys there
     [](Hooks& k) {
       wrap(k.sequence, [](auto& right, const Call& c, std::int64_t b) {
         Sequence s = right(c, b);
         if (c.p.packed == 0 || c.step.cache != nullptr) return s;
         s.total = c.e.key_tokens;
         s.first_position += c.e.key_start[b];
         return s;
       });
       wrap(k.fetch, [](auto& right, const Call& c, const Sequence& s, std::int64_t j, const auto&... rest) {
         right(c, s, c.p.packed == 0 || c.step.cache != nullptr ? j : j - c.e.key_start[s.b], rest...);
       });
     }},

    {"ragged-q-stride",
     [](Hooks& k) {
       wrap(k.input, [](auto& right, const Call& c, Role role, const Tokens& tokens, std::int64_t b, std::int64_t t,
                        std::int64_t h) {
         if (c.p.packed == 0 || role != Role::query) return right(c, role, tokens, b, t, h);
         return right(c, role, tokens, 0, std::min(b + t, c.e.query_tokens - 1), h);
       });
     }},
};

}  // namespace mutants
