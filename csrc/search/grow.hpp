// Children for a node. Inlined into the calls that make them by the million.
#pragma once

#include <algorithm>
#include <cstdint>

#include "forest.hpp"

namespace bdc::search {

// A block for a new family, without lanes in use.
inline std::uint32_t Forest::found(Tree& tree, std::uint32_t capacity, std::uint32_t parent_block,
                                   std::uint32_t parent_lane, std::uint32_t depth) {
    const std::uint32_t block = tree.arena.allocate(store_, capacity, agents_);
    Header& head = store_.head(block);
    head.parent_block = parent_block;
    head.depth = depth;
    head.even = 0;
    head.tally.both = 1;
    head.parent_lane = std::uint16_t(parent_lane);
    head.count = 0;
    head.capacity = std::uint16_t(capacity);
    head.open = 0;
    if (agents_ > 0) std::fill_n(store_.bare(block).arms(), agents_, Arm{});
    return block;
}

// Lanes for which there is room. A family that had none stays blank.
inline void Forest::add_lanes(std::uint32_t tree, std::uint32_t block, std::uint32_t count,
                              std::uint32_t first_id, const double* priors,
                              const std::int64_t* tags) {
    const Family family = store_.bare(block);
    Header& head = family.head();
    const std::uint32_t lane = head.count;
    if (priors != nullptr) std::copy_n(priors, count, family.prior() + lane);
    if (tags != nullptr) std::copy_n(tags, count, family.tag() + lane);
    head.even = lane == 0 && priors == nullptr && tags == nullptr;
    if (lane == 0) {
        *family.tally() = Blank{first_id, priors != nullptr, tags != nullptr}.tally();
    } else {
        fill_lanes(family, {lane, count, first_id, priors != nullptr, tags != nullptr});
    }
    std::uint64_t* const places = &locations_[first_id];
    const std::uint64_t place = Location{tree, block, lane}.pack();
    for (std::uint32_t i = 0; i < count; ++i) places[i] = place + i;
    head.count = std::uint16_t(head.count + count);
    head.open = std::uint16_t(head.open + count);
    trees_[tree].nodes += count;
}

// The children of a call's row.
inline void Forest::grow(const Location& where, std::size_t row, const Growth& growth) {
    const auto count = std::uint32_t(growth.count(row));
    if (count == 0) return;
    const Family above = store_.at(where.block);
    std::uint32_t& block = above.child()[where.lane];
    if (block == kNone) {
        block = found(trees_[where.tree], count, where.block, where.lane, above.head().depth + 1u);
    } else {
        widen(where.tree, block, count);
    }
    const std::uint32_t first = growth.first(row);
    add_lanes(where.tree, block, count, growth.first_id + first,
              growth.priors ? growth.priors + first : nullptr,
              growth.tags ? growth.tags + first : nullptr);
}

}  // namespace bdc::search
