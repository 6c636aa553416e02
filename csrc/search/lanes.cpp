#include "lanes.hpp"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <vector>

#include "lanes_avx2.hpp"

namespace bdc::search {

namespace {

using Words = std::uint32_t __attribute__((vector_size(16)));

std::uint32_t largest_portable(const Family& family, const double* score) {
    Leader best;
    for (std::uint32_t i = 0; i < family.head().count; ++i) {
        if (family.reason()[i] == 0) best.meet(family, i, score[i]);
    }
    return best.lane;
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

struct Sixteen {
    __m256d part[4];

    explicit BDC_AVX2 Sixteen(const double* from) {
        for (int i = 0; i < 4; ++i) part[i] = _mm256_loadu_pd(from + 4 * i);
    }
    BDC_AVX2 __m256d largest() const {
        return _mm256_max_pd(_mm256_max_pd(part[0], part[1]), _mm256_max_pd(part[2], part[3]));
    }
    BDC_AVX2 bool has(__m256d x) const {
        __m256d found = _mm256_setzero_pd();
        for (const __m256d some : part) {
            found = _mm256_or_pd(found, _mm256_cmp_pd(some, x, _CMP_EQ_OQ));
        }
        return _mm256_movemask_pd(found) != 0;
    }
};

BDC_AVX2 std::uint32_t largest_avx2(const Family& family, const double* score) {
    const std::uint32_t count = family.head().count, whole = count & ~15u;
    if (family.head().open != count) return largest_portable(family, score);
    __m256d tops = _mm256_set1_pd(score[0]);
    for (std::uint32_t at = 0; at < whole; at += 16) {
        tops = _mm256_max_pd(tops, Sixteen(score + at).largest());
    }
    double top = _mm256_cvtsd_f64(avx2::largest(tops));
    for (std::uint32_t lane = whole; lane < count; ++lane) top = std::max(top, score[lane]);
    std::uint32_t best = kNone;
    for (std::uint32_t at = 0; at < count; at += 16) {
        if (at < whole && !Sixteen(score + at).has(_mm256_set1_pd(top))) continue;
        for (std::uint32_t lane = at; lane < std::min(at + 16, count); ++lane) {
            if (score[lane] != top) continue;
            if (best != kNone) return largest_portable(family, score);
            best = lane;
        }
    }
    return best;
}

#endif

}  // namespace

Largest find_largest([[maybe_unused]] Isa isa) {
#if defined(__x86_64__)
    if (isa == Isa::kAvx512) return largest_avx512;
    if (isa == Isa::kAvx2) return largest_avx2;
#endif
    return largest_portable;
}

void fill_lanes(const Family& family, const NewLanes& lanes) {
    const std::uint32_t at = lanes.lane, count = lanes.count;
    std::fill_n(family.tally() + at, count, Tally{});
    std::fill_n(family.sum() + at, count, 0.0);
    std::fill_n(family.best() + at, count, 0.0);
    if (!lanes.priors) std::fill_n(family.prior() + at, count, 1.0 / double(count));
    std::fill_n(family.child() + at, count, kNone);
    std::iota(family.id() + at, family.id() + at + count, lanes.id);
    if (!lanes.tags) std::fill_n(family.tag() + at, count, std::uint16_t(0));
    std::fill_n(family.reason() + at, count, std::uint8_t(0));
    std::fill_n(family.refined() + at, count, std::uint8_t(0));
}

namespace {

// Copies of four words from `to` on, until they hold `bytes`, and perhaps a part of one too many.
template <class Next>
void write_fours(void* to, std::size_t bytes, const Next& next) {
    auto* at = static_cast<std::byte*>(to);
    for (std::byte* const end = at + bytes; at < end; at += 16) {
        const Words four = next();
        std::memcpy(at, &four, sizeof four);
    }
}

// The lanes of a family, two or more, to which nothing was given. Where a field ends the next one
// begins: what is written too far is written over, and nothing too far by the last.
void write_even(const Family& family, std::uint32_t id) {
    const std::size_t count = family.capacity();
    const double uniform = 1.0 / double(count);
    const Words zero{}, none{kNone, kNone, kNone, kNone}, step{4, 4, 4, 4};
    Words priors, ids{id, id + 1, id + 2, id + 3};
    std::memcpy(&priors, &uniform, sizeof uniform);
    std::memcpy(reinterpret_cast<std::byte*>(&priors) + sizeof uniform, &uniform, sizeof uniform);
    write_fours(family.tally(), 24 * count, [&] { return zero; });
    write_fours(family.prior(), 8 * count, [&] { return priors; });
    write_fours(family.child(), 4 * count, [&] { return none; });
    write_fours(family.id(), 4 * count, [&] {
        const Words now = ids;
        ids += step;
        return now;
    });
    auto* const rest = reinterpret_cast<std::byte*>(family.tag());
    const std::size_t whole = count / 4 * 16;
    write_fours(rest, whole, [&] { return zero; });
    for (std::size_t at = whole; at < 4 * count; at += 4) std::memcpy(rest + at, &zero, 4);
}

}  // namespace

void write_blank(const Family& family) {
    const Blank blank = Blank::read(*family.tally());
    const std::uint32_t count = family.head().count;
    if (count > 1 && !blank.priors && !blank.tags) return write_even(family, blank.id);
    fill_lanes(family, {0, count, blank.id, blank.priors, blank.tags});
}

const double* inverse_roots() {
    static const double* const table = [] {
        auto* const roots = new double[kTabulated];  // never freed: searches may outlive statics
        roots[0] = std::numeric_limits<double>::infinity();
        for (std::uint32_t i = 1; i < kTabulated; ++i) roots[i] = 1.0 / std::sqrt(double(i));
        return roots;
    }();
    return table;
}

#if defined(__x86_64__)
const double* const gathered_roots = __builtin_cpu_is("intel") ? inverse_roots() : nullptr;
#else
const double* const gathered_roots = nullptr;
#endif

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
