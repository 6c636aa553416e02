// The instruction sets that the inner loops have forms for.
#pragma once

#if defined(__x86_64__)
// GCC 12 takes the undefined registers of its own intrinsics for uninitialised variables.
#pragma GCC diagnostic push
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop

// With prefetches for writing, which processors without them take for no operation.
#define BDC_AVX2 __attribute__((target("avx2,prfchw")))
#define BDC_AVX512 __attribute__((target("avx512f,avx512vl,avx512dq,avx512bw,prfchw")))
#endif

namespace bdc::search {

enum class Isa { kPortable, kAvx2, kAvx512 };

// The largest that this processor has.
inline Isa machine_isa() {
#if defined(__x86_64__)
    static const Isa isa = [] {
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw")) {
            return Isa::kAvx512;
        }
        return __builtin_cpu_supports("avx2") ? Isa::kAvx2 : Isa::kPortable;
    }();
    return isa;
#else
    return Isa::kPortable;
#endif
}

}  // namespace bdc::search
