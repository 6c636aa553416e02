#include "lanes.hpp"

#include <algorithm>
#include <array>
#include <limits>
#include <vector>

#if defined(__x86_64__)
// GCC 12 takes the undefined registers of its own intrinsics for uninitialised variables.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#define BDC_AVX512 __attribute__((target("avx512f,avx512vl,avx512dq,avx512bw")))
#endif

namespace bdc::search {

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

double bonus_root(double count, std::uint32_t whole, const double* table) {
    return whole < kTabulated ? table[whole] : 1.0 / std::sqrt(count);
}

template <Bonus kBonus, bool kMean>
std::uint32_t portable(const Family& family, double factor, double unvisited) {
    const Header& head = family.head();
    const std::uint32_t* returns = family.n();
    const std::uint32_t* pending = family.pending();
    const double* value = kMean ? family.sum() : family.best();
    const double* prior = family.prior();
    const double* table = kBonus == Bonus::kInverseRoot ? inverse_roots() : nullptr;
    const bool all_open = head.open == head.count;
    double top = -kInfinity;
    std::uint32_t best = kNone;
    for (std::uint32_t i = 0; i < head.count; ++i) {
        if (!all_open && family.reason()[i] != 0) continue;
        const std::uint32_t n = returns[i], count = n + pending[i];
        double score = unvisited;
        if (n > 0) score = kMean ? value[i] / double(n) : value[i];
        if constexpr (kBonus == Bonus::kInverseRoot) {
            score = count > 0 ? score + factor * bonus_root(double(count), count, table) : kInfinity;
        } else {
            score += factor * prior[i] / (1.0 + double(count));
        }
        if (score > top || best == kNone || (score == top && wins_tie(family, i, best, true))) {
            top = score;
            best = i;
        }
    }
    return best;
}

#if defined(__x86_64__)

// Eight lanes' scores; lanes outside `lanes` give minus infinity.
template <Bonus kBonus, bool kMean>
BDC_AVX512 __m512d eight(const Family& family, std::uint32_t at, __mmask8 lanes, double factor,
                         double unvisited) {
    const __m256i n = _mm256_maskz_loadu_epi32(lanes, family.n() + at);
    const __m256i pending = _mm256_maskz_loadu_epi32(lanes, family.pending() + at);
    const __m512d returns = _mm512_cvtepu32_pd(n);
    const __m512d count = _mm512_cvtepu32_pd(_mm256_add_epi32(n, pending));
    const __mmask8 visited = _mm256_test_epi32_mask(n, n);
    __m512d q;
    if constexpr (kMean) {
        const __m512d sum = _mm512_maskz_loadu_pd(lanes, family.sum() + at);
        q = _mm512_mask_div_pd(_mm512_set1_pd(unvisited), visited, sum, returns);
    } else {
        q = _mm512_mask_loadu_pd(_mm512_set1_pd(unvisited), visited, family.best() + at);
    }
    const __m512d one = _mm512_set1_pd(1.0);
    __m512d score;
    if constexpr (kBonus == Bonus::kInverseRoot) {
        const __mmask8 counted = _mm512_cmp_pd_mask(count, _mm512_setzero_pd(), _CMP_GT_OQ);
        const __m512d root = _mm512_maskz_sqrt_pd(counted, count);
        const __m512d bonus = _mm512_maskz_div_pd(counted, one, root);
        score = _mm512_mask_add_pd(_mm512_set1_pd(kInfinity), counted, q,
                                   _mm512_mul_pd(_mm512_set1_pd(factor), bonus));
    } else {
        const __m512d prior = _mm512_maskz_loadu_pd(lanes, family.prior() + at);
        score = _mm512_add_pd(q, _mm512_div_pd(_mm512_mul_pd(_mm512_set1_pd(factor), prior),
                                               _mm512_add_pd(one, count)));
    }
    return _mm512_mask_mov_pd(_mm512_set1_pd(-kInfinity), lanes, score);
}

// The first of the lanes at `at` whose bit is set, or of these and `best`, that wins all ties.
std::uint32_t settle(const Family& family, std::uint32_t at, unsigned tied, std::uint32_t best) {
    for (; tied != 0; tied &= tied - 1) {
        const std::uint32_t lane = at + std::uint32_t(__builtin_ctz(tied));
        if (best == kNone || wins_tie(family, lane, best, true)) best = lane;
    }
    return best;
}

template <Bonus kBonus, bool kMean>
BDC_AVX512 std::uint32_t avx512(const Family& family, double factor, double unvisited) {
    const Header& head = family.head();
    if (head.count <= 4) return portable<kBonus, kMean>(family, factor, unvisited);
    double top = -kInfinity;
    std::uint32_t best = kNone;
    for (std::uint32_t at = 0; at < head.count; at += 8) {
        const std::uint32_t left = head.count - at;
        __mmask8 lanes = left >= 8 ? 0xFF : __mmask8((1u << left) - 1);
        if (head.open != head.count) {
            const __m128i reason = _mm_maskz_loadu_epi8(lanes, family.reason() + at);
            lanes &= __mmask8(~_mm_test_epi8_mask(reason, reason));
            if (lanes == 0) continue;
        }
        const __m512d score = eight<kBonus, kMean>(family, at, lanes, factor, unvisited);
        const double here = _mm512_reduce_max_pd(score);
        if (here < top) continue;
        const unsigned tied =
            lanes & unsigned(_mm512_cmp_pd_mask(score, _mm512_set1_pd(here), _CMP_EQ_OQ));
        if (here > top) best = kNone;
        top = here;
        if (best == kNone && (tied & (tied - 1)) == 0) {
            best = at + std::uint32_t(__builtin_ctz(tied));
        } else {
            best = settle(family, at, tied, best);
        }
    }
    return best;
}

bool has_avx512() {
    static const bool has = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
    return has;
}

#endif

template <template <Bonus, bool> class Form>
Pick choose(Bonus bonus, bool mean) {
    if (bonus == Bonus::kInverseRoot) {
        return mean ? Form<Bonus::kInverseRoot, true>::pick : Form<Bonus::kInverseRoot, false>::pick;
    }
    return mean ? Form<Bonus::kPrior, true>::pick : Form<Bonus::kPrior, false>::pick;
}

template <Bonus kBonus, bool kMean>
struct Portable {
    static constexpr Pick pick = portable<kBonus, kMean>;
};

#if defined(__x86_64__)
template <Bonus kBonus, bool kMean>
struct Avx512 {
    static constexpr Pick pick = avx512<kBonus, kMean>;
};
#endif

}  // namespace

const double* inverse_roots() {
    static const std::vector<double> table = [] {
        std::vector<double> roots(kTabulated);
        roots[0] = kInfinity;
        for (std::uint32_t i = 1; i < kTabulated; ++i) roots[i] = 1.0 / std::sqrt(double(i));
        return roots;
    }();
    return table.data();
}

bool wins_tie(const Family& family, std::uint32_t a, std::uint32_t b, bool turns) {
    if (family.prior()[a] != family.prior()[b]) return family.prior()[a] > family.prior()[b];
    const std::uint32_t n_a = family.n()[a] + family.pending()[a];
    const std::uint32_t n_b = family.n()[b] + family.pending()[b];
    if (n_a != n_b) return n_a < n_b;
    if (turns && family.tag()[a] != family.tag()[b]) {
        const Header& head = family.head();
        const std::uint32_t agents = 1u + *std::max_element(family.tag(), family.tag() + head.count);
        const std::uint32_t turn = (head.visits + head.pending - 1) % agents;
        const std::uint32_t after_a = (family.tag()[a] + agents - turn) % agents;
        const std::uint32_t after_b = (family.tag()[b] + agents - turn) % agents;
        return after_a < after_b;
    }
    return a < b;
}

Pick portable_pick(Bonus bonus, bool mean) { return choose<Portable>(bonus, mean); }

Pick fastest_pick(Bonus bonus, bool mean) {
#if defined(__x86_64__)
    if (has_avx512()) return choose<Avx512>(bonus, mean);
#endif
    return portable_pick(bonus, mean);
}

}  // namespace bdc::search
