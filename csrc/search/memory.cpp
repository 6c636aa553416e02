#include "memory.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <new>
#include <utility>

namespace bdc::search {

namespace {

constexpr std::size_t kHugePage = std::size_t(2) << 20;

std::byte* mapped(void* result) {
    if (result == MAP_FAILED) throw std::bad_alloc();
    return static_cast<std::byte*>(result);
}

std::size_t page_for(std::size_t bytes) { return bytes < 2 * kHugePage ? 4096 : kHugePage; }

std::size_t rounded(std::size_t bytes, std::size_t to) { return (bytes + to - 1) / to * to; }

}  // namespace

Recycler::~Recycler() {
    for (const auto& [slab, bytes] : slabs_) munmap(slab, bytes);
}

// A run of buffers of the largest size, aligned to it, so that a buffer's buddy differs in one bit
// of the address.
void Recycler::add_slab() {
    const std::size_t grown = slabs_.empty() ? 0 : 2 * slabs_.back().second;
    const std::size_t bytes = std::clamp(grown, 2 * kLargest, 4 * kHugePage);
    std::byte* slab =
        mapped(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    slabs_.emplace_back(slab, bytes);
    madvise(slab, bytes, MADV_HUGEPAGE);
    const std::size_t skipped = -reinterpret_cast<std::uintptr_t>(slab) % kLargest;
    for (std::size_t at = skipped; at + kLargest <= bytes; at += kLargest) {
        free(kLargest).insert(slab + at);
    }
}

std::byte* Recycler::take(std::size_t bytes) {
    const std::lock_guard lock(mutex_);
    std::size_t found = bytes;
    while (found <= kLargest && free(found).empty()) found *= 2;
    if (found > kLargest) {
        add_slab();
        found = kLargest;
    }
    std::byte* buffer = free(found).extract(free(found).begin()).value();
    while (found > bytes) {
        found /= 2;
        free(found).insert(buffer + found);
    }
    return buffer;
}

void Recycler::give(std::byte* data, std::size_t bytes) {
    const std::lock_guard lock(mutex_);
    for (; bytes < kLargest; bytes *= 2) {
        const auto place = reinterpret_cast<std::uintptr_t>(data);
        if (free(bytes).erase(
                data + (place & bytes ? -std::ptrdiff_t(bytes) : std::ptrdiff_t(bytes))) == 0)
            break;
        if (place & bytes) data -= bytes;
    }
    free(bytes).insert(data);
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
    if (bytes <= Recycler::kLargest) {
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
