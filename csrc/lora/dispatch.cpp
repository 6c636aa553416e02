#include "dispatch.hpp"

#include <cstdlib>
#include <stdexcept>
#include <vector>

namespace bdc::lora {

Kernel choose() {
    std::vector<Kernel> usable;
#ifdef BDC_X86
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
        usable.push_back({"avx512", add_avx512});
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        usable.push_back({"avx2", add_avx2});
#endif
    usable.push_back({"portable", add_portable});
    const char* forced = std::getenv("BDC_CPU_ISA");
    if (!forced || !*forced) return usable.front();
    std::string names;
    for (const Kernel& kernel : usable) {
        if (kernel.name == forced) return kernel;
        names += (names.empty() ? "" : ", ") + kernel.name;
    }
    throw std::invalid_argument("BDC_CPU_ISA must be one of " + names + " on this machine, got " +
                                forced);
}

}  // namespace bdc::lora
