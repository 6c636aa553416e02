#include "arena.hpp"

#include <algorithm>
#include <bit>
#include <new>
#include <utility>

#include "pool.hpp"

namespace bdc::search {

namespace {

// A tree grows by such a part of itself: what is left of the last chunk and the list of all chunks
// cost about as much then.
constexpr std::uint32_t kPart = 28;
constexpr std::uint32_t kSmallest = 16, kLargest = 8192;  // grains, 512 bytes to 256 KiB
// And a forest by such a part of itself for each thread.
constexpr std::uint32_t kSlabPart = 256, kMostSlab = 2048;

int size_class(std::uint32_t grains) {
    const int power = std::bit_width(grains) - 1;
    return 4 * power + int(grains >> (power - 2) & 3);
}

std::uint32_t class_size(int index) { return std::uint32_t(4 + index % 4) << (index / 4 - 2); }

// The size of a chunk of about `part` grains, of which blocks of `needed` leave the least unused.
std::uint32_t chunk_for(std::uint32_t needed, std::uint32_t part) {
    const int largest = size_class(std::max(needed, part)) + 1;
    int best = largest;
    for (int i = largest - 1; i >= std::max(size_class(kSmallest), largest - 3); --i) {
        if (class_size(i) < needed) break;
        const std::uint64_t waste = class_size(i) % needed, other = class_size(best) % needed;
        if (waste * class_size(best) < other * class_size(i)) best = i;
    }
    return class_size(best);
}

}  // namespace

Chunk Store::take(std::uint32_t grains) {
    Purse& purse = purses_[Pool::worker()];
    if (purse.rest.grains < grains) return refill(purse, grains);
    purse.rest = {purse.rest.first + grains, purse.rest.grains - grains};
    return {purse.rest.first - grains, grains};
}

Chunk Store::refill(Purse& purse, std::uint32_t grains) {
    const std::lock_guard lock(mutex_);
    const int least = size_class(grains);
    for (int i = least; i <= least + 4; ++i) {
        if (free_[i].empty()) continue;
        const Chunk chunk = free_[i].back();
        free_[i].pop_back();
        return chunk;
    }
    const Chunk fresh = slab(purse, grains);
    Chunk& rest = purse.rest;
    if (rest.first + rest.grains == fresh.first) {
        rest.grains += fresh.grains;
    } else {
        shelve(std::exchange(rest, fresh));
    }
    rest = {rest.first + grains, rest.grains - grains};
    return {rest.first - grains, grains};
}

// Memory for the purse, and for those of others that have none put aside.
Chunk Store::slab(Purse& purse, std::uint32_t grains) {
    Chunk own = std::exchange(purse.next, {0, 0});
    if (own.grains >= grains) return own;
    shelve(own);
    shared_ |= &purse != purses_.data();
    const std::uint32_t wanted = shared_ ? kMostSlab : std::min(used_ / kSlabPart, kMostSlab);
    // Trees that grow side by side ask for about the same size: whole ones leave no rest.
    const std::uint32_t size = std::max(wanted / grains, 1u) * grains;
    for (Purse& each : purses_) {
        if (&each == &purse) {
            own = append(size);
        } else if (each.next.grains == 0) {
            each.next = append(size);
        }
    }
    return own;
}

Chunk Store::append(std::uint32_t grains) {
    if (std::size_t(used_) + grains > kMaxGrains) throw std::bad_alloc();
    memory_.commit((std::size_t(used_) + grains) * kGrain);
    used_ += grains;
    return {used_ - grains, grains};
}

void Store::give(Chunk chunk) {
    const std::lock_guard lock(mutex_);
    shelve(chunk);
}

void Store::shelve(Chunk chunk) {
    while (chunk.grains >= kSmallest) {  // less is lost until the next compaction
        const std::uint32_t piece = std::min(chunk.grains, kLargest);
        free_[size_class(piece)].push_back({chunk.first, piece});
        chunk = {chunk.first + piece, chunk.grains - piece};
    }
}

std::byte* Store::fill(std::uint32_t grains) {
    memory_.commit(std::size_t(grains) * kGrain);
    used_ = grains;
    return memory_.data();
}

bool Store::map(int file, std::size_t offset, std::uint32_t grains) {
    if (!memory_.map(file, offset, std::size_t(grains) * kGrain)) return false;
    used_ = grains;
    return true;
}

std::size_t Store::bytes() const {
    std::size_t grains = used_;
    for (const Purse& purse : purses_) grains -= purse.next.grains;
    return grains * kGrain;
}

void Store::swap(Store& other) noexcept {
    std::swap(memory_, other.memory_);
    std::swap(used_, other.used_);
    std::swap(purses_, other.purses_);
    std::swap(shared_, other.shared_);
    std::swap(free_, other.free_);
}

std::uint32_t* Arena::first_free(std::uint32_t capacity) {
    for (auto& [size, block] : free) {
        if (size == capacity) return &block;
    }
    return nullptr;
}

void Arena::reserve(Store& store, std::uint32_t needed) {
    const std::uint32_t part = std::clamp(grains / kPart, kSmallest, kLargest);
    add(store.take(chunk_for(needed, part)));
}

void Arena::add(Chunk chunk) {
    chunks.push_back(chunk);
    grains += chunk.grains;
    next = chunk.first;
    end = chunk.first + chunk.grains;
}

std::uint32_t Arena::reuse(Store& store, std::uint32_t capacity) {
    std::uint32_t* first = first_free(capacity);
    if (first == nullptr || *first == kNone) return kNone;
    const std::uint32_t block = *first;
    *first = store.head(block).parent_block;
    return block;
}

void Arena::release(Store& store, std::uint32_t block) {
    Header& head = store.head(block);
    const std::uint16_t capacity = head.capacity;
    std::uint32_t* first = first_free(capacity);
    if (first == nullptr) first = &free.emplace_back(capacity, kNone).second;
    head = Header{};
    head.capacity = capacity;
    head.parent_block = *first;
    *first = block;
}

void Arena::give_back(Store& store) {
    for (const Chunk& chunk : chunks) store.give(chunk);
    *this = Arena{};
}

}  // namespace bdc::search
