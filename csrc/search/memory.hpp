// Bytes that grow without bound. Small pieces come from a recycler, large ones are mapped and grow
// by remapping, and a piece of a mapped snapshot is copied out when it has to grow.
#pragma once

#include <cstddef>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

namespace bdc::search {

// Buffers for small trees, cut from slabs of large pages; those of dropped or outgrown trees are
// kept for the next ones. Page by page from the system they would cost more than the search itself.
class Recycler {
  public:
    Recycler() = default;
    Recycler(const Recycler&) = delete;
    ~Recycler();

    std::byte* take(std::size_t bytes);  // a power of two, from 1 KiB to 64 KiB
    void give(std::byte* data, std::size_t bytes);
    std::size_t bytes() const;  // of the slabs

  private:
    static constexpr std::size_t kClasses = 17;

    void cut_slab(std::size_t bytes);

    mutable std::mutex mutex_;
    std::vector<std::byte*> free_[kClasses];
    std::vector<std::pair<std::byte*, std::size_t>> slabs_;
    std::byte* next_ = nullptr;  // the uncut part of the last slab
    std::size_t left_ = 0;
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
