// Products of random shapes, for a build with sanitizers: each with arrays and scratch memory of
// its own, of the size they need, and the same bits on one thread and on several.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
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

// The requested product on so many threads, by a thread that has no scratch memory yet. Its
// experts may be given turned.
std::vector<char> product(const Kernel& kernel, Product p, std::vector<char> y, int threads,
                          bool turned = false) {
    std::thread([&] {
        p.y = y.data();
        p.turned = turned;
        run(kernel, p, threads);
    }).join();
    return y;
}

std::vector<char> turned(const std::vector<char>& matrix, std::int64_t rows, std::int64_t columns) {
    const std::size_t bytes = matrix.size() / std::size_t(rows * columns);
    std::vector<char> out(matrix.size());
    for (std::int64_t n = 0; n < rows; ++n)
        for (std::int64_t k = 0; k < columns; ++k)
            std::memcpy(&out[std::size_t(k * rows + n) * bytes],
                        &matrix[std::size_t(n * columns + k) * bytes], bytes);
    return out;
}

// Are these within rounding of each other, as sums of many in different orders are?
bool near(Storage storage, const std::vector<char>& some, const std::vector<char>& others) {
    const bool narrow = storage == Storage::kBFloat16;
    const auto floats = [&](const std::vector<char>& bytes) {
        const std::size_t size = narrow ? 2 : 4;
        std::vector<float> out(bytes.size() / size);
        for (std::size_t i = 0; i < out.size(); ++i) {
            std::uint32_t bits = 0;
            std::memcpy(reinterpret_cast<char*>(&bits) + (4 - size), &bytes[i * size], size);
            std::memcpy(&out[i], &bits, sizeof bits);
        }
        return out;
    };
    const auto a = floats(some), b = floats(others);
    float largest = 0, furthest = 0;
    for (std::size_t i = 0; i < a.size(); ++i) {
        largest = std::max(largest, std::abs(a[i]));
        furthest = std::max(furthest, std::abs(a[i] - b[i]));
    }
    return furthest <= (narrow ? 1e-2f : 1e-5f) * largest;
}

// From experts that are turned: the same on one thread and on several, the product of those that
// are not, and the same h where that alone is wanted.
bool check_turned(const Kernel& kernel, Random& random, Product p, const std::vector<char>& a,
                  const std::vector<char>& b, const std::vector<char>& y,
                  const std::vector<char>& expected) {
    const auto first = turned(a, p.rank, p.in), second = turned(b, p.out, p.rank);
    p.a = first.data(), p.a_stride = p.rank, p.b = second.data(), p.b_stride = p.out;
    const auto once = product(kernel, p, y, 1, true);
    if (product(kernel, p, y, between(random, 2, 3), true) != once) return false;
    if (as_they_lie(kernel_for(kernel, p), p) ? !near(p.storage, expected, once) : once != expected)
        return false;
    std::vector<float> h(std::size_t((p.active[p.count - 1] + 1) * p.rank)), alone(h);
    p.h = h.data();
    product(kernel, p, y, 1, true);
    p.h = alone.data(), p.out = 0;
    product(kernel, p, y, between(random, 1, 3), true);
    return h == alone;
}

// What the gradients need: the same on one thread and on several, written whole.
bool check_gate(const Kernel& kernel, Random& random) {
    const int tokens = between(random, 1, 400), rank = between(random, 1, 700);
    const int requests = between(random, 1, 4);
    const auto floats = [&](int rows) {
        std::vector<float> out;
        for (int i = 0; i < rows * rank; ++i) out.push_back(float(between(random, -99, 99)) / 64);
        return out;
    };
    const auto u = floats(tokens), h = floats(tokens), g = floats(requests);
    std::vector<std::int64_t> rows;
    for (int t = 0; t < tokens; ++t) rows.push_back(between(random, -1, requests - 1));
    GateGradients q{};
    q.storage = between(random, 0, 1) ? Storage::kBFloat16 : Storage::kFloat32;
    q.u = u.data(), q.h = h.data(), q.g = g.data(), q.rows = rows.data();
    q.tokens = tokens, q.requests = requests, q.rank = rank, q.scaling = 0.5f;
    const auto run_on = [&](int threads, char fill) {
        const std::size_t bytes = q.storage == Storage::kBFloat16 ? 2 : 4;
        const auto count = std::size_t(tokens * rank);
        std::vector<std::vector<char>> out{std::vector<char>(count * bytes, fill),
                                           std::vector<char>(count * bytes, fill),
                                           std::vector<char>(g.size() * sizeof(float), fill)};
        q.dp = out[0].data(), q.gated = out[1].data();
        q.dg = reinterpret_cast<float*>(out[2].data());
        gate_gradients(kernel, q, threads);
        return out;
    };
    return run_on(1, 1) == run_on(between(random, 2, 3), 2);
}

// Sums over tokens: near those in float64, and the same on several threads and in either order.
bool check_sums(const Kernel& kernel, Random& random) {
    const int tokens = between(random, 1, 300), columns = between(random, 1, 700);
    const int rank = between(random, 1, 100), stride = columns + between(random, 0, 3);
    const auto floats = [&](int count) {
        std::vector<float> out;
        for (int i = 0; i < count; ++i) out.push_back(float(between(random, -99, 99)) / 64);
        return out;
    };
    const auto x = floats((tokens - 1) * stride + columns), w = floats(tokens * rank);
    std::vector<float> out(std::size_t(columns * rank)), other(out);
    TokenSums sums{x.data(), w.data(), out.data(), tokens, columns, rank, stride, rank, false};
    sum_over_tokens(kernel, sums, 1);
    sums.out = other.data(), sums.rank_first = true;
    sum_over_tokens(kernel, sums, between(random, 2, 3));
    for (int n = 0; n < columns; ++n) {
        for (int r = 0; r < rank; ++r) {
            double sum = 0;
            for (int t = 0; t < tokens; ++t)
                sum += double(x[std::size_t(t * stride + n)]) * w[std::size_t(t * rank + r)];
            const float found = out[std::size_t(n * rank + r)];
            if (std::abs(found - sum) > 1e-3 || found != other[std::size_t(r * columns + n)])
                return false;
        }
    }
    return true;
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
    if (once == y || product(kernel, p, y, between(random, 2, 3)) != once) return false;
    return slices > 1 || int8 || check_turned(kernel, random, p, a, b, y, once);
}

}  // namespace

// How many products, and with which seed. BDC_CPU_ISA chooses the kernel.
int main(int, char** arguments) {
    const Kernel& kernel = choose();
    Random random(static_cast<unsigned>(std::atoi(arguments[2])));
    for (int i = 0; i < std::atoi(arguments[1]); ++i) {
        if (check(kernel, random) &&
            (i % 8 || (check_gate(kernel, random) && check_sums(kernel, random))))
            continue;
        std::printf("product %d of %s differs\n", i, kernel.name);
        return 1;
    }
    std::printf("%s\n", kernel.name);
}
