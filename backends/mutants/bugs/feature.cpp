// SPDX-License-Identifier: Apache-2.0
// Faults of softcap, ALiBi and sinks.
#include <algorithm>
#include <cmath>

#include "bugs.h"

namespace mutants {
namespace {

double power_of_two_up_to(double heads) {
  return std::exp2(std::floor(std::log2(heads)));
}

/// The sink takes no part where `applies` says so.
template <class Applies>
void drop_sink(Hooks& k, Applies applies) {
  const auto without = [applies](auto& right, const Call& c, const Sequence& s, Row& row, std::int64_t split) {
    right(c, s, row, split == 0 && applies(s) ? -1 : split);
  };
  wrap(k.start, without);
  wrap(k.finish, without);
}

/// Standard slopes 2^exponent(h); given ones stay.
template <class Exponent>
void standard_slopes(Hooks& k, Exponent exponent) {
  wrap(k.slopes, [exponent](auto& right, const attest_problem& p) {
    std::vector<float> slopes = right(p);
    if (p.alibi != ATTEST_ALIBI_STANDARD) return slopes;
    for (std::size_t h = 0; h < slopes.size(); ++h) {
      slopes[h] = static_cast<float>(std::exp2(exponent(static_cast<double>(h), static_cast<double>(p.query_heads))));
    }
    return slopes;
  });
}

}  // namespace

const std::vector<Bug> feature_bugs{
    {"cap-dropped",  // in the decode path
     [](Hooks& k) {
       wrap(k.soften, [](auto& right, const Call& c, const Sequence& s, float dot) {
         return s.decode ? stage::uncapped(c, s, dot) : right(c, s, dot);
       });
     }},
    {"cap-dropped@everywhere", [](Hooks& k) { k.soften = stage::uncapped; }},

    {"cap-after-mask",
     [](Hooks& k) {
       wrap(k.masked, [](auto& right, const Call& c, const auto&... at) {
         const float logit = right(c, at...);
         return c.p.softcap > 0 ? c.hooks.cap(c, logit) * c.numerics.units() : logit;
       });
     }},

    {"cap-formula",
     [](Hooks& k) {
       k.cap = [](const Call& c, float logit) { return logit * std::tanh(logit / static_cast<float>(c.p.softcap)); };
     }},

    {"cap-prescale",
     [](Hooks& k) {
       wrap(k.soften, [](auto& right, const Call& c, const Sequence& s, float dot) {
         if (c.p.softcap <= 0) return right(c, s, dot);
         return c.hooks.cap(c, stage::unscaled(c, s, dot)) * s.scale * c.numerics.units();
       });
     }},
    {"cap-prescale@log2",
     [](Hooks& k) {
       wrap(k.soften, [](auto& right, const Call& c, const Sequence& s, float dot) {
         if (c.p.softcap <= 0) return right(c, s, dot);
         return c.hooks.cap(c, stage::scaled(c, s, dot) * log2_e) / log2_e * c.numerics.units();
       });
     }},

    {"alibi-nonpow2",
     [](Hooks& k) { standard_slopes(k, [](double h, double heads) { return -8 * (h + 1) / heads; }); }},

    {"alibi-exponent",
     [](Hooks& k) {
       wrap(k.slopes, [](auto& right, const attest_problem& p) {
         std::vector<float> slopes = right(p);
         if (p.alibi == ATTEST_ALIBI_STANDARD) {
           for (std::int64_t h = 0; h < p.query_heads; ++h) {
             slopes[static_cast<std::size_t>(h)] = static_cast<float>(standard_alibi_slope(h - 1, p.query_heads));
           }
         }
         return slopes;
       });
     }},

    {"alibi-exponent@each-series",
     [](Hooks& k) {
       standard_slopes(k, [](double h, double heads) {
         const double n = power_of_two_up_to(heads);
         return h < n ? -8 * h / n : -8 * (h - n) / n;
       });
     }},
    {"alibi-exponent@first-series",
     [](Hooks& k) {
       standard_slopes(k, [](double h, double heads) {
         const double n = power_of_two_up_to(heads);
         return h < n ? -8 * h / n : -4 * (2 * (h - n) + 1) / n;
       });
     }},

    {"alibi-decode-zero",
     [](Hooks& k) {
       wrap(k.distance, [](auto& right, const Call& c, const Sequence& s, std::int64_t i, std::int64_t j) {
         return s.decode ? 0 : right(c, s, i, j);
       });
     }},

    {"sink-dropped", [](Hooks& k) { drop_sink(k, [](const Sequence&) { return true; }); }},
    {"sink-dropped@prefill", [](Hooks& k) { drop_sink(k, [](const Sequence& s) { return !s.decode; }); }},
    {"sink-dropped@decode", [](Hooks& k) { drop_sink(k, [](const Sequence& s) { return s.decode; }); }},

    {"sink-twice",  // in split 0, and in the first split that is not empty
     [](Hooks& k) {
       const auto again = [](const Call& c, const Row& row, std::int64_t split) {
         return !c.kernel.sinks.empty() && row.keys.begin != row.keys.end &&
                split == c.hooks.split_of(c.numerics, row.keys.begin / c.numerics.key_tile);
       };
       wrap(k.start, [again](auto& right, const Call& c, const Sequence& s, Row& row, std::int64_t split) {
         right(c, s, row, split);
         if (c.numerics.sink_last || !again(c, row, split)) return;
         if (split != 0) right(c, s, row, 0);
         if (split == 0) row.sum.add(row.sum[0]);
       });
       wrap(k.finish, [again](auto& right, const Call& c, const Sequence& s, Row& row, std::int64_t split) {
         right(c, s, row, split);
         if (c.numerics.sink_last && again(c, row, split)) right(c, s, row, 0);
       });
     }},

    {"sink-head-index",  // by the row's number; rows lie head after head
     [](Hooks& k) {
       k.sink_head = [](const Call& c, const Sequence& s, const Row& row) {
         return (row.head * s.queries + row.i) % c.p.query_heads;
       };
     }},

    {"sink-max",
     [](Hooks& k) {
       drop_sink(k, [](const Sequence&) { return true; });
       wrap(k.finish, [](auto& right, const Call& c, const Sequence& s, Row& row, std::int64_t split) {
         right(c, s, row, split);
         if (c.kernel.sinks.empty() || split != 0) return;
         const float sink = c.kernel.sinks[static_cast<std::size_t>(c.hooks.sink_head(c, s, row))];
         row.sum.add(c.numerics.power(sink * c.numerics.units() - row.maximum));
       });
     }},
};

}  // namespace mutants
