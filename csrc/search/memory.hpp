// Bytes that grow without bound. Small pieces come from a recycler, large ones are mapped and grow
// by remapping, and a piece of a mapped snapshot is copied out when it has to grow.
#pragma once

#include <bit>
#include <cstddef>
#include <memory>
#include <mutex>
#include <unordered_set>
#include <utility>
#include <vector>

namespace bdc::search {

// Buffers for small trees: a buddy allocator over slabs of large pages. Page by page from the
// system the memory of a small search would cost more than the search itself; and trees that grow
// in step leave pairs of small buffers behind, which join to the larger ones that they need next.
class Recycler {
  public:
    static constexpr std::size_t kLargest = std::size_t(512) << 10;

    Recycler() = default;
    Recycler(const Recycler&) = delete;
    ~Recycler();

    std::byte* take(std::size_t bytes);  // a power of two, from 1 KiB to kLargest
    void give(std::byte* data, std::size_t bytes);
    std::size_t bytes() const;  // of the slabs

  private:
    void add_slab();
    std::unordered_set<std::byte*>& free(std::size_t bytes) {
        return free_[std::size_t(std::bit_width(bytes)) % kClasses];
    }

    static constexpr std::size_t kClasses = 32;
    mutable std::mutex mutex_;
    std::unordered_set<std::byte*> free_[kClasses];          // by size
    std::vector<std::pair<std::byte*, std::size_t>> slabs_;  // mappings
};

class Memory {
  public:
    Memory() = default;
    Memory(Memory&& other) noexcept;
    Memory& operator=(Memory&& other) noexcept;
    ~Memory() { clear(); }

    std::byte* data() const { return data_; }
    std::size_t capacity() const { return capacity_; }

    // Room for `bytes`, of which the first `used` are kept.
    void reserve(std::size_t bytes, std::size_t used, Recycler& recycler) {
        if (bytes > capacity_) grow(bytes, used, recycler);
    }

    // Part of a private file mapping that `owner` keeps alive.
    void adopt(std::byte* data, std::size_t bytes, std::shared_ptr<void> owner);

    // Held beside the recycler when `used` bytes have been written.
    std::size_t held(std::size_t used) const;

  private:
    enum class Kind { kNothing, kSmall, kMapped, kBorrowed };

    void grow(std::size_t bytes, std::size_t used, Recycler& recycler);
    void use_large_pages();
    void clear();
    void swap(Memory& other) noexcept;

    std::byte* data_ = nullptr;
    std::size_t capacity_ = 0;
    Kind kind_ = Kind::kNothing;
    Recycler* recycler_ = nullptr;
    std::shared_ptr<void> owner_;
};

}  // namespace bdc::search
