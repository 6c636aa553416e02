// OpenSpiel's C++ MCTS on a game with B actions everywhere and a constant value: what
// `search_bench` does with the tree core. It gives a leaf its children at the second visit only, so
// that NODES / BRANCHING simulations make fewer nodes. Usage: openspiel_bench TREES NODES BRANCHING
// for the rate of simulations, with a fourth word `grown` for the rate of expansions in a search
// that is long enough to make NODES nodes; one line of JSON. CMakeLists.txt beside it says how it
// is built.
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <memory>
#include <string>
#include <vector>

#include "open_spiel/algorithms/mcts.h"
#include "open_spiel/spiel.h"

namespace {

using open_spiel::Action;

class Uniform : public open_spiel::Game {
  public:
    explicit Uniform(int branching)
        : Game(open_spiel::GameType{"uniform",
                                    "uniform",
                                    open_spiel::GameType::Dynamics::kSequential,
                                    open_spiel::GameType::ChanceMode::kDeterministic,
                                    open_spiel::GameType::Information::kPerfectInformation,
                                    open_spiel::GameType::Utility::kGeneralSum,
                                    open_spiel::GameType::RewardModel::kTerminal,
                                    1,
                                    1,
                                    false,
                                    false,
                                    false,
                                    false,
                                    {}},
               {}),
          branching(branching) {}
    int NumDistinctActions() const override { return branching; }
    std::unique_ptr<open_spiel::State> NewInitialState() const override;
    int NumPlayers() const override { return 1; }
    double MinUtility() const override { return 0; }
    double MaxUtility() const override { return 1; }
    int MaxGameLength() const override { return 1 << 30; }
    const int branching;
};

class Place : public open_spiel::State {
  public:
    explicit Place(std::shared_ptr<const open_spiel::Game> game, int branching)
        : State(std::move(game)), branching_(branching) {}
    open_spiel::Player CurrentPlayer() const override { return 0; }
    std::vector<Action> LegalActions() const override {
        std::vector<Action> actions(branching_);
        for (int i = 0; i < branching_; ++i) actions[i] = i;
        return actions;
    }
    std::string ActionToString(open_spiel::Player, Action action) const override {
        return std::to_string(action);
    }
    std::string ToString() const override { return "place"; }
    bool IsTerminal() const override { return false; }
    std::vector<double> Returns() const override { return {0.5}; }
    std::unique_ptr<open_spiel::State> Clone() const override {
        return std::make_unique<Place>(*this);
    }

  protected:
    void DoApplyAction(Action) override {}

  private:
    int branching_;
};

std::unique_ptr<open_spiel::State> Uniform::NewInitialState() const {
    return std::make_unique<Place>(shared_from_this(), branching);
}

class Constant : public open_spiel::algorithms::Evaluator {
  public:
    explicit Constant(int branching) {
        for (int i = 0; i < branching; ++i) prior_.emplace_back(i, 1.0 / branching);
    }
    std::vector<double> Evaluate(const open_spiel::State&) override { return {0.5}; }
    open_spiel::ActionsAndProbs Prior(const open_spiel::State&) override { return prior_; }

  private:
    open_spiel::ActionsAndProbs prior_;
};

using open_spiel::algorithms::SearchNode;

long size(const SearchNode& node) {
    long total = long(node.children.size());
    for (const SearchNode& child : node.children) total += size(child);
    return total;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 4) return 2;
    const long trees = std::atol(argv[1]), nodes = std::atol(argv[2]);
    const int branching = std::atoi(argv[3]);
    const bool grown = argc > 4;
    const auto game = std::make_shared<const Uniform>(branching);
    const auto root = game->NewInitialState();
    const auto bot = [&](long simulations) {
        return open_spiel::algorithms::MCTSBot(*game, std::make_shared<Constant>(branching),
                                               1.41421356, int(simulations), 8000, false, 1, false);
    };
    long simulations = nodes / branching;
    long made = size(*bot(simulations).MCTSearch(*root));
    while (grown && made < nodes) {
        simulations += 1 + simulations / 4;
        made = size(*bot(simulations).MCTSearch(*root));
    }
    auto searcher = bot(simulations);
    const auto search = [&] {
        std::vector<std::unique_ptr<SearchNode>> kept;  // as a forest keeps them
        for (long tree = 0; tree < trees; ++tree) kept.push_back(searcher.MCTSearch(*root));
    };
    search();  // not counted
    const std::clock_t start = std::clock();
    double spent = 0.0;
    long repeats = 0;
    for (; spent < 0.25; ++repeats) {  // small searches often enough to time
        search();
        spent = double(std::clock() - start) / CLOCKS_PER_SEC;
    }
    const double work = grown ? double(made) / branching : double(simulations);
    std::printf(
        "{\"trees\": %ld, \"nodes\": %ld, \"branching\": %d, \"simulations\": %ld, "
        "\"nodes_made\": %ld, \"per_cpu_second\": %.0f}\n",
        trees, nodes, branching, simulations, made, work * double(trees * repeats) / spent);
}
