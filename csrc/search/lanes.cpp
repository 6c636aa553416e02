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
            score =
                count > 0 ? score + factor * bonus_root(double(count), count, table) : kInfinity;
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

// The same for at most four lanes, in half the width: a shorter way through the pipeline.
template <Bonus kBonus, bool kMean>
BDC_AVX512 __m256d four(const Family& family, __mmask8 lanes, double factor, double unvisited) {
    const __m128i n = _mm_maskz_loadu_epi32(lanes, family.n());
    const __m128i pending = _mm_maskz_loadu_epi32(lanes, family.pending());
    const __m256d count = _mm256_cvtepu32_pd(_mm_add_epi32(n, pending));
    const __mmask8 visited = _mm_test_epi32_mask(n, n);
    __m256d q;
    if constexpr (kMean) {
        const __m256d sum = _mm256_maskz_loadu_pd(lanes, family.sum());
        q = _mm256_mask_div_pd(_mm256_set1_pd(unvisited), visited, sum, _mm256_cvtepu32_pd(n));
    } else {
        q = _mm256_mask_loadu_pd(_mm256_set1_pd(unvisited), visited, family.best());
    }
    const __m256d one = _mm256_set1_pd(1.0);
    __m256d score;
    if constexpr (kBonus == Bonus::kInverseRoot) {
        const __mmask8 counted = _mm256_cmp_pd_mask(count, _mm256_setzero_pd(), _CMP_GT_OQ);
        const __m256d bonus =
            _mm256_maskz_div_pd(counted, one, _mm256_maskz_sqrt_pd(counted, count));
        score = _mm256_mask_add_pd(_mm256_set1_pd(kInfinity), counted, q,
                                   _mm256_mul_pd(_mm256_set1_pd(factor), bonus));
    } else {
        const __m256d prior = _mm256_maskz_loadu_pd(lanes, family.prior());
        score = _mm256_add_pd(q, _mm256_div_pd(_mm256_mul_pd(_mm256_set1_pd(factor), prior),
                                               _mm256_add_pd(one, count)));
    }
    return _mm256_mask_mov_pd(_mm256_set1_pd(-kInfinity), lanes, score);
}

BDC_AVX512 __mmask8 open_lanes(const Family& family, std::uint32_t at) {
    const std::uint32_t left = family.head().count - at;
    const __mmask8 lanes = left >= 8 ? 0xFF : __mmask8((1u << left) - 1);
    if (family.head().open == family.head().count) return lanes;
    const __m128i reason = _mm_maskz_loadu_epi8(lanes, family.reason() + at);
    return lanes & __mmask8(~_mm_test_epi8_mask(reason, reason));
}

// Of lanes with equal scores (a bit each) the one that wins the tie.
std::uint32_t settle(const Family& family, std::uint64_t tied) {
    auto best = std::uint32_t(__builtin_ctzll(tied));
    for (tied &= tied - 1; tied != 0; tied &= tied - 1) {
        const auto lane = std::uint32_t(__builtin_ctzll(tied));
        if (wins_tie(family, lane, best, true)) best = lane;
    }
    return best;
}

// Are the lanes `at` + `tied` like lane `first` in all that decides ties? They mostly are, and then
// the first of them wins: a branch that is foreseen, unlike whether there is a tie at all.
BDC_AVX512 bool alike(const Family& family, std::uint32_t at, __mmask8 tied, std::uint32_t first) {
    const __m512d priors = _mm512_maskz_loadu_pd(tied, family.prior() + at);
    const __m256i counts = _mm256_add_epi32(_mm256_maskz_loadu_epi32(tied, family.n() + at),
                                            _mm256_maskz_loadu_epi32(tied, family.pending() + at));
    const __m128i tags = _mm_maskz_loadu_epi16(tied, family.tag() + at);
    const auto count = int(family.n()[first] + family.pending()[first]);
    return (_mm512_mask_cmp_pd_mask(tied, priors, _mm512_set1_pd(family.prior()[first]),
                                    _CMP_EQ_OQ) &
            _mm256_mask_cmpeq_epi32_mask(tied, counts, _mm256_set1_epi32(count)) &
            _mm_mask_cmpeq_epi16_mask(tied, tags, _mm_set1_epi16(short(family.tag()[first])))) ==
           tied;
}

// The same for at most four lanes.
BDC_AVX512 bool alike_four(const Family& family, __mmask8 tied, std::uint32_t first) {
    const __m256d priors = _mm256_maskz_loadu_pd(tied, family.prior());
    const __m128i counts = _mm_add_epi32(_mm_maskz_loadu_epi32(tied, family.n()),
                                         _mm_maskz_loadu_epi32(tied, family.pending()));
    const __m128i tags = _mm_maskz_loadu_epi16(tied, family.tag());
    const auto count = int(family.n()[first] + family.pending()[first]);
    return (_mm256_mask_cmp_pd_mask(tied, priors, _mm256_set1_pd(family.prior()[first]),
                                    _CMP_EQ_OQ) &
            _mm_mask_cmpeq_epi32_mask(tied, counts, _mm_set1_epi32(count)) &
            _mm_mask_cmpeq_epi16_mask(tied, tags, _mm_set1_epi16(short(family.tag()[first])))) ==
           tied;
}

template <Bonus kBonus, bool kMean>
BDC_AVX512 std::uint32_t avx512(const Family& family, double factor, double unvisited) {
    const std::uint32_t count = family.head().count;
    if (count <= 4) {
        const __mmask8 lanes = open_lanes(family, 0);
        const __m256d score = four<kBonus, kMean>(family, lanes, factor, unvisited);
        const __m256d pairs = _mm256_max_pd(score, _mm256_permute4x64_pd(score, 0x4E));
        const __m256d top = _mm256_max_pd(pairs, _mm256_permute_pd(pairs, 0x5));
        const __mmask8 tied = _mm256_mask_cmp_pd_mask(lanes, score, top, _CMP_EQ_OQ);
        const auto first = std::uint32_t(__builtin_ctz(tied));
        return alike_four(family, tied, first) ? first : settle(family, tied);
    }
    if (count <= 8) {
        const __mmask8 lanes = open_lanes(family, 0);
        const __m512d score = eight<kBonus, kMean>(family, 0, lanes, factor, unvisited);
        const __m512d top = _mm512_set1_pd(_mm512_reduce_max_pd(score));
        const __mmask8 tied = _mm512_mask_cmp_pd_mask(lanes, score, top, _CMP_EQ_OQ);
        const auto first = std::uint32_t(__builtin_ctz(tied));
        return alike(family, 0, tied, first) ? first : settle(family, tied);
    }
    if (count > 64) return portable<kBonus, kMean>(family, factor, unvisited);
    __m512d scores[8];
    __mmask8 open[8];
    __m512d largest = _mm512_set1_pd(-kInfinity);
    const std::uint32_t blocks = (count + 7) / 8;
    for (std::uint32_t i = 0; i < blocks; ++i) {
        open[i] = open_lanes(family, 8 * i);
        scores[i] = eight<kBonus, kMean>(family, 8 * i, open[i], factor, unvisited);
        largest = _mm512_max_pd(largest, scores[i]);
    }
    const __m512d top = _mm512_set1_pd(_mm512_reduce_max_pd(largest));
    std::uint64_t tied = 0;
    for (std::uint32_t i = 0; i < blocks; ++i) {
        const auto here = _mm512_mask_cmp_pd_mask(open[i], scores[i], top, _CMP_EQ_OQ);
        tied |= std::uint64_t(here) << (8 * i);
    }
    const auto first = std::uint32_t(__builtin_ctzll(tied));
    if ((tied & (tied - 1)) == 0) return first;
    bool same = true;
    for (std::uint32_t at = first / 8 * 8; at < count; at += 8) {
        same &= alike(family, at, __mmask8(tied >> at), first);
    }
    return same ? first : settle(family, tied);
}

bool has_avx512() {
    static const bool has =
        __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
    return has;
}

#endif

template <template <Bonus, bool> class Form>
Pick choose(Bonus bonus, bool mean) {
    if (bonus == Bonus::kInverseRoot) {
        return mean ? Form<Bonus::kInverseRoot, true>::pick
                    : Form<Bonus::kInverseRoot, false>::pick;
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
        const std::uint32_t agents =
            1u + *std::max_element(family.tag(), family.tag() + head.count);
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
