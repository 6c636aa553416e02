// Bytes that grow without bound. Small pieces come from a recycler, large ones are mapped and grow
// by remapping, and a piece of a mapped snapshot is copied out when it has to grow.
#pragma once

#include <cstddef>
#include <memory>
#include <mutex>
#include <vector>

namespace bdc::search {

// Small buffers of dropped or outgrown trees, kept for the next ones: fresh pages cost more than
// the work of a small search.
class Recycler {
  public:
    Recycler() = default;
    Recycler(const Recycler&) = delete;
    ~Recycler();

    std::byte* take(std::size_t bytes);  // a power of two
    void give(std::byte* data, std::size_t bytes);
    std::size_t bytes() const;

  private:
    static constexpr std::size_t kKept = std::size_t(32) << 20;
    static constexpr std::size_t kClasses = 20;  // up to 2^19 bytes

    mutable std::mutex mutex_;
    std::vector<std::byte*> free_[kClasses];
    std::size_t kept_ = 0;
};

class Memory {
  public:
    static constexpr std::size_t kAlignment = 64;

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

    // Held in memory when `used` bytes have been written.
    std::size_t held(std::size_t used) const;

  private:
    enum class Kind { kNothing, kSmall, kMapped, kBorrowed };

    void grow(std::size_t bytes, std::size_t used, Recycler& recycler);
    void clear();
    void swap(Memory& other) noexcept;

    std::byte* data_ = nullptr;
    std::size_t capacity_ = 0;
    Kind kind_ = Kind::kNothing;
    Recycler* recycler_ = nullptr;
    std::shared_ptr<void> owner_;
};

}  // namespace bdc::search
