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
        return _mm256_add_pd(_mm256_mul_pd(exponent, _mm256_set1_pd(kLn2)),
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

// Eight lanes in single precision, for bounds that err to the safe side.
struct Eight {
    __m256 n, sum;

    // Beyond the last lane of a family of many this reads of the fields that follow.
    BDC_AVX2 Eight(const Family& family, std::uint32_t at) {
        const auto* tally = reinterpret_cast<const float*>(family.tally() + at);
        const __m256 counts =  // the lower halves of 0 1 4 5 2 3 6 7
            _mm256_shuffle_ps(_mm256_loadu_ps(tally), _mm256_loadu_ps(tally + 8), 0x88);
        n = _mm256_cvtepi32_ps(_mm256_permute4x64_epi64(_mm256_castps_si256(counts), 0xD8));
        sum = _mm256_set_m128(_mm256_cvtpd_ps(_mm256_loadu_pd(family.sum() + at + 4)),
                              _mm256_cvtpd_ps(_mm256_loadu_pd(family.sum() + at)));
    }
};

inline BDC_AVX2 __m256 fill(double x) { return _mm256_set1_ps(float(x)); }

// 2^23 times a number that is at most the binary logarithm of x and by less than 0.0861 below it:
// its bits, read with a point below the exponent, which is 127 too large.
inline BDC_AVX2 __m256i log2_bits(__m256 x) { return _mm256_castps_si256(x); }

inline constexpr double kPerBit = kLn2 * 0x1.0p-23;
inline constexpr double kSmall = 1e-6;  // more than a few roundings of single precision make

// `beyond` are lanes with no draw above the floor: -2 log(u) is at most `twice`, and that is less
// than -2 log of the bound that `Posterior::draw_above` has.
struct NormalBound {
    __m256 a, scale, floor, zero = fill(0.0), one = fill(1.0), sign = fill(-0.0);
    __m256 small = fill(kSmall), mills = fill(kRootTwoPi * kRootTwoPi), bit = fill(kPerBit);
    __m256 bias = fill(127.0 * kLn2), near = fill(kNear * kNear * 1.001);

    BDC_AVX2 NormalBound(const Posterior& posterior, double at)
        : a(fill(posterior.a)), scale(fill(1.0 / posterior.b)), floor(fill(at)) {}

    BDC_AVX2 __m256 beyond(const Eight& eight, __m256 twice) const {
        const __m256 seen = _mm256_add_ps(eight.n, one), total = _mm256_add_ps(eight.sum, a);
        const __m256 up = _mm256_mul_ps(floor, seen);
        const __m256 sizes =
            _mm256_add_ps(_mm256_andnot_ps(sign, up), _mm256_andnot_ps(sign, total));
        const __m256 far = _mm256_max_ps(
            _mm256_sub_ps(_mm256_sub_ps(up, total), _mm256_mul_ps(sizes, small)), zero);
        const __m256 scaled = _mm256_mul_ps(far, scale);
        const __m256 square = _mm256_div_ps(_mm256_mul_ps(scaled, scaled), seen);
        const __m256 bits = _mm256_cvtepi32_ps(log2_bits(_mm256_mul_ps(square, mills)));
        const __m256 exponent =
            _mm256_add_ps(square, _mm256_sub_ps(_mm256_mul_ps(bits, bit), bias));
        return _mm256_and_ps(_mm256_cmp_ps(exponent, twice, _CMP_GT_OQ),
                             _mm256_cmp_ps(square, near, _CMP_GT_OQ));
    }
};

// In place of the bound's logarithms half the distance squared over the variance, the largest
// between the mean and the floor.
struct BetaBound {
    __m256 a, b, floor, rest, slope, widest, zero = fill(0.0), one = fill(1.0);
    __m256 small = fill(kSmall), circle = fill(2.0 * kPi), bit = fill(kPerBit);
    __m256 apart = fill(0.0861 * kLn2);

    BDC_AVX2 BetaBound(const Posterior& posterior, double at)
        : a(fill(posterior.a)),
          b(fill(posterior.b)),
          floor(fill(at * (1.0 - kSmall))),
          rest(fill(1.0 - at)),
          slope(fill(1.0 - kSmall - 2.0 * at)),
          widest(fill(at <= 0.5 ? at * (1.0 - at) : 0.25)) {}

    BDC_AVX2 __m256 beyond(const Eight& eight, __m256 twice) const {
        const __m256 hits = _mm256_add_ps(a, _mm256_max_ps(eight.sum, zero));
        const __m256 misses =
            _mm256_add_ps(b, _mm256_max_ps(_mm256_sub_ps(eight.n, eight.sum), zero));
        const __m256 total = _mm256_add_ps(hits, misses);
        const __m256 far = _mm256_sub_ps(_mm256_mul_ps(floor, total), hits);
        const __m256 lacking = _mm256_max_ps(_mm256_sub_ps(one, hits), zero);
        const __m256 fall = _mm256_sub_ps(_mm256_add_ps(far, slope), _mm256_mul_ps(lacking, rest));
        const __m256 whole = _mm256_mul_ps(total, total);
        const __m256 product =
            _mm256_add_ps(_mm256_mul_ps(hits, misses), _mm256_mul_ps(whole, small));
        const __m256 variance = _mm256_blendv_ps(_mm256_mul_ps(widest, whole), product,
                                                 _mm256_cmp_ps(hits, misses, _CMP_GE_OQ));
        const __m256 square =
            _mm256_div_ps(_mm256_mul_ps(total, _mm256_mul_ps(far, far)), variance);
        const __m256 steep = _mm256_mul_ps(_mm256_mul_ps(circle, total), _mm256_mul_ps(fall, fall));
        const __m256 bits =
            _mm256_cvtepi32_ps(_mm256_sub_epi32(log2_bits(steep), log2_bits(product)));
        const __m256 exponent =
            _mm256_add_ps(square, _mm256_sub_ps(_mm256_mul_ps(bits, bit), apart));
        return _mm256_and_ps(_mm256_cmp_ps(_mm256_min_ps(far, fall), zero, _CMP_GT_OQ),
                             _mm256_cmp_ps(exponent, twice, _CMP_GT_OQ));
    }
};

template <class Bound>
BDC_AVX2 Reach within(const Bound bound, const Family family, std::uint64_t moment,
                      std::uint32_t from) {
    const std::uint32_t count = family.head().count;
    // What is added is for rounding.
    const __m256 most = fill(2.0 * kLn2 * (127.0 + 16.0) + 1e-3), bit = fill(2.0 * kPerBit);
    for (std::uint32_t at = from; at < count; at += kBlock) {
        const Eight eight(family, at);
        const __m256i upper =
            _mm256_cvtepu16_epi32(_mm_set_epi64x((long long)(key_at(moment, family.id()[at + 4])),
                                                 (long long)(key_at(moment, family.id()[at]))));
        const __m256 bits = _mm256_cvtepi32_ps(log2_bits(_mm256_cvtepi32_ps(upper)));
        const __m256 out = bound.beyond(eight, _mm256_sub_ps(most, _mm256_mul_ps(bits, bit)));
        // Counts from 2^31 on look negative.
        unsigned in = ~unsigned(_mm256_movemask_ps(_mm256_andnot_ps(eight.n, out)));
        if (count - at < kBlock) in &= (1u << (count - at)) - 1;
        if ((in & 0xFF) != 0) return {at, in & 0xFF};
    }
    return {count, 0};
}

inline BDC_AVX2 Reach in_reach(const Posterior& posterior, Family family, std::uint64_t moment,
                               std::uint32_t from, double floor) {
    return posterior.normal ? within(NormalBound(posterior, floor), family, moment, from)
                            : within(BetaBound(posterior, floor), family, moment, from);
}

}  // namespace bdc::search::avx2
#endif
