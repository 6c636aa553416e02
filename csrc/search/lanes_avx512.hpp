// The lanes of a family four or eight at a time with AVX-512.
#pragma once

#include <type_traits>

#include "lanes.hpp"

#if defined(__x86_64__)

namespace bdc::search {

// Counts of eight lanes, and of four in half the width: a shorter way through the pipeline.
struct Eight {
    using Mask = __mmask8;
    static constexpr std::uint32_t kLanes = 8;
    using Reals = __m512d;
    using Words = __m512i;
    static BDC_AVX512 Words load(Mask m, const void* p) { return _mm512_maskz_loadu_epi64(m, p); }
    static BDC_AVX512 Reals reals(Mask m, const double* p) { return _mm512_maskz_loadu_pd(m, p); }
    static BDC_AVX512 Words low(Words x) {
        return _mm512_and_si512(x, _mm512_set1_epi64(0xFFFFFFFF));
    }
    static BDC_AVX512 Words high(Words x) { return _mm512_srli_epi64(x, 32); }
    static BDC_AVX512 Words add(Words a, Words b) { return _mm512_add_epi64(a, b); }
    static BDC_AVX512 Mask zeros(Mask m, Words x) { return _mm512_mask_testn_epi64_mask(m, x, x); }
    static BDC_AVX512 Reals real(Words x) { return _mm512_cvtepu64_pd(x); }
    static BDC_AVX512 Reals all(double x) { return _mm512_set1_pd(x); }
    static BDC_AVX512 Reals divide(Reals e, Mask m, Reals a, Reals b) {
        return _mm512_mask_div_pd(e, m, a, b);
    }
    static BDC_AVX512 Reals root(Reals x) { return _mm512_sqrt_pd(x); }
    static BDC_AVX512 Mask from(Mask m, Words x, std::uint64_t least) {
        return _mm512_mask_cmpge_epu64_mask(m, x, _mm512_set1_epi64((long long)(least)));
    }
    static BDC_AVX512 Reals gather(Mask m, Words at, const double* table) {
        return _mm512_mask_i64gather_pd(_mm512_setzero_pd(), m, at, table, 8);
    }
    static BDC_AVX512 Reals choose(Mask m, Reals a, Reals b) {
        return _mm512_mask_blend_pd(m, a, b);
    }
    static BDC_AVX512 Reals add(Reals a, Reals b) { return _mm512_add_pd(a, b); }
    static BDC_AVX512 Reals times(Reals a, Reals b) { return _mm512_mul_pd(a, b); }
    static BDC_AVX512 Reals larger(Reals a, Reals b) { return _mm512_max_pd(a, b); }
    static BDC_AVX512 Reals largest(Reals x) { return _mm512_set1_pd(_mm512_reduce_max_pd(x)); }
    static BDC_AVX512 Mask same(Mask m, Reals a, Reals b) {
        return _mm512_mask_cmp_pd_mask(m, a, b, _CMP_EQ_OQ);
    }
    static BDC_AVX512 Mask same(Mask m, Words a, std::uint64_t b) {
        return _mm512_mask_cmpeq_epi64_mask(m, a, _mm512_set1_epi64((long long)(b)));
    }
};

struct Four {
    using Mask = __mmask8;
    static constexpr std::uint32_t kLanes = 4;
    using Reals = __m256d;
    using Words = __m256i;
    static BDC_AVX512 Words load(Mask m, const void* p) { return _mm256_maskz_loadu_epi64(m, p); }
    static BDC_AVX512 Reals reals(Mask m, const double* p) { return _mm256_maskz_loadu_pd(m, p); }
    static BDC_AVX512 Words low(Words x) {
        return _mm256_and_si256(x, _mm256_set1_epi64x(0xFFFFFFFF));
    }
    static BDC_AVX512 Words high(Words x) { return _mm256_srli_epi64(x, 32); }
    static BDC_AVX512 Words add(Words a, Words b) { return _mm256_add_epi64(a, b); }
    static BDC_AVX512 Mask zeros(Mask m, Words x) { return _mm256_mask_testn_epi64_mask(m, x, x); }
    static BDC_AVX512 Reals real(Words x) { return _mm256_cvtepu64_pd(x); }
    static BDC_AVX512 Reals all(double x) { return _mm256_set1_pd(x); }
    static BDC_AVX512 Reals divide(Reals e, Mask m, Reals a, Reals b) {
        return _mm256_mask_div_pd(e, m, a, b);
    }
    static BDC_AVX512 Reals root(Reals x) { return _mm256_sqrt_pd(x); }
    static BDC_AVX512 Reals choose(Mask m, Reals a, Reals b) {
        return _mm256_mask_blend_pd(m, a, b);
    }
    static BDC_AVX512 Reals add(Reals a, Reals b) { return _mm256_add_pd(a, b); }
    static BDC_AVX512 Reals times(Reals a, Reals b) { return _mm256_mul_pd(a, b); }
    static BDC_AVX512 Reals larger(Reals a, Reals b) { return _mm256_max_pd(a, b); }
    static BDC_AVX512 Reals largest(Reals x) {
        const Reals pairs = _mm256_max_pd(x, _mm256_permute4x64_pd(x, 0x4E));
        return _mm256_max_pd(pairs, _mm256_permute_pd(pairs, 0x5));
    }
    static BDC_AVX512 Mask same(Mask m, Reals a, Reals b) {
        return _mm256_mask_cmp_pd_mask(m, a, b, _CMP_EQ_OQ);
    }
    static BDC_AVX512 Mask same(Mask m, Words a, std::uint64_t b) {
        return _mm256_mask_cmpeq_epi64_mask(m, a, _mm256_set1_epi64x((long long)(b)));
    }
};

template <Bonus kBonus, bool kMean>
struct Avx512Pick {
    static BDC_AVX512 std::uint32_t pick(const Family& family, double factor, double unvisited) {
        const std::uint32_t count = family.head().count;
        if (count <= 4) return within<Four>(family, factor, unvisited);
        if (count <= 8) return within<Eight>(family, factor, unvisited);
        if (count <= 64) return blocks(family, factor, unvisited);
        return PortablePick<kBonus, kMean>::pick(family, factor, unvisited);
    }

  private:
    static BDC_AVX512 std::uint8_t open_lanes(const Family& family, std::uint32_t at) {
        const std::uint32_t left = family.head().count - at;
        const __mmask8 lanes = left >= 8 ? 0xFF : __mmask8((1u << left) - 1);
        if (family.head().open == family.head().count) return lanes;
        const __m128i reason = _mm_maskz_loadu_epi8(lanes, family.reason() + at);
        return lanes & __mmask8(~_mm_test_epi8_mask(reason, reason));
    }

    // A division and a root of eight numbers less, one after the other in the unit that also
    // divides the sums. Four take as long from the table.
    template <class V>
    static BDC_AVX512 typename V::Reals inverse_root(typename V::Mask lanes,
                                                     typename V::Words counts) {
        if constexpr (std::is_same_v<V, Eight>) {
            if (gathered_roots != nullptr && V::from(lanes, counts, kTabulated) == 0) [[likely]] {
                return V::gather(lanes, counts, gathered_roots);
            }
        }
        const typename V::Reals one = V::all(1.0);
        return V::divide(one, lanes, one, V::root(V::real(counts)));
    }

    // Scores of the lanes from `at` on, minus infinity outside `lanes`. No count is 0 where the
    // bonus is kInverseRoot.
    template <class V>
    static BDC_AVX512 typename V::Reals score(const Family& family, std::uint32_t at,
                                              typename V::Mask lanes, double factor,
                                              double unvisited, typename V::Words n,
                                              typename V::Words counts) {
        const auto visited = typename V::Mask(lanes & ~V::zeros(lanes, n));
        typename V::Reals q;
        if constexpr (kMean) {
            q = V::divide(V::all(unvisited), visited, V::reals(lanes, family.sum() + at),
                          V::real(n));
        } else {
            q = V::choose(visited, V::all(unvisited), V::reals(lanes, family.best() + at));
        }
        const typename V::Reals f = V::all(factor), one = V::all(1.0);
        typename V::Reals bonus;
        if constexpr (kBonus == Bonus::kInverseRoot) {
            bonus = V::times(f, inverse_root<V>(lanes, counts));
        } else {
            bonus = V::divide(one, lanes, V::times(f, V::reals(lanes, family.prior() + at)),
                              V::add(one, V::real(counts)));
        }
        const auto nowhere = V::all(-std::numeric_limits<double>::infinity());
        return V::choose(lanes, nowhere, V::add(q, bonus));
    }

    // Are the lanes `at` + `tied` like lane `first` in all that decides ties? They mostly are, and
    // then the first of them wins: a branch that is foreseen, unlike whether there is a tie at all.
    template <class V>
    static BDC_AVX512 bool alike(const Family& family, std::uint32_t at, typename V::Mask tied,
                                 std::uint32_t first, typename V::Words counts) {
        const auto equal = V::same(tied, counts, family.tally()[first].count());
        if (family.head().even) return equal == tied;
        const auto priors =
            V::same(tied, V::reals(tied, family.prior() + at), V::all(family.prior()[first]));
        const __m128i tags = _mm_maskz_loadu_epi16(tied, family.tag() + at);
        const __m128i tag = _mm_set1_epi16(short(family.tag()[first]));
        return (priors & equal & _mm_mask_cmpeq_epi16_mask(tied, tags, tag)) == tied;
    }

    template <class V>
    static BDC_AVX512 std::uint32_t within(const Family& family, double factor, double unvisited) {
        const typename V::Mask lanes = open_lanes(family, 0);
        const typename V::Words both = V::load(lanes, family.tally());
        const typename V::Words n = V::low(both), counts = V::add(n, V::high(both));
        typename V::Mask tied = 0;
        if constexpr (kBonus == Bonus::kInverseRoot) tied = V::zeros(lanes, counts);
        if (tied != 0 && family.head().even) return std::uint32_t(__builtin_ctz(tied));
        if (tied == 0) {
            const auto scores = score<V>(family, 0, lanes, factor, unvisited, n, counts);
            tied = V::same(lanes, scores, V::largest(scores));
        }
        const auto first = std::uint32_t(__builtin_ctz(tied));
        return alike<V>(family, 0, tied, first, counts) ? first : settle(family, tied);
    }

    static BDC_AVX512 std::uint32_t blocks(const Family& family, double factor, double unvisited) {
        const std::uint32_t blocks = (family.head().count + 7) / 8;
        __m512i n[8], counts[8];
        __mmask8 open[8];
        std::uint64_t tied = 0;
        for (std::uint32_t i = 0; i < blocks; ++i) {
            open[i] = open_lanes(family, 8 * i);
            const __m512i both = Eight::load(open[i], family.tally() + 8 * i);
            n[i] = Eight::low(both);
            counts[i] = Eight::add(n[i], Eight::high(both));
            if constexpr (kBonus == Bonus::kInverseRoot) {
                tied |= std::uint64_t(Eight::zeros(open[i], counts[i])) << (8 * i);
            }
        }
        if (tied != 0 && family.head().even) return std::uint32_t(__builtin_ctzll(tied));
        if (tied == 0) {
            __m512d scores[8];
            __m512d top = Eight::all(-std::numeric_limits<double>::infinity());
            for (std::uint32_t i = 0; i < blocks; ++i) {
                scores[i] =
                    score<Eight>(family, 8 * i, open[i], factor, unvisited, n[i], counts[i]);
                top = Eight::larger(top, scores[i]);
            }
            top = Eight::largest(top);
            for (std::uint32_t i = 0; i < blocks; ++i) {
                tied |= std::uint64_t(Eight::same(open[i], scores[i], top)) << (8 * i);
            }
        }
        const auto first = std::uint32_t(__builtin_ctzll(tied));
        if ((tied & (tied - 1)) == 0) return first;
        bool same = true;
        for (std::uint32_t i = first / 8; i < blocks; ++i) {
            same &= alike<Eight>(family, 8 * i, __mmask8(tied >> (8 * i)), first, counts[i]);
        }
        return same ? first : settle(family, tied);
    }
};

}  // namespace bdc::search
#endif
