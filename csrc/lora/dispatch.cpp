#include "dispatch.hpp"

#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

namespace bdc::lora {

const Kernel& choose() {
    std::vector<const Kernel*> usable;
#ifdef BDC_X86
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                      __builtin_cpu_supports("f16c");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                        __builtin_cpu_supports("avx512dq");
    if (avx512 && __builtin_cpu_supports("avx512bf16")) usable.push_back(&kAvx512BFloat16);
    if (avx512) usable.push_back(&kAvx512);
    if (avx2) usable.push_back(&kAvx2);
#endif
    usable.push_back(&kPortable);
    const char* forced = std::getenv("BDC_CPU_ISA");
    if (!forced || !*forced) return *usable.front();
    std::string names;
    for (const Kernel* kernel : usable) {
        if (std::string(kernel->name) == forced) return *kernel;
        names += (names.empty() ? "" : ", ") + std::string(kernel->name);
    }
    throw std::invalid_argument("BDC_CPU_ISA must be one of " + names + " on this machine, got " +
                                forced);
}

const Kernel& kernel_for(const Kernel& chosen, const Product& p) {
#ifdef BDC_X86
    // Zen 4's units take wide vectors in halves: for one token, adding up their lanes costs more
    // than the products, but for pairs of bfloat16.
    static const bool halves = __builtin_cpu_is("amdfam19h");
    const bool pairs = &chosen == &kAvx512BFloat16 && p.storage == Storage::kBFloat16 &&
                       p.experts == Experts::kAsInputs;
    if (halves && p.count == 1 && !pairs && &chosen != &kPortable) return kAvx2;
#endif
    return chosen;
}

}  // namespace bdc::lora
