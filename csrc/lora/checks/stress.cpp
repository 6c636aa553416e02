// Products of random shapes, for a build with sanitizers: each with arrays and scratch memory of
// its own, of the size they need, and the same bits on one thread and on several.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <thread>
#include <vector>

#include "dispatch.hpp"
#include "run.hpp"

using namespace bdc::lora;

namespace {

using Random = std::mt19937;

int between(Random& random, int first, int last) {
    return std::uniform_int_distribution<int>(first, last)(random);
}

// Numbers in (-1, 1), in a storage.
std::vector<char> numbers(Random& random, Storage storage, bool int8, std::int64_t count) {
    std::vector<char> bytes;
    const auto put = [&](auto value) {
        const auto* from = reinterpret_cast<const char*>(&value);
        bytes.insert(bytes.end(), from, from + sizeof value);
    };
    for (std::int64_t i = 0; i < count; ++i) {
        const int value = between(random, -127, 127);
        if (int8)
            put(std::int8_t(value));
        else if (storage == Storage::kFloat32)
            put(float(value) / 128);
        else  // between a half and one
            put(std::uint16_t((value < 0 ? 0x8000 : 0) |
                              (storage == Storage::kBFloat16 ? 0x3f80 - std::abs(value)
                                                             : 0x3c00 - 8 * std::abs(value))));
    }
    return bytes;
}

// The requested product on so many threads, by a thread that has no scratch memory yet.
std::vector<char> product(const Kernel& kernel, Product p, std::vector<char> y, int threads) {
    std::thread([&] {
        p.y = y.data();
        run(kernel, p, threads);
    }).join();
    return y;
}

bool check(const Kernel& kernel, Random& random) {
    const int kinds = between(random, 0, 2);
    const int tokens = kinds == 0   ? between(random, 1, 4)
                       : kinds == 1 ? between(random, 5, 70)
                                    : between(random, 60, 300);
    const int slices = between(random, 0, 3) ? 1 : between(random, 2, 3);
    const int in = between(random, 0, 5) ? between(random, 1, 300) : between(random, 900, 2200);
    const int ranks = between(random, 1, 150);
    std::vector<std::int64_t> ends, active, rows;
    for (int s = 0; s < slices; ++s)
        ends.push_back((s ? ends.back() : 0) + between(random, 1, 150));
    const int requests = between(random, 1, 3);
    std::int64_t all = 0;  // tokens, of which some have no adapter
    for (int i = 0; i < tokens; ++i, ++all) {
        all += between(random, 0, 3) == 0;
        active.push_back(all);
        rows.push_back(between(random, 0, requests - 1));
    }
    Product p{};
    p.storage = static_cast<Storage>(between(random, 0, 2));
    const bool int8 = between(random, 0, 3) == 0;
    p.experts = int8 ? Experts::kInt8 : Experts::kAsInputs;
    p.in = in, p.out = ends.back(), p.rank = ranks * slices, p.slices = slices;
    const auto x = numbers(random, p.storage, false, all * in);
    const auto y = numbers(random, p.storage, false, all * p.out);
    const auto a = numbers(random, p.storage, int8, p.rank * in);
    const auto b = numbers(random, p.storage, int8, p.out * ranks);
    std::vector<float> g;
    for (std::int64_t i = 0; i < requests * p.rank; ++i) g.push_back(float(between(random, 1, 9)));
    if (slices > 1 && between(random, 0, 1)) std::fill_n(g.begin(), ranks, 0.0f);  // an idle output
    p.x = x.data(), p.a = a.data(), p.b = b.data(), p.g = g.data();
    p.x_stride = p.a_stride = in, p.y_stride = p.out, p.b_stride = ranks, p.g_stride = p.rank;
    p.active = active.data(), p.rows = rows.data(), p.count = tokens;
    p.ends = ends.data(), p.scaling = 0.5f, p.fresh = between(random, 0, 1);
    const auto once = product(kernel, p, y, 1);
    return once != y && product(kernel, p, y, between(random, 2, 3)) == once;
}

}  // namespace

// How many products, and with which seed. BDC_CPU_ISA chooses the kernel.
int main(int, char** arguments) {
    const Kernel& kernel = choose();
    Random random(static_cast<unsigned>(std::atoi(arguments[2])));
    for (int i = 0; i < std::atoi(arguments[1]); ++i) {
        if (check(kernel, random)) continue;
        std::printf("product %d of %s differs\n", i, kernel.name);
        return 1;
    }
    std::printf("%s\n", kernel.name);
}
