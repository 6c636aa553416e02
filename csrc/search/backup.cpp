// Resolving selections: returns on their way up, and visits in flight taken back.
#include <algorithm>
#include <bit>

#include "forest.hpp"

namespace bdc::search {

namespace {

std::string item(const char* what, std::size_t index) {
    return std::string(what) + "[" + std::to_string(index) + "]";
}

}  // namespace

// The selections that a call is about to resolve. Until `resolve`, they are put back on
// destruction, so that a refused call leaves no trace.
struct Forest::Claims {
    explicit Claims(Forest& of) : forest(of) { forest.claimed_.clear(); }
    ~Claims() {
        for (const auto& [flight, at] : forest.claimed_) flight->state = Flight::kLive;
    }

    bool take_ticket(const Location& leaf, std::uint32_t node, std::uint64_t ticket) {
        auto& all = forest.trees_[leaf.tree].flights;
        const auto found = std::lower_bound(
            all.begin(), all.end(), ticket,
            [](const Flight& flight, std::uint64_t wanted) { return flight.ticket < wanted; });
        if (found == all.end() || found->ticket != ticket || found->node != node ||
            found->state != Flight::kLive) {
            return false;
        }
        take(*found, leaf);
        return true;
    }

    // The oldest live flight at the node, or every one; how many.
    std::uint32_t take_at(const Location& at, std::uint32_t node, bool every) {
        std::uint32_t left = forest.flights_at(at), taken = 0;
        if (left == 0) return 0;
        for (Flight& flight : forest.trees_[at.tree].flights) {
            if (flight.node != node || flight.state == Flight::kDone) continue;
            if (flight.state == Flight::kLive) {
                take(flight, at);
                ++taken;
                if (!every) break;
            }
            if (--left == 0) break;
        }
        return taken;
    }

    bool take_ticket_above(const Location& leaf, std::uint64_t ticket) {
        const Location above = forest.parent(leaf);
        return above.block != kNone && take_ticket(above, forest.id_at(above), ticket);
    }

    std::uint32_t take_above(const Location& leaf) {
        const Location above = forest.parent(leaf);
        return above.block == kNone ? 0 : take_at(above, forest.id_at(above), true);
    }

    void take(Flight& flight, const Location& at) {
        flight.state = Flight::kClaimed;
        forest.claimed_.emplace_back(&flight, at);
    }

    void resolve() {
        for (const auto& [flight, at] : forest.claimed_) {
            flight->state = Flight::kDone;
            ++forest.trees_[at.tree].done;
        }
        for (const auto& [flight, at] : forest.claimed_) forest.sweep(forest.trees_[at.tree]);
        forest.claimed_.clear();
    }

    Forest& forest;
};

std::uint32_t Forest::flights_at(const Location& at) const {
    const Arena& arena = trees_[at.tree].arena;
    const Family family = arena.at(at.block);
    const std::uint32_t child = family.child()[at.lane];
    const std::uint32_t below = child == kNone ? 0 : arena.at(child).head().pending;
    return family.pending()[at.lane] - below;
}

void Forest::land(const Location& leaf) {
    const Arena& arena = trees_[leaf.tree].arena;
    for (std::uint32_t block = leaf.block, lane = leaf.lane; block != kNone;) {
        const Family family = arena.at(block);
        --family.pending()[lane];
        --family.head().pending;
        block = family.head().parent_block;
        lane = family.head().parent_lane;
    }
}

void Forest::add_return(const Job& job, double value) {
    const Arena& arena = trees_[job.leaf.tree].arena;
    std::uint32_t block = job.leaf.block, lane = job.leaf.lane;
    if (agents_ > 0) {
        const Family family = arena.at(block);
        if (family.n()[lane] == 0) {
            Arm& arm = family.arms()[family.tag()[lane]];
            arm.sum += value;
            ++arm.n;
        }
    }
    std::uint32_t landing = job.own;
    for (std::uint32_t above = job.above; block != kNone; above = 0) {
        const Family family = arena.at(block);
        Header& head = family.head();
        double& best = family.best()[lane];
        best = family.n()[lane] == 0 ? value : std::max(best, value);
        family.sum()[lane] += value;
        ++family.n()[lane];
        family.pending()[lane] -= landing;
        ++head.visits;
        head.pending -= landing;
        landing += above;
        value *= config_.gamma;
        block = head.parent_block;
        lane = head.parent_lane;
    }
}

void Forest::sweep(Tree& tree) {
    if (tree.done == tree.flights.size()) {
        tree.flights.clear();
        tree.done = 0;
    } else if (tree.done > 32 && tree.done * 2 > tree.flights.size()) {
        std::erase_if(tree.flights, [](const Flight& f) { return f.state == Flight::kDone; });
        tree.done = 0;
    }
}

void Forest::backup(Ids nodes, std::span<const double> returns, Ids tickets, bool by_ticket) {
    const std::lock_guard lock(mutex_);
    if (returns.size() != nodes.size()) {
        throw InputFault("backup got " + std::to_string(returns.size()) + " returns for " +
                         std::to_string(nodes.size()) + " leaves; give one each");
    }
    if (by_ticket && tickets.size() != nodes.size()) {
        throw InputFault("backup got " + std::to_string(tickets.size()) + " tickets for " +
                         std::to_string(nodes.size()) + " leaves; give one each");
    }
    const auto* thompson = std::get_if<Thompson>(&rule_);
    const bool unit = thompson != nullptr && !thompson->normal;
    item_leaf_.resize(nodes.size());
    item_tree_.resize(nodes.size());
    for (std::size_t i = 0; i < nodes.size(); ++i) {
        const Location leaf = item_leaf_[i] = locate(nodes[i], std::int64_t(i), "leaves");
        item_tree_[i] = leaf.tree;
        __builtin_prefetch(trees_[leaf.tree].arena.base(leaf.block));
    }
    Claims claims(*this);
    jobs_.resize(nodes.size());
    for (std::size_t i = 0; i < nodes.size(); ++i) {
        const double value = returns[i];
        if ((std::bit_cast<std::uint64_t>(value) >> 52 & 0x7FF) == 0x7FF) {
            throw InputFault(item("returns", i) + " is " + std::to_string(value) +
                                 "; a return must be finite, use abandon for a failed evaluation",
                             std::int64_t(i));
        }
        if (unit && (value < 0.0 || value > 1.0)) {
            throw InputFault(item("returns", i) + " is " + std::to_string(value) +
                                 "; Thompson with a beta posterior needs returns in [0, 1]",
                             std::int64_t(i));
        }
        const Location& leaf = item_leaf_[i];
        const Family family = trees_[leaf.tree].arena.at(leaf.block);
        if (family.reason()[leaf.lane] != 0) {
            throw InputFault(item("leaves", i) + " is " + std::to_string(nodes[i]) +
                                 ", which was pruned; abandon it, or reopen it first",
                             std::int64_t(i));
        }
        const auto node = std::uint32_t(nodes[i]);
        Job& job = jobs_[i] = {leaf, 0, 0};
        if (by_ticket) {
            const auto ticket = std::uint64_t(tickets[i]);
            job.own = claims.take_ticket(leaf, node, ticket);
            job.above = job.own == 0 && claims.take_ticket_above(leaf, ticket);
            if (job.own + job.above == 0) {
                throw InputFault(item("tickets", i) + " is " + std::to_string(tickets[i]) +
                                     ", which was resolved already or is not this leaf's; a ticket "
                                     "is backed up or abandoned exactly once",
                                 std::int64_t(i));
            }
        } else {
            job.own = claims.take_at(leaf, node, false);
            if (job.own == 0) job.above = claims.take_above(leaf);
        }
    }
    claims.resolve();
    spread({item_tree_.data(), nodes.size()},
           [&](std::size_t i) { add_return(jobs_[i], returns[i]); });
}

void Forest::abandon(Ids nodes, Ids tickets, bool by_ticket) {
    const std::lock_guard lock(mutex_);
    if (by_ticket && tickets.size() != nodes.size()) {
        throw InputFault("abandon got " + std::to_string(tickets.size()) + " tickets for " +
                         std::to_string(nodes.size()) + " leaves; give one each");
    }
    Claims claims(*this);
    for (std::size_t i = 0; i < nodes.size(); ++i) {
        const Location leaf = locate(nodes[i], std::int64_t(i), "leaves");
        const auto node = std::uint32_t(nodes[i]);
        const bool taken = by_ticket ? claims.take_ticket(leaf, node, std::uint64_t(tickets[i]))
                                     : claims.take_at(leaf, node, false) > 0;
        if (!taken) {
            throw InputFault(item(by_ticket ? "tickets" : "leaves", i) + " is " +
                                 std::to_string(by_ticket ? tickets[i] : nodes[i]) +
                                 ", which has no selection in flight; a ticket is backed up or "
                                 "abandoned exactly once",
                             std::int64_t(i));
        }
    }
    for (const auto& [flight, leaf] : claimed_) land(leaf);
    claims.resolve();
}

}  // namespace bdc::search
