// Building and changing trees: plant, expand, prune, reopen, refine, drop.
#include "forest.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <unordered_map>

namespace bdc::search {

namespace {

std::string at(const char* what, std::int64_t index) {
    return std::string(what) + "[" + std::to_string(index) + "]";
}

void require(bool holds, const std::string& message) {
    if (!holds) throw InputFault(message);
}

// std::isfinite may be optimised away under fast-math flags; the bits may not.
bool finite(double x) { return (std::bit_cast<std::uint64_t>(x) >> 52 & 0x7FF) != 0x7FF; }

}  // namespace

AnyRule make_rule(const RuleSpec& spec) {
    const double* p = spec.parameters;
    for (int i = 0; i < kRuleParameters; ++i) {
        if (!finite(p[i])) throw InputFault("a rule parameter is not finite; give numbers", i);
    }
    switch (spec.kind) {
        case 0:
            require(p[0] >= 0.0, "UCT: c must not be negative");
            return UCT(p);
        case 1:
            require(p[0] > 0.0, "PUCT: c_base must be positive");
            return PUCT(p);
        case 2:
            require(p[0] > 0.0, "PUCB: c_base must be positive");
            return PUCB(p);
        case 3:
            require(p[0] >= 1.0 && p[0] <= 1e6 && p[1] >= 1.0 && p[1] <= 256.0,
                    "GumbelRoot: simulations must lie in 1..10^6 and considered in 1..256");
            require(p[0] * p[1] <= 1e7,
                    "GumbelRoot: simulations * considered must be at most 10^7");
            return GumbelRoot(p);
        case 4:
            require(p[0] >= 0.0 && p[0] <= 64.0, "Thompson: agents must lie in 0..64");
            require((p[1] != 0.0 || p[2] > 0.0) && p[3] > 0.0,
                    "Thompson: beta needs a, b > 0, normal needs a positive scale");
            return Thompson(p);
        default:
            throw InputFault("no selection rule has the number " + std::to_string(spec.kind));
    }
}

bool wins_tie(const Family& family, std::uint32_t a, std::uint32_t b, std::uint32_t turn,
              std::uint32_t agents) {
    if (family.prior()[a] != family.prior()[b]) return family.prior()[a] > family.prior()[b];
    const std::uint32_t n_a = family.n()[a] + family.pending()[a];
    const std::uint32_t n_b = family.n()[b] + family.pending()[b];
    if (n_a != n_b) return n_a < n_b;
    const std::uint32_t after_a = (family.tag()[a] + agents - turn % agents) % agents;
    const std::uint32_t after_b = (family.tag()[b] + agents - turn % agents) % agents;
    if (after_a != after_b) return after_a < after_b;
    return family.id()[a] < family.id()[b];
}

Forest::Forest(const Config& config, unsigned threads)
    : config_(config), rule_(make_rule(config.rule)), agents_(0), pool_(threads) {
    require(config.backup == Backup::kMax || config.backup == Backup::kMean,
            "backup must be 'max' or 'mean'");
    require(finite(config.gamma) && config.gamma >= 0.0 && config.gamma <= 1.0,
            "gamma must lie in 0..1");
    require(finite(config.virtual_loss) && config.virtual_loss >= 0.0,
            "virtual_loss must be finite and not negative");
    require(finite(config.widening_c) && config.widening_c >= 0.0 &&
                finite(config.widening_alpha) && config.widening_alpha >= 0.0 &&
                config.widening_alpha <= 1.0,
            "widening needs c >= 0 and alpha in 0..1");
    if (const auto* thompson = std::get_if<Thompson>(&rule_)) agents_ = thompson->agents;
}

Location Forest::locate(std::int64_t node, std::int64_t index, const char* what) const {
    if (node < 0 || std::size_t(node) >= locations_.size() || locations_[node] == kNowhere) {
        throw InputFault(at(what, index) + " is " + std::to_string(node) +
                             ", which is no node of this forest; use ids that plant, expand or "
                             "select returned",
                         index);
    }
    return Location::unpack(locations_[node]);
}

Location Forest::locate_root(std::int64_t tree, std::int64_t index) const {
    const Location where = locate(tree, index, "trees");
    if (trees_[where.tree].root != std::uint32_t(tree)) {
        throw InputFault(at("trees", index) + " is " + std::to_string(tree) +
                             ", which is no root; a tree is named by the id of its root",
                         index);
    }
    return where;
}

Location Forest::parent(const Location& of) const {
    const Header& head = trees_[of.tree].arena.at(of.block).head();
    return {of.tree, head.parent_block, head.parent_lane};
}

std::vector<std::int32_t> Forest::plant(std::int64_t count) {
    const std::lock_guard lock(mutex_);
    require(count >= 0, "plant got " + std::to_string(count) +
                            " trees; the number must not be "
                            "negative");
    require(std::size_t(count) + trees_.size() < kMaxTrees &&
                std::size_t(count) + locations_.size() <= kMaxNodes,
            "plant would exceed 2^22 trees or 2^30 nodes; use another forest");
    std::vector<std::int32_t> roots;
    trees_.reserve(trees_.size() + std::size_t(count));
    for (std::int64_t i = 0; i < count; ++i) {
        Tree tree;
        const std::uint32_t block = tree.arena.allocate(4, kNone, 0, 0);
        const Family family = tree.arena.at(block);
        family.head().count = family.head().open = 1;
        family.prior()[0] = 1.0;
        tree.root = family.id()[0] = std::uint32_t(locations_.size());
        family.child()[0] = kNone;
        tree.nodes = 1;
        locations_.push_back(Location{std::uint32_t(trees_.size()), block, 0}.pack());
        roots.push_back(std::int32_t(tree.root));
        trees_.push_back(std::move(tree));
    }
    return roots;
}

// Makes room for `needed` lanes; a family that outgrows its block moves to a larger one.
std::uint32_t Forest::widen(Tree& tree, std::uint32_t tree_index, std::uint32_t block,
                            std::uint32_t needed) {
    const Header old_head = tree.arena.at(block).head();
    if (needed <= old_head.capacity) return block;
    const std::uint32_t capacity =
        std::min(kMaxChildren, lanes_for(std::max(needed, old_head.capacity * 2)));
    const std::uint32_t moved =
        tree.arena.allocate(capacity, old_head.parent_block, old_head.parent_lane, old_head.depth);
    const Family from = tree.arena.at(block), to = tree.arena.at(moved);
    to.head() = old_head;
    to.head().capacity = capacity;
    for (std::uint32_t lane = 0; lane < old_head.count; ++lane) {
        to.copy_lane(lane, from, lane);
        locations_[to.id()[lane]] = Location{tree_index, moved, lane}.pack();
        if (to.child()[lane] != kNone) {
            tree.arena.at(to.child()[lane]).head().parent_block = moved;
        }
    }
    tree.arena.at(old_head.parent_block).child()[old_head.parent_lane] = moved;
    tree.arena.release(block);
    return moved;
}

void Forest::grow(const Location& where, std::uint32_t count, std::uint32_t first_id,
                  const double* priors, const std::int64_t* tags) {
    Tree& tree = trees_[where.tree];
    const Family above = tree.arena.at(where.block);
    std::uint32_t block = above.child()[where.lane];
    if (block == kNone) {
        const std::uint32_t depth = above.head().depth + 1;
        block = tree.arena.allocate(lanes_for(count), where.block, where.lane, depth);
        tree.arena.at(where.block).child()[where.lane] = block;
        if (agents_ > 0) {
            tree.arena.at(block).head().arms = std::uint32_t(tree.arms.size());
            tree.arms.resize(tree.arms.size() + agents_, Arm{0.0, 0});
        }
    } else {
        block = widen(tree, where.tree, block, tree.arena.at(block).head().count + count);
    }
    const Family family = tree.arena.at(block);
    for (std::uint32_t i = 0; i < count; ++i) {
        const std::uint32_t lane = family.head().count++;
        family.prior()[lane] = priors ? priors[i] : 1.0 / double(count);
        family.id()[lane] = first_id + i;
        family.child()[lane] = kNone;
        family.tag()[lane] = tags ? std::uint16_t(tags[i]) : 0;
        locations_[first_id + i] = Location{where.tree, block, lane}.pack();
    }
    family.head().open += count;
    tree.nodes += count;
}

std::vector<std::int32_t> Forest::expand(Ids nodes, Ids counts, std::span<const double> priors,
                                         Ids tags) {
    const std::lock_guard lock(mutex_);
    require(counts.size() == nodes.size() || counts.size() == 1,
            "expand got " + std::to_string(counts.size()) + " counts for " +
                std::to_string(nodes.size()) + " nodes; give one each, or one for all");
    const auto count_of = [&](std::size_t i) { return counts[counts.size() == 1 ? 0 : i]; };
    std::vector<std::size_t> first(nodes.size() + 1, 0);
    std::vector<std::uint32_t> tree(nodes.size());
    std::unordered_map<std::int64_t, std::uint64_t> crowded;  // only nodes near the limit
    for (std::size_t i = 0; i < nodes.size(); ++i) {
        const Location where = locate(nodes[i], std::int64_t(i), "nodes");
        const std::int64_t count = count_of(i);
        if (count < 0 || count > kMaxChildren) {
            throw InputFault(at("counts", std::int64_t(i)) + " is " + std::to_string(count) +
                                 "; a count lies in 0.." + std::to_string(kMaxChildren),
                             std::int64_t(i));
        }
        tree[i] = where.tree;
        first[i + 1] = first[i] + std::size_t(count);
    }
    const std::size_t total = first.back();
    for (std::size_t i = 0; i < nodes.size(); ++i) {
        const Location where = locate(nodes[i], std::int64_t(i), "nodes");
        const std::uint32_t block = trees_[where.tree].arena.at(where.block).child()[where.lane];
        const std::uint64_t had =
            block == kNone ? 0 : trees_[where.tree].arena.at(block).head().count;
        if (had + total <= kMaxChildren) continue;
        const auto& sum = crowded.try_emplace(nodes[i], had).first->second += count_of(i);
        if (sum > kMaxChildren) {
            throw InputFault(at("nodes", std::int64_t(i)) + " would get " + std::to_string(sum) +
                                 " children; a node has at most " + std::to_string(kMaxChildren),
                             std::int64_t(i));
        }
    }
    require(priors.data() == nullptr || priors.size() == total,
            "expand got " + std::to_string(priors.size()) + " priors for " + std::to_string(total) +
                " children; give one per child, in the order of the nodes");
    require(tags.data() == nullptr || tags.size() == total,
            "expand got " + std::to_string(tags.size()) + " tags for " + std::to_string(total) +
                " children; give one per child, in the order of the nodes");
    for (std::size_t i = 0; i < priors.size(); ++i) {
        if (!finite(priors[i]) || priors[i] < 0.0) {
            throw InputFault(at("priors", std::int64_t(i)) + " is " + std::to_string(priors[i]) +
                                 "; a prior is finite and not negative",
                             std::int64_t(i));
        }
    }
    const std::int64_t tag_limit = agents_ > 0 ? agents_ : 65536;
    for (std::size_t i = 0; i < tags.size(); ++i) {
        if (tags[i] < 0 || tags[i] >= tag_limit) {
            throw InputFault(at("tags", std::int64_t(i)) + " is " + std::to_string(tags[i]) +
                                 "; a tag lies in 0.." + std::to_string(tag_limit - 1),
                             std::int64_t(i));
        }
    }
    require(locations_.size() + total <= kMaxNodes, "expand would exceed 2^30 nodes");

    const auto base = std::uint32_t(locations_.size());
    locations_.resize(locations_.size() + total, kNowhere);
    split(
        nodes.size(), [&](std::size_t i) { return tree[i]; },
        [&](std::size_t i) {
            const auto count = std::uint32_t(count_of(i));
            if (count == 0) return;
            // Located anew: an earlier item of this call may have moved the family.
            grow(Location::unpack(locations_[nodes[i]]), count, base + std::uint32_t(first[i]),
                 priors.data() ? priors.data() + first[i] : nullptr,
                 tags.data() ? tags.data() + first[i] : nullptr);
        });
    std::vector<std::int32_t> ids(total);
    for (std::size_t i = 0; i < total; ++i) ids[i] = std::int32_t(base + i);
    return ids;
}

void Forest::reopen_best(const Family& family, std::vector<std::int32_t>& reopened) {
    std::uint32_t best = 0;
    for (std::uint32_t lane = 1; lane < family.head().count; ++lane) {
        const double value = family.value(lane, config_.backup);
        const double top = family.value(best, config_.backup);
        if (value > top || (value == top && wins_tie(family, lane, best, 0, 1))) best = lane;
    }
    family.reason()[best] = 0;
    family.head().open = 1;
    reopened.push_back(std::int32_t(family.id()[best]));
}

std::vector<std::int32_t> Forest::prune(Ids nodes, Ids reasons) {
    const std::lock_guard lock(mutex_);
    require(reasons.size() == nodes.size() || reasons.size() == 1,
            "prune got " + std::to_string(reasons.size()) + " reasons for " +
                std::to_string(nodes.size()) + " nodes; give one each, or one for all");
    for (std::size_t i = 0; i < nodes.size(); ++i) {
        const Location where = locate(nodes[i], std::int64_t(i), "nodes");
        if (trees_[where.tree].root == std::uint32_t(nodes[i])) {
            throw InputFault(at("nodes", std::int64_t(i)) + " is the root " +
                                 std::to_string(nodes[i]) + "; drop the tree instead",
                             std::int64_t(i));
        }
        const std::int64_t reason = reasons[reasons.size() == 1 ? 0 : i];
        if (reason < 1 || reason > 255) {
            throw InputFault(at("reasons", std::int64_t(i)) + " is " + std::to_string(reason) +
                                 "; a reason lies in 1..255",
                             std::int64_t(i));
        }
    }
    const auto family_of = [&](std::size_t i) {
        const Location where = Location::unpack(locations_[nodes[i]]);
        return std::pair(trees_[where.tree].arena.at(where.block), where.lane);
    };
    for (std::size_t i = 0; i < nodes.size(); ++i) {
        const auto [family, lane] = family_of(i);
        if (family.reason()[lane] == 0) --family.head().open;
        family.reason()[lane] = std::uint8_t(reasons[reasons.size() == 1 ? 0 : i]);
    }
    std::vector<std::int32_t> reopened;
    for (std::size_t i = 0; i < nodes.size(); ++i) {
        const auto [family, lane] = family_of(i);
        if (family.head().open == 0) reopen_best(family, reopened);
    }
    return reopened;
}

void Forest::reopen(Ids nodes) {
    const std::lock_guard lock(mutex_);
    for (std::size_t i = 0; i < nodes.size(); ++i) locate(nodes[i], std::int64_t(i), "nodes");
    for (const std::int64_t node : nodes) {
        const Location where = Location::unpack(locations_[node]);
        const Family family = trees_[where.tree].arena.at(where.block);
        if (family.reason()[where.lane] != 0) ++family.head().open;
        family.reason()[where.lane] = 0;
    }
}

void Forest::refine(Ids nodes) {
    const std::lock_guard lock(mutex_);
    for (std::size_t i = 0; i < nodes.size(); ++i) {
        const Location where = locate(nodes[i], std::int64_t(i), "nodes");
        if (trees_[where.tree].arena.at(where.block).child()[where.lane] != kNone) {
            throw InputFault(at("nodes", std::int64_t(i)) + " is " + std::to_string(nodes[i]) +
                                 ", which has children; only a leaf can be refined",
                             std::int64_t(i));
        }
    }
    for (const std::int64_t node : nodes) {
        const Location where = Location::unpack(locations_[node]);
        const Family family = trees_[where.tree].arena.at(where.block);
        family.n()[where.lane] = 0;
        family.sum()[where.lane] = family.best()[where.lane] = 0.0;
        if (family.refined()[where.lane] < 255) ++family.refined()[where.lane];
    }
}

void Forest::drop(Ids trees) {
    const std::lock_guard lock(mutex_);
    for (std::size_t i = 0; i < trees.size(); ++i) locate_root(trees[i], std::int64_t(i));
    for (const std::int64_t root : trees) {
        if (locations_[root] == kNowhere) continue;  // named twice
        const std::uint32_t index = Location::unpack(locations_[root]).tree;
        const Arena& arena = trees_[index].arena;
        for (std::uint32_t block = 0; block < arena.used();) {  // blocks lie end to end
            const Family family = arena.at(block);
            for (std::uint32_t lane = 0; lane < family.head().count; ++lane) {
                locations_[family.id()[lane]] = kNowhere;
            }
            block += lines_for(family.head().capacity);
        }
        trees_[index] = Tree{};
        trees_[index].alive = false;
    }
}

}  // namespace bdc::search
