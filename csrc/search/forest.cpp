// Building and changing trees: plant, expand, prune, reopen, refine, drop.
#include <algorithm>
#include <cmath>
#include <unordered_map>

#include "grow.hpp"

namespace bdc::search {

namespace {

void require(bool holds, const std::string& message) {
    if (!holds) throw InputFault(message);
}

// For `count` more, as push_back would.
template <class T>
void make_room(std::vector<T>& entries, std::size_t count) {
    const std::size_t needed = entries.size() + count;
    if (entries.capacity() < needed) entries.reserve(std::max(needed, 2 * entries.size()));
}

}  // namespace

AnyRule make_rule(const RuleSpec& spec) {
    constexpr double kLeast = 1.0 / kLargestNumber;  // of what divides
    const double* p = spec.parameters;
    for (int i = 0; i < kRuleParameters; ++i) {
        if (!bounded(p[i])) {
            throw InputFault("a rule parameter is " + shown(p[i]) + "; it lies within +-1e100", i);
        }
    }
    switch (spec.kind) {
        case 0:
            require(p[0] >= 0.0, "UCT: c must not be negative");
            return UCT(p);
        case 1:
            require(p[0] >= kLeast, "PUCT: c_base must be positive, at least 1e-100");
            return PUCT(p);
        case 2:
            require(p[0] >= kLeast, "PUCB: c_base must be positive, at least 1e-100");
            return PUCB(p);
        case 3:
            require(p[0] >= 1.0 && p[0] <= 1e6 && p[1] >= 1.0 && p[1] <= 256.0,
                    "GumbelRoot: simulations must lie in 1..10^6 and considered in 1..256");
            require(p[0] * p[1] <= 1e7,
                    "GumbelRoot: simulations * considered must be at most 10^7");
            return GumbelRoot(p);
        case 4:
            require(p[0] >= 0.0 && p[0] <= 64.0, "Thompson: agents must lie in 0..64");
            require(
                (p[1] != 0.0 || p[2] >= kLeast) && p[3] >= kLeast,
                "Thompson: beta needs a, b > 0, normal needs a positive scale, at least 1e-100");
            return Thompson(p);
        default:
            throw InputFault("no selection rule has the number " + std::to_string(spec.kind));
    }
}

Forest::Forest(const Config& config, unsigned threads)
    : config_(config),
      rule_(make_rule(config.rule)),
      agents_(0),
      factors_(config.rule),
      pool_(threads),
      store_(pool_.threads()),
      lists_(pool_.threads()) {
    require(config.backup == Backup::kMax || config.backup == Backup::kMean,
            "backup must be 'max' or 'mean'");
    require(finite(config.gamma) && config.gamma >= 0.0 && config.gamma <= 1.0,
            "gamma must lie in 0..1");
    require(bounded(config.virtual_loss) && config.virtual_loss >= 0.0,
            "virtual_loss must lie in 0..1e100");
    require(bounded(config.widening_c) && config.widening_c >= 0.0 &&
                finite(config.widening_alpha) && config.widening_alpha >= 0.0 &&
                config.widening_alpha <= 1.0,
            "widening needs c in 0..1e100 and alpha in 0..1");
    if (const auto* thompson = std::get_if<Thompson>(&rule_)) {
        agents_ = thompson->agents;
        if (!thompson->posterior.normal) {
            least_return_ = 0.0;
            most_return_ = 1.0;
        }
    }
    descend_ = descent(machine_isa());
}

Forest::~Forest() { lists_.close(); }

// How a call's items are dealt out.
Forest::Parts Forest::parts_for(std::size_t items, std::size_t weight) const {
    constexpr std::size_t kWorthIt = 128;  // pieces of work that are worth a wake-up,
    constexpr std::size_t kShare = 16;     // and that are worth handing over;
    constexpr std::size_t kPiece = 64;     // shares are cut no smaller than that,
    constexpr std::size_t kPieces = 4;     // and whoever is early helps with the last ones
    const std::size_t work = items * weight;
    if (pool_.threads() == 1 || work < kWorthIt) return {items, 1, 1};
    Parts parts{items, std::min<std::size_t>({pool_.threads(), items, work / kShare}), 1};
    while (parts.pieces < kPieces && work / parts.threads >> parts.pieces >= kPiece) ++parts.pieces;
    return parts;
}

void Forest::deal(const Parts& dealt) {
    const std::vector<std::uint32_t>& tree_of = item_tree_;
    const std::size_t items = tree_of.size(), parts = dealt.count();
    shares_.order.clear();
    shares_.starts.assign(1, 0);
    shares_.sorted = true;
    const std::size_t looks = part_sorted_.size();
    for (std::size_t look = 0; look < looks; ++look) {
        const std::size_t at = items * look / looks;
        shares_.sorted &= part_sorted_[look] && (look == 0 || tree_of[at] >= tree_of[at - 1]);
    }
    if (shares_.sorted) {
        for (std::size_t part = 1; part < parts; ++part) {
            std::size_t at = std::max<std::size_t>(dealt.first(part), shares_.starts.back());
            while (at > 0 && at < items && tree_of[at] == tree_of[at - 1]) ++at;
            if (at > shares_.starts.back() && at < items)
                shares_.starts.push_back(std::uint32_t(at));
        }
        shares_.starts.push_back(std::uint32_t(items));
        return;
    }
    // A tree may come up again in another part: trees are dealt out.
    std::vector<std::uint32_t> next(parts + 1, 0);
    for (const std::uint32_t tree : tree_of) ++next[tree % parts + 1];
    for (std::size_t part = 1; part < parts; ++part) next[part] += next[part - 1];
    next[parts] = std::uint32_t(items);
    shares_.starts = next;
    shares_.order.resize(items);
    for (std::size_t i = 0; i < items; ++i) {
        shares_.order[next[tree_of[i] % parts]++] = std::uint32_t(i);
    }
}

void Forest::refuse_node(std::int64_t node, std::int64_t index, const char* what) {
    throw InputFault(item(what, index) + " is " + std::to_string(node) +
                         ", which is no node of this forest; use ids that plant, expand or "
                         "select returned",
                     index);
}

Location Forest::locate_root(std::int64_t tree, std::int64_t index) const {
    const Location where = locate(tree, index, "trees");
    if (roots_[where.tree] != std::uint32_t(tree)) {
        throw InputFault(item("trees", index) + " is " + std::to_string(tree) +
                             ", which is no root; a tree is named by the id of its root",
                         index);
    }
    return where;
}

Location Forest::parent(const Location& of) const {
    const Header& head = store_.head(of.block);
    return {of.tree, head.parent_block, head.parent_lane};
}

void Forest::plant_one(std::uint32_t index, std::uint32_t root) {
    Tree& tree = trees_[index];
    roots_[index] = root;
    tree.root_block = found(tree, 1, kNone, 0, 0);
    add_lanes(index, tree.root_block, 1, root, nullptr, nullptr);
    write_blank(store_.bare(tree.root_block));  // every descent begins here
}

Range Forest::plant(std::int64_t count) {
    const Change change(*this);
    require(count >= 0, "plant got " + std::to_string(count) +
                            " trees; the number must not be "
                            "negative");
    require(std::size_t(count) + trees_.size() < kMaxTrees &&
                std::size_t(count) + locations_.size() <= kMaxNodes,
            "plant would exceed 2^22 trees or 2^30 nodes, among which dropped ones count until "
            "compact; compact this forest or use another one");
    const auto first = std::uint32_t(locations_.size()), old = std::uint32_t(trees_.size());
    make_room(trees_, std::size_t(count));
    make_room(roots_, std::size_t(count));
    locations_.extend(std::size_t(count));
    torn_ = true;
    trees_.resize(old + std::size_t(count), Tree(lists_));
    roots_.resize(trees_.size());
    const Parts parts = parts_for(std::size_t(count), 1);
    pool_.run(unsigned(parts.count()), [&](unsigned part) {
        for (std::size_t i = parts.first(part); i < parts.first(part + 1); ++i) {
            plant_one(old + std::uint32_t(i), first + std::uint32_t(i));
        }
    });
    torn_ = false;
    return {std::int32_t(first), std::int32_t(count)};
}

// Makes room for `more` lanes; a family that outgrows its block moves to a larger one, which
// becomes its `block`.
void Forest::widen(std::uint32_t tree_index, std::uint32_t& block, std::uint32_t more) {
    const Family from = store_.at(block);
    const Header& head = from.head();
    const std::uint32_t needed = head.count + more;
    note_width(needed);
    if (needed <= head.capacity) return;
    const std::uint32_t capacity =
        std::min(kMaxChildren, std::max<std::uint32_t>({needed, head.capacity * 2u, 4u}));
    Arena& arena = trees_[tree_index].arena;
    const std::uint32_t moved =
        found(trees_[tree_index], capacity, head.parent_block, head.parent_lane, head.depth);
    const Family to = store_.bare(moved);
    to.head().tally = head.tally;
    to.head().count = head.count;
    to.head().open = head.open;
    std::copy_n(from.arms(), agents_, to.arms());
    for (std::uint32_t lane = 0; lane < head.count; ++lane) {
        to.copy_lane(lane, from, lane);
        locations_[to.id()[lane]] = Location{tree_index, moved, lane}.pack();
        if (to.child()[lane] != kNone) store_.head(to.child()[lane]).parent_block = moved;
    }
    arena.release(store_, block);
    block = moved;
}

void Forest::note_width(std::uint32_t children) {
    std::uint32_t widest = widest_.load(std::memory_order_relaxed);
    while (children > widest &&
           !widest_.compare_exchange_weak(widest, children, std::memory_order_relaxed)) {
    }
}

// Asks for the lines that `grow` will touch.
void Forest::prepare_growth(const Location& where) const {
    for (int line = 0; line < 3; ++line) __builtin_prefetch(store_.base(where.block) + 64 * line);
    __builtin_prefetch(store_.base(trees_[where.tree].arena.next), 1);
}

// Checks all of a call's children that can be checked without their parents.
Forest::Growth Forest::plan(const char* call, std::size_t rows, Ids counts,
                            std::span<const double> priors, Ids tags) {
    if (counts.size() != rows && counts.size() != 1) {
        throw InputFault(std::string(call) + " got " + std::to_string(counts.size()) +
                         " counts for " + std::to_string(rows) +
                         " nodes; give one each, or one for all");
    }
    item_first_.resize(counts.size());
    std::size_t total = 0, most = 0;
    for (std::size_t i = 0; i < counts.size(); ++i) {
        const std::int64_t count = counts[i];
        if (count < 0 || count > kMaxChildren) {
            throw InputFault(item("counts", std::int64_t(i)) + " is " + std::to_string(count) +
                                 "; a count lies in 0.." + std::to_string(kMaxChildren),
                             std::int64_t(i));
        }
        item_first_[i] = std::uint32_t(total);
        total += std::size_t(count);
        most = std::max(most, std::size_t(count));
    }
    if (counts.size() == 1) total = most * rows;
    if (locations_.size() + total > kMaxNodes) {
        throw InputFault(std::string(call) + " would exceed 2^30 nodes");
    }
    const auto check_length = [&](std::size_t given, const char* what) {
        if (given == total) return;
        throw InputFault(std::string(call) + " got " + std::to_string(given) + " " + what +
                         " for " + std::to_string(total) +
                         " children; give one per child, in the order of the nodes");
    };
    if (priors.data() != nullptr) check_length(priors.size(), "priors");
    if (tags.data() != nullptr) check_length(tags.size(), "tags");
    for (std::size_t i = 0; i < priors.size(); ++i) {
        if (!bounded(priors[i]) || priors[i] < 0.0) {
            throw InputFault(item("priors", std::int64_t(i)) + " is " + shown(priors[i]) +
                                 "; a prior lies in 0..1e100",
                             std::int64_t(i));
        }
    }
    const std::int64_t tag_limit = agents_ > 0 ? agents_ : 65536;
    for (std::size_t i = 0; i < tags.size(); ++i) {
        if (tags[i] < 0 || tags[i] >= tag_limit) {
            throw InputFault(item("tags", std::int64_t(i)) + " is " + std::to_string(tags[i]) +
                                 "; a tag lies in 0.." + std::to_string(tag_limit - 1),
                             std::int64_t(i));
        }
    }
    return {counts,
            item_first_.data(),
            priors.data(),
            tags.data(),
            total,
            most,
            std::uint32_t(locations_.size())};
}

// Without a look at each node: could one of a call's get too many children?
bool Forest::may_exceed_width(const Growth& growth) const {
    if (widest_ + growth.total <= kMaxChildren) return false;
    if (!shares_.sorted) return true;
    std::size_t coming = 0;  // to one tree
    for (std::size_t i = 0; i < item_tree_.size(); ++i) {
        if (i > 0 && item_tree_[i] != item_tree_[i - 1]) coming = 0;
        coming += growth.count(i);
        if (widest_ + coming > kMaxChildren) return true;
    }
    return false;
}

// Refuses nodes that would get too many children.
void Forest::check_width(Ids nodes, const Growth& growth) const {
    std::unordered_map<std::int64_t, std::uint64_t> children;
    for (std::size_t i = 0; i < nodes.size(); ++i) {
        const Location where = Location::unpack(locations_[std::size_t(nodes[i])]);
        const std::uint32_t block = store_.at(where.block).child()[where.lane];
        const std::uint64_t had = block == kNone ? 0 : store_.head(block).count;
        const std::uint64_t sum = children.try_emplace(nodes[i], had).first->second +=
            growth.count(i);
        if (sum > kMaxChildren) {
            throw InputFault(item("nodes", std::int64_t(i)) + " would get " + std::to_string(sum) +
                                 " children; a node has at most " + std::to_string(kMaxChildren),
                             std::int64_t(i));
        }
    }
}

Range Forest::expand(Ids nodes, Ids counts, std::span<const double> priors, Ids tags) {
    const Change change(*this);
    const Growth growth = plan("expand", nodes.size(), counts, priors, tags);
    share(nodes.size(), 1,
          [&](std::size_t i) { return locate(nodes[i], std::int64_t(i), "nodes").tree; });
    return add_children(nodes, growth);
}

// The nodes are shared out; throws with nothing changed where one would get too many children.
Range Forest::add_children(Ids nodes, const Growth& growth) {
    if (may_exceed_width(growth)) check_width(nodes, growth);
    note_width(std::uint32_t(growth.most));
    locations_.extend(growth.total);
    torn_ = true;
    // Located anew by each item: an earlier one of this call may have moved the family.
    const auto where = [&](std::size_t i) {
        return Location::unpack(locations_[std::size_t(nodes[i])]);
    };
    const auto prepare = [&](std::size_t i) { prepare_growth(where(i)); };
    const auto add = [&](std::size_t i) { grow(where(i), i, growth); };
    pool_.run(unsigned(chunks()), [&](unsigned chunk) { each(chunk, prepare, add); });
    torn_ = false;
    return {std::int32_t(growth.first_id), std::int32_t(growth.total)};
}

void Forest::reopen_best(const Family& family, std::vector<std::int32_t>& reopened) {
    Leader best;
    for (std::uint32_t lane = 0; lane < family.head().count; ++lane) {
        best.meet(family, lane, family.value(lane, config_.backup), false);
    }
    family.reason()[best.lane] = 0;
    family.head().open = 1;
    reopened.push_back(std::int32_t(family.id()[best.lane]));
}

std::vector<std::int32_t> Forest::prune(Ids nodes, Ids reasons) {
    const Change change(*this);
    require(reasons.size() == nodes.size() || reasons.size() == 1,
            "prune got " + std::to_string(reasons.size()) + " reasons for " +
                std::to_string(nodes.size()) + " nodes; give one each, or one for all");
    for (std::size_t i = 0; i < nodes.size(); ++i) {
        const Location where = locate(nodes[i], std::int64_t(i), "nodes");
        if (roots_[where.tree] == std::uint32_t(nodes[i])) {
            throw InputFault(item("nodes", std::int64_t(i)) + " is the root " +
                                 std::to_string(nodes[i]) + "; drop the tree instead",
                             std::int64_t(i));
        }
        const std::int64_t reason = reasons[reasons.size() == 1 ? 0 : i];
        if (reason < 1 || reason > 255) {
            throw InputFault(item("reasons", std::int64_t(i)) + " is " + std::to_string(reason) +
                                 "; a reason lies in 1..255",
                             std::int64_t(i));
        }
    }
    const auto family_of = [&](std::size_t i) {
        const Location where = Location::unpack(locations_[nodes[i]]);
        return std::pair(store_.at(where.block), where.lane);
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
    const Change change(*this);
    for (std::size_t i = 0; i < nodes.size(); ++i) locate(nodes[i], std::int64_t(i), "nodes");
    for (const std::int64_t node : nodes) {
        const Location where = Location::unpack(locations_[node]);
        const Family family = store_.at(where.block);
        if (family.reason()[where.lane] != 0) ++family.head().open;
        family.reason()[where.lane] = 0;
    }
}

void Forest::refine(Ids nodes) {
    const Change change(*this);
    for (std::size_t i = 0; i < nodes.size(); ++i) {
        const Location where = locate(nodes[i], std::int64_t(i), "nodes");
        if (store_.at(where.block).child()[where.lane] != kNone) {
            throw InputFault(item("nodes", std::int64_t(i)) + " is " + std::to_string(nodes[i]) +
                                 ", which has children; only a leaf can be refined",
                             std::int64_t(i));
        }
    }
    for (const std::int64_t node : nodes) {
        const Location where = Location::unpack(locations_[node]);
        const Family family = store_.at(where.block);
        family.tally()[where.lane].restart();
        family.sum()[where.lane] = family.best()[where.lane] = 0.0;
        if (family.refined()[where.lane] < 255) ++family.refined()[where.lane];
    }
}

void Forest::drop(Ids trees) {
    const Change change(*this);
    for (std::size_t i = 0; i < trees.size(); ++i) locate_root(trees[i], std::int64_t(i));
    torn_ = true;
    for (const std::int64_t root : trees) {
        const std::uint32_t tree = Location::unpack(locations_[root]).tree;
        trees_[tree].arena.give_back(store_);
        trees_[tree] = Tree(lists_);
        roots_[tree] = kNone;
    }
    torn_ = false;
}

}  // namespace bdc::search
