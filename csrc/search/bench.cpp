// The core driven from C++: simulations (select, expand with B children, back up a value at the
// selected leaf) per CPU second, after a search that is not counted. Usage: search_bench TREES
// NODES BRANCHING [THREADS [steps]]; one line of JSON. With threads it tells what a cache line
// takes from one to another, and with `steps` what the machine takes from a thread, since a virtual
// machine's processors may move apart, and be busy elsewhere, from one second to the next; and the
// rate by the median time of each of a search's steps, which such moments do not change.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <optional>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "forest.hpp"

using namespace bdc::search;

namespace {

using Clock = std::chrono::steady_clock;
using Seconds = std::chrono::duration<double>;

double cpu_seconds() { return double(std::clock()) / CLOCKS_PER_SEC; }

// Nanoseconds that a line takes from one thread to another.
double line_transfer() {
    constexpr int kFirst = 1000, kEnd = 11000;  // turns; the other thread may come late
    alignas(kApart) std::atomic<int> turn{0};
    Clock::time_point start;
    const auto play = [&](int side) {
        for (int now = side; now < kEnd; now += 2) {
            while (turn.load(std::memory_order_acquire) != now) {
            }
            if (now == kFirst) start = Clock::now();
            turn.store(now + 1, std::memory_order_release);
        }
    };
    std::thread other(play, 1);
    play(0);
    other.join();
    return Seconds(Clock::now() - start).count() / (kEnd - kFirst) * 1e9;
}

// The share of its time that a thread misses which does nothing but look at the clock.
double lost_share() {
    const auto start = Clock::now();
    Clock::duration lost{0};
    auto last = start;
    while (last - start < std::chrono::milliseconds(50)) {
        const auto now = Clock::now();
        if (now - last > std::chrono::microseconds(1)) lost += now - last;
        last = now;
    }
    return Seconds(lost) / Seconds(last - start);
}

// The time of all steps of a search, by the medians of several searches; their times one by one.
double typical_seconds(const std::vector<float>& steps, std::size_t waves) {
    double sum = 0.0;
    std::vector<float> same(steps.size() / waves);
    for (std::size_t wave = 0; wave < waves; ++wave) {
        for (std::size_t i = 0; i < same.size(); ++i) same[i] = steps[i * waves + wave];
        std::sort(same.begin(), same.end());
        sum += (double(same[same.size() / 2]) + double(same[(same.size() - 1) / 2])) / 2;
    }
    return sum;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 4) return 2;
    const std::int64_t trees = std::atoll(argv[1]), nodes = std::atoll(argv[2]);
    const std::int64_t branching = std::atoll(argv[3]);
    Config config;
    config.rule.kind = 0;  // UCT, mean: the rule that every peer has
    config.rule.parameters[0] = 1.41421356;
    config.backup = Backup::kMean;
    const unsigned threads = argc > 4 ? unsigned(std::atoi(argv[4])) : 1;
    const bool by_steps = argc > 5 && std::string_view(argv[5]) == "steps";
    const double line_before = threads > 1 ? line_transfer() : 0.0;
    const double lost_before = by_steps ? lost_share() : 0.0;
    std::optional<Forest> forest;
    double cpu = 0.0;
    Clock::time_point wall, last;
    std::vector<float> steps;  // in seconds; a search's first one with the making of its forest
    const std::vector<double> value(std::size_t(trees), 0.5);
    const std::int64_t waves = nodes / branching;
    std::int64_t depth = 0;
    std::size_t bytes = 0;  // after the first search
    std::vector<std::int64_t> roots;
    Selection selections[2], *selection = selections, *next = selection + 1;
    std::int64_t wave = 0;
    for (;; ++wave) {
        if (wave % waves == 0) {
            if (wave == waves) {
                cpu = cpu_seconds();
                wall = last = Clock::now();
                depth = 0;
            }
            // Small searches are repeated in fresh forests until there is enough to time.
            if (wave > waves && cpu_seconds() - cpu > 0.25) break;
            forest.emplace(config, threads);
            roots.clear();
            const Range planted = forest->plant(trees);
            for (std::int32_t i = 0; i < planted.count; ++i) roots.push_back(planted.first + i);
            forest->select(roots, 1, *selection);
        }
        forest->step(*selection, Ids(&branching, 1), value, {}, {}, 1, *next);
        std::swap(selection, next);
        depth += selection->depth[0];
        if (wave + 1 == waves) bytes = forest->bytes();
        if (by_steps && wave >= waves) {
            const auto now = Clock::now();
            steps.push_back(float(Seconds(now - std::exchange(last, now)).count()));
        }
    }
    wave -= waves;
    const double spent = cpu_seconds() - cpu;
    const Seconds elapsed = Clock::now() - wall;
    const double simulations = double(wave * trees);
    const double line = threads > 1 ? (line_before + line_transfer()) / 2 : 0.0;
    std::printf(
        "{\"trees\": %ld, \"nodes\": %ld, \"branching\": %ld, \"mean_depth\": %.1f, "
        "\"per_cpu_second\": %.0f, \"per_second\": %.0f, \"bytes_per_node\": %.1f, "
        "\"line_ns\": %.0f",
        long(trees), long(nodes), long(branching), double(depth) / double(wave),
        simulations / spent, simulations / elapsed.count(),
        double(bytes) / double(trees * (1 + waves * branching)), line);
    if (by_steps) {
        std::printf(", \"median_per_second\": %.0f, \"lost\": %.4f",
                    double(trees * waves) / typical_seconds(steps, std::size_t(waves)),
                    (lost_before + lost_share()) / 2);
    }
    std::printf("}\n");
}
