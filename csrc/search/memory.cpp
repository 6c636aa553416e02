#include "memory.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <new>
#include <utility>

namespace bdc::search {

namespace {

constexpr std::size_t kSmall = std::size_t(64) << 10;  // from a recycler up to here
constexpr std::size_t kHugePage = std::size_t(2) << 20;

std::byte* mapped(void* result) {
    if (result == MAP_FAILED) throw std::bad_alloc();
    return static_cast<std::byte*>(result);
}

std::size_t page_for(std::size_t bytes) { return bytes < 4 * kHugePage ? 4096 : kHugePage; }

std::size_t rounded(std::size_t bytes, std::size_t to) { return (bytes + to - 1) / to * to; }

}  // namespace

Recycler::~Recycler() {
    for (const auto& [slab, bytes] : slabs_) munmap(slab, bytes);
}

void Recycler::cut_slab(std::size_t bytes) {
    // What is left of the last slab goes to the lists, largest pieces first.
    while (left_ > 0) {  // less than `bytes`
        const std::size_t piece = std::bit_floor(left_);
        free_[std::min<std::size_t>(std::countr_zero(piece), kClasses - 1)].push_back(next_);
        next_ += piece;
        left_ -= piece;
    }
    const std::size_t grown = slabs_.empty() ? 0 : 2 * slabs_.back().second;
    const std::size_t slab = std::clamp(std::bit_ceil(grown), 8 * bytes, 2 * kHugePage);
    next_ = mapped(mmap(nullptr, slab, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    left_ = slab;
    slabs_.emplace_back(next_, slab);
    madvise(next_, slab, MADV_HUGEPAGE);
}

std::byte* Recycler::take(std::size_t bytes) {
    const std::lock_guard lock(mutex_);
    auto& buffers = free_[std::countr_zero(bytes)];
    if (!buffers.empty()) {
        std::byte* buffer = buffers.back();
        buffers.pop_back();
        return buffer;
    }
    if (left_ < bytes) cut_slab(bytes);
    std::byte* buffer = next_;
    next_ += bytes;
    left_ -= bytes;
    return buffer;
}

void Recycler::give(std::byte* data, std::size_t bytes) {
    const std::lock_guard lock(mutex_);
    free_[std::countr_zero(bytes)].push_back(data);
}

std::size_t Recycler::bytes() const {
    const std::lock_guard lock(mutex_);
    std::size_t total = 0;
    for (const auto& [slab, bytes] : slabs_) total += bytes;
    return total;
}

Memory::Memory(Memory&& other) noexcept { swap(other); }

Memory& Memory::operator=(Memory&& other) noexcept {
    if (this != &other) {
        clear();
        swap(other);
    }
    return *this;
}

void Memory::swap(Memory& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(capacity_, other.capacity_);
    std::swap(kind_, other.kind_);
    std::swap(recycler_, other.recycler_);
    std::swap(owner_, other.owner_);
}

void Memory::clear() {
    if (kind_ == Kind::kSmall) recycler_->give(data_, capacity_);
    if (kind_ == Kind::kMapped) munmap(data_, capacity_);
    owner_.reset();
    data_ = nullptr;
    capacity_ = 0;
    kind_ = Kind::kNothing;
}

void Memory::adopt(std::byte* data, std::size_t bytes, std::shared_ptr<void> owner) {
    clear();
    data_ = data;
    capacity_ = bytes;
    kind_ = Kind::kBorrowed;
    owner_ = std::move(owner);
}

std::size_t Memory::held(std::size_t used) const {
    if (kind_ == Kind::kSmall) return 0;  // counted by the recycler
    return kind_ == Kind::kMapped ? std::min(capacity_, rounded(used, page_for(used))) : capacity_;
}

// A descent touches lines all over the tree: large pages where they would not mostly stay empty.
void Memory::use_large_pages() {
    if (page_for(capacity_) == kHugePage) madvise(data_, capacity_, MADV_HUGEPAGE);
}

void Memory::grow(std::size_t bytes, std::size_t used, Recycler& recycler) {
    Memory grown;
    if (bytes <= kSmall) {
        grown.capacity_ = std::bit_ceil(std::max<std::size_t>(bytes, 1024));
        grown.data_ = recycler.take(grown.capacity_);
        grown.kind_ = Kind::kSmall;
        grown.recycler_ = &recycler;
    } else {
        const std::size_t least = std::max(bytes, capacity_ + capacity_ / 4);
        const std::size_t wanted = rounded(least, page_for(least));
        if (kind_ == Kind::kMapped) {
            data_ = mapped(mremap(data_, capacity_, wanted, MREMAP_MAYMOVE));
            capacity_ = wanted;
            use_large_pages();
            return;
        }
        grown.data_ = mapped(
            mmap(nullptr, wanted, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        grown.capacity_ = wanted;
        grown.kind_ = Kind::kMapped;
        grown.use_large_pages();
    }
    if (used > 0) std::memcpy(grown.data_, data_, used);
    *this = std::move(grown);
}

}  // namespace bdc::search
