#include "lanes.hpp"

#include <algorithm>
#include <cstring>
#include <vector>

#include "lanes_avx2.hpp"

namespace bdc::search {

namespace {

void fill_portable(const Family family, const NewLanes lanes) {
    const double uniform = 1.0 / double(lanes.count);
    for (std::uint32_t i = 0; i < lanes.count; ++i) {
        const std::uint32_t lane = lanes.lane + i;
        family.tally()[lane] = Tally{};
        family.sum()[lane] = family.best()[lane] = 0.0;
        if (!lanes.priors) family.prior()[lane] = uniform;
        family.child()[lane] = kNone;
        family.id()[lane] = lanes.id + i;
        if (!lanes.tags) family.tag()[lane] = 0;
        family.reason()[lane] = family.refined()[lane] = 0;
    }
}

std::uint32_t largest_portable(const Family& family, const double* score) {
    std::uint32_t best = kNone;
    for (std::uint32_t i = 0; i < family.head().count; ++i) {
        if (family.reason()[i] != 0) continue;
        if (best == kNone || score[i] > score[best] ||
            (score[i] == score[best] && wins_tie(family, i, best, true))) {
            best = i;
        }
    }
    return best;
}

#if defined(__x86_64__)

BDC_AVX512 std::uint32_t largest_avx512(const Family& family, const double* score) {
    const std::uint32_t count = family.head().count;
    if (family.head().open != count) return largest_portable(family, score);
    const auto nowhere = _mm512_set1_pd(-std::numeric_limits<double>::infinity());
    const auto lanes_at = [&](std::uint32_t at) {
        return __mmask8(count - at >= 8 ? 0xFF : (1u << (count - at)) - 1);
    };
    __m512d top = nowhere;
    for (std::uint32_t at = 0; at < count; at += 8) {
        top = _mm512_max_pd(top, _mm512_mask_loadu_pd(nowhere, lanes_at(at), score + at));
    }
    top = _mm512_set1_pd(_mm512_reduce_max_pd(top));
    std::uint32_t best = kNone;
    for (std::uint32_t at = 0; at < count; at += 8) {
        const __m512d here = _mm512_loadu_pd(score + at);
        const unsigned tied = _mm512_mask_cmp_pd_mask(lanes_at(at), here, top, _CMP_EQ_OQ);
        if (tied == 0) continue;
        if (best != kNone || (tied & (tied - 1)) != 0) return largest_portable(family, score);
        best = at + std::uint32_t(__builtin_ctz(tied));
    }
    return best;
}

BDC_AVX2 std::uint32_t largest_avx2(const Family& family, const double* score) {
    const std::uint32_t count = family.head().count;
    if (family.head().open != count) return largest_portable(family, score);
    const __m256d nowhere = _mm256_set1_pd(-std::numeric_limits<double>::infinity());
    __m256d top = nowhere;
    for (std::uint32_t at = 0; at < count; at += 4) {
        const __m256d lanes = _mm256_castsi256_pd(avx2::first_lanes(count - at));
        top = _mm256_max_pd(top, _mm256_blendv_pd(nowhere, _mm256_loadu_pd(score + at), lanes));
    }
    top = avx2::largest(top);
    std::uint32_t best = kNone;
    for (std::uint32_t at = 0; at < count; at += 4) {
        const __m256d lanes = _mm256_castsi256_pd(avx2::first_lanes(count - at));
        const __m256d same = _mm256_cmp_pd(_mm256_loadu_pd(score + at), top, _CMP_EQ_OQ);
        const auto tied = unsigned(_mm256_movemask_pd(_mm256_and_pd(same, lanes)));
        if (tied == 0) continue;
        if (best != kNone || (tied & (tied - 1)) != 0) return largest_portable(family, score);
        best = at + std::uint32_t(__builtin_ctz(tied));
    }
    return best;
}

BDC_AVX512 void fill_avx512(const Family family, const NewLanes lanes) {
    const __m512d uniform = _mm512_set1_pd(1.0 / double(lanes.count));
    const __m512i zero = _mm512_setzero_si512();
    const __m256i step = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    for (std::uint32_t i = 0; i < lanes.count; i += 8) {
        const std::uint32_t lane = lanes.lane + i, left = lanes.count - i;
        const auto m = __mmask8(left >= 8 ? 0xFF : (1u << left) - 1);
        _mm512_mask_storeu_epi64(family.tally() + lane, m, zero);
        _mm512_mask_storeu_epi64(family.sum() + lane, m, zero);
        _mm512_mask_storeu_epi64(family.best() + lane, m, zero);
        if (!lanes.priors) _mm512_mask_storeu_pd(family.prior() + lane, m, uniform);
        _mm256_mask_storeu_epi32(family.child() + lane, m, _mm256_set1_epi32(-1));
        _mm256_mask_storeu_epi32(family.id() + lane, m,
                                 _mm256_add_epi32(_mm256_set1_epi32(int(lanes.id + i)), step));
        if (!lanes.tags) _mm_mask_storeu_epi16(family.tag() + lane, m, _mm_setzero_si128());
        _mm_mask_storeu_epi8(family.reason() + lane, m, _mm_setzero_si128());
        _mm_mask_storeu_epi8(family.refined() + lane, m, _mm_setzero_si128());
    }
}

// Four lanes at a time, the last of them once more with those before them where four do not divide
// the number.
BDC_AVX2 void fill_avx2(const Family family, const NewLanes lanes) {
    if (lanes.count < 4) return fill_portable(family, lanes);
    const __m256d uniform = _mm256_set1_pd(1.0 / double(lanes.count)), zero = _mm256_setzero_pd();
    Tally* const tally = family.tally() + lanes.lane;
    double* const sum = family.sum() + lanes.lane;
    double* const best = family.best() + lanes.lane;
    double* const prior = family.prior() + lanes.lane;
    std::uint32_t* const child = family.child() + lanes.lane;
    std::uint32_t* const id = family.id() + lanes.lane;
    std::uint16_t* const tag = family.tag() + lanes.lane;
    std::uint8_t* const reason = family.reason() + lanes.lane;
    std::uint8_t* const refined = family.refined() + lanes.lane;
    const auto fill = [=](std::uint32_t i) BDC_AVX2 {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(tally + i), _mm256_setzero_si256());
        _mm256_storeu_pd(sum + i, zero);
        _mm256_storeu_pd(best + i, zero);
        if (!lanes.priors) _mm256_storeu_pd(prior + i, uniform);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(child + i), _mm_set1_epi32(-1));
        _mm_storeu_si128(
            reinterpret_cast<__m128i*>(id + i),
            _mm_add_epi32(_mm_set1_epi32(int(lanes.id + i)), _mm_setr_epi32(0, 1, 2, 3)));
        if (!lanes.tags) std::memset(tag + i, 0, 4 * sizeof *tag);
        std::memset(reason + i, 0, 4);
        std::memset(refined + i, 0, 4);
    };
    for (std::uint32_t i = 0; i + 4 <= lanes.count; i += 4) fill(i);
    fill(lanes.count - 4);
}

#endif

}  // namespace

FillLanes fill_lanes([[maybe_unused]] Isa isa) {
#if defined(__x86_64__)
    if (isa == Isa::kAvx512) return fill_avx512;
    if (isa == Isa::kAvx2) return fill_avx2;
#endif
    return fill_portable;
}

Largest find_largest([[maybe_unused]] Isa isa) {
#if defined(__x86_64__)
    if (isa == Isa::kAvx512) return largest_avx512;
    if (isa == Isa::kAvx2) return largest_avx2;
#endif
    return largest_portable;
}

void write_blank(const Family& family) {
    static const FillLanes fill = fill_lanes(machine_isa());
    const Blank blank = Blank::read(*family.tally());
    fill(family, {0, family.head().count, blank.id, blank.priors, blank.tags});
}

const double* inverse_roots() {
    static const std::vector<double> table = [] {
        std::vector<double> roots(kTabulated);
        roots[0] = std::numeric_limits<double>::infinity();
        for (std::uint32_t i = 1; i < kTabulated; ++i) roots[i] = 1.0 / std::sqrt(double(i));
        return roots;
    }();
    return table.data();
}

bool wins_tie(const Family& family, std::uint32_t a, std::uint32_t b, bool turns) {
    if (family.prior()[a] != family.prior()[b]) return family.prior()[a] > family.prior()[b];
    const std::uint32_t n_a = family.tally()[a].count(), n_b = family.tally()[b].count();
    if (n_a != n_b) return n_a < n_b;
    if (turns && family.tag()[a] != family.tag()[b]) {
        const Header& head = family.head();
        const std::uint32_t agents =
            1u + *std::max_element(family.tag(), family.tag() + head.count);
        const std::uint32_t turn = (head.tally.count() - 1) % agents;
        const std::uint32_t after_a = (family.tag()[a] + agents - turn) % agents;
        const std::uint32_t after_b = (family.tag()[b] + agents - turn) % agents;
        return after_a < after_b;
    }
    return a < b;
}

std::uint32_t settle(const Family& family, std::uint64_t tied) {
    auto best = std::uint32_t(__builtin_ctzll(tied));
    for (tied &= tied - 1; tied != 0; tied &= tied - 1) {
        const auto lane = std::uint32_t(__builtin_ctzll(tied));
        if (wins_tie(family, lane, best, true)) best = lane;
    }
    return best;
}

}  // namespace bdc::search
