#include "arena.hpp"

#include <algorithm>
#include <bit>
#include <new>
#include <utility>

#include "pool.hpp"

namespace bdc::search {

namespace {

// A tree grows by such a part of itself: what is left of the last chunk and the list of all chunks
// cost about as much then. One whose chunks lie one behind the other has no list.
constexpr std::uint32_t kPart = 28, kPartAlone = 8 * kPart;
constexpr std::uint32_t kSmallest = 16, kLargest = 8192;  // grains, 512 bytes to 256 KiB
// And a forest by such a part of itself while one thread works on it, else by slabs.
constexpr std::uint32_t kForestPart = 256, kSlab = kLargest;
static_assert(kSlab >= (kMaxChildren * (kLaneBytes + 1) + 64 * sizeof(Arm)) / kGrain);

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

Chunk Store::take(std::uint32_t needed, std::uint32_t grains) {
    Purse& purse = purses_[Pool::worker()];
    if (purse.rest.grains < needed) return refill(purse, needed, grains);
    return cut(purse.rest, needed, grains);
}

// All that is left goes in one piece where what stayed would be too little for a block.
Chunk Store::cut(Chunk& rest, std::uint32_t needed, std::uint32_t grains) {
    const Chunk all = rest;
    if (all.grains < grains + needed) {
        rest = {all.first + all.grains, 0};
        return all;
    }
    rest = {all.first + grains, all.grains - grains};
    return {all.first, grains};
}

Chunk Store::refill(Purse& purse, std::uint32_t needed, std::uint32_t grains) {
    const std::lock_guard lock(mutex_);
    const int least = size_class(grains);
    for (int i = least; i <= least + 4; ++i) {
        if (free_[i].empty()) continue;
        const Chunk chunk = free_[i].back();
        free_[i].pop_back();
        return chunk;
    }
    Chunk fresh{0, 0};
    if (!in_slabs_ && &purse != purses_.data()) fresh = first_slabs(needed);
    if (fresh.grains == 0) {
        // Trees that grow side by side ask for about the same size: whole ones leave no rest.
        const std::uint32_t part = std::min(used_ / kForestPart, kLargest);
        fresh = in_slabs_ ? slab() : append(std::max(part / grains, 1u) * grains);
    }
    Chunk& rest = purse.rest;
    if (rest.first + rest.grains == fresh.first) {
        rest.grains += fresh.grains;
    } else {
        shelve(std::exchange(rest, fresh));
    }
    return cut(rest, needed, grains);
}

// From here on memory comes in slabs. Returns what lies before the first one, from the next page
// on, since processors fetch ahead up to there; or nothing where that is too little.
Chunk Store::first_slabs(std::uint32_t needed) {
    constexpr std::uint32_t kPage = 4096 / kGrain;
    append((kPage - used_ % kPage) % kPage);  // lost
    const std::uint32_t first = (used_ + kSlab - 1) / kSlab;
    const Chunk before = append(first * kSlab - used_);
    in_slabs_ = true;
    slabs_.start(first);
    if (before.grains >= needed) return before;
    shelve(before);
    return {0, 0};
}

Chunk Store::slab() {
    const std::uint32_t first = slabs_.take(Pool::worker(), kMaxGrains / kSlab) * kSlab;
    if (first + kSlab > used_) append(first + kSlab - used_);
    return {first, kSlab};
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
    for (const Purse& purse : purses_) grains -= purse.rest.grains;
    if (in_slabs_) grains -= std::size_t(slabs_.left_below(used_ / kSlab)) * kSlab;
    return grains * kGrain;
}

void Store::swap(Store& other) noexcept {
    std::swap(memory_, other.memory_);
    std::swap(used_, other.used_);
    std::swap(purses_, other.purses_);
    std::swap(slabs_, other.slabs_);
    std::swap(in_slabs_, other.in_slabs_);
    std::swap(free_, other.free_);
}

std::uint32_t* Arena::first_free(std::uint32_t capacity) {
    for (auto& [size, block] : free) {
        if (size == capacity) return &block;
    }
    return nullptr;
}

void Arena::reserve(Store& store, std::uint32_t needed) {
    const std::uint32_t parts = chunks.size() > 1 ? kPart : kPartAlone;
    const std::uint32_t part = std::clamp(grains / parts, kSmallest, kLargest);
    add(store.take(needed, std::min(chunk_for(needed, part), kLargest)));
}

void Arena::add(Chunk chunk) {
    grains += chunk.grains;
    if (chunk.first == end && !chunks.empty()) {  // as in a forest of one tree
        chunks.back().grains += chunk.grains;
    } else {
        // A whole line at first, and few moves: they cost more than a block.
        if (chunks.size() == chunks.capacity()) {
            chunks.reserve(std::max(kLine / sizeof(Chunk), 4 * chunks.size()));
        }
        chunks.push_back(chunk);
        next = chunk.first;
    }
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

void Arena::give_back(Store& store) const {
    for (const Chunk& chunk : chunks) store.give(chunk);
}

}  // namespace bdc::search
