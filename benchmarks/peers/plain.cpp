// What a search costs with bare arrays: UCT over parent, first child, count and sum by node, and
// nothing that several leaves in flight, ids, pruning or snapshots need. Usage: plain_bench TREES
// NODES BRANCHING [waves]; one line of JSON. One tree after the other, or in waves of one
// simulation per tree, as a search must whose evaluations are batched. A search comes first that is
// not counted; the next ones use its memory again.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <limits>
#include <vector>

namespace {

constexpr double kWidth = 1.41421356, kReturn = 0.5;

class Tree {
  public:
    Tree(std::int32_t nodes, std::int32_t branching)
        : parent_(nodes), first_(nodes), n_(nodes), sum_(nodes), branching_(branching) {}

    void clear() {
        size_ = 0;
        add(-1);
    }

    // Select, expand, and back up a return at the leaf; its depth.
    int simulate() {
        std::int32_t at = 0;
        int depth = 0;
        for (; first_[at] >= 0; ++depth) at = best_child(at);
        first_[at] = size_;
        for (std::int32_t i = 0; i < branching_; ++i) add(at);
        for (; at >= 0; at = parent_[at]) {
            ++n_[at];
            sum_[at] += kReturn;
        }
        return depth;
    }

  private:
    void add(std::int32_t parent) {
        parent_[size_] = parent;
        first_[size_] = -1;
        n_[size_] = 0;
        sum_[size_] = 0.0;
        ++size_;
    }

    std::int32_t best_child(std::int32_t of) const {
        const double width = kWidth * std::sqrt(std::log(double(n_[of])));
        const std::int32_t first = first_[of];
        std::int32_t best = first;
        double most = -std::numeric_limits<double>::infinity();
        for (std::int32_t i = first; i < first + branching_; ++i) {
            if (n_[i] == 0) return i;
            const double n = n_[i], score = sum_[i] / n + width / std::sqrt(n);
            if (score > most) {
                most = score;
                best = i;
            }
        }
        return best;
    }

    std::vector<std::int32_t> parent_, first_, n_;
    std::vector<double> sum_;
    std::int32_t branching_, size_ = 0;
};

}  // namespace

int main(int argc, char** argv) {
    if (argc < 4) return 2;
    const long trees = std::atol(argv[1]), nodes = std::atol(argv[2]);
    const long branching = std::atol(argv[3]), simulations = nodes / branching;
    const bool in_waves = argc > 4 && std::strcmp(argv[4], "waves") == 0;
    std::vector<Tree> forest(std::size_t(trees), Tree(std::int32_t(1 + simulations * branching),
                                                      std::int32_t(branching)));
    const auto search = [&] {
        long depths = 0;
        for (Tree& tree : forest) tree.clear();
        for (long i = 0; i < trees * simulations; ++i) {
            const long tree = in_waves ? i % trees : i / simulations;
            depths += forest[std::size_t(tree)].simulate();
        }
        return double(depths);
    };
    search();
    double spent = 0.0, depth = 0.0;
    long searches = 0;
    for (const std::clock_t start = std::clock(); spent < 0.25; ++searches) {
        depth += search();
        spent = double(std::clock() - start) / CLOCKS_PER_SEC;
    }
    const double work = double(searches) * double(trees) * double(simulations);
    std::printf(
        "{\"trees\": %ld, \"nodes\": %ld, \"branching\": %ld, \"mean_depth\": %.1f, "
        "\"per_cpu_second\": %.0f}\n",
        trees, nodes, branching, depth / work, work / spent);
}
