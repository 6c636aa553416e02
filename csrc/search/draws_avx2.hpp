// Draws four at a time with AVX2.
#pragma once

#include "draws.hpp"
#include "lanes_avx2.hpp"

#if defined(__x86_64__)

namespace bdc::search::avx2 {

// Four streams side by side. `good` are the lanes that have kept up with the scalar form; it loses
// those that need one of its rarer branches or a second attempt.
struct Streams {
    __m256i state;

    static BDC_AVX2 __m256i times(__m256i x, std::uint64_t by) {
        const __m256i low = _mm256_set1_epi64x((long long)(by & 0xFFFFFFFF));
        const __m256i high = _mm256_set1_epi64x((long long)(by >> 32));
        const __m256i cross = _mm256_add_epi64(_mm256_mul_epu32(_mm256_srli_epi64(x, 32), low),
                                               _mm256_mul_epu32(x, high));
        return _mm256_add_epi64(_mm256_mul_epu32(x, low), _mm256_slli_epi64(cross, 32));
    }
    static BDC_AVX2 __m256i mixed(__m256i x) {
        x = _mm256_add_epi64(x, _mm256_set1_epi64x((long long)(0x9E3779B97F4A7C15ull)));
        x = times(_mm256_xor_si256(x, _mm256_srli_epi64(x, 30)), 0xBF58476D1CE4E5B9ull);
        x = times(_mm256_xor_si256(x, _mm256_srli_epi64(x, 27)), 0x94D049BB133111EBull);
        return _mm256_xor_si256(x, _mm256_srli_epi64(x, 31));
    }
    BDC_AVX2 __m256i next() {
        state = _mm256_add_epi64(state, _mm256_set1_epi64x((long long)(0x9E3779B97F4A7C15ull)));
        return mixed(state);
    }
    static BDC_AVX2 __m256d reals(__m256i bits) {  // the upper 53, exactly
        const __m256i x = _mm256_srli_epi64(bits, 11);
        const __m256i low = _mm256_blend_epi32(x, _mm256_set1_epi64x(0x4330000000000000), 0xAA);
        const __m256i high =
            _mm256_or_si256(_mm256_srli_epi64(x, 32), _mm256_set1_epi64x(0x4530000000000000));
        return _mm256_add_pd(
            _mm256_sub_pd(_mm256_castsi256_pd(high), _mm256_set1_pd(0x1.0p84 + 0x1.0p52)),
            _mm256_castsi256_pd(low));
    }
    static BDC_AVX2 __m256d unit(__m256i bits) {
        return _mm256_mul_pd(_mm256_add_pd(reals(bits), _mm256_set1_pd(0.5)),
                             _mm256_set1_pd(0x1.0p-53));
    }
    BDC_AVX2 __m256d uniform() { return unit(next()); }
    BDC_AVX2 __m256d normal(__m256d& good) {
        const Ziggurat& table = ziggurat();
        const __m256i bits = next();
        const __m256i layer = _mm256_and_si256(bits, _mm256_set1_epi64x(0xFF));
        const __m256d width = _mm256_i64gather_pd(table.x, layer, 8);
        const __m256d inner = _mm256_i64gather_pd(table.x + 1, layer, 8);
        const __m256d one = _mm256_set1_pd(1.0);
        const __m256d x = _mm256_mul_pd(
            _mm256_sub_pd(_mm256_mul_pd(reals(bits), _mm256_set1_pd(0x1.0p-52)), one), width);
        const __m256d size = _mm256_andnot_pd(_mm256_set1_pd(-0.0), x);
        good = _mm256_and_pd(good, _mm256_cmp_pd(size, inner, _CMP_LT_OQ));
        return x;
    }
    BDC_AVX2 __m256d gamma(__m256d shape, __m256d& good) {
        const __m256d one = _mm256_set1_pd(1.0);
        good = _mm256_and_pd(good, _mm256_cmp_pd(shape, one, _CMP_GE_OQ));
        const __m256d d = _mm256_sub_pd(shape, _mm256_set1_pd(1.0 / 3.0));
        const __m256d c = _mm256_div_pd(one, _mm256_sqrt_pd(_mm256_mul_pd(_mm256_set1_pd(9.0), d)));
        const __m256d x = normal(good);
        const __m256d t = _mm256_add_pd(one, _mm256_mul_pd(c, x));
        good = _mm256_and_pd(good, _mm256_cmp_pd(t, _mm256_setzero_pd(), _CMP_GT_OQ));
        const __m256d v = _mm256_mul_pd(_mm256_mul_pd(t, t), t);
        const __m256d square = _mm256_mul_pd(x, x);
        const __m256d accepted = _mm256_sub_pd(
            one, _mm256_mul_pd(_mm256_mul_pd(_mm256_set1_pd(0.0331), square), square));
        const __m256d u = uniform();
        const __m256d settled = _mm256_cmp_pd(u, accepted, _CMP_LT_OQ);
        if (_mm256_movemask_pd(_mm256_andnot_pd(settled, good)) != 0) {
            good = _mm256_and_pd(good, _mm256_or_pd(settled, sure(u, square, d, v)));
        }
        return _mm256_mul_pd(d, v);
    }
    // Where log(u) < x^2 / 2 + d - d v + d log(v) beyond doubt; a tenth of all attempts need it.
    static BDC_AVX2 __m256d sure(__m256d u, __m256d square, __m256d d, __m256d v) {
        const __m256d one = _mm256_set1_pd(1.0);
        const __m256d limit =
            _mm256_add_pd(_mm256_mul_pd(d, _mm256_add_pd(_mm256_sub_pd(one, v), rough_log(v))),
                          _mm256_mul_pd(_mm256_set1_pd(0.5), square));
        const __m256d doubt = _mm256_mul_pd(_mm256_set1_pd(1e-7), _mm256_add_pd(one, d));
        return _mm256_cmp_pd(rough_log(u), _mm256_sub_pd(limit, doubt), _CMP_LT_OQ);
    }
    // To about 1e-9, of positive normal numbers: 2 atanh((m - 1) / (m + 1)) for m in 1..2 as a
    // series.
    static BDC_AVX2 __m256d rough_log(__m256d x) {
        const __m256d one = _mm256_set1_pd(1.0);
        const __m256i bits = _mm256_castpd_si256(x);
        const __m256d exponent =
            _mm256_sub_pd(real(_mm256_srli_epi64(bits, 52)), _mm256_set1_pd(1023.0));
        const __m256d m = _mm256_or_pd(
            _mm256_and_pd(x, _mm256_castsi256_pd(_mm256_set1_epi64x(0x000FFFFFFFFFFFFF))), one);
        const __m256d t = _mm256_div_pd(_mm256_sub_pd(m, one), _mm256_add_pd(m, one));
        const __m256d square = _mm256_mul_pd(t, t);
        __m256d series = _mm256_set1_pd(2.0 / 17);
        for (const int k : {15, 13, 11, 9, 7, 5, 3, 1}) {
            series = _mm256_add_pd(_mm256_mul_pd(series, square), _mm256_set1_pd(2.0 / k));
        }
        return _mm256_add_pd(_mm256_mul_pd(exponent, _mm256_set1_pd(0.6931471805599453)),
                             _mm256_mul_pd(series, t));
    }
};

// What is drawn for in four lanes.
struct Four {
    __m256i lanes, id;
    __m256d n, sum;

    BDC_AVX2 Four(const Family& family, std::uint32_t at, std::uint32_t count)
        : lanes(first_lanes(count - at)) {
        const auto* tally = reinterpret_cast<const long long*>(family.tally() + at);
        n = real(
            _mm256_and_si256(_mm256_maskload_epi64(tally, lanes), _mm256_set1_epi64x(0xFFFFFFFF)));
        sum = _mm256_maskload_pd(family.sum() + at, lanes);
        // Beyond the last lane this reads of the fields that follow.
        id = _mm256_cvtepu32_epi64(
            _mm_loadu_si128(reinterpret_cast<const __m128i*>(family.id() + at)));
    }
    BDC_AVX2 __m256i keys(std::uint64_t moment) const {
        return Streams::mixed(_mm256_xor_si256(id, _mm256_set1_epi64x((long long)(moment))));
    }
    BDC_AVX2 __m256d hits(const Posterior& posterior) const {
        return _mm256_add_pd(_mm256_set1_pd(posterior.a), _mm256_max_pd(sum, _mm256_setzero_pd()));
    }
    BDC_AVX2 __m256d misses(const Posterior& posterior) const {
        return _mm256_add_pd(_mm256_set1_pd(posterior.b),
                             _mm256_max_pd(_mm256_sub_pd(n, sum), _mm256_setzero_pd()));
    }
    BDC_AVX2 __m256d mean(const Posterior& posterior) const {
        return _mm256_div_pd(_mm256_add_pd(_mm256_set1_pd(posterior.a), sum),
                             _mm256_add_pd(_mm256_set1_pd(1.0), n));
    }
};

inline BDC_AVX2 void draw_each(const Posterior& posterior, Family family, std::uint64_t moment,
                               std::uint32_t count, double* out) {
    for (std::uint32_t at = 0; at < count; at += 4) {
        const Four four(family, at, count);
        Streams streams{four.keys(moment)};
        __m256d good = _mm256_castsi256_pd(four.lanes);
        __m256d drawn;
        if (posterior.normal) {
            const __m256d seen = _mm256_add_pd(_mm256_set1_pd(1.0), four.n);
            const __m256d scale = _mm256_div_pd(_mm256_set1_pd(posterior.b), _mm256_sqrt_pd(seen));
            drawn = _mm256_add_pd(four.mean(posterior), _mm256_mul_pd(scale, streams.normal(good)));
        } else {
            const __m256d x = streams.gamma(four.hits(posterior), good);
            const __m256d y = streams.gamma(four.misses(posterior), good);
            drawn = _mm256_div_pd(x, _mm256_add_pd(x, y));
        }
        _mm256_storeu_pd(out + at, drawn);
        const __m256d bad = _mm256_andnot_pd(good, _mm256_castsi256_pd(four.lanes));
        for (unsigned left = unsigned(_mm256_movemask_pd(bad)); left != 0; left &= left - 1) {
            const std::uint32_t lane = at + std::uint32_t(__builtin_ctz(left));
            out[lane] = draw_lane(posterior, family, moment, lane);
        }
    }
}

// At most the binary logarithm of a positive number: its bits, read with a point below the
// exponent.
inline BDC_AVX2 __m256d least_log2(__m256d x) {
    const __m256d bits = real(_mm256_srli_epi64(_mm256_castpd_si256(x), 20));
    return _mm256_sub_pd(_mm256_mul_pd(bits, _mm256_set1_pd(0x1.0p-32)), _mm256_set1_pd(1023.0));
}

// Is a bound of the probability that a draw is above the floor e^-most or less? For a beta without
// logarithms: Chernoff's exponent is at least half the distance squared over the variance, the
// largest between its mean and the floor. Multiplied out, for there is no division then.
inline BDC_AVX2 __m256d beyond(const Posterior& posterior, const Four& four, double floor,
                               __m256d most) {
    const __m256d zero = _mm256_setzero_pd(), up = _mm256_set1_pd(floor);
    if (posterior.normal) {
        const __m256d seen = _mm256_add_pd(_mm256_set1_pd(1.0), four.n);
        const __m256d total = _mm256_add_pd(_mm256_set1_pd(posterior.a), four.sum);
        const __m256d far =
            _mm256_mul_pd(_mm256_max_pd(_mm256_sub_pd(_mm256_mul_pd(up, seen), total), zero),
                          _mm256_set1_pd(1.0 / posterior.b));
        const __m256d square = _mm256_div_pd(_mm256_mul_pd(far, far), seen);
        const __m256d log2 =
            least_log2(_mm256_mul_pd(square, _mm256_set1_pd(kRootTwoPi * kRootTwoPi)));
        const __m256d twice =
            _mm256_add_pd(square, _mm256_mul_pd(log2, _mm256_set1_pd(0.6931471805599453)));
        return _mm256_and_pd(
            _mm256_cmp_pd(twice, _mm256_add_pd(most, most), _CMP_GT_OQ),
            _mm256_cmp_pd(square, _mm256_set1_pd(kNear * kNear * 1.001), _CMP_GT_OQ));
    }
    const __m256d hits = four.hits(posterior), misses = four.misses(posterior);
    const __m256d total = _mm256_add_pd(hits, misses);
    const __m256d far = _mm256_max_pd(_mm256_sub_pd(_mm256_mul_pd(up, total), hits), zero);
    const __m256d widest = _mm256_set1_pd(floor <= 0.5 ? floor * (1.0 - floor) : 0.25);
    const __m256d variance =
        _mm256_blendv_pd(_mm256_mul_pd(widest, _mm256_mul_pd(total, total)),
                         _mm256_mul_pd(hits, misses), _mm256_cmp_pd(hits, misses, _CMP_GE_OQ));
    return _mm256_cmp_pd(_mm256_mul_pd(total, _mm256_mul_pd(far, far)),
                         _mm256_mul_pd(_mm256_add_pd(variance, variance), most), _CMP_GT_OQ);
}

inline BDC_AVX2 Reach in_reach(const Posterior& posterior, Family family, std::uint64_t moment,
                               std::uint32_t from, double floor) {
    const std::uint32_t count = family.head().count;
    for (std::uint32_t at = from; at < count; at += kBlock) {
        unsigned found = 0;
        for (std::uint32_t i = 0; i < kBlock && at + i < count; i += 4) {
            const Four four(family, at + i, count);
            // Of u the upper 31 bits; the factor is for rounding.
            const __m256d u = real(_mm256_srli_epi64(four.keys(moment), 33));
            const __m256d most = _mm256_mul_pd(_mm256_sub_pd(_mm256_set1_pd(31.0), least_log2(u)),
                                               _mm256_set1_pd(0.6931471805599453 * 1.001));
            const __m256d out = beyond(posterior, four, floor, most);
            const __m256d in = _mm256_andnot_pd(out, _mm256_castsi256_pd(four.lanes));
            found |= unsigned(_mm256_movemask_pd(in)) << i;
        }
        if (found != 0) return {at, found};
    }
    return {count, 0};
}

}  // namespace bdc::search::avx2
#endif
