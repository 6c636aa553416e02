// Compaction: trees are written anew, breadth first and without slack; trees and ids are renumbered
// in their old order, so that ties keep falling the same way. A tree that moves up has the ids of
// all its nodes changed too, so that its draws depend on the drop either way.
#include <algorithm>

#include "forest.hpp"

namespace bdc::search {

namespace {

// A family on its way from the old store to the new one.
struct Moved {
    std::uint32_t from, above, lane;  // the old block; the new block and lane of the node above
    std::uint32_t kept;               // lanes
};

bool stays(const Family& family, std::uint32_t lane, bool drop_pruned) {
    return !drop_pruned || family.reason()[lane] == 0;
}

}  // namespace

// Copies a tree into another store, in one chunk. Ids stay for now; their new places go into
// `places`.
Tree Forest::copy_tree(const Tree& tree, std::uint32_t index, bool drop_pruned, Store& into,
                       std::vector<std::pair<std::uint32_t, Location>>& places) {
    Tree copy(lists_);
    std::vector<Moved> families{{tree.root_block, kNone, 0, 0}};
    std::uint32_t grains = 0;
    for (std::size_t next = 0; next < families.size(); ++next) {  // breadth first
        const Family family = store_.at(families[next].from);
        for (std::uint32_t lane = 0; lane < family.head().count; ++lane) {
            if (!stays(family, lane, drop_pruned)) continue;
            if (family.child()[lane] != kNone) {
                families.push_back(
                    {family.child()[lane], std::uint32_t(next), families[next].kept, 0});
            }
            ++families[next].kept;
        }
        grains += grains_for(families[next].kept, agents_);
    }
    copy.arena.add(into.append(grains));
    std::vector<std::uint32_t> made(families.size());
    for (std::size_t next = 0; next < families.size(); ++next) {
        const Moved& moved = families[next];
        const Family old = store_.at(moved.from);
        const std::uint32_t block = made[next] = copy.arena.allocate(into, moved.kept, agents_);
        Header& head = into.head(block);
        head = old.head();
        head.capacity = head.count = std::uint16_t(moved.kept);
        head.parent_lane = std::uint16_t(moved.lane);
        if (moved.above != kNone) {
            head.parent_block = made[moved.above];
            into.at(head.parent_block).child()[moved.lane] = block;
        }
        const Family fresh = into.bare(block);
        std::copy_n(old.arms(), agents_, fresh.arms());
        std::uint32_t to = 0;
        for (std::uint32_t lane = 0; lane < old.head().count; ++lane) {
            if (!stays(old, lane, drop_pruned)) continue;
            fresh.copy_lane(to, old, lane);
            places.emplace_back(old.id()[lane], Location{index, block, to++});
        }
    }
    copy.root_block = made[0];
    copy.nodes = std::uint32_t(places.size());
    return copy;
}

std::vector<std::int32_t> Forest::compact(bool drop_pruned) {
    const Change change(*this);
    if (drop_pruned) {
        for (const Tree& tree : trees_) {
            for (const Flight& flight : tree.flights) {
                if (flight.state == Flight::kDone) continue;
                const Location leaf = Location::unpack(locations_[flight.node]);
                for (Location at = leaf; at.block != kNone; at = parent(at)) {
                    if (store_.at(at.block).reason()[at.lane] == 0) continue;
                    throw InputFault("node " + std::to_string(flight.node) +
                                     " lies under a pruned node and is still in flight; back it up "
                                     "or abandon it before compacting");
                }
            }
        }
    }
    Store store(pool_.threads());
    std::vector<std::uint32_t> kept;  // by new index
    for (std::uint32_t index = 0; index < trees_.size(); ++index) {
        if (alive(index)) kept.push_back(index);
    }
    std::vector<Tree> trees(kept.size(), Tree(lists_));
    std::vector<std::uint32_t> roots(kept.size());
    std::vector<std::vector<std::pair<std::uint32_t, Location>>> places(kept.size());
    std::vector<std::int32_t> renamed(locations_.size(), -1);
    for (std::uint32_t index = 0; index < kept.size(); ++index) {
        trees[index] = copy_tree(trees_[kept[index]], index, drop_pruned, store, places[index]);
        for (const auto& [id, place] : places[index]) renamed[id] = 0;
    }
    std::int32_t fresh = 0;
    for (auto& name : renamed) {
        if (name == 0) name = fresh++;
    }
    Locations locations;
    locations.extend(std::size_t(fresh));
    torn_ = true;
    for (std::uint32_t index = 0; index < trees.size(); ++index) {
        Tree& tree = trees[index];
        for (const auto& [id, place] : places[index]) {
            const auto name = std::uint32_t(renamed[id]);
            store.at(place.block).id()[place.lane] = name;
            locations[name] = place.pack();
        }
        roots[index] = std::uint32_t(renamed[roots_[kept[index]]]);
        for (const Flight& flight : trees_[kept[index]].flights) {
            if (flight.state == Flight::kDone) continue;
            tree.flights.push_back(
                {flight.ticket, std::uint32_t(renamed[flight.node]), Flight::kLive});
        }
    }
    trees_ = std::move(trees);
    roots_ = std::move(roots);
    store_.swap(store);
    locations_.swap(locations);
    torn_ = false;
    return renamed;
}

}  // namespace bdc::search
