#include "dispatch.hpp"

#if defined(BDC_AMX) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#ifdef BDC_X86
#include <cpuid.h>
#endif

#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

namespace bdc::lora {

#ifdef BDC_AMX
namespace {

bool has_tiles() {
    return __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16");
}

// Linux must be asked, since the unit's registers add eight KiB to what a thread's signal stack
// must hold.
bool may_use_tiles() {
#ifdef __linux__
    constexpr int kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
    return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
    return false;
#endif
}

// Fewer tokens are multiplied as fast without it: float16 must be split first.
std::int64_t fewest_for_tiles(const Product& p) {
    if (p.storage != Storage::kFloat16) return 3;
    return p.experts == Experts::kInt8 ? 5 : 9;
}

}  // namespace
#endif

#ifdef BDC_X86
namespace {

// Clang's __builtin_cpu_supports does not know it.
bool has_f16c() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}

}  // namespace
#endif

const Kernel& choose() {
    const char* const forced = std::getenv("BDC_CPU_ISA");
    const std::string wanted = forced ? forced : "";
    std::vector<const Kernel*> usable;
#ifdef BDC_X86
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                        __builtin_cpu_supports("avx512dq");
    const bool avx512_bf16 = avx512 && __builtin_cpu_supports("avx512bf16");
#ifdef BDC_AMX
    const bool unwanted = !wanted.empty() && wanted != kAmxBFloat16.name;
    if (avx512_bf16 && has_tiles() && (unwanted || may_use_tiles()))
        usable.push_back(&kAmxBFloat16);
#endif
    if (avx512_bf16) usable.push_back(&kAvx512BFloat16);
    if (avx512) usable.push_back(&kAvx512);
    if (avx2) usable.push_back(&kAvx2);
#endif
    usable.push_back(&kPortable);
    if (wanted.empty()) return *usable.front();
    std::string names;
    for (const Kernel* kernel : usable) {
        if (kernel->name == wanted) return *kernel;
        names += (names.empty() ? "" : ", ") + std::string(kernel->name);
    }
    throw std::invalid_argument("BDC_CPU_ISA must be one of " + names + " on this machine, got " +
                                wanted);
}

namespace {

// Does this kernel multiply the inputs as pairs of bfloat16?
bool takes_pairs([[maybe_unused]] const Kernel& kernel, [[maybe_unused]] const Product& p) {
#ifdef BDC_X86
    return &kernel == &kAvx512BFloat16 && p.storage == Storage::kBFloat16;
#else
    return false;
#endif
}

}  // namespace

const Kernel& kernel_for(const Kernel& chosen, const Product& p) {
#ifdef BDC_AMX
    if (&chosen == &kAmxBFloat16) {
        const bool tiles = p.storage != Storage::kFloat32 && p.count >= fewest_for_tiles(p);
        return tiles ? kAmxBFloat16 : kAvx512BFloat16;
    }
#endif
#ifdef BDC_X86
    // Zen 4's units take wide vectors in halves: for one token, adding up their lanes costs more
    // than the products, but for pairs of bfloat16.
    static const bool halves = __builtin_cpu_is("amdfam19h");
    const bool pairs = takes_pairs(chosen, p) && p.experts == Experts::kAsInputs;
    if (halves && p.count == 1 && !pairs && &chosen != &kPortable) return kAvx2;
#endif
    return chosen;
}

namespace {

bool on_intel() {
#ifdef BDC_X86
    static const bool intel = __builtin_cpu_is("intel");
    return intel;
#else
    return false;
#endif
}

// Of AMD's with AVX-512 Zen 4 is the one before.
bool on_zen5() {
#ifdef BDC_X86
    static const bool zen5 = __builtin_cpu_is("amd") && __builtin_cpu_supports("avx512f") &&
                             !__builtin_cpu_is("amdfam19h");
    return zen5;
#else
    return false;
#endif
}

// Units of a rank from which on dot products are taken, by the number of tokens.
struct DotsFrom {
    std::int64_t units[5];
};
constexpr std::int64_t kNever = std::int64_t(1) << 40;
// Measured on Zen 3, on Zen 4 (but one token), and on a Xeon with AMX.
constexpr DotsFrom kNarrow = {{0, 0, 0, 40, 20}}, kWide = {{0, 8, 40, kNever, 256}},
                   kWideOnIntel = {{0, 8, 32, kNever, 128}};

// Are wide vectors of the experts multiplied as they lie?
bool lies(const Kernel& kernel, const Product& p) {
    return kernel.lanes == 16 && p.experts == Experts::kAsInputs &&
           (p.storage == Storage::kFloat32 || takes_pairs(kernel, p));
}

// Does it pay to lay the tokens abreast, for sums of so many units? Measured on Zen 5 alone.
bool goes_abreast(const Kernel& kernel, const Product& p, std::int64_t units) {
    const bool pairs = takes_pairs(kernel, p);
    if (!on_zen5() || !lies(kernel, p)) return false;
    // Three to seven and nine to 15 tokens leave lanes idle, which costs least where products wait
    // for each other longest, as those of pairs do.
    if (p.count == 2) return units >= 24;
    if (p.count >= (pairs ? 5 : 8) && p.count <= 8) return units >= 32;
    return p.count >= 13 && p.count <= 16 && units >= 12;
}

}  // namespace

bool sums_pay(const Kernel& kernel) {
    // Torch's product has wide vectors on Intel's processors alone. Measured on Zen 5.
    return kernel.lanes == 16 && !on_intel();
}

bool as_they_lie(const Kernel& kernel, const Product& p) {
    // Measured on Zen 5, with its wide vectors and with AVX2.
    if (takes_pairs(kernel, p)) return p.count <= 8;
    return p.storage == Storage::kFloat32 && p.count <= (kernel.lanes == 16 ? 96 : 12);
}

Order order(const Kernel& kernel, const Product& p) {
    const std::int64_t ranks = p.rank / p.slices;
    const std::int64_t units = p.storage == Storage::kBFloat16 ? ranks / 2 : ranks;
    if (goes_abreast(kernel, p, units)) return Order::kAbreast;
    if (p.count > 4) return Order::kUnits;
    const DotsFrom& from = kernel.lanes < 16 ? kNarrow : on_intel() ? kWideOnIntel : kWide;
    return units >= from.units[p.count] ? Order::kDots : Order::kEvenAndOdd;
}

namespace {

bool turns(const Kernel& kernel, const Product& p) {
    // Dot products of many tokens wait for the second cache of Intel's, but not of Zen 3 to 5.
    if (!on_intel() || !kernel.panel || takes_pairs(kernel, p)) return false;
    // Lanes of the last panel that have no rank take as long as the others.
    const std::int64_t lanes = (p.rank + kernel.panel - 1) / kernel.panel * kernel.panel;
    return p.count * (2 * p.rank - lanes) >= 64 * p.rank;
}

}  // namespace

Reading reading(const Kernel& kernel, const Product& p) {
    if (turns(kernel, p)) return Reading::kPanels;
    if (!on_zen5() || !lies(kernel, p)) return Reading::kTiles;  // the others were measured there
    const bool pairs = takes_pairs(kernel, p);
    // Rows come faster one after the other, but their sums must be long.
    const std::int64_t bytes = p.in * std::int64_t(input_bytes(p));
    if (p.count <= (pairs ? 3 : 2) && bytes >= (p.count == 1 ? 2 : 3) << 10) return Reading::kRows;
    // The nearest cache holds the tokens, the rows of A that two or more tiles of them share, and
    // the next ones. Tiles of three tokens with eight rows share them less.
    return p.count > 4 && p.count <= (pairs ? 8 : 24) ? Reading::kShortTiles : Reading::kTiles;
}

}  // namespace bdc::lora
