#include "arena.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <new>
#include <utility>

namespace bdc::search {

namespace {

constexpr std::size_t kMapped = std::size_t(1) << 20;  // buffers from here on are mapped

bool is_mapped(std::size_t lines) { return lines * kLineBytes >= kMapped; }

void release_lines(std::byte* data, std::size_t lines) {
    if (data == nullptr) return;
    if (is_mapped(lines)) {
        munmap(data, lines * kLineBytes);
    } else {
        std::free(data);
    }
}

}  // namespace

Lines::Lines(Lines&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), capacity_(std::exchange(other.capacity_, 0)) {}

Lines& Lines::operator=(Lines&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(capacity_, other.capacity_);
    return *this;
}

Lines::~Lines() { release_lines(data_, capacity_); }

void Lines::reserve(std::size_t lines) {
    if (lines <= capacity_) return;
    std::size_t wanted = std::max<std::size_t>({lines, capacity_ * 2, 16});
    if (capacity_ * kLineBytes > 4 * kMapped) {
        wanted = std::max(lines, capacity_ + capacity_ / 4);
    }
    const std::size_t bytes = wanted * kLineBytes;
    void* grown = nullptr;
    if (!is_mapped(wanted)) {
        grown = std::aligned_alloc(kLineBytes, bytes);
        if (grown == nullptr) throw std::bad_alloc();
    } else if (data_ != nullptr && is_mapped(capacity_)) {
        grown = mremap(data_, capacity_ * kLineBytes, bytes, MREMAP_MAYMOVE);
        if (grown == MAP_FAILED) throw std::bad_alloc();
        data_ = nullptr;
    } else {
        grown = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (grown == MAP_FAILED) throw std::bad_alloc();
    }
    // Large pages where the kernel has them: a descent touches lines all over the tree.
    if (is_mapped(wanted)) madvise(grown, bytes, MADV_HUGEPAGE);
    if (data_ != nullptr) {
        std::memcpy(grown, data_, capacity_ * kLineBytes);
        release_lines(data_, capacity_);
    }
    data_ = static_cast<std::byte*>(grown);
    capacity_ = wanted;
}

std::vector<std::uint32_t>& Arena::free_list(std::uint32_t capacity) {
    if (free_.size() <= capacity / 4) free_.resize(capacity / 4 + 1);
    return free_[capacity / 4];
}

std::uint32_t Arena::allocate(std::uint32_t capacity, std::uint32_t parent_block,
                              std::uint32_t parent_lane, std::uint32_t depth) {
    const std::uint32_t lines = lines_for(capacity);
    std::uint32_t block = used_;
    auto& free = free_list(capacity);
    if (!free.empty()) {
        block = free.back();
        free.pop_back();
    } else {
        if (std::size_t(used_) + lines > kMaxLines) throw std::bad_alloc();
        lines_.reserve(std::size_t(used_) + lines);
        used_ += lines;
    }
    std::byte* base = lines_.data() + block * kLineBytes;
    std::memset(base, 0, lines * kLineBytes);
    auto& head = *reinterpret_cast<Header*>(base);
    head.capacity = capacity;
    head.parent_block = parent_block;
    head.parent_lane = parent_lane;
    head.visits = 1;
    head.depth = depth;
    head.arms = kNone;
    return block;
}

void Arena::release(std::uint32_t block) {
    Header& head = at(block).head();
    const std::uint32_t capacity = head.capacity;
    head = Header{};
    head.capacity = capacity;
    free_list(capacity).push_back(block);
}

std::byte* Arena::adopt(std::uint32_t lines) {
    lines_.reserve(lines);
    used_ = lines;
    return lines_.data();
}

}  // namespace bdc::search
