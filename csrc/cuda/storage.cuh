// Element types in memory, as float32 in registers. Included by device.cuh.
#pragma once

#include <cstdint>
#include <cstring>

namespace bdc::cuda {

struct BFloat16 {
    std::uint16_t bits;
};
struct Float16 {
    std::uint16_t bits;
};

template <class To, class From>
BDC_DEVICE To same_bits(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}

BDC_DEVICE float widen(float value) { return value; }
BDC_DEVICE float widen(BFloat16 value) { return same_bits<float>(std::uint32_t(value.bits) << 16); }
BDC_DEVICE float widen(Float16 value) {
#ifdef __CUDACC__
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value.bits));
    return wide;
#else
    return float(same_bits<_Float16>(value.bits));
#endif
}

// To the nearest, ties to even; NaN stays NaN.
template <class S>
BDC_DEVICE S narrow(float value);
template <>
BDC_DEVICE float narrow<float>(float value) {
    return value;
}
template <>
BDC_DEVICE BFloat16 narrow<BFloat16>(float value) {
#ifdef __CUDACC__
    BFloat16 out;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out.bits) : "f"(value));
    return out;
#else
    const auto bits = same_bits<std::uint32_t>(value);
    if (value != value) return {0x7fff};
    return {std::uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
#endif
}
template <>
BDC_DEVICE Float16 narrow<Float16>(float value) {
#ifdef __CUDACC__
    Float16 out;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(value));
    return out;
#else
    return {same_bits<std::uint16_t>(_Float16(value))};
#endif
}

template <class S>
constexpr int kLanes = lanes_of(sizeof(S));

template <class S>
BDC_DEVICE void widen(const Chunk& chunk, float (&out)[kLanes<S>]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        if constexpr (sizeof(S) == 4) {
            out[i] = same_bits<float>(chunk.words[i]);
        } else {
            out[2 * i] = widen(S{std::uint16_t(chunk.words[i] & 0xffff)});
            out[2 * i + 1] = widen(S{std::uint16_t(chunk.words[i] >> 16)});
        }
    }
}

// c += a b on one warp's matrix unit: a is 16 x 16, b 16 x 8, c 16 x 8 in float32, all as
// fragments.
template <class S>
BDC_DEVICE void multiply(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                         std::uint32_t b1) {
#ifdef __CUDACC__
    if constexpr (std::is_same_v<S, BFloat16>) {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
            "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    } else {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
            "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    }
#else
    emulator::multiply<S>(c, a, b0, b1, [](std::uint16_t bits) { return widen(S{bits}); });
#endif
}

}  // namespace bdc::cuda
