// Eight threads on one forest that itself uses four: every call, mixed at random, for a sanitizer
// to watch. Usage: stress ROUNDS FOLDER. Exits with 0 when all invariants held.
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <thread>

#include "../forest.hpp"

using namespace bdc::search;

namespace {

using Numbers = std::vector<std::int64_t>;

template <class Ids>
Numbers wide(const Ids& ids) {
    return {ids.begin(), ids.end()};
}

// One thread's work on its own trees; looking and saving see everybody's.
void work(Forest& forest, const Numbers& own, int rounds, unsigned seed, const std::string& file) {
    std::mt19937 random(seed);
    Selection selection, next;
    for (int round = 0; round < rounds; ++round) {
        forest.select(own, 1 + random() % 3, selection);
        while (random() % 2 == 0) {
            const std::vector<double> returns(selection.leaf.size(), double(random() % 100) / 99);
            forest.step(selection, Numbers{std::int64_t(random() % 5)}, returns, {}, {},
                        1 + random() % 3, next);
            std::swap(selection, next);
        }
        const Numbers leaves = wide(selection.leaf);
        if (random() % 8 == 0) {
            forest.abandon(leaves, selection.ticket, true);
            continue;
        }
        const Numbers counts{std::int64_t(random() % 5)};
        const Range made = forest.expand(leaves, counts, {}, {});
        std::vector<double> returns;
        for (std::size_t i = 0; i < leaves.size(); ++i)
            returns.push_back(double(random() % 100) / 99);
        try {
            forest.backup(leaves, returns, selection.ticket, true);
        } catch (const InputFault&) {  // a leaf that this thread has pruned
            forest.abandon(leaves, selection.ticket, true);
        }
        if (made.count > 0) {
            const Numbers one{made.first + std::int64_t(random() % std::uint32_t(made.count))};
            switch (random() % 6) {
                case 0:
                    forest.prune(one, Numbers{7});
                    break;
                case 1:
                    forest.refine(one);
                    break;
                case 2:
                    forest.reopen(one);
                    break;
                case 3:
                    forest.rows(one);
                    break;
                default:
                    forest.best_path(own[random() % own.size()], Forest::By::kMean);
            }
        }
        if (random() % 64 == 0) forest.check();
        if (random() % 64 == 0) forest.save(file);
    }
}

void one_forest(std::uint32_t rule, const std::vector<double>& parameters, int rounds,
                const std::string& folder) {
    Config config;
    config.rule.kind = rule;
    std::copy(parameters.begin(), parameters.end(), config.rule.parameters);
    config.widening_c = 1.5;
    Forest forest(config, 4);
    std::vector<std::thread> threads;
    for (unsigned i = 0; i < 8; ++i) {
        const Range roots = forest.plant(200);
        Numbers own;
        for (std::int32_t k = 0; k < roots.count; ++k) own.push_back(roots.first + k);
        const std::string file = folder + "/stress" + std::to_string(i);
        threads.emplace_back(
            [&forest, own, rounds, i, file] { work(forest, own, rounds, i, file); });
    }
    for (auto& thread : threads) thread.join();
    forest.check();
    const std::string file = folder + "/stress";
    for (const bool verify : {true, false}) {
        forest.save(file);
        Forest other(Forest::peek(file), 2);
        Forest::load(file, verify, other);
        const std::vector<std::int32_t> trees = other.trees();
        work(other, wide(trees), 3, 1, file + "-other");
        other.drop(Numbers{trees[0], trees[5]});
        other.compact(false);
        other.check();
    }
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 3) return 2;
    const int rounds = std::atoi(argv[1]);
    one_forest(0, {1.4}, rounds, argv[2]);
    one_forest(1, {19652, 1.25, 0, 0.2}, rounds, argv[2]);
    one_forest(3, {64, 8, 50, 1}, rounds, argv[2]);
    one_forest(4, {1, 0, 1, 1}, rounds, argv[2]);
    std::puts("ok");
}
