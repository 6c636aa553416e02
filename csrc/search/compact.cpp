// Compaction: trees are written anew, breadth first and without slack; ids are renumbered in their
// old order, so that ties keep falling the same way.
#include <algorithm>
#include <array>

#include "forest.hpp"

namespace bdc::search {

namespace {

struct Copied {
    Tree tree;
    std::vector<std::pair<std::uint32_t, Location>> nodes;  // old id, new place
};

// Copies the lanes of `from` that stay into a new family of `into`; pairs of (old, new) families
// below are appended to `open`.
void copy_family(const Arena& from, std::uint32_t block, Copied& into, std::uint32_t parent_block,
                 std::uint32_t parent_lane, std::uint32_t index, bool drop_pruned,
                 std::vector<std::array<std::uint32_t, 3>>& open, std::uint32_t agents,
                 Recycler& recycler) {
    const Header head = from.at(block).head();
    const Family old = from.at(block);
    std::vector<std::uint32_t> lanes;
    for (std::uint32_t lane = 0; lane < head.count; ++lane) {
        if (!drop_pruned || old.reason()[lane] == 0) lanes.push_back(lane);
    }
    const auto count = std::uint32_t(lanes.size());
    Arena& arena = into.tree.arena;
    const std::uint32_t made =
        arena.allocate(count, agents, parent_block, parent_lane, head.depth, recycler);
    if (parent_block != kNone) arena.at(parent_block).child()[parent_lane] = made;
    const Family fresh = arena.at(made);
    Header& now = fresh.head();
    now.count = std::uint16_t(count);
    now.visits = head.visits;
    now.pending = head.pending;
    now.open = head.open;
    std::copy_n(old.arms(), agents, fresh.arms());
    for (std::uint32_t lane = 0; lane < count; ++lane) {
        fresh.copy_lane(lane, old, lanes[lane]);
        into.nodes.emplace_back(old.id()[lanes[lane]], Location{index, made, lane});
        if (old.child()[lanes[lane]] != kNone) {
            open.push_back({old.child()[lanes[lane]], made, lane});
        }
    }
    into.tree.nodes += count;
}

}  // namespace

std::vector<std::int32_t> Forest::compact(bool drop_pruned) {
    const std::lock_guard lock(mutex_);
    if (drop_pruned) {
        for (const Tree& tree : trees_) {
            for (const Flight& flight : tree.flights) {
                if (flight.state == Flight::kDone) continue;
                const Location leaf = Location::unpack(locations_[flight.node]);
                for (Location at = leaf; at.block != kNone; at = parent(at)) {
                    if (trees_[at.tree].arena.at(at.block).reason()[at.lane] == 0) continue;
                    throw InputFault("node " + std::to_string(flight.node) +
                                     " lies under a pruned node and is still in flight; back it up "
                                     "or abandon it before compacting");
                }
            }
        }
    }
    std::vector<Copied> copies(trees_.size());
    std::vector<std::int32_t> renamed(locations_.size(), -1);
    for (std::uint32_t index = 0; index < trees_.size(); ++index) {
        const Tree& tree = trees_[index];
        Copied& copy = copies[index];
        copy.tree.alive = tree.alive;
        if (!tree.alive) continue;
        std::vector<std::array<std::uint32_t, 3>> open{{0, kNone, 0}};
        for (std::size_t next = 0; next < open.size(); ++next) {
            const auto [block, above, lane] = open[next];
            copy_family(tree.arena, block, copy, above, lane, index, drop_pruned, open, agents_,
                        recycler_);
        }
        for (const auto& [id, place] : copy.nodes) renamed[id] = 0;
    }
    std::int32_t fresh = 0;
    for (auto& name : renamed) {
        if (name == 0) name = fresh++;
    }
    Locations locations;
    locations.extend(std::size_t(fresh), recycler_);
    for (std::uint32_t index = 0; index < trees_.size(); ++index) {
        Copied& copy = copies[index];
        if (!copy.tree.alive) continue;
        for (const auto& [id, place] : copy.nodes) {
            const auto name = std::uint32_t(renamed[id]);
            copy.tree.arena.at(place.block).id()[place.lane] = name;
            locations[name] = place.pack();
        }
        copy.tree.root = std::uint32_t(renamed[trees_[index].root]);
        for (const Flight& flight : trees_[index].flights) {
            if (flight.state == Flight::kDone) continue;
            copy.tree.flights.push_back(
                {flight.ticket, std::uint32_t(renamed[flight.node]), Flight::kLive});
        }
    }
    for (std::uint32_t index = 0; index < trees_.size(); ++index) {
        trees_[index] = std::move(copies[index].tree);
    }
    locations_ = std::move(locations);
    return renamed;
}

}  // namespace bdc::search
