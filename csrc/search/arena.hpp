// One tree's memory. The unit is a *family*: all children of a node in one 64-byte-aligned block,
// a header line followed by one array per field. A node is a lane of its parent's family and also
// holds the statistics of the edge into it.
#pragma once

#include <cstddef>
#include <cstring>
#include <vector>

#include "types.hpp"

namespace bdc::search {

inline constexpr std::size_t kLineBytes = 64;
inline constexpr std::size_t kLaneBytes = 44;

struct Header {
    std::uint32_t parent_block;  // kNone above a root
    std::uint32_t parent_lane;
    std::uint32_t count;     // lanes in use; 0 in a free block
    std::uint32_t capacity;  // lanes, a multiple of 4
    std::uint32_t visits;    // N of the node whose children these are: 1 + returns through them
    std::uint32_t pending;   // selections in flight that went through these children
    std::uint32_t open;      // lanes that are not pruned
    std::uint32_t depth;     // of these children; a root has 0
    std::uint32_t arms;      // first generate arm in the tree's list, kNone without
    std::uint32_t cached;    // visits + pending for which the two factors below hold
    double factor[2];        // the rule's terms that depend on visits + pending only
    std::uint64_t unused;
};
static_assert(sizeof(Header) == kLineBytes);

inline std::uint32_t lanes_for(std::uint32_t count) { return (count + 3) / 4 * 4; }

inline std::uint32_t lines_for(std::uint32_t capacity) {
    return std::uint32_t((kLineBytes + kLaneBytes * capacity + kLineBytes - 1) / kLineBytes);
}

// Typed view of a block; valid until the arena grows.
class Family {
  public:
    explicit Family(std::byte* base) : base_(base), capacity_(head().capacity) {}

    Header& head() const { return *reinterpret_cast<Header*>(base_); }
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
        return reinterpret_cast<T*>(base_ + kLineBytes + bytes_before * capacity_);
    }
    std::byte* base_;
    std::size_t capacity_;
};

// Cache lines that grow without bound; large ones grow by remapping, not by copying.
class Lines {
  public:
    Lines() = default;
    Lines(Lines&& other) noexcept;
    Lines& operator=(Lines&& other) noexcept;
    ~Lines();

    std::byte* data() const { return data_; }
    void reserve(std::size_t lines);
    std::size_t capacity() const { return capacity_; }

  private:
    std::byte* data_ = nullptr;
    std::size_t capacity_ = 0;
};

class Arena {
  public:
    Family at(std::uint32_t block) const { return Family(lines_.data() + block * kLineBytes); }
    std::uint32_t used() const { return used_; }
    const std::byte* data() const { return lines_.data(); }
    std::size_t bytes() const { return lines_.capacity() * kLineBytes; }

    void prefetch(std::uint32_t block) const {
        const std::byte* base = lines_.data() + block * kLineBytes;
        for (int line = 0; line < 4; ++line) __builtin_prefetch(base + line * kLineBytes);
    }

    // A family with room for `capacity` lanes, all zero, header set for no children.
    std::uint32_t allocate(std::uint32_t capacity, std::uint32_t parent_block,
                           std::uint32_t parent_lane, std::uint32_t depth);
    void release(std::uint32_t block);

    // For the loader: `lines` raw lines to be filled in, then `adopt_free` per free block.
    std::byte* adopt(std::uint32_t lines);
    void adopt_free(std::uint32_t block) { free_list(at(block).head().capacity).push_back(block); }

  private:
    std::vector<std::uint32_t>& free_list(std::uint32_t capacity);

    Lines lines_;
    std::uint32_t used_ = 0;
    std::vector<std::vector<std::uint32_t>> free_;  // by capacity / 4
};

}  // namespace bdc::search
