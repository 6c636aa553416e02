// Selection: from the root to a leaf (or to a node to widen), several trees in step so that the
// memory latency of one descent hides behind the work of the others.
#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "forest.hpp"

namespace bdc::search {

namespace {

constexpr std::size_t kInStep = 16;

// Room for the scores of one family; kept, since a call may select a single leaf.
double* score_room() {
    thread_local std::vector<double> room(kMaxChildren);
    return room.data();
}

struct Walker {
    std::size_t item = 0;  // position in the call's list of trees
    std::uint32_t tree = 0;
    std::uint32_t block = 0, lane = 0;
    std::int32_t agent = -1;
    std::vector<std::int32_t> path;
};

// The open lane with the largest score; there is always one.
std::uint32_t arg_max(const Family& family, const double* score) {
    std::uint32_t best = kNone;
    for (std::uint32_t i = 0; i < family.head().count; ++i) {
        if (family.reason()[i] != 0) continue;
        if (best == kNone || score[i] > score[best] ||
            (score[i] == score[best] && wins_tie(family, i, best, true))) {
            best = i;
        }
    }
    return best;
}

// What scoring reads of a block with about so many lanes: all of a small one, else the header, the
// values and the counts.
void prefetch(const std::byte* block, std::size_t lanes) {
    const auto fetch = [&](std::size_t from, std::size_t to) {
        for (std::size_t at = from; at < to + kGrain; at += 64) __builtin_prefetch(block + at);
    };
    if (lanes <= 8) {
        fetch(0, sizeof(Header) + kLaneBytes * lanes);
    } else {
        lanes = std::min<std::size_t>(lanes, 64);
        fetch(0, sizeof(Header) + 16 * lanes);
        fetch(sizeof(Header) + 24 * lanes, sizeof(Header) + 32 * lanes);
    }
}

// The descent of one rule. All state that outlives a step lies in the walker and in its tree.
template <class Rule>
class Descent {
  public:
    Descent(const Rule& rule, const Config& config, Pick pick, const std::vector<double>& factors,
            std::atomic<bool>& outgrown, std::vector<Tree>& trees)
        : rule_(rule),
          config_(config),
          pick_(pick),
          factors_(factors),
          outgrown_(outgrown),
          trees_(trees) {}

    void start(Walker& walker) const {
        const Family family = trees_[walker.tree].arena.at(0);
        walker.block = walker.lane = 0;
        walker.agent = -1;
        walker.path.clear();
        enter(walker, family, 0);
    }

    // One level down; false: the walker stands on its leaf.
    bool step(Walker& walker) const {
        const Arena& arena = trees_[walker.tree].arena;
        const Family above = arena.at(walker.block);
        const std::uint32_t block = above.child()[walker.lane];
        if (block == kNone) {
            generate(walker, nullptr);
            return false;
        }
        const Family family = arena.at(block);
        if (config_.widening_c != 0.0 && wants_width(above, walker.lane, family)) return false;
        const std::uint32_t lane = choose(walker, above, family);
        if (walker.agent >= 0) return false;
        walker.block = block;
        walker.lane = lane;
        const std::uint32_t below = family.child()[lane];
        if (below != kNone) prefetch(arena.base(below), family.capacity());
        enter(walker, family, lane);
        return true;
    }

  private:
    static void enter(Walker& walker, const Family& family, std::uint32_t lane) {
        ++family.head().pending;
        ++family.pending()[lane];
        walker.path.push_back(std::int32_t(family.id()[lane]));
    }

    Site site(const Walker& walker, const Family& above, const Family& family) const {
        return {family,
                above.value(walker.lane, config_.backup),
                above.head().parent_block == kNone,
                config_.backup == Backup::kMean,
                config_.virtual_loss,
                config_.seed,
                walker.tree,
                above.id()[walker.lane]};
    }

    std::uint32_t choose(Walker& walker, const Family& above, const Family& family) const {
        if constexpr (Factored<Rule>) {
            const std::uint32_t visits = family.head().visits + family.head().pending;
            const double factor = factor_of(visits);
            if (pick_ != nullptr) {
                return pick_(family, factor, rule_.unvisited(site(walker, above, family)));
            }
            double* scores = score_room();
            score_lanes(rule_, site(walker, above, family), factor, scores);
            return arg_max(family, scores);
        } else {
            const Site here = site(walker, above, family);
            double* scores = score_room();
            rule_.score(here, scores);
            const std::uint32_t lane = arg_max(family, scores);
            generate(walker, &here, scores[lane]);
            return lane;
        }
    }

    double factor_of(std::uint32_t visits) const {
        if (visits < factors_.size()) return factors_[visits];
        if (visits < kTabulated) outgrown_.store(true, std::memory_order_relaxed);
        return rule_.factor(double(visits));
    }

    // Progressive widening: fewer open children than c * N^alpha; a selection in flight that
    // stopped here counts as a child to come.
    bool wants_width(const Family& above, std::uint32_t lane, const Family& family) const {
        const Header& head = family.head();
        const double coming = double(above.pending()[lane]) - 1.0 - double(head.pending);
        const double visits = double(head.visits) + double(head.pending) + coming;
        return double(head.open) + coming <
               config_.widening_c * std::pow(visits, config_.widening_alpha);
    }

    // Does the rule rather have a new child here, and by which agent?
    void generate(Walker& walker, const Site* site,
                  double best = -std::numeric_limits<double>::infinity()) const {
        if constexpr (requires { rule_.agents; }) {
            const std::uint32_t visits = site ? site->visits() : 1;
            const auto node = std::uint32_t(walker.path.back());
            const std::uint64_t now = rule_.moment(config_.seed, walker.tree, node, visits);
            for (std::uint32_t agent = 0; agent < rule_.agents; ++agent) {
                Stream stream = rule_.stream(now, (std::uint64_t(1) << 32) + agent);
                const Arm arm = site ? site->family.arms()[agent] : Arm{0.0, 0};
                const double draw = rule_.draw(stream, double(arm.n), arm.sum);
                if (draw > best) {
                    best = draw;
                    walker.agent = std::int32_t(agent);
                }
            }
        }
    }

    const Rule& rule_;
    const Config& config_;
    const Pick pick_;
    const std::vector<double>& factors_;
    std::atomic<bool>& outgrown_;
    std::vector<Tree>& trees_;
};

}  // namespace

// Makes the table of a factored rule twice as long.
void Forest::tabulate() {
    outgrown_.store(false, std::memory_order_relaxed);
    std::visit(
        [&]<class Rule>(const Rule& rule) {
            if constexpr (Factored<Rule>) {
                std::size_t visits = factors_.size();
                factors_.resize(
                    std::min<std::size_t>(kTabulated, std::max<std::size_t>(256, 2 * visits)));
                for (; visits < factors_.size(); ++visits) {
                    factors_[visits] = visits == 0 ? 0.0 : rule.factor(double(visits));
                }
            }
        },
        rule_);
}

void Forest::select(Ids trees, std::int64_t leaves, Selection& into) {
    const std::lock_guard lock(mutex_);
    if (leaves < 0 ||
        (leaves > 0 && std::int64_t(trees.size()) > (std::int64_t(1) << 31) / leaves)) {
        throw InputFault("select got leaves = " + std::to_string(leaves) +
                         "; give a number from 0, with trees * leaves at most 2^31");
    }
    item_tree_.resize(trees.size());
    for (std::size_t i = 0; i < trees.size(); ++i) {
        item_tree_[i] = locate_root(trees[i], std::int64_t(i)).tree;
    }
    const std::size_t rows = trees.size() * std::size_t(leaves);
    into.tree.resize(rows);
    into.leaf.resize(rows);
    into.depth.resize(rows);
    into.agent.resize(rows);
    into.ticket.resize(rows);
    into.offsets.resize(rows + 1);
    into.offsets[0] = 0;
    into.path.clear();
    if (rows == 0) return;
    if (outgrown_.load(std::memory_order_relaxed)) tabulate();
    share(item_tree_, std::size_t(leaves));
    const std::uint64_t first_ticket = next_ticket_;
    next_ticket_ += rows;

    // Rows end in their order where one chunk has one leaf per tree; else their paths are put in
    // order at the end.
    const std::size_t chunks = shares_.starts.size() - 1;
    const bool in_order = chunks == 1 && (leaves == 1 || trees.size() == 1);
    if (!in_order) {
        paths_.resize(std::max(paths_.size(), chunks));
        path_at_.resize(rows);
    }

    const auto work = [&](const auto& rule, unsigned chunk) {
        const Descent descent(rule, config_, pick_, factors_, outgrown_, trees_);
        thread_local std::vector<Walker> walkers(kInStep);  // with the memory of their paths
        std::vector<std::int32_t>& ids = in_order ? into.path : paths_[chunk];
        ids.clear();
        const auto finish = [&](const Walker& walker, std::int64_t leaf) {
            const std::size_t row = walker.item * std::size_t(leaves) + std::size_t(leaf);
            if (!in_order) path_at_[row] = {chunk, ids.size()};
            ids.insert(ids.end(), walker.path.begin(), walker.path.end());
            into.tree[row] = std::int32_t(trees[walker.item]);
            into.leaf[row] = walker.path.back();
            into.depth[row] = std::int32_t(walker.path.size()) - 1;
            into.agent[row] = walker.agent;
            into.ticket[row] = std::int64_t(first_ticket + row);
            trees_[walker.tree].flights.push_back(
                {first_ticket + row, std::uint32_t(walker.path.back()), Flight::kLive});
        };
        const std::uint32_t end = shares_.starts[chunk + 1];
        for (std::uint32_t next = shares_.starts[chunk]; next < end;) {
            std::size_t count = 0;
            for (; next < end && count < kInStep; ++next) {
                const std::size_t item = shares_.order.empty() ? next : shares_.order[next];
                Tree& tree = trees_[item_tree_[item]];
                if (tree.busy) break;  // named again: its next descent must see this one's
                tree.busy = true;
                walkers[count].item = item;
                walkers[count++].tree = item_tree_[item];
            }
            for (std::int64_t leaf = 0; leaf < leaves; ++leaf) {
                Walker* active[kInStep];
                std::size_t left = count;
                for (std::size_t i = 0; i < count; ++i) {
                    active[i] = &walkers[i];
                    descent.start(walkers[i]);
                }
                while (left > 0) {
                    std::size_t going = 0;
                    for (std::size_t i = 0; i < left; ++i) {
                        if (descent.step(*active[i])) active[going++] = active[i];
                    }
                    left = going;
                }
                for (std::size_t i = 0; i < count; ++i) finish(walkers[i], leaf);
            }
            for (std::size_t i = 0; i < count; ++i) trees_[walkers[i].tree].busy = false;
        }
    };
    std::visit(
        [&](const auto& rule) {
            pool_.run(unsigned(chunks), [&](unsigned chunk) { work(rule, chunk); });
        },
        rule_);

    for (std::size_t row = 0; row < rows; ++row) {
        into.offsets[row + 1] = into.offsets[row] + into.depth[row] + 1;
    }
    if (in_order) return;
    into.path.resize(std::size_t(into.offsets[rows]));
    for (std::size_t row = 0; row < rows; ++row) {
        std::copy_n(paths_[path_at_[row].first].begin() + std::ptrdiff_t(path_at_[row].second),
                    into.depth[row] + 1, into.path.begin() + into.offsets[row]);
    }
}

}  // namespace bdc::search
