// OpenSpiel's C++ MCTS on a game with B actions everywhere and a constant value: what
// `search_bench` does with the tree core. Usage: openspiel_bench TREES NODES BRANCHING; one line of
// JSON.
// CMakeLists.txt beside it says how it is built.
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

}  // namespace

int main(int argc, char** argv) {
    if (argc < 4) return 2;
    const long trees = std::atol(argv[1]), nodes = std::atol(argv[2]);
    const int branching = std::atoi(argv[3]);
    const long simulations = nodes / branching;
    const auto game = std::make_shared<const Uniform>(branching);
    open_spiel::algorithms::MCTSBot bot(*game, std::make_shared<Constant>(branching), 1.41421356,
                                        int(simulations), 8000, false, 1, false);
    const auto root = game->NewInitialState();
    const std::clock_t start = std::clock();
    double spent = 0.0;
    long repeats = 0;
    for (; spent < 0.25; ++repeats) {  // small searches often enough to time
        std::vector<std::unique_ptr<open_spiel::algorithms::SearchNode>>
            kept;  // as a forest keeps them
        for (long tree = 0; tree < trees; ++tree) kept.push_back(bot.MCTSearch(*root));
        kept.clear();
        spent = double(std::clock() - start) / CLOCKS_PER_SEC;
    }
    std::printf("{\"trees\": %ld, \"nodes\": %ld, \"branching\": %d, \"per_cpu_second\": %.0f}\n",
                trees, nodes, branching, double(simulations * trees * repeats) / spent);
}
