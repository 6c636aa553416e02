// One tree's memory. The unit is a *family*: all children of a node in one block, a header followed
// by one array per field. A node is a lane of its parent's family and also holds the statistics of
// the edge into it. Blocks are named by their place, counted in grains of 32 bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "memory.hpp"
#include "types.hpp"

namespace bdc::search {

inline constexpr std::size_t kGrain = 32;
inline constexpr std::size_t kLaneBytes = 44;

struct Header {
    std::uint32_t parent_block;  // kNone above a root; in a free block the next free one
    std::uint32_t visits;        // N of the node whose children these are: 1 + returns through them
    std::uint32_t pending;       // selections in flight that went through these children
    std::uint32_t depth;         // of these children; a root has 0
    std::uint16_t parent_lane;
    std::uint16_t count;     // lanes in use; 0 in a free block
    std::uint16_t capacity;  // lanes
    std::uint16_t open;      // lanes that are not pruned
};
static_assert(sizeof(Header) == 24);

// Returns of the children one agent has generated at a node, by their first evaluation.
struct Arm {
    double sum;
    std::uint64_t n;
};

// Bytes from the block's start to its generate arms, which follow the lanes.
inline std::size_t arms_offset(std::size_t capacity) {
    return sizeof(Header) + (kLaneBytes * capacity + 7) / 8 * 8;
}

inline std::uint32_t grains_for(std::uint32_t capacity, std::uint32_t arms) {
    const std::size_t bytes = arms_offset(capacity) + sizeof(Arm) * arms;
    return std::uint32_t((bytes + kGrain - 1) / kGrain);
}

// Typed view of a block; valid until the arena grows.
class Family {
  public:
    explicit Family(std::byte* base) : base_(base), capacity_(head().capacity) {}

    Header& head() const { return *reinterpret_cast<Header*>(base_); }
    std::size_t capacity() const { return capacity_; }
    double* best() const { return field<double>(0); }  // largest return, 0 without returns
    double* sum() const { return field<double>(8); }   // of the returns
    double* prior() const { return field<double>(16); }
    std::uint32_t* n() const { return field<std::uint32_t>(24); }  // returns
    std::uint32_t* pending() const { return field<std::uint32_t>(28); }
    std::uint32_t* child() const { return field<std::uint32_t>(32); }  // block of the node's family
    std::uint32_t* id() const { return field<std::uint32_t>(36); }
    std::uint16_t* tag() const { return field<std::uint16_t>(40); }
    std::uint8_t* reason() const { return field<std::uint8_t>(42); }   // 0: open, else why pruned
    std::uint8_t* refined() const { return field<std::uint8_t>(43); }  // times, at most 255
    Arm* arms() const { return reinterpret_cast<Arm*>(base_ + arms_offset(capacity_)); }

    double value(std::uint32_t lane, Backup backup) const {
        if (backup == Backup::kMax) return best()[lane];
        return n()[lane] ? sum()[lane] / double(n()[lane]) : 0.0;
    }

    void copy_lane(std::uint32_t to, const Family& other, std::uint32_t from) const {
        best()[to] = other.best()[from];
        sum()[to] = other.sum()[from];
        prior()[to] = other.prior()[from];
        n()[to] = other.n()[from];
        pending()[to] = other.pending()[from];
        child()[to] = other.child()[from];
        id()[to] = other.id()[from];
        tag()[to] = other.tag()[from];
        reason()[to] = other.reason()[from];
        refined()[to] = other.refined()[from];
    }

  private:
    template <class T>
    T* field(std::size_t bytes_before) const {
        return reinterpret_cast<T*>(base_ + sizeof(Header) + bytes_before * capacity_);
    }
    std::byte* base_;
    std::size_t capacity_;
};

class Arena {
  public:
    Family at(std::uint32_t block) const { return Family(base(block)); }
    std::byte* base(std::uint32_t block) const {
        return memory_.data() + std::size_t(block) * kGrain;
    }
    std::uint32_t used() const { return used_; }  // grains
    const std::byte* data() const { return memory_.data(); }
    std::size_t bytes() const { return memory_.held(used_ * kGrain); }

    // A family with room for `capacity` lanes and `arms` generate arms, all zero but for the header
    // (no children yet) and `child` (none).
    std::uint32_t allocate(std::uint32_t capacity, std::uint32_t arms, std::uint32_t parent_block,
                           std::uint32_t parent_lane, std::uint32_t depth, Recycler& recycler);
    void release(std::uint32_t block);

    // For the loader: raw grains to be filled in, or lying in a mapped file.
    std::byte* make(std::uint32_t grains, Recycler& recycler);
    void adopt(std::byte* data, std::uint32_t grains, std::shared_ptr<void> owner);

    void adopt_free(std::uint32_t capacity, std::uint32_t block) {
        free_.emplace_back(capacity, block);
    }
    const std::vector<std::pair<std::uint32_t, std::uint32_t>>& free() const { return free_; }

  private:
    std::uint32_t* first_free(std::uint32_t capacity);

    Memory memory_;
    std::uint32_t used_ = 0;
    std::vector<std::pair<std::uint32_t, std::uint32_t>> free_;  // first free block by capacity
};

}  // namespace bdc::search
