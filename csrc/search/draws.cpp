#include "draws.hpp"

#include "draws_avx2.hpp"

namespace bdc::search {

namespace {

void draw_each(const Posterior& posterior, Family family, std::uint64_t moment, std::uint32_t count,
               double* out) {
    for (std::uint32_t i = 0; i < count; ++i) out[i] = draw_lane(posterior, family, moment, i);
}

Reach all_in_reach(const Posterior&, Family family, std::uint64_t, std::uint32_t from, double) {
    const std::uint32_t count = family.head().count;
    return {from, from < count ? (1u << std::min(count - from, kBlock)) - 1 : 0};
}

#if defined(__x86_64__)

// Eight streams side by side. `good` are the lanes that have kept up with the scalar form; it loses
// those that need one of its rarer branches or a second attempt.
struct Streams {
    __m512i state;

    static BDC_AVX512 __m512i mixed(__m512i x) {
        x = _mm512_add_epi64(x, _mm512_set1_epi64((long long)(0x9E3779B97F4A7C15ull)));
        x = _mm512_mullo_epi64(_mm512_xor_si512(x, _mm512_srli_epi64(x, 30)),
                               _mm512_set1_epi64((long long)(0xBF58476D1CE4E5B9ull)));
        x = _mm512_mullo_epi64(_mm512_xor_si512(x, _mm512_srli_epi64(x, 27)),
                               _mm512_set1_epi64((long long)(0x94D049BB133111EBull)));
        return _mm512_xor_si512(x, _mm512_srli_epi64(x, 31));
    }
    BDC_AVX512 __m512i next() {
        state = _mm512_add_epi64(state, _mm512_set1_epi64((long long)(0x9E3779B97F4A7C15ull)));
        return mixed(state);
    }
    static BDC_AVX512 __m512d reals(__m512i bits) {  // the upper 53, exactly
        return _mm512_cvtepu64_pd(_mm512_srli_epi64(bits, 11));
    }
    BDC_AVX512 __m512d uniform() {
        return _mm512_mul_pd(_mm512_add_pd(reals(next()), _mm512_set1_pd(0.5)),
                             _mm512_set1_pd(0x1.0p-53));
    }
    BDC_AVX512 __m512d normal(__mmask8& good) {
        const Ziggurat& table = ziggurat();
        const __m512i bits = next();
        const __m512i layer = _mm512_and_si512(bits, _mm512_set1_epi64(0xFF));
        const __m512d width = _mm512_i64gather_pd(layer, table.x, 8);
        const __m512d inner = _mm512_i64gather_pd(layer, table.x + 1, 8);
        const __m512d one = _mm512_set1_pd(1.0);
        const __m512d x = _mm512_mul_pd(
            _mm512_sub_pd(_mm512_mul_pd(reals(bits), _mm512_set1_pd(0x1.0p-52)), one), width);
        good &= _mm512_cmp_pd_mask(_mm512_abs_pd(x), inner, _CMP_LT_OQ);
        return x;
    }
    BDC_AVX512 __m512d gamma(__m512d shape, __mmask8& good) {
        const __m512d one = _mm512_set1_pd(1.0);
        good &= _mm512_cmp_pd_mask(shape, one, _CMP_GE_OQ);
        const __m512d d = _mm512_sub_pd(shape, _mm512_set1_pd(1.0 / 3.0));
        const __m512d c = _mm512_div_pd(one, _mm512_sqrt_pd(_mm512_mul_pd(_mm512_set1_pd(9.0), d)));
        const __m512d x = normal(good);
        const __m512d t = _mm512_add_pd(one, _mm512_mul_pd(c, x));
        good &= _mm512_cmp_pd_mask(t, _mm512_setzero_pd(), _CMP_GT_OQ);
        const __m512d v = _mm512_mul_pd(_mm512_mul_pd(t, t), t);
        const __m512d square = _mm512_mul_pd(x, x);
        const __m512d accepted = _mm512_sub_pd(
            one, _mm512_mul_pd(_mm512_mul_pd(_mm512_set1_pd(0.0331), square), square));
        const __m512d u = uniform();
        const __mmask8 settled = _mm512_cmp_pd_mask(u, accepted, _CMP_LT_OQ);
        if ((good & ~settled) != 0) good &= settled | sure(u, square, d, v);
        return _mm512_mul_pd(d, v);
    }
    // Where log(u) < x^2 / 2 + d - d v + d log(v) beyond doubt; a tenth of all attempts need it.
    static BDC_AVX512 __mmask8 sure(__m512d u, __m512d square, __m512d d, __m512d v) {
        const __m512d one = _mm512_set1_pd(1.0);
        const __m512d limit = _mm512_fmadd_pd(d, _mm512_add_pd(_mm512_sub_pd(one, v), rough_log(v)),
                                              _mm512_mul_pd(_mm512_set1_pd(0.5), square));
        const __m512d doubt = _mm512_mul_pd(_mm512_set1_pd(1e-7), _mm512_add_pd(one, d));
        return _mm512_cmp_pd_mask(rough_log(u), _mm512_sub_pd(limit, doubt), _CMP_LT_OQ);
    }
    // To about 1e-9, of positive numbers: 2 atanh((m - 1) / (m + 1)) for m in 1..2 as a series.
    static BDC_AVX512 __m512d rough_log(__m512d x) {
        const __m512d one = _mm512_set1_pd(1.0);
        const __m512d m = _mm512_getmant_pd(x, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_src);
        const __m512d t = _mm512_div_pd(_mm512_sub_pd(m, one), _mm512_add_pd(m, one));
        const __m512d square = _mm512_mul_pd(t, t);
        __m512d series = _mm512_set1_pd(2.0 / 17);
        for (const int k : {15, 13, 11, 9, 7, 5, 3, 1}) {
            series = _mm512_fmadd_pd(series, square, _mm512_set1_pd(2.0 / k));
        }
        return _mm512_fmadd_pd(_mm512_getexp_pd(x), _mm512_set1_pd(kLn2), _mm512_mul_pd(series, t));
    }
};

BDC_AVX512 void draw_each_avx512(const Posterior& posterior, Family family, std::uint64_t moment,
                                 std::uint32_t count, double* out) {
    const __m512d a = _mm512_set1_pd(posterior.a), b = _mm512_set1_pd(posterior.b);
    const __m512d zero = _mm512_setzero_pd(), one = _mm512_set1_pd(1.0);
    for (std::uint32_t at = 0; at < count; at += 8) {
        const auto lanes = __mmask8(count - at >= 8 ? 0xFF : (1u << (count - at)) - 1);
        const __m512i both = _mm512_maskz_loadu_epi64(lanes, family.tally() + at);
        const __m512d n = _mm512_cvtepu64_pd(_mm512_and_si512(both, _mm512_set1_epi64(0xFFFFFFFF)));
        const __m512d sum = _mm512_maskz_loadu_pd(lanes, family.sum() + at);
        const __m512i id = _mm512_cvtepu32_epi64(_mm256_maskz_loadu_epi32(lanes, family.id() + at));
        Streams streams{
            Streams::mixed(_mm512_xor_si512(id, _mm512_set1_epi64((long long)(moment))))};
        __mmask8 good = lanes;
        __m512d drawn;
        if (posterior.normal) {
            const __m512d seen = _mm512_add_pd(one, n);
            drawn = _mm512_add_pd(
                _mm512_div_pd(_mm512_add_pd(a, sum), seen),
                _mm512_mul_pd(_mm512_div_pd(b, _mm512_sqrt_pd(seen)), streams.normal(good)));
        } else {
            const __m512d hits = _mm512_max_pd(sum, zero);
            const __m512d misses = _mm512_max_pd(_mm512_sub_pd(n, sum), zero);
            const __m512d x = streams.gamma(_mm512_add_pd(a, hits), good);
            const __m512d y = streams.gamma(_mm512_add_pd(b, misses), good);
            drawn = _mm512_div_pd(x, _mm512_add_pd(x, y));
        }
        _mm512_storeu_pd(out + at, drawn);
        for (unsigned left = lanes & ~unsigned(good); left != 0; left &= left - 1) {
            const std::uint32_t lane = at + std::uint32_t(__builtin_ctz(left));
            out[lane] = draw_lane(posterior, family, moment, lane);
        }
    }
}

#endif

}  // namespace

Drawing drawing([[maybe_unused]] Isa isa) {
    const Largest largest = find_largest(isa);
#if defined(__x86_64__)
    if (isa == Isa::kAvx512) return {draw_each_avx512, avx2::in_reach, largest};
    if (isa == Isa::kAvx2) return {avx2::draw_each, avx2::in_reach, largest};
#endif
    return {draw_each, all_in_reach, largest};
}

Leader largest_draw(const Drawing& form, const Posterior& posterior, Family family,
                    std::uint64_t moment) {
    double draws[kMany];
    const std::uint32_t count = family.head().count;
    if (count < kMany) {
        form.each(posterior, family, moment, count, draws);
        const std::uint32_t lane = form.largest(family, draws);
        return {lane, draws[lane]};
    }
    Leader best;
    const std::uint8_t* reason = family.reason();
    form.each(posterior, family, moment, kFirst, draws);
    for (std::uint32_t lane = 0; lane < kFirst; ++lane) {
        if (reason[lane] == 0) best.meet(family, lane, draws[lane]);
    }
    for (std::uint32_t from = kFirst;; from += kBlock) {
        const double floor = best.score;
        Reach reach = form.in_reach(posterior, family, moment, from, floor);
        if (reach.lanes == 0) return best;
        from = reach.at;
        for (; reach.lanes != 0; reach.lanes &= reach.lanes - 1) {
            const std::uint32_t lane = from + std::uint32_t(__builtin_ctz(reach.lanes));
            if (reason[lane] != 0) continue;
            Stream own(key_at(moment, family.id()[lane]));
            const double u = luck(family, moment, lane, own);
            best.meet(family, lane,
                      posterior.draw_above(own, u, family.n(lane), family.sum()[lane], floor));
        }
    }
}

}  // namespace bdc::search
