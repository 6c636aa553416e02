// Resolving selections: returns on their way up, and visits in flight taken back.
#include <algorithm>

#include "forest.hpp"

namespace bdc::search {

// The selections that a chunk of a call is about to resolve, or to put back when the call is
// refused, so that it leaves no trace.
class Forest::Claims {
  public:
    Claims(Forest& of, std::vector<Claimed>& into) : forest(of), claimed(into) {}

    bool take_ticket(const Location& leaf, std::uint32_t node, std::uint64_t ticket) {
        auto& all = forest.trees_[leaf.tree].flights;
        const auto found = std::lower_bound(
            all.begin(), all.end(), ticket,
            [](const Flight& flight, std::uint64_t wanted) { return flight.ticket < wanted; });
        if (found == all.end() || found->ticket != ticket || found->node != node ||
            found->state != Flight::kLive) {
            return false;
        }
        take(*found, leaf.tree);
        return true;
    }

    // The oldest live flight at the node, or every one; how many.
    std::uint32_t take_at(const Location& at, std::uint32_t node, bool every) {
        std::uint32_t left = forest.flights_at(at), taken = 0;
        if (left == 0) return 0;
        for (Flight& flight : forest.trees_[at.tree].flights) {
            if (flight.node != node || flight.state == Flight::kDone) continue;
            if (flight.state == Flight::kLive) {
                take(flight, at.tree);
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

    void take(Flight& flight, std::uint32_t tree) {
        flight.state = Flight::kClaimed;
        claimed.emplace_back(&flight, tree);
    }

    void put_back() {
        for (const auto& [flight, tree] : claimed) flight->state = Flight::kLive;
    }

    void resolve() {
        bool crowded = false;
        for (const auto& [flight, index] : claimed) {
            flight->state = Flight::kDone;
            Tree& tree = forest.trees_[index];
            if (++tree.done == tree.flights.size()) {
                tree.flights.clear();
                tree.done = 0;
            }
            crowded |= tree.done > 32;
        }
        if (crowded) {
            for (const auto& [flight, index] : claimed) sweep(forest.trees_[index]);
        }
    }

    static void sweep(Tree& tree) {
        if (tree.done <= 32 || tree.done * 2 <= tree.flights.size()) return;
        std::erase_if(tree.flights, [](const Flight& f) { return f.state == Flight::kDone; });
        tree.done = 0;
    }

  private:
    Forest& forest;
    std::vector<Claimed>& claimed;
};

std::uint32_t Forest::flights_at(const Location& at) const {
    const Family family = store_.at(at.block);
    const std::uint32_t child = family.child()[at.lane];
    const std::uint32_t below = child == kNone ? 0 : store_.head(child).tally.pending();
    return family.pending(at.lane) - below;
}

void Forest::land(const Location& leaf) {
    for (std::uint32_t block = leaf.block, lane = leaf.lane; block != kNone;) {
        const Family family = store_.bare(block);
        family.tally()[lane].land(1);
        family.head().tally.land(1);
        block = family.head().parent_block;
        lane = family.head().parent_lane;
    }
}

// Checks a call's returns and claims the selections that they resolve; throws with nothing changed.
void Forest::claim(Ids nodes, std::span<const double> returns, Ids tickets, bool by_ticket) {
    item_leaf_.resize(nodes.size());
    jobs_.resize(nodes.size());
    share(nodes.size(), 1, [&](std::size_t i) {
        item_leaf_[i] = locate(nodes[i], std::int64_t(i), "leaves");
        return item_leaf_[i].tree;
    });
    claimed_.resize(std::max(claimed_.size(), chunks()));
    for (auto& claimed : claimed_) claimed.clear();
    const auto prepare = [&](std::size_t i) {
        __builtin_prefetch(store_.base(item_leaf_[i].block));
        __builtin_prefetch(&trees_[item_tree_[i]]);
    };
    try {
        check_all(chunks(), [&](unsigned chunk) {
            Claims claims(*this, claimed_[chunk]);
            each(chunk, prepare, [&](std::size_t i) {
                jobs_[i] = job(claims, i, nodes[i], returns[i], by_ticket ? &tickets[i] : nullptr);
            });
        });
    } catch (...) {
        put_back();
        throw;
    }
}

void Forest::put_back() {
    for (auto& claimed : claimed_) Claims(*this, claimed).put_back();
}

// Resolves what was claimed.
void Forest::add_returns() {
    torn_ = true;
    pool_.run(unsigned(chunks()), [&](unsigned chunk) {
        Claims(*this, claimed_[chunk]).resolve();
        each(
            chunk, [](std::size_t) {},
            [&](std::size_t i) {
                Job job = jobs_[i];
                open_arm(job);
                while (rise(job)) {
                }
            });
    });
    torn_ = false;
}

void Forest::backup(Ids nodes, std::span<const double> returns, Ids tickets, bool by_ticket) {
    const Change change(*this);
    check_one_each("backup", "returns", returns.size(), nodes.size());
    if (by_ticket) check_one_each("backup", "tickets", tickets.size(), nodes.size());
    claim(nodes, returns, tickets, by_ticket);
    add_returns();
}

void Forest::refuse_return(std::size_t i, double value) {
    const char* wanted =
        bounded(value) ? "; Thompson with a beta posterior needs returns in [0, 1]"
                       : "; a return lies within +-1e100, use abandon for a failed evaluation";
    throw InputFault(item("returns", i) + " is " + shown(value) + wanted, std::int64_t(i));
}

// Checks one item of a backup and claims its selections.
Forest::Job Forest::job(Claims& claims, std::size_t i, std::int64_t id, double value,
                        const std::int64_t* ticket) {
    check_return(i, value);
    const Location& leaf = item_leaf_[i];
    if (store_.at(leaf.block).reason()[leaf.lane] != 0) {
        throw InputFault(item("leaves", i) + " is " + std::to_string(id) +
                             ", which was pruned; abandon it, or reopen it first",
                         std::int64_t(i));
    }
    const auto node = std::uint32_t(id);
    Job job{leaf.block, leaf.lane, 0, 0, value};
    if (ticket == nullptr) {
        job.own = claims.take_at(leaf, node, false);
        if (job.own == 0) job.above = claims.take_above(leaf);
        return job;
    }
    job.own = claims.take_ticket(leaf, node, std::uint64_t(*ticket));
    job.above = job.own == 0 && claims.take_ticket_above(leaf, std::uint64_t(*ticket));
    if (job.own + job.above == 0) {
        throw InputFault(item("tickets", i) + " is " + std::to_string(*ticket) +
                             ", which was resolved already or is not this leaf's; a ticket "
                             "is backed up or abandoned exactly once",
                         std::int64_t(i));
    }
    return job;
}

void Forest::abandon(Ids nodes, Ids tickets, bool by_ticket) {
    const Change change(*this);
    if (by_ticket) check_one_each("abandon", "tickets", tickets.size(), nodes.size());
    item_leaf_.resize(nodes.size());
    for (std::size_t i = 0; i < nodes.size(); ++i) {
        item_leaf_[i] = locate(nodes[i], std::int64_t(i), "leaves");
    }
    claimed_.resize(std::max<std::size_t>(claimed_.size(), 1));
    claimed_[0].clear();
    Claims claims(*this, claimed_[0]);
    for (std::size_t i = 0; i < nodes.size(); ++i) {
        const Location& leaf = item_leaf_[i];
        const auto node = std::uint32_t(nodes[i]);
        const bool taken = by_ticket ? claims.take_ticket(leaf, node, std::uint64_t(tickets[i]))
                                     : claims.take_at(leaf, node, false) > 0;
        if (!taken) {
            claims.put_back();
            throw InputFault(item(by_ticket ? "tickets" : "leaves", i) + " is " +
                                 std::to_string(by_ticket ? tickets[i] : nodes[i]) +
                                 ", which has no selection in flight; a ticket is backed up or "
                                 "abandoned exactly once",
                             std::int64_t(i));
        }
    }
    for (const Location& leaf : item_leaf_) land(leaf);
    claims.resolve();
}

}  // namespace bdc::search
