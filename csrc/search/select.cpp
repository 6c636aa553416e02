// Selection: from the root to a leaf (or to a node to widen), several trees interleaved so that the
// memory latency of one descent hides behind the work of the others.
#include <cmath>
#include <limits>

#include "forest.hpp"

namespace bdc::search {

namespace {

constexpr std::size_t kInterleaved = 8;

// Room for the scores of one family; kept, since a call may select a single leaf.
double* score_room() {
    thread_local std::vector<double> room(kMaxChildren);
    return room.data();
}

struct Walker {
    std::size_t item = 0;        // position in the call's list of trees
    std::int64_t leaf = 0;       // of that tree in this call
    std::uint32_t tree = kNone;  // index; kNone: idle
    std::uint32_t block = 0, lane = 0;
    std::int32_t agent = -1;
    std::vector<std::int32_t> path;
};

// Where one worker put the paths of its leaves.
struct Paths {
    struct Piece {
        std::size_t row, begin, end;
    };
    std::vector<Piece> pieces;
    std::vector<std::int32_t> ids;
};

std::uint32_t agents_in(const Family& family) {
    std::uint32_t largest = 0;
    for (std::uint32_t i = 0; i < family.head().count; ++i) {
        largest = std::max<std::uint32_t>(largest, family.tag()[i]);
    }
    return largest + 1;
}

// The open lane with the largest score; there is always one.
std::uint32_t arg_max(const Family& family, const double* score) {
    const Header& head = family.head();
    const std::uint8_t* reason = family.reason();
    std::uint32_t best = kNone;
    bool tie = false;
    for (std::uint32_t i = 0; i < head.count; ++i) {
        if (reason[i] != 0) continue;
        if (best == kNone || score[i] > score[best]) {
            best = i;
            tie = false;
        } else if (score[i] == score[best]) {
            tie = true;
        }
    }
    if (!tie) return best;
    const std::uint32_t turn = head.visits + head.pending - 1;
    const std::uint32_t agents = agents_in(family);
    const double top = score[best];
    for (std::uint32_t i = best + 1; i < head.count; ++i) {
        if (reason[i] == 0 && score[i] == top && wins_tie(family, i, best, turn, agents)) best = i;
    }
    return best;
}

// The descent of one rule. All state that outlives a step lies in the walker and in its tree.
template <class Rule>
class Descent {
  public:
    Descent(const Rule& rule, const Config& config, std::vector<Tree>& trees)
        : rule_(rule), config_(config), trees_(trees), scores_(score_room()) {}

    void start(Walker& walker) {
        const Family family = trees_[walker.tree].arena.at(0);
        walker.block = walker.lane = 0;
        walker.agent = -1;
        walker.path.clear();
        enter(walker, family, 0);
    }

    // One level down; false: the walker stands on its leaf.
    bool step(Walker& walker) {
        Tree& tree = trees_[walker.tree];
        const Family above = tree.arena.at(walker.block);
        const std::uint32_t block = above.child()[walker.lane];
        if (block == kNone) {
            generate(walker, nullptr, tree);
            return false;
        }
        const Family family = tree.arena.at(block);
        if (wants_width(above, walker.lane, family)) return false;
        const Site site{family,
                        above.value(walker.lane, config_.backup),
                        above.head().parent_block == kNone,
                        config_.backup == Backup::kMean,
                        config_.virtual_loss,
                        config_.seed,
                        walker.tree,
                        above.id()[walker.lane]};
        rule_.score(site, scores_);
        const std::uint32_t lane = arg_max(family, scores_);
        if (generate(walker, &site, tree, scores_[lane])) return false;
        walker.block = block;
        walker.lane = lane;
        enter(walker, family, lane);
        if (family.child()[lane] != kNone) tree.arena.prefetch(family.child()[lane]);
        return true;
    }

  private:
    static void enter(Walker& walker, const Family& family, std::uint32_t lane) {
        ++family.head().pending;
        ++family.pending()[lane];
        walker.path.push_back(std::int32_t(family.id()[lane]));
    }

    // Progressive widening: fewer open children than c * N^alpha; a selection in flight that
    // stopped here counts as a child to come.
    bool wants_width(const Family& above, std::uint32_t lane, const Family& family) const {
        if (config_.widening_c == 0.0) return false;
        const Header& head = family.head();
        const double coming = double(above.pending()[lane]) - 1.0 - double(head.pending);
        const double visits = double(head.visits) + double(head.pending) + coming;
        return double(head.open) + coming <
               config_.widening_c * std::pow(visits, config_.widening_alpha);
    }

    // Does the rule rather have a new child here, and by which agent?
    bool generate(Walker& walker, const Site* site, const Tree& tree,
                  double best = -std::numeric_limits<double>::infinity()) const {
        if constexpr (requires { rule_.agents; }) {
            const std::uint32_t visits = site ? site->visits() : 1;
            const auto node = std::uint32_t(walker.path.back());
            for (std::uint32_t agent = 0; agent < rule_.agents; ++agent) {
                const std::uint64_t moment = mix(mix(node, visits), 0xA63Eull + agent);
                Stream stream(mix(config_.seed, mix(walker.tree, moment)));
                const Arm arm = site ? tree.arms[site->family.head().arms + agent] : Arm{0.0, 0};
                const double draw = rule_.draw(stream, double(arm.n), arm.sum);
                if (draw > best) {
                    best = draw;
                    walker.agent = std::int32_t(agent);
                }
            }
        }
        return walker.agent >= 0;
    }

    const Rule& rule_;
    const Config& config_;
    std::vector<Tree>& trees_;
    double* scores_;
};

}  // namespace

Selection Forest::select(Ids trees, std::int64_t leaves) {
    const std::lock_guard lock(mutex_);
    if (leaves < 0 ||
        (leaves > 0 && std::int64_t(trees.size()) > (std::int64_t(1) << 31) / leaves)) {
        throw InputFault("select got leaves = " + std::to_string(leaves) +
                         "; give a number from 0, with trees * leaves at most 2^31");
    }
    std::vector<std::uint32_t> tree_of(trees.size());
    for (std::size_t i = 0; i < trees.size(); ++i) {
        tree_of[i] = locate_root(trees[i], std::int64_t(i)).tree;
    }
    const std::size_t rows = trees.size() * std::size_t(leaves);
    Selection result;
    result.tree.resize(rows);
    result.leaf.resize(rows);
    result.depth.resize(rows);
    result.agent.resize(rows);
    result.ticket.resize(rows);
    result.offsets.assign(rows + 1, 0);
    if (rows == 0) return result;
    const std::uint64_t first_ticket = next_ticket_;
    next_ticket_ += rows;

    constexpr std::size_t kWorthAThread = 96;
    const auto parts = unsigned(
        std::max<std::size_t>(1, std::min<std::size_t>(pool_.threads(), rows / kWorthAThread)));
    std::vector<Paths> paths(parts);

    const auto work = [&](const auto& rule, unsigned part) {
        Descent descent(rule, config_, trees_);
        Paths& own = paths[part];
        std::size_t next = 0;
        own.pieces.reserve(rows / parts + 1);
        thread_local std::vector<Walker> kept(kInterleaved);  // with the memory of their paths
        const std::span<Walker> walkers(kept.data(), std::min(kInterleaved, trees.size()));
        for (Walker& walker : walkers) walker.tree = kNone;

        const auto finish = [&](Walker& walker) {
            const std::size_t row = walker.item * std::size_t(leaves) + std::size_t(walker.leaf);
            const std::size_t begin = own.ids.size();
            own.ids.insert(own.ids.end(), walker.path.begin(), walker.path.end());
            own.pieces.push_back({row, begin, own.ids.size()});
            result.tree[row] = std::int32_t(trees[walker.item]);
            result.leaf[row] = walker.path.back();
            result.depth[row] = std::int32_t(walker.path.size()) - 1;
            result.agent[row] = walker.agent;
            result.ticket[row] = std::int64_t(first_ticket + row);
            trees_[walker.tree].flights.push_back(
                {first_ticket + row, std::uint32_t(walker.path.back()), Flight::kLive});
        };
        // Takes the next tree of this part, unless that tree still has a walker: trees stay in
        // order.
        const auto assign = [&](Walker& walker) {
            while (next < trees.size() && parts > 1 && tree_of[next] % parts != part) ++next;
            if (next == trees.size() || trees_[tree_of[next]].busy) return false;
            walker.item = next;
            walker.leaf = 0;
            walker.tree = tree_of[next++];
            trees_[walker.tree].busy = true;
            descent.start(walker);
            return true;
        };
        for (bool any = true; any;) {
            any = false;
            for (Walker& walker : walkers) {
                if (walker.tree == kNone && !assign(walker)) continue;
                any = true;
                if (descent.step(walker)) continue;
                finish(walker);
                if (++walker.leaf < leaves) {
                    descent.start(walker);
                } else {
                    trees_[walker.tree].busy = false;
                    walker.tree = kNone;
                }
            }
        }
    };
    std::visit(
        [&](const auto& rule) { pool_.run(parts, [&](unsigned part) { work(rule, part); }); },
        rule_);

    for (std::size_t row = 0; row < rows; ++row) {
        result.offsets[row + 1] = result.offsets[row] + result.depth[row] + 1;
    }
    result.path.resize(std::size_t(result.offsets[rows]));
    for (const Paths& own : paths) {
        for (const auto& piece : own.pieces) {
            std::copy(own.ids.begin() + std::ptrdiff_t(piece.begin),
                      own.ids.begin() + std::ptrdiff_t(piece.end),
                      result.path.begin() + result.offsets[piece.row]);
        }
    }
    return result;
}

}  // namespace bdc::search
