// The lanes of a family four at a time with AVX2.
#pragma once

#include <algorithm>
#include <cstring>

#include "lanes.hpp"

#if defined(__x86_64__)

namespace bdc::search {

namespace avx2 {

// All bits set in the first `count` of four lanes.
inline BDC_AVX2 __m256i first_lanes(std::uint32_t count) {
    static constexpr std::int64_t kFirst[8] = {-1, -1, -1, -1, 0, 0, 0, 0};
    const std::int64_t* from = kFirst + 4 - std::min<std::uint32_t>(count, 4);
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
}

inline BDC_AVX2 __m256d real(__m256i x) {  // of numbers below 2^52
    const __m256i shift = _mm256_set1_epi64x(0x4330000000000000);
    return _mm256_sub_pd(_mm256_castsi256_pd(_mm256_or_si256(x, shift)),
                         _mm256_castsi256_pd(shift));
}

// The largest of four, in all of them.
inline BDC_AVX2 __m256d largest(__m256d x) {
    x = _mm256_max_pd(x, _mm256_permute4x64_pd(x, 0x4E));
    return _mm256_max_pd(x, _mm256_permute_pd(x, 0x5));
}

}  // namespace avx2

template <Bonus kBonus, bool kMean>
struct Avx2Pick {
    static BDC_AVX2 std::uint32_t pick(const Family& family, double factor, double unvisited) {
        const std::uint32_t count = family.head().count;
        if (count <= 4) return within<1>(family, factor, unvisited);
        if (count <= 8) return within<2>(family, factor, unvisited);
        if (count <= 64) return within<16>(family, factor, unvisited);
        return PortablePick<kBonus, kMean>::pick(family, factor, unvisited);
    }

  private:
    // All bits set where lane `at` + i is there and open.
    static BDC_AVX2 __m256i open_lanes(const Family& family, std::uint32_t at) {
        const Header& head = family.head();
        const std::uint32_t left = std::min<std::uint32_t>(head.count - at, 4);
        const __m256i lanes = avx2::first_lanes(left);
        if (head.open == head.count) return lanes;
        std::uint32_t reasons = 0;
        std::memcpy(&reasons, family.reason() + at, left);
        const __m256i reason = _mm256_cvtepu8_epi64(_mm_cvtsi32_si128(int(reasons)));
        return _mm256_and_si256(lanes, _mm256_cmpeq_epi64(reason, _mm256_setzero_si256()));
    }

    static BDC_AVX2 unsigned bits(__m256d lanes) { return unsigned(_mm256_movemask_pd(lanes)); }
    static BDC_AVX2 __m256d reals(const double* from, __m256i lanes) {
        return _mm256_maskload_pd(from, lanes);
    }
    static BDC_AVX2 __m256i zeros(__m256i x) {
        return _mm256_cmpeq_epi64(x, _mm256_setzero_si256());
    }

    struct Four {
        __m256i open, n, counts;
    };
    static BDC_AVX2 Four load(const Family& family, std::uint32_t at) {
        const __m256i open = open_lanes(family, at);
        const auto* from = reinterpret_cast<const long long*>(family.tally() + at);
        const __m256i both = _mm256_maskload_epi64(from, open);
        const __m256i n = _mm256_and_si256(both, _mm256_set1_epi64x(0xFFFFFFFF));
        return {open, n, _mm256_add_epi64(n, _mm256_srli_epi64(both, 32))};
    }

    // Minus infinity outside the open lanes. No count is 0 where the bonus is kInverseRoot.
    static BDC_AVX2 __m256d score(const Family& family, std::uint32_t at, const Four& four,
                                  double factor, double unvisited) {
        const double* values = kMean ? family.sum() : family.best();
        __m256d q = reals(values + at, four.open);
        if constexpr (kMean) q = _mm256_div_pd(q, avx2::real(four.n));
        q = _mm256_blendv_pd(q, _mm256_set1_pd(unvisited), _mm256_castsi256_pd(zeros(four.n)));
        const __m256d f = _mm256_set1_pd(factor), one = _mm256_set1_pd(1.0);
        __m256d bonus = avx2::real(four.counts);
        if constexpr (kBonus == Bonus::kInverseRoot) {
            bonus = _mm256_mul_pd(f, _mm256_div_pd(one, _mm256_sqrt_pd(bonus)));
        } else {
            bonus = _mm256_div_pd(_mm256_mul_pd(f, reals(family.prior() + at, four.open)),
                                  _mm256_add_pd(one, bonus));
        }
        const auto nowhere = _mm256_set1_pd(-std::numeric_limits<double>::infinity());
        return _mm256_blendv_pd(nowhere, _mm256_add_pd(q, bonus), _mm256_castsi256_pd(four.open));
    }

    // Are the lanes `at` + `tied` like lane `first` in all that decides ties?
    static BDC_AVX2 bool alike(const Family& family, std::uint32_t at, unsigned tied,
                               std::uint32_t first, const Four& four) {
        const __m256i counts =
            _mm256_cmpeq_epi64(four.counts, _mm256_set1_epi64x(family.tally()[first].count()));
        if (family.head().even) return (tied & ~bits(_mm256_castsi256_pd(counts))) == 0;
        const __m256d prior = _mm256_set1_pd(family.prior()[first]);
        const __m256d priors =
            _mm256_cmp_pd(reals(family.prior() + at, four.open), prior, _CMP_EQ_OQ);
        const __m128i tags =
            _mm_cmpeq_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(family.tag() + at)),
                            _mm_set1_epi16(short(family.tag()[first])));
        const __m256i both = _mm256_and_si256(counts, _mm256_cvtepi16_epi64(tags));
        const unsigned equal = bits(_mm256_and_pd(priors, _mm256_castsi256_pd(both)));
        return (tied & ~equal) == 0;
    }

    template <std::uint32_t kBlocks>
    static BDC_AVX2 std::uint32_t within(const Family& family, double factor, double unvisited) {
        const std::uint32_t blocks = kBlocks <= 2 ? kBlocks : (family.head().count + 3) / 4;
        if (blocks == 0) __builtin_unreachable();  // a family has a lane
        Four fours[kBlocks];
        std::uint64_t tied = 0;
        for (std::uint32_t i = 0; i < blocks; ++i) {
            fours[i] = load(family, 4 * i);
            if constexpr (kBonus == Bonus::kInverseRoot) {
                const __m256i fresh = _mm256_and_si256(zeros(fours[i].counts), fours[i].open);
                tied |= std::uint64_t(bits(_mm256_castsi256_pd(fresh))) << (4 * i);
            }
        }
        if (tied != 0 && family.head().even) return std::uint32_t(__builtin_ctzll(tied));
        if (tied == 0) {
            __m256d scores[kBlocks];
            __m256d top = scores[0] = score(family, 0, fours[0], factor, unvisited);
            for (std::uint32_t i = 1; i < blocks; ++i) {
                scores[i] = score(family, 4 * i, fours[i], factor, unvisited);
                top = _mm256_max_pd(top, scores[i]);
            }
            top = avx2::largest(top);
            for (std::uint32_t i = 0; i < blocks; ++i) {
                const __m256d same = _mm256_cmp_pd(scores[i], top, _CMP_EQ_OQ);
                tied |= std::uint64_t(bits(_mm256_and_pd(same, _mm256_castsi256_pd(fours[i].open))))
                        << (4 * i);
            }
        }
        const auto first = std::uint32_t(__builtin_ctzll(tied));
        if ((tied & (tied - 1)) == 0) return first;
        for (std::uint32_t i = first / 4; i < blocks; ++i) {
            const unsigned here = unsigned(tied >> (4 * i)) & 0xF;
            if (!alike(family, 4 * i, here, first, fours[i])) return settle(family, tied);
        }
        return first;
    }
};

}  // namespace bdc::search
#endif
