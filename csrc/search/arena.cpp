#include "arena.hpp"

#include <algorithm>
#include <cstring>
#include <new>

namespace bdc::search {

std::uint32_t* Arena::first_free(std::uint32_t capacity) {
    for (auto& [size, block] : free_) {
        if (size == capacity) return &block;
    }
    return nullptr;
}

std::uint32_t Arena::allocate(std::uint32_t capacity, std::uint32_t arms,
                              std::uint32_t parent_block, std::uint32_t parent_lane,
                              std::uint32_t depth, Recycler& recycler) {
    const std::uint32_t grains = grains_for(capacity, arms);
    std::uint32_t block = used_;
    std::uint32_t* free = first_free(capacity);
    if (free != nullptr && *free != kNone) {
        block = *free;
        *free = at(block).head().parent_block;
    } else {
        if (std::size_t(used_) + grains > kMaxGrains) throw std::bad_alloc();
        memory_.reserve((std::size_t(used_) + grains) * kGrain, used_ * kGrain, recycler);
        used_ += grains;
    }
    std::byte* start = base(block);
    std::memset(start, 0, grains * kGrain);
    auto& head = *reinterpret_cast<Header*>(start);
    head.parent_block = parent_block;
    head.visits = 1;
    head.depth = depth;
    head.parent_lane = std::uint16_t(parent_lane);
    head.capacity = std::uint16_t(capacity);
    const Family family(start);
    std::fill_n(family.child(), capacity, kNone);
    return block;
}

void Arena::release(std::uint32_t block) {
    Header& head = at(block).head();
    const std::uint16_t capacity = head.capacity;
    std::uint32_t* free = first_free(capacity);
    if (free == nullptr) free = &free_.emplace_back(capacity, kNone).second;
    head = Header{};
    head.capacity = capacity;
    head.parent_block = *free;
    *free = block;
}

std::byte* Arena::make(std::uint32_t grains, Recycler& recycler) {
    memory_.reserve(grains * kGrain, 0, recycler);
    used_ = grains;
    return memory_.data();
}

void Arena::adopt(std::byte* data, std::uint32_t grains, std::shared_ptr<void> owner) {
    memory_.adopt(data, grains * kGrain, std::move(owner));
    used_ = grains;
}

}  // namespace bdc::search
